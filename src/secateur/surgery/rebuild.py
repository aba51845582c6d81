"""From a Plan and the weights to the smaller model's weights, one at a time; readers compensated for what they lose."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur import axes
from secateur.axes import Kept
from secateur.families.binding import Binding
from secateur.plan import Plan
from secateur.streaming.source import Source
from secateur.surgery.compensate import Compensation

# (layer, module path) -> the statistics of the module's input, by type.
SeenOf = Callable[[int, str], Mapping[type, Any]]


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """A source, a plan for it, and how readers are compensated.

    `target` binds the configuration of the result at the *original* sizes: it may have biases that the source lacks.
    """

    source: Source
    target: Binding
    plan: Plan
    compensation: Compensation
    seen: SeenOf
    rewritten: Callable[[int], Mapping[str, Tensor]] = lambda layer: {}
    """The weights of a layer that were refitted, by relative name; they replace the sliced and compensated ones."""

    def sizes(self, layer: int) -> dict[str, int]:
        return self.plan.layer_sizes(layer)

    def renumbered(self, name: str) -> str:
        """The name in the result of a weight that stays: layers move up where others left."""
        at = self.target.locate(name)
        return name if at is None else self.target.layer_name(self.plan.remaining.index(at[0]), at[1])

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of every weight that stays, by its name in the source, in the order of the forward pass."""
        out = {}
        for name in self.target.names():
            at = self.target.locate(name)
            if at is not None and at[0] in self.plan.dropped:
                continue
            sizes = self.target.sizes if at is None else self.sizes(at[0])
            out[name] = (self._dtype(name), axes.shape(self.target.spec(name), sizes))
        return out

    def layer(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """(relative name, weight) of every weight of one layer of the result; `layer` is its number in the source."""
        kept, rewritten = self.plan.layers[layer], self.rewritten(layer)
        readers = {n: axis for axis in kept for n in self.target.readers(axis)}
        # Query heads and kv heads share a reader; it is compensated once, for both.
        paired = {_bias(n) for n in readers} & set(self.target.layer)
        for name in self.target.layer:
            if name in paired:
                continue
            full = self.target.layer_name(layer, name)
            if name in rewritten:
                yield name, rewritten[name]
                if name in readers and _bias(name) in paired:
                    bias = rewritten.get(_bias(name))
                    yield _bias(name), self._read_bias(layer, name) if bias is None else bias
            elif name in readers:
                yield from self._compensated(layer, name, kept)
            elif name in self.source.binding.layer:
                yield name, self._sliced(full, name, kept)
            else:
                shape = axes.shape(self.target.layer[name], self.sizes(layer))
                yield name, torch.zeros(shape, dtype=self._dtype(full))

    def readers(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """(relative name, weight) of one layer's readers of what is pruned and of their biases, compensated."""
        kept = self.plan.layers[layer]
        for name in dict.fromkeys(n for axis in kept for n in self.target.readers(axis)):
            yield from self._compensated(layer, name, kept)

    def _sliced(self, full: str, name: str, kept: Kept) -> Tensor:
        spec, sizes = self.target.layer[name], self.target.sizes
        rows = axes.dim_index(spec.dims[0], sizes, kept)
        if rows is None:
            return axes.select(self.source.read(full), spec, sizes, kept)
        x = self.source.read_rows(full, rows)
        for d, dim in enumerate(spec.dims[1:], start=1):
            index = axes.dim_index(dim, sizes, kept)
            x = x if index is None else x.index_select(d, index)
        return x

    def _compensated(self, layer: int, name: str, kept: Kept) -> Iterator[tuple[str, Tensor]]:
        full, spec = self.target.layer_name(layer, name), self.target.layer[name]
        if not self.compensation.needs:
            yield name, self._sliced(full, name, kept)
            if _bias(name) in self.target.layer:
                yield _bias(name), self._read_bias(layer, name)
            return
        axis_dim = min(spec.inputs)
        columns = axes.dim_index(spec.dims[axis_dim], self.target.sizes, kept)
        assert columns is not None
        has_bias = _bias(name) in self.target.layer
        weight = self.source.read(full)
        weight, bias = self.compensation.compensate(
            weight if axis_dim == 1 else weight.T,
            self._read_bias(layer, name) if has_bias else None,
            columns,
            self.seen(layer, name.rpartition(".")[0]),
        )
        yield name, (weight if axis_dim == 1 else weight.T).to(self._dtype(full)).contiguous()
        if has_bias:
            assert bias is not None
            yield _bias(name), bias.to(self._dtype(self.target.layer_name(layer, _bias(name))))

    def _read_bias(self, layer: int, name: str) -> Tensor:
        """The reader's own bias, or zeros where only the result has one."""
        full = self.target.layer_name(layer, _bias(name))
        if _bias(name) in self.source.binding.layer:
            return self.source.read(full)
        return torch.zeros(axes.shape(self.target.layer[_bias(name)], self.target.sizes), dtype=self._dtype(full))

    def _dtype(self, name: str) -> torch.dtype:
        at = self.target.locate(name)
        known = at is None or at[1] in self.source.binding.layer
        return self.source.dtype(name if known else name.removesuffix(".bias") + ".weight")


def masked(rebuild: Rebuild, layer: int, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is new in a layer, as the *original* shapes hold it: readers with zeros for dropped units, and what was refitted.

    Independent of `axes.select`: built from boolean masks, so that it can check what that did.
    """
    target, kept, out = rebuild.target, rebuild.plan.layers[layer], {}
    for name in rebuild.rewritten(layer):
        out[name] = rebuild.source.read(target.layer_name(layer, name)).clone()
        places = [axes.kept_mask(dim, target.sizes, kept).nonzero().flatten() for dim in target.layer[name].dims]
        out[name][torch.meshgrid(*places, indexing="ij")] = new[name].to(out[name].dtype)
    for name in {n for axis in kept for n in target.readers(axis)}:
        spec = target.layer[name]
        d = min(spec.inputs)
        mask = axes.kept_mask(spec.dims[d], target.sizes, kept)
        whole = torch.zeros(axes.shape(spec, target.sizes), dtype=new[name].dtype)
        if d == 1:
            whole[:, mask] = new[name]
        else:
            whole[mask] = new[name]
        out[name] = whole
        if _bias(name) in target.layer:
            out[_bias(name)] = new[_bias(name)]
    return out


def _bias(weight: str) -> str:
    return weight.removesuffix(".weight") + ".bias"
