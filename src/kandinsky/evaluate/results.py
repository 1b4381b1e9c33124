"""The result of an evaluation: a JSON file that says what was measured, on what, how, and what was not.

It holds the model and its settings, the machine, the prompt set by its digest, the seed and the values of each clip, a
figure with an interval for each metric, and the reason for each metric without one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.evaluate.clip_files import ClipFile
from kandinsky.evaluate.extractors import Tools
from kandinsky.evaluate.finite import finite
from kandinsky.evaluate.measuring import Figure, Measured, figure_of
from kandinsky.evaluate.metrics import METRICS, OFFICIAL_ONLY, SETS, official_only
from kandinsky.evaluate.suites import Suite
from kandinsky.evaluate.vbench import Totals, is_official, read_official, totals
from kandinsky.files import replacing
from kandinsky.media import recipe as recipes
from kandinsky.printing import shortened
from kandinsky.runtime import devices

FILE = "result.json"
VERSION = 1
LIKE = "VBench-like"
OFFICIAL = "official"
SCORES = ("quality", "semantic", "total")
# of a recipe, what differs from clip to clip
_OF_A_CLIP = ("prompt", "seed", "expanded_prompt", "unused_words", "kept_blocks", "versions")


@dataclass(frozen=True, slots=True)
class Result:
    """A result file.

    Attributes:
        suite: Key of the suite.
        model: The model, or what the clips are called.
        metrics: Figure and facts by metric.
        unavailable: Why each other metric has no figure.
        prompts: File, digest, column and number of the prompts.
        recipe: Settings that all clips share.
        machine: What it ran on.
        cost: Seconds of a clip and how many clips they are the mean of; None where it is not known.
        clips: What each clip is, and its values.
        tags: Means by kind of tag, tag and metric.
        totals: VBench's scores; None for other suites.
        folder: Where the file lies, to which the clips' paths are relative.
    """

    suite: str
    model: str
    metrics: Mapping[str, Mapping[str, Any]]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] | None = None
    clips: Sequence[Mapping[str, Any]] = ()
    tags: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    totals: Mapping[str, Any] | None = None
    folder: Path = Path()


def build(
    suite: Suite, model: str, files: Sequence[ClipFile], measured: Measured, tools: Tools, *,
    prompts: Path | None, column: str | None, folder: Path, seconds: Mapping[str, float],
) -> Result:  # fmt: skip
    """The result of what was measured.

    Args:
        suite: The suite.
        model: The model, or what the clips are called.
        files: The clips.
        measured: Their values.
        tools: The networks that were used.
        prompts: The prompt file; None where the clips were taken as they are.
        column: The column that was chosen.
        folder: Where the result will lie.
        seconds: Seconds that a clip took, by the stem of its file.
    """
    metrics = {name: _described(name, one, tools) for name, one in measured.figures.items()}
    unavailable = dict(measured.unavailable)
    if suite.name == "vbench":
        unavailable |= {name: official_only(name) for name in OFFICIAL_ONLY}
    clips = []
    shared: dict[str, Any] | None = None
    for one, values in zip(files, measured.values, strict=True):
        recipe = dict(recipes.read_if_any(one.path))
        mine = {key: value for key, value in recipe.items() if key not in _OF_A_CLIP}
        shared = mine if shared is None else {key: value for key, value in shared.items() if mine.get(key) == value}
        clips.append(
            {
                "file": os.path.relpath(one.path, folder), "key": one.prompt.key, "prompt": one.prompt.text,
                "seed": recipe.get("seed") if one.seed is None else one.seed, "tags": dict(one.prompt.tags),
                "taken_s": seconds.get(one.path.stem), "values": dict(values),
            }
        )  # fmt: skip
    taken = [seconds[one.path.stem] for one in files if one.path.stem in seconds]
    raw = {name: one["value"] for name, one in metrics.items() if one.get("label") == LIKE}
    return Result(
        suite.name,
        model,
        metrics,
        unavailable,
        prompts=_of_prompts(prompts, column, files),
        recipe=shared or {},
        machine=machine(),
        cost={"seconds": math.fsum(taken) / len(taken), "clips": len(taken)} if taken else None,
        clips=clips,
        tags=_by_tag(files, measured),
        totals=_shown(totals(raw), LIKE) if suite.name == "vbench" else None,
        folder=folder,
    )


def machine() -> dict[str, Any]:
    """What this runs on: device, processor, cores, platform, versions."""
    device = devices.choose_device()
    name = None if devices.device_memory(device) is None else devices.device_name(device)
    facts = {
        "device": device, "accelerator": name, "processor": devices.processor_name(),
        "cores": devices.processor_count(),
        "platform": platform.platform(), "python": platform.python_version(), "versions": recipes.versions(),
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value is not None}


def write(result: Result, path: Path) -> Path:
    """Write a result file, whole or not at all.

    Raises:
        RequestError: It cannot be written.
    """
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "folder"}
    head = {
        "kandinsky_evaluation": VERSION, "kandinsky": kandinsky.__version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    with replacing(path) as part:
        part.write_text(
            json.dumps(head | values, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    return path


def read(path: str | Path) -> Result:
    """Read a result file of ours, or one of the official VBench tool.

    Args:
        path: The file, or the folder of a run.

    Returns:
        The result; for one of the official tool, the model is the file's name.

    Raises:
        RequestError: It cannot be read, is another file, or is of a newer version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"result `{path}` is not JSON") from error
    except OSError as error:
        raise RequestError(f"result `{path}` cannot be read: {error.strerror}") from error
    if is_official(values):
        raw = read_official(path)
        metrics = {name: {"value": value, "better": "higher", "label": OFFICIAL} for name, value in raw.items()}
        stem = path.stem.removesuffix("_eval_results").removesuffix("_results")
        return Result("vbench", stem, metrics, totals=_shown(totals(raw), OFFICIAL), folder=path.parent)
    if not isinstance(values, dict) or "kandinsky_evaluation" not in values:
        raise RequestError(f"`{path}` is no result: use a `{FILE}` of `kandinsky evaluate`, or VBench's own")
    if values["kandinsky_evaluation"] != VERSION:
        raise RequestError(
            f"result `{path}` has version {shortened(values['kandinsky_evaluation'])}: this library reads {VERSION}"
        )
    _check(values, path)
    known = {f.name for f in dataclasses.fields(Result)} - {"folder"}
    return Result(**{name: value for name, value in values.items() if name in known}, folder=path.parent)


