"""What stands in for CogVLM2 where its repository is not at hand, in benchmarks of the other networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kandinsky.families.kandinsky4_v2a.cogvlm2 import CogVlm2Params
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.model.card import Card


def random_states(card: Card, device: torch.device, dtype: torch.dtype) -> RandomStates:
    """States of the encoder's number and width, of numbers from one seed."""
    width = V2AParams.from_dict(card.dit.params).encoder_dim
    return RandomStates(CogVlm2Params.from_dict(card.text.params).max_words, width, device, dtype)


class RandomStates(nn.Module):
    """A ``ClipEncoder`` without weights.

    Args:
        words: Embeddings of every prompt.
        width: Of an embedding.
        device: Where they are.
        dtype: Their type.
    """

    def __init__(self, words: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.words, self.width, self.place, self.kind = words, width, device, dtype

    def encode_frames(self, frames_THWC: Tensor, times_s: Tensor) -> Tensor:
        """One embedding a frame, [1, T, E]."""
        return self._states(1, len(frames_THWC))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[B, words, E]."""
        return self._states(len(prompts), self.words)

    def _states(self, *sizes: int) -> Tensor:
        made = torch.randn(*sizes, self.width, generator=torch.Generator().manual_seed(0))
        return made.to(self.place, self.kind)
