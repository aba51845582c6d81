"""Tables of what was measured, out of benchmarks/results/*.json."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from secateur.allocation import ALLOCATORS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MODELS = ("stories260K", "babyllama", "wiki-llama-4m", "reference", "embedded")
RATIOS = (0.2, 0.4, 0.5)
NOTHING = "-"
MISSED = 0.005  # of the blocks' parameters: a ratio that was reached within this is the one that was asked for


@dataclass
class Runs:
    """What was recorded of one entry on one model, by ratio: a perplexity for every seed, and what was the same in all runs."""

    perplexities: dict[float, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    seconds: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    reached: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    allocation: str | None = None


def compared(entries: Sequence[str]) -> str:
    """Mean perplexity over seeds of every entry (as `secateur compare` spells it) on every model, at 20 / 40 / 50%.

    Raises `KeyError` for an entry that no result has.
    """
    found, dense = _static()
    columns = [model for model in MODELS if any((model, entry) in found for entry in entries)]
    rows = [["dense", *(f"{dense[model]:.2f}" for model in columns)]]
    notes = []
    for entry in entries:
        cells = [found.get((model, entry)) for model in columns]
        if not any(cells):
            raise KeyError(f"no result in {RESULTS.name} has the entry {entry!r}")
        rows.append([f"`{entry}`", *map(_perplexities, cells)])
        notes += [_missed(entry, model, cell) for model, cell in zip(columns, cells, strict=True) if cell and _misses(cell)]
    single = {model: [f"`{entry}`" for entry in entries if _is_one_draw(found.get((model, entry)))] for model in columns}
    recorded = {model: sum((model, entry) in found for entry in entries) for model in columns}
    notes += [
        f"- One draw alone on {model}{'' if len(few) == recorded[model] else ': ' + ', '.join(few)}."
        for model, few in single.items()
        if few
    ]
    return "\n".join([_table(["perplexity at 20 / 40 / 50%", *columns], rows), *(["", *notes] if notes else [])])


def costs(entries: Sequence[str]) -> str:
    """What an entry takes on every model: the least of its recorded runs at 40%, and how its result loads."""
    found, _ = _static()
    columns = [model for model in MODELS if any((model, entry) in found for entry in entries)]
    rows = []
    for entry in entries:
        cells = [found.get((model, entry)) for model in columns]
        seconds = [f"{min(cell.seconds[0.4]):.1f}" if cell and cell.seconds[0.4] else NOTHING for cell in cells]
        allocation = next(cell.allocation for cell in cells if cell)
        rows.append([f"`{entry}`", *seconds, _loads(allocation)])
    return _table(["seconds at 40%, least of the runs", *columns, "loads"], rows)


def dynamic(methods: Sequence[str]) -> str:
    """Mean perplexity over draws of methods that choose or correct for each batch; batches of 20 and of one."""
    found: dict[tuple[str, str, float, int], list[float]] = defaultdict(list)
    for name, result in _results("dynamic"):
        for row in result["rows"]:
            if row["setting"] == "matched":
                found[name, row["method"], row["ratio"], row["batch"]].append(row["perplexity"])
    columns = sorted({(MODELS.index(model), ratio) for model, _, ratio, _ in found})
    rows = []
    for method in methods:
        cells = [[found[MODELS[model], method, ratio, batch] for batch in (20, 1)] for model, ratio in columns]
        if not any(any(cell) for cell in cells):
            raise KeyError(f"no dynamic result in {RESULTS.name} has the method {method!r}")
        rows.append([method, *(" / ".join(f"{fmean(x):.2f}" if x else NOTHING for x in cell) for cell in cells)])
    return _table(["batches of 20 / of one", *(f"{MODELS[model]}, {ratio:.0%}" for model, ratio in columns)], rows)


def gradients(spelled: Sequence[str]) -> str:
    """How near every estimate is to the exact gradient, and what `fms` makes of it: means over seeds, model by model."""
    results = sorted(_results("gradients"), key=lambda named: MODELS.index(named[0]))
    names = ", ".join(name for name, _ in results)
    rows = []
    for one in spelled:
        each = [[row for row in result["rows"] if (row["gradient"], row["method"]) == (one, "fms")] for _, result in results]
        if not all(each):
            raise KeyError(f"not every gradient result in {RESULTS.name} has the estimator {one!r}")
        near = (
            [[row["spearman"]["ffn"] for row in found] for found in each],
            [[row["cosine"] for row in found] for found in each],
        )
        left = [[[row["perplexity"]["0.4"][how] for row in found] for found in each] for how in ("least-squares", "none")]
        passes = f"{each[0][0]['forward_passes']} + {each[0][0]['backward_passes']}"
        told = [*(_means(values, 2) for values in near), *(_means(values, 1) for values in left)]
        rows.append([f"`{one}`", *told, passes])
    titles = ["`--gradient`", "Spearman, ffn", "cosine", "40%, least squares", "40%, none", "passes: forward + back"]
    return f"{_table(titles, rows)}\n\n- In each cell: {names}."


def _means(each: Sequence[Sequence[float]], digits: int) -> str:
    return " / ".join(f"{fmean(values):.{digits}f}" for values in each)


@cache
def _static() -> tuple[dict[tuple[str, str], Runs], dict[str, float]]:
    """(model, entry) -> its runs; model -> the dense model's perplexity. Three kinds of results have one protocol."""
    found: dict[tuple[str, str], Runs] = defaultdict(Runs)
    dense: dict[str, float] = {}
    for model, result in _results("compare"):
        dense[model] = result["perplexity_before"]
        for cell in result["cells"]:
            if cell["perplexity"] is not None:
                runs = found[model, cell["entry"].replace("[allocation=uniform]", "")]  # which is what no brackets mean
                runs.allocation = cell["allocation"]
                runs.perplexities[cell["ratio"]][cell["seed"]] = cell["perplexity"]  # of two results the newer
                runs.seconds[cell["ratio"]].append(cell["seconds"])
                runs.reached[cell["ratio"]].append(cell["ratio_reached"])
    for model, entry, allocation, ratio, values in _trials():
        if (model, entry) not in found or ratio not in found[model, entry].perplexities:
            found[model, entry].perplexities[ratio] = dict(enumerate(values))
            found[model, entry].allocation = allocation
    return dict(found), dense


