"""A GGUF file: written weight by weight, and read back and compared before it counts."""

import glob
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from secateur import axes
from secateur.axes import Sizes
from secateur.errors import UserError
from secateur.export.gguf_arch import Architecture, rope_factors
from secateur.export.gguf_tensor import Kind, Slot, arrange, encode, kind_of, largest_excess, transposed, turned
from secateur.export.gguf_tokenizer import Vocabulary
from secateur.streaming.source import Source

MAGIC = b"GGUF"
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
Track = Callable[[Iterable[Slot], int], Iterator[Slot]]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file is to hold. `layers`: the sizes of each; `vocabulary`: None for token ids alone."""

    source: Source
    architecture: Architecture
    layers: Sequence[Sizes]
    kind: Kind
    vocabulary: Vocabulary | None
    name: str

    def slots(self) -> list[Slot]:
        """The tensors in the order of the file."""
        binding = self.source.binding
        slots = [] if self.factors is None else [_factors_slot(self.factors)]
        return slots + [self._slot(name) for name in binding.names()]

    def _slot(self, name: str) -> Slot:
        binding, at = self.source.binding, self.source.binding.locate(name)
        sizes = binding.sizes if at is None else self.layers[at[0]]
        spec, own = binding.spec(name), self.architecture
        shape = axes.shape(spec, sizes)
        flipped = transposed(spec, inner=at is not None)
        shape = shape[::-1] if flipped else shape
        inner = name if at is None else at[1]
        table = own.outer[inner] if at is None else f"blk.{at[0]}.{own.layer[inner]}"
        exact = at is None and name != binding.embedding and not binding.is_head(name)
        return Slot(
            name=table, source=name, kind=kind_of(self.kind, shape, exact=exact), shape=shape, transposed=flipped,
            head_dim=sizes["head_dim"] if turned(spec, own.paired, inner) else None,
        )  # fmt: skip

    @property
    def factors(self) -> Tensor | None:
        return rope_factors(self.source.binding) if self.architecture.rope_factors else None

    def tensor(self, slot: Slot) -> Tensor:
        """The weight in the order that the file has it in, in its stored type."""
        if not slot.source:
            assert self.factors is not None
            return self.factors
        return arrange(self.source.read(slot.source), slot)

    def origin(self, slot: Slot) -> str:
        return self.source.origin(slot.source) if slot.source else slot.name


def write(path: Path, content: Content, track: Track | None = None) -> list[Slot]:
    """Write the file; one weight is in memory at a time, as it is stored and as it is written. Returns what it holds."""
    import gguf

    slots = content.slots()
    writer = gguf.GGUFWriter(path, content.architecture.name)
    try:
        _describe(writer, content)
        for slot in slots:
            kind = getattr(gguf.GGMLQuantizationType, slot.kind.upper())
            writer.add_tensor_info(slot.name, slot.shape, np.dtype(np.float32), slot.num_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for slot in track(slots, len(slots)) if track else slots:
            writer.write_tensor_data(encode(content.tensor(slot), slot, content.origin(slot)))
    finally:
        writer.close()
    return slots


def compare(path: Path, content: Content, slots: Sequence[Slot], track: Track | None = None) -> None:
    """Read every tensor back and hold it against its weight. Raises `UserError` where the file does not say what was written."""
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if set(found) != {slot.name for slot in slots}:
        raise _broken(path, f"it holds {len(found)} tensors, and {len(slots)} were written")
    with path.open("rb", buffering=0) as file:
        for slot in track(slots, len(slots)) if track else slots:
            tensor = found[slot.name]
            shape = tuple(int(n) for n in reversed(tensor.shape))
            if shape != slot.shape or tensor.tensor_type.name.lower() != slot.kind:
                raise _broken(path, f"{slot.name} came back as {tensor.tensor_type.name} {list(shape)}")
            file.seek(int(tensor.data_offset))
            excess = largest_excess(content.tensor(slot), slot, lambda n: np.fromfile(file, np.uint8, n))
            if not excess <= 1:
                raise _broken(path, f"{slot.name} is {excess:.3g} times further from its weight than {slot.kind} allows")


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"the file written to {path.parent} is not what was meant: {why}. Nothing was left there; try again.")


def _factors_slot(factors: Tensor) -> Slot:
    return Slot(name="rope_freqs.weight", source="", kind="f32", shape=tuple(factors.shape))


def _describe(writer: Any, content: Content) -> None:
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(content.name)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[content.kind]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in content.architecture.facts(content.source.binding, content.layers).items():
        getattr(writer, f"add_{name}")(value)
    own = content.vocabulary
    if own is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(own.model)
    writer.add_token_list(own.tokens)
    writer.add_token_types(own.types)
    if own.pre is not None:
        writer.add_tokenizer_pre(own.pre)
        writer.add_token_merges(own.merges)
    if own.scores:
        writer.add_token_scores(own.scores)
    for role, at in own.special.items():
        getattr(writer, f"add_{role}_token_id")(at)
    adders = {"bos": writer.add_add_bos_token, "eos": writer.add_add_eos_token, "space": writer.add_add_space_prefix}
    for role, does in own.adds.items():
        adders[role](does)
    if own.chat_template:
        writer.add_chat_template(own.chat_template)


def check_file(out: Path, *, force: bool) -> None:
    """Refuse a place that cannot be written, before anything expensive."""
    where = out.absolute()
    if where.is_dir() or where.is_symlink():
        raise UserError(f"--out {str(out)!r} is a directory or a link, and one file is written. Give the name of a file.")
    if not where.parent.is_dir() or not os.access(where.parent, os.W_OK):
        raise UserError(f"cannot write {str(out)!r}: {str(where.parent)!r} is not a directory that you may write in.")
    if not where.exists():
        return
    if not force:
        raise UserError(f"{str(out)!r} exists. Give another --out, or --force to replace it.")
    with where.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{str(out)!r} is not a GGUF file: --force replaces those only. Give another --out.")


@contextmanager
def published_file(out: Path) -> Iterator[Path]:
    """A fresh path beside `out` that takes its name when the block ends well, and vanishes when it does not.

    What a killed run left behind is removed by the next one.
    """
    for stale in out.absolute().parent.glob(f".{glob.escape(out.name)}.partial-*"):
        stale.unlink(missing_ok=True)
    fresh = out.absolute().with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, out)
    except OSError as error:
        raise UserError(
            f"writing {str(out)!r} failed: {error.strerror or error}. Nothing was left there; make room, or give another --out."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
