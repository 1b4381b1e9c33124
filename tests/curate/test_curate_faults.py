"""What goes wrong with one file, one measure or one row stays there; what is dropped costs nothing more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kandinsky.cli.main import main
from kandinsky.curate import clip_work, page, probing, shots, signals, tables, views
from kandinsky.curate import measures as plugins
from kandinsky.curate import run as curation
from kandinsky.curate.run import curate
from kandinsky.curate.store import Store
from kandinsky.errors import RequestError
from kandinsky.media.audio import read_audio
from kandinsky.media.mux import probe
from kandinsky.model.values import Audio, Video
from tiny.raw_videos import rows, run, scene

RULE = '[filters]\nduration = "duration >= 0.3"\n'


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Three videos: `two.mp4` has a cut, `small.mp4` is small."""
    (tmp_path / "raw").mkdir()
    for name, frames in (
        ("one", scene(1, 12)),
        ("small", scene(2, 12, size=(48, 32))),
        ("two", np.concatenate([scene(3, 10), scene(4, 10)])),
    ):
        Video(frames, fps=12.0, seed=0).save(tmp_path / f"raw/{name}.mp4")
    (tmp_path / "rules.toml").write_text(RULE)
    return tmp_path


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, count: Counter[str]) -> None:
    given = getattr(module, name)

    def counted(*args: Any, **more: Any) -> Any:
        count[f"{module.__name__.rpartition('.')[2]}.{name}"] += 1
        return given(*args, **more)

    monkeypatch.setattr(module, name, counted)


