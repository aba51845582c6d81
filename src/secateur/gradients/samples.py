"""Every sample's gradient with respect to one matrix, a few rows at a time.

    g_n = G_n^T X_n        X_n [token, column] what sample n gave the matrix's module, G_n [token, out] the gradient of its output

Sums of |g_n| and g_n^2 need each g_n by itself, and kept up for a whole matrix they take more than the matrix. X and G are narrow:
they are kept for one layer, where the hidden states are, and any rows of any g_n are made from them.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from secateur import axes
from secateur.families.binding import Binding
from secateur.gradients.estimator import Task
from secateur.statistics.weight_gradient import SampleSums, WeightFisher, reduce_fisher
from secateur.streaming.collect import Request
from secateur.streaming.hidden import HiddenStates


class SampleGradients:
    """X and G of one module, and what becomes of them. As a context it leaves no file."""

    def __init__(self, task: Task, module: str, weight: Float[Tensor, "out column"], *, by_column: bool) -> None:
        self._weight, self._by_column = weight, by_column
        self._shape, self._seen = task.ids.shape, 0
        self._inputs, self._gradients = (
            HiddenStates(
                (len(task.ids), task.ids.shape[1], width), task.walk.dtype, directory=task.store.directory if task.spill else None,
                spill=task.spill, name=f"{name}-{module}", device=weight.device,
            )
            for name, width in (("hidden", weight.shape[1]), ("gradient", weight.shape[0]))
        )  # fmt: skip

    def __enter__(self) -> "SampleGradients":
        return self

    def __exit__(self, *raised: object) -> None:
        for kept in (self._inputs, self._gradients):
            kept.__exit__(*raised)
            kept.forget(0)

    def update(self, x: Float[Tensor, "sample token column"], gradient: Float[Tensor, "sample token out"]) -> None:
        """Of the next whole samples. `gradient` is of the summed loss with respect to the matrix's output."""
        self._inputs.put(self._seen, x)
        self._gradients.put(self._seen, gradient)
        self._seen += len(x)

    def result(self) -> WeightFisher:
        """Of all samples' mean token losses."""
        self._inputs.commit(0)
        self._gradients.commit(0)
        return reduce_fisher(
            self._weight, lambda rows: SampleSums.of(self._rows(rows)), *self._shape, by_column=self._by_column
        )

    def _rows(self, rows: slice) -> Iterator[Float[Tensor, "row column"]]:
        for i in range(self._shape[0]):
            x, gradient = (kept.get(i, i + 1)[0] for kept in (self._inputs, self._gradients))
            yield gradient[:, rows].to(self._weight.device).mT @ x.to(self._weight.device)


def states_of_samples(binding: Binding, request: Request) -> int:
    """What is kept of one layer for `request`, in copies of the calibration blocks' hidden states."""
    modules = [module for module, kinds in request.kinds.items() if "weight-fisher" in kinds]
    widths = sum(sum(axes.shape(binding.layer[f"{module}.weight"], binding.sizes)) for module in modules)
    return -(-widths // binding.sizes["hidden"])
