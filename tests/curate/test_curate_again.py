"""What failed is tried again on request; what is wrong stands in the tables; raw tables of any types, anywhere."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kandinsky.cli.main import main
from kandinsky.curate import clip_work, engines, file_work
from kandinsky.curate import run as curation
from kandinsky.curate.stages import Stage
from kandinsky.curate.store import Store
from kandinsky.errors import RequestError
from kandinsky.model.values import Audio, Video
from tiny.many_scenes import simulated
from tiny.raw_videos import rows, run, scene

RULE = '[filters]\nduration = "duration >= 0.3"\n[measures]\nnames = ["dynamics", "colours"]\n'


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos of a scene each."""
    (tmp_path / "raw" / "below").mkdir(parents=True)
    for seed, name in enumerate(("one.mp4", "below/two.mp4")):
        Video(scene(seed, 8), fps=12.0, seed=0).save(tmp_path / "raw" / name)
    (tmp_path / "rules.toml").write_text(RULE)
    return tmp_path


class Crashing:
    """This process, whose worker is told to die of some files; it counts what it is asked for."""

    workers = 1

    def __init__(self, fatal: set[str], asked: Counter[str]) -> None:
        self.fatal, self.asked = fatal, asked

    def run(self, tasks: Iterable[Any], work: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            self.asked[task.name] += 1
            yield task, "its worker crashed" if task.row["key"] in self.fatal else work(task)


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Crashing:
    engine = Crashing({"one.mp4"}, Counter())
    monkeypatch.setattr(engines, "Alone", lambda: engine)
    return engine


def test_a_file_that_workers_die_of_is_tried_again_on_request(videos: Path, crashing: Crashing) -> None:
    first = run(videos)
    status = {row["obs_path"]: (row["status"], row["fault"]) for row in rows(videos, "raw")}
    assert status == {"one.mp4": ("failed", "its worker crashed"), "below/two.mp4": ("done", None)}
    assert not run(videos).is_new and crashing.asked["`one.mp4`"] == 1
    assert not run(videos, retry=True).kept > first.kept and crashing.asked["`one.mp4`"] == 2  # it dies again
    assert not run(videos).is_new and crashing.asked["`one.mp4`"] == 2
    crashing.fatal.clear()
    assert run(videos, retry=True).kept == 2 and crashing.asked["`below/two.mp4`"] == 1
    assert not run(videos).is_new and {row["status"] for row in rows(videos, "raw")} == {"done"}


def test_a_new_release_of_a_stage_tries_a_file_again(
    videos: Path, crashing: Crashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos)
    crashing.fatal.clear()
    given = file_work.hash_stage
    monkeypatch.setattr(file_work, "hash_stage", lambda: replace(given(), revision="next"))
    assert run(videos).kept == 2 and crashing.asked["`one.mp4`"] == 2


def test_what_went_wrong_in_a_stage_is_tried_again_on_request(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kandinsky.curate import measures

    colours = measures.MEASURES["colours"]

    def fails(_: measures.View) -> dict[str, float | None]:
        raise ZeroDivisionError("for now")

    monkeypatch.setitem(measures.MEASURES, "colours", replace(colours, run=fails))
    assert all(row["measure_faults"] for row in (run(videos), rows(videos))[1])
    monkeypatch.setitem(measures.MEASURES, "colours", colours)
    assert not run(videos).is_new
    tallies = {one.name: one.new for one in run(videos, retry=True).tallies}
    assert tallies["colours"] == 2 and not any(tallies[name] for name in tallies if name != "colours")
    assert all(row["luma"] > 0 and not row["measure_faults"] for row in rows(videos))
    given = ["data", "curate", str(videos / "raw"), "-o", str(videos / "set"), "--rules", str(videos / "rules.toml")]
    assert main([*given, "--retry"]) == 0


def test_what_is_wrong_with_sound_stands_in_the_table(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Audio((9000 * np.sin(np.arange(32000) / 20)[:, None]).astype(np.int16), 48000)
    Video(scene(0, 8), fps=12.0, seed=0, audio=sound).save(videos / "raw" / "one.mp4")

    def broken(*_: Any) -> Iterator[Audio]:
        raise RequestError("the track is broken")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(clip_work, "sound_of", broken)
        made = run(videos)
    told = {row["source"]: row["clip_fault"] for row in rows(videos)}
    assert told == {"one.mp4": "its sound is left out: the track is broken", "below/two.mp4": None}
    assert made.kept == 2 and [fault.reason for fault in made.faults] == [told["one.mp4"]]
    assert not run(videos).is_new
    assert not run(videos, retry=True).faults and not any(row["clip_fault"] for row in rows(videos))


def test_raw_tables_have_columns_of_any_type_and_lie_anywhere(videos: Path) -> None:
    columns = {
        "obs_path": pa.array(["two.mp4", "absent.mp4"]),
        "obs_endpoint": pa.array(["", ""]),
        "scores": pa.array([[("a", 0.5)], None], pa.map_(pa.string(), pa.float64())),
        "marks": pa.array([[1, 2], []], pa.large_list(pa.int16())),
        "when": pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns")),
        "place": pa.array([{"x": 1}, None], pa.struct([("x", pa.int8())])),
        "kind": pa.array(["cat", "cat"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), videos / "raw" / "below" / "table.parquet")
    pq.write_table(pa.table({"x": [1]}), videos / "raw" / "other.parquet")
    made = run(videos)
    raw = pq.read_table(videos / "set" / "raw.parquet")
    told = {row["obs_path"]: row["status"] for row in raw.select(["obs_path", "status"]).to_pylist()}
    assert told == {"one.mp4": "done", "two.mp4": "done", "absent.mp4": "failed"}  # the named file is taken once
    place = raw["obs_path"].to_pylist().index("two.mp4")
    assert raw["scores"][place].as_py() == [("a", 0.5)] and raw["marks"][place].as_py() == [1, 2]
    assert raw["when"][place].value == 1_700_000_000_000_000_001 and raw["place"][place].as_py() == {"x": 1}
    assert raw.schema.field("marks").type == pa.large_list(pa.int16()) and raw["kind"][place].as_py() == "cat"
    assert raw["marks"][raw["obs_path"].to_pylist().index("one.mp4")].as_py() is None
    assert next((fault.name, "no column `obs_path`" in fault.reason) for fault in made.faults) == (
        "other.parquet",
        True,
    )
    assert made.kept == 2 and not run(videos).is_new
    pq.write_table(pa.table({"obs_path": ["one.mp4"], "marks": ["few"]}), videos / "raw" / "other.parquet")
    with pytest.raises(RequestError, match="raw tables do not fit together"):
        run(videos)


def test_clips_cut_by_another_revision_make_other_shards(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(videos, form="shards")
    assert not run(videos, form="shards").is_new
    newer: Stage = replace(clip_work.STAGE, revision="next")
    for module in (clip_work, curation, curation.export):
        monkeypatch.setattr(module, "STAGE", newer)
    mark = videos / "set" / ".work" / "shards" / "000000"
    before = mark.read_text()
    assert run(videos, form="shards").is_new and mark.read_text() != before
    assert not run(videos, form="shards").is_new


def test_percentiles_are_of_what_deduplication_left(videos: Path) -> None:
    """Of seven copies of a lively scene one is left, so that the median is that of the others."""
    for path in (videos / "raw").rglob("*.mp4"):
        path.unlink()
    for number in range(7):
        Video(scene(1, 8), fps=12.0, seed=0).save(videos / "raw" / f"same-{number}.mp4")
    still = [np.repeat(scene(seed, 8)[:1], 8, axis=0) for seed in (2, 3, 4)]
    for number, frames in enumerate(still):
        Video(frames, fps=12.0, seed=0).save(videos / "raw" / f"still-{number}.mp4")
    filters = 'busy = "dynamicity + 0.01 >= percentile(dynamicity, 50)"\n'
    (videos / "rules.toml").write_text(f"[filters]\n{filters}")
    assert run(videos).dropped == {"busy": 3}  # seven of ten are the lively one
    (videos / "rules.toml").write_text(f'[filters]\n{filters}duplicate = "not duplicate"\n')
    made = run(videos)
    assert made.dropped == {"duplicate": 6} and made.kept == 4
    kept = [row["source"] for row in rows(videos) if row["kept"]]
    assert kept == ["same-0.mp4", "still-0.mp4", "still-1.mp4", "still-2.mp4"]
    assert {row["duplicate_of"] for row in rows(videos) if row["dropped_by"]} == {
        next(row["id"] for row in rows(videos) if row["source"] == "same-0.mp4")
    }


def test_what_killed_runs_left_is_swept(videos: Path) -> None:
    run(videos)
    work = videos / "set" / ".work"
    (work / "shared-0123").touch()
    (work / "rows-abc").mkdir()
    (work / "rows-abc" / "scenes.parquet").touch()
    assert not run(videos).is_new
    assert not [path.name for path in work.iterdir() if path.name.startswith(("shared-", "rows-"))]


def test_a_store_of_many_files_is_read_by_groups(tmp_path: Path) -> None:
    stage = Stage("some", "1", (), {"value": "int64"}, lambda _: [], is_of_scenes=True)
    store = Store(tmp_path)
    for number in range(40):
        made = [{"key": f"f-{number % 30}-{k:09d}", "lineage": "x", "value": number} for k in range(90)]
        store.put(stage, made)
    assert {row["value"] for row in store.of(stage, "f-3").values()} == {33} and not store.of(stage, "f")
    living = [f"f-{number}-{k:09d}" for number in range(20) for k in range(45)]
    store.tidy(stage, living)
    (part,) = (tmp_path / "some").iterdir()
    assert pq.ParquetFile(part).metadata.num_rows == 20 * 45
    for again in (store, Store(tmp_path)):
        found = again.of(stage, "f-7")
        assert len(found) == 45 and {row["value"] for row in found.values()} == {37} and not again.of(stage, "f-25")


def test_a_run_holds_some_bytes_of_a_scene(tmp_path: Path) -> None:
    """Also where a filter asks for a share of all that are left."""
    peaks = []
    for count in (4_000, 104_000):
        tracemalloc.start()
        told = simulated(count, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert abs(told.kept / count - 58 / 80 * 0.9) < 0.02
    assert peaks[1] - peaks[0] < 100 * 100_000  # bytes


def test_the_faults_stand_in_the_summary(videos: Path) -> None:
    (videos / "raw" / "bad.mp4").write_bytes(b"\0" * 400)
    run(videos)
    told = json.loads((videos / "set" / "curate.json").read_text())["faults"]
    assert [one["name"] for one in told] == ["bad.mp4"]
