"""The README followed as a newcomer would: its lines for the models that ship, in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from kandinsky.cli.main import main
from kandinsky.media.video import read_video

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FIRST = README.split("## First video")[1].split("## ")[0]
MODELS = README.split("## The models")[1].split("## ")[0]
FAST = ["--steps", "1", "-q"]


def lines(part: str) -> list[list[str]]:
    found = re.findall(r"^kandinsky (.*)$", part, flags=re.M)
    return [shlex.split(line, comments=True) for line in found]


def test_first_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    made = []
    for words in lines(FIRST):
        is_short = "--seconds" in words or words[0] != "generate"
        assert (
            main([*words, *(FAST if words[0] == "generate" else []), *([] if is_short else ["--seconds", "0.7"])]) == 0
        )
        made += [words[words.index("-o") + 1]] if "-o" in words else []
    frames = {name: len(read_video(tmp_path / name).frames) for name in made}
    assert frames == {"panda.mp4": 9, "two.mp4": 9, "panda.png": 1, "moves.mp4": 9, "long.mp4": 60}
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("kandinsky generate"), "show ends in the command"


def test_models_and_plan(capsys) -> None:
    for words in lines(MODELS):
        if words[0] in ("models", "plan"):
            assert main(words) == 0
    said = capsys.readouterr().out
    assert "kandinsky4-v2a" in said and "download" in said


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M)
    exec(code.replace("seconds=1", "seconds=0.7, steps=1"), {})
    assert read_video(tmp_path / "panda.mp4").seed == 7
