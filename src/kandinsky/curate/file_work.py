"""Everything that is found out about one file, in the order in which it can be dropped: what any worker does at once.

What is known of a file, from another run, is given and not found out again. The same steps are followed with work, by
a worker, and without, to see what is known: so both agree on what there is to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.curate import captioners, captioning, measures, probing, scenes, shots, signals
from kandinsky.curate.judging import Judge, Level
from kandinsky.curate.rules import Rules
from kandinsky.curate.speeds import DECODING, Speeds
from kandinsky.curate.stages import Row, Rows, Stage
from kandinsky.curate.views import hash_stage, measure_stage, views

Get = Callable[[Stage, str, str, Row], Row]
Known = Mapping[str, Mapping[str, Row]]  # of one file: by stage, then by key
GONE = "it went away while it was read"
_FRAMES = "frames"  # decoding of the frames that measures look at


@dataclass(frozen=True, slots=True)
class Task:
    """A file to look into.

    Attributes:
        row: Of ``ingest``.
        known: What is known of it.
    """

    row: Row
    known: Known

    @property
    def name(self) -> str:
        """The file in words."""
        return f"`{self.row['key']}`"


@dataclass(slots=True)
class Found:
    """What a worker found out about a file.

    Attributes:
        rows: By stage.
        speeds: How long it took.
        lost: Why nothing of it is remembered.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    speeds: Speeds = field(default_factory=Speeds)
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of which everything is known.

    Attributes:
        file: With what it is and where its shots lie; `status` is `done` or `failed`.
        scenes: With measures, and the filters that they do not pass as far as those look at a scene alone.
    """

    file: Row
    scenes: Rows


class NotKnownError(Exception):
    """Something is to be found out."""


class FileWork:
    """Finds out what there is to know about files.

    Args:
        rules: How.

    Raises:
        RequestError: An expression names no column.
        BackendError: A measure or detector is not installed.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.judge = Judge(rules)
        self.probe, self.signals, self.shots = probing.stage(), signals.stage(), shots.stage(rules.shots)
        chosen = measures.chosen(rules.measures)
        self.cheap = [hash_stage(), *(measure_stage(one) for one in chosen if not one.is_costly)]
        self.costly = [measure_stage(one) for one in chosen if one.is_costly]
        self.writes = [captioners.stage(rules.captions)] if rules.captions.is_on else []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rules,)  # stages hold functions, which do not travel

    @property
    def of_files(self) -> list[Stage]:
        """Stages that have a row for each file."""
        return [self.probe, self.signals, self.shots]

    @property
    def of_scenes(self) -> list[Stage]:
        """Stages that have a row for each scene."""
        return [*self.cheap, *self.costly, *self.writes]

    def seen(self, row: Row, get: Get) -> Seen:
        """What is known of a file.

        Args:
            row: Of ``ingest``.
            get: Gives the row of a stage by its key and the lineage that it must have.

        Raises:
            NotKnownError: By ``get``.
        """
        return self._follow(row, get, _nothing_shown)

    def __call__(self, task: Task) -> Found:
        """Find out what is not known of a file.

        Raises:
            Exception: The disk or memory is full, or too many files are open; nothing is wrong with the file.
        """
        found = Found()

        def get(stage: Stage, key: str, lineage: str, given: Row) -> Row:
            known = task.known.get(stage.name, {}).get(key)
            if known is not None and known["lineage"] == lineage:
                return known
            if "view" in stage.needs and "view" not in given:
                raise NotKnownError
            begun = time.perf_counter()
            made = stage.made(key, lineage, {name: given[name] for name in stage.needs})
            work_s = time.perf_counter() - begun
            seconds = (made if stage is self.probe else given)["duration_s"] or 0.0
            found.speeds.add(stage.name, 1, seconds, work_s)
            if stage is self.signals:
                found.speeds.add(DECODING, 1, seconds, made["decode_s"])
            found.rows.setdefault(stage.name, []).append(made)
            return made

        def shown(file: Row, rows: Rows) -> Iterator[tuple[Row, Any]]:
            begun, seconds = time.perf_counter(), 0.0
            for scene, view in views(file, rows):
                seconds += time.perf_counter() - begun
                yield scene, view
                begun = time.perf_counter()
            video_s = sum(scene["duration"] for scene in rows)
            found.speeds.add(_FRAMES, len(rows), video_s, seconds + time.perf_counter() - begun)

        self._follow(task.row, get, shown)
        if not Path(task.row["file"]).is_file():
            return Found(lost=GONE)
        return found

    def _follow(self, row: Row, get: Get, shown: Callable[[Row, Rows], Iterator[tuple[Row, Any]]]) -> Seen:
        file = dict(row)
        for stage in self.of_files:
            lineage = stage.lineage(file["lineage"])
            file |= get(stage, file["key"], lineage, file)
            fault = file["fault"] if file["status"] == "failed" else file.get("signal_fault") or file.get("shot_fault")
            if fault:
                return Seen(failed(file, fault), [])
            file["steps"] = file.get("steps", {}) | {stage.name: stage.revision}
            if stage is self.probe:
                whole = scenes.whole(file)
                self.judge.judge([whole], Level.FILE)
                if whole["dropped_by"]:
                    whole["steps"] = file["steps"]
                    return Seen(file | {"status": "done"}, [self._unmeasured(whole)])
        found = [self._unmeasured(scene) for scene in scenes.of_file(file)]
        for scene in found:
            scene["steps"] = dict(file["steps"])
        self.judge.judge(found, Level.SHOTS)
        waiting = []
        for scene in found:
            if not scene["dropped_by"]:
                measured = dict(scene)
                try:
                    self._measure(measured, get, {})
                except NotKnownError:
                    waiting.append(scene)
                else:
                    scene |= measured
        if waiting:
            for scene, view in shown(file, waiting):
                self._measure(scene, get, {"view": view})
        return Seen({name: file[name] for name in file if name not in self.signals.bulky} | {"status": "done"}, found)

    def _unmeasured(self, scene: Row) -> Row:
        for stage in (*self.cheap, *self.costly):
            scene |= {name: None for name in stage.gives if name != "fault"}
        return scene

    def _measure(self, scene: Row, get: Get, given: Row) -> None:
        """Take the measures of a scene in turn, as long as no filter drops it."""
        given = given | {"duration_s": scene["duration"]}
        steps = ((self.cheap, Level.MEASURES), (self.costly, Level.COSTLY), (self.writes, Level.CAPTIONS))
        for stages, level in steps:
            for stage in stages:
                row = get(stage, scene["id"], stage.lineage(scene["lineage"]), given)
                if stage in self.writes:
                    scene |= captioning.added(scene, row)
                else:
                    scene |= {name: row[name] for name in stage.gives if name != "fault"}
                if row.get("fault"):
                    scene["measure_faults"] = [*scene["measure_faults"], row["fault"]]
                scene["steps"] = scene["steps"] | {stage.name: stage.revision}
            self.judge.judge([scene], level)
            if scene["dropped_by"]:
                return


def _nothing_shown(file: Row, rows: Rows) -> Iterator[tuple[Row, Any]]:
    raise NotKnownError


def failed(file: Row, fault: str) -> Row:
    """A file of which there are no scenes, with the reason."""
    return file | {"status": "failed", "fault": fault}


def went_wrong(row: Row) -> bool:
    """Whether a row of a stage tells of a failure: of a file, its signals, its shots, or a measure."""
    if "status" in row:
        return bool(row["status"] == "failed")
    return any(bool(row.get(name)) for name in ("fault", "signal_fault", "shot_fault"))
