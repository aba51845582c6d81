"""The store of statistics, and the hidden states between layers, as files."""

from pathlib import Path

import pytest
import torch

from secateur.errors import UserError
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.streaming.collect import Request, Store, start_of
from secateur.streaming.hidden import HiddenStates, boundary, intact

X = torch.arange(12.0, dtype=torch.float64).view(4, 3)
MOMENTS = Request(kinds={"a": frozenset({"moments"})})
BOTH = Request(kinds={"a": frozenset({"moments", "gram"})})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(directory=tmp_path)


def test_a_layers_file_keeps_what_was_there(store: Store) -> None:
    store.save(0, {"a": {"moments": Moments.of(X)}, "b": {"gram": Gram.of(X)}})
    store.save(0, {"a": {"gram": Gram.of(X + 1)}, "b": {"gram": Gram.of(X + 2)}})
    found = store.load(0)
    assert {m: set(kinds) for m, kinds in found.items()} == {"a": {"moments", "gram"}, "b": {"gram"}}
    assert torch.equal(found["a"]["moments"].mean, Moments.of(X).mean) and found["a"]["moments"].count == 4
    assert torch.equal(found["a"]["gram"].matrix, Gram.of(X + 1).matrix)
    assert torch.equal(found["b"]["gram"].matrix, Gram.of(X + 2).matrix)
    assert store.load(0, modules=["b"]).keys() == {"b"} and store.load(0, kinds=["moments"]).keys() == {"a"}
    assert [path.name for path in store.directory.iterdir()] == ["layer-000.safetensors"]


def test_finished_counts_from_the_first_layer_on(store: Store) -> None:
    for layer in (0, 1, 3):
        store.save(layer, {"a": {"moments": Moments.of(X)}})
    assert (store.finished(4, MOMENTS), store.finished(4, BOTH), store.finished(1, MOMENTS)) == (2, 0, 1)
    assert store.finished(4, Request(kinds={})) == 4, "nothing is asked for"


def test_a_damaged_file_holds_nothing_and_is_replaced(store: Store) -> None:
    store.save(0, {"a": {"moments": Moments.of(X), "gram": Gram.of(X)}})
    store.path(0).write_bytes(store.path(0).read_bytes()[:-1])
    assert store.finished(1, MOMENTS) == 0
    with pytest.raises(UserError, match="layer-000.safetensors is truncated"):
        store.load(0)
    store.save(0, {"a": {"moments": Moments.of(X)}})
    assert store.finished(1, MOMENTS) == 1 and store.finished(1, BOTH) == 0


def hidden_states(store: Store, layer: int, x: torch.Tensor, *, spill: bool = False) -> None:
    with HiddenStates((2, 4, 3), torch.float64, directory=store.directory, spill=spill) as hidden:
        hidden.put(0, x)
        hidden.commit(layer)


@pytest.mark.parametrize("spill", [False, True])
def test_a_walk_goes_on_from_hidden_states_that_are_whole(store: Store, spill: bool) -> None:
    store.save(0, {"a": {"moments": Moments.of(X)}})
    assert start_of(store, 2, MOMENTS, resume=True) == 0, "no hidden states"
    hidden_states(store, 1, torch.stack([X, X]) + 1, spill=spill)
    assert start_of(store, 2, MOMENTS, resume=True) == 1
    assert start_of(store, 2, MOMENTS, resume=False) == 0
    assert start_of(store, 1, MOMENTS, resume=False) == 1, "nothing is missing"
    hidden_states(store, 1, torch.stack([X + 1, X * 0]), spill=spill)
    assert start_of(store, 2, MOMENTS, resume=True) == 0, "tokens that are all zero were never written"
    path = boundary(store.directory, 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert not intact(path)


def test_hidden_states_that_are_given_up_leave_no_file(store: Store) -> None:
    def begin() -> None:
        with HiddenStates((2, 4, 3), torch.float64, directory=store.directory, spill=True) as hidden:
            hidden.put(0, X[None])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert not list(store.directory.iterdir())


def test_sweeping_keeps_statistics_and_one_boundary(store: Store) -> None:
    store.save(0, {"a": {"moments": Moments.of(X)}})
    for layer in (0, 1, 2):
        hidden_states(store, layer, torch.stack([X, X]))
    (store.directory / "layer.safetensors.partial").write_text("")
    (store.directory / "identity.json").write_text("")
    store.sweep(keep=boundary(store.directory, 1))
    assert {path.name for path in store.directory.iterdir()} == {
        "layer-000.safetensors",
        "hidden-001.safetensors",
        "identity.json",
    }
    store.sweep()
    assert {path.name for path in store.directory.iterdir()} == {"layer-000.safetensors", "identity.json"}
