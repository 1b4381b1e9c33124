"""What a request brings besides words: images and videos that a result follows, each as one ``Condition``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandinsky.media.image import FittedImage
    from kandinsky.media.mask import Mask
    from kandinsky.media.mux import InputVideo
    from kandinsky.model.task import Use
    from kandinsky.model.values import Video


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of the clip, from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


FIRST_FRAME = Span(0, 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a result follows.

    kind:  `frames`: these frames of the clip are known; `source`: the image to be edited; `repaint`: an image of which
           the part under ``mask`` is made anew; `clip`: an input video that the result goes with.
    data:  the image, at the size it is used at, or the input video.
    at:    frames of the clip that it stands for, of kind `frames`.
    mask:  of kind `repaint`.   track: of the state.
    """

    kind: Use
    data: FittedImage | InputVideo | Video
    at: Span | None = None
    mask: Mask | None = None
    track: str = "video"

    @property
    def form(self) -> tuple[str, Span | None, str, bool]:
        """What conditions of requests in one batch must have in common."""
        return self.kind, self.at, self.track, self.mask is not None

    def record(self) -> dict[str, Any]:
        """For the recipe, under the names a request uses."""
        from kandinsky.media.image import FittedImage

        given: dict[str, Any] = {"image": self.data.record()} if isinstance(self.data, FittedImage) else {}
        return given if self.mask is None else given | {"mask": self.mask.record()}
