"""What a model does: what it generates, what a request brings, and which stages lead there. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from kandinsky.model.lazy import Lazy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from kandinsky.engine.context import Context
    from kandinsky.engine.lesson import Lesson
    from kandinsky.engine.request import Job
    from kandinsky.engine.stages import Finish, Stage
    from kandinsky.model.card import Card
    from kandinsky.model.values import Request, TextEmbeddings

# What an image or a clip is to a model: frames of the result that are known, the source of an edit, an image of which a
# masked part is repainted, an input video that the result goes with, a clip that sampling begins from, or what a branch
# is told.
Use = Literal["frames", "source", "repaint", "clip", "init", "control", "reference"]
# How a model is given what is known of a result: as it was trained to be, or, without training, by replacing that part
# of the state with the known latent at the noise of each time.
Way = Literal["native", "replacement"]
# What may be known of a result: its first frame, any other frames, or a source clip of which parts are kept and the
# rest is generated from it with noise.
What = Literal["first frame", "frames", "source"]

GENERATE: Lazy[tuple[tuple[Stage, ...], Finish]] = Lazy("kandinsky.engine.stages:GENERATE")
ROLL: Lazy[tuple[tuple[Stage, ...], Finish]] = Lazy("kandinsky.engine.rolling:ROLL")
RESOLVE: Lazy[Callable[[Request, Card, bool], Job]] = Lazy("kandinsky.engine.request:resolve_clip")


class TrainingExamples(Protocol):
    """How examples of a task that is not about clips or images alone become tensors for training."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of an example's tensors: `latent` [1, T, H, W, C], and what else the network is told."""
        ...

    def shapes(self, card: Card) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors of the longest example."""
        ...

    def cut(self, path: Path, card: Card, seconds: float | None) -> Mapping[str, np.ndarray]:
        """Decode a file; without a network, in another process.

        Args:
            path: A file.
            card: The model.
            seconds: Longest example; the card's own where None.

        Raises:
            RequestError: The file cannot be used.
        """
        ...

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The tensors of what ``cut`` made."""
        ...

    def text(self, context: Context, caption: str) -> TextEmbeddings:
        """Embeddings of a caption."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a family.

    Attributes:
        makes: What it generates.
        image: Whether a request brings an image.
        image_is: What the image is to the model.
        mask: Whether a request also brings a mask over the image.
        video: Whether a request brings an input video.
        knows: What may be known of the result, and how the model is given it; what is not here is refused.
        text_sees_image: Whether the text encoder sees the image.
        stages: The stages from a job to its latents, in order, and what turns these into results.
        resolve: Checks a request and fills in the card's values; the third argument is whether an image is required.
        examples: How training examples are encoded, where they are not clips or images with captions.
        lessons: What each of its networks learns, by the name of the component, where that is more than a clip from
            its caption.
    """

    makes: Literal["video", "image", "sound"]
    image: Literal["none", "required", "optional"] = "none"
    image_is: Use = "frames"
    mask: bool = False
    video: bool = False
    knows: Mapping[What, Way] = field(default_factory=dict)
    text_sees_image: bool = False
    stages: Lazy[tuple[tuple[Stage, ...], Finish]] = GENERATE
    resolve: Lazy[Callable[[Request, Card, bool], Job]] = RESOLVE
    examples: Lazy[TrainingExamples] | None = None
    lessons: Mapping[str, Lazy[Lesson]] = field(default_factory=dict)


_UNTRAINED: Mapping[What, Way] = {"first frame": "replacement", "frames": "replacement", "source": "replacement"}
TEXT_TO_VIDEO = Task("video", knows=_UNTRAINED)
IMAGE_TO_VIDEO = Task("video", image="required", knows={**_UNTRAINED, "first frame": "native"})
TEXT_OR_IMAGE_TO_VIDEO = replace(IMAGE_TO_VIDEO, image="optional")
TEXT_TO_IMAGE = Task("image", knows={"source": "replacement"})
IMAGE_EDITING = Task("image", image="optional", image_is="source", text_sees_image=True)
INPAINTING = Task("image", image="required", image_is="repaint", mask=True)
VIDEO_TO_AUDIO = Task("sound", video=True)
