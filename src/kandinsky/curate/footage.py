"""Frames for looking at: small ones of a whole file, decoded once, a few at a time.

Legend: H W C rows, columns, colours.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kandinsky.curate.watch import beat
from kandinsky.media import animation, container
from kandinsky.media.mux import InputVideo, turned


@dataclass(slots=True)
class Decoding:
    """What decoding a file was like.

    Attributes:
        lost: Packets that cannot be decoded.
        seconds: That reading and decoding took, without what is done with the frames.
    """

    lost: int = 0
    seconds: float = 0.0


def small_frames(
    video: InputVideo, side: int, wanted: Collection[int] | None = None, decoding: Decoding | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames scaled down so that their longer side is at most ``side``; nothing is enlarged.

    Args:
        video: The file.
        side: In pixels.
        wanted: Numbers of the frames to give; all by default. Decoding ends after the last of them.
        decoding: Filled in; frames that cannot be decoded are left out.

    Yields:
        The number of a frame, and the frame, [H, W, 3] uint8.

    Raises:
        RequestError: The file cannot be read.
    """
    told = decoding or Decoding()
    begun = time.perf_counter()
    if video.is_animation:
        for number, (whole, _) in enumerate(animation.frames_of(video.path)):
            beat()
            told.seconds += time.perf_counter() - begun
            if wanted is None or number in wanted:
                width, height = _within(whole.shape[1], whole.shape[0], side)
                image = Image.fromarray(whole)
                yield number, np.asarray(image.resize((width, height), Image.Resampling.BOX))
            begun = time.perf_counter()
        return
    import av
    from av.video.reformatter import Interpolation

    places = {stamp: number for number, stamp in enumerate(video.timestamps)}
    last = max(wanted, default=-1) if wanted is not None else len(places)
    size: tuple[int, int] | None = None
    with container.reading(video.path) as file:
        stream = container.best_video(file, video.path)
        for packet in file.demux(stream):
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError):
                told.lost += 1
                frames = []
            beat()
            told.seconds += time.perf_counter() - begun
            for frame in frames:
                number = -1 if frame.pts is None else places.get(frame.pts, -1)
                if number > last:
                    return
                if number < 0 or (wanted is not None and number not in wanted):
                    continue
                size = size or _within(frame.width, frame.height, side)
                small = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation=Interpolation.AREA)
                yield number, turned(small.to_ndarray(), frame)
            begun = time.perf_counter()


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(2, round(width * scale)), max(2, round(height * scale))
