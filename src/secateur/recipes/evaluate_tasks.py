"""What a model knows how to do: lm-eval's tasks, on a model in memory, whole or pruned anew for each batch of requests."""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from secateur.calibration.blocks import Blocks
from secateur.calibration.text import read_text
from secateur.calibration.tokens import Tokenizer, load_tokenizer, tokenise
from secateur.evaluation.tasks import load_tasks
from secateur.recipes.dynamic import Dynamic, Whole, draw, kept, read_state, restore
from secateur.recipes.opening import DEFAULT_TEXT
from secateur.reporter import Reporter
from secateur.runtime.model import Probed
from secateur.runtime.refit_state import RefitState
from secateur.runtime.refitted import Refitted
from secateur.runtime.state import State
from secateur.streaming.memory import peak
from secateur.task_settings import TaskSettings


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """`found`: lm-eval's answer in its own schema. The rest is what it cannot know of the model."""

    found: dict[str, Any]
    model: str
    batch: int
    """Requests that one forward pass has at most; of a probed model, that one choice was made for."""
    ratio: float | None
    small: str | None
    widths: dict[str, dict[str, int]] | None
    """Units that stay in a pruned layer, and of how many; None for the whole model."""
    calibration: str | None
    seconds: float
    peak_memory_bytes: int

    @property
    def mean_acc(self) -> float | None:
        """Of all tasks that have an accuracy, none weighing more than another."""
        results, groups = self.found["results"], self.found.get("groups", {})
        values = [results[name]["acc,none"] for name in results if name not in groups and "acc,none" in results[name]]
        return sum(values) / len(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """lm-eval's keys, and one more: `secateur`."""
        own = {name: value for name, value in asdict(self).items() if name != "found"}
        return {**self.found, "secateur": {**own, "mean_acc": self.mean_acc}}

    def table(self) -> dict[str, Any]:
        """For a person: a row for each metric of each task."""
        own = {name: value for name, value in asdict(self).items() if name != "found"}
        mean = {"mean_acc": self.mean_acc} if len(self.found["results"]) > 1 else {}
        return {**own, **mean, "tasks": [row for name in self.found["results"] for row in self._rows(name)]}

    def _rows(self, task: str) -> list[dict[str, Any]]:
        metrics = self.found["results"][task]
        rows = []
        for key, value in metrics.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr"):
                continue
            error = metrics.get(f"{name}_stderr,{filtered}")
            rows.append({
                "task": task, "shots": self.found["n-shot"].get(task),
                "examples": self.found["n-samples"].get(task, {}).get("effective"),
                "metric": name if filtered == "none" else f"{name} ({filtered})", "value": value,
                "stderr": error if isinstance(error, float) else None,
            })  # fmt: skip
        return rows


def evaluate_tasks(settings: TaskSettings, report: Reporter) -> TaskResult:
    """Evaluate a checkpoint: any of a supported family, and everything that secateur writes.

    Raises `UserError` for a model, a text or a task that cannot be used, and where lm-eval is not installed.
    """
    start = time.perf_counter()
    report.say("loading the tasks")
    tasks = load_tasks(settings.tasks)
    whole = Whole.open(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code
    )
    tokenizer = load_tokenizer(whole.source.directory, trust_remote_code=settings.trust_remote_code)
    widths, calibration, probed = None, None, settings.probes
    if not settings.probes or (settings.dynamic == 0 and whole.source.layers):  # 0 of unequal layers is all of them
        model, probed = whole.load(), False
    else:
        known = _known(settings, whole, tokenizer, report)
        model = whole.probed(settings)
        if isinstance(known, (State, RefitState)):
            assert settings.state is not None
            calibration = restore(model, known, settings.state)
        elif known is not None:
            report.say(f"calibrating on {known.text}")
            model.calibrate(known.ids)
            calibration = known.protocol
        widths = kept(model)
    found = _run(model, tokenizer, tasks, settings, probed=probed, report=report)
    return TaskResult(
        found=found, model=settings.model, batch=settings.batch, ratio=settings.dynamic, small=settings.small, widths=widths,
        calibration=calibration, seconds=time.perf_counter() - start, peak_memory_bytes=peak(),
    )  # fmt: skip


def evaluate_tasks_of(model: Any, tokenizer: Tokenizer, settings: TaskSettings, report: Reporter) -> TaskResult:
    """Evaluate a model that is in memory, or what `secateur.probe` made of one, where and in the type that it is."""
    start = time.perf_counter()
    report.say("loading the tasks")
    tasks = load_tasks(settings.tasks)
    own = copy.deepcopy(tokenizer)  # lm-eval gives it a padding token
    found = _run(model, own, tasks, settings, probed=not isinstance(model, nn.Module), report=report)
    return TaskResult(
        found=found, model=settings.model, batch=settings.batch, ratio=model.ratio if isinstance(model, Probed) else None,
        small=model.config.name_or_path if isinstance(model, Refitted) else None,
        widths=kept(model) if isinstance(model, Dynamic) else None, calibration=None, seconds=time.perf_counter() - start,
        peak_memory_bytes=peak(),
    )  # fmt: skip


def _run(
    model: Any, tokenizer: Tokenizer, tasks: Sequence[Any], settings: TaskSettings, *, probed: bool, report: Reporter
) -> dict[str, Any]:
    from secateur.evaluation.harness import run  # lm-eval is an extra

    report.say(f"evaluating on {', '.join(settings.tasks)}")
    return run(
        model, tokenizer, tasks, masked=probed, batch=settings.batch, limit=settings.limit, num_fewshot=settings.num_fewshot
    )


def _known(settings: TaskSettings, whole: Whole, tokenizer: Tokenizer, report: Reporter) -> State | RefitState | Blocks | None:
    """What the model will know of its channels: a saved state, blocks to calibrate on, or nothing where nothing is asked of it."""
    if not whole.learns(settings):
        return None
    if settings.state is not None:
        return read_state(settings)
    text = read_text(settings.calibration or DEFAULT_TEXT, role="calibration")
    report.say(f"tokenising {text.name}")
    return draw(tokenise(text, tokenizer), settings, seq_len=settings.seq_len, source=whole.source)
