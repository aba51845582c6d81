"""The main job: a checkpoint in, a smaller ordinary checkpoint out, in the memory of about one layer."""

import math
import time
from dataclasses import replace

from secateur.export.hub import publish
from secateur.export.huggingface import published
from secateur.export.stock import shape_of
from secateur.recipes.as_gguf import add_gguf, check_gguf
from secateur.recipes.depth import left_whole
from secateur.recipes.differentiate import differentiate
from secateur.recipes.figures import figures
from secateur.recipes.forecast import Forecast, forecast
from secateur.recipes.job import Job, prepare
from secateur.recipes.quality import before_and_after, loss_of
from secateur.recipes.recording import leave
from secateur.recipes.refit import refit
from secateur.recipes.result import PruneResult
from secateur.recipes.steps import choose_layers, choose_plan, finish, gather, operate, scores_of
from secateur.recipes.texts import Texts
from secateur.recipes.trials import trials_of
from secateur.reporter import Reporter
from secateur.runs import RunDirectory, environment
from secateur.settings import PruneSettings, spell_bytes
from secateur.streaming.checkpoint import Checkpoint
from secateur.streaming.finite import check_outer
from secateur.streaming.memory import peak

UNEQUAL = (
    "The directory brings its own modelling file: it loads with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True), "
    "with no flag after secateur.register(), and with secateur.load"
)
OWN_CODE = "It loads with secateur.load, with the code that the model brings"


def prune(settings: PruneSettings, report: Reporter, texts: Texts | None = None) -> PruneResult | Forecast:
    """Prune a checkpoint; with `dry_run`, only say what it would take and give. `texts`: what the settings name, if open."""
    start = time.perf_counter()
    job = prepare(settings, texts)
    announce(job, report)
    drawn, held = job.blocks
    if settings.format == "gguf":
        check_gguf(job)
    if settings.dry_run:
        return forecast(job)
    assert settings.out is not None
    check_outer(job.source)
    run = RunDirectory.make(job.runs, model=job.source.fingerprint, blocks=drawn.fingerprint, dtype=str(job.dtype))
    run.write("settings.json", settings.to_json())
    run.write("environment.json", environment())
    with run.alone(lambda: report.say(f"another run is at work in {run.path}: waiting for what it finds")):
        store = gather(job, run, report)
        gradients, gradient = differentiate(job, run, report)
    if job.leaving:
        scores, plan = {}, choose_layers(job, store)
    else:
        scores = scores_of(job, store, gradients, report)
        plan = choose_plan(job, scores, trials_of(job, scores, store, run, report))
    run.write("plan.json", plan.to_dict())
    with run.alone(lambda: report.say(f"another run is at work in {run.path}: waiting for what it finds")):
        rewritten = refit(job, plan, run, report)
    before = loss_of(job, job.source, run, report, "evaluating the original")
    shape = shape_of(
        job.binding, [plan.layer_sizes(i) for i in plan.remaining], job.new_biases(), plan.dropped, form=settings.format
    )
    with published(settings.out) as fresh:
        shards, error, reloaded = operate(job, plan, shape, store, rewritten, fresh, report)
        written = Checkpoint.open(fresh, dtype=job.dtype, trust_remote_code=settings.trust_remote_code)
        after = loss_of(job, written, None, report, "evaluating the result")
        result = PruneResult(
            out=str(settings.out), model=settings.model, method=job.settings.method or "", compensate=job.compensation.name,
            allocation=None if job.leaving else job.allocator.name, gradient=gradient, ratio=job.budget / job.block_parameters,
            ratio_reached=plan.settings["ratio_reached"], parameters_before=job.source.num_parameters,
            parameters_after=shards.num_parameters - stored_twice(job), bytes_before=job.source.num_bytes,
            bytes_after=shards.num_bytes, **before_and_after(before, after),
            evaluation=held.protocol if held else None, calibration=drawn.protocol,
            overlap=job.texts.overlap.to_json() if job.texts.overlap else None, stock=shape.stock,
            load=shape.loading(str(settings.out)), gguf=None, published=None,
            notes=left_whole(plan, job.budget / job.block_parameters) + shape.notes + shape.reasons, verified=error,
            reloaded=reloaded.to_json(), run_dir=str(run.path),
            seconds=time.perf_counter() - start, peak_memory_bytes=peak(),
        )  # fmt: skip
        record = finish(job, result, plan, fresh, figures(job, plan, scores, store))
    leave(record, job.runs, report)
    if settings.format == "gguf":
        result = replace(result, gguf=add_gguf(job, report))
    if settings.push_to_hub is not None:
        report.say(f"publishing as {settings.push_to_hub}")
        result = replace(result, published=publish(settings.out, settings.push_to_hub, private=settings.private))
    run.log("pruned", **result.to_json())
    return result


def announce(job: Job, report: Reporter) -> None:
    """Say what will happen before it does, above all how the result will load."""
    if job.source.unused:
        report.warn(
            f"left out, as `from_pretrained` leaves it out: {', '.join(job.source.unused[:3])} ({len(job.source.unused)} in all)"
        )
    if job.shape.stock:
        report.say("the result will be a stock checkpoint" + "".join(f"; {note}" for note in job.shape.notes))
    else:
        report.warn(
            f"not a stock checkpoint: {'; '.join(job.shape.reasons)}. {UNEQUAL if job.shape.self_contained else OWN_CODE}"
        )
    report.say(f"memory at the peak will be about {spell_bytes(job.peak)}")


def stored_twice(job: Job) -> int:
    """Parameters of a tied head that the checkpoint stores all the same."""
    tied = job.binding.tied
    return math.prod(job.source.entry(tied).shape) if tied in job.source.keys and tied else 0
