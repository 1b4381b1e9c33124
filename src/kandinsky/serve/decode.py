"""A process of its own that reads one uploaded file, under limits, and writes what is safe to use: `python -m …`.

An image becomes a PNG of its upright pixels, without metadata. A video is decoded whole, so that a damaged or endless
one shows here, and copied packet by packet into a new container, without metadata. The recipe of a file is only read.
stdout has one JSON object: facts, or `error`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MEMORY, SECONDS, FILE_BYTES, FILES = 3 * 2**30, 60, 2**30, 64
MOST_PIXELS = 64_000_000
MOST_FRAMES, MOST_SECONDS, MOST_VIDEO_PIXELS = 3000, 120.0, 3840 * 2160
IMAGES = ("PNG", "JPEG", "WEBP")
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")


class Refused(Exception):  # noqa: N818 - answered by main
    """Why a file is not used."""


def confine() -> None:
    """Take away what a decoder does not need: memory, time, files, new privileges."""
    with suppress(ImportError):
        import resource

        for what, most in (
            (resource.RLIMIT_AS, MEMORY),
            (resource.RLIMIT_CPU, SECONDS),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
            (resource.RLIMIT_NOFILE, FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(what)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (limit, limit))
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def image(source: Path, target: Path) -> dict[str, Any]:
    """Write an image's upright pixels as PNG.

    Raises:
        Refused: It is no PNG, JPEG or WebP, or is too large.
    """
    from PIL import Image, UnidentifiedImageError

    from kandinsky.media.image import upright_rgb

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    try:
        with Image.open(source, formats=IMAGES) as given:
            W, H = given.size
            if W * H > MOST_PIXELS:
                raise Refused(f"the image has {W}x{H} pixels: {MOST_PIXELS // 10**6} million are allowed")
            given.load()
            upright = upright_rgb(given, "the image")
    except Image.DecompressionBombError:
        raise Refused(f"the image has more than {MOST_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise Refused("the file is not an image that can be read: use PNG, JPEG or WebP") from None
    upright.info = {}
    upright.save(target, "PNG", compress_level=1)
    return {"width": upright.width, "height": upright.height}


def mask(source: Path, target: Path) -> dict[str, Any]:
    """Write a mask as grey PNG; what is transparent stays so, since it is what OpenAI's clients repaint.

    Raises:
        Refused: It is no PNG, JPEG or WebP, or is too large.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    try:
        with Image.open(source, formats=IMAGES) as given:
            if given.width * given.height > MOST_PIXELS:
                raise Refused(f"the mask has {given.width}x{given.height} pixels: too many")
            given.load()
            grey = given.convert("L")
            if given.has_transparency_data:  # OpenAI: transparent where the image is repainted
                alpha = given.convert("RGBA").getchannel("A")
                if any(alpha.histogram()[:255]):  # else it is black and white, with a channel that says nothing
                    grey = alpha.point(lambda value: 255 - value)
    except (Image.DecompressionBombError, UnidentifiedImageError):
        raise Refused("the mask is not an image that can be read: use PNG, JPEG or WebP") from None
    grey.save(target, "PNG", compress_level=1)
    return {"width": grey.width, "height": grey.height}


def clip(source: Path, target: Path, still: Callable[[Path, Path], dict[str, Any]] = image) -> dict[str, Any]:
    """Read an image as ``image`` does, anything else as a video.

    Raises:
        Refused: It is neither, or an image that moves.
    """
    from kandinsky.media import animation

    if animation.image_format(source) is None:
        return _checked_video(source, target)[0]
    if animation.is_animated(source):
        raise Refused("the file is an animated image: give an mp4, mov, webm or mkv, or a still")
    return still(source, target)


def masks(source: Path, target: Path) -> dict[str, Any]:
    """Read a mask as ``mask`` does, or a video of masks.

    Raises:
        Refused: It is neither.
    """
    return clip(source, target, mask)


