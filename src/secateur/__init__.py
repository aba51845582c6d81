"""Secateur: structured pruning of Hugging Face causal language models, in the memory of one layer.

`import secateur` is cheap: what needs torch is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from secateur.errors import UserError
from secateur.version import __version__

if TYPE_CHECKING:
    from secateur.api import evaluate, evaluate_tasks, export_model, probe, prune
    from secateur.export.load import load
    from secateur.families.unequal import register
    from secateur.runtime.probe import Probe
    from secateur.runtime.probe_pruning import ProbePruning
    from secateur.runtime.probe_refit import ProbeRefit
    from secateur.runtime.refit_state import RefitState
    from secateur.runtime.state import State

__all__ = [
    "Probe", "ProbePruning", "ProbeRefit", "RefitState", "State", "UserError", "__version__", "evaluate", "evaluate_tasks",
    "export_model", "load", "probe", "prune", "register",
]  # fmt: skip

_LAZY = {
    "Probe": "secateur.runtime.probe",
    "ProbePruning": "secateur.runtime.probe_pruning",
    "ProbeRefit": "secateur.runtime.probe_refit",
    "RefitState": "secateur.runtime.refit_state",
    "State": "secateur.runtime.state",
    "evaluate": "secateur.api",
    "evaluate_tasks": "secateur.api",
    "export_model": "secateur.api",
    "load": "secateur.export.load",
    "probe": "secateur.api",
    "prune": "secateur.api",
    "register": "secateur.families.unequal",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
