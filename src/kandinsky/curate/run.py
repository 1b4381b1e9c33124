"""Curating a data set: from a source of videos to the two tables, a report, and clips that train.

Everything that was found out about a file or a scene lies in ``.work/`` of the data set, so that a run goes on where it
was stopped and a changed filter decodes nothing. See ``stages``.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.curate import (
    buckets,
    captioning,
    export,
    ingest,
    likeness,
    measures,
    page,
    probing,
    shots,
    signals,
    tables,
)
from kandinsky.curate import rules as rule_files
from kandinsky.curate.duplicates import FRAMES, NO_HASH, Hashed, duplicates
from kandinsky.curate.footage import small_frames
from kandinsky.curate.stages import BATCH, WORK, Row, Rows, Stage, Store, Tally, apply, check_lasting, digest
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import local_path, remove, replacing
from kandinsky.media.mux import probe
from kandinsky.printing import escaped
from kandinsky.train.checkpoint import locked
from kandinsky.train.data.dataset import arrow
from kandinsky.train.data.sources import Fault

log = logging.getLogger(__name__)
SUMMARY = "curate.json"
FORMAT = 1
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,80}")
_TEXTS = ("dataset_name", "source", "begins_with", "ends_with", "prompt", "container", "video_codec")


@dataclass(slots=True)
class Curated:
    """A data set that was curated.

    Attributes:
        folder: Of the data set.
        tallies: What each stage did.
        files: Number of source files.
        scenes: Number of scenes.
        kept: Number of those that passed all filters and were written.
        dropped: Scenes that each filter was the first to drop.
        faults: Files that cannot be used, or are odd.
        is_new: Whether anything was written.
    """

    folder: Path
    tallies: list[Tally] = field(default_factory=list)
    files: int = 0
    scenes: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    is_new: bool = False


def curate(
    source: str | Path,
    output: str | Path,
    *,
    rules: str | Path | None = None,
    form: export.Format = "folder",
    shard_mb: int = 256,
    dataset_name: str = "",
    on_progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Curated:
    """Curate a data set. A run that was stopped goes on; over a finished one, only what changed is done.

    Args:
        source: What ``ingest`` reads.
        output: Folder of the data set.
        rules: The file that ``rules.read`` reads.
        form: `folder` for clips and `metadata.jsonl`, `shards` for WebDataset.
        shard_mb: Size of the shards, in megabytes.
        dataset_name: Stands in the raw table; the name of the source by default.
        on_progress: Called with a stage, and how many of its rows are done.

    Raises:
        RequestError: The source, the rules or the folder cannot be used, or an expression names no column.
        BackendError: A package is not installed.
    """
    arrow()
    if form not in ("folder", "shards"):
        raise RequestError(f"format `{escaped(form)}`: use `folder` or `shards`")
    if shard_mb < 1:
        raise RequestError(f"`shard_mb` must be 1 or more, not `{shard_mb}`")
    chosen = rule_files.read(None if rules is None else local_path(rules, "rules"))
    folder = local_path(output, "output")
    _check_output(folder)
    given, faults = ingest.ingest(source, dataset_name=dataset_name)
    with locked(folder / WORK):
        return _curated(folder, given, faults, chosen, form, shard_mb, on_progress)


def _curated(
    folder: Path,
    given: Rows,
    faults: list[Fault],
    chosen: rule_files.Rules,
    form: export.Format,
    shard_mb: int,
    on_progress: Callable[[str, int, int], None],
) -> Curated:
    made = Curated(folder, files=len(given), faults=faults)
    store = Store(folder / WORK)
    run = _Run(store, made, on_progress)
    files = run.files(given, chosen)
    scenes = run.scenes(files, chosen)
    scenes = run.decide(files, scenes, chosen)
    kept = run.write_clips(scenes, form, shard_mb)
    made.scenes, made.kept = len(scenes), len(kept)
    made.is_new |= tables.write(_raw_table(files), folder / tables.RAW)
    made.is_new |= tables.write(_scene_table(scenes, chosen), folder / tables.SCENES)
    faults += [Fault(row["key"], row["fault"]) for row in files if row["fault"]]
    _tell(made, chosen)
    # an interrupted run may have written the summary, and not the page
    if made.is_new or _written_ns(folder / page.NAME) < _written_ns(folder / SUMMARY):
        page.write(folder, files, scenes, chosen, made.tallies, faults)
    return made


def _written_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output `{escaped(folder)}` is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise RequestError(f"output `{escaped(folder)}` is no curated data set and not empty: name a new folder")
    (folder / WORK).mkdir(parents=True, exist_ok=True)


@dataclass(slots=True)
class _Run:
    store: Store
    made: Curated
    on_progress: Callable[[str, int, int], None]

    def apply(self, stage: Stage, rows: Rows, is_there: Callable[[Row], bool] = lambda _: True) -> Rows:
        """All rows of a stage, a batch at a time."""
        tally = Tally(stage.name, passed=len(rows))
        out = apply(
            stage, rows, self.store, tally, is_there, lambda done: self.on_progress(stage.name, done, len(rows))
        )
        self.made.tallies.append(tally)
        self.made.is_new |= tally.new > 0
        return out

    def files(self, given: Rows, rules: rule_files.Rules) -> Rows:
        """Files with what they are, their signals and their shots; a raw table's own columns stand under `given`."""
        rows = self.apply(probing.stage(), given)
        ready = [row for row in rows if row["status"] == "ready"]
        self.made.tallies[-1].passed = len(ready)
        for stage in (signals.stage(), shots.stage(rules.shots)):
            ready = self.apply(stage, ready)
        done = {row["key"]: row for row in ready}
        out = []
        for row in rows:
            row = done.get(row["key"], row)
            fault = row.get("signal_fault")
            status = "failed" if row["status"] == "failed" or fault else "done"
            out.append({**row, "status": status, "fault": fault or row["fault"]})
        return out

    def scenes(self, files: Rows, rules: rule_files.Rules) -> Rows:
        """Scenes with their hashes and measures; each file is decoded once for all that is missing."""
        stages = [_hash_stage(), *(_measure_stage(one) for one in measures.chosen(rules.measures))]
        rows = [scene for file in files if file["status"] == "done" for scene in _scenes_of(file)]
        known = {stage.name: self.store.rows(stage) for stage in stages}
        tallies = [Tally(stage.name, passed=len(rows)) for stage in stages]
        missing: dict[str, list[Stage]] = defaultdict(list)
        for stage, tally in zip(stages, tallies, strict=True):
            for scene in rows:
                lineage = stage.lineage(scene["lineage"])
                if known[stage.name].get(scene["id"], {}).get("lineage") == lineage:
                    tally.known += 1
                else:
                    tally.new += 1
                    missing[scene["id"]].append(stage)
        waiting: dict[str, Rows] = defaultdict(list)
        by_file: dict[str, Rows] = defaultdict(list)
        for scene in rows:
            if scene["id"] in missing:
                by_file[scene["raw_key"]].append(scene)
        done = 0
        for file in files:
            for scene, view in _views(file, by_file.get(file["key"], [])):
                for stage in missing[scene["id"]]:
                    (found,) = stage.run([{"view": view}])
                    row = {"key": scene["id"], "lineage": stage.lineage(scene["lineage"]), **found}
                    waiting[stage.name].append(row)
                done += 1
                self.on_progress("measures", done, len(missing))
                if done % BATCH == 0:
                    self._put(stages, waiting, known)
        self._put(stages, waiting, known)
        living = {scene["id"] for scene in rows}
        for stage, tally in zip(stages, tallies, strict=True):
            if tally.new:
                self.store.tidy(stage, living)
        self.made.tallies += tallies
        self.made.is_new |= any(tally.new for tally in tallies)
        for scene in rows:
            steps = dict(scene["steps"])
            for stage in stages:
                row = known[stage.name][scene["id"]]
                scene |= {name: row[name] for name in stage.gives}
                steps[stage.name] = stage.revision
            scene["steps"] = steps
        return rows

    def _put(self, stages: Sequence[Stage], waiting: dict[str, Rows], known: dict[str, dict[str, Row]]) -> None:
        for stage in stages:
            if rows := waiting.pop(stage.name, []):
                known[stage.name] |= {row["key"]: row for row in self.store.put(stage, rows)}

    def decide(self, files: Rows, scenes: Rows, rules: rule_files.Rules) -> Rows:
        """Scenes with captions, duplicates, buckets, and the filters that they do not pass."""
        hashed = [
            Hashed(one["id"], tuple(one["hashes"]), one["duration"], one["width"] * one["height"])
            for one in scenes
            if one["hashes"]
        ]
        repeated = duplicates(hashed, rules.bits)
        numbers = {name: np.array([one[name] for one in scenes], float) for name in ("width", "height", "duration")}
        ids = [one["id"] for one in scenes]
        sizes, lengths = buckets.plan(
            ids, numbers["width"], numbers["height"], numbers["duration"], sizes=rules.sizes, lengths=rules.seconds
        )
        for scene, size, length in zip(scenes, sizes.tolist(), lengths.tolist(), strict=True):
            scene["duplicate_of"] = repeated.get(scene["id"])
            scene["duplicate"] = scene["id"] in repeated
            scene["bucket"], scene["bucket_seconds"] = size, None if length != length else length
        columns = columns_of(scenes)
        verdicts = {name: rule.holds(columns) for name, rule in rules.filters.items()}
        for number, scene in enumerate(scenes):
            scene["dropped_by"] = [name for name, holds in verdicts.items() if not holds[number]]
            scene["kept"] = not scene["dropped_by"]
        first = Counter(one["dropped_by"][0] for one in scenes if one["dropped_by"])
        self.made.dropped = {name: first[name] for name in rules.filters if first[name]}
        return scenes

    def write_clips(self, scenes: Rows, form: export.Format, shard_mb: int) -> Rows:
        """Clips of the scenes that are kept; those of scenes that cannot be cut are left out, and told."""
        folder = self.made.folder
        clips = folder / export.CLIPS if form == "folder" else folder / WORK / export.CLIPS
        wanted = [one for one in scenes if one["kept"]]
        stage = export.stage(clips)
        cut = self.apply(
            stage,
            export.rows_to_cut(wanted),
            # what could not be cut is tried again: the disk may have been full
            lambda row: (
                row["clip_bytes"] is not None and _size(clips / f"{row['key']}{export.ENDING}") == row["clip_bytes"]
            ),
        )
        by_id = {row["id"]: row for row in cut}
        for scene in wanted:
            row = by_id[scene["id"]]
            scene["clip_bytes"] = row["clip_bytes"]
            if row["clip_fault"]:
                scene["kept"], scene["dropped_by"] = False, ["export"]
                self.made.faults.append(Fault(scene["id"], row["clip_fault"]))
            scene["path"] = None if row["clip_fault"] or form == "shards" else f"{export.CLIPS}/{scene['id']}.mp4"
        kept = [one for one in wanted if one["kept"]]
        if form == "folder":
            self.made.is_new |= export.write_folder(kept, folder)
            remove(folder / WORK / export.CLIPS)
        else:
            self.made.is_new |= export.write_shards(kept, folder, clips, shard_mb)
        return kept


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _scenes_of(file: Row) -> Rows:
    prompt, captions, flags = captioning.of_scene(file["captions"])
    given, out = file["given"], []
    name = file["id"] if _SAFE.fullmatch(file["id"]) else digest(file["id"])
    for start, end, begins, ends in zip(file["starts"], file["ends"], file["begin"], file["finish"], strict=True):
        start, end = int(start), int(end)
        times = file["times"]
        start_s = times[start]
        end_s = times[end] if end < len(times) else max(file["duration_s"], times[-1])
        out.append(
            {
                "id": f"{name}-{round(start_s * 1000):09d}",
                "raw_id": file["id"],
                "raw_key": file["key"],
                "file": file["file"],
                "offset": file["offset"],
                "bytes": file["bytes"],
                "source": file["key"],
                "dataset_name": file["dataset_name"],
                "obs_endpoint": file["obs_endpoint"],
                "path": None,
                "prompt": prompt,
                "captions": captions,
                "caption_flags": flags,
                "width": file["width"],
                "height": file["height"],
                "fps": file["fps"],
                "container": file["container"],
                "video_codec": file["video_codec"],
                "start_s": start_s,
                "end_s": end_s,
                "duration": end_s - start_s,
                "start_frame": start,
                "end_frame": end,
                "begins_with": begins,
                "ends_with": ends,
                "undecodable": file["undecodable"],
                "wrong_container": bool(file["fault"]) and str(file["fault"]).startswith("wrong container"),
                "aesthetic_score": _number(given.get("aesthetic_score")),
                "lineage": digest(file["lineage"], start, end),
                "clip_lineage": digest(file["lineage"], start, end, "clip"),
                "steps": {"probe": probing.stage().revision, "signals": signals.stage().revision, "shots": "1"},
            }
        )
    return out


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _views(file: Row, scenes: Rows) -> Iterator[tuple[Row, measures.View | None]]:
    """Scenes of a file as measures see them; None for those of which no frame can be decoded any more."""
    if not scenes:
        return
    times = np.asarray(file["times"])
    picked = {scene["id"]: _picked(times, scene["start_frame"], scene["end_frame"]) for scene in scenes}
    waiting, held = list(scenes), dict[int, np.ndarray]()
    try:
        with ingest.example_of(file).decoded() as path:
            video = probe(path)
            wanted = set(np.concatenate(list(picked.values())).tolist())
            for number, frame in small_frames(video, measures.SIDE, wanted):
                held[number] = frame
                while waiting and number >= picked[waiting[0]["id"]][-1]:
                    scene = waiting.pop(0)
                    yield scene, _view(file, scene, picked[scene["id"]], held)
                    held = {n: one for n, one in held.items() if n > picked[scene["id"]][-1]}
    except KandinskyError as error:
        check_lasting(error)
        if not Path(file["file"]).is_file():  # it was there before, and may be again: nothing is remembered of it
            raise
        log.warning("`%s` cannot be shown to measures: %s", escaped(file["key"]), error)
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


