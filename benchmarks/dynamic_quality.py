"""What choosing anew for each batch costs in quality: the paper's method, its ablations, ours, and static pruning, at one ratio.

    python benchmarks/dynamic_quality.py MODEL --calibration TEXT --evaluation TEXT [--other TEXT] [--ratios 0.2,0.4] [--draws 5]
        [--first-draw 0] [--batches 20,1] [--only NAME,...] [--out FILE]

For each draw of the evaluated text: perplexity of batches of B windows, as long as the model's context allows (512 at most), under
three settings: calibrated on text like the evaluated one, calibrated on the other text, and batches of which half is the other
text (perplexity is then that of both halves). Every method removes the same share of the blocks' parameters of every layer, or
as near as its units allow; no layer is kept whole, as these models have few. Prints a Markdown table, writes JSON with --out.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import Probe, ProbePruning
from secateur.calibration.blocks import draw_blocks
from secateur.calibration.text import read_texts
from secateur.calibration.tokens import tokenise
from secateur.families.binding import bind
from secateur.plan import parameters
from secateur.runtime.model import Probed

PAPER = ProbePruning.paper(keep_first=0, round_to=1)
FROZEN = {"ema": None}


def paper(**changes: Any) -> ProbePruning:
    return ProbePruning(**{**vars(PAPER), **changes})


def probe(**changes: Any) -> Probe:
    return Probe(**{**vars(PAPER.probe), **changes})


METHODS: dict[str, ProbePruning] = {
    "paper": paper(),
    "paper, frozen": paper(**FROZEN),
    "paper, probe 10%": paper(probe=probe(tokens=0.1)),
    "paper, probe 50% x 50%": paper(probe=probe(samples=0.5)),
    "paper, no history": paper(history="none", **FROZEN),
    "paper, even probe": paper(probe=probe(rank="even")),
    "paper, fixed fusion 1/2": paper(fusion=0.5),
    "full batch": paper(probe=probe(tokens=1.0, samples=1.0), history="none", **FROZEN),
    "static ppsp": paper(probe=None, **FROZEN),
    "griffin": ProbePruning.griffin(),
    "serving choice": ProbePruning(),
}
EXPLORED: dict[str, ProbePruning] = {
    "serving, both": ProbePruning(probed=("attention", "mlp")),
    "serving, both, no mean": ProbePruning(probed=("attention", "mlp"), compensate="none"),
    "serving, 32": ProbePruning(probe=Probe(least=32)),
    "serving, 256": ProbePruning(probe=Probe(least=256)),
    "serving, 1024": ProbePruning(probe=Probe(least=1024)),
    "serving, all": ProbePruning(probe=Probe(tokens=1.0, samples=1.0, most=1.0)),
    "serving, even": ProbePruning(probe=Probe(rank="even")),
    "serving, even 256": ProbePruning(probe=Probe(rank="even", least=256)),
    "serving, no probe": ProbePruning(probe=None),
    "serving, flap": ProbePruning(probe=None, metric="flap"),
    "serving, heads": ProbePruning(attention="heads"),
    "serving, mlp only": ProbePruning(attention="none"),
}


def ppl(model: Any, batches: list[torch.Tensor]) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for ids in batches:
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
            count += ids[:, 1:].numel()
    return math.exp(total / count)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.length = min(512, self.fresh().config.max_position_embeddings)
        binding = bind(self.fresh().config)
        specs = list(binding.layer.values())
        whole = parameters(specs, binding.sizes)
        mlp = whole - parameters(specs, {**binding.sizes, "ffn": 0})
        heads = whole - parameters(specs, {**binding.sizes, "kv": 0})
        self.share = (mlp + heads) / mlp  # what a method of the MLPs alone takes from them
        spec = [args.calibration, args.evaluation]
        self.texts = dict(
            zip(("calibration", "evaluation"), (tokenise(t, self.tokenizer) for t in read_texts(*spec)), strict=True)
        )
        if args.other:
            one, two = (tokenise(t, self.tokenizer) for t in read_texts(args.other, args.other_evaluation))
            self.texts |= {"other calibration": one, "other": two}

    def fresh(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.args.model, dtype=torch.float32).eval()

    def blocks(self, name: str, count: int, seed: int) -> torch.Tensor:
        return draw_blocks(self.texts[name], samples=count, seq_len=self.length, seed=seed).ids

    def batches(self, setting: str, size: int, seed: int) -> list[torch.Tensor]:
        if setting == "mixed":
            both = torch.cat([self.blocks("evaluation", size // 2, seed), self.blocks("other", size - size // 2, seed)])
            return [both[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]]
        return list(self.blocks("evaluation", 20, seed).split(size))

    def rows(self) -> Iterator[dict[str, Any]]:
        settings = ["matched", *(["other", "mixed"] if self.args.other else [])]
        for ratio in self.args.ratios:
            for calibrated in ("calibration", "other calibration"):
                if calibrated in self.texts:
                    for name, model in self.models(ratio, calibrated):
                        for setting in settings:
                            if (setting == "other") == (calibrated == "other calibration"):
                                yield from self.cells(name, model, ratio, setting)

    def models(self, ratio: float, calibrated: str) -> Iterator[tuple[str, Any]]:
        wanted = {**METHODS, **EXPLORED} if self.args.explore else METHODS
        blocks = self.blocks(calibrated, self.args.samples, 0)
        for name, how in wanted.items():
            if not self.args.only or name in self.args.only:
                model = secateur.probe(self.fresh(), ratio * self.share if how.attention == "none" else ratio, how=how)
                yield name, model.calibrate(blocks) if how.history != "none" else model
        yield "dense", self.fresh()
        if not self.args.no_static:
            with TemporaryDirectory() as base:
                text = self.args.calibration if calibrated == "calibration" else self.args.other
                secateur.prune(
                    self.args.model, out=Path(base, "out"), ratio=ratio, effort="best", calibration=text, device="cpu", dtype="fp32",
                    seq_len=min(self.length, 256), samples=self.args.samples,
                )  # fmt: skip
                yield "static best", secateur.load(Path(base, "out")).eval()
                yield "ours", secateur.probe(self.fresh(), small=Path(base, "out")).calibrate(blocks)

    def cells(self, name: str, model: Any, ratio: float, setting: str) -> Iterator[dict[str, Any]]:
        for size in self.args.batches:
            if setting == "mixed" and size == 1:
                continue
            for draw in range(self.args.first_draw, self.args.first_draw + self.args.draws):
                kept = model.state.copy() if isinstance(model, Probed) else None
                value = ppl(model, self.batches(setting, size, 1000 + draw))
                if isinstance(model, Probed) and kept is not None:
                    model.state = kept  # each draw begins with the calibrated state
                yield {"method": name, "ratio": ratio, "setting": setting, "batch": size, "draw": draw, "perplexity": value}


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys((r["setting"], r["ratio"], r["batch"]) for r in rows))
    lines = ["| method | " + " | ".join(f"{s} {r:.0%} B{b}" for s, r, b in columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(r["method"] for r in rows):
        cells = []
        for column in columns:
            found = [r["perplexity"] for r in rows if r["method"] == name and (r["setting"], r["ratio"], r["batch"]) == column]
            cells.append(f"{statistics.mean(found):.2f}" if found else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name in ("calibration", "evaluation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--other")
    parser.add_argument("--other-evaluation")
    parser.add_argument("--ratios", type=numbers(float), default=[0.2, 0.4])
    parser.add_argument("--batches", type=numbers(int), default=[20, 1])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--only", type=numbers(str), default=[])
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--no-static", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = list(Bench(args).rows())
    print(table(rows))
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items()}
        args.out.write_text(json.dumps({"what": "dynamic quality", "settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
