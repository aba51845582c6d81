"""Loads directories with unequal layers as somebody without Secateur does; run by a fresh `python -I`.

Each argument is a directory with `given.safetensors` (token ids) and the model in `out`; the answers go to `found.safetensors`,
and the model, saved again, to `again`.
"""

import importlib.abc
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


def opened(directory):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, dtype=torch.float32, device_map=None, output_loading_info=True
    )
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def answers(model, ids, prompt):
    options = {"max_new_tokens": 26, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = {"logits": model(ids).logits, "greedy": model.generate(prompt, **options)}
    return {**found, "uncached": model.generate(prompt, use_cache=False, **options)}


for case in map(Path, sys.argv[1:]):
    given = load_file(case / "given.safetensors")
    model = opened(case / "out")
    found = answers(model, given["ids"], given["prompt"])
    model.save_pretrained(case / "again")
    again = answers(opened(case / "again"), given["ids"], given["prompt"])
    save_file(found | {f"again {name}": x for name, x in again.items()}, case / "found.safetensors")
assert "secateur" not in sys.modules
print("done")
