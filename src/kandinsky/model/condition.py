"""What a request brings besides text: images and videos that the result follows, each as one ``Condition``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from kandinsky.media.image import FittedImage
    from kandinsky.media.input_clip import FittedClip
    from kandinsky.media.mask import Mask
    from kandinsky.media.mux import InputVideo
    from kandinsky.model.task import Use, Way
    from kandinsky.model.values import Video
    from kandinsky.weights.branch_files import BranchFile


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of the clip from ``start`` up to, but not including, ``stop``; latent frames in a ``Condition``."""

    start: int
    stop: int


FIRST_FRAME = Span(0, 1)


@dataclass(frozen=True, slots=True)
class Kept:
    """Places of the latent that stay as a source has them; two are equal if their digests are.

    Attributes:
        keep_THW: True where it stays, by latent frames, rows and columns.
        sha256: Digest.
    """

    keep_THW: np.ndarray = field(compare=False, repr=False)
    sha256: str


@dataclass(frozen=True, slots=True)
class Condition:
    """One input that the result follows.

    Attributes:
        kind: `frames`: these frames of the clip are known; `source`: the image to edit; `repaint`: an image whose
            masked part is generated anew; `clip`: an input video that the result accompanies; `init`: a clip that
            sampling begins from, or that is kept in some places; `control`, `reference`: what a branch is told.
        data: The image or the clip, at the size it is used at, or the input video.
        at: For kind `frames`, the latent frames that it stands for.
        mask: For kind `repaint`, the inpainting mask.
        track: Track of the state.
        way: How the model is given it.
        context: Frames at the beginning of the data that are encoded with the others, and whose latent is left out:
            an autoencoder that is causal in time gives the first frame of a clip a latent of its own kind.
        strength: For kind `init`, the time that sampling begins at; of a branch, what it adds is multiplied by this.
        kept: For kind `init`, what stays.
        prompt: For kind `init`, what it shows, if the difference of two prompts changes it.
        branch: For kinds `control` and `reference`, the branch.
        signal: For kind `control`, what is found in the clip first; empty for a clip that shows it.
        shares: For these kinds, the share of the steps at which the branch works.
        asked: What the request says of it besides its data, for recipes; nothing for an image that has a word of its
            own.
    """

    kind: Use
    data: FittedImage | FittedClip | InputVideo | Video
    at: Span | None = None
    mask: Mask | None = None
    track: str = "video"
    way: Way = "native"
    context: int = 0
    strength: float = 1.0
    kept: Kept | None = None
    prompt: str | None = None
    branch: BranchFile | None = None
    signal: str = ""
    shares: tuple[float, float] = (0.0, 1.0)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> tuple[object, ...]:
        """What conditions of requests in one batch must have in common."""
        own = (self.mask is not None, self.prompt is not None, self.context, self.strength, self.kept)
        beside = (None if self.branch is None else self.branch.sha256, self.signal, self.shares)
        return self.kind, self.at, self.track, self.way, *own, *beside

    def record(self) -> dict[str, Any]:
        """The entry of the recipe, under the names a request uses."""
        from kandinsky.media.image import FittedImage
        from kandinsky.media.input_clip import FittedClip

        if isinstance(self.data, FittedClip):
            return {"conditions": [{**self.asked, **self.data.record()}]}
        given: dict[str, Any] = {"image": self.data.record()} if isinstance(self.data, FittedImage) else {}
        return given if self.mask is None else given | {"mask": self.mask.record()}


def recorded(conditions: tuple[Condition, ...]) -> dict[str, Any]:
    """The entries of the recipe of all conditions of a job."""
    found: dict[str, Any] = {}
    for one in conditions:
        for name, value in one.record().items():
            found[name] = found[name] + value if name in found and isinstance(value, list) else value
    return found
