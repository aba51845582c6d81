"""Options that several subcommands share."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

DATA, MACHINE = "Text", "Machine"

Model = Annotated[str, Argument(metavar="MODEL", help="Directory of a checkpoint, or a hub id.", show_default=False)]
TEXT = "FILE|FILE.jsonl:FIELD|hub:NAME|PRESET"
AllowOverlap = Annotated[
    bool, Option("--allow-overlap", help="Evaluate even on text that is calibrated on.", rich_help_panel=DATA)
]
MaxMemory = Annotated[str | None, Option(help="Hidden states beyond this go to disk, such as 2GiB.", rich_help_panel=MACHINE)]
Device = Annotated[str, Option(help="cpu, cuda or cuda:N.", rich_help_panel=MACHINE)]
Dtype = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    Option(help="Type to compute in; auto is the checkpoint's.", rich_help_panel=MACHINE),
]
TrustRemoteCode = Annotated[
    bool, Option("--trust-remote-code", help="Run code that the checkpoint brings with it.", rich_help_panel=MACHINE)
]
RunDir = Annotated[
    Path | None,
    Option(help="Directory for the record of this run. [default: .secateur]", rich_help_panel="Run"),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout and nothing else.")]
