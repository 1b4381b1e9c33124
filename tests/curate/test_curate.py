"""`kandinsky data curate` on drawn videos of known truth; runs that stop, go on, and do no more than they must."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import kandinsky
from kandinsky.cli.main import main
from kandinsky.curate import shots, signals, tables
from kandinsky.curate.run import Curated, curate
from kandinsky.errors import BackendError, RequestError
from kandinsky.media.mux import probe
from kandinsky.media.video import read_video, write_video
from kandinsky.model.values import Video
from kandinsky.train.data.sources import find
from tiny.raw_videos import RULES, Truth, draw, rows, run, scene, score

RULE = '[filters]\nduration = "duration >= 0.5"\n'


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth, Curated]:
    """All the drawn videos, curated once."""
    folder = tmp_path_factory.mktemp("curate")
    truth = draw(folder / "raw")
    (folder / "rules.toml").write_text(RULES)
    return folder, truth, curate(folder / "raw", folder / "set", rules=folder / "rules.toml")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three short videos, one of them with a cut, and rules that keep all."""
    (tmp_path / "raw" / "below").mkdir(parents=True)
    for k, place in enumerate(("a.mp4", "b.mp4", "below/c.mp4")):
        frames = scene(k, 12) if k else np.concatenate([scene(5, 10), scene(6, 10)])
        kandinsky.Video(frames, fps=12.0, seed=0).save(tmp_path / "raw" / place)
    (tmp_path / "raw" / "a.txt").write_text("The video shows shapes that move")
    (tmp_path / "raw" / "a.ru.txt").write_text("фигуры движутся", encoding="utf-8")
    (tmp_path / "rules.toml").write_text(RULE)
    return tmp_path


def made(result: Curated) -> dict[str, int]:
    return {one.name: one.new for one in result.tallies if one.new}


@pytest.mark.slow
def test_every_planted_fault_is_found(drawn: tuple[Path, Truth, Curated]) -> None:
    folder, truth, result = drawn
    assert result.files == 42 and result.is_new
    found = score(truth, rows(folder, "raw"), rows(folder))
    assert found["hard cut"].f1 >= 0.95 and found["hard cut"].truth == 20
    assert found["fade"].found == found["fade"].truth == 3 and not found["fade"].false
    for kind, one in found.items():
        assert one.found == one.truth, kind
        assert one.false <= 1, kind


@pytest.mark.slow
def test_the_page_holds_all_it_shows(drawn: tuple[Path, Truth, Curated]) -> None:
    folder, _, _ = drawn
    page = (folder / "set" / "curate.html").read_text(encoding="utf-8")
    for said in ("letterbox &lt; 0.05", "corrupt-1.mp4", "data:image/jpeg;base64,", "<rect", "would drop alone"):
        assert said in page
    assert "http" not in page and "<script" not in page


def test_a_second_run_does_nothing(drawn: tuple[Path, Truth, Curated]) -> None:
    folder, _, first = drawn
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "set").rglob("*") if path.is_file()}
    again = run(folder)
    assert not again.is_new and not made(again) and again.kept == first.kept
    assert {path: path.stat().st_mtime_ns for path in (folder / "set").rglob("*") if path.is_file()} == stamps


