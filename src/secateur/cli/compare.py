"""`secateur compare`: methods against each other, on one model."""

from json import dumps
from pathlib import Path
from typing import Annotated

from typer import Option

from secateur.cli.options import DATA, TEXT, AllowOverlap, Device, Dtype, Json, Model
from secateur.cli.output import Output
from secateur.cli.recording import leave_record

Methods = Annotated[
    str, Option(help="Separated by spaces, each as `prune` takes it or with its own choices: flap[compensate=bias].")
]
Out = Annotated[Path, Option(help="Directory for results.json, table.md, plot.svg and what a second call goes on from.")]
Ratios = Annotated[str, Option(help="Fractions of all transformer-block parameters that leave.")]
Seeds = Annotated[str, Option(help="Seeds of everything that is drawn, such as the calibration sequences.")]
Calibration = Annotated[str | None, Option(metavar=TEXT, help="Text the statistics are gathered on.", rich_help_panel=DATA)]
Evaluation = Annotated[str | None, Option("--eval", metavar=TEXT, help="Text of the perplexities.", rich_help_panel=DATA)]
Samples = Annotated[int, Option(help="Number of calibration sequences.", rich_help_panel=DATA)]
SeqLen = Annotated[int, Option(help="Tokens of a sequence.", rich_help_panel=DATA)]


def compare(
    model: Model,
    methods: Methods,
    out: Out,
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
    """Prune a model by every method at every ratio and seed, and compare the perplexities. A killed comparison goes on."""
    options = {**locals()}
    del options["json"]
    with Output(json, interrupted="The same command goes on with the cell that it was at.") as output:
        from secateur.reporting.compare import compare_table
        from secateur.reporting.plot import can_draw, compare_plot
        from secateur.studies import CompareSettings

        settings = CompareSettings(**options)
        drawn = can_draw()
        if not drawn:
            output.reporter.warn("there will be no plot.svg: matplotlib is not installed (pip install 'secateur[plot]')")
        from secateur.recipes.compare import compare as run

        found = run(settings, output.reporter).to_json()
        leave_record(output, "compare", settings, found, directory=out)
        files = {"results.json": dumps(found, indent=2) + "\n", "table.md": compare_table(found)}
        files |= {"plot.svg": compare_plot(found)} if drawn else {}
        for name, text in files.items():
            (out / name).write_text(text)
        shown = {"perplexity of the original": found["perplexity_before"], "written": [str(out / name) for name in files]}
        output.show("Comparison", found if json else shown)
