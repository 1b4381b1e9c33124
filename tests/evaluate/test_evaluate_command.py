"""`kandinsky evaluate SUITE MODEL`: clips that are made once, a result that says everything, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.evaluate import results
from kandinsky.evaluate.vbench import DIMENSIONS, read_official
from kandinsky.media.video import read_video

QUICK = ("--steps", "1", "--seconds", "0.5", "--store", "off", "--quiet")
TABLE = (
    "prompt,concept,motion_level,expanded_prompt,ru_prompt,ru_expanded_prompt\n"
    "a fox,animal,high,a red fox,лиса,рыжая лиса\n"
    'a cat,"animal,scene",low,a black cat,кошка,чёрная кошка\n'
    "a star,scene,low,a yellow star,звезда,жёлтая звезда\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    (made / "bench.csv").write_text(TABLE, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Two prompts of MovieGen's table, by Nano."""
    command = ["evaluate", "moviegen", "nano-t2v", "--prompts", str(folder / "bench.csv"), "--column", "prompt"]
    assert main([*command, "--limit", "2", "--seed", "5", "-o", str(folder / "run"), *QUICK]) == 0
    return folder / "run"


def told(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((path / results.FILE).read_text(encoding="utf-8"))
    return values


def test_a_result_says_what_was_measured_on_what_and_how(run: Path) -> None:
    made = told(run)
    assert (made["kandinsky_evaluation"], made["suite"], made["model"]) == (1, "moviegen", "nano-t2v")
    assert [(one["file"], one["prompt"], one["seed"]) for one in made["clips"]] == [
        ("clips/0001.mp4", "a fox", 5), ("clips/0002.mp4", "a cat", 6),
    ]  # fmt: skip
    assert made["recipe"]["steps"] == 1 and "prompt" not in made["recipe"] and made["recipe"]["model"] == "nano-t2v"
    assert made["prompts"]["column"] == "prompt" and len(made["prompts"]["sha256"]) == 64
    assert made["machine"]["cores"] >= 1 and made["machine"]["versions"]["torch"]
    assert made["cost"]["clips"] == 2 and made["cost"]["seconds"] > 0
    assert made["metrics"]["temporal flickering"]["label"] == "VBench-like"
    assert made["metrics"]["motion amount"]["clips"] == 2 and "label" not in made["metrics"]["motion amount"]
    assert "licence MIT" in made["unavailable"]["clip similarity"] and "references" in made["unavailable"]["psnr"]
    assert set(made["tags"]["concept"]) == {"animal", "scene"} and set(made["tags"]["motion_level"]) == {"high", "low"}
    assert read_video(run / "clips" / "0001.mp4").recipe["seed"] == 5


def test_the_same_command_makes_only_what_is_missing(
    folder: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (run / "clips").iterdir()}
    first = told(run)
    command = ["evaluate", "moviegen", "nano-t2v", "--prompts", str(folder / "bench.csv"), "--column", "prompt"]
    assert main([*command, "--seed", "5", "-o", str(run), *QUICK]) == 0
    out = capfd.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in (run / "clips").iterdir()}
    assert set(after) - set(before) == {"0003.mp4"} and before.items() <= after.items()
    made = told(run)
    assert made["clips"][0] == first["clips"][0] and made["cost"]["clips"] == 3
    lines = out.splitlines()
    assert lines[-1] == str(run / results.FILE) and lines[0] == "nano-t2v on moviegen: 3 clips"
    assert any(line.startswith("  unavailable: fvd: ") for line in lines) and "VBench-like" in out


