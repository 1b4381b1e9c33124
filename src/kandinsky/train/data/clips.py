"""Clips cut from images and videos: at the frame rate of a model, in the largest bucket that a file covers.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.engine.request import parse_size, resolve
from kandinsky.errors import RequestError
from kandinsky.media import animation
from kandinsky.media.image import cover, open_image
from kandinsky.media.mux import InputVideo, frames_of_windows, probe
from kandinsky.model.card import Card
from kandinsky.model.values import Request
from kandinsky.printing import escaped
from kandinsky.train.data.sources import IMAGES, Example
from kandinsky.weights.untrusted import shown

CLOSE_S = 1e-6  # of moments in files, which are rounded


@dataclass(frozen=True, slots=True)
class Bucket:
    """A size of clips, and how many of those that could have it get it.

    Attributes:
        width: In pixels.
        height: In pixels.
        keep: Share of the clips; the others go to the next bucket that they cover, so that high resolutions do not
            outweigh the rest.
    """

    width: int
    height: int
    keep: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read `512x768`, or `512x768:0.3` with the share that is kept.

        Raises:
            RequestError: It is neither.
        """
        size, colon, share = text.partition(":") if isinstance(text, str) else (text, "", "")
        width, height = parse_size(size)
        try:
            keep = float(share) if colon else 1.0
        except ValueError:
            keep = -1.0
        if not 0 < keep <= 1 or min(width, height) < 1:
            raise RequestError(f"size `{shown(text)}` keeps no share of clips: use such as `512x768:0.3`, up to 1")
        return cls(width, height, keep)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Cutting:
    """How clips are cut from files.

    Attributes:
        buckets: Sizes that clips may have.
        fps: Frames a second that the model makes.
        step: A clip has 1 + a multiple of so many frames.
        frames: Lengths that clips may have, rising. Of a single length, shorter clips are cut too, at the length that
            they have; of several, each file is cut to the longest that it covers. Images are always one frame.
        seed: Of the draws of ``Bucket.keep``.
    """

    buckets: tuple[Bucket, ...]
    fps: float
    step: int
    frames: tuple[int, ...]
    seed: int = 0

    @classmethod
    def of(cls, card: Card, sizes: Sequence[str] = (), seconds: Sequence[float] = (), *, seed: int = 0) -> Cutting:
        """The cutting of a model's clips.

        Args:
            card: The model.
            sizes: As ``Bucket.parse`` reads them; all that the card lists where there are none.
            seconds: Lengths; the card's own where there are none.
            seed: Of the draws of ``Bucket.keep``.

        Raises:
            RequestError: The model does not support a size or length, or one comes twice.
        """
        card = card.of_whole_clips()
        buckets = tuple(Bucket.parse(size) for size in (sizes or card.clip.sizes))
        if len({str(one) for one in buckets}) < len(buckets):
            raise RequestError("a size comes twice: name each once")
        found = set()
        for length in seconds or (None,):
            for bucket in buckets:
                request = Request(card.id, "any", seconds=length, width=bucket.width, height=bucket.height, seed=0)
                found.add(resolve(request, card, needs_image=False).shape.frames)
        if len(found) < len(seconds):
            raise RequestError("a length comes twice, as it falls on the model's grid: name each once")
        return cls(buckets, card.clip.fps, card.clip.frame_step, tuple(sorted(found)), seed)

    def bucket_for(self, width: int, height: int, name: str) -> Bucket | None:
        """The bucket of a file: of those it covers, the one that shows most of it.

        That is the largest product of the bucket's area and the share of the image that is left when it is cropped.

        Args:
            width: Of the file, in pixels.
            height: Of the file, in pixels.
            name: Of the example, which the draws of ``Bucket.keep`` depend on.

        Returns:
            None where the file covers no bucket, or was kept by none.
        """
        covered = [one for one in self.buckets if one.width <= width and one.height <= height]
        for bucket in sorted(covered, key=lambda one: -_visible(one, width, height)):
            if bucket.keep == 1 or _draw(f"{self.seed}\0{name}\0{bucket}") < bucket.keep:
                return bucket
        return None

    def count_for(self, last_s: float) -> int | None:
        """Frames of a clip of a video whose last frame is shown at ``last_s``; None where it is too short."""
        there = 1 + int(last_s * self.fps + CLOSE_S)
        if len(self.frames) == 1:
            return 1 + (min(self.frames[0], there) - 1) // self.step * self.step
        return max((count for count in self.frames if count <= there), default=None)

    def check_bucket(self, size: tuple[int, int], example: Example) -> Bucket:
        """``bucket_for``. Raises: RequestError where there is none."""
        found = self.bucket_for(*size, example.name)
        if found is not None:
            return found
        if any(one.width <= size[0] and one.height <= size[1] for one in self.buckets):
            raise RequestError(f"`{escaped(example.name)}` was kept by none of the sizes it covers")
        least = min(self.buckets, key=lambda one: one.width * one.height)
        raise RequestError(
            f"`{escaped(example.name)}` has {size[0]}x{size[1]} pixels and covers no size, of which {least} is the "
            "smallest: nothing is enlarged"
        )

    def check_count(self, last_s: float, example: Example) -> int:
        """``count_for``. Raises: RequestError where there is none."""
        found = self.count_for(last_s)
        if found is None:
            least = (self.frames[0] - 1) / self.fps
            raise RequestError(
                f"`{escaped(example.name)}` shows its last frame at {last_s:.2f} s, and the shortest clip needs "
                f"{least:.2f} s"
            )
        return found


