"""Measures clips one by one and keeps each value, so that an interrupted evaluation goes on where it was.

Legend: N clips; P prompts; R resamples; D features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate import distance
from kandinsky.evaluate.clip_files import ClipFile, clips_of
from kandinsky.evaluate.extractors import EXTRACTORS, Tools
from kandinsky.evaluate.finite import finite
from kandinsky.evaluate.metrics import METRICS, SETS, Metric, Sample
from kandinsky.evaluate.scores import RESAMPLES
from kandinsky.files import sweep
from kandinsky.media.video import read_video
from kandinsky.model.values import Video
from kandinsky.printing import shortened

INTERVAL = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric over all clips.

    Attributes:
        value: The mean, or the distance of the set.
        low: Lower end of the 95 % interval, prompts resampled; None for a distance, or a single prompt.
        high: Upper end.
        clips: Number of clips with a value.
        prompts: Number of their prompts.
    """

    value: float
    low: float | None
    high: float | None
    clips: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        values: Value by metric, for each clip in order; a metric that does not apply to a clip is left out.
        figures: Each metric over all clips.
        unavailable: Why each of the others was not measured.
        weights: What each clip weighs in metrics that count pairs of frames; empty: all alike.
    """

    values: tuple[Mapping[str, float], ...]
    figures: Mapping[str, Figure]
    unavailable: Mapping[str, str]
    weights: Sequence[float] = ()

    def weights_of(self, name: str) -> Sequence[float] | None:
        """What each clip weighs in a metric; None: all alike."""
        is_weighted = name in METRICS and METRICS[name].by_frames and self.weights
        return self.weights if is_weighted else None


def needed(names: Sequence[str], *, has_references: bool) -> list[str]:
    """The extractors that these metrics look through."""
    found: dict[str, None] = {}
    for name in names:
        if name in METRICS:
            found |= dict.fromkeys((*METRICS[name].needs, *METRICS[name].uses))
        elif has_references:
            found["i3d"] = None
    return list(found)


def measure(
    files: Sequence[ClipFile],
    names: Sequence[str],
    tools: Tools,
    *,
    references: Path | None = None,
    kept: Path | None = None,
    on_clip: Callable[[int, int], None] = lambda _done, _total: None,
) -> Measured:
    """Measure clips.

    Args:
        files: The clips.
        names: Metrics, of ``METRICS`` and ``SETS``.
        tools: Networks at hand.
        references: Folder with a clip of the same name for each, for metrics that compare.
        kept: File in which values are kept from run to run; None for none.
        on_clip: Called with (done, total) after each clip.

    Returns:
        Values of clips, figures, and what could not be measured.

    Raises:
        RequestError: A clip or its reference cannot be read, or the two differ in shape.
    """
    unavailable: dict[str, str] = {}
    usable: list[Metric] = []
    for name in names:
        if name in METRICS and not (why := _why_not(METRICS[name], tools, references)):
            usable.append(METRICS[name])
        elif name in METRICS:
            unavailable[name] = why
    sets = [name for name in names if name in SETS]
    if sets and (why := _why_no_sets(tools, references)):
        unavailable |= dict.fromkeys(sets, why)
        sets = []
    beside = _beside(files, references)
    memory = _Kept(kept, tools)
    values: list[dict[str, float]] = []
    weights: list[float] = []
    features: list[np.ndarray] = []
    problem = ""
    for done, (one, reference) in enumerate(zip(files, beside, strict=True), 1):
        wanted = [metric for metric in usable if _applies(metric, one)]
        known, open_ = memory.read(one, wanted)
        video: Video | None = None
        if open_ or sets or "frames" not in known:
            video = read_video(one.path)
            known["frames"] = len(video.frames_THWC)
            memory.add(one, "frames", 1, known["frames"])
        for metric in open_:
            assert video is not None
            other = read_video(reference).frames_THWC if metric.needs_reference and reference else None
            sample = Sample(video.frames_THWC, video.fps, one.prompt.text, one.prompt.facts, other)
            known[metric.name] = metric.measure(sample, tools)
            memory.add(one, metric.name, metric.version, known[metric.name])
        if sets and not problem:
            assert video is not None
            try:
                features.append(tools.loaded["i3d"].clip(video.frames_THWC))
            except RequestError as error:
                problem = f"`{one.path.name}`: {error}"
        weights.append(max(1.0, float(known["frames"] or 1) - 1.0))
        values.append({m.name: known[m.name] for m in wanted if known.get(m.name) is not None})
        for name, value in values[-1].items():
            if finite(value) is None:
                unavailable.setdefault(name, f"`{one.path.name}`: its value is {value}, not a finite number")
        on_clip(done, len(files))
    prompts = [one.prompt.key for one in files]
    figures: dict[str, Figure] = {}
    for row in values:
        for name in unavailable:
            row.pop(name, None)
    for metric in usable:
        if metric.name in unavailable:
            continue
        column = [row.get(metric.name) for row in values]
        if (figure := figure_of(column, prompts, weights if metric.by_frames else None)) is None:
            unavailable[metric.name] = "applies to none of the clips"
        else:
            figures[metric.name] = figure
    if sets:
        assert references is not None
        try:
            if problem:
                raise RequestError(problem)
            others = np.stack([_features(tools, path) for path in clips_of(references).values()])
            for name in sets:
                function = distance.frechet if name == "fvd" else distance.kernel
                value = function(np.stack(features), others)
                figures[name] = Figure(value, None, None, len(features), len(set(prompts)))
        except RequestError as error:
            unavailable |= dict.fromkeys(sets, str(error))
    return Measured(tuple(values), figures, unavailable, tuple(weights))


def figure_of(
    column: Sequence[float | None], prompts: Sequence[str], weights: Sequence[float] | None = None
) -> Figure | None:
    """Mean of values with its 95 % interval, resampling prompts, since clips of one prompt depend on each other.

    Args:
        column: Value of each clip; None where there is none.
        prompts: Key of each clip's prompt.
        weights: Weight of each clip; default: all alike.

    Returns:
        The figure; None without values.

    Raises:
        RequestError: A value or a weight is not a finite number, or the weights do not add up to more than 0.
    """
    rows = [(value, key, 1.0 if weights is None else weights[i])
            for i, (value, key) in enumerate(zip(column, prompts, strict=True)) if value is not None]  # fmt: skip
    if not rows:
        return None
    by_prompt: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for value, key, weight in rows:
        if finite(value) is None or finite(weight) is None or weight <= 0:
            raise RequestError(f"prompt `{shortened(key)}`: value {value} of weight {weight} is no finite number")
        by_prompt[key].append((value * weight, weight))
    # a prompt enters a resample with all its clips, so that the interval is of the same mean as the value
    sums_P = np.asarray([math.fsum(value for value, _ in one) for one in by_prompt.values()])
    weights_P = np.asarray([math.fsum(weight for _, weight in one) for one in by_prompt.values()])
    mean = math.fsum(sums_P) / math.fsum(weights_P)
    low = high = None
    if len(by_prompt) > 1:
        draws_RP = np.random.default_rng(0).integers(0, len(sums_P), (RESAMPLES, len(sums_P)))
        means_R = sums_P[draws_RP].sum(axis=1) / weights_P[draws_RP].sum(axis=1)
        low, high = (float(end) for end in np.quantile(means_R, INTERVAL))
    return Figure(mean, low, high, len(rows), len(by_prompt))


def _why_not(metric: Metric, tools: Tools, references: Path | None) -> str:
    if metric.needs_reference and references is None:
        return "compares with references: name their folder"
    return "; ".join(tools.missing.get(name, EXTRACTORS[name].missing("not loaded")) for name in metric.needs
                     if name not in tools.loaded)  # fmt: skip


def _why_no_sets(tools: Tools, references: Path | None) -> str:
    if references is None:
        return "compares with references: name their folder"
    return "" if "i3d" in tools.loaded else tools.missing.get("i3d", EXTRACTORS["i3d"].missing("not loaded"))


def _applies(metric: Metric, one: ClipFile) -> bool:
    if metric.needs_text and not one.prompt.text:
        return False
    return not (metric.is_vbench and one.prompt.dimensions and metric.name not in one.prompt.dimensions)


def _beside(files: Sequence[ClipFile], references: Path | None) -> list[Path | None]:
    """The reference of each clip.

    Raises:
        RequestError: The folder holds clips with these names, but not all.
    """
    if references is None:
        return [None] * len(files)
    there = clips_of(references)
    paired = [there.get(one.path.stem) for one in files]
    lacking = [one for one, path in zip(files, paired, strict=True) if path is None]
    if lacking:
        raise RequestError(f"references `{references}` lack `{lacking[0].path.stem}`: each clip needs one of its name")
    return list(paired)


def _features(tools: Tools, path: Path) -> np.ndarray:
    try:
        return np.asarray(tools.loaded["i3d"].clip(read_video(path).frames_THWC))
    except RequestError as error:
        raise RequestError(f"reference `{path.name}`: {error}") from error


KEY = ("file", "bytes", "mtime", "metric", "version", "weights", "prompt")
Key = tuple[str | int, ...]


class _Kept:
    """Values of earlier runs, one JSON line each; a line that was cut off is measured again."""

    def __init__(self, path: Path | None, tools: Tools) -> None:
        self.path, self.tools = path, tools
        self.known: dict[Key, float | None] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    key = tuple(row[name] for name in KEY)
                    if row["value"] is None or finite(row["value"]) is not None:
                        self.known[key] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue

    def read(self, clip: ClipFile, metrics: Sequence[Metric]) -> tuple[dict[str, Any], list[Metric]]:
        """Values that are known, and the metrics that are not."""
        found: dict[str, Any] = {}
        open_ = []
        for metric in metrics:
            key = self._key(clip, metric.name, metric.version)
            # of a reference it is not known whether it is still the same
            if key in self.known and not metric.needs_reference:
                found[metric.name] = self.known[key]
            else:
                open_.append(metric)
        if (key := self._key(clip, "frames", 1)) in self.known:
            found["frames"] = self.known[key]
        return found, open_

    def add(self, clip: ClipFile, metric: str, version: int, value: float | None) -> None:
        """Keep a value."""
        if value is not None and finite(value) is None:
            return
        key = self._key(clip, metric, version)
        self.known[key] = value
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(zip(KEY, key, strict=True)) | {"value": value}, ensure_ascii=False) + "\n")

    def _key(self, clip: ClipFile, metric: str, version: int) -> Key:
        facts = clip.path.stat()
        one = METRICS.get(metric)
        used = "" if one is None else " ".join(
            f"{name}={self.tools.weights[name]}" for name in (*one.needs, *one.uses) if name in self.tools.weights
        )  # fmt: skip
        asked: list[object] = []
        if one is not None and one.needs_text:
            asked.append(clip.prompt.text)
        if one is not None and one.needs_facts:
            asked.append(clip.prompt.facts)
        prompt = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest() if asked else ""
        return clip.path.name, facts.st_size, facts.st_mtime_ns, metric, version, used, prompt
