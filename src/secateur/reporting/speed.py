"""Times and memory of one model, from whichever commands measured them. Imports no torch."""

from collections.abc import Sequence

from secateur.records import Record
from secateur.reporting.candidates import Candidate
from secateur.reporting.facts import BenchFacts, TimedCell
from secateur.reporting.parts import Plot, Table
from secateur.reporting.rows import Value, value_plot
from secateur.reporting.words import bytes_of, change, digits, duration


def shape(cell: TimedCell) -> str:
    return f"{cell.phase}, batch {cell.batch} × {cell.seq_len}"


def speed_plots(candidate: Candidate, records: Sequence[Record]) -> list[Plot]:
    """One plot for each record that timed the model against another."""
    plots = []
    for number in dict.fromkeys(t.bench for t in candidate.timings):
        cells = [t.cell for t in candidate.timings if t.bench == number and t.cell.speedup is not None]
        values = [
            Value(label=shape(c), value=c.speedup, low=c.speedup_ends[0], high=c.speedup_ends[1], told=f"{c.speedup:.2f}×",
                  cls="c0" if c.speedup > 1 else "c2")
            for c in cells if c.speedup is not None
        ]  # fmt: skip
        against = records[number].models.get("model")
        name = against.name if against else "the first model"
        image = value_plot(
            values, unit="times as fast", label=f"Speed of {candidate.label} against {name}", reference=1.0, named=name
        )  # fmt: skip
        if image:
            counts = sorted({cell.runs for cell in cells if cell.runs})
            runs = f"{' to '.join(map(str, counts[:: max(len(counts) - 1, 1)]))} paired runs" if counts else "paired runs"
            note = f"Ratios of {runs}: their median, which is not the ratio of the medians; whiskers: where it is, in 95 of 100 cases."
            plots.append(Plot(image=image, caption=f"{note} {_place(records[number])}"))
    return plots


def _place(record: Record) -> str:
    env = record.environment
    threads = f", {env['threads']} thread{'s' if env['threads'] != 1 else ''}" if "threads" in env else ""
    device = env.get("device", "cpu")
    on = str(env.get("cpu", "")) if str(device).startswith("cpu") else str(device)
    return f"Measured on {on or 'an unknown machine'}{threads}."


def timings(candidate: Candidate) -> Table | None:
    rows = [
        [
            t.cell.phase, str(t.cell.batch), str(t.cell.seq_len), duration(t.cell.seconds),
            f"{duration(t.cell.seconds_least)} to {duration(t.cell.seconds_most)}", digits(t.cell.tokens_per_second),
            "" if t.cell.speedup is None else f"{t.cell.speedup:.2f}×",
        ]
        for t in candidate.timings
    ]  # fmt: skip
    head = ("phase", "batch", "tokens", "median", "least to most", "tokens/s", "speed")
    return Table(head=head, rows=rows, numeric=6) if rows else None


def not_faster(candidate: Candidate, records: Sequence[Record]) -> list[str]:
    found = []
    for number in dict.fromkeys(t.bench for t in candidate.timings):
        models = records[number].models.items()
        names = [part for part, model in models if (model.name, model.probed) == (candidate.name, candidate.probed)]
        facts = BenchFacts.read(records[number])
        over = next((t.over for t in candidate.timings if t.bench == number), "the first model")
        found += [
            f"against {over}: {text}" for text in facts.not_faster if any(text.startswith(f"{name} is ") for name in names)
        ]
        found += [text for text in facts.advice if any(text.startswith(f"{name}, ") for name in names)]
    return found


def memory(candidate: Candidate) -> list[str]:
    told = []
    for memory in candidate.memory:
        before = next((m for m in candidate.base.memory if m.told == memory.told), None) if candidate.base else None
        was = f"{bytes_of(before.peak)} before, " if before else ""
        told.append(
            f"{was}{bytes_of(memory.peak)}{f' after ({change(before.peak, memory.peak)})' if before else ''}: {memory.told}."
        )
    return told
