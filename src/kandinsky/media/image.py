"""Input images: read from anywhere, made upright and RGB, and fitted to a size that a model supports.

Imports neither torch nor Pillow until an image is opened.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kandinsky.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow raises for truncated or damaged files, depending on the format.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
# Beyond this the official rotary tables end: 128 tokens of 2 x 2 latents of 8 pixels.
LONGEST_SIDE = 2048


@dataclass(frozen=True, slots=True)
class InputImage:
    """An upright RGB image; two are equal if their digests are.

    Attributes:
        image: The image.
        sha256: Digest of the file, or of size and pixels for an image from memory.
        file: The path as given; None for an image from memory.
    """

    image: Image = field(compare=False, repr=False)
    sha256: str
    file: str | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return self.image.size


@dataclass(frozen=True, slots=True)
class FittedImage:
    """An input image and the size it is used at.

    Attributes:
        source: The image.
        width: Width in pixels.
        height: Height in pixels.
        how: "stretch" to the size (which has the image's aspect ratio, rounded to the grid); "shrink" to it with
            Pillow's own bicubic filter; or "cover" the size and crop the rest.
    """

    source: InputImage
    width: int
    height: int
    how: Literal["stretch", "shrink", "cover"]

    def pixels(self) -> Image:
        """The image at ``width`` x ``height``."""
        if self.how == "cover":
            return cover(self.source.image, self.width, self.height)
        if self.how == "shrink":
            from PIL import Image as Pillow

            return self.source.image.resize((self.width, self.height), Pillow.Resampling.BICUBIC)
        return resized(self.source.image, self.width, self.height)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The size the whole image is scaled to, and the left and top edge of the part that is used."""
        if self.how == "cover":
            return cover_window(self.source.size, self.width, self.height)
        return self.width, self.height, 0, 0

    @property
    def given(self) -> str:
        return "{}x{}".format(*self.source.size)

    @property
    def used(self) -> str:
        return f"{self.width}x{self.height}"

    def record(self) -> dict[str, Any]:
        """Its entry in a recipe."""
        return {"file": self.source.file, "sha256": self.source.sha256, "given": self.given, "used": self.used,
                "fit": self.how}  # fmt: skip


def open_image(source: Any) -> InputImage:
    """Read an image from a path, a Pillow image or an array, upright and in RGB.

    Args:
        source: The path of an image (of an animation its first frame is used), a ``PIL.Image.Image``, or an array [H,
            W, 1|3|4] or [H, W] of uint8.

    Returns:
        The image as ``upright_rgb`` returns it.

    Raises:
        RequestError: The file does not exist or cannot be read, or the source is something else.
    """
    from PIL import Image

    if isinstance(source, str | Path):
        return _read(Path(source))
    if isinstance(source, Image.Image):
        image = source
    elif hasattr(source, "__array_interface__"):
        image = _from_array(source)
    else:
        raise RequestError(
            f"image is a `{type(source).__name__}`: give a path, a Pillow image or an array [H, W, 3] of uint8"
        )
    try:
        image = upright_rgb(image, "the image")
    except _DAMAGED as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"the image in mode `{image.mode}` cannot be used: {error}") from error
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return InputImage(image, digest)


