"""Loads what was written by the line that the tool stated, in a process without Secateur; run by a fresh `python -I`.

Arguments: a file of token ids, and a JSON list of cases: the line (`load`), where it is saved again, the file of its answers.
"""

import importlib.abc
import json
import sys
from pathlib import Path


class NoSecateur(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "secateur":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoSecateur())

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def opened(line):
    """The model that the line loads, of which nothing may be missing, left over or of another shape."""
    model, info = eval(line[:-1] + ", output_loading_info=True)", {"AutoModelForCausalLM": AutoModelForCausalLM})
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def answers(model, given):
    options = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = {"logits": model(given["ids"]).logits, "greedy": model.generate(given["prompt"], **options)}
    return {**found, "uncached": model.generate(given["prompt"], use_cache=False, **options)}


given = load_file(sys.argv[1])
for case in json.loads(Path(sys.argv[2]).read_text()):
    model = opened(case["load"])
    found = answers(model, given)
    model.save_pretrained(case["again"])
    again = answers(opened(case["load"].replace(repr(case["out"]), repr(case["again"]))), given)
    save_file(found | {f"again {name}": x for name, x in again.items()}, case["found"])
assert "secateur" not in sys.modules
print("done")
