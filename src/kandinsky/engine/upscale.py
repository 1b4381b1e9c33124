"""A result larger than a model makes it: what a second stage by the same model is asked for, and its tiles. No torch.

The second stage takes the finished clip as a source at the larger size, adds noise up to the time `strength`, and takes
the sampler's remaining steps. It sees the clip in tiles of the size that the model was trained for, and in windows as
long clips are made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kandinsky.diffusion.tile_starts import starts
from kandinsky.errors import RequestError
from kandinsky.media.image import LONGEST_SIDE, nearest_shape
from kandinsky.model.checks import shown
from kandinsky.printing import escaped

if TYPE_CHECKING:
    from kandinsky.engine.windows import Long
    from kandinsky.media.input_clip import InputClip
    from kandinsky.model.card import Card
    from kandinsky.model.values import LatentShape, Request, VideoShape

STRENGTH = 0.4  # time that the second stage begins at, by default
SHARE = 1 / 4  # of a tile that it shares with its neighbour, at least
MOST_FACTOR = 8.0
_FACTOR = re.compile(r"\s*(\d{1,2}(?:\.\d{1,6})?)\s*[xX×]?\s*")
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*")
WORDS = ("strength", "mask", "span", "place", "source_prompt")  # of a video that is changed


@dataclass(frozen=True, slots=True)
class Upscale:
    """A second stage.

    Attributes:
        width: Of the result, in pixels.
        height: Of the result.
        strength: The time of the sampler that it begins at.
        long: Its windows, and which prompts hold when.
        source: The input video that is made larger; None for the clip of the first stage.
    """

    width: int
    height: int
    strength: float
    long: Long
    source: InputClip | None = field(default=None, compare=False)

    def settings(self) -> dict[str, Any]:
        """The values that determine the result, under the names a request uses."""
        found: dict[str, Any] = {"upscale": f"{self.width}x{self.height}", "upscale_strength": self.strength}
        if self.source is not None:
            found["video"] = {"file": self.source.file, "sha256": self.source.sha256, "given": self.source.given}
        return found

    def tiles(self, tile: LatentShape, spatial: int) -> int:
        """How many tiles of the first stage's latent cover the result.

        Args:
            tile: That latent.
            spatial: Pixels for each of its places, along a side.
        """
        rows, columns = self.height // spatial, self.width // spatial
        sides = ((rows, min(tile.height, rows)), (columns, min(tile.width, columns)))
        return math.prod(len(starts(size, side, overlap_of(side))) for size, side in sides)

    def share(self, steps: int, shift: float, *, is_flow: bool) -> float:
        """The share of the sampler's steps that are taken, for plans; exact for flow matching."""
        if not is_flow:
            return max(1, round(self.strength * steps)) / steps
        times = (shift * (1 - i / steps) / (1 + (shift - 1) * (1 - i / steps)) for i in range(steps))
        return max(1, sum(time <= self.strength + 1e-6 for time in times)) / steps


def overlap_of(tile: int) -> int:
    """What neighbouring tiles share at least, in the places of their size."""
    return max(1, int(tile * SHARE)) if tile > 1 else 0


def is_of_file(request: Request) -> bool:
    """Whether the video of a request is made larger as it is, without a first stage."""
    return (
        request.upscale is not None
        and request.video is not None
        and all(getattr(request, name) is None for name in WORDS)
    )


