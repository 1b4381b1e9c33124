"""What changes from frame to frame, for every frame of a file: shots, black and frozen parts are found in it.

Legend: H W C rows, columns, colours.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from kandinsky.curate.footage import Decoding, small_frames
from kandinsky.curate.ingest import example_of
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, reason
from kandinsky.curate.watch import beat
from kandinsky.media.mux import probe

SIDE = 96  # pixels of the longer side
BLOCK = 8  # pixels of the side of a block
LEVELS = 16  # of a colour's histogram
LAGS = (1, 2, 3, 4)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_LASTING = ("bright", "luma", "spread")  # of a frame that is lost: as in the one before
SIGNALS = ("times", *(f"change_{lag}" for lag in LAGS), "most", "bright", "luma", "spread")


def stage() -> Stage:
    """The stage that decodes every frame once, small."""
    columns = (
        {name: "list<float>" for name in SIGNALS}
        | {"times": "list<double>"}
        | {"undecodable": "int64", "signal_fault": "string", "decode_s": "double"}
    )
    return Stage("signals", "2", ("key", "file", "offset", "bytes"), columns, run, bulky=SIGNALS)


def run(batch: Rows) -> Rows:
    """Rows of files to rows of signals, each with one number a frame.

    `times`: seconds. `change_n`: difference from the frame n before, 0 to 1: the mean of that of the colour histograms
    and that of brightness by blocks. `most`: largest change of the brightness of a block since the frame before, 0 to
    1. `luma`, `bright` and `spread`: mean, 98th percentile and standard deviation of brightness, 0 to 1.
    """
    return [_of_file(row) for row in batch]


def _of_file(row: Row) -> Row:
    held: dict[str, list[float]] = {name: [] for name in SIGNALS}
    decoding, fault = Decoding(), None
    before: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=max(LAGS))
    try:
        with example_of(row).decoded() as path:
            video = probe(path, on_packet=beat)
            for number, frame_HWC in small_frames(video, SIDE, decoding=decoding):
                if number < len(held["times"]):
                    continue
                apart = number - len(held["times"]) + 1  # what moves has moved so many times as far
                for lost in range(len(held["times"]), number):  # numbers of frames are places in these lists
                    for name, values in held.items():
                        values.append(values[-1] if name in _LASTING and values else 0.0)
                    held["times"][-1] = video.times_s[lost]
                luma_HW = frame_HWC @ _LUMA / 255
                seen = histogram(frame_HWC), blocks(luma_HW)
                held["times"].append(video.times_s[number])
                for lag in LAGS:
                    held[f"change_{lag}"].append(distance(seen, before[-lag]) / apart if len(before) >= lag else 0.0)
                held["most"].append(float(np.abs(seen[1] - before[-1][1]).max()) if before else 0.0)
                held["luma"].append(float(luma_HW.mean()))
                held["bright"].append(float(np.percentile(luma_HW, 98)))
                held["spread"].append(float(luma_HW.std()))
                before.append(seen)
    except Exception as error:  # whatever a poisoned file makes a decoder do, the others are done
        check_lasting(error)
        fault = reason(error)
    if not held["times"] and fault is None:
        fault = "none of its frames can be decoded"
    return {**held, "undecodable": decoding.lost, "signal_fault": fault, "decode_s": decoding.seconds}


def histogram(frame_HWC: np.ndarray) -> np.ndarray:
    """Shares of a frame's pixels by level, for each colour: [3, LEVELS].

    Levels are smoothed over their neighbours, so that a slight change of brightness is no change of all pixels.
    """
    shares = np.stack([np.bincount(frame_HWC[..., c].ravel() // (256 // LEVELS), minlength=LEVELS) for c in range(3)])
    shares = shares / (frame_HWC.shape[0] * frame_HWC.shape[1])
    wide = np.pad(shares, ((0, 0), (1, 1)), mode="edge")
    smooth: np.ndarray = 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
    return smooth


def blocks(luma_HW: np.ndarray) -> np.ndarray:
    """Mean brightness of square blocks; what is left over at the right and bottom belongs to none."""
    size = min(BLOCK, *luma_HW.shape)
    H, W = (n // size for n in luma_HW.shape)
    means: np.ndarray = luma_HW[: H * size, : W * size].reshape(H, size, W, size).mean((1, 3))
    return means


def distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """How much two frames differ, 0 to 1."""
    colours = np.abs(one[0] - other[0]).sum() / 6
    places = min(1.0, 3 * float(np.abs(one[1] - other[1]).mean()))
    return float((colours + places) / 2)
