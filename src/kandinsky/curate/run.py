"""Curating a data set: from a source of videos to the two tables, a report, and clips that train.

Everything that was found out about a file or a scene lies in ``.work/`` of the data set, so that a run goes on where it
was stopped and a changed filter decodes nothing. See ``stages``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kandinsky.curate import buckets, engines, export, ingest, measures, page, scenes, tables
from kandinsky.curate import rules as rule_files
from kandinsky.curate.clip_work import ENDING, STAGE, ClipWork, CutTask, not_cut
from kandinsky.curate.duplicates import Hashed, duplicates
from kandinsky.curate.file_work import FileWork, Found, NotKnownError, Seen, Task, failed
from kandinsky.curate.judging import Level
from kandinsky.curate.speeds import Speeds
from kandinsky.curate.stages import BATCH, FLUSH_S, WORK, Row, Rows, Stage, Store, Tally
from kandinsky.errors import RequestError
from kandinsky.files import local_path, remove, replacing
from kandinsky.printing import escaped
from kandinsky.train.checkpoint import locked
from kandinsky.train.data.arrow import arrow
from kandinsky.train.data.sources import Fault

log = logging.getLogger(__name__)
SUMMARY = "curate.json"
FORMAT = 1


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
        throughput: How fast the stages were when there was something to do last, see ``Speeds.told``.
    """

    folder: Path
    tallies: list[Tally] = field(default_factory=list)
    files: int = 0
    scenes: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    is_new: bool = False
    throughput: dict[str, Any] = field(default_factory=dict)


