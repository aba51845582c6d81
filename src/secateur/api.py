"""The same jobs from Python: thin wrappers that check the settings and call the recipes.

import secateur

result = secateur.prune("path/to/model", out="smaller", ratio=0.3)
print(result.ratio_reached, secateur.evaluate("smaller", text="held_out.txt").perplexity)
"""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from secateur.errors import UserError
from secateur.keywords import EvalOptions, ExportOptions, PruneOptions, TaskOptions
from secateur.reporter import Quiet, Reporter

if TYPE_CHECKING:
    from torch.nn import Module

    from secateur.export_settings import Target
    from secateur.recipes.evaluate import EvalResult
    from secateur.recipes.evaluate_tasks import TaskResult
    from secateur.recipes.export import ExportResult
    from secateur.recipes.prune import Forecast, PruneResult
    from secateur.runtime.model import Memory, Probed
    from secateur.runtime.probe_pruning import ProbePruning
    from secateur.runtime.probe_refit import ProbeRefit
    from secateur.runtime.refitted import Refitted
    from secateur.runtime.selected import Gather


@overload
def prune(
    model: str | PathLike[str],
    *,
    dry_run: Literal[False] = False,
    report: Reporter | None = None,
    **options: Unpack[PruneOptions],
) -> "PruneResult": ...
@overload
def prune(
    model: str | PathLike[str], *, dry_run: Literal[True], report: Reporter | None = None, **options: Unpack[PruneOptions]
) -> "Forecast": ...
def prune(
    model: str | PathLike[str], *, dry_run: bool = False, report: Reporter | None = None, **options: Any
) -> "PruneResult | Forecast":
    """Prune a checkpoint and write the smaller one to `out`; with `dry_run`, only forecast what that takes.

    `model` is a directory or a hub id; the options are those of `secateur prune` and the fields of
    `secateur.settings.PruneSettings`. Raises `UserError` for a setting or an input that cannot be used.
    """
    from secateur.settings import PruneSettings

    settings = PruneSettings(model=fspath(model), dry_run=dry_run, **_spelled(options))
    from secateur.recipes.prune import prune as run

    return run(settings, report or Quiet())


def evaluate(
    model: "str | PathLike[str] | Module",
    *,
    tokenizer: Any = None,
    report: Reporter | None = None,
    **options: Unpack[EvalOptions],
) -> "EvalResult":
    """Measure a model's perplexity with one layer in memory at a time; with `dynamic`, whole, and pruned anew for each batch.

    `model` is a directory, a hub id, or a Hugging Face model in memory, which needs its `tokenizer` beside it and is walked where
    and in the type that it is. The options are those of `secateur eval` and the fields of `secateur.settings.EvalSettings`;
    for a checkpoint, those of `secateur.dynamic_settings.ProbedEvalSettings` too. Raises `UserError` for a setting or an input that
    cannot be used.
    """
    if isinstance(model, (str, PathLike)):
        if tokenizer is not None:
            raise UserError("a tokenizer was given with a model on disk, which brings its own. Leave out `tokenizer`.")
        from secateur.dynamic_settings import ProbedEvalSettings

        settings = ProbedEvalSettings(model=fspath(model), **_spelled(options))
        if settings.probes:
            from secateur.recipes.evaluate_probed import evaluate_probed

            return evaluate_probed(settings, report or Quiet())
        from secateur.recipes.evaluate import evaluate as run

        return run(settings.plain(), report or Quiet())
    for name in ("device", "dtype", "trust_remote_code"):
        if name in options:
            raise UserError(f"{name!r} has no effect on a model in memory. Move or convert the model itself, and leave it out.")
    if tokenizer is None:
        raise UserError(
            "a model in memory was given without its tokenizer. Give `tokenizer=AutoTokenizer.from_pretrained(...)`."
        )
    from secateur.recipes.evaluate import evaluate_module
    from secateur.settings import EvalSettings

    named = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
    return evaluate_module(model, tokenizer, EvalSettings(model=named, **_spelled(options)), report or Quiet())


