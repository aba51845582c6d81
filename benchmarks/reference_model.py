"""Train a reference model to measure pruning on: a LLaMA with grouped queries and an untied head, on texts given.

    python benchmarks/reference_model.py --out DIR --data DATA [--size 25M] [--tokens N] [--minutes M]
    python benchmarks/reference_model.py --out DIR --source news=news.txt --source web=web.jsonl:body --source wiki=a.txt,b.txt

DATA holds `wikitext2/train.txt` and `valid.txt`, `c4/c4.jsonl`, `tinystories/stories.txt`. A source of one's own is NAME=TRAIN or
NAME=TRAIN,HELD_OUT; JSON lines may name their field. Without a held-out file the last 5% of the documents are held out.
Writes a Hugging Face directory (bf16 safetensors, tokenizer, model card, `provenance.json`), and beside the weights
`calibration.txt` (of the text trained on) and `evaluation.txt` (held out), each in equal parts of all sources, so that

    secateur prune DIR --ratio 0.3 --out PRUNED --calibration DIR/calibration.txt --eval DIR/evaluation.txt

is all that a measurement needs. Give both `--tokens` and `--minutes` and the run ends, cooled down, at whichever comes first; a
run bounded by minutes is not repeatable to the bit.
"""

import argparse
import hashlib
import json
import platform
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from training import SEQ_LEN, encode, fit, perplexity, shrink_writers, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.calibration.rows import json_lines
from secateur.calibration.stdlib import SEPARATOR
from secateur.errors import UserError

HELD_OUT = 0.05  # of a source's documents, where no file of its own is held out
SLICE = 100_000  # tokens of each source in `calibration.txt`, and at most in `evaluation.txt`
MEASURED = 50_000  # held-out tokens of each source that its perplexity is taken over
LAYOUT = (
    "wikitext2=wikitext2/train.txt,wikitext2/valid.txt",
    "c4=c4/c4.jsonl:text",
    "stories=tinystories/stories.txt",
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A shape, and the run that suits it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    batch: int
    tokens: int


SIZES = {
    "tiny": Size(hidden=64, layers=3, heads=4, kv_heads=2, ffn=176, vocab=1024, batch=4, tokens=200_000),
    "small": Size(hidden=256, layers=8, heads=8, kv_heads=4, ffn=704, vocab=4096, batch=8, tokens=8_000_000),
    "25M": Size(hidden=384, layers=12, heads=12, kv_heads=4, ffn=1024, vocab=8192, batch=32, tokens=20_000_000),
    "60M": Size(hidden=512, layers=16, heads=8, kv_heads=4, ffn=1536, vocab=8192, batch=32, tokens=20_000_000),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    name: str
    train: list[str]
    held_out: list[str]
    files: dict[str, str]  # name to SHA-256


def read_source(spec: str, root: Path) -> Source:
    """The source `NAME=TRAIN[,HELD_OUT]`; files are taken from `root`."""
    name, _, files = spec.partition("=")
    parts = files.split(",")
    if not name or not files or len(parts) > 2:
        raise UserError(f"the source {spec!r} is not NAME=TRAIN or NAME=TRAIN,HELD_OUT. Give one such as news=news.txt.")
    found = [located(root, part) for part in parts]
    train, *given = [documents(path, field) for path, field in found]
    train, held_out = (train, given[0]) if given else cut(name, train)
    seen = set(train)  # a document that stands in both was trained on
    return Source(
        name=name, train=train, held_out=[d for d in held_out if d not in seen],
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in found},
    )  # fmt: skip


def cut(name: str, found: list[str]) -> tuple[list[str], list[str]]:
    held_out = round(len(found) * HELD_OUT)
    if not held_out:
        raise UserError(
            f"the source {name!r} has {len(found)} document(s), too few to hold {HELD_OUT:.0%} out. Give a held-out file "
            f"({name}=TRAIN,HELD_OUT), or separate its documents by {SEPARATOR}."
        )
    return found[:-held_out], found[-held_out:]


def located(root: Path, spec: str) -> tuple[Path, str | None]:
    """The file, and the field of its rows where it holds JSON lines."""
    rows = re.fullmatch(r"(.+\.jsonl)(?::(\w+))?", spec, re.IGNORECASE)
    path = root / (rows[1] if rows else spec)
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}. Give a text file, or JSON lines as FILE.jsonl or FILE.jsonl:FIELD.")
    return path, (rows[2] or "text") if rows else None


