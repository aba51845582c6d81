"""Options of the subcommands that can probe a model."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT

PROBING = "Pruned anew for each batch"

Dynamic = Annotated[
    float | None,
    Option(help="Fraction of the blocks' parameters that each batch leaves out, in [0, 1).", rich_help_panel=PROBING),
]
Small = Annotated[
    str | None,
    Option(
        metavar="DIR",
        help="Pruned model that `secateur prune` wrote from MODEL; each batch corrects it.",
        rich_help_panel=PROBING,
    ),
]
State = Annotated[
    Path | None, Option(help="Saved state to start from, instead of calibrating.", rich_help_panel=PROBING)
]  # fmt: skip
Attention = Annotated[
    Literal["kv", "group", "heads", "none"] | None,
    Option(
        help="What of attention may leave: kv heads, query heads of each group, query heads anywhere, or none. "
        "[default: kv; heads with --paper]",
        rich_help_panel=PROBING,
    ),
]
Paper = Annotated[
    bool,
    Option("--paper", help="Probe pruning as published: the history follows the batches.", rich_help_panel=PROBING),
]
Griffin = Annotated[
    bool,
    Option(
        "--griffin",
        help="GRIFFIN: the whole prompt, which itself runs dense, chooses MLP channels; the fraction is of the MLPs alone.",
        rich_help_panel=PROBING,
    ),
]
Memory = Annotated[
    Literal["kept", "low"],
    Option(help="Keep every layer's compact weights, or have one place for all of them.", rich_help_panel=PROBING),
]
Rechoose = Annotated[
    int | None, Option(help="Choose MLP channels again after so many new tokens.", rich_help_panel=PROBING)
]  # fmt: skip
Calibration = Annotated[
    str | None,
    Option(metavar=TEXT, help="Text to calibrate on; see `secateur ls presets`.", rich_help_panel=DATA),
]
Samples = Annotated[int, Option(help="Number of calibration sequences.", rich_help_panel=DATA)]
Seed = Annotated[int, Option(help="Seed of everything that is drawn, such as the calibration sequences.", rich_help_panel=DATA)]