def evaluate_tasks(
    model: "str | PathLike[str] | Module | Probed | Refitted",
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    tokenizer: Any = None,
    report: Reporter | None = None,
    **options: Unpack[TaskOptions],
) -> "TaskResult":
    """Evaluate a model on tasks of lm-eval, which is the extra `eval`.

    `model` is a directory, a hub id, or a Hugging Face model in memory, or what `probe` made of one, with its `tokenizer`. `tasks`
    and the options are those of `secateur eval --tasks`. Raises `UserError` for what cannot be used.
    """
    from secateur.task_settings import TaskSettings

    if isinstance(model, (str, PathLike)):
        if tokenizer is not None:
            raise UserError("a tokenizer was given with a model on disk, which brings its own. Leave out `tokenizer`.")
        settings = TaskSettings(model=fspath(model), tasks=_items(tasks), **_spelled(options))
        from secateur.recipes.evaluate_tasks import evaluate_tasks as run

        return run(settings, report or Quiet())
    usable = {"limit", "num_fewshot", "batch"}
    if unused := sorted(options.keys() - usable):
        raise UserError(
            f"{unused[0]!r} has no effect on a model in memory: move, convert or `probe` the model itself. Leave it out."
        )
    if tokenizer is None:
        raise UserError(
            "a model in memory was given without its tokenizer. Give `tokenizer=AutoTokenizer.from_pretrained(...)`."
        )
    named = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
    settings = TaskSettings(model=named, tasks=_items(tasks), **_spelled(options))
    from secateur.recipes.evaluate_tasks import evaluate_tasks_of

    return evaluate_tasks_of(model, tokenizer, settings, report or Quiet())


def export_model(
    model: str | PathLike[str], to: "Target", *, report: Reporter | None = None, **options: Unpack[ExportOptions]
) -> "ExportResult":
    """Write a checkpoint as a file of another program: `to="gguf"` for llama.cpp. The extra `gguf` is needed.

    `model` is a directory or a hub id; the options are those of `secateur export`. Raises `UserError` for a model that the program
    has no place for, and for a file that says something else than the checkpoint.
    """
    from secateur.export_settings import ExportSettings

    settings = ExportSettings(model=fspath(model), to=to, **_spelled(options))
    from secateur.recipes.export import export as run

    return run(settings, report or Quiet())


@overload
def probe(
    model: "Module",
    ratio: float,
    *,
    how: "ProbePruning | None" = None,
    memory: "Memory" = "kept",
    rechoose: int | None = None,
    gather: "Gather" = "copy",
) -> "Probed": ...
@overload
def probe(
    model: "Module", *, small: str | PathLike[str], how: "ProbeRefit | None" = None, memory: "Memory" = "kept"
) -> "Refitted": ...
def probe(
    model: "Module",
    ratio: float | None = None,
    *,
    small: str | PathLike[str] | None = None,
    how: Any = None,
    memory: "Memory" = "kept",
    rechoose: int | None = None,
    gather: "Gather" = "copy",
) -> "Probed | Refitted":
    """Make a Hugging Face causal language model smaller for each batch anew, by what a part of the batch says.

    With `ratio`, `model` itself is changed in place: each batch chooses the heads and channels that it keeps (`how`: a
    `secateur.ProbePruning`; None is the serving form, `ProbePruning.paper()` the published method,
    `ProbePruning.griffin()` another), and `dense()` changes it back.
    With `small`, a directory that `secateur prune` wrote from `model`, the result is that pruned model, which each batch corrects
    (`how`: a `secateur.ProbeRefit`); of `model` only the channels that it lost are kept. The other arguments are those of
    `secateur.runtime.model.Probed` and `secateur.runtime.refitted.Refitted`. Raises `UserError` for a ratio that would empty a
    layer, a family that is not known, and a directory that is not of this model.
    """
    if (ratio is None) == (small is None):
        raise UserError(
            f"ratio={ratio!r} and small={small!r} were given. Give one of them: the fraction that each batch leaves out, or the "
            "directory of a pruned model that each batch corrects."
        )
    from secateur.runtime.probe_pruning import ProbePruning as Choosing
    from secateur.runtime.probe_refit import ProbeRefit as Refitting

    allowed: Any = Choosing if small is None else Refitting
    if how is not None and not isinstance(how, allowed):
        wanted = "`secateur.ProbePruning` with `ratio`" if small is None else "`secateur.ProbeRefit` with `small`"
        raise UserError(f"how={how!r} was given. Allowed: a {wanted}, or None.")
    if small is None:
        from secateur.runtime.model import Probed

        assert ratio is not None
        return Probed(model, ratio=ratio, how=how, memory=memory, rechoose=rechoose, gather=gather)
    if rechoose is not None or gather != "copy":
        given = f"rechoose={rechoose}" if rechoose is not None else f"gather={gather!r}"
        raise UserError(
            f"{given} is of a model that chooses its channels, and with `small` they are chosen already. Leave it out."
        )
    from secateur.export.load import load_pruned
    from secateur.runtime.refitted import Refitted

    first = next(model.parameters())
    pruned, plan = load_pruned(small, dtype=first.dtype, device=first.device)
    return Refitted(pruned, model, plan, how=how, memory=memory)


def _items(tasks: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Any:
    return fspath(tasks) if isinstance(tasks, (str, PathLike)) else [fspath(task) for task in tasks]


def _spelled(options: Any) -> dict[str, Any]:
    return {name: fspath(value) if isinstance(value, PathLike) else value for name, value in options.items()}
