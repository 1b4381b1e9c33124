"""What every text encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from kandinsky.types import TextStates


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to the states a denoiser attends to."""

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextStates:
        """States of B ≥ 1 prompts: tokens [B, L, C], pooled [B, P], and a mask [B, L] where lengths differ.

        still: the result will be one image; encoders with a template for images then use it.
        """
        ...
