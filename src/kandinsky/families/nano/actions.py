"""What a player can do in Nano's small world, as the denoiser is told of it.

An action is one more state behind the text network's, and a part of the pooled one, as its slots are: fixed values of
unit variance, drawn once. What they do is learned by the denoiser alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kandinsky.errors import RequestError
from kandinsky.model.values import TextEmbeddings

ACTIONS = ("stay", "left", "right", "jump", "grow")
ACTION_SEED = 20261130
SHARE = 0.5  # of an action in the pooled state, in which the concept shall stay the loudest


def told(text: TextEmbeddings, actions: Sequence[str]) -> TextEmbeddings:
    """Text states with an action of each prompt.

    Args:
        text: Of B prompts, all of their states counting.
        actions: Of each, one of ``ACTIONS``.

    Returns:
        One state more for each prompt, behind the others.

    Raises:
        RequestError: There is no such action.
    """
    if unknown := [action for action in actions if action not in ACTIONS]:
        raise RequestError(f"Nano's world knows no action `{unknown[0]}`: use {', '.join(ACTIONS)}")
    generator = torch.Generator().manual_seed(ACTION_SEED)
    widths = text.tokens_BLC.shape[-1], text.pooled_BC.shape[-1]
    tokens_VC, pooled_VC = (torch.randn(len(ACTIONS), width, generator=generator) for width in widths)
    chosen = [ACTIONS.index(action) for action in actions]
    token_B1C = tokens_VC[chosen][:, None].to(text.tokens_BLC)
    pooled_BC = text.pooled_BC + SHARE * pooled_VC[chosen].to(text.pooled_BC)
    return TextEmbeddings(torch.cat((text.tokens_BLC, token_B1C), dim=1), pooled_BC, text.mask_BL)
