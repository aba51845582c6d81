"""`secateur demo`: the main job on the embedded model."""

from secateur.cli.options import Json
from secateur.cli.output import Output


def demo(json: Json = False) -> None:
    """Prune the embedded model on the text of this Python's standard library: no network, no files needed."""
    with Output(json) as output:
        from secateur.recipes.demo import demo as run

        output.show("Demo", run(output.reporter).to_json())
