"""The second-moment matrix of the loss gradient at a module's output: which directions of it the loss is sensitive to."""

from jaxtyping import Float
from torch import Tensor

from secateur.statistics.gram import Gram, GramAccumulator


class OutputGradientGram(Gram):
    """F = sum over tokens of g g^T, g the gradient of the summed loss with respect to the module's output. A monoid over tokens.

    The last token of a block predicts nothing and its gradient is zero; it is counted all the same.
    """

    kind = "output-gradient-gram"  # type: ignore[misc]

    @classmethod
    def of(cls, x: Float[Tensor, "*token channel"]) -> "OutputGradientGram":
        return cls(*Gram.of(x))

    def __add__(self, other: "Gram") -> "OutputGradientGram":  # type: ignore[override]
        return OutputGradientGram(*super().__add__(other))


class OutputGradientGramAccumulator(GramAccumulator):
    def result(self) -> OutputGradientGram:
        return OutputGradientGram(*super().result())
