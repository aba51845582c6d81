"""The report: one HTML page of any number of records, with all it needs in it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from secateur.records import Record
from secateur.reporting.article import article
from secateur.reporting.candidates import Candidate, Gathered, Quality, shared_cells, shared_protocols
from secateur.reporting.facts import TimedCell
from secateur.reporting.parts import Plot, Table
from secateur.reporting.scatter import Axis, Point, pareto_plot
from secateur.reporting.series import compared, generated, studied
from secateur.reporting.svg import tick_text
from secateur.reporting.words import bytes_of, count, plus_minus
from secateur.version import __version__

TEMPLATE = "report.html.j2"
MARK = '<meta name="generator" content="secateur'
"""By which a page is known as a report."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    table: Table
    plots: list[Plot]
    missing: list[tuple[str, str]]
    """What was not measured, and the command that would."""


def html_report(records: Sequence[Record]) -> str:
    """The page. Raises `UserError` for a record that is damaged."""
    gathered = Gathered(records)
    candidates = gathered.candidates
    shown = [c for c in candidates if not c.dense or c.pruned]
    articles = [article(c, records) for c in shown]
    jinja = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = jinja.from_string((files("secateur.reporting") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=_title(shown, records), version=__version__, articles=articles,
        comparison=_comparison(candidates, records) if len(shown) > 1 else None,
        compares=[compared(r) for r in records if r.verb == "compare"],
        studies=[studied(r) for r in records if r.verb.startswith("study")],
        generations=[generated(r) for r in records if r.verb == "generate"],
        commands=list(dict.fromkeys(r.command for r in records if r.command)),
    )  # fmt: skip


def _title(shown: Sequence[Candidate], records: Sequence[Record]) -> str:
    if len(shown) == 1:
        return shown[0].label
    if shown:
        return f"{len(shown)} models"
    return (
        f"{records[0].verb} of {next((m.name for m in records[0].models.values()), 'a model')}" if len(records) == 1 else "Runs"
    )


def _comparison(candidates: Sequence[Candidate], records: Sequence[Record]) -> Comparison:
    protocols, cells = shared_protocols(candidates), list(shared_cells(candidates))
    plots, missing = [], []
    for protocol in protocols:
        _add(plots, _against_size(candidates, protocol))
        for cell in cells:
            _add(plots, _against_time(candidates, records, protocol, cell))
    if not protocols:
        missing.append((
            "Quality: no two of these models were measured on the same text and window. Measure each of them so:",
            "secateur eval MODEL --text held_out.txt",
        ))  # fmt: skip
    if not cells:
        missing.append(
            (
                "Speed: no two of these models were timed at the same shape. Time each of them so:",
                "secateur bench ORIGINAL MODEL",
            )
        )
    return Comparison(table=_table(candidates, protocols[:1], cells), plots=plots, missing=missing)


def _add(plots: list[Plot], plot: Plot | None) -> None:
    if plot is not None:
        plots.append(plot)


def _measured(candidates: Sequence[Candidate], protocol: str) -> list[tuple[Candidate, Quality]]:
    pairs = [(c, c.quality(protocol)) for c in candidates]
    return [(c, q) for c, q in pairs if q is not None]


def _against_size(candidates: Sequence[Candidate], protocol: str) -> Plot | None:
    points = [
        Point(number=c.number, x=c.parameters, y=q.perplexity, told=_told(c, q), y_ends=q.ends, dense=c.dense)
        for c, q in _measured(candidates, protocol) if c.parameters
    ]  # fmt: skip
    image = pareto_plot(
        points, Axis(name="parameters, fewer is smaller", spelled=tick_text), Axis(name="perplexity, less is better")
    )
    caption = f"{protocol}. Bars: one standard error. Joined: models that no other is better than in both."
    return Plot(image=image, title="Quality against size", caption=caption) if image else None


def _against_time(
    candidates: Sequence[Candidate], records: Sequence[Record], protocol: str, at: tuple[int, int, str]
) -> Plot | None:
    """In milliseconds; where several commands timed them, as shares of the time of the model that all were timed against."""
    found = [(c, q, t) for c, q in _measured(candidates, protocol) if (t := c.timing(*at)) is not None]
    benches = {timing.bench for *_, timing in found}
    shared = len({_reference(records[bench]) for bench in benches}) == 1
    relative = len(benches) > 1 and shared
    points = []
    for c, q, timing in found:
        cell = timing.cell
        middle, least, most = (
            _share(cell) if relative else (1000 * cell.seconds, 1000 * cell.seconds_least, 1000 * cell.seconds_most)
        )
        told = f"{_told(c, q)}, {timing.told}"
        points.append(
            Point(number=c.number, x=middle, y=q.perplexity, told=told, x_ends=(least, most), y_ends=q.ends, dense=c.dense)
        )
    batch, seq_len, phase = at
    name = f"{'share of the time' if relative else 'ms'} of {phase}, batch {batch} × {seq_len}"
    image = pareto_plot(points, Axis(name=name), Axis(name="perplexity, less is better"))
    against = f" Time: as a share of {records[min(benches)].models['model'].name}'s, in paired runs." if relative else ""
    apart = " Timed by separate commands: differences may be the machine's." if len(benches) > 1 and not shared else ""
    caption = f"{protocol}.{against or ' Time: median, bars from least to most.'}{apart}"
    return Plot(image=image, title=f"Quality against latency, {phase}", caption=caption) if image else None


def _reference(record: Record) -> str | None:
    """The model that the others of a record were timed against; another for each record that does not say."""
    model = record.models.get("model")
    return (model.identity if model else None) or record.origin


def _share(cell: TimedCell) -> tuple[float, float, float]:
    """Median of the time over the reference's, which is 1 of itself, and the ends of where it lies."""
    known = [cell.speedup, *reversed(cell.speedup_ends)]
    middle, least, most = (1 / value if value else 1.0 for value in known)
    return middle, least, most


def _told(candidate: Candidate, quality: Quality) -> str:
    return f"{candidate.number}. {candidate.label} ({candidate.method}): {plus_minus(quality.perplexity, quality.stderr)}"


def _table(candidates: Sequence[Candidate], protocols: Sequence[str], cells: Sequence[tuple[int, int, str]]) -> Table:
    head = ["", "model", "pruned", "parameters", "weights", *("perplexity" for _ in protocols)]
    head += [f"{phase} {batch} × {seq_len}" for batch, seq_len, phase in cells]
    rows = []
    for c in candidates:
        qualities = [c.quality(p) for p in protocols]
        timings = [c.timing(*at) for at in cells]
        rows.append([
            str(c.number), c.label, c.method, count(c.parameters) if c.parameters else "", bytes_of(c.bytes) if c.bytes else "",
            *("" if q is None else plus_minus(q.perplexity, q.stderr) for q in qualities),
            *("" if t is None else t.told for t in timings),
        ])  # fmt: skip
    return Table(head=head, rows=rows, numeric=len(head) - 3)
