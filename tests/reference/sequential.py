"""Sequential least squares with the whole model in memory, twice, at full size: plain modules and hooks, no streams, no stages."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.axes import Kept
from tests.contract.masking import layers_of, logits, masked, naive_mask, sizes_of, specs_of
from tests.reference.ridge import ridge

# What the modules of a layer read and said -> the stream of hidden states at some place.
Stream = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def before(norm: str) -> Stream:
    """The stream as a norm reads it."""
    return lambda read, said: read[norm]


def beside(norm: str, other: str) -> Stream:
    """What a norm reads and what another branch of the layer adds to it."""
    return lambda read, said: read[norm] + said[other]


# Matrices in the order of the forward; with each the stream that its output is added to, or None.
Steps = Sequence[tuple[str, Stream | None]]


def _plain(matrices: Sequence[str], attention: str, first: str, mlp: Sequence[str], down: str, second: str) -> Steps:
    ways = [(m, None) for m in matrices], [(attention, before(first))], [(m, None) for m in mlp], [(down, before(second))]
    return [step for way in ways for step in way]


_QKV = [f"self_attn.{m}" for m in ("q_proj", "k_proj", "v_proj")]
_GATED = ["mlp.gate_proj", "mlp.up_proj"]
_LLAMA = _plain(_QKV, "self_attn.o_proj", "input_layernorm", _GATED, "mlp.down_proj", "post_attention_layernorm")
_NEOX = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
STEPS: Mapping[str, Steps] = {
    **dict.fromkeys(("llama", "llama-bias", "qwen2", "qwen3"), _LLAMA),
    "gemma2": [(name, None) for name, _ in _LLAMA],
    "phi3": _plain(
        ["self_attn.qkv_proj"], "self_attn.o_proj", "input_layernorm", ["mlp.gate_up_proj"], "mlp.down_proj", "post_attention_layernorm"
    ),
    "gpt2": _plain(["attn.c_attn"], "attn.c_proj", "ln_1", ["mlp.c_fc"], "mlp.c_proj", "ln_2"),
    "opt": _plain(_QKV, "self_attn.out_proj", "self_attn_layer_norm", ["fc1"], "fc2", "final_layer_norm"),
    "bloom": _plain(
        ["self_attention.query_key_value"], "self_attention.dense", "input_layernorm", ["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h",
        "post_attention_layernorm",
    ),
    "gpt_neox": [
        (_NEOX[0], None), (_NEOX[1], before("input_layernorm")), (_NEOX[2], None), (_NEOX[3], beside("input_layernorm", _NEOX[1])),
    ],
    "gpt_neox-no-bias": _plain([_NEOX[0]], _NEOX[1], "input_layernorm", [_NEOX[2]], _NEOX[3], "post_attention_layernorm"),
    "phi": [
        *((m, None) for m in _QKV), ("mlp.fc1", None), ("self_attn.dense", before("input_layernorm")),
        ("mlp.fc2", beside("input_layernorm", "self_attn.dense")),
    ],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Module path within a layer -> [token, channel]."""

    read: Mapping[str, Tensor]
    said: Mapping[str, Tensor]


def _heard(model: nn.Module, layer: int, ids: Tensor) -> Heard:
    read: dict[str, Tensor] = {}
    said: dict[str, Tensor] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if args and isinstance(out, Tensor):
                read[name], said[name] = args[0].flatten(0, -2), out.flatten(0, -2)

        return hook

    hooks = [m.register_forward_hook(hear(name)) for name, m in layers_of(model)[layer].named_modules() if name]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return Heard(read=read, said=said)


def refitted(dense: nn.Module, layers: Sequence[Kept], ids: Tensor, steps: Steps, lam: float) -> nn.Module:
    """The model at full size, readers zero where units left, every matrix refitted in turn on all tokens with one ridge."""
    small, sizes = masked(dense, layers), sizes_of(dense)
    small = copy.deepcopy(small).requires_grad_(False)
    specs = specs_of(dense)
    prefix = next(name for name in specs if ".0." in name).split(".0.")[0]
    for number, kept in enumerate(layers):
        for name, stream in steps:
            was, now = _heard(dense, number, ids), _heard(small, number, ids)
            spec = specs[f"{prefix}.{number}.{name}.weight"]
            (reads,) = spec.inputs
            columns, rows = (naive_mask(spec.dims[d], sizes, kept) for d in (reads, 1 - reads))
            lack = was.said[name] - now.said[name]
            if stream is not None:
                lack = lack + stream(was.read, was.said) - stream(now.read, now.said)
            module = layers_of(small)[number].get_submodule(name)
            bias = getattr(module, "bias", None)
            change, shift = ridge(now.read[name][:, columns], lack[:, rows], lam, intercept=bias is not None)
            weight = module.weight if reads == 1 else module.weight.T
            weight[torch.outer(rows, columns)] += change.flatten()
            if bias is not None:
                bias[rows] += shift
    return small


def small_weights(model: nn.Module, layer: int, kept: Kept) -> dict[str, Tensor]:
    """A layer's weights without the dropped units, by relative name."""
    sizes, family = sizes_of(model), specs_of(model)
    prefix = next(name for name in family if ".0." in name).split(".0.")[0]
    found = {}
    for name, parameter in layers_of(model)[layer].named_parameters():
        x = parameter.detach()
        for d, dim in enumerate(family[f"{prefix}.{layer}.{name}"].dims):
            x = x.index_select(d, naive_mask(dim, sizes, kept).nonzero().flatten())
        found[name] = x
    return found