def _measure_stage(measure: measures.Measure) -> Stage:
    def run(batch: Rows) -> Rows:
        return [
            dict.fromkeys(measure.gives) if row["view"] is None else dict(measure.run(row["view"])) for row in batch
        ]

    return Stage(measure.name, measure.revision, ("view",), dict.fromkeys(measure.gives, "double"), run)


def _hash_stage() -> Stage:
    return Stage("hashes", "1", ("view",), {"hashes": "list<uint64>"}, _hashed)


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


def columns_of(scenes: Rows) -> dict[str, np.ndarray]:
    """What filters can name: numbers, truth values and texts of scenes."""
    columns: dict[str, np.ndarray] = {}
    names = [name for name in tables.SCENE_COLUMNS if tables.SCENE_COLUMNS[name] in ("double", "int32", "int64")]
    names += ["undecodable", *(name for one in measures.MEASURES.values() for name in one.gives)]
    for name in dict.fromkeys(names):
        if not scenes or name in scenes[0]:
            columns[name] = np.array([np.nan if one[name] is None else one[name] for one in scenes], float)
    for name in _TEXTS:
        columns[name] = np.array([one[name] for one in scenes], object)
    for name in ("duplicate", "wrong_container"):
        columns[name] = np.array([one[name] for one in scenes], bool)
    columns["caption_count"] = np.array([len(one["captions"]) for one in scenes], float)
    columns["caption_faults"] = np.array([len(one["caption_flags"]) for one in scenes], float)
    return columns


