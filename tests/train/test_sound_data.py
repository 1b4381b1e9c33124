"""Sound for clips is learned from a data set that `kandinsky data encode` made of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a import stages
from kandinsky.media.mux import copy_with_audio, probe
from kandinsky.model.values import Audio, Request
from kandinsky.train.data.dataset import EncodedDataset
from kandinsky.train.data.encode import encode
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.recipe import check_recipe, run_recipe
from kandinsky.train.sound import EncodedSound, SoundData
from tiny.sound import film

MODEL = "nano-v2a"
WORDS = ("a drum beats", "a bell rings")


def films(folder: Path) -> Path:
    """Two films of moving colours, with a tone each."""
    folder.mkdir()
    for number, words in enumerate(WORDS):
        silent = film(folder.parent / f"silent-{number}.mp4", seconds=4.0, seed=number)
        wave = np.sin(np.arange(4 * 16000) * (0.05 + 0.1 * number))[:, None] * 16000
        copy_with_audio(probe(silent), Audio(wave.astype(np.int16), 16000), folder / f"{number}.mp4")
        (folder / f"{number}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return encode(films(folder / "films"), MODEL, folder / "set").folder


def test_a_batch_holds_what_generation_gives_the_network(encoded: Path) -> None:
    data, card = EncodedDataset(encoded), catalogue.find(MODEL)
    batch = EncodedSound(data, SoundData("", 2, 0.0, 0.0, 0.0))(0, Rng(0, 0), Portion())
    context = build(card)
    frames = batch.given.known.extra["frames"]
    assert batch.given.known.extra.keys() == {"frames"}
    for row in range(2):
        number = next(i for i in range(2) if torch.equal(data.load(i)["video"][0].float(), frames[row]))
        path = encoded.parent / "films" / f"{number}.mp4"
        job = resolve(Request(MODEL, WORDS[number], video=path, seconds=card.sound.window_s, seed=0), card)
        made = stages.encode(context, [job])[0]
        torch.testing.assert_close(frames[row], made.frames_NTE[0].float())
        torch.testing.assert_close(batch.given.text.tokens_BLC[row], made.text_1LE[0].float())
    dropped = EncodedSound(data, SoundData("", 2, 0.0, 0.0, 1.0))(0, Rng(0, 0), Portion())
    torch.testing.assert_close(dropped.given.known.extra["frames"][0], data.load(0)["black"][0].float())
    torch.testing.assert_close(dropped.given.text.tokens_BLC[:1], data.text("", still=False).tokens_BLC.float())


@pytest.mark.slow
def test_the_loss_falls(encoded: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = tmp_path / "recipe.yaml"
    values = {
        "kind": "sound", "model": MODEL, "out": str(tmp_path / "run"), "times": {"kind": "points", "points": [0.5]},
        "data": {"source": str(encoded), "batch": 2, "drop_text": 0.0, "drop_frames": 0.0, "drop_both": 0.0},
        "loop": {"steps": 25, "lr": 1e-3, "warmup": 2, "decay": 0, "bf16": False, "log_every": 1, "seed": 1},
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(values))
    run_recipe(recipe, on_log=lambda line: losses.append(line["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])


@pytest.mark.slow
def test_what_it_takes_is_told_before_there_are_data(tmp_path: Path, encoded: Path) -> None:
    """Of whole windows; tokens are those of the log."""
    path = tmp_path / "recipe.yaml"
    values: dict[str, Any] = {
        "kind": "sound", "model": MODEL, "out": str(tmp_path / "run"), "data": {"source": str(encoded), "batch": 2},
        "loop": {"steps": 1, "lr": 1e-3, "bf16": False},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    lines: list[dict[str, float]] = []
    run_recipe(path, on_log=lines.append)
    told = lines[0]["tokens per second"] * lines[0]["seconds per step"]
    path.write_text(yaml.safe_dump(values | {"data": {"source": str(tmp_path / "absent"), "batch": 2}}))
    said = {line.split()[0]: line for line in check_recipe(path)}
    assert said["tokens"].split()[1] == f"{told:,.0f}" and list(said)[1:4] == ["parameters", "tokens", "operations"]
    path.write_text(yaml.safe_dump(values | {"adapter": {"targets": ["nowhere"]}}))
    with pytest.raises(RequestError, match="adapter target `nowhere` fits none"):
        check_recipe(path)


def test_data_of_another_model_is_refused(encoded: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    values = {"kind": "sound", "model": "kandinsky4-v2a", "out": str(tmp_path / "run"),
              "data": {"source": str(encoded)}, "loop": {"steps": 1, "lr": 1e-3}}  # fmt: skip
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(RequestError, match="was encoded by `nano-v2a`"):
        run_recipe(recipe)
