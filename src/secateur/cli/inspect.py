"""`secateur inspect`: what a model, a pruned directory or a plan holds."""

from typing import Annotated

from typer import Argument

from secateur.cli.options import Json, TrustRemoteCode
from secateur.cli.output import Output

Target = Annotated[
    str, Argument(metavar="MODEL|DIR|PLAN", help="Hub id, directory of a checkpoint, or a plan file.", show_default=False)
]


def inspect(target: Target, trust_remote_code: TrustRemoteCode = False, json: Json = False) -> None:
    """Show units, parameters, bytes, FLOPs per token, and what a ratio would mean."""
    with Output(json) as output:
        from secateur.recipes.inspect import inspect as run

        output.show(target, run(target, output.reporter, trust_remote_code=trust_remote_code).to_json())
