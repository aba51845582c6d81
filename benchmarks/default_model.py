"""Train the embedded default model: a small LLaMA on the Python standard library's own text.

    python benchmarks/default_model.py --out DIR [--tokens 8_000_000] [--seed 0] [--threads 1]

Recipe: byte-level BPE of 4,096 tokens; grouped-query attention, tied head; Muon (torch.optim) on the matrices of the layers,
AdamW on the rest; trapezoid schedule; bf16 autocast. Writes a Hugging Face directory: bf16 safetensors, tokenizer, model card,
and `provenance.json` with the Python version and the fingerprints of the text.
"""

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.calibration import stdlib

SEQ_LEN, BATCH, VOCAB = 512, 4, 4096
WARM, COOL = 0.02, 0.4  # fractions of the run spent warming up, cooling down


def train_tokenizer() -> PreTrainedTokenizerFast:
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[stdlib.SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tok.train_from_iterator((body for _, body in stdlib.documents("train")), trainer)
    end = stdlib.SEPARATOR
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=end, eos_token=end, pad_token=end, model_max_length=SEQ_LEN)


def encode(tok: PreTrainedTokenizerFast, split: stdlib.Split) -> torch.Tensor:
    return torch.tensor(tok(stdlib.text(split), add_special_tokens=False, verbose=False)["input_ids"])


def build(bos: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=640, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=SEQ_LEN, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=bos, pad_token_id=bos, initializer_range=0.02, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # residual writers start small, so that depth does not blow up the stream
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
            layer.mlp.down_proj.weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    seen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in seen]
    return [
        torch.optim.Muon(matrices, lr=0.006, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def trapezoid(done: float) -> float:
    return min(1.0, (done + 1e-9) / WARM, max(0.0, (1 - done) / COOL))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor, seq_len: int, most: int = 10**9) -> float:
    windows = ids[: min(len(ids), most) // seq_len * seq_len].view(-1, seq_len)
    total, count = 0.0, 0
    for batch in windows.split(16):
        logits = model(batch).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        count += batch[:, 1:].numel()
    return math.exp(total / count)


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

    tok = train_tokenizer()
    ids, held = encode(tok, "train"), encode(tok, "evaluation")
    print(f"{len(ids):,} training tokens, {len(held):,} held-out tokens", flush=True)
    model = build(tok.bos_token_id).to(args.device).train()
    opts = optimisers(model)
    steps = args.tokens // (SEQ_LEN * BATCH)
    scheds = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: trapezoid(s / steps)) for o in opts]
    generator = torch.Generator().manual_seed(args.seed)
    order, start = torch.empty(0, dtype=torch.long), time.perf_counter()
    for step in range(steps):
        if len(order) < BATCH:  # a new epoch: windows at a new random offset, shuffled
            offset = int(torch.randint(SEQ_LEN, (1,), generator=generator))
            order = offset + SEQ_LEN * torch.randperm((len(ids) - offset - 1) // SEQ_LEN, generator=generator)
        at, order = order[:BATCH], order[BATCH:]
        batch = ids[at[:, None] + torch.arange(SEQ_LEN + 1)].to(args.device)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16):
            hidden = model.model(batch[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden)
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for o, s in zip(opts, scheds, strict=True):
            o.step()
            s.step()
            o.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            spent = time.perf_counter() - start
            print(f"step {step}/{steps} loss {loss.item():.3f} {(step + 1) * BATCH * SEQ_LEN / spent:.0f} tokens/s", flush=True)
        if step % 500 == 499:
            print(
                f"  held-out perplexity at 128: {perplexity(model.eval(), held.to(args.device), 128, 20_000):.2f}", flush=True
            )
            model.train()

    model = model.eval().to("cpu", torch.bfloat16)
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
