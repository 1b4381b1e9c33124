"""What a continued clip is made of: the frames of the one before, a few at a time."""

from pathlib import Path

import numpy as np

from kandinsky.jobs.worker import WINDOW, _continued
from kandinsky.model.values import Video, VideoStream


def test_a_long_clip_is_continued_piece_by_piece(tmp_path: Path) -> None:
    count, new = 2 * WINDOW + 6, 5
    levels = np.arange(count, dtype=np.uint8) * 3
    frames = np.broadcast_to(levels[:, None, None, None], (count, 96, 96, 3)).copy()
    before = Video(frames, fps=12.0, seed=0).save(tmp_path / "before.mp4")
    stream = VideoStream(iter([np.full((new, 48, 64, 3), 9, np.uint8)]), new, 12.0, 0)
    longer = _continued(stream, before, "", step=4)
    pieces = list(longer.pieces)
    assert [len(piece) for piece in pieces] == [WINDOW, WINDOW, 6, new - 1]
    assert longer.num_frames == count + new - 1 == sum(map(len, pieces))
    whole = np.concatenate(pieces)
    assert whole.shape[1:] == (48, 64, 3)
    assert np.abs(whole[:count].mean((1, 2, 3)) - levels).max() < 4 and (whole[count:] == 9).all()


def test_known_frames_of_the_clip_before_are_left_out_of_the_new_one(tmp_path: Path) -> None:
    levels = np.arange(20, dtype=np.uint8) * 12
    frames = np.broadcast_to(levels[:, None, None, None], (20, 64, 64, 3)).copy()
    before = Video(frames, fps=12.0, seed=0).save(tmp_path / "before.mp4")
    new = [np.full((5, 64, 64, 3), 250, np.uint8), np.full((8, 64, 64, 3), 9, np.uint8)]  # pieces as they are decoded
    for overlap, known in (("-0.75s:", 9), ("-11:", 9), ("-1:", 1)):
        longer = _continued(VideoStream(iter(new), 13, 12.0, 0), before, overlap, step=4)
        whole = np.concatenate(list(longer.pieces))
        kept = 20 - (2 if overlap == "-11:" else 0)  # of eleven frames, the first nine are whole groups
        assert len(whole) == longer.num_frames == kept + 13 - known
        assert np.abs(whole[:kept].mean((1, 2, 3)) - levels[:kept]).max() < 4
        assert (whole[-min(8, 13 - known) :] == 9).all()
