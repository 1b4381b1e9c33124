"""Curating a data set: from a source of videos to the two tables, a report, and clips that train.

Everything that was found out about a file or a scene lies in ``.work/`` of the data set, so that a run goes on where it
was stopped and a changed filter decodes nothing. See ``stages``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kandinsky.curate import engines, export, ingest, measures, page, scenes, tables
from kandinsky.curate import rules as rule_files
from kandinsky.curate.clip_work import ENDING, STAGE, ClipWork, CutTask, not_cut
from kandinsky.curate.fetching import MOST_MB, Fetcher
from kandinsky.curate.file_work import FileWork, Found, NotKnownError, Seen, Task, failed, went_wrong
from kandinsky.curate.scene_rows import SceneRows
from kandinsky.curate.speeds import Speeds
from kandinsky.curate.spool import Spool
from kandinsky.curate.stages import BATCH, FLUSH_S, WORK, Row, Rows, Stage, Tally
from kandinsky.curate.store import Store
from kandinsky.errors import RequestError
from kandinsky.files import local_path, remove, replacing
from kandinsky.printing import escaped
from kandinsky.train.checkpoint import locked
from kandinsky.train.data.arrow import arrow
from kandinsky.train.data.sources import Fault

log = logging.getLogger(__name__)
SUMMARY = "curate.json"
DOWNLOADS = "downloads"
FORMAT = 1
_SPACE = "rows-"  # of the folder for rows that are too many for memory
# a file whose workers all died
GIVEN_UP = Stage("given_up", "1", (), {"given_up": "string"}, lambda _: [])
_FILE_COLUMNS = {"key": "string", "file": "string", "offset": "int64", "given_row": "int64"}


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
    retry: bool = False,
    downloads: str | Path | None = None,
    most_mb: int = MOST_MB,
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
        retry: Whether files and measures that went wrong are tried again, though nothing has changed.
        downloads: Folder for files that the source names by http(s) addresses, which several data sets may share; in
            the data set by default.
        most_mb: Largest file that is fetched, in megabytes.
        tell: Called with a line about workers that come and go, and addresses that gave no file.
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
    if most_mb < 1:
        raise RequestError(f"`most_mb` must be 1 or more, not `{most_mb}`")
    if ray is None and workers is not None:
        raise RequestError('`workers` is for a Ray cluster: name one with `ray`, such as `ray="local"`')
    if not 0 < patience_s <= engines.LONGEST_PATIENCE_S:
        raise RequestError(f"`patience_s` must be above 0 and up to {engines.LONGEST_PATIENCE_S}, not `{patience_s}`")
    chosen = rule_files.read(None if rules is None else local_path(rules, "rules"))
    work = FileWork(chosen)
    folder = local_path(output, "output").absolute()
    _check_output(folder)
    cache = folder / WORK / DOWNLOADS if downloads is None else local_path(downloads, "downloads").absolute()
    fetch = Fetcher(cache, most_mb=most_mb, retry=retry, on_progress=partial(on_progress, "addresses"))
    with locked(folder / WORK):
        given = ingest.ingest(source, dataset_name=dataset_name, fetch=fetch)
        if fetch.failed:
            tell(f"{fetch.failed} of the {fetch.asked} addresses gave no file")
        there = next((row["file"] for row in given.rows if row["file"]), "")
        for name in (engines.SIGN, _SPACE):
            for left in folder.joinpath(WORK).glob(f"{name}*"):  # of runs that were killed
                remove(left)
        with (
            engines.engine(ray, workers, patience_s, folder / WORK, there, tell) as engine,
            tempfile.TemporaryDirectory(prefix=_SPACE, dir=folder / WORK) as space,
        ):
            return _curated(_Run(folder, work, engine, given, Path(space), on_progress, retry), form, shard_mb)


def _curated(run: _Run, form: export.Format, shard_mb: int) -> Curated:
    made, rules = run.made, run.work.rules
    made.files = len(run.given.rows)
    run.look_into()
    files, found = run.files, run.found
    made.dropped = found.decide(run.work.judge, rules.bits)
    run.write_clips(form, shard_mb)
    made.scenes, made.kept = len(found), int(found.kept.sum())
    made.is_new |= tables.write_parts(made.folder / tables.RAW, _raw_parts(files, run.given.extra))
    made.is_new |= tables.write_parts(made.folder / tables.SCENES, found.table_parts(), schema=found.schema)
    made.faults += [Fault(row["key"], row["fault"]) for row in files.rows(columns=["key", "fault"]) if row["fault"]]
    made.faults += [Fault(*fault) for fault in found.faults()]
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
        given: The source.
        space: A folder for rows that are too many for memory.
        on_progress: See ``curate``.
        retry: See ``curate``.

    Attributes:
        files: Their rows, in the order of the source, once they are known.
        found: Their scenes.
    """

    def __init__(
        self,
        folder: Path,
        work: FileWork,
        engine: engines.Engine,
        given: ingest.Ingested,
        space: Path,
        on_progress: Callable[[str, int, int], None],
        retry: bool,
    ) -> None:
        self.made = Curated(folder, faults=given.faults)
        self.work, self.engine, self.given, self.on_progress = work, engine, given, on_progress
        self.store = Store(folder / WORK)
        self.memory = _Memory(self.store, work)
        self.retry = retry
        self.files = Spool(space / "files.parquet", dict(tables.RAW_COLUMNS) | _FILE_COLUMNS)
        self.found = SceneRows(space / "scenes.parquet", work.rules)
        self.speeds = Speeds()
        self.wall_s = 0.0
        self.new: Counter[str] = Counter()

    def look_into(self) -> None:
        """Find out what is not known of the files, and go through all that is: ``files`` and ``found``."""
        lost = self._find_out()
        used: Counter[str] = Counter()
        done = 0
        for row in self.given.rows:
            if why := row["unusable"] or lost.get(row["key"]) or self.memory.given_up(row):
                nothing: Row = dict.fromkeys(self.work.probe.gives)
                self.files.add([failed(row | nothing, why)])
                continue
            seen = self.memory.seen(row, used)
            assert seen is not None, row["key"]
            done += seen.file["status"] == "done"
            self.files.add([seen.file])
            self.found.add(seen.scenes)
        self.files.done()
        self.found.done()
        self._tidy()
        reached = [*(used[stage.name] for stage in self.work.of_files[1:]), done]
        for place, stage in enumerate((*self.work.of_files, *self.work.of_scenes)):
            new = min(self.new[stage.name], used[stage.name])
            passed = reached[place] if place < len(reached) else used[stage.name]
            self.made.tallies.append(Tally(stage.name, self.new[stage.name], used[stage.name] - new, passed))

    def _find_out(self) -> dict[str, str]:
        """Why nothing is remembered of some files."""
        usable = [row for row in self.given.rows if not row["unusable"]]
        memory, lost = self.memory, dict[str, str]()
        done = 0

        def todo() -> Iterator[Task]:
            nonlocal done
            for row in usable:
                if not self.retry and memory.given_up(row):
                    done += 1
                elif memory.seen(row, retry=self.retry) is None:
                    yield Task(row, memory.of_file(row, retry=self.retry))
                else:
                    done += 1

        begun = time.monotonic()
        with _Waiting(self.store) as waiting:
            for task, result in self.engine.run(todo(), self.work):
                if isinstance(result, str):
                    result = self._given_up(task.row, result)
                elif self.retry and memory.given_up(task.row):
                    result.rows |= self._given_up(task.row, None).rows
                if result.lost:
                    lost[task.row["key"]] = result.lost
                self.speeds.join(result.speeds)
                for stage in (*self.work.of_files, *self.work.of_scenes, GIVEN_UP):
                    rows = result.rows.get(stage.name, [])
                    self.new[stage.name] += len(rows)
                    waiting.add(stage, rows)
                waiting.flush()
                done += 1
                self.on_progress("files", done, len(usable))
        if any(self.new.values()):
            self.wall_s += time.monotonic() - begun
            self.made.is_new = True
        return lost

    def _given_up(self, row: Row, why: str | None) -> Found:
        """What is remembered of a file that no worker survives.

        It is not tried again until it changes, or a stage has another revision or other settings; None takes it back.
        """
        told = {"key": row["key"], "lineage": self.memory.survival(row), "given_up": why}
        return Found(rows={GIVEN_UP.name: [told]})

    def _tidy(self) -> None:
        for stage in (*self.work.of_files, GIVEN_UP):
            if self.new[stage.name]:
                self.store.tidy(stage, self.files.texts("key"))
        for stage in self.work.of_scenes:
            if self.new[stage.name]:
                self.store.tidy(stage, self.found.ids())

    def write_clips(self, form: export.Format, shard_mb: int) -> None:
        """Clips of the scenes that are kept; those of scenes that cannot be cut are left out, and told."""
        folder, found = self.made.folder, self.found
        found.in_folder = form == "folder"
        clips = folder / export.CLIPS if form == "folder" else folder / WORK / export.CLIPS
        self._cut(clips)
        for number, (name, fault) in found.clip_faults.items():
            self.made.faults.append(Fault(name, fault))
            if found.clip_bytes[number] < 0:
                found.kept[number], found.not_cut[number] = False, True
        if form == "folder":
            self.made.is_new |= export.write_folder(found.rows(), folder)
            remove(folder / WORK / export.CLIPS)
        else:
            self.made.is_new |= export.write_shards(found.rows(), folder, clips, shard_mb)

    def _cut(self, clips: Path) -> None:
        """Cut the clips that are not there; what could not be cut is tried again: the disk may have been full."""
        found, missing, wanted = self.found, self.found.kept.copy(), int(self.found.kept.sum())

        def note(number: int, name: str, row: Row) -> None:
            if row["clip_bytes"] is not None:
                found.clip_bytes[number] = row["clip_bytes"]
            if fault := row["clip_fault"] or row["sound_fault"]:
                found.clip_faults[number] = name, fault

        for file, some in self._by_file(found.kept):
            known = self.store.of(STAGE, scenes.name_of(file["id"]))
            for scene in some:
                row = known.get(scene["id"])
                if (
                    row is not None
                    and row["lineage"] == STAGE.lineage(scene["clip_lineage"])
                    and row["clip_bytes"] is not None
                    and _size(clips / f"{scene['id']}{ENDING}") == row["clip_bytes"]
                    and not (self.retry and row["sound_fault"])
                ):
                    missing[scene["number"]] = False
                    note(scene["number"], scene["id"], row)
        count = int(missing.sum())
        tasks = (CutTask(file, some, clips) for file, some in self._by_file(missing))
        begun, done = time.monotonic(), 0
        with _Waiting(self.store) as waiting:
            for task, result in self.engine.run(tasks, ClipWork()):
                rows = [not_cut(scene, result) for scene in task.scenes] if isinstance(result, str) else result.rows
                if not isinstance(result, str):
                    self.speeds.join(result.speeds)
                for scene, row in zip(task.scenes, rows, strict=True):
                    note(scene["number"], scene["id"], row)
                waiting.add(STAGE, rows)
                waiting.flush()
                done += len(rows)
                self.on_progress("clips", done, count)
        if count:
            self.wall_s += time.monotonic() - begun
            self.made.is_new = True
            self.store.tidy(STAGE, (scene["id"] for scene in found.rows()))
        self.made.tallies.append(Tally(STAGE.name, count, wanted - count, wanted))

    def _by_file(self, where: np.ndarray) -> Iterator[tuple[Row, Rows]]:
        """Files with those of their scenes that are asked for."""
        files = self.files.rows()
        for key, some in itertools.groupby(self.found.rows(where), lambda scene: scene["raw_key"]):
            yield next(file for file in files if file["key"] == key), list(some)


