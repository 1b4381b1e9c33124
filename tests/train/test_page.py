"""The page of a run: what stands in its folder, as text that can be no markup, without anything from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kandinsky
from kandinsky.cli.main import main
from kandinsky.media.video import write_sheet
from kandinsky.train import loop
from kandinsky.train.curve import Curve, smoothed, svg_plot, thinned
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.page import write

EVIL = '<script>alert("x")</script>&\x1b[31m'


class Line(Objective):
    def __init__(self) -> None:
        with loop.seeded(1):
            self.network = nn.Linear(2, 1)

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> torch.Tensor:
        return torch.randn(4, 2, generator=rng.generator(0))

    def loss(self, update: str, batch: torch.Tensor, rng: Rng) -> Loss:
        errors = (self.network(batch) - batch.sum(1, keepdim=True)).pow(2).mean(1)
        return Loss(errors.mean(), 4, timed=[Timed(0.15, errors[0].item()), Timed(0.95, errors[1].item())])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    settings = loop.LoopSettings.from_dict({"steps": 40, "lr": 0.01, "bf16": False, "checkpoint_steps": 20})
    out = tmp_path / "a run & more"
    loop.run(Line(), settings, out, recipe={"model": EVIL, "data.source": "clips"})
    return out


class Reader(HTMLParser):
    """Collects what a page shows and what it asks for; every tag must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def test_a_run_leaves_a_page(run: Path) -> None:
    reader = read(run / "run.html")
    shown = "\n".join(reader.text)
    for words in ("a run & more", "40 of 40", "Loss by time", "0.1-0.2", "0.9-1.0", "Gradient norm", "Learning rate",
                  "checkpoint-", "data.source", "clips"):  # fmt: skip
        assert words in shown, words
    assert "0.4-0.5" not in shown  # nothing was drawn there
    assert reader.tags.count("svg") >= 5 and reader.links == []


def test_text_is_no_markup(run: Path) -> None:
    reader = read(run / "run.html")
    assert "script" not in reader.tags and "\x1b" not in (run / "run.html").read_text()
    assert '<script>alert("x")</script>&' in "".join(reader.text)


def test_samples_are_within_and_lead_to_their_videos(run: Path) -> None:
    folder = run / "samples"
    for step in range(10, 110, 10):
        clip = kandinsky.Video(np.full((3, 16, 16, 3), step, np.uint8), fps=4.0, seed=0, recipe={"prompt": EVIL})
        write_sheet(clip, folder / f"step-{step:08d}-1.png")
    (folder / "step-00000100-1.mp4").write_bytes(b"")
    (folder / "step-x.png").write_bytes(b"no picture")
    reader = read(write(run))
    images = [link for link in reader.links if link.startswith("data:image/jpeg;base64,")]
    assert len(images) == 6 and [link for link in reader.links if link not in images] == ["samples/step-00000100-1.mp4"]
    steps = [int(found) for found in re.findall(r"step (\d+)", "\n".join(reader.text))]
    assert steps[0] == 10 and steps[-1] == 100 and EVIL.split("\x1b")[0] in "".join(reader.text)


def test_the_command_writes_it_for_a_run_that_goes_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.html").unlink()
    with (run / "log.jsonl").open("a") as stream:
        stream.write('{"step": 41, "los')  # being written
    for path in run.glob("checkpoint-*/*.json"):
        path.write_text("{")
    assert main(["train", str(run), "--page"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "run.html") and (run / "run.html").is_file()
    assert main(["train", str(tmp_path), "--page"]) == 2
    assert "holds no log of a training" in capsys.readouterr().err
    assert main(["train", str(run), "--page", "--steps", "3"]) == 2
    assert "leave the other options out" in capsys.readouterr().err


def test_values_that_are_no_numbers_make_no_curve(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float("nan") if step == 2 else step, "norm": float("inf")} for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write(tmp_path).read_text()
    assert "nan" not in re.findall(r'points="([^"]*)"', page)[0] and "Gradient norm" not in page


def test_curves_of_any_kind_are_drawn() -> None:
    for points in ([(1.0, 5.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0), (9.0, 1e-9)], [(1.0, 1e-8), (2.0, 1e12)]):
        plot = svg_plot([Curve(points, "red")], label="a <plot>")
        assert "nan" not in plot and "inf" not in plot and "a &lt;plot&gt;" in plot


def test_means_keep_the_level() -> None:
    points = [(float(x), 3.0) for x in range(1000)]
    assert all(y == pytest.approx(3.0) for _, y in smoothed(points))
    assert len(thinned(points, 100)) == 100 and thinned(points, 100)[-1] == (999.0, 3.0) and thinned([]) == []