def curate(
    source: str | Path,
    output: str | Path,
    *,
    rules: str | Path | None = None,
    form: export.Format = "folder",
    shard_mb: int = 256,
    dataset_name: str = "",
    ray: str | None = None,
    workers: int | None = None,
    patience_s: float = engines.PATIENCE_S,
    tell: Callable[[str], None] = log.info,
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
        ray: Address of a Ray cluster whose workers do the work: `local` starts one on this machine, `auto` finds the
            one that it belongs to; None for this process alone. All its machines must see the source and the data set
            under the same paths.
        workers: Number of workers on the cluster; one for each of its CPUs by default.
        patience_s: Seconds without progress on a file after which its worker is restarted.
        tell: Called with a line about workers that come and go.
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
    if ray is None and workers is not None:
        raise RequestError('`workers` is for a Ray cluster: name one with `ray`, such as `ray="local"`')
    if not 0 < patience_s <= engines.LONGEST_PATIENCE_S:
        raise RequestError(f"`patience_s` must be above 0 and up to {engines.LONGEST_PATIENCE_S}, not `{patience_s}`")
    chosen = rule_files.read(None if rules is None else local_path(rules, "rules"))
    work = FileWork(chosen)
    folder = local_path(output, "output").absolute()
    _check_output(folder)
    given, faults = ingest.ingest(source, dataset_name=dataset_name)
    there = next((row["file"] for row in given if row["file"]), "")
    with (
        locked(folder / WORK),
        engines.engine(ray, workers, patience_s, folder / WORK, there, tell) as engine,
    ):
        return _curated(_Run(folder, work, engine, faults, on_progress), given, form, shard_mb)


def _curated(run: _Run, given: Rows, form: export.Format, shard_mb: int) -> Curated:
    made, rules = run.made, run.work.rules
    made.files = len(given)
    files, found = run.look_into(given)
    run.decide(found)
    kept = run.write_clips(files, found, form, shard_mb)
    made.scenes, made.kept = len(found), len(kept)
    made.is_new |= tables.write(_raw_table(files), made.folder / tables.RAW)
    made.is_new |= tables.write(_scene_table(found, rules), made.folder / tables.SCENES)
    made.faults += [Fault(row["key"], row["fault"]) for row in files if row["fault"]]
    made.faults += [Fault(scene["id"], fault) for scene in found for fault in scene["measure_faults"]]
    summary = made.folder / SUMMARY
    made.throughput = run.speeds.told(run.engine.workers, run.wall_s) or _throughput_before(summary)
    _tell(made, rules)
    # an interrupted run may have written the summary, and not the page
    if made.is_new or _written_ns(made.folder / page.NAME) < _written_ns(summary):
        page.write(made.folder, files, found, rules, made.tallies, made.faults, made.throughput)
    return made


def _written_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _throughput_before(summary: Path) -> dict[str, Any]:
    try:
        told = json.loads(summary.read_text(encoding="utf-8"))["throughput"]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or somebody else's
        return {}
    return told if isinstance(told, dict) else {}


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output `{escaped(folder)}` is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise RequestError(f"output `{escaped(folder)}` is no curated data set and not empty: name a new folder")
    (folder / WORK).mkdir(parents=True, exist_ok=True)


class _Run:
    """One run.

    Args:
        folder: Of the data set.
        work: What is done with a file.
        engine: What does it.
        faults: Of the source.
        on_progress: See ``curate``.
    """

    def __init__(
        self,
        folder: Path,
        work: FileWork,
        engine: engines.Engine,
        faults: list[Fault],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.made = Curated(folder, faults=faults)
        self.work, self.engine, self.on_progress = work, engine, on_progress
        self.store = Store(folder / WORK)
        self.speeds = Speeds()
        self.wall_s = 0.0
        self.new: Counter[str] = Counter()

    def look_into(self, given: Rows) -> tuple[Rows, Rows]:
        """Files with what they are, and their scenes; only what is not known is found out."""
        memory = _Memory(self.store, self.work)
        lost: dict[str, str] = {}
        self._find_out(given, memory, lost)
        files: Rows = []
        found: Rows = []
        used: Counter[str] = Counter()
        for row in given:
            if why := row["unusable"] or lost.get(row["key"]):
                nothing: Row = dict.fromkeys(self.work.probe.gives)
                files.append(failed(row | nothing, why))
                continue
            seen = memory.seen(row, used)
            assert seen is not None, row["key"]
            files.append(seen.file)
            found += seen.scenes
        self._tidy(files, found)
        reached = [
            *(used[stage.name] for stage in self.work.of_files[1:]),
            sum(file["status"] == "done" for file in files),
        ]
        for place, stage in enumerate((*self.work.of_files, *self.work.of_scenes)):
            new = min(self.new[stage.name], used[stage.name])
            passed = reached[place] if place < len(reached) else used[stage.name]
            self.made.tallies.append(Tally(stage.name, self.new[stage.name], used[stage.name] - new, passed))
        return files, found

    def _find_out(self, given: Rows, memory: _Memory, lost: dict[str, str]) -> None:
        usable = [row for row in given if not row["unusable"]]
        done = 0

        def todo() -> Iterator[Task]:
            nonlocal done
            for row in usable:
                if memory.seen(row) is None:
                    yield Task(row, memory.of_file(row))
                else:
                    done += 1

        begun = time.monotonic()
        with _Waiting(self.store) as waiting:
            for task, result in self.engine.run(todo(), self.work):
                if isinstance(result, str):
                    result = self._given_up(task.row, result)
                if result.lost:
                    lost[task.row["key"]] = result.lost
                self.speeds.join(result.speeds)
                for stage in (*self.work.of_files, *self.work.of_scenes):
                    rows = result.rows.get(stage.name, [])
                    self.new[stage.name] += len(rows)
                    waiting.add(stage, rows)
                    memory.learn(stage, rows)
                waiting.flush()
                done += 1
                self.on_progress("files", done, len(usable))
        if any(self.new.values()):
            self.wall_s += time.monotonic() - begun
            self.made.is_new = True

    def _given_up(self, row: Row, why: str) -> Found:
        """What is remembered of a file that no worker survives: it is not tried again until it changes."""
        nothing: Row = dict.fromkeys(self.work.probe.gives)
        told = {"key": row["key"], "lineage": self.work.probe.lineage(row["lineage"]), "status": "failed", "fault": why}
        return Found(rows={self.work.probe.name: [nothing | told]})

    def _tidy(self, files: Rows, found: Rows) -> None:
        living = [{file["key"] for file in files}, {scene["id"] for scene in found}]
        for stages, keys in zip((self.work.of_files, self.work.of_scenes), living, strict=True):
            for stage in stages:
                if self.new[stage.name]:
                    self.store.tidy(stage, keys)

    def decide(self, found: Rows) -> None:
        """Give scenes their buckets, and judge them by what depends on others: duplicates, percentiles.

        Only scenes that no other filter dropped are compared.
        """
        rules = self.work.rules
        alive = [one for one in found if not one["dropped_by"]]
        hashed = [
            Hashed(one["id"], tuple(one["hashes"]), one["duration"], one["width"] * one["height"])
            for one in alive
            if one["hashes"]
        ]
        repeated = duplicates(hashed, rules.bits)
        numbers = {name: np.array([one[name] for one in found], float) for name in ("width", "height", "duration")}
        ids = [one["id"] for one in found]
        sizes, lengths = buckets.plan(
            ids, numbers["width"], numbers["height"], numbers["duration"], sizes=rules.sizes, lengths=rules.seconds
        )
        for scene, size, length in zip(found, sizes.tolist(), lengths.tolist(), strict=True):
            scene["duplicate_of"] = repeated.get(scene["id"])
            scene["duplicate"] = scene["id"] in repeated
            scene["bucket"], scene["bucket_seconds"] = size, None if length != length else length
        self.work.judge.judge(alive, Level.ALL)
        for scene in found:
            scene["kept"] = not scene["dropped_by"]
        first = Counter(one["dropped_by"][0] for one in found if one["dropped_by"])
        self.made.dropped = {name: first[name] for name in rules.filters if first[name]}

    def write_clips(self, files: Rows, found: Rows, form: export.Format, shard_mb: int) -> Rows:
        """Clips of the scenes that are kept; those of scenes that cannot be cut are left out, and told."""
        folder = self.made.folder
        clips = folder / export.CLIPS if form == "folder" else folder / WORK / export.CLIPS
        wanted = [one for one in found if one["kept"]]
        cut = self._cut(files, wanted, clips)
        for scene in wanted:
            row = cut[scene["id"]]
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

    def _cut(self, files: Rows, wanted: Rows, clips: Path) -> dict[str, Row]:
        """Rows of clips by scene; what could not be cut is tried again: the disk may have been full."""
        known = self.store.rows(STAGE)

        def is_there(scene: Row) -> bool:
            row = known.get(scene["id"])
            return (
                row is not None
                and row["lineage"] == STAGE.lineage(scene["clip_lineage"])
                and row["clip_bytes"] is not None
                and _size(clips / f"{scene['id']}{ENDING}") == row["clip_bytes"]
            )

        missing: dict[str, Rows] = defaultdict(list)
        count = 0
        for scene in wanted:
            if not is_there(scene):
                missing[scene["raw_key"]].append(scene)
                count += 1
        tasks = (CutTask(file, missing[file["key"]], clips) for file in files if file["key"] in missing)
        begun, done = time.monotonic(), 0
        with _Waiting(self.store) as waiting:
            for task, result in self.engine.run(tasks, ClipWork()):
                rows = [not_cut(scene, result) for scene in task.scenes] if isinstance(result, str) else result.rows
                if not isinstance(result, str):
                    self.speeds.join(result.speeds)
                known |= {row["key"]: row for row in rows}
                waiting.add(STAGE, rows)
                waiting.flush()
                done += len(rows)
                self.on_progress("clips", done, count)
        if count:
            self.wall_s += time.monotonic() - begun
            self.made.is_new = True
            self.store.tidy(STAGE, {scene["id"] for scene in wanted})
        self.made.tallies.append(Tally(STAGE.name, count, len(wanted) - count, len(wanted)))
        return known


class _Memory:
    """What the store knows, as far as it fits: all but what is bulky."""

    def __init__(self, store: Store, work: FileWork) -> None:
        self._store, self._work = store, work
        self._files = {stage.name: store.rows(stage) for stage in work.of_files}
        self._scenes: dict[str, dict[str, dict[str, Row]]] = {}
        for stage in work.of_scenes:
            self._scenes[stage.name] = defaultdict(dict)
            self.learn(stage, list(store.rows(stage).values()))

    def learn(self, stage: Stage, rows: Rows) -> None:
        """Remember rows, but for what is bulky in them."""
        for row in rows:
            if stage.name in self._files:
                self._files[stage.name][row["key"]] = {
                    name: value for name, value in row.items() if name not in stage.bulky
                }
            else:
                self._scenes[stage.name][row["key"].rpartition("-")[0]][row["key"]] = row

    def seen(self, row: Row, used: Counter[str] | None = None) -> Seen | None:
        """A file of which everything is known, else None.

        Args:
            row: Of ``ingest``.
            used: Counts the rows by stage.
        """
        name = scenes.name_of(row["id"])

        def get(stage: Stage, key: str, lineage: str, given: Row) -> Row:
            rows = self._files.get(stage.name) or self._scenes.get(stage.name, {}).get(name, {})
            known = rows.get(key)
            if known is None or known["lineage"] != lineage:
                raise NotKnownError
            if used is not None:
                used[stage.name] += 1
            return known

        try:
            return self._work.seen(row, get)
        except NotKnownError:
            return None

    def of_file(self, row: Row) -> dict[str, dict[str, Row]]:
        """What is known of a file, with what is bulky."""
        key, name = row["key"], scenes.name_of(row["id"])
        known = {stage: {key: rows[key]} for stage, rows in self._files.items() if key in rows}
        signals = self._work.signals
        if signals.name in known:
            try:
                known[signals.name] = {key: known[signals.name][key] | self._store.bulky(signals, key)}
            except RequestError:  # damaged: it is found out again
                del known[signals.name]
        return known | {stage: rows[name] for stage, rows in self._scenes.items() if name in rows}


@dataclass(slots=True)
class _Waiting:
    """Rows that are written together; those that wait when a run ends early are kept too."""

    store: Store
    rows: dict[str, tuple[Stage, Rows]] = field(default_factory=dict)
    files: int = 0
    since: float = field(default_factory=time.monotonic)

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # the disk may be full: what ended the run is told
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self.flush(is_last=True)

    def add(self, stage: Stage, rows: Rows) -> None:
        """Have rows of a stage wait."""
        self.rows.setdefault(stage.name, (stage, []))[1].extend(rows)

    def flush(self, *, is_last: bool = False) -> None:
        """Write what waits, if it is of many files, has waited for long, or is the last."""
        self.files += 1
        if is_last or self.files >= BATCH or time.monotonic() - self.since >= FLUSH_S:
            for stage, rows in self.rows.values():
                if rows:
                    self.store.put(stage, rows)
            self.rows, self.files, self.since = {}, 0, time.monotonic()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


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


def _scene_table(found: Rows, rules: rule_files.Rules) -> Any:
    gives = [name for one in measures.chosen(rules.measures) for name in one.gives]
    columns = dict(tables.SCENE_COLUMNS) | dict.fromkeys(gives, "double")
    rows = [{**one, "lineage": sorted(one["steps"].items())} for one in found]
    return tables.table_of(rows, columns)


def _tell(made: Curated, rules: rule_files.Rules) -> None:
    """``curate.json``: how it was made, and what came of it; the same where nothing was done."""
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
        "throughput": made.throughput,
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
