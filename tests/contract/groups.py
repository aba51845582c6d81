"""Coupled groups of toy layers in every layout the family tables have, with inputs for their modules."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur import axes
from secateur.axes import Kept
from secateur.criteria.unit import CoupledGroup, Matrix
from secateur.statistics.gate_gradient import GateGradient, column_gates, unit_gates
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.statistics.output_gradient import OutputGradientGram
from secateur.statistics.weight_gradient import (
    SampleSums,
    WeightFisher,
    WeightGradient,
    WeightGradientAccumulator,
    reduce_fisher,
)

SIZES = {"hidden": 12, "kv": 3, "group": 4, "head_dim": 5, "ffn": 17}
LAYOUTS: dict[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "llama": (("ffn", "kv", "group"), {
        "self_attn.q_proj.weight": "(kv group head_dim) <- hidden", "self_attn.q_proj.bias": "(kv group head_dim)",
        "self_attn.k_proj.weight": "(kv head_dim) <- hidden", "self_attn.v_proj.weight": "(kv head_dim) <- hidden",
        "self_attn.o_proj.weight": "hidden <- (kv group head_dim)",
        "mlp.gate_proj.weight": "ffn <- hidden", "mlp.up_proj.weight": "ffn <- hidden", "mlp.down_proj.weight": "hidden <- ffn",
    }),
    "phi3": (("ffn", "kv", "group"), {
        "self_attn.qkv_proj.weight": "(kv group head_dim + kv head_dim + kv head_dim) <- hidden",
        "self_attn.o_proj.weight": "hidden <- (kv group head_dim)",
        "mlp.gate_up_proj.weight": "(2 ffn) <- hidden", "mlp.down_proj.weight": "hidden <- ffn",
    }),
    "gpt2": (("ffn", "kv"), {
        "attn.c_attn.weight": "hidden -> (3 kv head_dim)", "attn.c_attn.bias": "(3 kv head_dim)",
        "attn.c_proj.weight": "(kv head_dim) -> hidden", "attn.c_proj.bias": "hidden",
        "mlp.c_fc.weight": "hidden -> ffn", "mlp.c_fc.bias": "ffn", "mlp.c_proj.weight": "ffn -> hidden",
    }),
    "neox": (("kv",), {
        "attention.query_key_value.weight": "(kv 3 head_dim) <- hidden", "attention.dense.weight": "hidden <- (kv head_dim)",
    }),
}  # fmt: skip
LENGTH = 5  # tokens of a sample
CASES = [(layout, axis) for layout, (prunable, _) in LAYOUTS.items() for axis in prunable]


@dataclass(frozen=True, kw_only=True)
class Case:
    group: CoupledGroup
    inputs: Mapping[str, Tensor]
    """Module -> its input [token, channel]."""
    gradients: Mapping[str, Tensor]
    """Module -> loss gradient at its output [token, out]."""

    @property
    def sample_length(self) -> int:
        """Tokens of one sample; its gradients are its own."""
        tokens = len(self.inputs[self.group.reader.module])
        return tokens if tokens % LENGTH else LENGTH

    def seen(self, parts: int = 1) -> dict[str, dict[type, object]]:
        """Statistics of every module's input, of its weight's and its output's gradient and of gates, from so many parts."""
        out: dict[str, dict[type, object]] = {}
        for module, x in self.inputs.items():
            moments, gram = Moments.of(x[:0]), Gram.of(x[:0])
            for part in x.tensor_split(parts):
                moments, gram = moments + Moments.of(part), gram + Gram.of(part)
            out[module] = {Moments: moments, Gram: gram}
        reader = self.group.reader.module
        g = self.gradients[reader]
        fisher = OutputGradientGram.of(g[:0])
        for part in g.tensor_split(parts):
            fisher += OutputGradientGram.of(part)
        out[reader][OutputGradientGram] = fisher
        if self.sample_length > 1:  # one token alone predicts nothing: there is no loss
            out[self.group.axis] = {GateGradient: self._gates(parts)}
            for matrix in self.group.matrices:
                out[matrix.module] |= self._weight_gradients(matrix, parts)
        return out

    def _samples(self, x: Tensor, parts: int) -> list[Tensor]:
        """[sample, token, channel] in so many parts of whole samples; with more parts than samples, one sample each."""
        return [p for p in x.reshape(-1, self.sample_length, x.shape[1]).tensor_split(parts) if len(p)]

    def _gates(self, parts: int) -> GateGradient:
        """Of the axis's units, through the reader."""
        reader = self.group.reader
        a, out = (self._samples(x[reader.module], parts) for x in (self.inputs, self.gradients))
        units = self.group.unit_of_column, self.group.num_units
        each = [unit_gates(column_gates(x, g @ reader.oriented.double()), *units) for x, g in zip(a, out, strict=True)]
        return sum(map(GateGradient.of, each[1:]), start=GateGradient.of(each[0]))

    def _weight_gradients(self, matrix: Matrix, parts: int) -> dict[type, object]:
        """No monoids: made of all samples at once. Parts are the micro-batches that the one accumulator sees."""
        by_column = matrix.spec.reads(self.group.axis)
        accumulator = WeightGradientAccumulator(matrix.oriented, by_column=by_column)
        pieces = [*zip(*(self._samples(of[matrix.module], parts) for of in (self.inputs, self.gradients)), strict=True)]
        for x, g in pieces:
            accumulator.update(x, g)

        def sums(rows: slice) -> SampleSums:
            return SampleSums.of(one[:, rows].mT @ x for inputs, g in pieces for x, one in zip(inputs, g, strict=True))

        number = sum(len(x) for x, _ in pieces)
        fisher = reduce_fisher(matrix.oriented, sums, number, self.sample_length, by_column=by_column)
        return {WeightGradient: accumulator.result(), WeightFisher: fisher}

    def selected(self, kept: Kept) -> "Case":
        """The same layer with the units in another order; the reader's input and the others' output gradients go with them."""
        weights = {n: replace(m, value=axes.select(m.value, m.spec, SIZES, kept)) for n, m in self.group.weights.items()}
        reader = self.group.reader
        index = axes.dim_index(reader.spec.dims[reader.input_dim], SIZES, kept)
        inputs = {**self.inputs, reader.module: self.inputs[reader.module][:, index]}
        gradients = dict(self.gradients)
        for matrix in self.group.matrices:
            rows = axes.dim_index(matrix.spec.dims[1 - matrix.input_dim], SIZES, kept)
            if rows is not None:
                gradients[matrix.module] = gradients[matrix.module][:, rows]
        return replace(self, group=replace(self.group, weights=weights), inputs=inputs, gradients=gradients)

    def cast(self, dtype: torch.dtype) -> "Case":
        weights = {n: replace(m, value=m.value.to(dtype)) for n, m in self.group.weights.items()}
        return replace(self, group=replace(self.group, weights=weights))


def make_case(layout: str, axis: str, *, seed: int = 0, tokens: int = 40) -> Case:
    """Random weights, and random correlated inputs whose channels differ in mean and scale."""
    generator = torch.Generator().manual_seed(seed)
    specs = {name: axes.parse(text) for name, text in LAYOUTS[layout][1].items()}
    weights = {n: torch.randn(axes.shape(s, SIZES), generator=generator, dtype=torch.float64) for n, s in specs.items()}
    group = CoupledGroup.of(layer=1, axis=axis, sizes=SIZES, specs=specs, weights=weights, seed=seed)
    inputs = {}
    for matrix in group.matrices:
        width = matrix.oriented.shape[1]
        mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
        x = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ mix
        inputs[matrix.module] = x * torch.linspace(0.5, 2, width) + torch.randn(width, generator=generator)
    gradients = {}
    for matrix in (group.reader, *(m for m in group.matrices if m is not group.reader)):
        width = matrix.oriented.shape[0]
        mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
        gradients[matrix.module] = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ mix
    return Case(group=group, inputs=inputs, gradients=gradients)
