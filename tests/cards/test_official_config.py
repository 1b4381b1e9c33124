"""Official YAML files as cards: all seventeen, what each is for, and what is refused."""

import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.families.kandinsky5.dit import DiTParams
from kandinsky.model.card import Card

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5" / "configs.json"
pytestmark = pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference folder is not beside the checkout")
TASKS = {"t2v": "text-to-video", "i2v": "image-to-video", "t2i": "text-to-image", "i2i": "image-editing"}
T2V, I2V, T2I, I2I = "k5_lite_t2v_5s_sft_sd", "k5_pro_i2v_5s_sft_hd", "k5_lite_t2i_sft_hd", "k5_lite_i2i_sft_hd"


def configs() -> dict[str, Any]:
    values = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert len(values) == 17
    return values


def card_of(name: str, *, called: str | None = None, **changes: Any) -> Card:
    values = copy.deepcopy(configs()[name])
    for path, value in changes.items():
        *tables, last = path.split("__")
        table = values
        for key in tables:
            table = table[key]
        table[last] = value
    return official_config.card_of(values, name=called or name, cards=catalogue.CARDS, bases=[Path("/nowhere")])


@pytest.mark.parametrize("name", sorted(configs()) if REFERENCE.is_file() else [])
def test_every_official_file_is_a_card(name: str, tmp_path: Path) -> None:
    values = configs()[name]
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    card = catalogue.source_of(path).card
    model, metrics = values["model"], values["metrics"]
    assert card.task == TASKS[name.split("_")[2]]
    assert (card.sampling.steps, card.sampling.guidance) == (model["num_steps"], model["guidance_weight"])
    assert card.sampling.rope_scale == tuple(metrics["scale_factor"])
    assert card.sampling.mag_ratios == tuple(values.get("magcache", {}).get("mag_ratios", ()))
    assert card.sampling.shift == metrics.get("scheduler_scale", 3.0 if "2i_" in name else 10.0)
    assert card.sampling.normalize_first_frame == ("i2v" in name)
    assert card.vae.kind == model["vae"]["name"] and card.parameters > 2e9
    assert card.text.params["template"] == ("image" if "2i_" in name else "video")
    assert (card.clip.seconds, card.clip.temporal) == ((0, 1) if "2i_" in name else (5, 4))
    assert card.dit.parts[0].files == (Path(model["checkpoint_path"]).name,)
    # all that is wrong with it is that its files are not there
    with pytest.raises(WeightsError, match="not on this machine"):
        GenerationPipeline(build(card, RunOptions(device="cpu")))


def test_the_name_says_what_a_file_is_for_and_else_its_contents() -> None:
    for name in (T2V, I2V, T2I, I2I):
        task = card_of(name).task
        # the checkpoint's name still has the marker
        assert card_of(name, called="mine").task == task
        plain = "./weights/model/mine.safetensors"
        # nothing but the condition of the first frame tells image to video from text to video
        assert card_of(name, called="mine", model__checkpoint_path=plain).task == task.replace(
            "image-to-v", "text-to-v"
        )
    forced = copy.deepcopy(configs()[T2V])
    card = official_config.card_of(forced, name=T2V, cards=catalogue.CARDS, bases=[Path()], task="image-to-video")
    assert (card.task, card.clip.fit) == ("image-to-video", "area")


def test_an_image_is_fitted_by_the_class_of_the_file() -> None:
    sd, hd = card_of("k5_pro_i2v_5s_sft_sd"), card_of(I2V)
    (sd_class,), (hd_class,) = sd.classes.values(), hd.classes.values()
    assert (sd_class.area, sd_class.multiple) == (512 * 768, 16)
    assert (hd_class.area, hd_class.multiple) == (1024 * 1024, 128)
    assert "1408x640" in hd.clip.sizes and sd.clip.sizes == ("512x512", "512x768", "768x512")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (T2I, {"model__vae__name": "hunyuan"}, "is for text-to-image, which needs model.vae.name `flux`"),
        (T2V, {"model__vae__name": "flux"}, "is for text-to-video, which needs model.vae.name `hunyuan`"),
        (T2V, {"model__vae__name": "kl"}, "model.vae.name `kl` is unknown"),
        (I2I, {"metrics__resolution": 768}, "metrics.resolution `768` is unknown"),
        (I2V, {"metrics__scale": 1}, "unknown key `metrics.scale`"),
        (I2V, {"model__attention__typ": "flash"}, "unknown attention key `typ`"),
        (I2V, {"model__attention__window": 5}, "attention key `window` = `5` has no effect"),
        (T2V, {"model__dit_params__width": 5}, "unknown key `model.dit_params.width`"),
    ],
)
def test_what_no_code_honours_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        card_of(name, **change)


def test_all_hyper_parameters_of_the_network_are_known() -> None:
    assert {f.name for f in dataclasses.fields(DiTParams)} == official_config.DIT_KEYS


def test_the_first_release_had_another_shift() -> None:
    assert card_of("k5_lite_t2v_10s_sft_sd", called="config_10s_sft", metrics__scheduler_scale=5).sampling.shift == 5.0


def test_the_wrong_file_of_the_no_cfg_configuration_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        card_of("k5_lite_t2v_5s_nocfg_sd")
        assert not caplog.messages
        card_of("k5_lite_t2v_10s_nocfg_sd")
    assert "names `kandinsky5lite_t2v_sft_10s.safetensors`" in caplog.text