class _Memory:
    """What the store knows of each file."""

    def __init__(self, store: Store, work: FileWork) -> None:
        self._store, self._work = store, work

    def survival(self, row: Row) -> str:
        """The lineage of a file's having been given up: of the file, and all that is done with it."""
        stages = (*self._work.of_files, *self._work.of_scenes)
        return GIVEN_UP.lineage(row["lineage"], *(stage.lineage() for stage in stages))

    def given_up(self, row: Row) -> str | None:
        """Why no worker survives a file."""
        known = self._store.of(GIVEN_UP, row["key"]).get(row["key"])
        return None if known is None or known["lineage"] != self.survival(row) else known["given_up"]

    def seen(self, row: Row, used: Counter[str] | None = None, *, retry: bool = False) -> Seen | None:
        """A file of which everything is known, else None.

        Args:
            row: Of ``ingest``.
            used: Counts the rows by stage.
            retry: Whether what went wrong counts as not known.
        """
        rows = self._rows(row, retry)

        def get(stage: Stage, key: str, lineage: str, given: Row) -> Row:
            known = rows(stage).get(key)
            if known is None or known["lineage"] != lineage:
                raise NotKnownError
            if used is not None:
                used[stage.name] += 1
            return known

        try:
            return self._work.seen(row, get)
        except NotKnownError:
            return None

    def of_file(self, row: Row, *, retry: bool) -> dict[str, dict[str, Row]]:
        """What is known of a file, with what is bulky."""
        rows, key = self._rows(row, retry), row["key"]
        known = {stage.name: rows(stage) for stage in (*self._work.of_files, *self._work.of_scenes)}
        signals = self._work.signals
        if key in known[signals.name]:
            try:
                known[signals.name] = {key: known[signals.name][key] | self._store.bulky(signals, key)}
            except RequestError:  # damaged: it is found out again
                del known[signals.name]
        return {name: found for name, found in known.items() if found}

    def _rows(self, row: Row, retry: bool) -> Callable[[Stage], dict[str, Row]]:
        name, held = scenes.name_of(row["id"]), dict[str, dict[str, Row]]()

        def rows(stage: Stage) -> dict[str, Row]:
            if stage.name not in held:
                found = self._store.of(stage, name if stage.is_of_scenes else row["key"])
                held[stage.name] = {key: one for key, one in found.items() if not (retry and went_wrong(one))}
            return held[stage.name]

        return rows


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


def _raw_parts(files: Spool, extra: Any) -> Iterator[Any]:
    """The raw table; columns of a raw table that was the source stay as they were, but for what a run finds out."""
    names = [] if extra is None else [name for name in extra.column_names if name not in tables.RAW_COLUMNS]
    for table in files.tables([*tables.RAW_COLUMNS, "given_row"]):
        places, table = table["given_row"], table.drop_columns(["given_row"])
        for name in names:
            table = table.append_column(extra.schema.field(name).with_nullable(True), extra[name].take(places))
        yield table


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
        **({"captions": asdict(rules.captions)} if rules.captions.is_on else {}),
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
