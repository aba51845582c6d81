"""`secateur eval`: perplexity, or the tasks of lm-eval."""

from typing import Annotated, Literal

from typer import Option

from secateur.cli.options import DATA, TEXT, AllowOverlap, Device, Dtype, Json, MaxMemory, Model, RunDir, TrustRemoteCode
from secateur.cli.output import Output
from secateur.cli.probing import PROBING, Attention, Calibration, Dynamic, Griffin, Memory, Paper, Samples, Seed, Small, State
from secateur.cli.recording import leave_record

TASKS = "Tasks"

Tasks = Annotated[
    str | None,
    Option(
        metavar="TASK,...",
        help="Evaluate on tasks of lm-eval instead: names, FILE.jsonl, NAME=FILE.jsonl, FILE.yaml, or directories of these.",
        rich_help_panel=TASKS,
    ),
]
Limit = Annotated[int | None, Option(help="Rows of each task at most.", rich_help_panel=TASKS)]
NumFewshot = Annotated[
    int | None, Option(help="Examples in each prompt, instead of the task's own number.", rich_help_panel=TASKS)
]
Protocol = Annotated[
    Literal["wikitext2@2048", "wikitext2@128", "ptb@128"] | None,
    Option(help="Text and window of published figures; --text may be a local copy of the text.", rich_help_panel=DATA),
]
Text = Annotated[str | None, Option(metavar=TEXT, help="Text to measure on; see `secateur ls presets`.", rich_help_panel=DATA)]
SeqLen = Annotated[
    int, Option(help="Tokens of a window; windows do not overlap. With tasks, of a calibration sequence.", rich_help_panel=DATA)
]
MaxTokens = Annotated[int | None, Option(help="Measure on this many tokens at most.", rich_help_panel=DATA)]
Bos = Annotated[
    Literal["auto", "none", "each"],
    Option(help="Start-of-sequence token before each window; auto does what the tokenizer does.", rich_help_panel=DATA),
]
Batch = Annotated[int, Option(help="Windows, or requests of tasks, that one choice is made for.", rich_help_panel=PROBING)]


def evaluate(
    model: Model,
    tasks: Tasks = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    protocol: Protocol = None,
    text: Text = None,
    seq_len: SeqLen = 128,
    max_tokens: MaxTokens = None,
    bos: Bos = "auto",
    dynamic: Dynamic = None,
    small: Small = None,
    batch: Batch = 20,
    state: State = None,
    attention: Attention = None,
    paper: Paper = False,
    griffin: Griffin = False,
    memory: Memory = "kept",
    calibration: Calibration = None,
    allow_overlap: AllowOverlap = False,
    samples: Samples = 128,
    seed: Seed = 0,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    run_dir: RunDir = None,
    json: Json = False,
) -> None:
    """Measure a model's perplexity, one layer in memory at a time; with --dynamic or --small, whole and pruned anew for each batch.

    With --tasks, how it does on tasks of lm-eval: whole, as it is or with one of these.
    """
    options = {**locals()}  # the parameters, before anything else has a name here
    del options["json"], options["run_dir"]
    with Output(json) as output:
        from secateur.task_settings import TaskSettings, settings_of

        settings = settings_of(options)
        if isinstance(settings, TaskSettings):
            from secateur.recipes.evaluate_tasks import evaluate_tasks

            scored = evaluate_tasks(settings, output.reporter)
            leave_record(output, "eval", settings, scored.table(), run_dir=run_dir)
            output.show("Tasks", scored.to_json() if json else scored.table())
            return
        if not settings.probes:
            from secateur.recipes.evaluate import evaluate as run

            found = run(settings.plain(), output.reporter)
        else:
            from secateur.recipes.evaluate_probed import evaluate_probed

            found = evaluate_probed(settings, output.reporter)
        leave_record(output, "eval", settings, found.to_json(), run_dir=run_dir)
        output.show("Perplexity", found.to_json())
