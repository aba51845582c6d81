import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from secateur import registry
from secateur.allocation import ALLOCATORS
from secateur.criteria import CRITERIA
from secateur.errors import UserError
from secateur.registry import Registry
from secateur.statistics import ACCUMULATORS, STATISTICS
from secateur.surgery.compensations import COMPENSATIONS

ALL = (CRITERIA, ALLOCATORS, COMPENSATIONS, STATISTICS, ACCUMULATORS)


@pytest.mark.parametrize("table", ALL, ids=lambda t: t.kind)
def test_every_entry_is_the_class_it_says(table):
    for name in table.names():
        kind = table[name]
        assert isinstance(kind, type)
        assert getattr(kind, "name", name) == name


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(UserError, match=r"unknown method 'flpa'\. Did you mean flap\? Known: flap, .*wanda-sp\."):
        CRITERIA["flpa"]
    with pytest.raises(
        UserError, match=r"unknown allocation 'zzz'\. Known: global, measured, search, uniform, uniform-floor, uniform-scored\."
    ):
        ALLOCATORS["zzz"]


def test_options_reach_the_class_and_unknown_ones_do_not():
    assert CRITERIA.create("flap", {"metric": "ifv"}).metric == "ifv"
    assert CRITERIA.create("flap") == CRITERIA["flap"]()
    with pytest.raises(
        UserError, match=r"method 'flap' has no option 'metrik'\. Did you mean metric\? Known: metric, squared_heads\."
    ):
        CRITERIA.create("flap", {"metrik": "ifv"})
    with pytest.raises(UserError, match=r"method 'ppsp' has no option 'metric'\. It has no options\."):
        CRITERIA.create("ppsp", {"metric": "ifv"})


def plug_in(monkeypatch, *entries):
    found = [EntryPoint(name=n, value=v, group="secateur.test") for n, v in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "secateur.test" else [])
    return Registry(kind="thing", group="secateur.test", builtin={"decoder": "json:JSONDecoder"})


def test_other_packages_add_names(monkeypatch):
    table = plug_in(monkeypatch, ("encoder", "json:JSONEncoder"))
    assert list(table.names()) == ["decoder", "encoder"]
    assert table["encoder"].__name__ == "JSONEncoder"
    assert "encoder" not in CRITERIA.names()


def test_a_plug_in_may_not_take_a_name_that_is_taken(monkeypatch):
    table = plug_in(monkeypatch, ("decoder", "json:JSONEncoder"))
    with pytest.raises(UserError, match="shadows the built-in thing decoder"):
        table["decoder"]


def test_listing_names_does_not_load_torch():
    listing = (
        "import sys; from secateur.criteria import CRITERIA; from secateur.allocation import ALLOCATORS; "
        "from secateur.statistics import STATISTICS; CRITERIA.names(); ALLOCATORS.names(); STATISTICS.names(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", listing], check=False).returncode == 0


def test_a_name_is_spelled_with_its_options():
    options = {"metric": "wifn", "squared_heads": False}
    assert CRITERIA.spelled("flap") == CRITERIA.create("flap")
    assert CRITERIA.spelled("flap:metric=wifn,squared_heads=false") == CRITERIA.create("flap", options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flap:metric", "is not an option"),
        ("flap:metrik=ifv", "Did you mean metric"),
        ("flpa:x=1", "Did you mean flap"),
        ("flap:metric=xyz", "Allowed: wifv"),
    ],
)
def test_options_that_cannot_be_are_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        CRITERIA.spelled(text)
