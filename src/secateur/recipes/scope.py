"""What may leave a model and how much must, as the settings say it; everything that cannot be is refused."""

from collections.abc import Sequence
from dataclasses import replace

from secateur import plan as plans
from secateur.allocation.allocator import Allocator, TryingAllocator
from secateur.allocation.choose import Scope, counts, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.axes import Sizes
from secateur.errors import UserError
from secateur.export.stock import Shape, accepted_heads, accepts_ffn, bound_with_biases, shape_of
from secateur.families.binding import Binding
from secateur.families.unequal import self_contained
from secateur.recipes.depth import protected_layers
from secateur.settings import Format, PruneSettings, parse_bytes, parse_count, spell_bytes
from secateur.streaming.checkpoint import Checkpoint
from secateur.surgery.compensate import Compensation


def scope_of(settings: PruneSettings, binding: Binding, compensation: Compensation) -> Scope:
    protected, asked = protected_layers(settings, binding), settings.axes or ()
    pruned = tuple(a for a in asked if a in binding.prunable)
    if "ffn" in pruned and settings.round_to >= (width := binding.sizes["ffn"]):
        raise UserError(
            f"--round-to {settings.round_to} was given, but an MLP of this model has {width} channels: none could leave. Give a "
            f"number below {width}, or prune other --axes."
        )
    if "group" in asked and "group" not in pruned:
        raise UserError(
            f"--axes group was given, but this {binding.model_type} model has one query head per kv head. Use --axes kv,ffn."
        )
    if "kv" in pruned and "group" in pruned:
        raise UserError(
            "--axes kv,group would prune the same heads twice. Give one of them, and ffn if MLP channels may leave too."
        )
    stock = settings.format == "stock"
    if stock and not accepts_ffn(binding):
        pruned = tuple(a for a in pruned if a != "ffn")
    added = new_biases(binding, compensation, pruned)
    heads = accepted_heads(binding, added) if stock else None
    scope = Scope.of(binding, pruned=pruned, protected=protected, round_to=settings.round_to, heads=heads)
    if not scope.axes:
        given, able = ",".join(asked), ",".join(binding.prunable) or "none"
        held = ", and a stock checkpoint can hold no fewer of them" if stock else ""
        raise UserError(
            f"nothing of this {binding.model_type} model can leave along --axes {given}: axes with more than one unit are {able}"
            f"{held}. Give other --axes{', or drop --format stock' if stock else ''}."
        )
    return scope


def leave_units(
    settings: PruneSettings,
    source: Checkpoint,
    scope: Scope,
    compensation: Compensation,
    allocator: Allocator | TryingAllocator,
) -> tuple[int, Shape]:
    """How many parameters leave, and how the result is expected to be written."""
    binding = source.binding
    try:
        budget = budget_of(settings, source, scope, new_biases(binding, compensation, scope.axes))
        expected = allocator if isinstance(allocator, Allocator) and not allocator.standardised else Uniform()
        kept = counts(binding, scope, expected, budget)  # also refuses what cannot be met
    except UserError as error:
        able = " and ".join(scope.axes)
        hint = f" Or drop --format stock, with which only {able} can leave here." if settings.format == "stock" else ""
        raise UserError(f"{error}{hint}") from None
    added = new_biases(binding, compensation, scope.axes)
    shape = shape_of(binding, layer_sizes(binding, kept), added, form=settings.format)
    if not allocator.equal:
        unequal = f"layers get unequal sizes, as --allocation {allocator.name} decides for all layers together"
        shape = replace(shape, stock=False, reasons=(unequal,), notes=(), self_contained=self_contained(binding))
    elif allocator.standardised:
        shape = _whatever_heads(binding, scope, layer_sizes(binding, kept), added, settings.format, shape)
    if settings.format == "stock" and not shape.stock:
        raise UserError(
            f"--format stock cannot be had: {'; '.join(shape.reasons)}. Use --allocation uniform without --protect and, where a bias "
            f"is in the way, --compensate least-squares; or drop --format stock."
        )
    return budget, shape


def _whatever_heads(
    binding: Binding, scope: Scope, sizes: Sequence[Sizes], added: tuple[str, ...], form: Format, shape: Shape
) -> Shape:
    """What can be said of the shape of equal layers while their number of heads is not known. `shape`: with one number of them."""
    able = [(axis, count) for axis in ("kv", "group") for count in scope.allowed.get(axis, ())]
    found = [
        shape_of(binding, [{**one, axis: count} if n in scope.layers else one for n, one in enumerate(sizes)], added, form=form)
        for axis, count in able
    ] or [shape]
    if len({one.stock for one in found}) > 1:
        why = next(one.reasons for one in found if not one.stock)
        return replace(
            shape, stock=False, reasons=("perhaps, which is known once it is known how many heads stay", *why), notes=()
        )
    return found[0] if len({one.notes for one in found}) == 1 else replace(shape, notes=())


def budget_of(settings: PruneSettings, source: Checkpoint, scope: Scope, added: tuple[str, ...]) -> int:
    """Parameters that must leave, from the ratio or the target; a target is met although the biases `added` arrive."""
    binding = source.binding
    block = plans.parameters(binding.layer.values(), binding.sizes) * binding.num_layers
    if settings.ratio is not None:
        return round(settings.ratio * block)
    total, size = source.num_parameters, source.num_bytes
    if settings.target_params is not None:
        leave, what = total - parse_count(settings.target_params), f"--target-params {settings.target_params}"
        has = f"{total:,} parameters"
    else:
        assert settings.target_size is not None
        per = sum(source.dtype(binding.layer_name(0, n)).itemsize for n in binding.layer) / len(binding.layer)
        leave, what = round((size - parse_bytes(settings.target_size)) / per), f"--target-size {settings.target_size}"
        has = f"{spell_bytes(size)} of weights"
    if leave <= 0:
        raise UserError(f"{what}: the model has {has} already. Give a smaller target.")
    leave += _arriving(binding, scope, added, leave)
    if leave >= block:
        raise UserError(
            f"{what}: {leave:,} parameters would have to leave, and the layers have {block:,} in all; embedding and head stay. "
            f"Give a larger target."
        )
    return leave


def _arriving(binding: Binding, scope: Scope, added: tuple[str, ...], leave: int) -> int:
    """Parameters of new biases in the whole stack, at the widths that are left when `leave` parameters leave."""
    block = plans.parameters(binding.layer.values(), binding.sizes) * binding.num_layers
    if not added or leave >= block:
        return 0
    layer = bound_with_biases(binding, added).layer
    sizes = layer_sizes(binding, counts(binding, scope, Uniform(), leave))
    return sum(plans.parameters((layer[n] for n in layer.keys() - binding.layer.keys()), s) for s in sizes)


def new_biases(binding: Binding, compensation: Compensation, pruned: tuple[str, ...]) -> tuple[str, ...]:
    """Readers that get a bias they do not have."""
    if not compensation.needs_bias_slot:
        return ()
    readers = {name for axis in pruned for name in binding.readers(axis)}
    return tuple(sorted(n for n in readers if n.removesuffix(".weight") + ".bias" not in binding.layer))
