import subprocess
import sys

import pytest

from secateur.calibration import hub
from secateur.calibration.presets import PRESETS


def test_listing_presets_loads_neither_torch_nor_datasets():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from secateur.calibration.presets import PRESETS\n"
        "print(','.join(PRESETS), {'torch', 'datasets', 'transformers'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["stdlib,wikitext2,c4,ptb,tinystories", "set()"]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "stdlib"])
def test_hub_presets_name_everything_that_identifies_the_text(name: str):
    splits = []
    for spec in (PRESETS[name].calibration, PRESETS[name].evaluation):
        assert spec.startswith("hub:")
        assert "column=" in spec
        splits.append(hub.parse(spec.removeprefix("hub:"), split="no split is named").split)
    assert splits in (["train", "test"], ["train", "validation"])


def test_wikitext2_is_the_published_evaluation_text():
    assert hub.parse(PRESETS["wikitext2"].evaluation.removeprefix("hub:"), split="") == hub.Hub(
        name="Salesforce/wikitext", config="wikitext-2-raw-v1", split="test", column="text", first=None
    )
