"""GRIFFIN: the whole prompt says which MLP channels what follows it runs on.   https://arxiv.org/abs/2404.01365

    z[t,k] <- z[t,k] / ||z[t,:]||        z what the MLP's output matrix reads: each token of a prompt counts alike
    s[k]    = ||z[:,k]||                 the norm over the prompt's tokens; the largest stay
    s       = sum over sequences i of s_i / sqrt(S_i)       one choice for a batch; S_i tokens of a prompt

`ProbePruning.griffin()` is the method; which parts of this are certain is in docs/papers/griffin.md.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def statistic(
    z: Float[Tensor, "sample token channel"], valid: Bool[Tensor, "sample token"] | None
) -> Float[Tensor, " channel"]:
    """s, float32 at least; `valid` is False where a token is padding. A token without any activation adds nothing."""
    found = z.new_zeros(z.shape[2], dtype=torch.promote_types(z.dtype, torch.float32))
    for number, row in enumerate(z):  # one at a time: copies in float32 of a whole batch would take more than the layer does
        row = row.to(found.dtype)
        length = torch.linalg.vector_norm(row, dim=1, keepdim=True)
        row = row / length.where(length != 0, 1)
        tokens = found.new_tensor(row.shape[0])
        if valid is not None:
            row = row.where(valid[number, :, None], 0)
            tokens = valid[number].sum().clamp_min(1).to(found.dtype)
        found += torch.linalg.vector_norm(row, dim=0) / tokens.sqrt()
    return found
