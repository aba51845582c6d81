"""What a person can choose of an export. Never imports torch."""

from typing import Literal

from pydantic import Field

from secateur.settings import FilePath, Settings

Target = Literal["gguf"]
FileType = Literal["f32", "f16", "bf16", "q8_0"]


class ExportSettings(Settings):
    """One export of a checkpoint to another program's file."""

    model: str = Field(min_length=1, description="a directory with a checkpoint, or a hub id")
    to: Target = Field(description="the kind of file: gguf")
    out: FilePath | None = Field(default=None, description="the file to write; None: beside the model, by its name and type")
    dtype: FileType = Field(default="f16", description="f32, f16, bf16 or q8_0")
    tokenizer: bool = True
    check: bool = True
    text: str | None = Field(default=None, min_length=1, description="a text file or a preset to check on")
    check_tokens: int = Field(default=256, ge=2, description="tokens to check on, 2 or more")
    force: bool = False
    trust_remote_code: bool = False
