"""What a pruning job reports."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """`ratio` is what was asked for, as a fraction of all block parameters; `verified` the largest relative error of a layer."""

    out: str
    model: str
    method: str
    compensate: str
    allocation: str | None
    """None where whole layers leave."""
    gradient: dict[str, Any] | None
    """The estimator, its passes over the calibration blocks, and its peak memory; None for a method without gradient."""
    ratio: float
    ratio_reached: float
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None
    perplexity_after: float | None
    evaluation: str | None
    calibration: str
    overlap: dict[str, Any] | None
    """What the evaluated tokens share with the calibration text and its blocks, as `calibration.overlap` counts it."""
    stock: bool
    load: str
    gguf: str | None
    """The file of llama.cpp, if it was asked for."""
    published: str | None
    """Where on the hub, if it was asked for."""
    notes: tuple[str, ...]
    verified: float
    reloaded: dict[str, Any]
    """What the directory says, loaded as it will be, next to the masked original: see `recipes.reload.Reloaded`."""
    run_dir: str
    seconds: float
    peak_memory_bytes: int
    perplexity_stderr_before: float | None = None
    """Standard error over windows; None for one window, or without evaluation."""
    perplexity_stderr_after: float | None = None
    loss_rise: float | None = None
    """Nats per token, of the same windows before and after."""
    loss_rise_stderr: float | None = None
    """Standard error of `loss_rise`: of the windows' differences."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
