"""Many prompts in one process: failures, resuming, settings row by row, the summary and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batch.prompts import STILL, Watched
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine import stages
from kandinsky.engine.latent_names import latent_path
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.jobs import batch
from kandinsky.jobs.batch import Item, LocalRunner, Summary, part_finished, plan_items, settle
from kandinsky.jobs.prompt_files import Row
from kandinsky.media.video import read_video
from kandinsky.model.values import Request

BASE = Request(model="nano-t2v", prompt="", seed=1, **STILL)  # type: ignore[arg-type]


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace").mkdir()
    return Watched(catalogue.source_of("nano-t2v"), RunOptions(device="cpu"), trace=tmp_path / "trace")


def plan(loading: Watched, *rows: dict[str, Any], base: Request = BASE, **options: Any) -> list[Item]:
    items, refused = plan_items([Row(i + 1, row) for i, row in enumerate(rows)], base, loading, **options)
    assert not refused
    return items


def run(loading: Watched, items: list[Item]) -> dict[str, batch.Outcome]:
    return {item.job.prompt: settle(item, *rest) for item, *rest in LocalRunner(loading).run(items)}


def test_a_failure_stops_nothing_and_finished_ones_are_not_made_again(loading: Watched) -> None:
    rows = ({"prompt": "a dot"}, {"prompt": "it fails"}, {"prompt": "a cat", "seed": 5})
    made = run(loading, plan(loading, *rows))
    assert [made[row["prompt"]].status for row in rows] == ["done", "failed", "done"]
    assert made["it fails"].error == "ArithmeticError: this one fails" and "Traceback" in (
        made["it fails"].details or ""
    )
    assert made["a cat"].path == "a-cat-5.png" and read_video("a-cat-5.png").recipe["seed"] == 5
    assert sorted(path.name for path in Path().iterdir()) == ["a-cat-5.png", "a-dot-1.png", "trace"]

    stamp = Path("a-dot-1.png").stat().st_mtime_ns
    left, before = part_finished(plan(loading, *rows, {"prompt": "a new one"}), loading)
    assert [item.job.prompt for item in left] == ["it fails", "a new one"]
    assert [(one.status, one.path, one.seed) for one in before] == [
        ("skipped", "a-dot-1.png", 1), ("skipped", "a-cat-5.png", 5)
    ]  # fmt: skip
    run(loading, left)
    assert Path("a-dot-1.png").stat().st_mtime_ns == stamp
    assert {name: loading.times(name) for name in ("a dot", "it fails", "a cat", "a new one")} == {
        "a dot": 1, "it fails": 2, "a cat": 1, "a new one": 1
    }  # fmt: skip


def test_another_request_is_another_file(loading: Watched) -> None:
    row = {"prompt": "a dot", "output": "x.png"}
    run(loading, plan(loading, row))
    assert not part_finished(plan(loading, row), loading)[0]
    for change in ({"seed": 2}, {"steps": 2}, {"guidance": 2.0}, {"prompt": "a cat"}, {"cache": "taylor"}):
        assert part_finished(plan(loading, row | change), loading)[0], change
    other = Watched(loading.source, RunOptions(attention="sdpa"), trace=loading.trace)
    assert part_finished(plan(other, row), other)[0]
    other = Watched(loading.source, RunOptions(dtype="bfloat16"), trace=loading.trace)
    assert part_finished(plan(other, row), other)[0]
    assert not part_finished(plan(loading, row | {"negative_prompt": "unread at guidance 1"}), loading)[0]
    Path("x.png").write_bytes(Path("x.png").read_bytes()[:60])
    assert part_finished(plan(loading, row), loading)[0], "a broken file is not finished"


def test_any_seed_is_finished_where_none_was_asked_for(loading: Watched) -> None:
    drawn = BASE.with_values(seed=None)
    made = run(loading, plan(loading, {"prompt": "a dot"}, base=drawn))["a dot"]
    assert made.path == "a-dot.png"
    _, before = part_finished(plan(loading, {"prompt": "a dot"}, base=drawn), loading)
    assert [(one.status, one.seed) for one in before] == [("skipped", made.seed)]
    assert part_finished(plan(loading, {"prompt": "a dot", "output": "a-dot.png", "seed": 1}), loading)[0]


def test_frames_in_a_folder_are_finished_when_all_are_there(loading: Watched) -> None:
    row = {"prompt": "a dot", "seconds": 0.4, "output": "frames"}
    (item,) = plan(loading, row)
    run(loading, [item])
    names = sorted(Path("frames").iterdir())
    assert len(names) == item.job.shape.frames > 1 and not part_finished([item], loading)[0]
    names[1].unlink()
    with pytest.raises(RequestError, match="not an empty folder"):
        part_finished([item], loading)


def test_names_do_not_collide_and_stay(loading: Watched) -> None:
    long = "a very long prompt that says the same for more than forty-eight letters, and then "
    rows = [{"prompt": long + end} for end in ("one", "two")] + [{"prompt": "b", "output": "o/b.png"}]
    items = plan(loading, *rows, count=2, output="o/{name}.png")
    names = [str(item.target) for item in items]
    slug = "o/a-very-long-prompt-that-says-the-same-for-more-t"
    assert names == [f"{slug}-1.png", f"{slug}-2.png", f"{slug}-1-2.png", f"{slug}-2-2.png", "o/b-1.png", "o/b-2.png"]
    assert names[:2] == [str(item.target) for item in plan(loading, rows[0], count=2, output="o/{name}.png")]
    assert [str(item.target) for item in plan(loading, *rows[:2], output="x.png")] == ["x-1.png", "x-2.png"]


def test_a_folder_holds_the_results(loading: Watched) -> None:
    Path("there").mkdir()
    rows: tuple[dict[str, Any], ...] = ({"prompt": "a dot"}, {"prompt": "a cat", "output": "x.png"})
    for output in ("new/", "there", "there/"):
        folder = output.rstrip("/")
        items = plan(loading, *rows, output=output, form="webp")
        assert [str(item.target) for item in items] == [f"{folder}/a-dot-1.webp", f"{folder}/x.png"]
    assert [str(item.target) for item in plan(loading, rows[0], output="new/")] == ["new/a-dot-1.png"]
    assert [str(item.target) for item in plan(loading, rows[0], output="new/{name}/")] == ["new/a-dot-1"]
    with pytest.raises(RequestError, match="ends in a slash"):
        plan(loading, *rows, output="x.mp4/")
    with pytest.raises(RequestError, match="is one image, and this is a clip of 5 frames"):
        plan(loading, {"prompt": "a dot", "seconds": 0.4, "output": "x.jpg"})


def test_each_result_says_what_a_single_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 96), "white").save("wide.png")
    rows = ['{"prompt": "a cat"}', '{"prompt": "a cat xyzzy", "negative_prompt": "blurry"}']
    rows.append('{"prompt": "a cat moves left", "image": "wide.png", "seconds": 0.7}')
    Path("p.jsonl").write_text("\n".join(rows))
    words = ["generate", "-m", "nano2-t2v", "--prompts", "p.jsonl", "--seconds", "0", "--store", "off", "-o", "out/"]
    assert main(words) == 0
    _, err = capfd.readouterr()
    assert "2/3 `a cat xyzzy`: words of the prompt that the model does not use: `xyzzy`" in err
    assert "3/3 `a cat moves left`: image wide.png: 64x96, used as 192x192, resized and cropped" in err
    lines = [json.loads(line) for line in Path("p.summary.jsonl").read_text().splitlines()]
    assert [line.get("unused_words") for line in lines] == [None, ["xyzzy"], None]
    assert {Path(line["path"]).parent for line in lines} == {Path("out")}


def test_rows_that_cannot_be_made(loading: Watched) -> None:
    rows = [
        {"prompt": "a dot"},
        {"prompt": " "},
        {"prompt": "b", "steps": "many"},
        {"prompt": "c", "output": "a-dot-1.png"},
    ]
    items, refused = plan_items([Row(i + 2, row) for i, row in enumerate(rows)], BASE, loading)
    assert [item.number for item in items] == [1]
    assert [(one.number, one.line, one.status) for one in refused] == [
        (2, 3, "failed"), (3, 4, "failed"), (4, 5, "failed")
    ]  # fmt: skip
    assert [one.error.split(":")[0] for one in refused if one.error] == [
        "the prompt is empty", "steps `many` is not a whole number", "output `a-dot-1.png` is that of line 2 already"
    ]  # fmt: skip
    with pytest.raises(RequestError, match="prompt is empty"):
        plan_items([Row(1, {"prompt": " "})], BASE, loading)


def test_a_latent_that_was_left_is_decoded(loading: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    items = plan(loading, {"prompt": "a dot"})
    decode = stages.decode_pieces

    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(stages, "decode_pieces", full)
    failed = run(loading, items)["a dot"]
    assert failed.status == "failed" and "kandinsky decode a-dot-1.png.latent.safetensors" in (failed.hint or "")
    assert latent_path(items[0].target).exists()
    monkeypatch.setattr(stages, "decode_pieces", decode)
    assert run(loading, items)["a dot"].status == "done" and loading.times("a dot") == 1
    finished = read_video("a-dot-1.png").frames
    assert not latent_path(items[0].target).exists()
    Path("a-dot-1.png").unlink()
    run(loading, items)
    assert np.array_equal(read_video("a-dot-1.png").frames, finished) and loading.times("a dot") == 2


def test_the_summary_holds_all_entries_at_any_time(loading: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SUMMARY_EVERY_S", 0.0)
    items = plan(loading, {"prompt": "a dot"}, {"prompt": "a cat"})
    path = Path("new/s.jsonl")

    def statuses() -> list[str]:
        return [json.loads(line)["status"] for line in path.read_text(encoding="utf-8").splitlines()]

    with pytest.raises(KeyboardInterrupt), Summary(path, items) as summary:
        assert statuses() == ["waiting", "waiting"]
        summary.add(settle(items[1], batch.Failure("no")))
        assert statuses() == ["waiting", "failed"] and summary.counts() == {"waiting": 1, "failed": 1}
        raise KeyboardInterrupt
    assert statuses() == ["waiting", "failed"] and [p.name for p in path.parent.iterdir()] == ["s.jsonl"]


def test_the_command_line(loading: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    Path("p.csv").write_text("prompt,seed,steps\na dot,7,1\na cat,,2\na fox,8,many\n", encoding="utf-8")
    arguments = [
        "generate",
        "-m",
        "nano-t2v",
        "--prompts",
        "p.csv",
        "--seconds",
        "0",
        "--guidance",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--json"]) == 1
    out, err = capfd.readouterr()
    *entries, total = map(json.loads, out.splitlines())
    by_line = {entry["line"]: entry for entry in entries}
    assert {line: (entry["status"], entry.get("path")) for line, entry in by_line.items()} == {
        2: ("done", "a-dot-7.png"), 3: ("done", "a-cat.png"), 4: ("failed", None)
    }  # fmt: skip
    assert by_line[3]["recipe"]["steps"] == 2 and total["summary"] == {"done": 2, "failed": 1}
    assert "error: 3/3, line 4 `a fox`: steps `many` is not a whole number" in err
    kept = [json.loads(line) for line in Path(total["file"]).read_text(encoding="utf-8").splitlines()]
    assert [(entry["number"], entry["status"]) for entry in kept] == [(1, "done"), (2, "done"), (3, "failed")]
    assert kept[1]["seed"] == by_line[3]["recipe"]["seed"] and total["file"] == "p.summary.jsonl"

    Path("p.csv").write_text("prompt,seed,steps\na dot,7,1\na cat,,2\n", encoding="utf-8")
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.splitlines() == ["a-dot-7.png", "a-cat.png"] and "2 results: 2 finished before" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--ray", "local"], "--ray is for many prompts"),
        (["--prompts", "p.txt", "--workers", "2"], "--workers is for a Ray cluster"),
        (
            ["--prompts", "p.txt", "--ray", "local", "--device", "cuda:1"],
            "device `cuda:1` is not supported with --ray",
        ),
        (["x", "--summary", "s.jsonl"], "--summary is for many prompts"),
        (["--prompts", "p.txt", "--steps", "100000"], "steps `100000` are not supported"),
        (["--prompts", "p.txt", "-o", "x.avi"], "has the ending `.avi`"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a dot\na cat\n", encoding="utf-8")
    load: Callable[..., None] = lambda *_: pytest.fail("something was loaded")  # noqa: E731
    monkeypatch.setattr(batch.Loading, "load", load)
    assert main(["generate", *arguments]) == 2
    assert message in capfd.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["p.txt"]
