"""`--format gguf`: the pruned checkpoint, and the same as llama.cpp's file beside its weights."""

from pathlib import Path

from secateur.allocation.choose import counts, layer_sizes
from secateur.allocation.uniform import Uniform
from secateur.axes import Sizes
from secateur.calibration.tokens import load_tokenizer
from secateur.errors import UserError
from secateur.export.gguf_arch import choose
from secateur.export.gguf_tokenizer import vocabulary
from secateur.export_settings import ExportSettings
from secateur.recipes.export import check_package, export
from secateur.recipes.job import Job
from secateur.reporter import Reporter


def check_gguf(job: Job) -> None:
    """Before any work: whether llama.cpp has an architecture for what is expected, and the tokenizer. Raises `UserError` if not."""
    check_package()
    try:
        choose(job.target, _expected(job))
        tokenizer = load_tokenizer(job.source.directory, trust_remote_code=job.settings.trust_remote_code)
        vocabulary(tokenizer, job.binding.sizes["vocab"])
    except UserError as error:
        raise UserError(f"--format gguf: {error} Or leave out --format.") from None


def add_gguf(job: Job, report: Reporter) -> str:
    """Write the file, in f16, into the directory that was just published; its path comes back."""
    assert job.settings.out is not None
    out = job.settings.out
    settings = ExportSettings(
        model=str(out), to="gguf", out=Path(out, f"{out.resolve().name}.gguf"), trust_remote_code=job.settings.trust_remote_code
    )
    return export(settings, report).out


def _expected(job: Job) -> list[Sizes]:
    """Sizes of the layers that stay: as the budget makes them in equal layers, and one of them whole where they will not be equal."""
    binding = job.binding
    if job.leaving:
        return [binding.sizes] * (binding.num_layers - job.leaving)
    sizes: list[Sizes] = list(layer_sizes(binding, counts(binding, job.scope, Uniform(), job.budget)))
    return [binding.sizes, *sizes[1:]] if not job.allocator.equal else sizes
