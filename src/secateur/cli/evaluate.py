"""`secateur eval`: perplexity."""

from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT, Device, Dtype, Json, MaxMemory, Model, TrustRemoteCode
from secateur.cli.output import Output

Text = Annotated[str | None, Option(metavar=TEXT, help="Text to measure on; see `secateur ls presets`.", rich_help_panel=DATA)]
SeqLen = Annotated[int, Option(help="Tokens of a window; windows do not overlap.", rich_help_panel=DATA)]
MaxTokens = Annotated[int | None, Option(help="Measure on this many tokens at most.", rich_help_panel=DATA)]
Bos = Annotated[
    Literal["auto", "none", "each"],
    Option(help="Start-of-sequence token before each window; auto does what the tokenizer does.", rich_help_panel=DATA),
]


def evaluate(
    model: Model,
    text: Text = None,
    seq_len: SeqLen = 128,
    max_tokens: MaxTokens = None,
    bos: Bos = "auto",
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Measure a model's perplexity, with one layer in memory at a time."""
    options = {**locals()}  # the parameters, before anything else has a name here
    del options["json"]
    with Output(json) as output:
        from secateur.settings import EvalSettings

        settings = EvalSettings(**options)
        from secateur.recipes.evaluate import evaluate as run

        output.show("Perplexity", run(settings, output.reporter).to_json())
