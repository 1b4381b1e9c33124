"""Edges of clips, as control branches are shown them."""

import numpy as np
import pytest

from kandinsky.media.signals import SIGNALS, edges, edges_of


def square(side: int = 32, inside: int = 200, outside: int = 20) -> np.ndarray:
    frame = np.full((side, side, 3), outside, np.uint8)
    frame[8:24, 8:24] = inside
    return frame


def test_a_square_has_a_thin_outline_where_its_sides_are() -> None:
    found = edges_of(square()[None])[0]
    rows, columns = np.nonzero(found)
    near = (
        np.minimum(np.abs(rows - 7.5), np.abs(rows - 23.5)),
        np.minimum(np.abs(columns - 7.5), np.abs(columns - 23.5)),
    )
    assert np.minimum(*near).max() <= 1  # nothing but the outline
    assert found[12].sum() == 2 and found[:, 12].sum() == 2  # one pixel wide
    assert not found[14:18, 14:18].any()


def test_flat_frames_and_noise_below_the_threshold_have_none() -> None:
    assert not edges_of(np.full((1, 16, 16, 3), 77, np.uint8)).any()
    faint = np.random.default_rng(0).integers(100, 106, (1, 24, 24, 3), dtype=np.uint8)
    assert not edges_of(faint).any()


def test_an_edge_of_one_colour_channel_counts() -> None:
    frame = np.full((1, 16, 16, 3), 100, np.uint8)
    frame[:, :, 8:, 2] = 220
    assert edges_of(frame)[0, 4:12].sum(axis=1).tolist() == [1] * 8


def test_weak_edges_stay_where_they_go_on_from_strong_ones() -> None:
    frame = np.full((1, 32, 32, 3), 100, np.uint8)
    strength = np.linspace(140, 40, 32).astype(np.uint8)  # a side that fades along its length
    frame[0, :, 16:] += strength[:, None, None]
    along = edges_of(frame)[0].any(axis=1)
    alone = np.full((1, 32, 32, 3), 100, np.uint8)
    alone[0, :, 16:] += np.uint8(40)
    assert along.all() and not edges_of(alone).any()


@pytest.mark.parametrize("turn", [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1]])
def test_a_flipped_clip_has_about_the_flipped_edges(turn) -> None:
    clip = np.stack([square(inside=v) for v in (120, 180, 250)])
    here, there = edges_of(turn(clip)), turn(edges_of(clip))
    shifted = [np.roll(there, (r, c), (1, 2)) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    assert (here <= np.any(shifted, axis=0)).all() and here.sum() == pytest.approx(there.sum(), rel=0.1)


def test_the_signal_is_a_clip_again() -> None:
    clip = np.stack([square(), square(inside=20)])
    found = edges(clip)
    assert found.shape == clip.shape and found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    assert not found[1].any()
    assert [name for name, one in SIGNALS.items() if one.of_clip is not None] == ["edges"]
