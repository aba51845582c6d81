"""How much of each half of a layer stays."""

import math
from dataclasses import dataclass

from secateur import axes
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.plan import parameters
from secateur.runtime.probe_pruning import ProbePruning


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Units that stay in each pruned layer; None where a half stays whole.

    `heads`: key-value heads (`kv`), query heads of each group (`group`) or query heads (`heads`), by the method's `attention`.
    """

    heads: int | None
    ffn: int | None

    def sizes(self, whole: axes.Sizes, attention: str) -> dict[str, int]:
        """The axes of a pruned layer."""
        new = dict(whole)
        if self.ffn is not None:
            new["ffn"] = self.ffn
        if self.heads is not None:
            new |= {"kv": {"kv": self.heads}, "group": {"group": self.heads}, "heads": {"kv": self.heads, "group": 1}}[
                attention
            ]
        return new

    @classmethod
    def of(cls, binding: Binding, how: ProbePruning, ratio: float) -> "Widths":
        """`ratio`: what leaves of the halves that are pruned, over all layers. Raises `UserError` if nothing of them would stay."""
        pruned = binding.num_layers - how.keep_first
        if not 0 <= ratio < 1:
            raise UserError(f"the ratio is {ratio}. Allowed: from 0, below 1.")
        if pruned < 1:
            raise UserError(f"keep_first={how.keep_first} leaves none of the {binding.num_layers} layers to prune.")
        share = ratio * binding.num_layers / pruned
        sizes = binding.sizes
        groups = sizes.get("group", 1)
        units = {"kv": sizes["kv"], "group": groups, "heads": sizes["kv"] * groups, "none": 0}[how.attention]
        paper = how.share_ratio == "paper"
        share = round(share, 2) if paper else share
        if share >= 1:
            raise UserError(
                f"with {how.keep_first} layers kept whole, a ratio of {ratio} would empty the other {pruned}. "
                f"Allowed: below {pruned / binding.num_layers:.2f}."
            )
        if how.attention == "group" and groups == 1:
            raise UserError(
                f"attention='group' prunes query heads within groups, and {binding.model_type!r} has one for each key-value head "
                "here. Use 'kv'."
            )
        # Rounded up: a head more costs less than one that is missed. But where heads are few, not all of them stay.
        heads = units - max(math.floor(share * units), int(not paper and share * units >= 0.5)) if units else None
        ffn = sizes["ffn"]
        if how.mlp:
            gone = math.floor(share * ffn) if paper else _rest(binding, how, share, heads)
            ffn = _rounded(ffn, gone, how.round_to)
            if ffn < 1:
                raise UserError(f"a ratio of {ratio} would leave no MLP channel, as heads leave whole. Prune less.")
        return cls(heads=heads if heads != units else None, ffn=ffn if ffn != sizes["ffn"] else None)


def _rest(binding: Binding, how: ProbePruning, share: float, heads: int | None) -> int:
    """Channels that leave so that, after whole heads left, the share of the parameters of both halves has."""
    specs, sizes = list(binding.layer.values()), binding.sizes
    whole = parameters(specs, sizes)
    mlp, attention, gone = whole - parameters(specs, {**sizes, "ffn": 0}), 0, 0.0
    if heads is not None:
        # Query heads that leave one by one leave the keys and values behind.
        axis = "kv" if how.attention == "kv" or sizes.get("group", 1) == 1 else "group"
        units = sizes["kv"] * sizes.get("group", 1) if how.attention == "heads" else sizes[axis]
        attention = whole - parameters(specs, {**sizes, axis: 0})
        gone = attention * (1 - heads / units)
    return max(0, round((share * (mlp + attention) - gone) / (mlp / sizes["ffn"])))


def _rounded(size: int, gone: int, multiple: int) -> int:
    """What stays: a multiple of `multiple`, never less than without it."""
    kept = size - gone
    return min(size, math.ceil(kept / multiple) * multiple) if gone else size
