"""What a model or a plan is made of, read from headers alone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur import axes
from secateur.allocation.choose import Scope, counts, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.errors import UserError
from secateur.export.stock import shape_of
from secateur.families.binding import Binding
from secateur.plan import Plan, parameters, read_record, unit_cost
from secateur.recipes.flops import flops_per_token
from secateur.recipes.opening import open_model
from secateur.reporter import Reporter
from secateur.streaming.checkpoint import Checkpoint

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A model, or a plan; what does not apply is None."""

    target: str
    kind: str
    model_type: str
    num_layers: int
    parameters: int | None = None
    block_parameters: int | None = None
    bytes: int | None = None
    dtype: str | None = None
    flops_per_token: int | None = None
    pruned_by_secateur: str | None = None
    ratio_reached: float | None = None
    units: tuple[dict[str, Any], ...] = ()
    """One row for each prunable axis."""
    at_ratio: tuple[dict[str, Any], ...] = ()
    """One row for each ratio, under the uniform allocation."""
    layers: tuple[dict[str, Any], ...] = ()
    """One row for each layer, where layers differ or a plan says so."""

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {name: value for name, value in found.items() if value not in (None, ())}


def inspect(target: str, report: Reporter, trust_remote_code: bool = False) -> Inspection:
    """A model directory, a hub id, or a plan (`plan.json`, or the `secateur.json` beside a pruned model)."""
    path = Path(target)
    if path.is_file():
        return _plan(target, path)
    source, _ = open_model(target, dtype="auto", device="cpu", trust_remote_code=trust_remote_code)
    binding, record = source.binding, read_record(source.directory)
    sizes = [axes.kept_sizes(binding.sizes, source.kept(i)) for i in range(binding.num_layers)]
    return Inspection(
        target=target, kind="model", model_type=binding.model_type, num_layers=binding.num_layers,
        parameters=source.num_parameters, block_parameters=sum(parameters(binding.layer.values(), s) for s in sizes),
        bytes=source.num_bytes, dtype=str(source.dtype(binding.embedding)).removeprefix("torch."),
        flops_per_token=flops_per_token(binding, sizes), pruned_by_secateur=_origin(record),
        ratio_reached=record["plan"].settings.get("ratio_reached") if record else None,
        units=tuple(_units(binding)), at_ratio=() if source.layers else tuple(_at_ratio(source)),
        layers=tuple(_layers(binding, sizes)) if source.layers else (),
    )  # fmt: skip


def _plan(target: str, path: Path) -> Inspection:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{target!r} is not a plan: {error}. Give a model directory, a hub id, or a plan.json.") from error
    plan = Plan.from_json(json.dumps(body.get("plan", body) if isinstance(body, dict) else body))
    rows = []
    for number in range(len(plan.layers)):
        sizes = plan.layer_sizes(number)
        stays = number in plan.remaining
        rows.append({"layer": number} | {a: f"{sizes[a] if stays else 0} of {plan.sizes[a]}" for a in plan.prunable})
    return Inspection(
        target=target, kind="plan", model_type=plan.model_type, num_layers=len(plan.layers),
        ratio_reached=plan.settings.get("ratio_reached"), layers=tuple(rows),
    )  # fmt: skip


def _origin(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    result = record.get("provenance", {}).get("result", {})
    return f"{result.get('method')} at {result.get('ratio_reached', 0):.1%} from {result.get('model')}"


def _units(binding: Binding) -> Any:
    for axis in binding.prunable:
        cost = unit_cost(binding.layer.values(), binding.sizes, axis)
        yield {
            "axis": axis, "meaning": MEANING[axis], "units_per_layer": axes.num_units(axis, binding.sizes),
            "parameters_per_unit": cost, "readers": ", ".join(n.removesuffix(".weight") for n in binding.readers(axis)),
        }  # fmt: skip


MEANING = {"ffn": "MLP channel", "kv": "kv head with its query heads", "group": "query head"}


def _at_ratio(source: Checkpoint) -> Any:
    binding = source.binding
    pruned = tuple(a for a in ("kv", "ffn") if a in binding.prunable)
    scope = Scope.of(binding, pruned=pruned, protected=(), round_to=1, heads=None)
    whole = parameters(binding.layer.values(), binding.sizes) * binding.num_layers
    for ratio in RATIOS:
        try:
            sizes = layer_sizes(binding, counts(binding, scope, Uniform(), round(ratio * whole)))
        except UserError:
            continue
        gone = whole - sum(parameters(binding.layer.values(), s) for s in sizes)
        shape = shape_of(binding, sizes)
        yield {
            "ratio": ratio, **{axis: sizes[0][axis] for axis in pruned}, "parameters": source.num_parameters - gone,
            "flops_per_token": flops_per_token(binding, sizes), "stock": shape.stock,
        }  # fmt: skip


def _layers(binding: Binding, sizes: list[dict[str, int]]) -> Any:
    for number, at in enumerate(sizes):
        yield {"layer": number} | {a: f"{at[a]} of {binding.sizes[a]}" for a in binding.prunable}