def wanted_size(request: Request, card: Card, base: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of an upscaled result.

    Args:
        request: Has ``upscale``.
        card: The model.
        base: Width and height of what is made larger; None where nothing was said of it.

    Raises:
        RequestError: It is no size or factor, is off the autoencoder's grid, or too large.
    """
    text = request.upscale if isinstance(request.upscale, str) else f"{request.upscale:g}"
    spatial = card.clip.spatial
    if (size := _SIZE.fullmatch(text)) is not None:
        width, height = int(size[1]), int(size[2])
    elif (factor := _FACTOR.fullmatch(text)) is not None:
        if not 1 < float(factor[1]) <= MOST_FACTOR:
            raise RequestError(f"upscale `{shown(text)}` is out of range: use a factor above 1, up to {MOST_FACTOR:g}")
        assert base is not None
        width, height = (round(side * float(factor[1]) / spatial) * spatial for side in base)
    else:
        raise RequestError(f"upscale `{shown(text)}` is no size: use WIDTHxHEIGHT, such as `1920x1080`, or `2`")
    if width % spatial or height % spatial or not 0 < max(width, height) <= LONGEST_SIDE:
        near = "x".join(str(min(max(round(side / spatial), 1) * spatial, LONGEST_SIDE)) for side in (width, height))
        raise RequestError(
            f"upscale `{shown(text)}` is {width}x{height}: use multiples of {spatial} up to {LONGEST_SIDE}, "
            f"such as `{near}`"
        )
    return width, height


def can_upscale(card: Card) -> bool:
    """Whether a model can make clips larger: it takes a video to change, and makes all of it at once."""
    return "source" in card.does.knows and card.keyframes is None and card.roll is None


def check_upscale(request: Request, card: Card) -> None:
    """Refuse models that cannot, and values that speak of what is not asked for.

    Raises:
        RequestError: So it is.
    """
    if request.upscale is None:
        if request.upscale_strength is not None:
            raise RequestError("`upscale_strength` is of a second stage, and none was asked for: give `upscale=2`")
        return
    if not can_upscale(card):
        other = card.conditions_with
        instead = (
            f"give the finished clip as `video=…` to `{other}`, which makes clips larger, its own too"
            if other
            else "use a model for `text-to-video` or `image-to-video`"
        )
        raise RequestError(
            f"`{card.id}` cannot make its result larger in a second stage, since it takes no video to change: leave "
            f"`upscale=…` out, or {instead}",
            hint="`kandinsky show ID` says what sizes a model makes; `kandinsky models` lists them all",
        )
    strength = request.upscale_strength
    if strength is not None and not 0 < strength <= 1:
        raise RequestError(
            f"upscale_strength `{strength:g}` is out of range: use a number above 0, up to 1; the default is {STRENGTH}"
        )


def base_size(request: Request, card: Card, source: InputClip | None = None) -> tuple[int, int] | None:
    """The size of the first stage, and of a tile, where a request does not name it: the model's nearest in shape.

    Args:
        request: The request.
        card: The model.
        source: The video that is made larger.

    Returns:
        Width and height; None where nothing says what shape is wanted.
    """
    if request.upscale is None:
        return None
    size = _SIZE.fullmatch(str(request.upscale))
    if size is not None and int(size[1]) and int(size[2]):
        width, height = int(size[1]), int(size[2])
    elif source is not None:
        width, height = source.first.size
    else:
        return None
    sizes = [(int(w), int(h)) for w, _, h in (text.partition("x") for text in card.clip.sizes)]
    return nearest_shape(width, height, sizes)


def upscale_of(
    request: Request, card: Card, shape: VideoShape, long: Long, source: InputClip | None = None
) -> Upscale | None:
    """The second stage of a request; None without one.

    Args:
        request: The request.
        card: The model.
        shape: Of the first stage, which is that of a tile.
        long: Windows of the second stage.
        source: The video that is made larger.

    Raises:
        RequestError: The size does not suit the first stage's.
    """
    if request.upscale is None:
        return None
    base = (shape.width, shape.height) if source is None else source.first.size
    width, height = wanted_size(request, card, base)
    if width < shape.width or height < shape.height or (width, height) == (shape.width, shape.height):
        raise RequestError(
            f"upscale `{width}x{height}` is not larger than {shape.width}x{shape.height}, which `{card.id}` makes at "
            "once: ask for more, or leave `upscale=…` out"
        )
    if source is not None and (width < base[0] or height < base[1] or (width, height) == base):
        name = "the video" if source.file is None else f"`{escaped(source.file)}`"
        raise RequestError(
            f"upscale `{width}x{height}` is not larger than {base[0]}x{base[1]}, the size of {name}: ask for more, or "
            "leave `upscale=…` out"
        )
    strength = STRENGTH if request.upscale_strength is None else request.upscale_strength
    return Upscale(width, height, strength, long, source)


def is_cropped(upscale: Upscale, shape: VideoShape) -> bool:
    """Whether the result has another shape than what is made larger, so that something is cut off."""
    return not math.isclose(upscale.width * shape.height, upscale.height * shape.width, rel_tol=0.02)
