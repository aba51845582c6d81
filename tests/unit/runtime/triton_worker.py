"""Runs by itself, as a process that has Triton's interpreter or its compiler, and no checks of annotations.

python triton_worker.py interpret FILE     FILE holds cases; the kernel's results are put into FILE.out
python triton_worker.py models VARIANT...  prints how far tiny models are from copying, and how often the kernel ran
python triton_worker.py compile            prints, for each device, dtype and side, what the code uses
python triton_worker.py missing            prints what is said where Triton is not installed
"""

import itertools
import json
import os
import sys


def interpret(path: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import torch

    from secateur.runtime import rows_triton

    found = []
    for case in torch.load(path):
        product = {"to": rows_triton.to_rows, "from": rows_triton.from_rows}[case["side"]]
        tile = rows_triton.Tile(**case["tile"]) if case["tile"] else None
        found.append(product(case["x"], case["weight"], case["index"], case["bias"], tile))
    torch.save(found, f"{path}.out")


def models(*variants: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    import secateur
    from secateur.runtime import rows_triton, selected
    from tests.contract.tiny import VARIANTS, tiny_model, tiny_tokens

    calls = []

    def products(x, weight):
        calls.append(rows_triton.takes(x, weight))
        return rows_triton

    selected.products = products  # as if the device were a GPU
    for variant in variants:
        logits = []
        for gather in ("copy", "kernel"):
            model_type, overrides = VARIANTS[variant]
            model = secateur.probe(tiny_model(model_type, torch.float32, **overrides), 0.5, memory="low", gather=gather)
            model.calibrate(tiny_tokens(8, 9, seed=1))
            with torch.no_grad():
                logits.append(model(tiny_tokens(3, 9)).logits)
        assert all(calls)
        difference = float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
        print(json.dumps({"variant": variant, "calls": len(calls), "difference": difference}))
        calls.clear()


def compile_all() -> None:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from secateur.runtime import rows_triton

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for (capability, kind), to_rows in itertools.product(
        ((80, "fp32"), (80, "bf16"), (90, "bf16"), (90, "fp16")), (True, False)
    ):
        tile = rows_triton.Tile.of(4096, kinds[kind])
        constants = {
            "TO_ROWS": to_rows, "BIASED": True, "TOKENS": tile.tokens, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs,
            "GROUP": tile.group, "WIDEN": False,
        }  # fmt: skip
        signature = dict.fromkeys(("x", "weight", "bias", "y"), f"*{kind}") | {"index": "*i64"}
        names = rows_triton._product.arg_names
        signature = {name: "constexpr" if name in constants else signature.get(name, "i32") for name in names}
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name not in constants}
        source = ASTSource(fn=rows_triton._product, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        ptx = made.asm["ptx"]
        said = {"device": capability, "dtype": kind, "side": "to" if to_rows else "from", "shared": made.metadata.shared}
        said |= {"code": len(made.asm["cubin"]), "tensor cores": any(name in ptx for name in ("mma.sync", "wgmma.mma_async"))}
        print(json.dumps(said | {"rounded": any(f"cvt.rn.{half}" in ptx for half in ("bf16", "f16"))}))


def missing() -> None:
    sys.modules["triton"] = None  # type: ignore[assignment]
    from secateur.errors import UserError

    try:
        from secateur.runtime import rows_triton  # noqa: F401
    except UserError as error:
        print(error)


if __name__ == "__main__":
    {"interpret": interpret, "models": models, "compile": compile_all, "missing": missing}[sys.argv[1]](*sys.argv[2:])