def test_what_is_dropped_is_looked_into_no_further(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (videos / "rules.toml").write_text(
        '[filters]\nlively = "dynamicity >= 0"\nlarge = "min(width, height) >= 60"\nlong = "duration >= 0.9"\n'
        'busiest = "dynamicity >= percentile(dynamicity, 1)"\n'
    )
    count: Counter[str] = Counter()
    for module in (probing, signals, views):
        counting(monkeypatch, module, "small_frames", count)
    first = run(videos)
    # all are probed; the small one is not decoded; the short scenes of `two.mp4` are shown to no measure
    assert count == {"probing.small_frames": 3, "signals.small_frames": 2, "views.small_frames": 1}
    told = {(row["source"], row["start_frame"]): row for row in rows(videos)}
    assert {key: row["dropped_by"] for key, row in told.items()} == {
        ("one.mp4", 0): [], ("small.mp4", 0): ["large"], ("two.mp4", 0): ["long"], ("two.mp4", 10): ["long"],
    }  # fmt: skip
    assert all((row["dynamicity"] is None) == bool(row["dropped_by"]) for row in told.values())
    assert first.dropped == {"large": 1, "long": 2} and not run(videos).is_new
    (videos / "rules.toml").write_text('[filters]\nlively = "dynamicity >= 0"\n')  # what was spared is done now
    assert run(videos).kept == 4 and all(row["dynamicity"] is not None for row in rows(videos))
    (videos / "rules.toml").write_text('[filters]\nlarge = "min(width, height) >= 60"\n')
    run(videos)  # as if it had always been so
    whole = [row for row in rows(videos) if row["source"] == "small.mp4"]
    assert [(row["dropped_by"], row["dynamicity"], row["hashes"]) for row in whole] == [(["large"], None, None)]


def test_unknown_names_are_told_before_anything_is_decoded(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "probe", lambda _: pytest.fail("opened"))
    (videos / "rules.toml").write_text("[filters]\na = 'prompt > 3'")
    with pytest.raises(RequestError, match="a text is used as a number"):
        run(videos)


def test_costly_measures_see_only_what_the_others_pass(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def glance(view: plugins.View) -> dict[str, float | None]:
        seen.append(len(view.frames_THWC))
        return {"text_area": 0.0}

    monkeypatch.setitem(plugins.MEASURES, "text", plugins.Measure("text", "9", ("text_area",), glance, package="json"))
    (videos / "rules.toml").write_text(
        "[filters]\nread = 'text_area < 1'\nblur = 'blur < -1'\n[measures]\nnames = ['text', 'sharpness']"
    )
    assert run(videos).dropped == {"blur": 4} and not seen
    (videos / "rules.toml").write_text("[filters]\nread = 'text_area < 1'\n[measures]\nnames = ['text', 'sharpness']")
    assert run(videos).kept == 4 and len(seen) == 4


def test_a_measure_that_goes_wrong_loses_its_value_alone(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(view: plugins.View) -> dict[str, float | None]:
        if view.frames_THWC.shape[1] < 60:
            raise ZeroDivisionError("a model of somebody else's")
        return {"text_area": float("nan")}

    monkeypatch.setitem(plugins.MEASURES, "text", plugins.Measure("text", "9", ("text_area",), reads, package="json"))
    (videos / "rules.toml").write_text(RULE + "[measures]\nnames = ['text', 'colours']")
    made = run(videos)
    told = {row["source"]: row for row in rows(videos)}
    assert told["small.mp4"]["measure_faults"] == ["text: ZeroDivisionError: a model of somebody else's"]
    assert all(row["text_area"] is None and row["luma"] > 0 for row in told.values())
    assert [fault.reason for fault in made.faults] == told["small.mp4"]["measure_faults"]
    assert made.kept == 4 and not run(videos).is_new


def test_a_detector_that_goes_wrong_loses_its_file_alone(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        AdaptiveDetector = object

        @staticmethod
        def detect(path: str, _: object) -> list[Any]:
            if path.endswith("one.mp4"):
                raise KeyError("frame")
            return []

    monkeypatch.setattr(shots, "_scenedetect", lambda: Detector)
    (videos / "rules.toml").write_text(RULE + "[shots]\ndetector = 'scenedetect'")
    made = run(videos)
    told = {row["obs_path"]: (row["status"], row["fault"]) for row in rows(videos, "raw")}
    assert told == {
        "one.mp4": ("failed", "detector `scenedetect`: KeyError: 'frame'"),
        "small.mp4": ("done", None),
        "two.mp4": ("done", None),
    }
    assert made.kept == 2


def test_a_stray_tar_hides_no_video(videos: Path) -> None:
    (videos / "raw" / "backup.tar").write_bytes(b"no tar at all")
    (videos / "raw" / "below").mkdir()
    shutil.make_archive(str(videos / "raw" / "below" / "more"), "tar", videos / "raw", "one.mp4")
    shutil.make_archive(str(videos / "raw" / "texts"), "tar", videos, "rules.toml")
    made = run(videos)
    assert [row["obs_path"] for row in rows(videos, "raw")] == [
        "one.mp4", "small.mp4", "two.mp4", "below/more.tar/one.mp4",
    ]  # fmt: skip
    assert {fault.name: fault.reason.split(":")[0] for fault in made.faults}.keys() == {"backup.tar", "texts.tar"}
    assert {row["obs_endpoint"] for row in rows(videos, "raw")} == {str(videos / "raw")}
    # so the table finds the files again
    again = curate(videos / "set" / "raw.parquet", videos / "again", rules=videos / "rules.toml")
    assert again.scenes == 4 and again.files == 4


def test_rows_of_a_raw_table_stay_when_their_files_go(videos: Path) -> None:
    given = [
        {"obs_endpoint": "raw", "obs_path": name, "id": str(k), "season": "winter"}
        for k, name in enumerate(("one.mp4", "two.mp4", "never.mp4"))
    ] + [{"obs_endpoint": "s3://store", "obs_path": "far.mp4", "id": "9", "season": None}]
    columns = dict(tables.RAW_COLUMNS) | {"season": "string"}
    tables.write(tables.table_of(given, columns), videos / "table.parquet")
    assert curate(videos / "table.parquet", videos / "set", rules=videos / "rules.toml").kept == 3
    (videos / "raw" / "two.mp4").unlink()
    made = curate(videos / "table.parquet", videos / "set", rules=videos / "rules.toml")
    told = {row["id"]: row for row in rows(videos, "raw")}
    assert {key: row["status"] for key, row in told.items()} == {
        "0": "done",
        "1": "failed",
        "2": "failed",
        "9": "failed",
    }
    assert told["1"]["fault"] == "`raw/two.mp4` cannot be used: No such file or directory"
    assert told["1"]["season"] == "winter" and "mount or copy" in told["9"]["fault"]
    assert made.kept == 1 and {row["raw_id"] for row in rows(videos)} == {"0"}


def test_a_file_that_goes_while_it_is_read_is_not_remembered(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = views.views

    def vanishing(file: dict[str, Any], found: Any) -> Any:
        if file["key"] == "one.mp4":
            Path(file["file"]).rename(videos / "away.mp4")
        return given(file, found)

    with monkeypatch.context() as patch:
        patch.setattr("kandinsky.curate.file_work.views", vanishing)
        made = run(videos)
    assert (made.scenes, [fault.reason for fault in made.faults]) == (3, ["it went away while it was read"])
    assert next(row["status"] for row in rows(videos, "raw") if row["obs_path"] == "one.mp4") == "failed"
    (videos / "away.mp4").rename(videos / "raw" / "one.mp4")
    assert run(videos).kept == 4


def test_signals_are_held_for_one_file_at_a_time(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(videos)
    stage = signals.stage()
    store = Store(videos / "set" / ".work")
    light = [store.of(stage, f"{name}.mp4")[f"{name}.mp4"] for name in ("one", "small", "two")]
    assert not any(set(signals.SIGNALS) & set(row) for row in light)
    (part,) = (videos / "set" / ".work" / "signals").iterdir()
    assert pq.ParquetFile(part).metadata.num_row_groups == 3  # each row is read alone
    assert len(store.bulky(stage, "two.mp4")["luma"]) == 20
    read: list[str] = []
    bulky = Store.bulky
    monkeypatch.setattr(Store, "bulky", lambda self, of, key: (read.append(key), bulky(self, of, key))[1])
    (videos / "rules.toml").write_text(RULE + "[shots]\nlongest_s = 0.6\n")
    monkeypatch.setattr(signals, "probe", lambda *_, **__: pytest.fail("decoded again"))
    assert run(videos).scenes == 8 and len(read) == 3


def test_a_file_is_opened_no_more_often_for_many_scenes(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = np.concatenate([scene(50 + k, 8) for k in range(6)])
    for path in (videos / "raw").iterdir():
        path.unlink()
    Video(many, fps=12.0, seed=0).save(videos / "raw" / "many.mp4")
    count: Counter[str] = Counter()
    for module in (clip_work, views, page):
        counting(monkeypatch, module, "example_of" if module is not views else "small_frames", count)
    counting(monkeypatch, clip_work, "frames_of_windows", count)
    (videos / "rules.toml").write_text("[filters]\nodd = 'start_frame < 30'")
    assert (made := run(videos)).kept == 4 and made.scenes == 6
    assert count == {"clip_work.example_of": 1, "clip_work.frames_of_windows": 1, "views.small_frames": 1,
                     "page.example_of": 1}  # fmt: skip
    for row in rows(videos):
        if row["kept"]:
            assert len(probe(videos / "set" / row["path"]).times_s) == 8


@pytest.mark.parametrize("name", ["tones.mp4", "tones.webm"])
def test_clips_keep_their_sound(videos: Path, name: str) -> None:
    """Each half of a video has a tone of its own, and so has its clip, from the first sample on."""
    for path in (videos / "raw").iterdir():
        path.unlink()
    rate, half_s = 48000, 10 / 12
    at = np.arange(round(2 * half_s * rate)) / rate
    wave = np.where(at < half_s, np.sin(2 * np.pi * 440 * at), np.sin(2 * np.pi * 1320 * at))
    sound = Audio((12000 * wave[:, None]).astype(np.int16), rate)
    Video(np.concatenate([scene(3, 10), scene(4, 10)]), fps=12.0, seed=0, audio=sound).save(videos / "raw" / name)
    assert run(videos).kept == 2
    for row, tone in zip(rows(videos), (440, 1320), strict=True):
        heard = read_audio(videos / "set" / row["path"])
        samples = heard.samples_SC[:, 0].astype(float)
        assert abs(len(samples) / heard.rate - half_s) < 0.05
        for part in (samples[2000:12000], samples[25000:35000]):
            assert np.argmax(np.abs(np.fft.rfft(part))) * heard.rate / len(part) == pytest.approx(tone, abs=6)
        assert probe(videos / "set" / row["path"]).seconds == pytest.approx(half_s, abs=0.03)


def test_what_is_no_number_is_missing_on_the_page(videos: Path) -> None:
    given = [
        {"obs_path": f"raw/{name}.mp4", "id": name, "aesthetic_score": score}
        for name, score in (("one", float("inf")), ("small", float("nan")), ("two", 0.5))
    ]
    columns = dict(tables.RAW_COLUMNS) | {"aesthetic_score": "double"}
    tables.write(tables.table_of(given, columns), videos / "table.parquet")
    (videos / "rules.toml").write_text("[filters]\nfine = 'aesthetic_score > 0.4'")
    assert curate(videos / "table.parquet", videos / "set", rules=videos / "rules.toml").kept == 2
    said = (videos / "set" / "curate.html").read_text()
    assert "aesthetic_score is missing" in said
    assert not any(word in said.replace("nan-", "") for word in (">nan", ">inf", " nan", " inf<"))
    for line in (videos / "set" / "metadata.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
    (videos / "rules.toml").write_text("[buckets]\nseconds = [inf]")
    with pytest.raises(RequestError, match="numbers above 0"):
        run(videos)


@pytest.mark.parametrize("values", [[2.0, 2.0], [2.0, np.nextafter(2.0, 3)], [0.0, 0.0], [-1e300, 1e300], [5.0]])
def test_values_that_hardly_differ_have_a_histogram(values: list[float]) -> None:
    found = page.Histogram(min(values), max(values))
    found.add(np.array(values), np.array(values[:1]))
    assert found.drawn("x").count("<rect") >= 2


def test_throughput_is_told_beside_the_decoders_rate(videos: Path) -> None:
    made = run(videos)
    spent = made.throughput["stages"]
    seconds = sum(row["duration_s"] for row in rows(videos, "raw"))
    assert spent["decoding"]["count"] == 3 and spent["decoding"]["video_s"] == pytest.approx(seconds, abs=0.01)
    assert spent["decoding"]["of_decoder"] == 1 and 0 < spent["signals"]["of_decoder"] < 1
    assert json.loads((videos / "set" / "curate.json").read_text())["throughput"] == made.throughput
    assert run(videos).throughput == made.throughput  # of the last run that did something


def test_workers_begin_without_torch() -> None:
    """A worker that dies is replaced in a second, not in ten."""
    modules = "kandinsky.curate.engines, kandinsky.curate.file_work, kandinsky.curate.clip_work"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_many_parts_are_tidied_whatever_is_damaged(tmp_path: Path) -> None:
    stage, store = signals.stage(), Store(tmp_path)
    nothing = {name: None for name in stage.gives}
    for number in range(33):
        row = nothing | {"key": str(number % 20), "lineage": str(number), "times": [float(number)] * 500}
        store.put(stage, [row])
    part = sorted((tmp_path / "signals").glob("*.parquet"))[-1]
    data = bytearray(part.read_bytes())
    group = pq.ParquetFile(part).metadata.row_group(0)
    times = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema.startswith("times"))
    begin = times.dictionary_page_offset or times.data_page_offset
    data[begin : begin + 30] = bytes(30)
    part.write_bytes(data)
    store.tidy(stage, {str(key) for key in range(15)})
    # parts 0 to 12 have later rows, 15 to 19 are of keys that are gone
    assert [int(path.stem) for path in sorted((tmp_path / "signals").glob("*.parquet"))] == [13, 14, *range(20, 33)]
    again = Store(tmp_path)
    assert [again.of(stage, str(key))[str(key)]["lineage"] for key in range(15)] == [
        str(key if key in (13, 14) else key + 20) for key in range(15)
    ]
    assert not again.of(stage, "15")
    with pytest.raises(RequestError, match="cannot be read"):
        again.bulky(stage, "12")
    assert again.bulky(stage, "3")["times"] == [23.0] * 500
    again.put(stage, [nothing | {"key": "3", "lineage": "new", "times": [1.0]}])
    assert again.bulky(stage, "3")["times"] == [1.0]


def test_what_was_done_before_a_run_ended_is_kept(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = curation.FileWork.__call__

    def full(self: Any, task: Any) -> Any:
        if task.row["key"] == "two.mp4":
            raise OSError(28, "No space left on device")
        return work(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(curation.FileWork, "__call__", full)
        with pytest.raises(OSError, match="No space"):
            run(videos)
    tallies = {tally.name: (tally.new, tally.known) for tally in run(videos).tallies}
    assert tallies["probe"] == tallies["signals"] == (1, 2)


def test_the_report_decodes_no_more_of_a_file_that_was_dropped_undecoded(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "rules.toml").write_text('[filters]\nlarge = "width >= 60"\nlong = "duration >= 100"\n')
    wanted: list[tuple[str, list[int]]] = []
    given = page.small_frames

    def seen(video: Any, side: int, numbers: Any) -> Any:
        wanted.append((video.path.name, sorted(numbers)))
        if video.path.name == "one.mp4":
            raise ValueError("the decoder is broken")
        return given(video, side, numbers)

    monkeypatch.setattr(page, "small_frames", seen)
    run(videos)
    assert dict(wanted)["small.mp4"] == [0] and len(dict(wanted)["two.mp4"]) > 1
    assert "the decoder is broken" in (videos / "set" / "curate.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patience", "3"], "--patience is for a Ray cluster: add --ray"),
        (["--ray", "local", "--patience", "0"], "--patience must be above 0 and up to 604800 seconds, not `0`"),
        (["--ray", "local", "--patience", "nan"], "not `nan`"),
        (["--ray", "local", "--patience", "1e12"], "not `1e+12`"),
    ],
)
def test_patience_is_checked_in_the_commands_words(
    videos: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "curate", str(videos / "raw"), "-o", str(videos / "set"), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_score_may_be_a_decimal(videos: Path) -> None:
    import pyarrow as pa

    columns = {"obs_path": ["raw/one.mp4", "raw/two.mp4"], "id": ["a", "b"]}
    scores = pa.array([Decimal("5.25"), Decimal("1.50")], pa.decimal128(3, 2))
    pq.write_table(pa.table(columns | {"aesthetic_score": scores}), videos / "table.parquet")
    (videos / "rules.toml").write_text("[filters]\nfine = 'aesthetic_score > 5'")
    assert curate(videos / "table.parquet", videos / "set", rules=videos / "rules.toml").kept == 1