def _raw_table(files: Rows) -> Any:
    """The raw table; columns of a raw table that was the source stay as they were, but for what a run finds out."""
    own = tables.RAW_COLUMNS
    table = tables.table_of(files, own)
    extra = list(dict.fromkeys(name for row in files for name in row["given"] if name not in own))
    if extra:
        pa, _ = arrow()
        for name in extra:
            table = table.append_column(name, pa.array([row["given"].get(name) for row in files]))
    return table


def _scene_table(scenes: Rows, rules: rule_files.Rules) -> Any:
    gives = [name for one in measures.chosen(rules.measures) for name in one.gives]
    columns = dict(tables.SCENE_COLUMNS) | dict.fromkeys(gives, "double")
    rows = [{**one, "lineage": sorted(one["steps"].items())} for one in scenes]
    return tables.table_of(rows, columns)


def _tell(made: Curated, rules: rule_files.Rules) -> None:
    """``curate.json``: how it was made, and what came of it; the same for the same data."""
    told = {
        "format": FORMAT,
        "files": made.files,
        "scenes": made.scenes,
        "kept": made.kept,
        "dropped": made.dropped,
        "filters": {name: rule.text for name, rule in rules.filters.items()},
        "shots": asdict(rules.shots),
        "duplicate_bits": rules.bits,
        "measures": {one.name: _origin(one) for one in measures.chosen(rules.measures)},
        "faults": [asdict(one) for one in made.faults],
    }
    text = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    path = made.folder / SUMMARY
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    made.is_new = True
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _origin(one: measures.Measure) -> dict[str, str]:
    return {"revision": one.revision, "licence": one.licence, "weights": one.weights or "none"}
