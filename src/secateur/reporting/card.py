"""The model card of a pruned checkpoint: what it came from, what left, how that was chosen, and what it did. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from secateur.reporting.command import command, named, portable
from secateur.reporting.facts import ReloadedFacts
from secateur.reporting.kept import kept_rows
from secateur.reporting.words import bytes_of, duration

TEMPLATE = """\
---
{{ front }}
---

# {{ name }}

A structurally pruned version of `{{ base }}`: whole {{ removed }} were removed by Secateur {{ environment.secateur }}; what
remains is a smaller, dense model{% if not r.stock %}, whose layers have sizes of their own{% endif %}.

| | before | after |
|---|---|---|
| parameters | {{ "{:,}".format(r.parameters_before) }} | {{ "{:,}".format(r.parameters_after) }} |
| bytes of weights | {{ "{:,}".format(r.bytes_before) }} | {{ "{:,}".format(r.bytes_after) }} |
{%- if r.perplexity_before is not none %}
| perplexity | {{ measured(r.perplexity_before, r.perplexity_stderr_before) }} | {# -#}
  {{ measured(r.perplexity_after, r.perplexity_stderr_after) }} |
{%- endif %}

{% if r.evaluation %}Perplexity: {{ r.evaluation }}.
{%- if r.perplexity_stderr_before is not none %} After ±: its standard error, over windows.{% endif %}
{%- if r.loss_rise_stderr is not none %} By window, the loss changes by {{ "%+.4f ± %.4f"|format(r.loss_rise, r.loss_rise_stderr) }}
nats per token.{% endif %}
{%- else %}Perplexity was not measured.{% endif %}

## Load

    {{ load }}
{% if carries_code %}
`modeling_secateur.py` beside the weights, which that runs, re-sizes the layers of the stock class. With Secateur installed no
code of this directory is run: `secateur.load`, or `from_pretrained` without the flag after `secateur.register()`.
{% endif -%}
{% for note in r.notes %}
{{ note }}.
{% endfor %}
## How it was pruned

- method `{{ r.method }}`, compensation `{{ r.compensate }}`,
  {%- if settings.axes %} allocation `{{ r.allocation }}`, axes {{ settings.axes|join(", ") }}{% else %} whole layers{% endif %}
- {{ "%.2f%%"|format(100 * r.ratio_reached) }} of the parameters of all transformer blocks were removed
  ({{ "%.2f%%"|format(100 * r.ratio) }} asked)
- calibration: {{ r.calibration }}; seed {{ settings.seed }}
{%- if r.overlap %}{% set shared = r.overlap.in_calibration_text_ratio %}
- {{ "%.2f%%"|format(100 * shared) }} of the runs of {{ r.overlap.shingle_tokens }} tokens that the perplexity is of occur in the
  calibration text{% if shared > r.overlap.allowed_ratio %}: **it was measured on text that was fitted to**{% endif %}
{%- endif %}
- in {{ duration(r.seconds) }}, with {{ bytes_of(r.peak_memory_bytes) }} of memory at the peak
- every layer read back and compared with the original, dropped units masked: largest relative error {{ "%.1e"|format(r.verified) }}
- {{ reloaded }}
- made with Python {{ environment.python }}, torch {{ environment.torch }}, transformers {{ environment.transformers }}

The command:

    {{ command }}

{% if kept %}What stays of each layer{% if removed != "layers" %} (units, of how many){% endif %}:

| layers | {{ kept.head|join(" | ") }} |
|---|{{ "---|" * kept.head|length }}
{% for row in kept.rows %}| {{ row.layers }} | {{ row.cells|join(" | ") }} |
{% endfor %}
{% endif -%}

The layers that stay, the kept units of each, the settings and versions are in `secateur.json`.
"""

UNITS = {"kv": "attention heads", "group": "query heads", "ffn": "MLP channels"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """`result` and `settings` as JSON objects."""

    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    base: str
    environment: Mapping[str, Any]
    figures: Mapping[str, Any]
    """What the pruning decided: see `recipes.figures`."""


def model_card(card: Card, source: Path) -> str:
    """Markdown with YAML front matter; the licence is carried over from the source's own card."""
    out, base, settings = str(card.result["out"]), named(card.base), portable(card.settings)
    load = str(card.result["load"]).replace(repr(out), json.dumps(Path(out).name, ensure_ascii=False))
    library = "secateur" if load.startswith("secateur.") else "transformers"
    removed = " and ".join(UNITS[axis] for axis in card.settings["axes"]) or "layers"
    front = {"base_model": base, "base_model_relation": "finetune", "library_name": library, "pipeline_tag": "text-generation",
             "tags": ["secateur", "pruned", "structured-pruning"], **_carried(source)}  # fmt: skip
    jinja = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return jinja.from_string(TEMPLATE).render(
        removed=removed, front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()), name=Path(out).name, base=base,
        r=card.result, settings=settings, environment=card.environment, load=load, command=command(settings),
        carries_code=library == "transformers" and not card.result["stock"], kept=kept_rows(card.figures), measured=_measured,
        reloaded=ReloadedFacts.model_validate(card.result["reloaded"]).told, duration=duration, bytes_of=bytes_of,
    )  # fmt: skip


def _measured(perplexity: float, stderr: float | None) -> str:
    return f"{perplexity:.3f}" if stderr is None else f"{perplexity:.3f} ± {stderr:.3f}"


def _carried(source: Path) -> dict[str, Any]:
    """Licence and language from the front matter of the source's card."""
    path = source / "README.md"
    if not path.is_file():
        return {}
    lines = path.read_text(errors="replace").split("\n")
    if lines[0].strip() != "---" or "---" not in (rest := [line.strip() for line in lines[1:]]):
        return {}
    found = {}
    for line in lines[1 : 1 + rest.index("---")]:
        key, _, value = line.partition(":")
        if key in ("license", "license_name", "license_link", "language") and value.strip():
            found[key] = value.strip().strip("\"'")
    return found
