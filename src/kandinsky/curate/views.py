"""Scenes as measures see them, and measures and hashes as stages."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping

import numpy as np

from kandinsky.curate import ingest, likeness, measures
from kandinsky.curate.duplicates import FRAMES, NO_HASH
from kandinsky.curate.footage import small_frames
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, reason
from kandinsky.curate.watch import beat
from kandinsky.media.mux import probe
from kandinsky.printing import escaped

log = logging.getLogger(__name__)


def views(file: Row, scenes: Rows) -> Iterator[tuple[Row, measures.View | None]]:
    """Scenes of a file as measures see them; None for those of which no frame can be decoded any more.

    The file is opened and decoded once.
    """
    times = np.asarray(file["times"])
    picked = {scene["id"]: _picked(times, scene["start_frame"], scene["end_frame"]) for scene in scenes}
    waiting, held = list(scenes), dict[int, np.ndarray]()
    try:
        with ingest.example_of(file).decoded() as path:
            video = probe(path, on_packet=beat)
            wanted = set(np.concatenate(list(picked.values())).tolist())
            for number, frame in small_frames(video, measures.SIDE, wanted):
                held[number] = frame
                while waiting and number >= picked[waiting[0]["id"]][-1]:
                    scene = waiting.pop(0)
                    yield scene, _view(file, scene, picked[scene["id"]], held)
                    held = {n: one for n, one in held.items() if n > picked[scene["id"]][-1]}
    except Exception as error:  # it was decoded before: others of its scenes may have been shown
        check_lasting(error)
        log.warning("`%s` cannot be shown to measures: %s", escaped(file["key"]), reason(error))
    for scene in waiting:
        yield scene, _view(file, scene, picked[scene["id"]], held)


def _picked(times: np.ndarray, start: int, end: int) -> np.ndarray:
    length = times[end - 1] - times[start]
    count = int(np.clip(length * measures.FPS + 1, min(3, end - start), measures.MOST))
    moments = times[start] + np.linspace(0, length, count)
    return np.unique(start + np.abs(times[start:end, None] - moments[None]).argmin(0))


def _view(file: Row, scene: Row, picked: np.ndarray, held: Mapping[int, np.ndarray]) -> measures.View | None:
    there = [int(n) for n in picked if int(n) in held]
    if not there:
        return None
    span = slice(scene["start_frame"], scene["end_frame"])
    found = {name: np.asarray(file[name][span], np.float32) for name in ("most", "bright", "luma", "spread")}
    return measures.View.of(np.stack([held[n] for n in there]), [file["times"][n] for n in there], found)


def measure_stage(measure: measures.Measure) -> Stage:
    """A measure as a stage; where it goes wrong, `fault` says why, and the scene has no value."""

    def values(view: measures.View | None) -> Row:
        nothing: Row = dict.fromkeys(measure.gives)
        if view is None:
            return nothing | {"fault": None}
        try:
            found = measure.run(view)
            told = {name: None if one is None else float(one) for name, one in found.items()}
        except Exception as error:  # a network or a package of somebody else's: only this measure has no value
            check_lasting(error)
            return nothing | {"fault": f"{measure.name}: {reason(error)}"}
        beat()
        # what is no number is missing
        return {name: one if one is not None and math.isfinite(one) else None for name, one in told.items()} | {
            "fault": None
        }

    columns = dict.fromkeys(measure.gives, "double") | {"fault": "string"}
    return Stage(
        measure.name,
        measure.revision,
        ("view",),
        columns,
        lambda batch: [values(row["view"]) for row in batch],
        is_of_scenes=True,
    )


def hash_stage() -> Stage:
    """The stage that gives a scene its perceptual hashes."""
    return Stage("hashes", "1", ("view",), {"hashes": "list<uint64>"}, _hashed, is_of_scenes=True)


def _hashed(batch: Rows) -> Rows:
    out: Rows = []
    for row in batch:
        if row["view"] is None:
            out.append({"hashes": None})
            continue
        frames = row["view"].luma_THW
        places = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        out.append({"hashes": [likeness.perceptual_hash(frames[n]) or NO_HASH for n in places]})
    return out
