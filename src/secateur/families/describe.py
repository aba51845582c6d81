"""The page docs/families.md, made from the tables. Imports no torch."""

from secateur.families import TABLES, family_for
from secateur.families.family import Family, Stock

AXES = ("ffn", "kv", "group")  # `axes.PRUNABLE`, which comes with torch

HEAD = """\
# Model families

This page is generated from the tables in `src/secateur/families`.

Every weight of a family is described by a string that names its axes, for example `(kv group head_dim) <- hidden`.
Three axes can be pruned: `ffn` (channels of the MLP), `kv` (a key-value head together with its query heads; in families
without grouped queries simply a head) and `group` (single query heads: a position within each key-value head, chosen
for each of them, equal in number).

## What the stock classes can hold

Any family can be pruned to any shape ([how that loads](loading.md)). The table says which shapes the stock
transformers class can hold too, so that `AutoModelForCausalLM.from_pretrained` reads the result as it is. All layers must
then have the same sizes. Whole layers can leave every family, and the result is stock; where a class makes a layer compute
something else under another number (GPT-2 with `scale_attn_by_inverse_layer_idx`), they can leave from the end only.

- *MLP width* and *head counts*: the sizes that the configuration can express.
- *Bias*: whether the two matrices that read the pruned units, attention output and MLP output, have a bias that can
  take up the mean of what is removed (`--compensate bias`). "always": every model of the type has it. A configuration
  field: the stock class makes the bias when the field is true (any further biases that the field brings are written as
  zeros). "none": no such bias.
"""

ADDING = """\
## Adding a family

1. Write the table: `src/secateur/families/NAME.py` with one `Family` (see `family.py` for the fields, `llama.py` and
   `bloom.py` for a plain and a difficult example). Name the axes of every weight; `->` and `<-` point from the side
   that is read. An axis that is laid out inside another goes in parentheses in memory order; blocks of unequal size are
   joined with `+`.
2. Read the layer's `forward`, in eager and sdpa attention, for module attributes that hold sizes (`num_heads`,
   `split_size`, `num_key_value_groups`): they go to `attrs`. A tensor argument with a head axis goes to `inputs`.
3. Say in `stock` which pruned shapes the configuration class accepts, and in `depth` which fields of the configuration
   say something of each layer (`layer_types` unless you say otherwise).
4. Add one line to `TABLES` in `src/secateur/families/__init__.py`. A package of your own registers an entry point
   instead: group `secateur.families`, name = the model type, value = `module:ATTRIBUTE`.
5. Add one tiny configuration to `tests/contract/tiny.py`, and one entry for each variant that has other weights. The
   contract tests then check that the table names every weight with its shape and no weight that does not exist, that
   slicing equals masking in float64 for every axis, that NaN in dropped units is never read, and that every statement
   of `stock` is true of the class.
6. Generate this page again: `python -m secateur.families.describe > docs/families.md`.
"""


def markdown() -> str:
    """The whole page."""
    columns = ("model type", "table", "prunable", "MLP width", "head counts", "attention output bias", "MLP output bias")
    rows = [columns, tuple("---" for _ in columns), *map(_row, TABLES)]
    return "\n".join([HEAD, *(f"| {' | '.join(row)} |" for row in rows), "", *_notes(), ADDING])


def _row(model_type: str) -> tuple[str, ...]:
    family = family_for(_Named(model_type))
    stock = family.stock[model_type]
    module = TABLES[model_type].partition(":")[0].rpartition(".")[2]
    width = "any" if "ffn" in stock.fields.values() else "none but the original"
    prunable = ", ".join(f"`{axis}`" for axis in AXES if axis in family.sizes)
    return (model_type, f"`{module}.py`", prunable, width, _heads(stock), *(_bias(family, stock, a) for a in ("kv", "ffn")))


def _heads(stock: Stock) -> str:
    if not any("kv" in product.split() for product in stock.fields.values()):
        return "none but the original: the class takes hidden / heads as the head's size"
    text = "divisors of `hidden_size`" if stock.heads_divide_hidden else "any"
    if stock.relabel:
        fields = ", ".join(f"`{name}={value}`" for name, value in stock.relabel_fields.items())
        text += f"; any other, without biases, as `{stock.relabel[1]}` with {fields}"
    return text + (" (see below)" if stock.heads_fixed else "")


def _bias(family: Family, stock: Stock, axis: str) -> str:
    reader = next(name for name, text in family.layer.items() if _reads(text, axis))
    if reader in stock.biased:
        return "always"
    return f"`{stock.bias_flags[reader]}`" if reader in stock.bias_flags else "none"


def _reads(text: str, axis: str) -> bool:
    """As `axes.Spec.reads`, which comes with torch."""
    if "<-" not in text and "->" not in text:
        return False
    read = text.partition("<-")[2] if "<-" in text else text.partition("->")[0]
    return axis in read.strip(" ()").split()


def _notes() -> list[str]:
    notes = [
        f"- {model_type}: the head counts cannot change where {why}."
        for model_type in TABLES
        for why in family_for(_Named(model_type)).stock[model_type].heads_fixed
    ]
    return [*notes, ""]


class _Named:
    def __init__(self, model_type: str) -> None:
        self.model_type = model_type


if __name__ == "__main__":
    print(markdown(), end="")
