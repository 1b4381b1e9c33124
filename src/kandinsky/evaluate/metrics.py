"""Metrics of clips as values: what each measures, what it needs, and whether more is better.

A metric gives a value for each clip; a result is their mean with an interval. What cannot be measured is "unavailable",
with the reason, and never zero. Metrics that re-implement a dimension of VBench are "VBench-like": other networks,
decoders and rounding than those of the official tool, whose own results are read by ``vbench.read_official``.

Legend: T frames; H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate import clips
from kandinsky.evaluate.dimensions import consistency, flickering, is_dynamic, is_static, strongest
from kandinsky.evaluate.extractors import Tools

SAMPLED_FPS = 8.0  # of VBench's flow
DYNAMIC_SHARE, STATIC_SHARE = 0.05, 0.02
FEWEST_TO_COMPARE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a metric sees of one clip.

    Attributes:
        frames_THWC: uint8 frames.
        fps: Frames per second.
        text: The prompt; empty if it is not known.
        facts: What the benchmark says about the prompt.
        reference_THWC: The clip it should equal; None if there is none.
    """

    frames_THWC: np.ndarray
    fps: float
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    reference_THWC: np.ndarray | None = None


Measure = Callable[[Sample, Tools], float | None]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric.

    Attributes:
        name: Key in results.
        better: Whether a higher value is better; `neither` where it only describes.
        about: Formula and unit, in a line.
        measure: Value of a clip; None where it does not apply to it.
        needs: Extractors it looks through.
        uses: Extractors it takes into account where they are at hand.
        needs_text: Whether it needs the prompt.
        needs_facts: Whether it looks at what the benchmark says about the prompt.
        needs_reference: Whether it needs a reference clip.
        is_vbench: Whether it re-implements a dimension of VBench.
        by_frames: Whether a clip weighs by its number of pairs of frames, as the official tool averages.
        version: Goes up when values change.
    """

    name: str
    better: Literal["higher", "lower", "neither"]
    about: str
    measure: Measure
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    needs_text: bool = False
    needs_facts: bool = False
    needs_reference: bool = False
    is_vbench: bool = False
    by_frames: bool = False
    version: int = 1


def colourfulness(clip_THWC: np.ndarray) -> float:
    """How colourful a clip is: Hasler and Süsstrunk (2003), equation for natural images; about 0 (grey) to 110.

    With rg = R - G and yb = (R + G) / 2 - B: the length of their standard deviations plus 0.3 times that of their
    means, for each frame; the mean over frames.
    """
    made = []
    for frame in np.asarray(clip_THWC):
        red, green, blue = (frame[..., i].astype(np.float64) for i in range(3))
        rg, yb = red - green, (red + green) / 2 - blue
        made.append(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
    return float(np.mean(made))


def cosines(features: np.ndarray, other_D: np.ndarray) -> np.ndarray:
    """Cosine of each row with a vector.

    Raises:
        RequestError: Features are zero or not finite.
    """
    rows = np.atleast_2d(np.asarray(features, dtype=np.float64))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(other_D)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise RequestError("features are zero or not finite: the frames or the network that reads them are damaged")
    return np.asarray(rows @ np.asarray(other_D, dtype=np.float64) / lengths)


def sampled(sample: Sample) -> np.ndarray:
    """Frames at about 8 a second, as VBench samples them for flow."""
    return sample.frames_THWC[:: max(1, round(sample.fps / SAMPLED_FPS))]


def _strengths(frames_THWC: np.ndarray, raft: Any, share: float) -> list[float]:
    return [strongest(raft.flow(one, other), share) for one, other in pairwise(frames_THWC)]


def _flickering(sample: Sample, tools: Tools) -> float | None:
    if len(sample.frames_THWC) < FEWEST_TO_COMPARE:
        return None
    if (raft := tools.loaded.get("raft")) is not None:  # only then it is known which clips are static
        frames = sample.frames_THWC
        ends = _strengths(frames[[0, -1, 0]], raft, STATIC_SHARE)
        if not is_static(_strengths(frames, raft, STATIC_SHARE), ends, min(frames.shape[1:3]), len(frames)):
            return None
    return flickering(sample.frames_THWC)


def _dynamic(sample: Sample, tools: Tools) -> float | None:
    frames = sampled(sample)
    if len(frames) < FEWEST_TO_COMPARE:
        return None
    strengths = _strengths(frames, tools.loaded["raft"], DYNAMIC_SHARE)
    return float(is_dynamic(strengths, min(frames.shape[1:3]), len(frames)))


def _consistent(name: str) -> Measure:
    def measure(sample: Sample, tools: Tools) -> float | None:
        if len(sample.frames_THWC) < FEWEST_TO_COMPARE:
            return None
        return consistency(tools.loaded[name].images(sample.frames_THWC))

    return measure


def _aesthetic(sample: Sample, tools: Tools) -> float | None:
    features = np.asarray(tools.loaded["clip-l14"].images(sample.frames_THWC), dtype=np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return float(tools.loaded["aesthetic"].scores(unit).mean() / 10.0)


def _imaging(sample: Sample, tools: Tools) -> float | None:
    return float(tools.loaded["musiq"].scores(sample.frames_THWC).mean() / 100.0)


def _clip_score(sample: Sample, tools: Tools) -> float | None:
    clip = tools.loaded["clip-b32"]
    return float(cosines(clip.images(sample.frames_THWC), clip.texts([sample.text])[0]).mean())


def _style(sample: Sample, tools: Tools) -> float | None:
    phrase = sample.facts.get("appearance_style")
    if isinstance(phrase, Mapping):
        phrase = next((value for value in phrase.values() if isinstance(value, str)), None)
    if not isinstance(phrase, str):
        return None
    clip = tools.loaded["clip-b32"]
    # the logit over 100 is the cosine: CLIP's scale is 100
    return float(cosines(clip.images(sample.frames_THWC), clip.texts([phrase])[0]).mean())


def _viclip(sample: Sample, tools: Tools) -> float | None:
    viclip, clip = tools.loaded["viclip"], tools.loaded["clip-b32"]
    tokens = clip.tokenizer(
        [sample.text], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )["input_ids"]  # fmt: skip
    return float(cosines(viclip.clip(sample.frames_THWC), viclip.text(tokens))[0])


def _smooth_change(sample: Sample, _: Tools) -> float | None:
    return None if len(sample.frames_THWC) < FEWEST_TO_COMPARE else float(clips.change(sample.frames_THWC).mean())


def _flicker(sample: Sample, _: Tools) -> float | None:
    return None if len(sample.frames_THWC) < 3 else clips.flicker(sample.frames_THWC)


def _drift(sample: Sample, _: Tools) -> float | None:
    return None if len(sample.frames_THWC) < FEWEST_TO_COMPARE else clips.drift(sample.frames_THWC)


def _colour(sample: Sample, _: Tools) -> float | None:
    return colourfulness(sample.frames_THWC)


def _psnr(sample: Sample, _: Tools) -> float | None:
    assert sample.reference_THWC is not None
    return clips.psnr(sample.frames_THWC, sample.reference_THWC)


def _ssim(sample: Sample, _: Tools) -> float | None:
    assert sample.reference_THWC is not None
    return clips.ssim(sample.frames_THWC, sample.reference_THWC)


METRICS: Mapping[str, Metric] = {
    one.name: one
    for one in (
        Metric(
            "temporal flickering", "higher",
            "(255 - mean change of neighbouring frames) / 255; with RAFT of static clips alone, else of all",
            _flickering, uses=("raft",), is_vbench=True, version=2,
        ),
        Metric(
            "subject consistency", "higher", "DINO: cosine of a frame with the one before and the first",
            _consistent("dino-b16"), ("dino-b16",), is_vbench=True, by_frames=True,
        ),
        Metric(
            "background consistency", "higher", "CLIP: cosine of a frame with the one before and the first",
            _consistent("clip-b32"), ("clip-b32",), is_vbench=True, by_frames=True,
        ),
        Metric(
            "dynamic degree", "higher", "share of clips whose strongest 5 % of flow pass a bound, at 8 frames a second",
            _dynamic, ("raft",), is_vbench=True,
        ),
        Metric(
            "aesthetic quality", "higher", "LAION's head on CLIP ViT-L/14 over 10", _aesthetic,
            ("clip-l14", "aesthetic"), is_vbench=True,
        ),
        Metric("imaging quality", "higher", "MUSIQ-SPAQ over 100", _imaging, ("musiq",), is_vbench=True),
        Metric(
            "appearance style", "higher", "CLIP: cosine of frames with the style's name", _style, ("clip-b32",),
            needs_facts=True, is_vbench=True,
        ),
        Metric(
            "temporal style", "higher", "ViCLIP: cosine with the prompt", _viclip, ("viclip", "clip-b32"),
            needs_text=True, is_vbench=True,
        ),
        Metric(
            "overall consistency", "higher", "ViCLIP: cosine with the prompt", _viclip, ("viclip", "clip-b32"),
            needs_text=True, is_vbench=True,
        ),
        Metric(
            "clip similarity", "higher", "CLIPSIM: mean cosine of frames with the prompt, which is cut at 77 tokens",
            _clip_score, ("clip-b32",), needs_text=True,
        ),
        Metric("motion amount", "neither", "mean change of neighbouring frames, 0 to 255", _smooth_change),
        Metric("flicker", "lower", "mean second difference in time, 0 to 510", _flicker),
        Metric("colourfulness", "neither", "Hasler and Süsstrunk 2003", _colour),
        Metric("colour drift", "lower", "distance of colour histograms, first against last 15 %, 0 to 1", _drift),
        Metric("psnr", "higher", "dB against the reference of the same name", _psnr, needs_reference=True),
        Metric("ssim", "higher", "against the reference of the same name", _ssim, needs_reference=True),
    )
}  # fmt: skip

# Distances of the whole set from reference clips: not a mean of values of clips.
SETS: Mapping[str, str] = {
    "fvd": "Fréchet distance of I3D features, first 16 frames at 224 x 224",
    "kvd": "kernel distance of the same features",
}
# Dimensions for whose networks there is no loader here: their values come from the official tool.
OFFICIAL_ONLY: Mapping[str, str] = {
    "motion smoothness": "AMT-S",
    **dict.fromkeys(("object class", "multiple objects", "spatial relationship", "color"), "GRiT"),
    "human action": "UMT-L/16",
    "scene": "Tag2Text",
}


def official_only(name: str) -> str:
    """Why a dimension is not measured here, in a line."""
    return f"needs {OFFICIAL_ONLY[name]}, for which there is no loader here: import the official tool's result"


def chosen(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names.

    Raises:
        RequestError: There is none of a name.
    """
    known = (*METRICS, *SETS)
    for name in names:
        if name not in known:
            raise RequestError(f"metric `{name}` does not exist: use {', '.join(f'`{one}`' for one in known)}")
    return [METRICS[name] for name in names if name in METRICS]