def _trials() -> Iterator[tuple[str, str, str, float, list[float]]]:
    """Model, entry, allocation, ratio and perplexities of the scripts' results, which never wrote the models."""
    for model, result in _results("compensation"):
        for cell in result["cells"]:
            entry = _entry("flap", cell["compensate"], cell["allocation"])
            yield model, entry, cell["allocation"], cell["ratio"], cell["perplexity"]
    for model, result in _results("sensitivity"):
        values: dict[tuple[str, str, float], list[float]] = defaultdict(list)
        for cell in result["cells"]:
            if cell["method"] != "dense":
                values[cell["method"], cell["allocation"], cell["ratio"]].append(cell["perplexity"])
        for (method, allocation, ratio), found in values.items():
            yield model, _entry(method, result["compensate"], allocation), allocation, ratio, found


def _entry(method: str, compensate: str, allocation: str) -> str:
    """As `secateur compare` spells it, with nothing that is a default."""
    given = {"compensate": compensate, "allocation": allocation}
    choices = [f"{name}={value}" for name, value in given.items() if value not in ("least-squares", "uniform")]
    return f"{method}[{','.join(choices)}]" if choices else method


def _results(kind: str) -> list[tuple[str, Any]]:
    """The model and the content of every result of a kind, the oldest first."""
    found = []
    for path in sorted(RESULTS.glob(f"*-{kind}-*.json")):
        rest = path.stem.partition(f"-{kind}-")[2]
        found.append((next(model for model in MODELS if rest.startswith(model)), json.loads(path.read_text(encoding="utf-8"))))
    return found


def _perplexities(runs: Runs | None) -> str:
    if runs is None:
        return NOTHING
    values = [runs.perplexities.get(ratio) for ratio in RATIOS]
    return " / ".join(f"{fmean(value.values()):.2f}" if value else NOTHING for value in values)


def _is_one_draw(runs: Runs | None) -> bool:
    return runs is not None and all(len(values) == 1 for values in runs.perplexities.values())


def _misses(runs: Runs) -> list[float]:
    return [ratio for ratio in RATIOS if runs.reached[ratio] and abs(fmean(runs.reached[ratio]) - ratio) > MISSED]


def _missed(entry: str, model: str, runs: Runs) -> str:
    reached = ", ".join(f"{fmean(runs.reached[ratio]):.1%} where {ratio:.0%} was asked for" for ratio in _misses(runs))
    return f"- `{entry}` on {model}: {reached}."


def _loads(allocation: str | None) -> str:
    unequal = allocation is not None and not ALLOCATORS[allocation.partition(":")[0]].equal
    return "with its own modelling file" if unequal else "stock"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
