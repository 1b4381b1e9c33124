"""The official YAML files are what the cards say, and their names stand for them where they are not there."""

import copy
import dataclasses
import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kandinsky import catalogue, get_I2V_pipeline, get_T2V_pipeline
from kandinsky.compat import official_files
from kandinsky.compat.official_files import FILES, card_of, read
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.media import recipe as recipes
from kandinsky.model.card import Card
from tiny import family

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "official" / "kandinsky-5" / "configs"
REFERENCE = ROOT.parent / "shared" / "reference" / "kandinsky5" / "configs.json"
KINDS = [f"{seconds}s_{kind}" for seconds in (5, 10) for kind in ("sft", "pretrain", "nocfg", "distil")]
TINY_CARD = """
base = "kandinsky5-lite-t2v-sft-5s"
id = "kandinsky5-lite-t2v-sft-5s"
[dit]
params = { in_visual_dim = 4, out_visual_dim = 4, in_text_dim = 32, in_text_dim2 = 24, time_dim = 32, model_dim = 32, \
ff_dim = 64, num_text_blocks = 1, num_visual_blocks = 2, axes_dims = [4, 6, 6] }
[[text.parts]]
name = "qwen"
repo = "nobody/tiny"
files = ["text_encoder/"]
local = "text_encoder/"
[[text.parts]]
name = "clip"
repo = "nobody/tiny"
files = ["text_encoder2/"]
local = "text_encoder2/"
[clip]
sizes = ["96x64"]
default_size = "96x64"
channels = 4
"""


def test_the_files_are_what_the_command_writes(tmp_path: Path) -> None:
    written = official_files.write(tmp_path / "new")
    assert {path.name for path in written} == {path.name for path in FOLDER.iterdir()}
    for path in written:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), f"run `make official`: {path.name}"


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference folder is not beside this checkout")
def test_the_files_equal_the_official_ones() -> None:
    official = json.loads(REFERENCE.read_text(encoding="utf-8"))
    # the official file names the SFT checkpoint by mistake
    official["k5_lite_t2v_10s_nocfg_sd"]["model"]["checkpoint_path"] = (
        "./weights/model/kandinsky5lite_t2v_nocfg_10s.safetensors"
    )
    # the first release: the same values, but for the schedule's scale of the 10 s models
    for kind in KINDS:
        seconds, _, what = kind.partition("_")
        first = copy.deepcopy(official[f"k5_lite_t2v_{seconds}_{what}_sd"])
        if seconds == "10s":
            first["metrics"]["scheduler_scale"] = 5
        else:
            first["metrics"].pop("scheduler_scale", None)
        official[f"config_{kind}"] = first
    ours = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.yaml")}
    assert sorted(ours) == sorted(official)
    for name, values in ours.items():
        assert values == official[name], name


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_name_means_what_its_file_means(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = card_of(name).task
    from_file, _ = read(FOLDER / f"{name}.yaml", task=task)
    monkeypatch.chdir(tmp_path)
    from_name, root = read(name, task=task)
    assert root is None
    for field in dataclasses.fields(type(from_file.sampling)):
        mine, theirs = (getattr(card.sampling, field.name) for card in (from_name, from_file))
        if field.name == "attention":
            mine = {"type": mine["type"]} | {k: v for k, v in mine.items() if k != "type"}
            theirs = {k: v for k, v in theirs.items() if k in ("type", "P", "wT", "wH", "wW")}
            theirs["type"] = theirs["type"].replace("flash", "dense")
        assert mine == theirs, field.name
    assert from_name.dit.params == dict(from_file.dit.params)
    assert set(from_name.clip.sizes) == set(from_file.clip.sizes)
    assert (from_name.clip.default_size, from_name.clip.fit) == (from_file.clip.default_size, from_file.clip.fit)
    assert Path(from_name.dit.parts[0].local).name == from_file.dit.parts[0].files[0]
    if "i2v" in name:
        (mine,), (theirs,) = from_name.classes.values(), from_file.classes.values()
        assert (mine.area, mine.multiple, mine.sampling) == (theirs.area, theirs.multiple, {})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("config_5s_sft", False),
        ("k5_lite_t2v_5s_sft_sd", False),
        ("config_5s_sft.yaml", True),
        ("./configs/config_5s_sft.yaml", True),
        ("configs/k5_lite_t2v_5s_sft_sd.yml", True),
    ],
)
def test_where_the_file_is_not_there_its_name_is_enough(
    path: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"kandinsky5lite_t2v_sft_5s\.safetensors"):
        get_T2V_pipeline("cpu", conf_path=path)
    assert caplog.messages == ([f"`{path}` is not here: the values are those of `kandinsky5-lite-t2v-sft-5s`"] * said)


