"""Numbers as a person reads them. Imports no torch."""

import math

Number = int | float
BYTE_UNITS = ("B", "KiB", "MiB", "GiB")


def count(value: Number) -> str:
    """`512`, `26.5 K`, `6.62 M`, `1.35 B`: three digits."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f}"


def digits(value: Number) -> str:
    """Three of them, or all before the point."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def bytes_of(value: Number) -> str:
    for unit in BYTE_UNITS:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{digits(value)} {unit}"
        value /= 1024
    return f"{digits(value)} TiB"


def duration(seconds: Number) -> str:
    """`1.20 ms`, `0.41 s`, `35 s`, `4 min 10 s`, `2 h 05 min`."""
    if seconds < 0.1:
        return f"{digits(1000 * seconds)} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def percent(ratio: Number, places: int = 1) -> str:
    return f"{100 * ratio:.{places}f}%"


def change(before: Number, after: Number) -> str:
    """`-30.0%`, `+8.5%`; nothing where there is nothing to compare with."""
    return f"{after / before - 1:+.1%}".replace("-", "\u2212") if before and math.isfinite(after / before) else ""


def plus_minus(value: Number, stderr: Number | None) -> str:
    """`26.23 ± 0.41`: as many places as the error has, two of its digits."""
    if stderr is None or not math.isfinite(stderr) or stderr <= 0 or not math.isfinite(value):
        return f"{value:,.2f}" if math.isfinite(value) and 0.01 <= abs(value) < 1e6 else digits(value)
    places = min(6, max(0, 1 - math.floor(math.log10(stderr))))
    return f"{value:,.{places}f} ± {stderr:,.{places}f}" if abs(value) < 1e9 else f"{value:.2e} ± {stderr:.1e}"
