"""Results as notebooks show them: HTML with the file inside, small enough to be stored in the notebook.

A clip plays in a loop, a still is an image, audio has a player. What would be too large is shown smaller, or as its
first frame.
"""

from __future__ import annotations

import base64
import html
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kandinsky.model.values import Audio, Video

if TYPE_CHECKING:
    import numpy as np

LARGEST = 16 << 20  # largest file embedded in a page, in bytes
MOST_PIXELS = 1 << 27  # pixels of all frames together; encoding more takes long
SHOWN_SIDE = 384  # screen pixels of the longer side of a smaller clip


def video_html(clip: Video) -> str:
    """A clip or a still image as HTML."""
    frames, H, W = clip.frames_THWC, *clip.frames_THWC.shape[1:3]
    step = 1
    while frames.size // 3 // step**2 > MOST_PIXELS:
        step += 1
    scale = max(1, SHOWN_SIDE // max(H, W))
    size = f'width="{W * scale}" height="{H * scale}" style="max-width: 100%; height: auto; image-rendering: auto"'
    title = html.escape(repr(clip))
    if len(frames) == 1 and clip.audio is None:
        return f'<img {size} title="{title}" src="{_url("png", _png(frames[0, ::step, ::step]))}">'
    data = _encoded(Video(frames[:, ::step, ::step], clip.fps, clip.seed, audio=clip.audio), "clip.mp4")
    if len(data) > LARGEST:
        return f'<img {size} title="{title}" src="{_url("png", _png(frames[0]))}"><p>{title}: too long to play here</p>'
    sound = "" if clip.audio is not None else "muted autoplay "
    return f'<video {size} title="{title}" controls loop {sound}src="{_url("mp4", data)}"></video>'


def audio_html(sound: Audio) -> str:
    """Audio as HTML."""
    data = _encoded(sound, "sound.wav")
    if len(data) > LARGEST:
        return f"<p>{html.escape(repr(sound))}: too long to play here</p>"
    return f'<audio title="{html.escape(repr(sound))}" controls src="{_url("wav", data)}"></audio>'


def _encoded(result: Video | Audio, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="kandinsky-") as folder:
        return result.save(Path(folder) / name).read_bytes()


def _png(frame_HWC: np.ndarray) -> bytes:
    import numpy as np
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame_HWC)).save(made, "png")
    return made.getvalue()


def _url(kind: str, data: bytes) -> str:
    types = {"png": "image/png", "mp4": "video/mp4", "wav": "audio/wav"}
    return f"data:{types[kind]};base64,{base64.b64encode(data).decode('ascii')}"
