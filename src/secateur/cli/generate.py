"""`secateur generate`: what a model says next."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from secateur.cli.options import DATA, Device, Dtype, Json, Model, RunDir, TrustRemoteCode
from secateur.cli.output import Output
from secateur.cli.probing import (
    PROBING,
    Attention,
    Calibration,
    Dynamic,
    Griffin,
    Memory,
    Paper,
    Rechoose,
    Samples,
    Seed,
    Small,
    State,
)
from secateur.cli.recording import leave_record

Prompt = Annotated[list[str], Option("--prompt", help="Text to continue; may be given several times.", show_default=False)]
MaxNewTokens = Annotated[int, Option(help="Tokens to add to each prompt at most.")]
SeqLen = Annotated[int, Option(help="Tokens of a calibration sequence.", rich_help_panel=DATA)]
SaveState = Annotated[Path | None, Option(help="File to save the calibrated state to.", rich_help_panel=PROBING)]


def generate(
    model: Model,
    prompt: Prompt,
    max_new_tokens: MaxNewTokens = 64,
    dynamic: Dynamic = None,
    small: Small = None,
    state: State = None,
    save_state: SaveState = None,
    attention: Attention = None,
    paper: Paper = False,
    griffin: Griffin = False,
    memory: Memory = "kept",
    rechoose: Rechoose = None,
    calibration: Calibration = None,
    samples: Samples = 128,
    seq_len: SeqLen = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    run_dir: RunDir = None,
    json: Json = False,
) -> None:
    """Continue prompts greedily, by a model or by what a batch of them needs of it."""
    options = {**locals()}
    del options["json"], options["run_dir"]
    with Output(json) as output:
        from secateur.dynamic_settings import GenerateSettings

        settings = GenerateSettings(**options)
        from secateur.recipes.generate import generate as run

        found = run(settings, output.reporter).to_json()
        leave_record(output, "generate", settings, found, run_dir=run_dir)
        if json:
            output.show("Generated", found)
            return
        typer.echo("\n\n".join(one["prompt"] + one["text"] for one in found.pop("completions", [])))
        output.tell("Generated", found)
