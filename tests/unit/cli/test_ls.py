"""`secateur ls`: what the registries hold."""

import json

import pytest
from typer.testing import CliRunner

from secateur.calibration.presets import PRESETS
from secateur.cli.app import app
from secateur.criteria import CRITERIA, LAYER_CRITERIA
from secateur.families import model_types
from secateur.gradients import ESTIMATORS
from secateur.recipes.presets import RECIPES


def listed(what: str) -> list[dict[str, str]]:
    done = CliRunner().invoke(app, ["ls", what, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[what]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", [*CRITERIA.names(), *LAYER_CRITERIA.names(), *RECIPES]),
        ("families", list(model_types())),
        ("estimators", list(ESTIMATORS.names())),
        ("presets", list(PRESETS)),
    ],
)
def test_lists_what_is_registered(what: str, names: list[str]) -> None:
    assert [row["name"] for row in listed(what)] == names


@pytest.mark.parametrize("what", ["methods", "estimators", "presets"])
def test_every_row_says_what_it_is(what: str) -> None:
    for row in listed(what):
        assert 10 < len(row["summary"]) <= 120, row
        assert "\n" not in row["summary"]


def test_people_read_a_table() -> None:
    done = CliRunner().invoke(app, ["ls", "methods"])
    assert all(name in done.stdout for name in CRITERIA.names())
    assert "FLAP" in done.stdout


def test_unknown_list() -> None:
    done = CliRunner().invoke(app, ["ls", "plants"])
    assert done.exit_code == 2
    assert all(f"'{what}'" in done.stderr for what in ("plants", "methods", "families", "estimators", "presets"))
