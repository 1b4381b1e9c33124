"""Frames as raw video for pipes, and as characters of a terminal."""

from __future__ import annotations

import io
import re

import av
import numpy as np

from kandinsky.media import terminal, y4m


def test_a_player_reads_the_frames_back() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)
    data = io.BytesIO(y4m.header(10, 6, 12.5) + b"".join(y4m.frames(frames)))
    with av.open(data) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert read.shape == frames.shape and np.abs(read.astype(int) - frames).max() <= 4


def test_a_frame_is_drawn_within_the_terminal() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:4] = (255, 0, 0)
    for columns, lines, rows, across in ((80, 24, 4, 8), (4, 24, 2, 4), (80, 2, 2, 4)):
        drawn = terminal.drawn(frame, columns, lines).split("\n")
        assert len(drawn) == rows and all(line.count("▀") == across for line in drawn)
        assert re.match("\x1b\\[38;2;255;0;0;48;2;", drawn[0]) and drawn[-1].startswith("\x1b[38;2;0;0;0")
