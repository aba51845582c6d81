"""The steps of a pruning job that `recipes.prune` tells in order."""

from pathlib import Path
from typing import Any

from secateur.allocation.allocator import Trials, TryingAllocator
from secateur.allocation.choose import Scores, counts, kept_layers, ladders, score
from secateur.allocation.depth import least
from secateur.axes import Kept
from secateur.calibration.presets import PRESETS
from secateur.criteria.layer import LayerCriterion
from secateur.errors import UserError
from secateur.export.huggingface import check_disk, copy_companions, save_config, save_record
from secateur.export.stock import Shape
from secateur.families.unequal import unequal_config
from secateur.gradients.estimator import KINDS
from secateur.plan import Plan
from secateur.recipes.job import Job, plan_settings, written
from secateur.recipes.reload import Reloaded, check_reloaded
from secateur.recipes.result import PruneResult
from secateur.records import Model, Record, identity
from secateur.reporter import Reporter
from secateur.reporting.card import Card, model_card
from secateur.reporting.command import command, named, portable
from secateur.runs import RunDirectory, environment
from secateur.streaming.collect import Store, by_type, collect, disk_of, kinds_of, start_of
from secateur.streaming.walk import LAYER, Walk
from secateur.surgery.rebuild import Rebuild
from secateur.surgery.refit import Rewritten
from secateur.surgery.verify import Verifier
from secateur.surgery.write import Shards, write

VERIFIED = 1024  # tokens of the calibration batch that the written layers are checked on


def gather(job: Job, run: RunDirectory, report: Reporter) -> Store:
    """Walk the model for the statistics that the run directory lacks."""
    store = Store(directory=run.path)
    drawn, _ = job.blocks
    first = start_of(store, job.binding.num_layers, job.request, resume=job.settings.resume)
    if first == job.binding.num_layers:
        store.sweep()
        if job.request.kinds:
            report.say(f"statistics of all layers are in {run.path}: no walk needed")
        return store
    hidden = 2 * drawn.num_tokens * job.binding.sizes["hidden"] * job.dtype.itemsize
    statistics = max(disk_of(job.request, job.binding) - store.num_bytes, 0)
    assert job.settings.out is not None
    check_disk({run.path: statistics + hidden, job.settings.out: written(job)})
    walk = Walk.over(job.source, device=job.device, dtype=job.dtype, tokens=job.fit.tokens)
    layers = collect(walk, drawn.ids, job.request, store, spill=job.fit.spill, resume=job.settings.resume)
    try:
        for layer in report.track(layers, "gathering statistics", job.binding.num_layers - first):
            run.log("layer", number=layer)
    except OSError as error:
        raise UserError(
            f"gathering statistics failed at {error.filename or str(run.path)!r}: {error.strerror or error}. The layers finished "
            f"so far are kept: once this is mended, the same command with --resume goes on from there."
        ) from error
    return store


def scores_of(job: Job, store: Store, gradients: Store | None, report: Reporter) -> Scores:
    """A score for every unit in scope, from the statistics that were gathered."""
    assert not isinstance(job.criterion, LayerCriterion)
    binding, kinds = job.binding, kinds_of(job.criterion.needs)

    def seen(layer: int, axis: str) -> Any:
        found = {}
        places = {axis, *(name.rpartition(".")[0] for name, spec in binding.layer.items() if spec.mentions(axis))}
        for part, wanted in ((store, kinds - KINDS), (gradients, kinds & KINDS)):
            if part is not None and wanted:
                for place, values in by_type(part.load(layer, modules=places, kinds=wanted)).items():
                    found[place] = {**found.get(place, {}), **values}
        return found

    scored = score(
        job.source, job.scope, job.criterion, seen, standardised=job.allocator.standardised, seed=job.settings.seed
    )  # fmt: skip
    return dict(report.track(scored, "scoring", len(job.scope.layers) * len(job.scope.axes)))


def choose_plan(job: Job, scores: Scores, trials: Trials | None = None) -> Plan:
    """Allocate and choose. Deterministic: the same statistics and settings give the same plan, bit for bit, but for time limits.

    `trials`: for the allocators that measure.
    """
    binding = job.binding
    if isinstance(job.allocator, TryingAllocator):
        assert trials is not None, f"{job.allocator.name} measures"
        kept = job.allocator.decide(ladders(binding, job.scope, scores), job.budget, trials)
    else:
        kept = counts(binding, job.scope, job.allocator, job.budget, scores)
    return sealed(job, kept_layers(binding, job.scope, scores, kept))


