"""What a request brings besides text: images and videos that the result follows, each as one ``Condition``."""

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
    """Frames of the clip from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int


FIRST_FRAME = Span(0, 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """One input that the result follows.

    Attributes:
        kind: `frames`: these frames of the clip are known; `source`: the image to edit; `repaint`: an image whose
            masked part is generated anew; `clip`: an input video that the result accompanies.
        data: The image, at the size it is used at, or the input video.
        at: For kind `frames`, the frames of the clip that it stands for.
        mask: For kind `repaint`, the inpainting mask.
        track: Track of the state.
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
        """The entry of the recipe, under the names a request uses."""
        from kandinsky.media.image import FittedImage

        given: dict[str, Any] = {"image": self.data.record()} if isinstance(self.data, FittedImage) else {}
        return given if self.mask is None else given | {"mask": self.mask.record()}
