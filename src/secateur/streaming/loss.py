"""The loss that gradients are of: the negative log-likelihood summed over all predicted tokens, in nats.

A sum and not a mean, so that gradients of different batches add up, and do not vanish in 16-bit types. Hugging Face's own loss
is float32 even for a float64 model; here logits are float32 at least and float64 where the model is.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import UserError
from secateur.streaming.finite import OVERFLOW, check_outer, finite
from secateur.streaming.walk import Walk

TOKENS = 512  # positions whose logits are in memory at once


def token_losses(
    logits: Float[Tensor, "block position vocab"], targets: Int[Tensor, "block position"]
) -> Float[Tensor, "block position"]:
    """Negative log-likelihood of each target."""
    scored = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(scored.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def block_losses(walk: Walk, ids: Int[Tensor, "block token"], last: Callable[[int, int], Tensor]) -> Float[Tensor, " block"]:
    """Summed loss of every block, float64. `last(start, stop)`: the blocks' last hidden states."""
    total = torch.zeros(len(ids), dtype=torch.float64)
    outer = walk.outer_after()
    with torch.no_grad():
        for a, b, positions in _pieces(ids):
            hidden = last(a, b).to(walk.device)
            total[a:b] += _loss(walk, hidden, outer, ids[a:b], positions).double().sum(1).cpu()
    return _sound(walk, total)


def head_gradient(
    walk: Walk, ids: Int[Tensor, "block token"], last: Callable[[int, int], Tensor]
) -> Iterator[tuple[int, Float[Tensor, "block token hidden"], Float[Tensor, " block"]]]:
    """(first block, gradient of the summed loss with respect to the last hidden state, loss of each block), piece by piece."""
    outer = walk.outer_after()
    step = max(1, TOKENS // ids.shape[1])
    for a in range(0, len(ids), step):
        b = min(a + step, len(ids))
        hidden = last(a, b).to(walk.device).clone().requires_grad_()
        total = torch.zeros(b - a, dtype=torch.float64)
        for _, _, positions in _pieces(ids[a:b]):
            with torch.enable_grad():
                loss = _loss(walk, hidden, outer, ids[a:b], positions)
                loss.sum().backward()
            total += loss.detach().double().sum(1).cpu()
        assert hidden.grad is not None
        yield a, of_live_tokens(hidden.grad, hidden), _sound(walk, total)


@torch.no_grad()
def of_live_tokens(
    gradient: Float[Tensor, "block token hidden"], hidden: Float[Tensor, "block token hidden"]
) -> Float[Tensor, "block token hidden"]:
    """The gradient without that of tokens whose hidden state is exactly zero.

    An embedding of zeros, as padding tokens have, stays zero through layers without biases, and there a norm's slope is one over
    the root of its epsilon: the gradient grows a thousandfold with each layer. Nothing of it acts on a weight or a unit, whose inputs
    at such a token are zero too; in sums over tokens that do not know the inputs it would be all that is left.
    """
    return gradient.masked_fill(~hidden.any(-1, keepdim=True), 0)


def _pieces(ids: Int[Tensor, "block token"]) -> Iterator[tuple[int, int, Int[Tensor, " position"]]]:
    """(first block, last, positions) whose logits fit in memory together; nothing follows a block's last token."""
    step = max(1, TOKENS // ids.shape[1])
    for a in range(0, len(ids), step):
        for p in range(0, ids.shape[1] - 1, TOKENS):
            yield a, min(a + step, len(ids)), torch.arange(p, min(p + TOKENS, ids.shape[1] - 1))


def _loss(walk: Walk, hidden: Tensor, outer: dict[str, Tensor], ids: Tensor, positions: Tensor) -> Tensor:
    logits = walk.template.epilogue(hidden, outer, positions.to(walk.device))
    return token_losses(logits, ids[:, positions + 1].to(walk.device))


def _sound(walk: Walk, losses: Float[Tensor, " block"]) -> Float[Tensor, " block"]:
    if not finite(losses):
        check_outer(walk.source)
        raise UserError(f"the loss is NaN or infinite although every layer's output is finite: in the head, {OVERFLOW}")
    return losses