def cut(example: Example, cutting: Cutting, *, enlarge: bool = False) -> np.ndarray:
    """The clip of an example, decoded.

    Frames are those nearest in time to the moments the model would show; no more of the file is held in memory.

    Args:
        example: A file, or a member of a shard.
        cutting: Sizes and lengths.
        enlarge: Whether every file gets the first bucket, and is enlarged to it where it is smaller.

    Returns:
        [T, H, W, 3], uint8.

    Raises:
        RequestError: The file cannot be read, is too short, covers no bucket, or was kept by none.
    """
    with example.decoded() as path:
        if is_still(path, example):
            image = open_image(path).image
            bucket = cutting.buckets[0] if enlarge else cutting.check_bucket(image.size, example)
            return np.stack([np.asarray(cover(image, bucket.width, bucket.height))])
        video = probe(path)
        count = cutting.check_count(video.times_s[-1], example)
        wanted = [nearest(video.times_s, number / cutting.fps) for number in range(count)]
        chosen = cutting.buckets[0] if enlarge else None

        def size(image: Image.Image) -> tuple[int, int]:
            nonlocal chosen
            chosen = chosen or cutting.check_bucket(image.size, example)
            return chosen.width, chosen.height

        return fitted(video, wanted, size)


def fitted(video: InputVideo, wanted: Sequence[int], size: Callable[[Image.Image], tuple[int, int]]) -> np.ndarray:
    """Frames of a video, each scaled and cropped as soon as it is decoded; no more of the file is held in memory.

    Args:
        video: The video.
        wanted: Numbers of frames, rising; one may come several times.
        size: Width and height for a frame with square pixels.

    Returns:
        [T, H, W, 3], uint8.

    Raises:
        RequestError: The file cannot be read.
    """
    made: list[np.ndarray] = []
    once = list(dict.fromkeys(wanted))
    for number, frames in zip(once, frames_of_windows(video, [[n] for n in once]), strict=True):
        image = _square(Image.fromarray(frames[0]), video)
        made += [np.asarray(cover(image, *size(image)))] * wanted.count(number)
    return np.stack(made)


def is_still(path: Path, example: Example) -> bool:
    """Whether an example is one image."""
    if animation.image_format(path) is not None:
        return not animation.is_animated(path)
    return example.ending in IMAGES


def _visible(bucket: Bucket, width: int, height: int) -> float:
    wider = (bucket.width / bucket.height) / (width / height)
    return bucket.width * bucket.height * min(wider, 1 / wider)


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:7], "big") / 2**56


def nearest(times_s: Sequence[float], moment_s: float) -> int:
    """Number of the frame nearest in time to a moment; the earlier one of two."""
    after = bisect_left(times_s, moment_s - CLOSE_S)
    if after == 0:
        return 0
    if after == len(times_s):
        return after - 1
    return after - (moment_s - times_s[after - 1] < times_s[after] - moment_s - CLOSE_S)


def _square(image: Image.Image, video: InputVideo) -> Image.Image:
    """A frame with square pixels."""
    if video.sample_aspect == 1:
        return image
    return image.resize((max(1, round(image.width * video.sample_aspect)), image.height), Image.Resampling.BILINEAR)
