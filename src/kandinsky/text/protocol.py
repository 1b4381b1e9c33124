"""The interface of every text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kandinsky.model.values import TextEmbeddings

if TYPE_CHECKING:
    from PIL.Image import Image


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes prompts to the embeddings a denoiser attends to."""

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Encode B ≥ 1 prompts.

        Args:
            prompts: The prompts.
            still: Whether the result will be one image; encoders with a template for images then use it.

        Returns:
            Tokens [B, L, C], pooled [B, P], and a mask [B, L] if lengths differ.
        """
        ...


@runtime_checkable
class ReadingTextEncoder(TextEncoder, Protocol):
    """Also reports what it did not understand."""

    def unused(self, prompt: str, *, beside_image: bool = False) -> tuple[str, ...]:
        """Words of a prompt that have no influence on the result, in their order.

        Args:
            prompt: The prompt.
            beside_image: Whether the result begins with an image that the encoder has seen.
        """
        ...


@runtime_checkable
class ImageTextEncoder(TextEncoder, Protocol):
    """Also encodes prompts that refer to an image, for image editing."""

    def encode_with_images(self, prompts: Sequence[str], images: Sequence[Image]) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts, each with its image (at the size of the result)."""
        ...


@runtime_checkable
class PromptWriter(TextEncoder, Protocol):
    """Also expands short prompts."""

    def expand(self, prompt: str, *, task: str, seed: int, image: Image | None = None) -> str:
        """Expand a prompt.

        Args:
            prompt: The prompt.
            task: The model's task.
            seed: Seed of the language model.
            image: The task's image, at its full size.

        Returns:
            The expanded prompt.
        """
        ...


@runtime_checkable
class ContrastingTextEncoder(TextEncoder, Protocol):
    """Encodes a negative prompt depending on the prompt it is used with."""

    def encode_against(self, negative: str, prompt: str) -> TextEmbeddings:
        """Embeddings of one negative prompt."""
        ...


@runtime_checkable
class GapTextEncoder(TextEncoder, Protocol):
    """Encodes prompts for an interpolation network that has a projection of its own."""

    def encode_for_gaps(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts for the network that fills gaps."""
        ...
