"""`secateur prune`: a smaller checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT, AllowOverlap, Device, Dtype, Json, MaxMemory, Model, TrustRemoteCode
from secateur.cli.output import Output

TARGET, METHOD, RUN = "How much leaves (exactly one)", "How it is chosen", "Run"

Out = Annotated[Path | None, Option(help="Directory to write the pruned checkpoint to.")]
Ratio = Annotated[
    float | None, Option(help="Fraction of all transformer-block parameters that leave, in (0, 1).", rich_help_panel=TARGET)
]
TargetParams = Annotated[str | None, Option(help="Parameters of the pruned model, such as 5.5B.", rich_help_panel=TARGET)]
TargetSize = Annotated[str | None, Option(help="Bytes of the pruned model's weights, such as 9GiB.", rich_help_panel=TARGET)]
Effort = Annotated[
    Literal["fast", "balanced", "best"] | None,
    Option(help="How much work goes into choosing and repairing. [default: balanced]", rich_help_panel=METHOD),
]
Method = Annotated[
    str | None,
    Option(help="Another criterion or recipe instead, options as flap:metric=wifn; see `secateur ls`.", rich_help_panel=METHOD),
]
Gradient = Annotated[
    str | None,
    Option(help="Estimator for methods that need a gradient, as spsa-gates:n=64. [default: backprop]", rich_help_panel=METHOD),
]
Compensate = Annotated[
    str | None,
    Option(
        help="How what stays makes up for what leaves: none, bias, least-squares or sequential. [default: the method's own]",
        rich_help_panel=METHOD,
    ),
]
Allocation = Annotated[
    str | None,
    Option(
        help="How layers share the budget: uniform, global, measured, or search:seconds=60. [default: the method's own]",
        rich_help_panel=METHOD,
    ),
]
Axes = Annotated[
    str | None,
    Option(help="What may leave: kv heads, ffn channels, group (query heads). [default: kv,ffn]", rich_help_panel=METHOD),
]
Protect = Annotated[str | None, Option(help="Layers that stay whole, such as 0-2,-1.", rich_help_panel=METHOD)]
RoundTo = Annotated[int, Option(help="Make every width a multiple of this.", rich_help_panel=METHOD)]
Format = Annotated[
    Literal["auto", "stock", "unequal", "gguf"],
    Option(
        help="How the result is written: stock (only shapes that the model's own class loads), unequal (any, with a modelling file), "
        "or the first of these that holds what was chosen; gguf: that, and llama.cpp's file beside it.",
        rich_help_panel=METHOD,
    ),
]
Ridge = Annotated[float | None, Option(help="Pull of least squares towards the original weights.", rich_help_panel=METHOD)]
Calibration = Annotated[
    str | None,
    Option(metavar=TEXT, help="Text the statistics are gathered on; see `secateur ls presets`.", rich_help_panel=DATA),
]
Evaluation = Annotated[
    str | None,
    Option("--eval", metavar=f"{TEXT}|none", help="Text of the perplexity before and after.", rich_help_panel=DATA),
]
Samples = Annotated[int, Option(help="Number of calibration sequences.", rich_help_panel=DATA)]
SeqLen = Annotated[int, Option(help="Tokens of a sequence.", rich_help_panel=DATA)]
Seed = Annotated[int, Option(help="Seed of everything that is drawn, such as the calibration sequences.", rich_help_panel=DATA)]
RunDir = Annotated[Path | None, Option(help="Directory of the journal and the statistics.", rich_help_panel=RUN)]
Resume = Annotated[bool, Option("--resume", help="Continue a killed run from its last finished layer.", rich_help_panel=RUN)]
Force = Annotated[bool, Option("--force", help="Replace an output directory that is not empty.", rich_help_panel=RUN)]
PushToHub = Annotated[
    str | None,
    Option(metavar="OWNER/NAME", help="Publish the result on the Hugging Face hub, once it is written.", rich_help_panel=RUN),
]
Private = Annotated[bool, Option("--private", help="Publish it for yourself alone.", rich_help_panel=RUN)]
DryRun = Annotated[
    bool,
    Option(
        "--dry-run",
        help="Only check all that is given, texts too, and forecast sizes, memory, disk use and time.",
        rich_help_panel=RUN,
    ),
]


def prune(
    model: Model,
    out: Out = None,
    ratio: Ratio = None,
    target_params: TargetParams = None,
    target_size: TargetSize = None,
    effort: Effort = None,
    method: Method = None,
    gradient: Gradient = None,
    compensate: Compensate = None,
    allocation: Allocation = None,
    axes: Axes = None,
    protect: Protect = None,
    round_to: RoundTo = 1,
    format: Format = "auto",
    ridge: Ridge = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    allow_overlap: AllowOverlap = False,
    samples: Samples = 128,
    seq_len: SeqLen = 128,
    seed: Seed = 0,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    run_dir: RunDir = None,
    resume: Resume = False,
    force: Force = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Prune a model: score its units, remove the least important ones, and write an ordinary checkpoint."""
    options = {**locals()}  # the parameters, before anything else has a name here
    del options["json"]
    with Output(json, interrupted="The same command with --resume continues from the last finished layer.") as output:
        from secateur.settings import PruneSettings

        settings = PruneSettings(**options)
        from secateur.recipes.prune import prune as run

        output.show("Forecast" if dry_run else "Pruned", run(settings, output.reporter).to_json())
