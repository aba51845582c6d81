"""`secateur study`: what the parts of a method are worth, measured on a model."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from secateur.cli.options import DATA, TEXT, AllowOverlap, Device, Dtype, Json, Model
from secateur.cli.output import Output
from secateur.cli.recording import leave_record

app = typer.Typer(help="Measure what the parts of a method are worth on a model.", no_args_is_help=True)

Out = Annotated[Path, Option(help="Directory for results.json, table.md and what a second call goes on from.")]
Estimators = Annotated[str | None, Option(help="Separated by spaces, as `backprop spsa-gates:n=64`; all of them unless given.")]
Ratios = Annotated[str, Option(help="Fractions that leave, each pruned with and without least squares.")]
Seeds = Annotated[str, Option(help="Seeds of the calibration blocks and of the estimators.")]
Calibration = Annotated[str | None, Option(metavar=TEXT, help="Text that is differentiated on.", rich_help_panel=DATA)]
Evaluation = Annotated[str | None, Option("--eval", metavar=TEXT, help="Text of the perplexities.", rich_help_panel=DATA)]
Samples = Annotated[int, Option(help="Number of calibration sequences.", rich_help_panel=DATA)]
SeqLen = Annotated[int, Option(help="Tokens of a sequence.", rich_help_panel=DATA)]


@app.callback()
def root() -> None:
    """Measure what the parts of a method are worth on a model."""


@app.command("gradients")
def gradients(
    model: Model,
    out: Out,
    estimators: Estimators = None,
    ratios: Ratios = "0.2,0.4,0.5",
    seeds: Seeds = "0,1,2",
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    allow_overlap: AllowOverlap = False,
    samples: Samples = 128,
    seq_len: SeqLen = 128,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Compare every gradient estimator with the exact gradient: its ranking, its cost, and the model that is left."""
    options = {**locals()}
    del options["json"]
    with Output(json, interrupted="The same command continues with the next estimator.") as output:
        from secateur.reporting.study import study_table
        from secateur.studies import StudySettings

        settings = StudySettings(**options)
        from secateur.recipes.study import study

        found = study(settings, output.reporter).to_json()
        leave_record(output, "study gradients", settings, found, directory=out)
        (out / "results.json").write_text(dumps(found, indent=2) + "\n")
        (out / "table.md").write_text(study_table(found))
        summary = {
            "perplexity of the original": found["perplexity_before"],
            "table": out / "table.md",
            "all": out / "results.json",
        }
        output.show("Study", found if json else {name: str(value) for name, value in summary.items()})
