"""What every job begins with: the model, its arithmetic, its texts."""

import torch

from secateur.calibration.text import Text, read_text
from secateur.errors import UserError
from secateur.families.binding import Binding
from secateur.streaming.checkpoint import Checkpoint, locate

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEFAULT_TEXT = "wikitext2"


def open_model(spec: str, *, dtype: str, device: str, trust_remote_code: bool) -> tuple[Checkpoint, torch.dtype]:
    """The checkpoint and the type it is computed in: `auto` is the stored type, but float32 for fp16 on a CPU."""
    directory = locate(spec)
    chosen = DTYPES.get(dtype)
    source = Checkpoint.open(directory, dtype=chosen, trust_remote_code=trust_remote_code)
    stored = source.dtype(source.binding.embedding)
    if chosen is None:
        # Half-precision products are slow and overflow on CPUs.
        chosen = torch.float32 if stored == torch.float16 and device == "cpu" else stored
        if chosen != stored:
            source = Checkpoint.open(directory, dtype=chosen, trust_remote_code=trust_remote_code)
    return source, chosen


def check_length(binding: Binding, seq_len: int) -> None:
    """A table of learned positions ends somewhere; rotary and ALiBi positions go on."""
    if "position" in binding.sizes and seq_len > (most := binding.config.max_position_embeddings):
        raise UserError(
            f"--seq-len is {seq_len}, and this {binding.model_type} model has {most} positions. Give at most {most}."
        )


def open_device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {name} was given, but this PyTorch ({torch.__version__}) sees no CUDA device. Use --device cpu."
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name} was given, but there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return device


def open_text(spec: str | None, record: dict | None, role: str) -> Text:
    """The text asked for; else the one that the model's own record names; else the preset of the literature."""
    chosen = spec or (record or {}).get("provenance", {}).get("texts", {}).get(role) or DEFAULT_TEXT
    return read_text(chosen, role=role)  # type: ignore[arg-type]
