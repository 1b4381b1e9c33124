"""Frames as packets for viewers: decoded as they come, keys by themselves, and JPEG where nothing else can be made."""

from __future__ import annotations

import io
import logging
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kandinsky.errors import BackendError
from kandinsky.media import packets

SIDE, FRAMES = 96, 20
CODECS = {"h264": "h264", "vp9": "vp9"}


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A red square that moves over blue."""
    frames = np.full((FRAMES, SIDE, SIDE, 3), (30, 60, 200), np.uint8)
    for number, frame in enumerate(frames):
        frame[30:60, 5 + 3 * number : 35 + 3 * number] = (220, 40, 30)
    return frames


def units(packet: bytes) -> list[int]:
    """Types of the units of Annex B in a packet."""
    return [part[0] & 31 for part in packet.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]]


@pytest.mark.parametrize("format", CODECS)
def test_a_coded_stream_decodes_packet_by_packet(format: Any, clip: np.ndarray) -> None:
    packer = packets.Coded(format, SIDE, SIDE, 12.0)
    made = [*packer.pack(clip[:7]), *packer.pack(clip[7:12], key=True), *packer.pack(clip[12:])]
    assert [place for place, one in enumerate(made) if one.is_key] == [0, 7] and len(made) == FRAMES
    decoder: Any = av.CodecContext.create(CODECS[format], "r")
    decoder.thread_count = 1
    shown = [one.to_ndarray(format="rgb24") for p in made for one in decoder.decode(av.Packet(p.data))]
    shown += [one.to_ndarray(format="rgb24") for one in decoder.decode(None)]
    errors = np.abs(np.stack(shown).astype(int) - clip).mean(axis=(1, 2, 3))
    assert len(shown) == FRAMES and errors.max() < 5, errors  # the edges of 4:2:0
    assert np.abs(shown[5][5, 5].astype(int) - clip[0, 0, 0]).max() < 6  # colours are right
    fresh: Any = av.CodecContext.create(CODECS[format], "r")  # whoever comes in at a key frame
    fresh.thread_count = 1
    late = [one for p in made[7:] for one in fresh.decode(av.Packet(p.data))] + fresh.decode(None)
    assert len(late) == FRAMES - 7
    jpegs = sum(len(one.data) for one in packets.Jpegs().pack(clip))
    assert sum(len(one.data) for one in made) < jpegs / 2


def test_h264_is_annex_b_that_needs_no_description(clip: np.ndarray) -> None:
    packer = packets.Coded("h264", SIDE, SIDE, 12.0)
    made = packer.pack(clip, key=True)
    assert all(one.data.startswith(b"\0\0\0\1") for one in made)
    assert {7, 8, 5} <= set(units(made[0].data)) and packer.codec.startswith("avc1.42C0")  # baseline
    assert all(set(units(one.data)) == {1} for one in made[1:])  # no other frame is of another kind
    again = packer.pack(clip[:1], key=True)
    assert {7, 8, 5} <= set(units(again[0].data))
    with pytest.raises(BackendError, match="no parameter set"):
        packets._h264(made[1].data)


def test_a_level_of_vp9_holds_the_picture() -> None:
    def codec(width: int, height: int) -> str:
        packer = packets.Coded("vp9", width, height, 12.0)
        packer.pack(np.zeros((1, height, width, 3), np.uint8))
        return packer.codec

    assert codec(96, 96) == "vp09.00.10.08" and codec(768, 512) == "vp09.00.30.08"
    assert all(a[1] < b[1] for a, b in pairwise(sorted(packets._LEVELS.items())))


def test_where_nothing_else_can_it_is_jpeg(
    clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert packets.packer(("jpeg", "h264"), SIDE, SIDE, 12.0).format == "jpeg"
    assert packets.packer(("h264", "jpeg"), SIDE, SIDE, 12.0).format == "h264"
    assert packets.packer(("vp9", "h264"), SIDE, SIDE, 12.0).format == "vp9"
    assert packets.packer(("av1",), SIDE, SIDE, 12.0).format == "jpeg"
    with caplog.at_level(logging.WARNING):
        assert packets.packer(("h264", "vp9"), 95, SIDE, 12.0).format == "jpeg"
    assert "odd side" in caplog.text
    gone = {name: packets._Coder("no-such-encoder", {}) for name in ("h264",)}
    monkeypatch.setattr(packets, "_CODERS", {**packets._CODERS, **gone})
    assert packets.packer(("h264", "vp9"), SIDE, SIDE, 12.0).format == "vp9"  # the next one offered
    (one,) = packets.Jpegs().pack(clip[:1], key=True)
    assert one.is_key and np.abs(np.asarray(Image.open(io.BytesIO(one.data)), int) - clip[0]).mean() < 5
