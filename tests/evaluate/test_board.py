"""The leaderboard: every figure in it, nothing from elsewhere, nothing of a prompt as markup."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.evaluate import results
from kandinsky.evaluate.board import page
from kandinsky.evaluate.results import Result
from kandinsky.evaluate.vbench import DIMENSIONS
from kandinsky.model.values import Video

HOSTILE = '<script>alert("x")</script>'


def made(folder: Path, model: str, shade: int, seconds: float) -> Result:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    frames = np.full((5, 48, 64, 3), shade, dtype=np.uint8)
    Video(frames, fps=8).save(folder / "clips" / "0001.mp4")
    return Result(
        "own", model,
        {
            "temporal flickering": {"value": 0.9 + shade / 1e4, "low": 0.8, "high": 0.95, "better": "higher",
                                    "label": "VBench-like"},
            "flicker": {"value": shade / 10, "low": None, "high": None, "better": "lower"},
            "colour drift": {"value": 0.1, "low": 0.0, "high": 0.2, "better": "lower"},
            "motion amount": {"value": 3.0, "low": 2.0, "high": 4.0, "better": "neither"},
        },
        unavailable={"fvd": "compares with references: name their folder"},
        machine={"processor": "A processor", "cores": 2},
        cost={"seconds": seconds, "clips": 1},
        clips=[{"file": "clips/0001.mp4", "key": "0001", "prompt": HOSTILE, "seed": 1, "values": {}}],
        folder=folder,
    )  # fmt: skip


class Tags(HTMLParser):
    """Counts tags, and refuses those that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    text = page([made(tmp_path / "a", "ours", 40, 2.0), made(tmp_path / "b", "theirs & co", 200, 20.0)])
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.count["img"] == 2 and tags.count["circle"] == 2 and "script" not in tags.count
    assert tags.count["polygon"] == 4 + 2 and text.count("theirs &amp; co") > 3
    assert "&lt;script&gt;" in text and not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)https?:", text)
    assert '<td class="best">4<' in text and '<td class="best">0.92<' in text and "VBench-like" in text
    assert "compares with references" in text and "A processor, 2 cores" in text and "2.00" in text


def test_results_of_both_kinds_are_shown_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = made(tmp_path / "a", "ours", 40, 2.0)
    results.write(mine, tmp_path / "a" / results.FILE)
    official = tmp_path / "wan_eval_results.json"
    official.write_text(json.dumps({name.replace(" ", "_"): [0.25, []] for name in DIMENSIONS}))
    out = tmp_path / "board.html"
    assert main(["evaluate", "board", str(tmp_path / "a"), str(official), "-o", str(out), "--title", "Ours & Wan"]) == 0
    assert capfd.readouterr().out.strip() == str(out)
    text = out.read_text(encoding="utf-8")
    assert "<h2>own</h2>" in text and "<h2>vbench</h2>" in text and "official" in text and "Ours &amp; Wan" in text
    assert main(["evaluate", "board", str(tmp_path / "a"), "-o", str(tmp_path / "x.pdf")]) == 2
    assert main(["evaluate", "board", str(tmp_path), "-o", str(out)]) == 2


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    one = made(tmp_path / "a", "ours", 40, 2.0)
    with pytest.raises(RequestError, match="13 results"):
        page([one] * 13)
    gone = dataclasses.replace(one, folder=tmp_path / "gone", cost=None)
    text = page([gone])
    assert "<img" not in text and "<circle" not in text and "<polygon" not in text and "0.9" in text
