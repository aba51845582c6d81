"""What left each layer, and what the scores make of it. Imports no torch."""

from secateur.reporting.facts import CostFacts, FigureFacts, PruneFacts
from secateur.reporting.kept import AXES
from secateur.reporting.parts import Table
from secateur.reporting.words import digits, percent, plus_minus


def cost_table(figures: FigureFacts) -> Table | None:
    """What left each layer: units, parameters, and what the scores make of it."""
    dropped = [i for i, kept in enumerate(figures.layers) if kept is None]
    share = any(c.share is not None for c in figures.costs)
    loss = any(c.loss is not None for c in figures.costs)
    rows = [_cost_row(c, share=share, loss=loss) for c in figures.costs]
    blank = [""] * (share + loss)
    rows += [[str(i), "the whole layer", "", f"{figures.layer_parameters:,}", *blank] for i in dropped]
    if not rows:
        return None
    total = sum(c.parameters for c in figures.costs) + len(dropped) * figures.layer_parameters
    losses = [c.loss for c in figures.costs if c.loss is not None]
    rows.insert(0, ["all", "", "", f"{total:,}", *([""] if share else []), *([digits(sum(losses))] if loss else [])])
    head = ["layer", "what", "left", "parameters", *(["score"] if share else []), *(["loss"] if loss else [])]
    return Table(head=head, rows=rows, numeric=len(head) - 2)


def _cost_row(cost: CostFacts, *, share: bool, loss: bool) -> list[str]:
    row = [str(cost.layer), AXES.get(cost.axis, cost.axis), f"{cost.left:,} of {cost.of:,}", f"{cost.parameters:,}"]
    row += ["" if cost.share is None else percent(cost.share, 2)] if share else []
    return row + (["" if cost.loss is None else digits(cost.loss)] if loss else [])


def cost_note(figures: FigureFacts, facts: PruneFacts) -> str:
    told = ["Parameters that left each layer."]
    if any(c.share is not None for c in figures.costs):
        told.append("Score: the share of the layer's scores that left with them.")
    if any(c.loss is not None for c in figures.costs):
        told.append("Loss: by how much the scores predict that the loss rises, in nats per token, if nothing else changes.")
        if facts.loss_rise is not None:
            told.append(f"Measured, all together and repaired: {plus_minus(facts.loss_rise, facts.loss_rise_stderr)}.")
    return " ".join(told)
