"""One bad row never stops a batch, and no row writes outside the folder that the command line names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batch.prompts import STILL
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.latent_names import latent_path
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.jobs.batch import Failure, Item, Loading, Summary, part_finished, plan_items, settle
from kandinsky.jobs.prompt_files import Row, parse
from kandinsky.model.values import Request

BASE = Request(model="nano-t2v", prompt="", seed=1, **STILL)  # type: ignore[arg-type]
BAD_ROWS = {
    "a lone surrogate": '{"prompt": "a \\ud83d dot"}',
    "an output of 300 letters": json.dumps({"prompt": "a dot", "output": "o" * 300 + ".png"}),
    "an output with a NUL": '{"prompt": "a dot", "output": "a\\u0000.png"}',
    "an output with an escape": '{"prompt": "a dot", "output": "a\\u001b[2J.png"}',
    "an output above": '{"prompt": "a dot", "output": "../x.png"}',
    "an absolute output": '{"prompt": "a dot", "output": "/tmp/never-written.png"}',
    "an output through a link": '{"prompt": "a dot", "output": "out/x.png"}',
    "an output that is a folder": '{"prompt": "a dot", "output": "there.png"}',
    "an output of a kind that is not written": '{"prompt": "a dot", "output": "x.avi"}',
    "deep JSON": '{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "a deep value of another's column": '{"prompt": 1, "concept": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    "a cut line": '{"prompt": "a do',
    "a number": "17",
    "a list for a prompt": '{"prompt": ["a dot"]}',
    "a seed that is none": '{"prompt": "a dot", "seed": 1e400}',
    "digits without end": '{"prompt": "a dot", "steps": ' + "9" * 5000 + "}",
    "an image that is not there": '{"prompt": "a dot", "image": "gone.png"}',
    "an image with a NUL": '{"prompt": "a dot", "image": "a\\u0000.png"}',
}


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("out").symlink_to(tmp_path)
    Path("there.png").mkdir()
    return Loading(catalogue.source_of("nano-t2v"), RunOptions(device="cpu"))


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_its_own_failure(name: str, loading: Loading, tmp_path: Path) -> None:
    rows = parse('{"prompt": "a cat"}\n' + BAD_ROWS[name] + '\n{"prompt": "a fox", "output": "fox.png"}')
    items, refused = plan_items(rows, BASE, loading)
    left, settled = part_finished(items, loading)
    assert [str(item.target) for item in left] == ["a-cat-1.png", "fox.png"]
    (failed,) = [*refused, *settled]
    assert failed.status == "failed" and failed.line == 2 and failed.error and "\n" not in failed.error
    assert failed.details is None, f"an error that nobody expected: {failed.details}"
    with Summary(Path("s.jsonl"), left) as summary:
        summary.add(failed)
    assert [json.loads(line)["status"] for line in Path("s.jsonl").read_text(encoding="utf-8").splitlines()] == [
        "waiting", "failed", "waiting"
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_a_row_that_breaks_something_unexpected(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = plan_items.__globals__["resolve"]

    def broken(request: Request, *more: Any) -> Any:
        if request.prompt == "b":
            raise ZeroDivisionError("a fault of ours")
        return resolve(request, *more)

    monkeypatch.setitem(plan_items.__globals__, "resolve", broken)
    items, refused = plan_items([Row(i, {"prompt": prompt}) for i, prompt in enumerate("abc", 1)], BASE, loading)
    assert [item.job.prompt for item in items] == ["a", "c"]
    assert refused[0].error == "ZeroDivisionError: a fault of ours" and "Traceback" in (refused[0].details or "")


@pytest.mark.parametrize(
    ("output", "name", "target"),
    [
        (None, "x.png", "x.png"),
        (None, "deep/er/x.png", "deep/er/x.png"),
        (None, "a/../x.png", "a/../x.png"),
        (None, "a/../../x.png", None),
        ("{name}.png", "x.png", "x.png"),
        ("o/{name}.png", "o/x.png", "o/x.png"),
        ("o/{name}.png", "o/deep/x.png", "o/deep/x.png"),
        ("o/{name}.png", "x.png", "o/x.png"),
        ("o/{name}.png", "o2/x.png", "o/o2/x.png"),
        ("o/{name}.png", "../x.png", None),
        ("../{name}.png", "../x.png", "../x.png"),
        ("../{name}.png", "../../x.png", None),
        ("ABSOLUTE/{name}.png", "ABSOLUTE/sub/x.png", "ABSOLUTE/sub/x.png"),
        ("ABSOLUTE/{name}.png", "x.png", "ABSOLUTE/x.png"),
        ("ABSOLUTE/{name}.png", "ABSOLUTE/../x.png", None),
        ("o/{name}.png", "ABSOLUTE/x.png", None),
    ],
)
def test_a_rows_output_stays_in_the_folder_that_is_named(
    output: str | None, name: str, target: str | None, loading: Loading, tmp_path: Path
) -> None:
    there = str(tmp_path / "elsewhere")
    rows = [Row(1, {"prompt": "a cat", "output": name.replace("ABSOLUTE", there)})]
    named = None if output is None else output.replace("ABSOLUTE", there)
    if target is not None:
        items, _ = plan_items(rows, BASE, loading, output=named)
        assert str(items[0].target) == target.replace("ABSOLUTE", there)
        return
    with pytest.raises(RequestError, match="lies outside of") as refused:
        plan_items(rows, BASE, loading, output=named)
    assert refused.value.hint == 'to write elsewhere, name the folder: `output="FOLDER/{name}.mp4"`'


def test_bad_rows_beside_good_ones_on_the_command_line(loading: Loading, capfd: pytest.CaptureFixture[str]) -> None:
    Path("p.jsonl").write_text("\n".join(['{"prompt": "a cat"}', *BAD_ROWS.values()]), encoding="utf-8")
    arguments = ["generate", "--prompts", "p.jsonl", "--seconds", "0", "--steps", "1", "--seed", "1", "--device", "cpu"]
    assert main(arguments) == 1
    out, err = capfd.readouterr()
    assert out == "a-cat-1.png\n" and f"{len(BAD_ROWS) + 1} results: 1 made, {len(BAD_ROWS)} failed" in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == len(BAD_ROWS)
    assert "Traceback" not in err and "\x1b" not in err
    assert all(len(line) < 1000 for line in err.splitlines())
    Path("p.jsonl").write_text("\n".join(BAD_ROWS.values()), encoding="utf-8")
    assert main(arguments) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: ")


def test_long_lines(loading: Loading) -> None:
    rows = parse(json.dumps({"prompt": "a panda " * 200_000}) + "\n" + "x" * 10_000_000)
    items, refused = plan_items(rows, BASE, loading)
    assert str(items[0].target) == "a-panda-" * 6 + "1.png"
    assert len(refused) == 1 and len(refused[0].error or "") < 300


def test_an_interrupted_batch_says_what_is_there(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from kandinsky.jobs import batch

    def interrupted(_self: object, items: list[Item]) -> Any:
        yield items[0], Failure("no room"), 1
        latent_path(items[1].target).write_bytes(b"half of the way")
        raise KeyboardInterrupt

    monkeypatch.setattr(batch.LocalRunner, "run", interrupted)
    Path("p.txt").write_text("a dot\na cat\na fox\n", encoding="utf-8")
    code = main(["generate", "--prompts", "p.txt", "--seconds", "0", "--seed", "1", "--device", "cpu", "-q"])
    err = capfd.readouterr().err
    assert code == 130 and err.splitlines()[-1] == (
        "interrupted: 0 of 3 results are finished; the same command makes the rest and goes on from "
        "`a-cat-1.png.latent.safetensors`"
    )
    kept = [json.loads(line)["status"] for line in Path("p.summary.jsonl").read_text().splitlines()]
    assert kept == ["failed", "waiting", "waiting"]


def test_settling_never_raises(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,), _ = plan_items([Row(1, {"prompt": "a dot"})], BASE, loading)
    write: Callable[..., None] = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    monkeypatch.setattr("kandinsky.jobs.batch.write_video", write)
    import numpy as np

    from kandinsky.jobs.batch import Made
    from kandinsky.model.values import Video

    outcome = settle(item, Made(Video(np.zeros((1, 8, 8, 3), np.uint8), 1.0, 1), 0.1))
    assert outcome.status == "failed" and "No space left" in (outcome.error or "")


def test_a_misspelt_placeholder_is_refused() -> None:
    from kandinsky.jobs.names import has_name

    assert has_name("out/{name}.mp4") and not has_name("out/x.mp4")
    with pytest.raises(RequestError, match=r"placeholder `\{nme\}`: the only one is `\{name\}`"):
        has_name("{nme}.png")
