"""A Hugging Face tokenizer as llama.cpp has it, recognised by the steps that it takes and not by a name.

llama.cpp has two kinds that matter here: byte-level BPE (`gpt2`), whose splitting expression is one of a list built into it, and
SentencePiece-like BPE with byte fallback (`llama`), which merges the pair whose token has the best score. What is neither would
be split into other tokens than the model knows, so it is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"
WAY_OUT = (
    "Give --no-tokenizer to write the file without one: llama.cpp then takes token ids only, and the tokenizer stays with the "
    "Hugging Face directory."
)

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = "byte-level"  # the expression that `ByteLevel` brings itself
DIGITS = "digits"
PRE: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "starcoder",
    ((_CONTRACTION + "|" + _WORD + r"|\p{N}{1,3}" + _TAIL,), True): "llama-bpe",
    ((_CONTRACTION + "|" + _WORD + r"|\p{N}{1,3}" + _TAIL,), False): "dbrx",
    ((_CONTRACTION + "|" + _WORD + r"|\p{N}" + _TAIL,), False): "qwen2",
    ((f"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?" + r"|\p{N}{1,3}" + _CASED_TAIL,), False): "gpt-4o",
    ((f"{_CASED[0]}|{_CASED[1]}" + r"|\p{N}" + _CASED_TAIL,), True): "tekken",
}
"""(steps that split a text, whether a whole token comes before merges) -> llama.cpp's name for it."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the file says of the tokenizer. `pre`: the splitting expression's name; only of byte-level BPE."""

    model: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    pre: str | None = None
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    """bos, eos, unk, pad -> token id."""
    adds: Mapping[str, bool] = field(default_factory=dict)
    """bos, eos -> whether it is put around a text; space -> whether one is put in front."""
    chat_template: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.model if self.pre is None else f"{self.model} ({self.pre})"


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """A loaded tokenizer, of a model of `size` token ids: its class may have changed what its files say.

    Raises `UserError` for one that llama.cpp has no counterpart of.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _unknown("it is not one of the tokenizers library, so its steps are not known")
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = body["model"], body["added_tokens"]
    if model.get("type") != "BPE":
        raise _unknown(f"the tokenizer is of the type {model.get('type')!r}, and only BPE is known")
    if odd := [n for n in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(n)]:
        raise _unknown(f"the tokenizer has a {odd[0]}, which llama.cpp's has not")
    tokens, types = _tokens(model["vocab"], added, size)
    merges = tuple((m if isinstance(m, str) else " ".join(m)) for m in model["merges"])
    notes = list(_added_notes(added))
    rest: dict[str, Any]
    if _kinds(body.get("pre_tokenizer")) & {"ByteLevel"}:
        pre = _pre(body, bool(model.get("ignore_merges")), notes)
        rest = {"model": "gpt2", "pre": pre, "merges": merges}
        prefix = None
    else:
        prefix = _sentencepiece(body, model, notes)
        scores = _scores(tokens, types, model, merges, notes)
        types = tuple(BYTE if t == NORMAL and BYTE_TOKEN.fullmatch(n) else t for n, t in zip(tokens, types, strict=True))
        rest = {"model": "llama", "scores": scores}
    special, adds = _special(tokenizer, size, notes, tokens)
    if prefix is not None:
        adds |= {"space": prefix}
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return Vocabulary(
        tokens=tokens, types=types, special=special, adds=adds, chat_template=template, notes=tuple(notes), **rest
    )  # fmt: skip


def _unknown(why: str) -> UserError:
    return UserError(f"llama.cpp's counterpart of this tokenizer is not known: {why}. {WAY_OUT}")