def _check(values: Mapping[str, Any], path: Path) -> None:
    """Refuse values of other kinds than ``Result`` says, so that whoever reads a result need not ask.

    Raises:
        RequestError: Something is missing or of another kind.
    """
    kinds = {"suite": str, "model": str, "metrics": dict, "unavailable": dict, "clips": list}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise RequestError(f"result `{path}` is damaged: `{name}` is missing")
    for name, one in values["metrics"].items():
        if not isinstance(one, dict) or finite(one.get("value")) is None:
            raise RequestError(f"result `{path}` is damaged: metric `{shortened(name)}` has no value")
        if not all(one.get(end) is None or finite(one[end]) is not None for end in ("low", "high")):
            raise RequestError(f"result `{path}` is damaged: the interval of metric `{shortened(name)}` is no numbers")
    cost, scores = values.get("cost"), values.get("totals")
    is_right = {
        "unavailable": all(isinstance(why, str) for why in values["unavailable"].values()),
        "clips": all(
            isinstance(one, dict) and isinstance(one.get("file", ""), str) and "\0" not in one.get("file", "")
            for one in values["clips"]
        ),
        **{name: isinstance(values.get(name, {}), dict) for name in ("prompts", "recipe", "machine", "tags")},
        "cost": cost is None
        or (isinstance(cost, dict) and all(finite(cost.get(name)) is not None for name in ("seconds", "clips"))),
        "totals": scores is None
        or (
            isinstance(scores, dict)
            and all(scores.get(name) is None or finite(scores[name]) is not None for name in SCORES)
        ),
    }
    for name, right in is_right.items():
        if not right:
            raise RequestError(f"result `{path}` is damaged: `{name}` is of another kind")


def table(result: Result) -> str:
    """A result as text: a line for each figure, then what is unavailable and why."""
    lines = [f"{result.model} on {result.suite}: {len(result.clips)} clips"]
    width = max((len(name) for name in result.metrics), default=0)
    for name, one in result.metrics.items():
        low, high = one.get("low"), one.get("high")
        spread = f"  [{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""
        label = f"  {one['label']}" if one.get("label") else ""
        mark = {"higher": "↑", "lower": "↓"}.get(str(one.get("better")), " ")
        lines.append(f"  {name:{width}}  {_number(one['value']):>8} {mark}{spread}{label}")
    if result.totals is not None:
        for name in SCORES:
            value = result.totals.get(name)
            shown = "unknown" if value is None else f"{value:.4f}"
            lines.append(f"  {f'VBench {name}':{width}}  {shown:>8}    {result.totals.get('label')}")
    if result.cost is not None:
        lines.append(f"  {result.cost['seconds']:.2f} s a clip, mean of {result.cost['clips']}")
    lines += [f"  unavailable: {name}: {why}" for name, why in result.unavailable.items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def _described(name: str, figure: Figure, tools: Tools) -> dict[str, Any]:
    told: dict[str, Any] = dataclasses.asdict(figure)
    if name in SETS:
        return told | {
            "better": "lower",
            "version": 1,
            "about": SETS[name],
            "weights": {"i3d": tools.weights.get("i3d")},
        }
    metric = METRICS[name]
    told |= {"better": metric.better, "version": metric.version, "about": metric.about}
    if metric.is_vbench:
        told["label"] = LIKE
    if used := {one: tools.weights[one] for one in (*metric.needs, *metric.uses) if one in tools.weights}:
        told["weights"] = used
    return told


def _of_prompts(path: Path | None, column: str | None, files: Sequence[ClipFile]) -> dict[str, Any]:
    told: dict[str, Any] = {"count": len({one.prompt.key for one in files}), "column": column}
    if path is not None:
        told |= {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return told


def _by_tag(files: Sequence[ClipFile], measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """Means of metrics by tag; a tag that lists several words by commas counts for each."""
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, one in enumerate(files):
        for kind, words in one.prompt.tags.items():
            for word in dict.fromkeys(part.strip() for part in words.split(",") if part.strip()):
                rows[kind][word].append(i)
    made: dict[str, dict[str, dict[str, float]]] = {}
    for kind, by_word in rows.items():
        for word, places in sorted(by_word.items()):
            means = {}
            for name in measured.figures:
                column = [measured.values[i].get(name) for i in places]
                weights = measured.weights_of(name)
                mine = None if weights is None else [weights[i] for i in places]
                if (figure := figure_of(column, [files[i].prompt.key for i in places], mine)) is not None:
                    means[name] = figure.value
            made.setdefault(kind, {})[word] = means
    return made


def _shown(found: Totals, label: str) -> dict[str, Any]:
    return {
        "quality": found.quality, "semantic": found.semantic, "total": found.total, "label": label,
        "missing": list(found.missing), "normalised": dict(found.normalised),
    }  # fmt: skip
