"""Speed of a model probed at a ratio against the dense one and against a static one of the same widths; random weights.

    python benchmarks/dynamic_speed.py [--kv 16] [--dtype float32] [--shapes 20x128,8x128,1x512] [--ratio 0.4] [--runs 5] [--decode 64]

LLaMA shape: 8 layers, hidden 1,024, MLP 2,816, 16 heads of 64, vocabulary 4,096. Runs are interleaved and each has new token ids; one
more in front is not counted. Prints one JSON object a shape: medians in seconds, and the median of the paired ratios.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import secateur
from secateur.evaluation.speed import Cell, compare_speed
from secateur.families.binding import bind
from secateur.plan import Plan
from secateur.runtime.refitted import Refitted

VOCAB, HEADS = 4096, 16
SHAPE = {"hidden_size": 1024, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": VOCAB, "max_position_embeddings": 2048}


def models(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "attn_implementation": "sdpa"}
    config = LlamaConfig(**SHAPE, num_attention_heads=HEADS, num_key_value_heads=args.kv, intermediate_size=2816)
    dense, given = (LlamaForCausalLM._from_config(config, **options).eval() for _ in range(2))
    given.load_state_dict(dense.state_dict())
    probed = secateur.probe(given, args.ratio).calibrate(torch.randint(0, VOCAB, (32, 128)))
    kv = probed.widths.heads or args.kv
    # Mistral without a window is LLaMA, and takes any number of heads.
    config = MistralConfig(
        **SHAPE, num_attention_heads=kv * HEADS // args.kv, num_key_value_heads=kv, intermediate_size=probed.widths.ffn or 2816,
        sliding_window=None,
    )  # fmt: skip
    static, small = (MistralForCausalLM._from_config(config, **options).eval() for _ in range(2))
    small.load_state_dict(static.state_dict())
    binding = bind(dense.config)
    kept = {"kv": tuple(range(kv)), "ffn": tuple(range(probed.widths.ffn or 2816))}
    plan = Plan(model_type="llama", fingerprint="", sizes=binding.sizes, layers=(kept,) * binding.num_layers)
    refitted = Refitted(small, dense, plan).calibrate(torch.randint(0, VOCAB, (32, 128)))
    found = {"dense": dense, "static": static, "probed": probed, "refitted": refitted}
    return {name: found[name] for name in ("dense", "static", *args.models.split(","))}


def compared(found: dict[str, Any], phase: str, shape: tuple[int, int], args: argparse.Namespace) -> dict[str, Any]:
    tokens = args.decode if phase == "decode" else 0
    times = compare_speed(found, Cell(*shape), vocab=VOCAB, runs=args.runs, new_tokens=tokens, seed=0)
    return {
        "what": phase, "dtype": args.dtype, "kv": args.kv, "batch": shape[0], "length": shape[1],
        "seconds": {name: statistics.median(runs) / (tokens or 1) for name, runs in getattr(times, phase).items()},
        "times as fast": {
            f"{m} over {n}": times.speedup(phase, m, n).median for m in list(found)[2:] for n in ("dense", "static")
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", type=int, default=HEADS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shapes", default="20x128,8x128,1x512")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--models", default="probed,refitted")
    args = parser.parse_args()
    found = models(args)
    for text in args.shapes.split(","):
        batch, length = map(int, text.split("x"))
        print(json.dumps(compared(found, "prefill", (batch, length), args)), flush=True)
    if args.decode:
        print(json.dumps(compared(found, "decode", (8, 128), args)), flush=True)


if __name__ == "__main__":
    main()
