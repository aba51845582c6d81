"""The search over budgets, on losses that are known."""

import pytest

from secateur.allocation.ladder import Ladder, removed, widths
from secateur.allocation.search import Exchange, Search
from secateur.errors import UserError


def ladder(layer, axis, size, cost, allowed=None):
    return Ladder(layer=layer, axis=axis, scores=(0.0,) * size, cost=cost, allowed=allowed or tuple(range(1, size + 1)))


def stack(layers=4):
    return [x for i in range(layers) for x in (ladder(i, "kv", 4, 100), ladder(i, "ffn", 60, 10))]


class Coupled:
    """A loss with an interaction that no single removal shows: what leaves of two neighbours at once costs more."""

    comparable = False

    def __init__(self, ladders, held=1.0):
        self.ladders, self.held, self.asked = ladders, held, 0

    def loss(self, kept, *, settle=False):
        self.asked += not settle
        gone = [x.cost * (x.size - kept[x.layer, x.axis]) / 1000 for x in self.ladders]
        alone = sum((1 + x.layer) * g**2 for x, g in zip(self.ladders, gone, strict=True))
        return alone + 4 * sum(a * b for a, b in zip(gone, gone[1:], strict=False))

    def held_out(self, kept):
        return self.held * self.loss(kept, settle=True)

    def rises(self, wanted, blocks, base=None):
        now = base or {(x.layer, x.axis): x.size for x in self.ladders}
        low = self.loss(now, settle=True)
        return {(i, axis, n): self.loss({**now, (i, axis): n}, settle=True) - low for i, axis, n in wanted}


BUDGET = 1500


def test_finds_less_than_every_start_and_meets_the_budget_as_well():
    ladders = stack()
    trials, start = Coupled(ladders), Coupled(ladders)
    found = Search(trials=200).decide(ladders, BUDGET, trials)
    begun = Search(trials=3).decide(ladders, BUDGET, start)
    assert trials.loss(found) < 0.95 * start.loss(begun)
    assert abs(removed(ladders, found) - BUDGET) <= max(abs(removed(ladders, begun) - BUDGET), 5)
    assert all(found[x.layer, x.axis] in x.allowed for x in ladders)


def test_asks_no_more_often_than_told_and_finds_the_same_again():
    trials = Coupled(stack())
    first = Search(trials=40).decide(stack(), BUDGET, trials)
    assert trials.asked <= 40
    assert Search(trials=40).decide(stack(), BUDGET, Coupled(stack())) == first


def test_the_clock_ends_it(monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    trials = Coupled(stack())
    Search(seconds=20.0).decide(stack(), BUDGET, trials)
    assert 3 < trials.asked <= 20


def test_the_clock_starts_behind_the_measured_start(monkeypatch):
    """The start alone takes longer than the seconds that are given."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow(Coupled):
        def rises(self, wanted, blocks, base=None):
            now[0] += 100.0
            return super().rises(wanted, blocks, base)

        def loss(self, kept, *, settle=False):
            now[0] += not settle
            return super().loss(kept, settle=settle)

    trials = Slow(stack())
    Search(seconds=20.0).decide(stack(), BUDGET, trials)
    assert trials.asked == 20


def test_what_is_worse_on_the_blocks_held_out_is_not_taken():
    ladders = stack()
    start = Search(trials=3).decide(ladders, BUDGET, Coupled(ladders))
    assert Search(trials=200).decide(ladders, BUDGET, Coupled(ladders)) != start
    assert Search(trials=200).decide(ladders, BUDGET, Coupled(ladders, held=-1.0)) == start


def test_an_exchange_of_heads_for_channels_meets_the_budget():
    heads, channels = ladder(0, "kv", 4, 100), ladder(1, "ffn", 60, 10)
    kept = {(0, "kv"): 3, (1, "ffn"): 40}
    exchange = Exchange.of([heads, channels], 300, kept)
    assert exchange.exchanged(kept, heads, channels, 1 / 128) == {(0, "kv"): 2, (1, "ffn"): 50}
    assert exchange.exchanged(kept, channels, heads, 1 / 128) == {(0, "kv"): 4, (1, "ffn"): 30}


def test_an_exchange_that_cannot_meet_the_budget_is_none():
    heads, channels = ladder(0, "kv", 4, 100), ladder(1, "ffn", 60, 10)
    kept = {(0, "kv"): 2, (1, "ffn"): 55}
    exchange = Exchange.of([heads, channels], 250, kept)
    assert exchange.exchanged(kept, heads, channels, 1 / 128) is None  # 65 channels there are not
    coarse = ladder(1, "ffn", 60, 10, widths(60, 32))
    assert Exchange.of([heads, coarse], 380, {(0, "kv"): 3, (1, "ffn"): 32}).exchanged(
        {(0, "kv"): 3, (1, "ffn"): 32}, coarse, heads, 1 / 128
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [({"seconds": 0.0}, "search's seconds is 0.0"), ({"trials": -1}, "search's trials is -1"), ({"blocks": 0}, "blocks is 0")],
)
def test_what_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        Search(**options)
