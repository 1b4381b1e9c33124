"""Given images: read from anywhere, brought upright and to RGB, and fitted to a size a model knows.

Imports neither torch nor Pillow until an image is opened.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kandinsky.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# Beyond this the official rotary tables end: 128 tokens of 2 x 2 latents of 8 pixels.
LONGEST_SIDE = 2048


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB image.

    sha256: of the file, or of size and pixels where it came from memory; two pictures are equal when these are.
    file:   as it was given; None for one from memory.
    """

    image: Image = field(compare=False, repr=False)
    sha256: str
    file: str | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), after turning."""
        return self.image.size


@dataclass(frozen=True, slots=True)
class FittedImage:
    """A picture and the size it is used at.

    how: "stretch" it to the size (which has its shape but for the grid); "shrink" does the same by Pillow's own bicubic
         filter; or "cover" the size with it and cut the rest.
    """

    picture: Picture
    width: int
    height: int
    how: Literal["stretch", "shrink", "cover"]

    def pixels(self) -> Image:
        """The picture at ``width`` x ``height``."""
        if self.how == "cover":
            return cover(self.picture.image, self.width, self.height)
        if self.how == "shrink":
            from PIL import Image as Pillow

            return self.picture.image.resize((self.width, self.height), Pillow.Resampling.BICUBIC)
        return resized(self.picture.image, self.width, self.height)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The size the whole picture is brought to, and the left and upper edge of what is used of it."""
        if self.how == "cover":
            return cover_window(self.picture.size, self.width, self.height)
        return self.width, self.height, 0, 0

    @property
    def given(self) -> str:
        return "{}x{}".format(*self.picture.size)

    @property
    def used(self) -> str:
        return f"{self.width}x{self.height}"

    def record(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"file": self.picture.file, "sha256": self.picture.sha256, "given": self.given, "used": self.used,
                "fit": self.how}  # fmt: skip


def open_picture(source: Any) -> Picture:
    """An image from a path, a Pillow image or an array, upright and in RGB.

    Args:   source: path of an image (of an animation its first frame); ``PIL.Image.Image``; uint8 array [H, W, 1|3|4]
            or [H, W].
    Returns: turned as its EXIF orientation says; what is transparent stands on white.
    Raises: RequestError for a file that is not there or cannot be read, and for anything else.
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
    image = _upright_rgb(image, "the image")
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return Picture(image, digest)


def area_size(width: int, height: int, *, area: int, multiple: int) -> tuple[int, int]:
    """The size of about ``area`` pixels with the shape of ``width`` x ``height``, on a grid of ``multiple`` pixels.

    Source: kandinskylab/kandinsky-5, kandinsky/i2v_pipeline.py, resize_image. A side is never 0 here.
    """
    k = math.sqrt(area / (height * width)) / multiple
    return max(round(width * k), 1) * multiple, max(round(height * k), 1) * multiple


def size_within(width: int, height: int, *, area: int, multiple: int) -> tuple[int, int]:
    """The size brought down to at most ``area`` pixels, sides cut to multiples; a smaller one is not enlarged.

    Source: ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py. A side is never 0 here.
    """
    factor = max(1.0, math.sqrt(width * height / area))
    w, h = (max(round(side / factor) // multiple, 1) * multiple for side in (width, height))
    return w, h


def nearest_shape(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size (width, height) whose height/width is nearest; the first one wins a tie.

    Source: kandinskylab/kandinsky-5, kandinsky/i2i_pipeline.py.
    """
    return min(sizes, key=lambda size: abs(size[1] / size[0] - height / width))


def cover(image: Image, width: int, height: int) -> Image:
    """Scale an image so that it covers ``width`` x ``height``, and cut out the middle.

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, resize_video. There a side that should fit exactly
    can end one pixel short, which draws a black line; here it never does.
    """
    wide, high, left, top = cover_window(image.size, width, height)
    return resized(image, wide, high).crop((left, top, left + width, top + height))


def cover_window(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """For an image of this size, what it is scaled to, and the left and upper edge of the middle that is cut out."""
    factor = min(size[1] / height, size[0] / width)
    wide, high = max(width, int(size[0] / factor)), max(height, int(size[1] / factor))
    return wide, high, round((wide - width) / 2), round((high - height) / 2)


def resized(image: Image, width: int, height: int) -> Image:
    """Bilinear and antialiased, as officially; in float32 with one rounding, which Pillow alone does not do for RGB."""
    import numpy as np
    from PIL import Image as Pillow

    if image.size == (width, height):
        return image
    planes = [
        np.asarray(plane.convert("F").resize((width, height), Pillow.Resampling.BILINEAR)) for plane in image.split()
    ]
    return Pillow.fromarray(np.stack(planes, axis=-1).round().clip(0, 255).astype(np.uint8))


def _read(path: Path) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise RequestError(f"image `{path}` is not there: give the path of a picture") from None
    except OSError as error:
        raise RequestError(f"image `{path}` cannot be read: {error.strerror or error}") from error
    try:
        # Pillow only warns of sizes that fill the memory; here they are refused.
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            opened = Image.open(io.BytesIO(data))
        with opened as image:
            return Picture(_upright_rgb(image, f"image `{path}`"), hashlib.sha256(data).hexdigest(), str(path))
    except UnidentifiedImageError:
        raise RequestError(f"`{path}` is no picture: use a file such as .png, .jpg or .webp") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RequestError(
            f"image `{path}` has more than {Image.MAX_IMAGE_PIXELS} pixels: give a smaller one"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        # what Pillow raises for files that are cut off or damaged
        raise RequestError(f"image `{path}` is damaged: {error}") from error


def _upright_rgb(image: Image, what: str) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageOps

    if 0 in image.size:
        raise RequestError(f"{what} has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # conversion alone would cut 16 bits off at 255
        image = image.point(lambda value: value / 256, "L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_array(array: Any) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(array)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise RequestError(
            f"image is an array {list(values.shape)} of {values.dtype}: give [H, W, 3] of uint8, 0 to 255"
        )
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values)
