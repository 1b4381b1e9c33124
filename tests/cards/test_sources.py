"""What a model's name stands for: repositories, official folders, and Diffusers folders of every pipeline."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import BackendError, RequestError, WeightsError
from tiny import family, images
from tiny.images import PIPELINES, write_diffusers_configs

NABLA = {"type": "nabla", "P": 0.9, "wT": 11, "wH": 3, "wW": 3, "add_sta": True, "method": "topcdf"}
KANDINSKY5 = [card for card in catalogue.cards().values() if card.dit.parts[0].repo.startswith("kandinskylab/")]


@pytest.mark.parametrize("card", KANDINSKY5, ids=lambda card: card.id)
def test_repositories_name_cards(card: catalogue.Card) -> None:
    (official,) = card.dit.parts
    assert catalogue.source_of(official.repo).card is card
    assert catalogue.source_of(official.repo.replace("kandinskylab/", "ai-forever/")).card is card
    name = catalogue.diffusers_repository(card)
    twin = catalogue.source_of(name).card
    assert twin.id == card.id and twin.sampling == card.sampling and twin.classes == card.classes
    assert (twin.dit.bytes, twin.text.bytes, twin.vae.bytes) == (card.dit.bytes, card.text.bytes, card.vae.bytes)
    assert {part.repo for part in (*twin.dit.parts, *twin.text.parts, *twin.vae.parts)} == {name}
    assert [part.name for part in twin.text.parts] == ["qwen", "clip", "qwen_tokenizer", "clip_tokenizer"]


def test_repositories_in_the_diffusers_layout_have_names_of_their_own() -> None:
    names = {card.id: catalogue.diffusers_repository(card).rpartition("/")[2] for card in KANDINSKY5}
    assert names["kandinsky5-lite-t2i"] == "Kandinsky-5.0-T2I-Lite-sft-Diffusers"
    assert names["kandinsky5-lite-i2i"] == "Kandinsky-5.0-I2I-Lite-sft-Diffusers"
    assert names["kandinsky5-lite-t2i-pretrain"] == "Kandinsky-5.0-T2I-Lite-pretrain-Diffusers"
    assert names["kandinsky5-pro-i2v-5s"] == "Kandinsky-5.0-I2V-Pro-sft-5s-Diffusers"
    assert len(set(names.values())) == len(names)
    with pytest.raises(RequestError, match="unknown model"):
        catalogue.source_of("kandinskylab/Kandinsky-5.0-T2I-Lite-Diffusers-2")


@pytest.mark.parametrize("task", PIPELINES)
def test_a_folder_of_any_pipeline_is_a_card(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = images.DIT_PARAMS.get(task, family.DIT_PARAMS)
    folder = write_diffusers_configs(tmp_path / "mine", task, params, shift=7.0)
    with caplog.at_level(logging.WARNING):
        card = catalogue.source_of(folder).card
    assert "no card names `mine`" in caplog.text
    assert card.task == task and card.id == "mine" and card.sampling.shift == 7.0
    assert card.vae.kind == ("flux" if task.endswith(("image", "editing")) else "hunyuan") and not card.vae.params
    assert card.clip.channels == family.CHANNELS
    assert card.dit.params.get("instruct_type") == params.get("instruct_type")
    assert card.dit.params["visual_cond"] == params["visual_cond"]
    assert card.sampling.attention == {"type": "dense"}


def test_a_folder_of_a_known_model_gets_its_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = catalogue.find("kandinsky5-pro-t2v-sft-5s")
    for name in (
        "Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers",
        "models--x--Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers/snapshots/1",
    ):
        folder = write_diffusers_configs(
            tmp_path / name, known.task, known.dit.params, shift=None, **NABLA | {"P": 0.8}
        )
        with caplog.at_level(logging.WARNING):
            card = catalogue.source_of(folder).card
        # the folder has HD's attention only; the card knows both classes
        assert card.id == known.id and card.sampling == known.sampling and card.classes == known.classes
        assert card.dit.params == known.dit.params and not caplog.messages


def test_what_a_folder_says_holds_for_all_sizes(tmp_path: Path) -> None:
    known = catalogue.find("kandinsky5-pro-i2v-5s")
    name = "Kandinsky-5.0-I2V-Pro-sft-5s-Diffusers"
    folder = write_diffusers_configs(tmp_path / name, known.task, known.dit.params, shift=4.0, **NABLA | {"P": 0.5})
    card = catalogue.source_of(folder).card
    for size in ((768, 512), (1280, 768)):
        sampling = card.sampling_for(*size)
        assert (sampling.shift, sampling.attention["P"]) == (4.0, 0.5)
        assert sampling.rope_scale == known.sampling_for(*size).rope_scale


@pytest.mark.parametrize(
    ("like", "attention"),
    [("kandinsky5-pro-t2v-sft-5s", {}), ("kandinsky5-pro-t2v-sft-10s", NABLA), ("kandinsky5-lite-t2v-sft-5s", {})],
)
def test_a_stranger_is_taken_for_the_model_it_is_like(
    like: str, attention: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = catalogue.find(like)
    folder = write_diffusers_configs(tmp_path / "mine", known.task, known.dit.params, shift=None, **attention)
    card = catalogue.source_of(folder).card
    assert card.clip.sizes == known.clip.sizes and card.classes.keys() == known.classes.keys()
    assert card.sampling.attention["type"] == known.sampling.attention["type"]
    assert not card.sampling_for(1280, 768).mag_ratios and not card.sampling_for(768, 512).mag_ratios
    assert f"those of `{like.rpartition('t2v')[0]}" in caplog.text


def test_folders_that_are_no_such_model(tmp_path: Path) -> None:
    folder = write_diffusers_configs(tmp_path / "a", "text-to-video", family.DIT_PARAMS)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    with pytest.raises(
        BackendError, match=r"holds a `FluxPipeline`, which is not supported: use one of `Kandinsky5T2V"
    ):
        catalogue.source_of(folder)
    folder = write_diffusers_configs(tmp_path / "b", "text-to-image", family.DIT_PARAMS)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(WeightsError, match=r"scheduler_config\.json` cannot be read"):
        catalogue.source_of(folder)


@pytest.mark.parametrize("model", ["kandinsky5-lite-t2i", "kandinsky5-lite-i2v-5s", "kandinsky5-pro-t2v-pretrain-10s"])
def test_an_official_weights_folder_is_known_by_its_file(model: str, tmp_path: Path) -> None:
    (part,) = catalogue.find(model).dit.parts
    file = tmp_path / "weights" / part.local
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    source = catalogue.source_of(tmp_path)
    assert source.card.id == model and source.root == tmp_path / "weights"


@pytest.mark.parametrize("task", images.DIT_PARAMS)
def test_both_layouts_of_image_models_load_the_same_networks(task: str, tmp_path: Path) -> None:
    official = catalogue.source_of(images.write_official(tmp_path / "official", task)).card
    twin = catalogue.source_of(images.write_diffusers(tmp_path / "diffusers", task)).card
    assert official.task == twin.task == task
    states = []
    for card in (official, twin):
        pipe = GenerationPipeline(build(card, RunOptions(device="cpu")))
        with pipe.placement.hold("dit") as dit, pipe.placement.hold("vae") as vae:
            states.append({**dit.state_dict(), **vae.state_dict()})
            assert vae.params.scaling_factor == 0.3611 and dit.params.instruct_type == (
                "channel" if task == "image-editing" else None
            )
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