def _read(path: Path) -> InputImage:
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise RequestError(f"image `{path}` is not a file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"image `{path}` does not exist") from None
    except (OSError, ValueError, RuntimeError) as error:  # also names with a NUL, and `~nobody`
        raise RequestError(f"image `{path}` cannot be read: {getattr(error, 'strerror', None) or error}") from error
    what = f"image `{path}`"
    with opened(io.BytesIO(data), what) as image:
        return InputImage(upright_rgb(image, what), hashlib.sha256(data).hexdigest(), str(path))


def area_size(width: int, height: int, *, area: int, multiple: int) -> tuple[int, int]:
    """The size of about ``area`` pixels with the aspect ratio of ``width`` x ``height``, in multiples of ``multiple``.

    Source: kandinskylab/kandinsky-5, kandinsky/i2v_pipeline.py, resize_image. Unlike there, a side is never 0.
    """
    k = math.sqrt(area / (height * width)) / multiple
    return max(round(width * k), 1) * multiple, max(round(height * k), 1) * multiple


def size_within(width: int, height: int, *, area: int, multiple: int) -> tuple[int, int]:
    """The size scaled down to at most ``area`` pixels, in multiples of ``multiple``; a smaller one is not enlarged.

    Source: ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py. Unlike there, a side is never 0.
    """
    factor = max(1.0, math.sqrt(width * height / area))
    w, h = (max(round(side / factor) // multiple, 1) * multiple for side in (width, height))
    return w, h


def nearest_shape(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size (width, height) with the nearest aspect ratio; the first one wins a tie.

    Source: kandinskylab/kandinsky-5, kandinsky/i2i_pipeline.py.
    """
    return min(sizes, key=lambda size: abs(size[1] / size[0] - height / width))


def cover(image: Image, width: int, height: int) -> Image:
    """Scale an image to cover ``width`` x ``height``, and crop the centre.

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, resize_video. There a side that should fit exactly
    can come out one pixel short, which draws a black line; here it never does.
    """
    wide, high, left, top = cover_window(image.size, width, height)
    return resized(image, wide, high).crop((left, top, left + width, top + height))


def cover_window(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """For an image of this size: the size it is scaled to, and the left and top edge of the centre crop."""
    factor = min(size[1] / height, size[0] / width)
    wide, high = max(width, int(size[0] / factor)), max(height, int(size[1] / factor))
    return wide, high, round((wide - width) / 2), round((high - height) / 2)


def resized(image: Image, width: int, height: int) -> Image:
    """Resize, bilinear and antialiased as officially, in float32 and rounded once, which Pillow does not do for RGB."""
    import numpy as np
    from PIL import Image as Pillow

    if image.size == (width, height):
        return image
    planes = [
        np.asarray(plane.convert("F").resize((width, height), Pillow.Resampling.BILINEAR)) for plane in image.split()
    ]
    return Pillow.fromarray(np.stack(planes, axis=-1).round().clip(0, 255).astype(np.uint8))


@contextmanager
def opened(file: Path | io.BytesIO, what: str) -> Iterator[Image]:
    """Open an image file with Pillow; damage may show only when the block reads its pixels.

    Args:
        file: A path, or the file's bytes.
        what: What it is to the user, for messages.

    Yields:
        The image.

    Raises:
        RequestError: It is not an image, is damaged, or has more pixels than Pillow allows.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet():
            # Pillow only warns of sizes that would exhaust memory; here they are refused.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
        with image:
            if image.format == "EPS":  # Pillow would have Ghostscript run such a file, which is a program
                raise UnidentifiedImageError
            yield image
    except RequestError:
        raise
    except UnidentifiedImageError:
        raise RequestError(f"{what} is not an image that can be read: use a file such as .png, .jpg or .webp") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RequestError(f"{what} has more than {Image.MAX_IMAGE_PIXELS} pixels: use a smaller one") from None
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise RequestError(f"{what} is damaged: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Pillow's many warnings about damaged metadata, which are of no use to the user."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield


def upright_rgb(image: Image, what: str) -> Image:
    """Convert an image to RGB, rotated as its EXIF orientation says, transparency composited on white.

    Images of more than 8 bits per channel are scaled, not cut off: 16 bits from their full range, 32-bit integers and
    floats from the range that they use (0 to 1, to 255, to 65535, or to their largest value).

    Args:
        image: The image.
        what: What it is to the user, for messages.

    Returns:
        The RGB image.

    Raises:
        RequestError: It has no pixels, or its values or its mode are not those of an image.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    if 0 in image.size:
        raise RequestError(f"{what} has no pixels")
    is_16_bits = image.mode.startswith("I;16") or image.format == "PPM"  # Pillow reads a 16-bit PGM as mode "I"
    with quiet(), suppress(*_DAMAGED):  # an orientation in broken EXIF data is ignored
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _in_8_bits(image, what, is_16_bits=is_16_bits)
    if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:
        raise RequestError(f"{what} has the mode `{image.mode}`, which does not convert to RGB") from error


# A file that does not say its depth and holds no more than this has fewer than 16 bits: 10, 12, or a range of its own.
_LEAST_OF_16_BITS = 16384


def _in_8_bits(image: Image, what: str, *, is_16_bits: bool) -> Image:
    """Grey values of more than 8 bits as "L", or as "LA" if one of them stands for transparency."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    # Values of a float image may slightly overshoot their range after resampling.
    slack = 0.1 if image.mode == "F" else 0.0
    if not (math.isfinite(low) and math.isfinite(high)) or low < -slack * max(high, 1):
        raise RequestError(f"{what} holds numbers from {low:g} to {high:g}: scale them to 0 to 1, 255 or 65535")
    if image.mode == "F" and high <= 2:  # an 8-bit image of these would be black
        grey = values * 255.0
    elif high <= 255 * (1 + slack) and not is_16_bits:
        grey = values
    elif high <= 65535 * (1 + slack) and (is_16_bits or high > _LEAST_OF_16_BITS):
        grey = values // 256 if image.mode != "F" else values / 257
    else:
        grey = values * (255 / high)
    grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        return Pillow.fromarray(np.stack([grey, np.where(values == clear, 0, 255).astype(np.uint8)], axis=-1), "LA")
    return Pillow.fromarray(grey)


def _from_array(array: Any) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(array)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise RequestError(
            f"image is an array {list(values.shape)} of {values.dtype}: give [H, W, 3] of uint8, 0 to 255"
        )
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values)
