"""Drawing: the few shapes that the plots are made of. Colours are classes of the page's style sheet. Imports no torch.

A plot is `WIDE` units wide whatever the screen: on a telephone a unit is a pixel, on a desk it is more. So what fits here fits there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from secateur.reporting.words import Number

WIDE = 358.0
GLYPH = 6.3  # units that a glyph of a label takes at most, on average
SMALL = 5.7
BETWEEN = 0.1791  # luminance that black and white stand out against alike
EXTREME = 1e100  # values beyond which a scale does not follow
HEAT = (  # cividis, which is read alike with and without colour vision; from few to all
    (0, 34, 78), (30, 58, 111), (66, 78, 108), (95, 99, 110), (125, 124, 120), (155, 148, 118), (188, 174, 108), (223, 202, 86),
    (254, 232, 56),
)  # fmt: skip


def plot(height: Number, label: str, *parts: Markup, wide: Number = WIDE) -> Markup:
    """A whole image. `label`: what it shows, for those who do not see it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">{}</svg>').format(
        _n(wide), _n(height), label, Markup("").join(parts)
    )


def text(x: Number, y: Number, body: str, cls: str = "", anchor: str = "start", room: Number = 0.0) -> Markup:
    """A label; of one that is longer than `room` the middle leaves, and the whole is its tooltip."""
    glyph = SMALL if "small" in cls else GLYPH
    shown = shorten(body, int(room / glyph)) if room else body
    title = Markup("<title>{}</title>").format(body) if shown != body else Markup("")
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}{}</text>').format(_n(x), _n(y), cls, anchor, title, shown)


def below(x: Number, y: Number, body: str) -> Markup:
    """A tick's label, under its tick as far as the image's edges let it."""
    half = len(body) * GLYPH / 2
    return text(min(max(x, half), WIDE - half), y, body, "muted", "middle")


def shorten(body: str, most: int) -> str:
    if len(body) <= max(most, 1):
        return body
    head = max(most - 1, 0) * 2 // 3
    tail = max(most - 1 - head, 0)
    return body[:head] + "…" + (body[-tail:] if tail else "")


def line(x1: Number, y1: Number, x2: Number, y2: Number, cls: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(_n(x1), _n(y1), _n(x2), _n(y2), cls)


def rect(
    x: Number, y: Number, w: Number, h: Number, cls: str = "", fill: str = "", title: str = "", radius: Number = 0
) -> Markup:
    style = Markup(' style="fill:{}"').format(fill) if fill else Markup("")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="{}" class="{}"{}>{}</rect>').format(
        _n(x), _n(y), _n(max(w, 0)), _n(max(h, 0)), _n(radius), cls, style, _title(title)
    )


def dot(x: Number, y: Number, radius: Number, cls: str, title: str = "") -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>').format(_n(x), _n(y), _n(radius), cls, _title(title))


def path(points: Sequence[tuple[Number, Number]], cls: str) -> Markup:
    steps = " ".join(f"{'L' if number else 'M'}{_n(x)} {_n(y)}" for number, (x, y) in enumerate(points))
    return Markup('<path d="{}" class="{}"/>').format(steps, cls)


def bars(boxes: Sequence[tuple[Number, Number, Number, Number]], cls: str) -> Markup:
    """Boxes of one colour (left, bottom, width, height) in one shape: a page may hold tens of thousands."""
    steps = "".join(f"M{_n(x)} {_n(y)}v-{_n(high)}h{_n(wide)}v{_n(high)}z" for x, y, wide, high in boxes)
    return Markup('<path d="{}" class="{}"/>').format(steps, cls) if boxes else Markup("")


def group(parts: Sequence[Markup], title: str = "") -> Markup:
    return Markup("<g>{}{}</g>").format(_title(title), Markup("").join(parts))


def heat(fraction: Number) -> tuple[str, str]:
    """The colour of a fraction from 0 to 1, and black or white for what is written on it."""
    place = min(max(fraction, 0.0), 1.0) * (len(HEAT) - 1)
    at = min(int(place), len(HEAT) - 2)
    mixed = [a + (b - a) * (place - at) for a, b in zip(HEAT[at], HEAT[at + 1], strict=True)]
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in mixed]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"rgb({', '.join(str(round(c)) for c in mixed)})", "on-light" if light > BETWEEN else "on-dark"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places on the image, linear or logarithmic, with a few round ticks."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[Number], start: Number, end: Number, *, log: bool = False, zero: bool = False) -> "Scale":
        """A scale with room around the values. `zero`: it begins there."""
        known = [v for v in values if abs(v) < EXTREME and (v > 1 / EXTREME or not log)] or [1.0]
        low, high = min(known), max(known)
        if log:
            pad = (high / low) ** 0.06 if high > low else 1.3
            return cls(low=low / pad, high=high * pad, start=start, end=end, log=True)
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low=0.0 if zero and low >= 0 else low - pad, high=high + pad, start=start, end=end)

    def at(self, value: Number) -> float:
        """Values beyond the ends are drawn at them."""
        if self.log:
            value, low, high = (math.log(max(v, 1e-300)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[Number]:
        return self._powers(most) if self.log and self.high / self.low > 4 else self._steps(most)

    def _steps(self, most: int) -> list[Number]:
        """Multiples of the smallest round step that gives no more than these."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        for step in (power * m for m in (1, 2, 2.5, 5, 10, 20, 25, 50)):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [number * step for number in range(first, last + 1)]
        return [self.low, self.high]

    def _powers(self, most: int) -> list[Number]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found = [10.0**n for n in range(first, last + 1) if self.low <= 10.0**n <= self.high]
        if len(found) < 3:
            found = [v for n in range(first, last + 1) for m in (1, 2, 5) if self.low <= (v := m * 10.0**n) <= self.high]
        return found[:: max(1, math.ceil(len(found) / most))]


def tick_text(value: Number) -> str:
    """`1,500`, `0.25`, `2M`, `1e-7`: as short as it can be."""
    if value == 0:
        return "0"
    size = abs(value)
    for factor, unit in ((1e9, "B"), (1e6, "M")):
        if factor <= size < 1e13:
            return f"{value / factor:.4g}{unit}"
    if size >= 1e13 or size < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.4g}" if size < 1e4 else f"{value:,.0f}"


def _title(body: str) -> Markup:
    return Markup("<title>{}</title>").format(body) if body else Markup("")


def _n(value: Number) -> str:
    return escape(f"{value:.2f}".rstrip("0").rstrip("."))
