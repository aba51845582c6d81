"""What is different in a job when whole layers leave, and not units of each."""

from secateur.allocation.choose import Scope
from secateur.allocation.depth import num_leaving
from secateur.errors import UserError
from secateur.export.stock import Shape, shape_of
from secateur.families.binding import Binding
from secateur.plan import Plan, parameters
from secateur.settings import Format, PruneSettings, parse_layers


def check_options(settings: PruneSettings) -> None:
    """Refuse what only units within layers have. The settings are resolved."""
    given = {
        "--axes": ",".join(settings.axes or ()), "--allocation": settings.allocation or "",
        "--compensate": settings.compensate if settings.compensate != "none" else "",
        "--round-to": settings.round_to if settings.round_to != 1 else "", "--ridge": "" if settings.ridge is None else settings.ridge,
    }  # fmt: skip
    for option, value in given.items():
        if value != "":
            raise UserError(
                f"{option} {value} was given, but with --method {settings.method} whole layers leave, and the others stay as they "
                f"are: it would have no effect. Leave it out, or choose a method that prunes heads and channels."
            )


def protected_layers(settings: PruneSettings, binding: Binding) -> frozenset[int]:
    protected = parse_layers(settings.protect or "", binding.num_layers)
    if len(protected) == binding.num_layers:
        raise UserError(
            f"--protect {settings.protect!r} protects all {binding.num_layers} layers: nothing could leave. Name fewer."
        )
    return protected


def layer_scope(settings: PruneSettings, binding: Binding) -> Scope:
    """Which layers may leave; no axis of any."""
    protected = protected_layers(settings, binding)
    return Scope(axes=(), layers=tuple(i for i in range(binding.num_layers) if i not in protected), allowed={})


def leave_whole(binding: Binding, scope: Scope, budget: int, form: Format) -> tuple[int, Shape]:
    """How many layers leave, and how the result is written. Raises `UserError` if that cannot be, whichever layers they are."""
    protected = [i for i in range(binding.num_layers) if i not in scope.layers]
    cost = parameters(binding.layer.values(), binding.sizes)
    count = num_leaving(budget, cost=cost, num_layers=binding.num_layers, protected=protected)
    stay = [binding.sizes] * (binding.num_layers - count)
    return count, shape_of(binding, stay, (), scope.layers[:count], form=form)  # the first ones move all others up


def left_whole(plan: Plan, ratio: float) -> tuple[str, ...]:
    """A note on the layers that left, and what came of the ratio that was asked for; none where none did."""
    if not plan.dropped:
        return ()
    several = len(plan.dropped) > 1
    return (
        f"layer{'s' if several else ''} {', '.join(map(str, plan.dropped))} of {len(plan.layers)} left whole: "
        f"{plan.settings['ratio_reached']:.1%} of the parameters of all blocks, the nearest to the {ratio:.1%} asked for",
    )
