"""Train the embedded default model: a small LLaMA on the Python standard library's own text.

    python benchmarks/default_model.py --out DIR [--tokens 8_000_000] [--seed 0] [--threads 1]

Recipe: byte-level BPE of 4,096 tokens; grouped-query attention, tied head; Muon (torch.optim) on the matrices of the layers,
AdamW on the rest; trapezoid schedule; bf16 autocast. Writes a Hugging Face directory: bf16 safetensors, tokenizer, model card,
and `provenance.json` with the Python version and the fingerprints of the text.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
import transformers
from training import SEQ_LEN, encode, fit, perplexity, shrink_writers, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.calibration import stdlib

BATCH, VOCAB = 4, 4096


def build(bos: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=640, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=SEQ_LEN, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=bos, pad_token_id=bos, initializer_range=0.02, use_cache=False,
    )  # fmt: skip
    return shrink_writers(LlamaForCausalLM(config))


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: psf-2.0
language: en
tags: [secateur, code, tiny]
---

# The model that comes with Secateur

A LLaMA-architecture language model of {parameters:,} parameters that knows one thing: the Python standard library. It exists so
that Secateur's main job runs on any machine, with no network. It is not good for anything else.

| | |
|---|---|
| shape | hidden 256, 8 layers, 8 query heads on 4 kv heads, MLP 640, 4,096 byte-level BPE tokens, context 512, tied head |
| text | the sources of {train} modules and the `pydoc` topics of CPython {python}, less the held-out ones |
| held out | {calibration} modules and some topics to calibrate on, {evaluation} other modules and topics to evaluate on |
| training | {trained_tokens:,} tokens ({epochs:.1f} epochs), {batch} x {seq_len} a step, bf16 autocast |
| optimiser | Muon on the matrices of the layers, AdamW on the rest; trapezoid schedule; seed {seed} |
| hardware | {device}, {threads} thread(s), {minutes:.0f} minutes; torch {torch}, transformers {transformers} |
| held-out perplexity | {p128} with windows of 128 tokens, {p512} with 512 ({held_out_tokens:,} tokens, no BOS) |

The lists of modules are pinned in `secateur/calibration/stdlib.py`. The text is the running Python's own: on another version the
figures move, and `secateur demo` says so. Versions and fingerprints are in `provenance.json`. The command:

    {command}

The standard library's sources and documentation are under the PSF licence.
"""


def card(record: dict) -> str:
    sizes = {f"p{n}": p for n, p in record["perplexity"].items()}
    return CARD.format(
        **record, **sizes, train=len(stdlib.TRAIN_MODULES), calibration=len(stdlib.CALIBRATION_MODULES),
        evaluation=len(stdlib.EVALUATION_MODULES), minutes=record["seconds"] / 60, batch=BATCH, seq_len=SEQ_LEN,
        epochs=record["trained_tokens"] / record["training_tokens"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    tok = train_tokenizer((body for _, body in stdlib.documents("train")), VOCAB)
    ids, held = (encode(tok, stdlib.text(split)) for split in ("train", "evaluation"))
    print(f"{len(ids):,} training tokens, {len(held):,} held-out tokens", flush=True)
    model = build(tok.get_vocab()[stdlib.SEPARATOR]).to(args.device)
    steps, start = args.tokens // (SEQ_LEN * BATCH), time.perf_counter()

    def watch(step: int) -> None:
        if step % 500 == 0:
            print(f"  held-out perplexity at 128: {perplexity(model.eval(), held, 128, 20_000):.2f}", flush=True)
            model.train()

    fit(model, ids, batch=BATCH, seed=args.seed, progress=lambda step: step / steps, watch=watch)
    model = model.eval().cpu().bfloat16()
    model.config.use_cache = True
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)
    spent = time.perf_counter() - start
    model = model.float()
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_tokens": steps * SEQ_LEN * BATCH, "seconds": round(spent), "threads": args.threads, "device": args.device,
        "seed": args.seed, "perplexity": {str(n): round(perplexity(model, held, n), 3) for n in (128, 512)},
        "training_tokens": len(ids), "held_out_tokens": len(held), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fingerprints": {s: stdlib.fingerprint(s) for s in ("train", "calibration", "evaluation")},
        "command": " ".join(["python", "benchmarks/default_model.py", *sys.argv[1:]]),
    }  # fmt: skip
    (args.out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "README.md").write_text(card(record))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