def video(source: Path, target: Path) -> dict[str, Any]:
    """Check a video by decoding it, and copy its streams; also write its last frame beside it, as PNG.

    Raises:
        Refused: Its container or codec is not allowed, or it is too long or too large.
    """
    from PIL import Image

    told, last = _checked_video(source, target)
    Image.fromarray(last).save(target.with_name("input-last.png"), "PNG", compress_level=1)
    return told


def _checked_video(source: Path, target: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Facts about a video that was decoded and copied, and its last frame [H, W, 3]."""
    import av

    from kandinsky.media.bare import copy_streams
    from kandinsky.media.mux import frames_at, probe

    options = {"format_whitelist": "mov,matroska", "protocol_whitelist": "file"}
    with av.open(f"file:{source}", options=options, metadata_errors="replace") as given:
        if given.format.name not in CONTAINERS:
            raise Refused(f"a `{given.format.name}` is not read here: use mp4, mov, webm or mkv")
        if not given.streams.video:
            raise Refused("the file has no video stream")
        stream = given.streams.video[0]
        codec = stream.codec_context.codec.canonical_name
        if codec not in CODECS:
            raise Refused(f"the codec `{codec}` is not read here: use {', '.join(CODECS)}")
        if stream.width * stream.height > MOST_VIDEO_PIXELS:
            raise Refused(f"the video is {stream.width}x{stream.height}: at most 3840x2160 is read here")
        if (stream.frames or 0) > MOST_FRAMES or float(given.duration or 0) / av.time_base > MOST_SECONDS:
            raise Refused(f"the video is too long: {MOST_FRAMES} frames and {MOST_SECONDS:g} seconds are allowed")
        count = 0
        for _ in given.decode(stream):
            count += 1
            if count > MOST_FRAMES:
                raise Refused(f"the video is too long: {MOST_FRAMES} frames are allowed")
        if not count:
            raise Refused("none of the video's frames can be decoded")
    form = "mp4" if given.format.name.startswith("mov") else "matroska"
    copy_streams(source, target, form)
    found = probe(target)
    last = frames_at(found, [len(found.times_s) - 1])[0]
    H, W = last.shape[:2]
    if found.seconds > MOST_SECONDS:
        raise Refused(f"the video is too long: {MOST_SECONDS:g} seconds are allowed")
    return {"frames": len(found.times_s), "seconds": found.seconds, "fps": found.fps, "width": W, "height": H}, last


def recipe(source: Path, _target: Path) -> dict[str, Any]:
    """The recipe in a file that this library wrote.

    Raises:
        Refused: It has none.
    """
    from kandinsky.media import recipe as recipes

    heads = {b"\x89PNG": ".png", b"GIF8": ".gif", b"\xff\xd8\xff": ".jpg", b"\x1aE\xdf\xa3": ".webm", b"fLaC": ".flac"}
    with source.open("rb") as file:
        head = file.read(16)
    ending = next((ending for start, ending in heads.items() if head.startswith(start)), "")
    if head[:4] == b"RIFF":
        ending = {b"WEBP": ".webp", b"WAVE": ".wav"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        ending = ".mp4"
    if not ending:
        raise Refused("the file is none that carries a recipe: give an mp4, webm, gif, webp, png, jpeg, wav or flac")
    named = source.with_name(f"named{ending}")
    source.rename(named)
    return {"recipe": dict(recipes.read(named))}


WAYS = {"image": image, "mask": mask, "video": video, "clip": clip, "masks": masks, "recipe": recipe}


def main(way: str, source: str, target: str) -> int:
    """Read one file."""
    confine()
    from kandinsky.errors import KandinskyError

    try:
        told = WAYS[way](Path(source), Path(target))
    except Refused as error:
        told = {"error": str(error)}
    except KandinskyError as error:
        told = {"error": str(error).replace(str(source), "the file").replace(str(target), "the file")}
    except MemoryError:
        told = {"error": "the file needs too much memory"}
    except Exception as error:  # a decoder's own: what it says may hold anything
        told = {"error": f"the file is damaged or not of a kind that can be read ({type(error).__name__})"}
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