def documents(path: Path, field: str | None) -> list[str]:
    """The documents of a file: rows of JSON lines, what stands between separators, or the articles of a WikiText file."""
    if field is not None:
        found = [text_of(row, field, f"{path.name}, {where}") for where, row in json_lines(path)]
    else:
        body = path.read_text(encoding="utf-8")
        found = body.split(SEPARATOR) if SEPARATOR in body else re.split(r"(?m)^(?= = [^=\n]+ = $)", body)
    return [d for d in map(str.strip, found) if d]


def text_of(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise UserError(f"{where}: no text in a field {field!r}. Name the field that holds the text: FILE.jsonl:FIELD.")
    return row[field].replace(SEPARATOR, "")


def even(sources: dict[str, list[str]], tok: PreTrainedTokenizerFast) -> tuple[str, dict[str, int]]:
    """Documents of all sources in turn, the same number of tokens of each (to a document); that text, and the counts.

    The source with the fewest tokens so far is next, so that any beginning of the text is mixed evenly too.
    """
    left, counts, chosen = {n: iter(d) for n, d in sources.items()}, dict.fromkeys(sources, 0), []
    while min(counts.values()) < SLICE:
        name = min(counts, key=counts.__getitem__)
        document = next(left[name], None)
        if document is None:
            break
        chosen.append(document)
        counts[name] += len(encode(tok, document))
    return SEPARATOR.join(chosen), counts


def build(size: Size, bos: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.ffn, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, head_dim=size.hidden // size.heads,
        max_position_embeddings=SEQ_LEN, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=bos, eos_token_id=bos,
        pad_token_id=bos, initializer_range=0.02, use_cache=False,
    )  # fmt: skip
    return shrink_writers(LlamaForCausalLM(config))


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [secateur]
---

# A reference model to measure pruning on

A LLaMA-architecture language model of {parameters:,} parameters, trained to compare pruning methods. It is not good for anything
else. The licences of its texts apply to it.

| | |
|---|---|
| shape | hidden {hidden}, {layers} layers, {heads} query heads on {kv_heads} kv heads, MLP {ffn}, untied head |
| tokenizer | byte-level BPE of {vocab:,} tokens, context {seq_len} |
| text | {texts} (documents trained on) |
| training | {trained_tokens:,} tokens ({epochs:.1f} epochs), {batch} x {seq_len} a step, bf16 autocast |
| optimiser | Muon on the matrices of the layers, AdamW on the rest; trapezoid schedule; seed {seed} |
| hardware | {device}, {threads} thread(s), {spent:.0f} minutes; torch {torch}, transformers {transformers} |

Held-out perplexity, no BOS, over the first {measured:,} held-out tokens of each text at most:

| text | windows of 128 | windows of 512 |
|---|---|---|
{rows}

`calibration.txt` is of the text trained on, `evaluation.txt` is held out; each has the same number of tokens of every text.
Fingerprints are in `provenance.json`. The command:

    {command}
"""


def card(record: dict) -> str:
    rows = "\n".join(f"| {n} | {p['128']} | {p['512']} |" for n, p in record["perplexity"].items())
    texts = ", ".join(f"{n} ({d['trained on']:,})" for n, d in record["documents"].items())
    return CARD.format(
        **record["shape"], **{k: v for k, v in record.items() if k != "shape"}, rows=rows, texts=texts, seq_len=SEQ_LEN,
        measured=MEASURED, spent=record["seconds"] / 60, epochs=record["trained_tokens"] / record["training_tokens"],
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--data", type=Path, help="directory of the three texts")
    text.add_argument("--source", action="append", help="NAME=TRAIN[,HELD_OUT], for each text")
    parser.add_argument("--size", choices=SIZES, help="default: 25M on CUDA, else small")
    parser.add_argument("--tokens", type=int, help="default: what suits the size")
    parser.add_argument("--minutes", type=float, help="time of the training loop; default: no bound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.size = args.size or ("25M" if args.device.startswith("cuda") else "small")
    return args


def record_of(args: argparse.Namespace, sources: list[Source], slices: dict[str, tuple[str, dict[str, int]]]) -> dict:
    cuda = args.device.startswith("cuda")
    return {
        "size": args.size, "shape": vars(SIZES[args.size]), "minutes": args.minutes, "seed": args.seed, "threads": args.threads,
        "device": torch.cuda.get_device_name(args.device) if cuda else "cpu",
        "documents": {s.name: {"trained on": len(s.train), "held out": len(s.held_out)} for s in sources},
        "files": {s.name: s.files for s in sources}, "slices": {n: counts for n, (_, counts) in slices.items()},
        "fingerprints": {f"{n}.txt": hashlib.sha256(text.encode()).hexdigest() for n, (text, _) in slices.items()},
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "command": " ".join(["python", "benchmarks/reference_model.py", *sys.argv[1:]]),
    }  # fmt: skip


def train(args: argparse.Namespace, model: LlamaForCausalLM, ids: torch.Tensor, held: dict[str, torch.Tensor]) -> dict:
    size, start = SIZES[args.size], time.perf_counter()
    tokens, per_step = args.tokens or size.tokens, size.batch * SEQ_LEN

    def progress(step: int) -> float:
        spent = (time.perf_counter() - start) / 60
        return max(step * per_step / tokens, spent / args.minutes if args.minutes else 0.0)

    def watch(step: int) -> None:
        if step % 250 == 0:
            found = {n: round(perplexity(model.eval(), h, 128, 8192), 2) for n, h in held.items()}
            print(f"  held-out perplexity at 128: {found}", flush=True)
            model.train()

    trained = fit(model, ids, batch=size.batch, seed=args.seed, progress=progress, watch=watch) * per_step
    seconds = time.perf_counter() - start
    return {"trained_tokens": trained, "seconds": round(seconds), "tokens_per_second": round(trained / seconds)}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    size = SIZES[args.size]
    sources = [read_source(spec, args.data or Path()) for spec in args.source or LAYOUT]
    tok = train_tokenizer((d for s in sources for d in s.train), size.vocab)
    ids = encode(tok, SEPARATOR.join(d for s in sources for d in s.train))
    held = {s.name: encode(tok, SEPARATOR.join(s.held_out)) for s in sources}
    print(f"{len(ids):,} training tokens; held out: { {n: len(h) for n, h in held.items()} }", flush=True)
    slices = {
        "calibration": even({s.name: random.Random(args.seed).sample(s.train, len(s.train)) for s in sources}, tok),
        "evaluation": even({s.name: s.held_out for s in sources}, tok),
    }

    model = build(size, tok.get_vocab()[SEPARATOR]).to(args.device)
    record = record_of(args, sources, slices) | train(args, model, ids, held)
    model = model.eval().bfloat16()
    model.config.use_cache = True
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)
    for name, (text, _) in slices.items():
        (args.out / f"{name}.txt").write_text(text, encoding="utf-8")
    model = model.float()
    record |= {
        "parameters": sum(p.numel() for p in model.parameters()), "training_tokens": len(ids),
        "held_out_tokens": {n: len(h) for n, h in held.items()},
        "perplexity": {n: {str(k): round(perplexity(model, h, k, MEASURED), 3) for k in (128, 512)} for n, h in held.items()},
    }  # fmt: skip
    (args.out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "README.md").write_text(card(record))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