def choose_layers(job: Job, store: Store) -> Plan:
    """The layers of least influence leave whole, and the others stay as they are."""
    assert isinstance(job.criterion, LayerCriterion)
    each = range(job.binding.num_layers)
    seen = [by_type(store.load(i, modules=[LAYER], kinds=kinds_of(job.criterion.needs)))[LAYER] for i in each]
    spared = set(each) - set(job.scope.layers)
    dropped = least([job.criterion.influence(one) for one in seen], job.leaving, protected=spared)
    return sealed(job, ({},) * job.binding.num_layers, dropped)


def sealed(job: Job, layers: tuple[Kept, ...], dropped: tuple[int, ...] = ()) -> Plan:
    """The plan with all it depends on, and the ratio that it reaches."""
    binding = job.binding
    plan = Plan(
        model_type=binding.model_type, fingerprint=job.source.fingerprint, sizes=dict(binding.sizes), layers=layers, dropped=dropped
    )  # fmt: skip
    left = plan.block_parameters(binding.layer.values())
    settings = plan_settings(job.settings) | {
        "ratio_reached": 1 - left / job.block_parameters,
        "calibration_blocks": job.blocks[0].fingerprint,
    }
    return Plan(
        model_type=plan.model_type, fingerprint=plan.fingerprint, sizes=plan.sizes, layers=layers, settings=settings,
        seed=job.settings.seed, dropped=dropped,
    )  # fmt: skip


def operate(
    job: Job, plan: Plan, shape: Shape, store: Store, rewritten: Rewritten | None, fresh: Path, report: Reporter
) -> tuple[Shards, float, Reloaded]:
    """Write and check the smaller weights and everything beside them; the largest relative error of a layer comes back, and what
    the directory was found to say."""

    def seen(layer: int, module: str) -> Any:
        return by_type(store.load(layer, modules=[module]))[module]

    rebuild = Rebuild(
        source=job.source, target=job.target, plan=plan, compensation=job.compensation, seen=seen,
        rewritten=rewritten.load if rewritten else lambda layer: {},
    )  # fmt: skip
    unequal = not shape.stock and shape.self_contained
    shards = Shards.of(rebuild, job.source, own=unequal)
    assert job.settings.out is not None
    check_disk({job.settings.out: shards.num_bytes})
    drawn, _ = job.blocks
    verifier = Verifier(rebuild, drawn.ids[: max(1, VERIFIED // drawn.seq_len)])
    layers = write(rebuild, job.source, shards, fresh, verifier)
    for _ in report.track(layers, "writing and checking", len(plan.remaining)):
        pass
    copy_companions(job.source.directory, fresh)
    # What is computed in is no property of the result: `from_pretrained` must find the type that is stored.
    shape.config.dtype = job.source.dtype(job.binding.embedding)
    left = [plan.layers[i] for i in plan.remaining]
    save_config(unequal_config(job.target, shape.config, left) if unequal else shape.config, fresh)
    save_record({"stock": shape.stock, "plan": plan.to_dict(), "provenance": {}}, fresh)
    report.say("loading the result")
    reloaded = check_reloaded(rebuild, fresh, drawn.ids[0], shape=shape, peak=job.peak, limit=job.limit)
    return shards, max(verifier.errors), reloaded


def finish(job: Job, result: PruneResult, plan: Plan, fresh: Path, figures: dict[str, Any]) -> Record:
    """The record, beside the weights with the plan, and the model card, with the figures in them."""
    texts = {"evaluation": job.settings.calibration} if job.settings.calibration in PRESETS else {}
    settings, found = portable(job.settings.to_json()), result.to_json()
    load = result.load.replace(repr(result.out), f'"{Path(result.out).name}"')
    record = Record.now(
        "prune", device=job.settings.device, command=command(settings), settings=settings, result=portable(found) | {"load": load},
        figures=figures, models={
            "before": Model(name=named(job.settings.model), identity=identity(job.source.directory)),
            "after": Model(name=Path(result.out).name, identity=identity(fresh)),
        },
    )  # fmt: skip
    save_record({"stock": result.stock, "plan": plan.to_dict(), "provenance": record.to_json() | {"texts": texts}}, fresh)
    card = Card(
        result=found, settings=job.settings.to_json(), base=job.settings.model, environment=environment(), figures=figures
    )  # fmt: skip
    (fresh / "README.md").write_text(model_card(card, job.source.directory))
    return record