def test_clips_that_exist_are_measured_and_compared(folder: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--clips", str(run), "--references", str(run), "-o", str(folder / "again"), "--limit", "2"]
    assert main(["evaluate", "own", "theirs", *options, "--metric", "psnr", "--metric", "flicker", "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["model"] == "theirs" and made["metrics"]["psnr"]["value"] == 99.0 and len(made["clips"]) == 2
    assert made["clips"][1]["prompt"] == "a cat" and made["clips"][0]["file"] == "../run/clips/0001.mp4"
    assert results.read(folder / "again").metrics["psnr"]["value"] == 99.0
    assert not (folder / "again" / "clips").exists()


def test_vbench_is_laid_out_as_its_tool_reads_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entries = [
        {"prompt_en": "a red heart", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
        {"prompt_en": "a cat, asleep", "dimension": ["subject_consistency"]},
    ]
    info = folder / "info.json"
    info.write_text(json.dumps(entries), encoding="utf-8")
    run, out = folder / "vbench", folder / "official"
    command = ["evaluate", "vbench", "nano-t2v", "--prompts", str(info), "--count", "2", "-o", str(run)]
    assert main([*command, "--metric", "motion amount", *QUICK]) == 0
    made = told(run)
    assert [one["file"] for one in made["clips"]] == [
        f"clips/{name}-{i}.mp4" for name in ("a red heart", "a cat, asleep") for i in range(2)
    ]
    assert len({one["seed"] for one in made["clips"]}) == 4 and made["totals"]["total"] is None
    assert "import the official tool's result" in made["unavailable"]["human action"]
    assert main(["evaluate", "export", str(run), "--prompts", str(info), "-o", str(out)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(out)
    assert len(list((out / "videos").iterdir())) == 4 and (out / "videos" / "a cat, asleep-1.mp4").is_file()
    assert json.loads((out / "full_info.json").read_text()) == entries
    assert main(["evaluate", "export", str(run), "--prompts", str(info), "-o", str(out)]) == 2


def test_results_of_the_official_tool_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model_eval_results.json"
    values = {name.replace(" ", "_"): [0.25, [{"video_path": "x.mp4", "video_results": 0.25}]] for name in DIMENSIONS}
    path.write_text(json.dumps(values))
    found = results.read(path)
    assert found.model == "model" and found.totals is not None and found.totals["label"] == "official"
    assert read_official(path) == dict.fromkeys(DIMENSIONS, 0.25) and found.totals["total"] is not None
    del values["scene"]
    path.write_text(json.dumps(values))
    assert results.read(path).totals["total"] is None  # type: ignore[index]


BROKEN = (
    ("[]", "is no result"),
    ("{", "is not JSON"),
    ('{"kandinsky_evaluation": 2}', "has version 2: this library reads 1"),
    ('{"kandinsky_evaluation": 1, "suite": "own"}', "is damaged: `model` is missing"),
    (
        '{"kandinsky_evaluation": 1, "suite": "own", "model": "m", "metrics": {"psnr": {"value": null}}, '
        '"unavailable": {}, "clips": []}',
        "metric `psnr` has no value",
    ),
    *(
        (f'{{"kandinsky_evaluation": 1, "suite": "own", "model": "m", "unavailable": {{}}, {rest}}}', said)
        for rest, said in (
            ('"metrics": {}, "clips": [1]', "`clips` is of another kind"),
            ('"metrics": {}, "clips": [{"file": 1}]', "`clips` is of another kind"),
            ('"metrics": {}, "clips": [], "totals": "x"', "`totals` is of another kind"),
            ('"metrics": {}, "clips": [], "totals": {"total": "x"}', "`totals` is of another kind"),
            ('"metrics": {}, "clips": [], "cost": {"seconds": "x", "clips": 1}', "`cost` is of another kind"),
            ('"metrics": {}, "clips": [], "machine": []', "`machine` is of another kind"),
            ('"metrics": {"flicker": {"value": 1, "low": "a", "high": 2}}, "clips": []', "metric `flicker` is no num"),
            (f'"metrics": {{"flicker": {{"value": {"9" * 400}}}}}, "clips": []', "metric `flicker` has no value"),
        )
    ),
    ('{"scene": [NaN, []]}', "is nan: use a finite number"),
    (f'{{"scene": [{"9" * 400}, []]}}', "use a finite number"),
)


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=range(len(BROKEN)))
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        results.read(tmp_path / "x.json")
    assert said in str(caught.value)


REFUSED = (
    (("vbnch", "nano-t2v"), "suite `vbnch` does not exist: use `moviegen`, `vbench`"),
    (("moviegen",), "no model was given"),
    (("moviegen", "nano-t2v"), "no prompts were given: name MovieGen's list or table"),
    (("moviegen", "nano-t2v", "--prompts", "gone.csv"), "prompts `gone.csv` cannot be read"),
    (("own", "nano-v2a", "--prompts", "one.txt"), "makes sound"),
    (("own", "nano-t2v", "--prompts", "one.txt", "--metric", "beauty"), "metric `beauty` does not exist"),
    (("own", "nano-t2v", "--prompts", "one.txt", "--extractor", "clip"), "is no NAME=PATH"),
    (("own", "tinny", "--prompts", "one.txt"), "unknown model `tinny`"),
    (("own", "nano-t2v", "--prompts", "one.txt", "--workers", "2"), "--workers is for a Ray cluster"),
    (("own", "--clips", "gone"), "clips `gone` cannot be read"),
    (("distance", "one.txt", "one.txt"), "use an .npy file"),
    (("tinny",), "unknown model `tinny`"),
)  # fmt: skip


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a fox\n")
    assert main(["evaluate", *words]) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err


def test_distances_of_given_features(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows + 2)
    assert main(["evaluate", "distance", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["frechet"] == pytest.approx(16) and made["clips"] == [20, 20]
