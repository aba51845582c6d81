"""What the models of the benchmarks are trained with: tokenizer, optimisers, schedule, loop, held-out perplexity."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import tokenizers
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.calibration.stdlib import SEPARATOR

SEQ_LEN = 512
WARM, COOL = 0.02, 0.4  # fractions of the run spent warming up, cooling down


def train_tokenizer(documents: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocab` tokens; the separator of documents begins, ends and pads."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tok.train_from_iterator(documents, trainer)
    end = SEPARATOR
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=end, eos_token=end, pad_token=end, model_max_length=SEQ_LEN)


def encode(tok: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    return torch.tensor(tok(text, add_special_tokens=False, verbose=False)["input_ids"])


def shrink_writers(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Residual writers start small, so that depth does not blow up the stream."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * model.config.num_hidden_layers))
    return model


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    seen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in seen]
    return [
        torch.optim.Muon(matrices, lr=0.006, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def trapezoid(done: float) -> float:
    """The factor of the learning rate when the fraction `done` of a run is behind it."""
    return min(1.0, (done + 1e-9) / WARM, max(0.0, (1 - done) / COOL))


def batches(ids: torch.Tensor, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled windows of SEQ_LEN + 1 tokens, `[batch, SEQ_LEN + 1]`, for ever; each epoch at a new random offset."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < batch:
            offset = int(torch.randint(SEQ_LEN, (1,), generator=generator))
            order = offset + SEQ_LEN * torch.randperm((len(ids) - offset - 1) // SEQ_LEN, generator=generator)
        at, order = order[:batch], order[batch:]
        yield ids[at[:, None] + torch.arange(SEQ_LEN + 1)]


def fit(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    *,
    batch: int,
    seed: int,
    progress: Callable[[int], float],
    watch: Callable[[int], None],
) -> int:
    """Train in place until `progress(steps taken)`, the fraction of the run that is done, reaches one; the steps it took.

    The schedule follows that fraction, so a run bounded by the clock cools down as fully as one bounded by tokens.
    `watch(steps taken)` is called after each step.
    """
    device, opts, step = model.device, optimisers(model.train()), 0
    rates = [[group["lr"] for group in o.param_groups] for o in opts]
    start = time.perf_counter()
    draws = batches(ids, batch, seed)
    while (done := progress(step)) < 1:
        for o, base in zip(opts, rates, strict=True):
            for group, rate in zip(o.param_groups, base, strict=True):
                group["lr"] = rate * trapezoid(done)
        drawn = next(draws).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model.model(drawn[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden)
        loss = F.cross_entropy(logits.float().flatten(0, 1), drawn[:, 1:].flatten())
        loss.backward()
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        if step % 25 == 0:
            speed = (step + 1) * batch * SEQ_LEN / (time.perf_counter() - start)
            print(f"step {step} ({done:.1%}) loss {loss.item():.3f} {speed:.0f} tokens/s", flush=True)
        step += 1
        watch(step)
    return step


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor, seq_len: int, most: int = 10**9) -> float:
    """Over consecutive windows of `seq_len` of the first `most` tokens, no BOS; the model's device and mode are kept."""
    windows = ids[: min(len(ids), most) // seq_len * seq_len].view(-1, seq_len).to(model.device)
    total, count = 0.0, 0
    for batch in windows.split(16):
        logits = model(batch).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        count += batch[:, 1:].numel()
    return math.exp(total / count)