@pytest.mark.parametrize(
    ("path", "task", "message"),
    [
        ("config_5s_stf", "text-to-video", "`config_5s_stf` is not there, .* did you mean `config_5s_sft`"),
        ("mine.yaml", "text-to-video", "`mine.yaml` is not there, .* a name such as `config_5s_sft`"),
        ("configs/config_5s_sft.json", "text-to-video", "did you mean `config_5s_sft`"),
        ("k5_lite_i2v_5s_sft_sd", "text-to-video", "is for image-to-video: this pipeline is for text-to-video"),
        ("config_5s_sft", "image-to-video", "is for text-to-video: this pipeline is for image-to-video"),
    ],
)
def test_other_names_are_refused(
    path: str, task: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        read(path, task=task)


def test_a_name_of_another_task_is_refused_by_the_door() -> None:
    with pytest.raises(RequestError, match="this pipeline is for image-to-video"):
        get_I2V_pipeline("cpu", conf_path="config_10s_sft")


def test_a_name_reads_the_weights_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family.write_official(tmp_path)
    model = tmp_path / "weights" / "model"
    (model / family.CHECKPOINT).rename(model / "kandinsky5lite_t2v_sft_5s.safetensors")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "tiny.toml").write_text(TINY_CARD, encoding="utf-8")
    monkeypatch.setenv("KANDINSKY_CARDS", str(tmp_path / "cards"))
    monkeypatch.chdir(tmp_path)
    pipe = get_T2V_pipeline("cpu", conf_path="./configs/config_5s_sft.yaml")
    images = pipe("a cat", time_length=0, width=96, height=64, num_steps=1, expand_prompts=False, seed=1)
    assert images is not None and images[0].size == (96, 64)


def test_a_file_of_ones_own_keeps_its_shift(tmp_path: Path) -> None:
    values = yaml.safe_load((FOLDER / "k5_lite_t2v_5s_sft_sd.yaml").read_text(encoding="utf-8"))
    for name, scale, expected in (("k5_lite_t2v_5s_sft_sd", None, 5.0), ("k5_lite_t2v_5s_sft_sd", 7, 7.0),
                                  ("mine", None, 10.0), ("mine", 3, 3.0)):  # fmt: skip
        metrics = {**values["metrics"], **({} if scale is None else {"scheduler_scale": scale})}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**values, "metrics": metrics}), encoding="utf-8")
        card, root = read(path, task="text-to-video")
        assert (card.sampling.shift, root) == (expected, None)


def test_size_classes_of_pro(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sd, hd = card_of("k5_pro_t2v_5s_sft_sd"), card_of("k5_pro_t2v_5s_sft_hd")
    assert (sd.clip.default_size, hd.clip.default_size) == ("768x512", "1280x768")
    assert (
        hd.sampling == catalogue.find("kandinsky5-pro-t2v-sft-5s").sampling_for(1280, 768) == hd.sampling_for(1280, 768)
    )
    assert set(sd.clip.sizes).isdisjoint(hd.clip.sizes) and not caplog.messages


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small(*args: Any, **kwargs: Any) -> tuple[Card, Path | None]:
        card, root = read(*args, **kwargs)
        clip = dataclasses.replace(card.clip, sizes=("64x64", "96x64"), default_size="64x64")
        return dataclasses.replace(card, clip=clip), root

    monkeypatch.setattr(official_files, "read", small)
    monkeypatch.chdir(tmp_path)


OPTIONS = ("--video_duration", "0", "--width", "96", "--height", "64", "--sample_steps", "1", "--expand_prompt", "0")


def test_options_of_the_script(
    official: Path, small_sizes: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["test.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(FOLDER.parent / "test.py"), run_name="__main__")
        return int(end.value.code or 0)

    config = str(official / "config.yaml")
    assert script("--config", config, *OPTIONS, "--negative_prompt", "dull") == 0
    recipe = recipes.read(Path("The_bear_plays_balalaika..png"))
    # The official script parses the negative prompt and drops it; and 5.0 overrides every configuration there.
    assert (recipe["negative_prompt"], recipe["seed"], recipe["steps"], recipe["width"]) == ("dull", 1137, 1, 96)
    assert recipe["shift"] == official_config.read(Path(config), cards=catalogue.CARDS).sampling.shift
    capfd.readouterr()
    assert script("--config", config, *OPTIONS, "--width", "100") == 2
    assert "error: size `100x64` is not supported" in capfd.readouterr().err
    assert script("--config", str(official / "none.yaml"), *OPTIONS) == 2
    assert "none.yaml` is not there" in capfd.readouterr().err
    assert script("--config", "config_5s_sft", *OPTIONS) == 2
    assert capfd.readouterr().err.rstrip().endswith("(`kandinsky download config_5s_sft` fetches what is missing)")
    for name, more in (
        ("config_5s_sft", ""),
        ("k5_pro_t2v_5s_sft_hd", " --models kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s"),
    ):
        assert script("--config", str(FOLDER / f"{name}.yaml"), *OPTIONS) == 2
        assert capfd.readouterr().err.rstrip().endswith(f"(python download_models.py{more})")