def test_tables_answer_sql(drawn: tuple[Path, Truth, Curated]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is no dependency")
    folder, _, result = drawn
    counts = f"select count(*), count(*) filter (kept) from '{folder}/set/scenes.parquet'"
    assert duckdb.sql(counts).fetchall() == [(result.scenes, result.kept)]
    joined = (
        f"select count(*) from '{folder}/set/scenes.parquet' s join '{folder}/set/raw.parquet' r on s.raw_id = r.id "
        "where s.dynamicity is not null and s.lineage['overlay'] = '1' and r.fps = 12"
    )
    assert duckdb.sql(joined).fetchall() == [(result.scenes,)]


def test_tables_have_the_columns_of_the_makers(drawn: tuple[Path, Truth, Curated]) -> None:
    folder, _, _ = drawn
    raw, scenes = (pq.read_table(folder / "set" / f"{name}.parquet") for name in ("raw", "scenes"))
    assert raw.column_names[:11] == (
        [
            "dataset_name",
            "obs_endpoint",
            "obs_path",
            "status",
            "process_start",
            "width",
            "height",
            "duration",
            "fps",
            "id",
            "process_node",
        ]
    )
    assert scenes.column_names[:10] == (
        [
            "id",
            "raw_id",
            "obs_endpoint",
            "path",
            "prompt",
            "width",
            "height",
            "duration",
            "dynamicity",
            "aesthetic_score",
        ]
    )
    one = next(row for row in raw.to_pylist() if row["obs_path"] == "clean-0.mp4")
    assert (one["status"], one["width"], one["height"], one["duration"], one["fps"]) == ("done", 96, 64, "00:00:02", 12)


def test_a_raw_table_goes_in_and_out_without_loss(few: Path) -> None:
    given = [
        {"dataset_name": "youtube", "obs_endpoint": "raw", "obs_path": path, "status": "process", "process_start": None,
         "width": 1, "height": 1, "duration": "00:01:11", "fps": 24.0, "id": f"n/{k}", "process_node": "job-7",
         "aesthetic_score": 0.5 + k / 10, "season": "winter"}
        for k, path in enumerate(("a.mp4", "below/c.mp4"))
    ]  # fmt: skip
    tables.write(tables.table_of(given, dict(tables.RAW_COLUMNS) | {"aesthetic_score": "double", "season": "string"}),
                 few / "table.parquet")  # fmt: skip
    back = tables.read(few / "table.parquet").to_pylist()
    assert [{name: row[name] for name in given[0]} for row in back] == given
    result = curate(few / "table.parquet", few / "set", rules=few / "rules.toml")
    raw, scenes = rows(few, "raw"), rows(few)
    assert [(r["dataset_name"], r["obs_endpoint"], r["obs_path"], r["id"], r["season"]) for r in raw] == [
        ("youtube", "raw", "a.mp4", "n/0", "winter"), ("youtube", "raw", "below/c.mp4", "n/1", "winter"),
    ]  # fmt: skip
    assert [(s["raw_id"], s["aesthetic_score"]) for s in scenes] == [("n/0", 0.5), ("n/0", 0.5), ("n/1", 0.6)]
    assert result.kept == 3 and len(list((few / "set" / "clips").iterdir())) == 3
    assert [tables.clock(one) for one in (71, 71.5, 3725)] == ["00:01:11", "00:01:11.500", "01:02:05"]
    assert [tables.seconds_of(one) for one in ("00:01:11", "00:01:11.500", "01:02:05")] == [71, 71.5, 3725]


def test_only_what_changed_is_done(few: Path) -> None:
    first = run(few)
    assert (first.files, first.scenes, first.kept) == (3, 4, 4)
    kandinsky.Video(scene(9, 12), fps=12.0, seed=0).save(few / "raw" / "d.mp4")
    assert made(run(few)) == dict.fromkeys(made(first), 1)  # a new file: its rows alone
    (few / "rules.toml").write_text('[filters]\nduration = "duration >= 0.9"\n')
    result = run(few)
    assert not made(result) and result.is_new and (result.kept, result.dropped) == (3, {"duration": 2})
    assert (
        len(list((few / "set" / "clips").iterdir()))
        == len((few / "set" / "metadata.jsonl").read_text().splitlines())
        == 3
    )
    (few / "raw" / "b.mp4").unlink()
    assert not made(run(few)) and len(rows(few, "raw")) == 3 and len(rows(few)) == 4
    (few / "rules.toml").write_text(RULE + "[shots]\nlongest_s = 0.6\n")  # decodes nothing for shots
    assert "signals" not in made(run(few)) and any(row["ends_with"] == "length" for row in rows(few))


def test_a_damaged_part_is_made_again(few: Path) -> None:
    run(few)
    before = rows(few)
    part = next((few / "set" / ".work" / "overlay").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    assert made(run(few)) == {"overlay": 4} and rows(few) == before


def test_a_killed_run_loses_nothing(few: Path) -> None:
    script = (
        "import sys, time; from kandinsky.curate import run, store; run.BATCH = 1\n"
        "put = store.Store.put\n"
        "def slow(*given):\n    made = put(*given); print(given[1].name, flush=True); time.sleep(0.3); return made\n"
        "store.Store.put = slow\n"
        "run.curate(*sys.argv[1:3], rules=sys.argv[3])"
    )
    given = [str(few / name) for name in ("raw", "set", "rules.toml")]
    with subprocess.Popen([sys.executable, "-c", script, *given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [next(process.stdout).strip() for _ in range(8)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen += process.stdout.read().split()
    assert seen[:4] == ["probe", "signals", "shots", "hashes"]
    assert not (few / "set" / "scenes.parquet").exists()
    done = {name: sum(one == name for one in seen) for name in seen}
    result = run(few)
    for tally in result.tallies:
        assert tally.known >= done.get(tally.name, 0), tally.name  # nothing that was written is done again
    whole = curate(few / "raw", few / "other", rules=few / "rules.toml")
    assert whole.kept == result.kept
    assert pq.read_table(few / "other" / "scenes.parquet").equals(pq.read_table(few / "set" / "scenes.parquet"))


def test_clips_are_the_scenes_frames(few: Path) -> None:
    run(few)
    found = {row["source"]: row for row in rows(few) if row["source"] != "a.mp4"}
    for name, row in found.items():
        clip = few / "set" / row["path"]
        assert len(probe(clip).times_s) == row["end_frame"] - row["start_frame"]
        theirs, ours = (read_video(path).frames for path in (few / "raw" / name, clip))
        assert (theirs == ours).all()  # copied, as the whole file is one scene
    one, other = (row for row in rows(few) if row["source"] == "a.mp4")
    assert (one["end_frame"], other["start_frame"], other["begins_with"]) == (10, 10, "cut")
    assert [len(probe(few / "set" / row["path"]).times_s) for row in (one, other)] == [10, 10]
    lines = [json.loads(line) for line in (few / "set" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["caption"] == "Shapes that move" and lines[0]["caption_ru"] == "фигуры движутся"


def test_shards_hold_the_same_as_the_folder(few: Path) -> None:
    run(few)
    folder = {one.caption for one in find(few / "set", captions="optional")}
    run(few, form="shards")
    assert not (few / "set" / "clips").exists() and not (few / "set" / "metadata.jsonl").exists()
    shards = find(few / "set", captions="optional")
    assert len(shards) == 4 and {one.caption for one in shards} == folder
    stamp = (few / "set" / "shard-000000.tar").stat().st_mtime_ns
    assert not run(few, form="shards").is_new
    assert (few / "set" / "shard-000000.tar").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_what_was_curated_trains(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, path in enumerate(sorted((few / "raw").rglob("*.mp4"))):  # as large as a clip of the model
        kandinsky.Video(scene(k, 12, size=(128, 128)), fps=12.0, seed=0).save(path)
        path.with_suffix(".txt").write_text("a panda waves")
    assert main(["data", "curate", str(few / "raw"), "-o", str(few / "set"), "--rules", str(few / "rules.toml")]) == 0
    recipe = {
        "kind": "denoiser", "model": "nano-t2v", "out": "run", "loop": {"steps": 2, "lr": 0.0001},
        "data": {"source": "encoded", "batch": 2},
    }  # fmt: skip
    monkeypatch.chdir(few)
    assert main(["data", "encode", "set", "-m", "nano-t2v", "-o", "encoded"]) == 0
    (few / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "recipe.yaml"]) == 0
    assert len((few / "run" / "log.jsonl").read_text().splitlines()) >= 1


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("[filters]\na = 'dynamcity > 0.2'", "did you mean `dynamicity`"),
        ("[filters]\na = 'dynamicity >'", "character 13: a value is missing"),
        ("[filters]\na = 3", "a filter is empty"),
        ("[fliters]\n", "unknown section `fliters`: did you mean `filters`"),
        ("[shots]\nrato = 3", "did you mean `ratio`"),
        ("[shots]\nratio = -1", "0 or more"),
        ("[measures]\nnames = ['beauty']", "measure `beauty`: use some of"),
        ("[buckets]\nsizes = ['512']", "512"),
        ("[duplicates]\nbits = 99", "from 0 to 32"),
        ("nonsense", "not valid TOML"),
    ],
)
def test_wrong_rules_are_named(few: Path, rules: str, said: str) -> None:
    (few / "rules.toml").write_text(rules)
    with pytest.raises(RequestError, match=re.escape(said)):
        run(few)


def test_what_is_not_installed_says_how_to_get_it(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rapidocr_onnxruntime", "scenedetect"):
        monkeypatch.setitem(sys.modules, name, None)
    for rules, package in (
        ("[measures]\nnames = ['text']", "rapidocr"),
        ("[shots]\ndetector = 'scenedetect'", "scene"),
    ):
        (few / "rules.toml").write_text(rules)
        with pytest.raises(BackendError, match="is not installed") as caught:
            run(few)
        assert package in (caught.value.hint or "")


def test_places_that_hold_something_else_are_refused(few: Path) -> None:
    shutil.copytree(few / "raw", few / "set")
    with pytest.raises(RequestError, match="no curated data set and not empty"):
        run(few)
    with pytest.raises(RequestError, match="does not exist"):
        curate(few / "absent", few / "new")
    assert main(["data", "curate", str(few / "raw"), "-o", str(few / "new"), "--format", "zip"]) == 2


def test_a_data_set_inside_its_source_does_not_feed_on_itself(few: Path) -> None:
    source = few / "raw"
    first = curate(source, source / "out", rules=few / "rules.toml")
    again = curate(source, source / "out", rules=few / "rules.toml")
    assert first.files == 3
    assert (again.files, again.scenes, again.kept) == (first.files, first.scenes, first.kept) and not again.is_new


def test_frames_that_are_lost_move_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut after lost frames stands where it stands in the file."""
    target = write_video(Video(np.concatenate([scene(1, 12), scene(2, 12)]), fps=12, seed=0), tmp_path / "a.mp4")
    row = {"key": "a.mp4", "file": str(target), "offset": None, "bytes": target.stat().st_size}
    whole = signals.run([row])[0]
    given = signals.small_frames

    def lossy(*args: Any, **more: Any) -> Any:
        return (one for one in given(*args, **more) if one[0] not in (3, 4, 5))

    monkeypatch.setattr(signals, "small_frames", lossy)
    lost = signals.run([row])[0]
    assert lost["times"] == whole["times"]
    found = shots.shots_of({**row, **lost}, shots.Settings())
    assert [one.start for one in found] == [0, 12]
