"""Texts with a name: one split to calibrate on and one to evaluate on, which share no document."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Preset:
    """`calibration` and `evaluation` are specs, as `text.read_text` takes them."""

    summary: str
    calibration: str
    evaluation: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "stdlib": Preset(
            summary="the Python standard library's own sources and help topics; needs no network",
            calibration="stdlib:calibration",
            evaluation="stdlib:evaluation",
        ),
        "wikitext2": Preset(
            # Every row counts, empty ones too: joined by blank lines they are the string that GPTQ, Wanda and LLM-Pruner use.
            summary="WikiText-2 raw, train and test split: the string that GPTQ, SparseGPT, Wanda and LLM-Pruner evaluate on",
            calibration="hub:Salesforce/wikitext?config=wikitext-2-raw-v1&split=train&column=text",
            evaluation="hub:Salesforce/wikitext?config=wikitext-2-raw-v1&split=test&column=text",
        ),
        "c4": Preset(
            summary="English C4, the first 2,000 documents of train and the first 1,100 of validation, streamed",
            calibration="hub:allenai/c4?config=en&split=train&column=text&first=2000",
            evaluation="hub:allenai/c4?config=en&split=validation&column=text&first=1100",
        ),
        "ptb": Preset(
            # The data set's own files are a script that `datasets` no longer runs; the hub keeps its rows as parquet.
            summary="Penn Treebank, train and validation split: the string that LLM-Pruner evaluates on",
            calibration="hub:ptb-text-only/ptb_text_only?split=train&column=sentence&revision=refs/convert/parquet",
            evaluation="hub:ptb-text-only/ptb_text_only?split=validation&column=sentence&revision=refs/convert/parquet",
        ),
        "tinystories": Preset(
            summary="TinyStories, the first 5,000 stories of train and of validation, streamed",
            calibration="hub:roneneldan/TinyStories?split=train&column=text&first=5000",
            evaluation="hub:roneneldan/TinyStories?split=validation&column=text&first=5000",
        ),
    }
)