def _tokens(vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and types by id; ids without a token have a name that no text gives."""
    names = {at: (name, NORMAL) for name, at in vocab.items()}
    names |= {one["id"]: (one["content"], CONTROL if one["special"] else USER_DEFINED) for one in added}
    if (last := max(names, default=-1)) >= size:
        raise UserError(
            f"the tokenizer has the token id {last:,} ({names[last][0]!r}), and the model's embedding has {size:,} rows: they do "
            f"not belong together. Put the model's own tokenizer files into its directory."
        )
    both = [names.get(at, (f"[PAD{at}]", UNUSED)) for at in range(size)]
    if len({name for name, _ in both}) < size:
        twice = next(name for name, _ in both if sum(name == other for other, _ in both) > 1)
        raise _unknown(f"two token ids have the name {twice!r}, and llama.cpp ends the program for that")
    return tuple(name for name, _ in both), tuple(kind for _, kind in both)


def _steps(part: Any, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, of which a sequence has several."""
    if part is None:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part["type"] == "Sequence" else [part]


def _kinds(part: Any) -> set[str]:
    return {step["type"] for step in _steps(part, "pretokenizers")}


def _pre(body: Mapping[str, Any], ignore_merges: bool, notes: list[str]) -> str:
    """The name of a byte-level tokenizer's splitting expression."""
    normal = [step["type"] for step in _steps(body.get("normalizer"), "normalizers")]
    if normal == ["NFC"]:
        notes.append("llama.cpp does not compose characters first (NFC), as this tokenizer does")
    elif normal:
        raise _unknown(f"it normalises a text first ({', '.join(normal)}), which llama.cpp's byte-level BPE does not")
    found: list[str] = []
    for step in _steps(body["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "ByteLevel":
            if step.get("add_prefix_space"):
                raise _unknown("it puts a space in front of a text, which llama.cpp's byte-level BPE does not")
            found += [GPT2] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            found.append(step["pattern"].get("Regex", ""))
        else:
            raise _unknown(f"it splits a text by a step of the type {step['type']!r}")
    name = PRE.get((tuple(found), ignore_merges))
    if name is None:
        expressions = " then ".join(repr(one) for one in found) or "none"
        raise _unknown(f"the expression that it splits a text by is none of llama.cpp's that are known here: {expressions}")
    return name


def _sentencepiece(body: Mapping[str, Any], model: Mapping[str, Any], notes: list[str]) -> bool:
    """Check that a tokenizer does what llama.cpp's SentencePiece does; whether it puts a space in front."""
    if not model.get("byte_fallback"):
        raise _unknown("it has neither byte-level tokens nor byte fallback, and llama.cpp fails on a character without a token")
    prefix, replaced = False, False
    for step in _steps(body.get("normalizer"), "normalizers"):
        pattern = step.get("pattern") or {}
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and pattern.get("String") == " " and step["content"] == SPACE:
            replaced = True
        elif step["type"] == "Strip" or (step["type"] == "Replace" and pattern.get("Regex") == " {2,}"):
            notes.append("llama.cpp keeps spaces that this tokenizer drops: around a text, or several in a row")
        else:
            raise _unknown(f"it normalises a text by a step of the type {step['type']!r}")
    for step in _steps(body.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Metaspace" or step.get("replacement") != SPACE or step.get("split", True):
            raise _unknown(f"it splits a text by a step of the type {step['type']!r}")
        prefix, replaced = prefix or step.get("prepend_scheme") in ("always", "first"), True
    if not replaced:
        raise _unknown(f"it does not write spaces as {SPACE!r}")
    notes[:] = list(dict.fromkeys(notes))
    return prefix


def _scores(
    tokens: Sequence[str], types: Sequence[int], model: Mapping[str, Any], merges: Sequence[str], notes: list[str]
) -> tuple[float, ...]:
    """The better the earlier a token is merged; llama.cpp merges every pair of neighbours whose union is a token."""
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merge.split(" ", 1) for merge in merges):
        ranks.setdefault(left + right, []).append(rank)
    known, pairs = model["vocab"], set(merges)
    unmerged = [
        name
        for name, kind in zip(tokens, types, strict=True)
        if kind == NORMAL and not BYTE_TOKEN.fullmatch(name) and any(_splits(name, known, pairs))
    ]
    mixed = any(max(of) - min(of) >= len(of) for of in ranks.values())
    if unmerged or mixed:
        notes.append("some merges depend on the pair and not on its union: llama.cpp may split rare words otherwise")
    return tuple(-float(ranks[name][0]) if name in ranks else -float(len(merges) + at) for at, name in enumerate(tokens))


def _splits(name: str, known: Mapping[str, int], pairs: set[str]) -> Iterable[bool]:
    """Of each way to make a token of two others: whether it is none of the tokenizer's merges."""
    for at in range(1, len(name)):
        left, right = name[:at], name[at:]
        if left in known and right in known:
            yield f"{left} {right}" not in pairs


def _added_notes(added: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if trimmed := [one["content"] for one in added if one.get("lstrip") or one.get("rstrip") or one.get("single_word")]:
        yield f"llama.cpp keeps the spaces around {trimmed[0]!r}{' and others' if len(trimmed) > 1 else ''}, which this tokenizer drops"


def _special(tokenizer: Any, size: int, notes: list[str], tokens: Sequence[str]) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids by role, and which of them the tokenizer itself puts around a text."""
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    special = {role: at for role, at in ids.items() if at is not None and at < size}
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:at], whole[at + len(bare) :]
    if before not in ([], [ids["bos"]]) or after not in ([], [ids["eos"]]):
        raise _unknown("it puts other tokens than one bos and one eos around a text")
    if "eos" not in special:
        notes.append(
            f"the tokenizer has no end-of-text token; llama.cpp takes one of its own choice: {tokens[min(11, size - 1)]!r}"
        )
    return special, {"bos": bool(before), "eos": bool(after)}
