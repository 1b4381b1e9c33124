"""What looks harmless and is not: refused by name before anything is computed or written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.generate import _check
from kandinsky.cli.main import main
from kandinsky.engine.accepts import accepted
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.jobs import batch, prompt_files
from kandinsky.media import recipe as recipes
from kandinsky.media.image import open_image
from kandinsky.model.values import Request, Video
from kandinsky.printing import counted
from kandinsky.runtime import quantise
from kandinsky.weights.lora_files import locate_lora


@pytest.fixture(scope="module")
def pipe() -> GenerationPipeline:
    return kandinsky.load("nano-t2v", device="cpu")


@pytest.fixture
def clip() -> Video:
    return Video(np.zeros((2, 16, 16, 3), np.uint8), 12.0)


@pytest.mark.parametrize("frames", [0, -1, -(2**40)])
def test_a_number_of_frames_below_one_is_refused(pipe: GenerationPipeline, frames: int) -> None:
    with pytest.raises(RequestError, match=rf"`num_frames` must be 1 or more, not `{frames}`"):
        pipe("a panda", num_frames=frames, steps=1)


@pytest.mark.parametrize("frames", [2, 3])
def test_frames_of_a_clip_do_not_become_a_still_unsaid(pipe: GenerationPipeline, frames: int) -> None:
    with pytest.raises(
        RequestError, match=rf"`num_frames` is `{frames}`, too few for one step .* still, or 5 and more"
    ):
        pipe("a panda", num_frames=frames, steps=1)


@pytest.mark.parametrize("name", ["device", "dtype", "offload", "lora", "attention"])
def test_an_option_of_load_is_said_to_be_one(pipe: GenerationPipeline, name: str) -> None:
    with pytest.raises(RequestError, match=rf"^`{name}` is not taken: it is an option of `kandinsky.load`$"):
        pipe("a panda", **{name: "cpu"})


@pytest.mark.parametrize("given", ["absent.safetensors", "x", "absent/folder/deep", "absent.safetensors:0.5"])
def test_a_plan_refuses_a_lora_that_is_not_there(given: str) -> None:
    with pytest.raises(WeightsError, match=r"LoRA `absent|LoRA `x"):
        kandinsky.plan("nano-t2v", lora=given)


def test_a_plan_takes_a_lora_that_is_not_downloaded_yet() -> None:
    assert kandinsky.plan("nano-t2v", lora="owner/name:0.5").fits


@pytest.mark.parametrize("given", ["\0", "a\0b", "a panda\0"])
def test_text_with_a_nul_is_refused_since_no_recipe_can_hold_it(pipe: GenerationPipeline, given: str) -> None:
    with pytest.raises(RequestError, match=r"`prompt` is no valid text: .*holds a NUL"):
        pipe(given, seconds=0, steps=1)
    with pytest.raises(RequestError, match="holds a NUL"):
        Request("nano-t2v", "a", negative_prompt=given)


@pytest.mark.parametrize("function", [len, lambda: None, lambda step: None, lambda a, b, c, d: None])
def test_a_callback_of_other_arguments_is_refused_before_the_first_step(
    pipe: GenerationPipeline, function: Any
) -> None:
    with pytest.raises(RequestError, match="`on_step` must be a function of 3 arguments"):
        pipe("a panda", seconds=0, steps=1, on_step=function)


def test_callbacks_that_fit_are_taken(pipe: GenerationPipeline) -> None:
    seen: list[int] = []
    pipe("a panda", seconds=0, steps=1, on_step=lambda *given: seen.append(len(given)))
    pipe("a panda", seconds=0, steps=1, on_step=lambda step, total, preview, more=1: seen.append(step))
    assert seen == [3, 1]


def test_entries_of_a_mapping_are_named() -> None:
    with pytest.raises(RequestError, match=r"`quantize` must hold texts, not `8`"):
        RunOptions(quantize={"dit": 8})  # type: ignore[dict-item]
    with pytest.raises(RequestError, match=r"`device` must hold .*, not `5`"):
        RunOptions(device={"dit": 5})  # type: ignore[dict-item]


@pytest.mark.parametrize("only", [["nets"], ["dit", "VAE"], ["text_encoder"]])
def test_networks_that_the_card_has_not_are_refused(only: list[str]) -> None:
    with pytest.raises(RequestError, match=r"unknown network in `only`"):
        kandinsky.load("nano-t2v", only=only)


# -- the cache of text embeddings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "meant"), [("on", True), ("Off", False), (" ON ", True), ("here", "here")])
def test_on_and_off_are_words_from_every_door(given: str, meant: bool | str) -> None:
    assert RunOptions(text_cache=given).text_cache == meant


def test_a_text_cache_that_can_be_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(RequestError, match="is not a folder: use on, off, or a folder"):
        RunOptions(text_cache=file).check()
    for blank in (" ", "   "):
        with pytest.raises(RequestError, match="text cache"):
            RunOptions(text_cache=blank).check()
    RunOptions(text_cache=tmp_path / "new").check()


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("kandinsky5", "`kandinsky5-lite-i2i`"),
        ("NANO-T2V", "`nano-t2v`"),
        ("nano-t2v/", "`nano-t2v`"),
        ("nano", "`nano-i2v`"),
        ("kandinsky5-lite-t2v-sft", "`kandinsky5-lite-t2v-sft-10s`"),
    ],
)
def test_the_nearest_models_are_those_that_hold_the_name(given: str, near: str) -> None:
    with pytest.raises(RequestError) as error:
        catalogue.find(given)
    assert str(error.value.hint).startswith(f"the nearest are {near}")


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("nano2-t2v-flash", "use `nano2-t2v`, which takes one step, no guidance by default"),
        ("nano-t2v-nocfg", "use `nano2-t2v`, which takes one step, no guidance by default"),
        ("nano2-i2v-nocfg", "use `nano2-i2v`, which takes one step, no guidance by default"),
        ("nano2-v2a", "use `nano-v2a`, which takes 20 steps, guidance 2 by default"),
    ],
)
def test_who_asks_for_a_variant_that_a_model_already_is_is_told_that_model(given: str, answer: str) -> None:
    with pytest.raises(RequestError, match=f"there is no model `{given}`") as error:
        catalogue.find(given)
    assert error.value.hint == answer


def test_no_name_that_a_model_stands_for_is_that_of_another() -> None:
    cards = catalogue.cards()
    names = [name for card in cards.values() for name in card.stands_for]
    assert len(names) == len(set(names)) and not set(names) & set(cards)


@pytest.mark.parametrize("given", ["weights.safetensors", "qqqq", "a/b/c", "", "-m"])
def test_a_name_that_is_near_to_nothing_gets_no_nearest(given: str) -> None:
    with pytest.raises(RequestError) as error:
        catalogue.find(given)
    assert error.value.hint == "there is no file or folder of this name either"


@pytest.mark.parametrize("given", ["int8,fp8", "dit=int8,dit=fp8", "int8,dit=int8", "text=nf4,text=int8"])
def test_a_network_is_quantised_in_one_way(given: str) -> None:
    with pytest.raises(RequestError, match="names a network twice"):
        quantise.parse(given)
    assert quantise.parse("int8,text=nf4") == {"dit": "int8", "text": "nf4"}


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "half", "", "1,5"])
def test_a_scale_that_is_none_is_not_taken_for_a_part_of_the_name(tmp_path: Path, scale: str) -> None:
    file = tmp_path / "style.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"scale `.*` of LoRA `.*style.safetensors` is not a finite number"):
        locate_lora(f"{file}:{scale}")


def test_an_empty_file_of_weights_is_called_empty(tmp_path: Path) -> None:
    card = catalogue.find("nano-t2v")
    folder = tmp_path / "model"
    folder.mkdir()
    text = Path(catalogue.HERE, "nano-t2v.toml").read_text(encoding="utf-8")
    (folder / "card.toml").write_text(text.replace('repo = "package"', 'repo = "."'), encoding="utf-8")
    for part in card.dit.parts:
        for name in part.files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
    with pytest.raises(WeightsError, match=r"is empty: looked for"):
        kandinsky.load(folder, only=["dit"])


@pytest.mark.parametrize("variable", ["KANDINSKY_CARDS", "KANDINSKY_FAMILIES"])
@pytest.mark.parametrize("value", ["nowhere", "a-file"])
def test_a_folder_of_ones_own_that_is_none_is_named(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv(variable, str(tmp_path / value))
    with pytest.raises(RequestError, match=rf"{variable} is `.*{value}`, which is not a folder"):
        catalogue.cards() if variable == "KANDINSKY_CARDS" else catalogue.families()


@pytest.mark.parametrize("row", ["out", "out/.", "../run/out"])
def test_a_row_may_not_name_the_folder_of_the_batch(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(RequestError, match="itself, where this batch writes: name a file in it"):
        batch._inside(row, "out/{name}.mp4")
    assert batch._inside("a.mp4", "out/{name}.mp4") == Path("out/a.mp4")


def test_endless_numbers_of_a_row_get_advice_for_people(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "seed": %s}\n{"prompt": "a", "seed": 1]' % ("9" * 5000), encoding="utf-8")
    told = [str(row.fault) for row in prompt_files.read(file)]
    assert told[0].endswith("line 1 is not valid JSON: it holds a number of too many digits")
    assert "line 2 is not valid JSON: Expecting" in told[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--count", "0"], "--count must be 1 or more, not `0`"),
        (["--count", "10001"], "--count must be 10000 or less, not `10001`"),
        (["--steps", "1.5"], "--steps must be a whole number, not `1.5`"),
        (["--shift", "a lot"], "--shift must be a number, not `a lot`"),
        (["--seed", "9" * 5000], "--seed must be a whole number of fewer digits, not `999"),
    ],
)
def test_the_command_line_says_what_was_given_and_what_is_allowed(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_sheet_does_not_replace_the_clip(tmp_path: Path, clip: Video) -> None:
    from kandinsky.media.video import write_video

    clash = tmp_path / "x.png"
    (tmp_path / "a").mkdir()
    for sheet in (clash, tmp_path / "a" / ".." / "x.png"):
        with pytest.raises(RequestError, match="the contact sheet and the result are one file"):
            write_video(clip, clash, sheet)
        with pytest.raises(RequestError, match="the contact sheet and the result are one file"):
            _check([clash], [sheet], RunOptions())
    assert not clash.exists()
    write_video(clip, clash, tmp_path / "y.png")


@pytest.mark.parametrize("fps", [0.001, 0.0015])
def test_a_gif_too_slow_for_its_format_is_refused_with_one_that_can(tmp_path: Path, clip: Video, fps: float) -> None:
    slow = Video(clip.frames_THWC + np.arange(2, dtype=np.uint8)[:, None, None, None], fps)
    with pytest.raises(RequestError, match=r"a frame of a GIF lasts at most 655.35 s.*use .webp"):
        slow.save(tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())
    assert slow.save(tmp_path / "x.webp").exists()


@pytest.mark.parametrize("highest", [256.0, 1000.0, 1023.0, 4095.0, 80000.0])
def test_grey_numbers_of_an_unusual_range_are_not_black(tmp_path: Path, highest: float) -> None:
    numbers = np.linspace(0, highest, 64 * 64).reshape(64, 64)
    for kind in (np.float32, np.int32):
        Image.fromarray(numbers.astype(kind)).save(tmp_path / "x.tif")
        assert np.asarray(open_image(tmp_path / "x.tif").image).mean() == pytest.approx(127.5, abs=2)


def test_the_command_for_audio_alone_makes_audio_alone() -> None:
    recipe = {"kandinsky": "1", "model": "nano-v2a", "prompt": "rain", "seed": 1, "video": {"file": "in.mp4"}}
    assert "--audio-only" not in recipes.command(recipe, "out.mp4")
    for ending in ("wav", "flac"):
        command = recipes.command(recipe, f"out.{ending.upper()}")
        assert command.endswith(f"rain --model nano-v2a --seed 1 --video in.mp4 --audio-only --format {ending}")


@pytest.mark.parametrize("model", ["", " ", 5, None, ["x"]])
def test_the_model_of_a_recipes_sound_is_a_name(model: object) -> None:
    with pytest.raises(RequestError, match="the recipe's `sound` must be"):
        recipes.checked({"kandinsky": "1", "model": "a", "prompt": "b", "sound": {"model": model}})


# -- words -------------------------------------------------------------------------------------------------------------


def test_what_a_model_accepts_is_what_it_takes(pipe: GenerationPipeline) -> None:
    card = pipe.card
    told = dict(accepted(card))["shift"]
    least, most = (float(word) for word in told.split(";")[0].split(" to "))
    for value in (least, most):
        pipe.resolve(Request(card.id, "a", shift=value))
    for value in (least / 2, most * 2):
        with pytest.raises(KandinskyError, match="out of range"):
            pipe.resolve(Request(card.id, "a", shift=value))


def test_one_is_singular() -> None:
    assert [counted(n, "frame") for n in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
