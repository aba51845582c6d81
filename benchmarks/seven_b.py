"""Memory and speed on a LLaMA-2-7B-shaped checkpoint of random weights, with any number of layers.

    python benchmarks/seven_b.py make DIR --layers 16 [--layout layer|single]    write the checkpoint
    python benchmarks/seven_b.py score DIR [--gram]       statistics and FLAP scores of 1,024 tokens; prints the peak memory
    python benchmarks/seven_b.py rate DIR [--tokens 4096] the walk with Moments against the layers' matrix products alone, paired
    python benchmarks/seven_b.py slice DIR                slicing at 30% against a copy of the bytes that stay, paired

Each prints one JSON object. Memory is `ru_maxrss` of this process, so run every measurement in a process of its own.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from secateur.streaming.heap import steady_heap

HIDDEN, FFN, HEADS, VOCAB = 4096, 11008, 32, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    "dtype": "bfloat16",
}  # fmt: skip


def shapes(layer: int | None) -> dict[str, tuple[int, ...]]:
    if layer is None:
        return {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    at = f"model.layers.{layer}."
    square = {f"{at}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
    wide = {f"{at}mlp.{n}_proj.weight": (FFN, HIDDEN) for n in ("gate", "up")}
    norms = {f"{at}{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    return {**norms, **square, **wide, f"{at}mlp.down_proj.weight": (HIDDEN, FFN)}


def make(args: argparse.Namespace) -> dict:
    """Normal weights of standard deviation 0.02, drawn once for each shape and layer; norms are one."""
    from secateur.streaming.tensorfile import TensorWriter

    args.directory.mkdir(parents=True)
    groups = [shapes(None), *(shapes(i) for i in range(args.layers))]
    if args.layout == "single":
        groups = [{k: v for group in groups for k, v in group.items()}]
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        index = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        (args.directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    generator = torch.Generator().manual_seed(0)
    for name, group in zip(names, groups, strict=True):
        writer = TensorWriter(args.directory / name, {k: (torch.bfloat16, s) for k, s in group.items()})
        for key, shape in group.items():
            x = torch.empty(shape).normal_(0, 0.02, generator=generator) if len(shape) == 2 else torch.ones(shape)
            writer.write(key, x.bfloat16())
        writer.close()
    (args.directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": args.layers}))
    return {"directory": str(args.directory), "layers": args.layers, "layout": args.layout}


def opened(directory: Path):
    from secateur.streaming.checkpoint import Checkpoint
    from secateur.streaming.walk import Walk

    source = Checkpoint.open(directory)
    walk = Walk.over(source, device=torch.device("cpu"), dtype=torch.bfloat16)
    return source, walk


def tokens(number: int, seq_len: int = 128) -> torch.Tensor:
    return torch.randint(VOCAB, (number // seq_len, seq_len), generator=torch.Generator().manual_seed(0))


def score(args: argparse.Namespace) -> dict:
    from secateur.allocation.choose import Scope
    from secateur.allocation.choose import score as scores
    from secateur.criteria.flap import Flap
    from secateur.streaming.collect import Request, Store, by_type, collect
    from secateur.streaming.memory import peak

    source, walk = opened(args.directory)
    kinds = {"moments", "gram"} if args.gram else {"moments"}
    request = Request.of(source.binding, ("kv", "ffn"), kinds)
    start = time.perf_counter()
    with TemporaryDirectory(dir=args.directory.parent) as run:
        store = Store(directory=Path(run))
        for _ in collect(walk, tokens(1024), request, store):
            pass
        gathered = peak()
        scope = Scope.of(source.binding, pruned=("kv", "ffn"), protected=(), round_to=1, heads=None)
        seen = lambda layer, axis: by_type(store.load(layer, kinds={"moments"}))  # noqa: E731
        number = len(dict(scores(source, scope, Flap(), seen, standardised=True, seed=0)))
    return {
        "what": "score", "gram": args.gram, "layers": source.binding.num_layers, "scored": number,
        "seconds": round(time.perf_counter() - start, 1), "gathering_gib": gathered / 2**30, "peak_gib": peak() / 2**30,
    }  # fmt: skip


def rate(args: argparse.Namespace) -> dict:
    """Matrix products alone: the same seven products a layer, on weights already in memory, in the walk's micro-batches."""
    from secateur.statistics.moments import MomentsAccumulator
    from secateur.streaming.hidden import HiddenStates

    source, walk = opened(args.directory)
    ids = tokens(args.tokens)
    per = walk.tokens
    weights = {k: torch.randn(s, dtype=torch.bfloat16) for k, s in shapes(0).items() if len(s) == 2}
    wide, narrow = torch.randn(per, FFN, dtype=torch.bfloat16), torch.randn(per, HIDDEN, dtype=torch.bfloat16)

    def products() -> float:
        start = time.perf_counter()
        for _ in range(source.binding.num_layers):
            for _ in range(args.tokens // per):
                for w in weights.values():
                    torch.nn.functional.linear(wide if w.shape[1] == FFN else narrow, w)
        return time.perf_counter() - start

    def walked() -> float:
        hidden = HiddenStates((*ids.shape, HIDDEN), torch.bfloat16)
        walk.start(ids, hidden)
        start = time.perf_counter()

        def watch(layer: int) -> dict:
            return {
                "self_attn.o_proj": [MomentsAccumulator(HIDDEN).update],
                "mlp.down_proj": [MomentsAccumulator(FFN).update],
            }

        for _ in walk.layers(hidden, watch=watch):
            pass
        return time.perf_counter() - start

    products(), walked()
    pairs = [(products(), walked()) for _ in range(args.runs)]
    ratios = [p / w for p, w in pairs]
    return {
        "what": "rate", "layers": source.binding.num_layers, "tokens": args.tokens, "threads": torch.get_num_threads(),
        "share": statistics.median(ratios), "shares": ratios, "products_s": [p for p, _ in pairs], "walk_s": [w for _, w in pairs],
    }  # fmt: skip


def slicing(args: argparse.Namespace) -> dict:
    from secateur.allocation.choose import Scope, counts, kept_layers
    from secateur.allocation.uniform import Uniform
    from secateur.plan import Plan, parameters
    from secateur.streaming.checkpoint import Checkpoint
    from secateur.streaming.memory import peak
    from secateur.surgery.compensate import NoCompensation
    from secateur.surgery.rebuild import Rebuild
    from secateur.surgery.write import Shards, write

    source = Checkpoint.open(args.directory)
    binding = source.binding
    scope = Scope.of(binding, pruned=("kv", "ffn"), protected=(), round_to=1, heads=None)
    budget = round(0.3 * binding.num_layers * parameters(binding.layer.values(), binding.sizes))
    kept = counts(binding, scope, Uniform(), budget)
    draw = torch.Generator().manual_seed(0)
    scores = {key: torch.rand(binding.sizes[key[1]], generator=draw).double() for key in kept}
    layers = kept_layers(binding, scope, scores, kept)
    plan = Plan(model_type="llama", fingerprint="", sizes=dict(binding.sizes), layers=layers)
    rebuild = Rebuild(source=source, target=binding, plan=plan, compensation=NoCompensation(), seen=lambda layer, module: {})
    shards = Shards.of(rebuild, source)

    def sliced(directory: Path) -> float:
        start = time.perf_counter()
        for _ in write(rebuild, source, shards, directory):
            pass
        return time.perf_counter() - start

    def copied(directory: Path) -> float:
        """The same number of bytes, from the checkpoint's own files, in files of the same sizes, with fsync."""
        left = {directory / n: size for n, size in sizes.items()}
        start = time.perf_counter()
        origin = (chunk for f in sorted(args.directory.glob("*.safetensors")) for chunk in chunks(f))
        for path, size in left.items():
            with path.open("wb", buffering=0) as out:
                while size:
                    part = next(origin)[:size]
                    out.write(part)
                    size -= len(part)
                os.fsync(out.fileno())
        return time.perf_counter() - start

    sizes = {name: size_of(layout) for name, layout in shards.files.items()}
    pairs = []
    with TemporaryDirectory(dir=args.directory.parent) as base:
        for number in range(args.runs + 1):  # the first round warms the page cache; who goes first alternates
            spent = {}
            for run in (sliced, copied) if number % 2 else (copied, sliced):
                directory = Path(base) / run.__name__
                directory.mkdir()
                spent[run] = run(directory)
                shutil.rmtree(directory)
            pairs += [(spent[sliced], spent[copied])] if number else []
    ratios = [s / c for s, c in pairs]
    return {
        "what": "slice", "layers": binding.num_layers, "gib_kept": shards.num_bytes / 2**30, "ratio": statistics.median(ratios),
        "ratios": ratios, "sliced_s": [s for s, _ in pairs], "copied_s": [c for _, c in pairs], "peak_gib": peak() / 2**30,
    }  # fmt: skip


def size_of(layout) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in layout.values())


def chunks(path: Path, size: int = 32 << 20):
    with path.open("rb", buffering=0) as file:
        while part := file.read(size):
            yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("make", make), ("score", score), ("rate", rate), ("slice", slicing)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("directory", type=Path)
        if name == "make":
            command.add_argument("--layers", type=int, default=4)
            command.add_argument("--layout", choices=["layer", "single"], default="layer")
        if name == "score":
            command.add_argument("--gram", action="store_true")
        if name == "rate":
            command.add_argument("--tokens", type=int, default=4096)
        if name in ("rate", "slice"):
            command.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    steady_heap()  # as the command line does
    print(json.dumps(args.run(args)))


if __name__ == "__main__":
    main()
