"""Random scores: the control that every other criterion has to beat."""

from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.criteria.criterion import Inputs, Seen
from secateur.criteria.unit import CoupledGroup


@dataclass(frozen=True, kw_only=True)
class Random:
    """Uniform in [0, 1): the control that every other method has to beat.

    Drawn from the seed, the layer and the axis: the order in which layers are scored does not matter.
    """

    name: ClassVar = "random"
    paper: ClassVar = ""
    needs = frozenset[type]()
    inputs: ClassVar[Inputs] = "reader"
    comparable: ClassVar = False

    def score(self, group: CoupledGroup, seen: Seen) -> Float[Tensor, " unit"]:
        """Dimensionless."""
        digest = sha256(f"{group.seed}/{group.layer}/{group.axis}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(group.num_units, generator=generator, dtype=torch.float64)
