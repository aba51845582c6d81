"""Two quantities against each other: models on a plane with their Pareto front, methods as lines. Imports no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.reporting.svg import WIDE, Scale, below, dot, line, path, plot, text, tick_text
from secateur.reporting.words import Number

LEFT, TOP, HIGH, FOOT = 46.0, 30.0, 250.0, 42.0
END = WIDE - 14
LOGARITHMIC = 3.0  # from this ratio of the largest to the smallest perplexity on
COLOURS = 8
NEAR = 13.0  # units between the centres of two numbers that do not touch


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model. Both quantities are better when less. `number`: as in the table beside the plot."""

    number: int
    x: Number
    y: Number
    told: str
    x_ends: tuple[Number, Number] | None = None
    y_ends: tuple[Number, Number] | None = None
    dense: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method: its points from left to right, each with the ends of its spread over seeds."""

    number: int
    name: str
    points: Sequence[tuple[Number, Number, Number, Number]]
    """x, y, least y, largest y."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    name: str
    spelled: Callable[[Number], str] = tick_text


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other point is at least as good as in both and better in one, from left to right."""
    return sorted(
        (p for p in points if not any(q.x <= p.x and q.y <= p.y and (q.x, q.y) != (p.x, p.y) for q in points)),
        key=lambda p: (p.x, -p.y),
    )


def pareto_plot(points: Sequence[Point], x: Axis, y: Axis) -> Markup | None:
    """None with fewer than two points that have both quantities."""
    known = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if len(known) < 2:
        return None
    across, up = _scales(
        [e for p in known for e in (p.x, *(p.x_ends or ()))], [e for p in known for e in (p.y, *(p.y_ends or ()))]
    )  # fmt: skip
    best = front(known)
    steps = [(across.at(p.x), up.at(p.y)) for p in best]
    parts = [*_frame(across, up, x, y), path(steps, "front")]
    taken = [(across.at(p.x), up.at(p.y)) for p in known]
    for p in known:
        h, v = across.at(p.x), up.at(p.y)
        if p.x_ends:
            parts.append(line(across.at(p.x_ends[0]), v, across.at(p.x_ends[1]), v, "whisker faint"))
        if p.y_ends:
            parts.append(line(h, up.at(p.y_ends[0]), h, up.at(p.y_ends[1]), "whisker faint"))
        cls = "c1" if p.dense else "c0"
        parts.append(dot(h, v, 5, f"{cls} {'filled' if p in best else 'hollow'}", p.told))
        parts.append(_number(p.number, h, v, taken))
    told = f"{y.name} against {x.name} of {len(known)} models; on the front: {', '.join(str(p.number) for p in best)}."
    return plot(HIGH + FOOT, told, *parts)


def line_plot(series: Sequence[Series], x: Axis, y: Axis, *, reference: Number) -> Markup | None:
    """`reference`: a dashed line, of the original. None without a finite point."""
    lines = [(s, [p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    known = [p for _, points in lines for p in points]
    if not known:
        return None
    across, up = _scales([p[0] for p in known], [reference, *(e for p in known for e in p[1:])])
    parts = [*_frame(across, up, x, y), line(LEFT, up.at(reference), END, up.at(reference), "reference")]
    taken: list[tuple[Number, Number]] = []
    for s, points in lines:
        cls = f"c{(s.number - 1) % COLOURS} {'' if s.number <= COLOURS else 'dashed'}"
        steps = [(across.at(p[0]), up.at(p[1])) for p in points]
        parts.append(path(steps, f"series {cls}")) if steps else None
        for p, (h, v) in zip(points, steps, strict=True):
            parts.append(line(h, up.at(p[2]), h, up.at(p[3]), f"whisker {cls}"))
            parts.append(dot(h, v, 3.5, f"{cls} filled", f"{s.number}. {s.name}: {y.spelled(p[1])} at {x.spelled(p[0])}"))
        if steps:
            parts.append(_number(s.number, *steps[-1], taken))
    return plot(HIGH + FOOT, f"{y.name} against {x.name}, one line for each of {len(series)} methods.", *parts)


def _scales(xs: Sequence[Number], ys: Sequence[Number]) -> tuple[Scale, Scale]:
    finite = [v for v in ys if math.isfinite(v) and v > 0]
    log = len(finite) == len(ys) and max(finite) / min(finite) >= LOGARITHMIC
    return Scale.over(list(xs), LEFT, END - 10), Scale.over(list(ys), HIGH, TOP, log=log)


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> list[Markup]:
    parts = [text(0, 12, f"{y.name}{', logarithmic' if up.log else ''}", "muted", room=WIDE)]
    for tick in up.ticks(6):
        v = up.at(tick)
        parts += [line(LEFT, v, END, v, "grid"), text(LEFT - 6, v + 4, y.spelled(tick), "muted", "end", room=LEFT - 6)]
    for tick in across.ticks(4):
        h = across.at(tick)
        parts += [line(h, TOP, h, HIGH, "grid"), below(h, HIGH + 16, x.spelled(tick))]
    return [*parts, text((LEFT + END) / 2, HIGH + 34, x.name, "muted", "middle", room=END - LEFT)]


def _number(number: int, h: Number, v: Number, taken: list[tuple[Number, Number]]) -> Markup:
    """A point's number, where it covers neither another number nor a point; beside the point if there is no such place."""
    around = [(12.0, -8.0), (-12.0, -8.0), (12.0, 10.0), (-12.0, 10.0), (0.0, -14.0), (0.0, 16.0), (22.0, 0.0), (-22.0, 0.0)]
    places = [(h + dx, v + dy) for dx, dy in around if LEFT + 6 < h + dx < WIDE - 7 and TOP - 6 < v + dy < HIGH - 4]
    free = [p for p in places if all(math.dist(p, other) > NEAR for other in taken if other != (h, v))]
    at = (free or places or [(h, v - 12)])[0]
    taken.append(at)
    return text(at[0], at[1] + 4, str(number), "number halo", "middle")
