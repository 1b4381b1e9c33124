"""Models that were announced and never released: said everywhere; they build, plan, and generate at tiny size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.build import bare_network
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.card import Card
from tiny import kandinsky4 as tiny
from tiny.family import randomise
from tiny.fixtures import no_hub  # noqa: F401 - a fixture

IDS = ("kandinsky4-t2v", "kandinsky4-t2v-hd", "kandinsky4-i2v", "kandinsky4-i2v-hd")


def test_these_and_no_others() -> None:
    assert {card.id for card in catalogue.all_cards() if not card.is_published} == set(IDS)


@pytest.mark.parametrize("model", IDS)
def test_the_network_of_a_card_is_what_it_says(model: str) -> None:
    card = catalogue.find(model)
    with torch.device("meta"):
        net = bare_network(card.part("dit"), card.dit, Path())
    count = sum(p.numel() for p in net.parameters())
    assert count == card.parameters and 2 * count < card.dit.bytes < 2 * count * 1.0001
    assert (card.task == "image-to-video") == net.params.visual_cond
    groups = net.params.num_groups
    patch = card.clip.spatial * net.params.patch_size[1]
    for size in card.clip.sizes:
        width, height = map(int, size.split("x"))
        assert height % (patch * groups[1]) == width % (patch * groups[2]) == 0, size
    flash = catalogue.find("kandinsky4-t2v-flash")
    assert (card.text, card.vae) == (flash.text, flash.vae)


@pytest.mark.parametrize(("model", "size"), list(zip(IDS, ("672x384", "1280x768", None, "1408x640"), strict=True)))
def test_plans(model: str, size: str | None) -> None:
    width, height = map(int, size.split("x")) if size else (None, None)
    made = kandinsky.plan(model, width=width, height=height, memory="141GB")
    flash = kandinsky.plan("kandinsky4-t2v-flash", memory="141GB")
    assert made.passes == 100 and made.seconds > 10 * flash.seconds
    assert made.download_bytes == flash.download_bytes - catalogue.find("kandinsky4-t2v-flash").dit.bytes
    assert any("unpublished" in entry for entry in made.missing)


def test_the_command_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert all(("not published" in line) == (model in IDS) for model, line in lines.items())
    assert main(["models", "--json"]) == 0
    facts = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert [name for name, entry in facts.items() if not entry["published"]] == sorted(IDS)
    assert main(["plan", "kandinsky4-i2v-hd"]) == 0
    said = capsys.readouterr().out
    assert (
        "not possible: weights of kandinsky4-i2v-hd were never published" in said and "kandinsky download" not in said
    )
    assert main(["download", "kandinsky4-t2v"]) != 0
    out = capsys.readouterr()
    assert out.err.startswith("error: weights of `kandinsky4-t2v` were never published: there is nothing to download")
    assert "read as `kandinsky4_t2v_512.safetensors` from the folder KANDINSKY_WEIGHTS names" in out.err
    assert main(["generate", "a cat", "-m", "kandinsky4-t2v", "-o", "x.mp4"]) != 0
    assert "weights of `kandinsky4-t2v` were never published" in capsys.readouterr().err


def test_loading_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="weights of `kandinsky4-i2v` were never published: ") as error:
        kandinsky.load("kandinsky4-i2v", device="cpu")
    assert "kandinsky4_i2v_512.safetensors" in str(error.value.hint)
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"none of your own: looked for `.*kandinsky4_i2v_512\.safetensors`"):
        kandinsky.load("kandinsky4-i2v", device="cpu")


def tiny_card(card: Card) -> str:
    """The released flash card at tiny size, with the name, sampler and groups of another."""
    text = tiny.CARD.replace(f'base = "{tiny.MODEL}"', f'base = "{card.id}"').replace(f'"{tiny.MODEL}"', f'"{card.id}"')
    groups = card.dit.params["num_groups"]
    text = text.replace("num_groups = [1, 1, 1]", f"num_groups = {groups}").replace(", rope_angles = 'bfloat16'", "")
    if card.task == "image-to-video":
        text = text.replace("axes_dims", "visual_cond = true, axes_dims")
        text += "\n[classes.all]\narea = 4096\nmultiple = 32\n"
    text = (
        text[: text.index("sizes = [")]
        + 'sizes = ["64x64", "96x64"]\ndefault_size = "64x64"\n'
        + text[text.index("channels =") :]
    )
    return text + "\n[sampling]\nsteps = 3\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.write(tmp_path_factory.mktemp("unpublished") / "all")
    for model in IDS:
        card = catalogue.find(model)
        (made / "cards" / f"{model}.toml").write_text(tiny_card(card), encoding="utf-8")
        params = catalogue.read(made / "cards" / f"{model}.toml").dit.params
        net = randomise(DiffusionTransformer3D(DiTParams.from_dict(params)))
        state = {k: v for k, v in net.state_dict().items() if "rope_embeddings" not in k}
        save_file(state, made / "weights" / card.dit.parts[0].local)
    return made


@pytest.mark.parametrize("model", IDS)
def test_they_generate_at_tiny_size(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder that KANDINSKY_WEIGHTS names; guidance, the first frame and the groups have their say."""
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(folder / "weights"))
    pipe = kandinsky.load(model, device="cpu")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
    given = {"image": image} if "i2v" in model else {}
    video = pipe("a cat", seconds=1, seed=3, **given)
    assert video.frames.shape == (9, 64, 64, 3) and video.frames.std() > 1
    assert (video.recipe["steps"], video.recipe["guidance"]) == (3, 5.0)
    assert not np.array_equal(video.frames, pipe("a cat", seconds=1, seed=3, guidance=1, **given).frames)
    if given:
        other = pipe("a cat", seconds=1, seed=3, image=Image.new("RGB", (64, 64), "red"))
        assert not np.array_equal(video.frames, other.frames)
        with pytest.raises(RequestError, match="image"):
            pipe("a cat", seconds=1, seed=3)
    with pipe.placement.hold("dit") as dit:
        assert math.prod(dit.params.num_groups) == (4 if "hd" in model else 1)
