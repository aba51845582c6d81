"""`secateur eval`: perplexity."""

from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT, AllowOverlap, Device, Dtype, Json, MaxMemory, Model, TrustRemoteCode
from secateur.cli.output import Output
from secateur.cli.probing import PROBING, Attention, Calibration, Dynamic, Griffin, Memory, Paper, Samples, Seed, Small, State

Text = Annotated[str | None, Option(metavar=TEXT, help="Text to measure on; see `secateur ls presets`.", rich_help_panel=DATA)]
SeqLen = Annotated[int, Option(help="Tokens of a window; windows do not overlap.", rich_help_panel=DATA)]
MaxTokens = Annotated[int | None, Option(help="Measure on this many tokens at most.", rich_help_panel=DATA)]
Bos = Annotated[
    Literal["auto", "none", "each"],
    Option(help="Start-of-sequence token before each window; auto does what the tokenizer does.", rich_help_panel=DATA),
]
Batch = Annotated[int, Option(help="Windows that one choice is made for.", rich_help_panel=PROBING)]


def evaluate(
    model: Model,
    text: Text = None,
    seq_len: SeqLen = 128,
    max_tokens: MaxTokens = None,
    bos: Bos = "auto",
    dynamic: Dynamic = None,
    small: Small = None,
    batch: Batch = 20,
    state: State = None,
    attention: Attention = None,
    paper: Paper = False,
    griffin: Griffin = False,
    memory: Memory = "kept",
    calibration: Calibration = None,
    allow_overlap: AllowOverlap = False,
    samples: Samples = 128,
    seed: Seed = 0,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Measure a model's perplexity, with one layer in memory at a time; or, with --dynamic, whole and pruned anew for each batch."""
    options = {**locals()}  # the parameters, before anything else has a name here
    del options["json"]
    with Output(json) as output:
        from secateur.dynamic_settings import ProbedEvalSettings

        settings = ProbedEvalSettings(**options)
        if not settings.probes:
            from secateur.recipes.evaluate import evaluate as run

            found = run(settings.plain(), output.reporter)
        else:
            from secateur.recipes.evaluate_probed import evaluate_probed

            found = evaluate_probed(settings, output.reporter)
        output.show("Perplexity", found.to_json())
