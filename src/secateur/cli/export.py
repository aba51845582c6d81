"""`secateur export`: a checkpoint as another program's file."""

from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT, Json, Model, RunDir, TrustRemoteCode
from secateur.cli.output import Output
from secateur.cli.recording import leave_record

To = Annotated[Literal["gguf"], Option(help="Kind of file: gguf, for llama.cpp and what is built on it.")]
Type = Annotated[
    Literal["f32", "f16", "bf16", "q8_0"],
    Option("--dtype", help="Type of the matrices; q8_0 keeps those in f16 whose rows do not divide by 32."),
]
Out = Annotated[
    str | None, Option(metavar="FILE", help="File to write.", show_default="the model's name and the type, beside the model")
]
Force = Annotated[bool, Option("--force", help="Replace a GGUF file that is there.")]
Tokenizer = Annotated[bool, Option(help="Put the tokenizer into the file; without, llama.cpp takes token ids only.")]
Check = Annotated[bool, Option(help="Run the file in llama.cpp, where llama-cpp-python is installed, against Hugging Face.")]
Text = Annotated[
    str | None,
    Option(metavar=TEXT, help="Text to check on.", show_default="the standard library's", rich_help_panel=DATA),
]
CheckTokens = Annotated[int, Option(help="Tokens of it.", rich_help_panel=DATA)]


def export(
    model: Model,
    to: To,
    dtype: Type = "f16",
    out: Out = None,
    tokenizer: Tokenizer = True,
    check: Check = True,
    text: Text = None,
    check_tokens: CheckTokens = 256,
    force: Force = False,
    trust_remote_code: TrustRemoteCode = False,
    run_dir: RunDir = None,
    json: Json = False,
) -> None:
    """Write a checkpoint, pruned or not, as a file of another program; one weight is in memory at a time.

    The file is read back and compared with the checkpoint, and run by that program where it is installed, before it appears.
    """
    options = {**locals()}
    del options["json"], options["run_dir"]
    with Output(json) as output:
        from secateur.export_settings import ExportSettings

        settings = ExportSettings(**options)
        from secateur.recipes.export import export as run

        found = run(settings, output.reporter).to_json()
        leave_record(output, "export", settings, found, run_dir=run_dir)
        output.show("Exported", found)
