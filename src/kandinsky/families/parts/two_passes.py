"""Two passes of guidance in one call of a network: the texts of both as one batch, and the clips twice.

Legend: B batch; T H W C latent frames, rows, columns, channels; L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.model.values import TextEmbeddings


def beside(first: TextEmbeddings, second: TextEmbeddings) -> TextEmbeddings:
    """Both batches as one; rows that one has fewer of are masked. No mask where every token of both counts."""
    longest = max(first.tokens_BLC.shape[1], second.tokens_BLC.shape[1])
    pooled = torch.cat((first.pooled_BC, second.pooled_BC))
    both, tokens, masks = (first, second), [], []
    if first.tokens_BLC.shape[1:] == second.tokens_BLC.shape[1:] and all(one.mask_BL is None for one in both):
        return TextEmbeddings(torch.cat([one.tokens_BLC for one in both]), pooled)
    for states in both:
        B, L, _ = states.tokens_BLC.shape
        mask = states.tokens_BLC.new_ones(B, L, dtype=torch.bool) if states.mask_BL is None else states.mask_BL
        tokens.append(F.pad(states.tokens_BLC, (0, 0, 0, longest - L)))
        masks.append(F.pad(mask, (0, longest - L)))
    return TextEmbeddings(torch.cat(tokens), pooled, torch.cat(masks))


def together(
    run: Callable[[Tensor, Tensor, TextEmbeddings], Tensor], mine: TextEmbeddings, theirs: TextEmbeddings
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both passes as one of twice the batch.

    Args:
        run: Predicts of clips [2B, T, H, W, C], at one time for all or one for each, with texts of 2B prompts.
        mine: Of B prompts, or of one.
        theirs: Of the second pass.

    Returns:
        A callable of x [B, T, H, W, C] and t that gives both predictions.
    """

    def both(x_BTHWC: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        text = beside(mine.expand(len(x_BTHWC)), theirs.expand(len(x_BTHWC)))
        twice = t if t.ndim == 0 else t.repeat(2, *(1,) * (t.ndim - 1))
        first, second = run(x_BTHWC.repeat(2, 1, 1, 1, 1), twice, text).chunk(2)
        return first, second

    return both
