"""What every text encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kandinsky.model.values import TextEmbeddings

if TYPE_CHECKING:
    from PIL.Image import Image


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to the states a denoiser attends to."""

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts: tokens [B, L, C], pooled [B, P], and a mask [B, L] where lengths differ.

        still: the result will be one image; encoders with a template for images then use it.
        """
        ...


@runtime_checkable
class ReadingTextEncoder(TextEncoder, Protocol):
    """Also tells what it did not understand."""

    def unused(self, prompt: str) -> tuple[str, ...]:
        """Words of a prompt that have no part in the result, in their order."""
        ...


@runtime_checkable
class ImageTextEncoder(TextEncoder, Protocol):
    """Also reads prompts that speak of an image, for image editing."""

    def encode_with_images(self, prompts: Sequence[str], images: Sequence[Image]) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts, each shown its image (at the size of the result)."""
        ...


@runtime_checkable
class PromptWriter(TextEncoder, Protocol):
    """Also writes short prompts out at length."""

    def expand(self, prompt: str, *, task: str, seed: int, image: Image | None = None) -> str:
        """The prompt written out. image: what the task is given, at its full size."""
        ...


@runtime_checkable
class ContrastingTextEncoder(TextEncoder, Protocol):
    """Encodes a negative prompt in dependence on the prompt it is used with."""

    def encode_against(self, negative: str, prompt: str) -> TextEmbeddings:
        """Embeddings of one negative prompt."""
        ...


@runtime_checkable
class GapTextEncoder(TextEncoder, Protocol):
    """Encodes prompts for an interpolation network that has a projection of its own."""

    def encode_for_gaps(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts for the network that fills gaps."""
        ...
