"""lm-eval around a model in memory: a Hugging Face model, or one that is pruned anew for each batch. Needs the extra `eval`."""

import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from jaxtyping import Bool, Int
from lm_eval.evaluator import simple_evaluate
from lm_eval.models import huggingface
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from torch import Tensor

from secateur.errors import UserError

RESAMPLES = 1_000
"""Of the rows, for the standard error of a metric that is no mean, such as a perplexity; lm-eval's 100,000 take minutes."""


HFLM: Any = huggingface.HFLM  # its decorators hide its type


class InMemory(HFLM):
    """lm-eval's own class; `masked` tells the model which tokens are padding, which a probe must not look at.

    lm-eval fills up a batch on the right with zeros and says nothing of it: what comes before them does not see them. But zero is a
    token too, so the few requests that end in it are remembered.
    """

    def __init__(self, model: Any, tokenizer: Any, *, masked: bool, batch: int) -> None:
        with _quiet():  # it warns of what is meant here
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, backend="causal")
        self._masked = masked
        self._ending_in_zero: set[tuple[int, ...]] = set()

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UserError(
                f"an answer of these tasks has {longest:,} tokens, and the model takes {self.max_length:,} at once. Leave the "
                f"task out, or shorten that row."
            )
        inputs = ((context + continuation)[-(self.max_length + 1) :][:-1] for _, context, continuation in requests)
        self._ending_in_zero = {tuple(ids) for ids in inputs if ids[-1] == 0}
        found = super()._loglikelihood_tokens(requests, *args, **kwargs)
        if any(math.isnan(likelihood) for likelihood, _ in found):
            raise UserError(
                "evaluating: a likelihood is NaN. A weight is damaged, or the arithmetic overflows: try a wider type, --dtype fp32 "
                "(or bf16 instead of fp16)."
            )
        return found

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if not self._masked:
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad():
            mask = real_tokens(inps, self._ending_in_zero).long()
            return self.model(inps, attention_mask=mask, use_cache=False).logits  # with a cache, GRIFFIN's prompt runs dense


def real_tokens(ids: Int[Tensor, "batch token"], ending_in_zero: set[tuple[int, ...]]) -> Bool[Tensor, "batch token"]:
    """Which tokens of a batch that is filled up with zeros are no padding, where few sequences end in a zero of their own."""
    rows = ids.tolist()
    lengths = []
    for row in rows:
        length = next((at for at in range(len(row), 0, -1) if row[at - 1] != 0), 0)
        own = (at for at in range(len(row), length, -1) if tuple(row[:at]) in ending_in_zero)
        lengths.append(next(own, length) if ending_in_zero else length)
    places = torch.arange(ids.shape[1], device=ids.device)
    return places < torch.tensor(lengths, device=ids.device)[:, None]


def run(
    model: Any, tokenizer: Any, tasks: Sequence[Any], *, masked: bool, batch: int, limit: int | None, num_fewshot: int | None
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` says of these tasks, in its schema, ready for JSON. `limit`: rows of each task at most.

    Raises `UserError` where the model's likelihoods are NaN.
    """
    with redirect_stdout(sys.stderr):  # where lm-eval says what it does, and stdout is for the result
        served = InMemory(model, tokenizer, masked=masked, batch=batch)
        found = simple_evaluate(
            model=served, tasks=list(tasks), num_fewshot=num_fewshot, batch_size=batch, device=str(served.device), limit=limit,
            bootstrap_iters=RESAMPLES, log_samples=False, task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip
    return json.loads(json.dumps(found, default=handle_non_serializable))


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
