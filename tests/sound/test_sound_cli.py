"""`generate --video` and `--sound`: what is written, and what is refused in one line before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kandinsky import catalogue
from kandinsky.media import mux
from kandinsky.media import recipe as recipes
from kandinsky.media.audio import read_audio, write_audio
from kandinsky.media.video import write_video
from kandinsky.model.values import Audio, Video
from kandinsky.weights import hub
from tiny import sound

Call = Callable[..., tuple[int, str, str]]
TRUST = "--trust-remote-code"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def streams(path: Path | str) -> list[str]:
    with av.open(str(path)) as container:
        return [stream.type for stream in container.streams]


def test_a_film_gets_sound_and_the_recipe_makes_it_again(model: Path, film: Path, call: Call) -> None:
    code, out, err = call("generate", "-m", model, TRUST, "--video", film, "rain", "-o", "a.mp4", "--seed", "7")
    assert code == 0 and out.splitlines()[-1] == "a.mp4", err
    assert "2.00 s, 16 frames" in err and "seed 7" in err
    assert streams("a.mp4") == ["video", "audio"]
    command = call("show", "a.mp4")[1].splitlines()[-1]
    for part in (f"--video {film}", "--seed 7", "--steps 2", "generate rain "):
        assert part in command
    words = [*command.replace("'", "").split()[1:]]
    assert f"--negative {sound_negative()}" in " ".join(words)
    call("generate", "-m", model, TRUST, "--video", "a.mp4", "rain", "-o", "b.wav", "--seed", "7", "-q")
    code, out, err = call("generate", "-m", model, TRUST, "--video", "a.mp4", "rain", "-o", "c.mp4", "--steps", "1")
    assert "own audio is not copied" in err and recipes.read(Path("c.mp4"))["video"]["recipe"]["seed"] == 7


def sound_negative() -> str:
    return "hissing noise. drumming rythm. saying. poor quality."


def test_sound_alone_many_times(model: Path, film: Path, call: Call) -> None:
    code, out, _ = call(
        "generate", "-m", model, TRUST, "--video", film, "--audio-only", "--duration", "1", "--count", "2", "--json",
        "--seed", "3", "--steps", "1",
    )  # fmt: skip
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["path"] for one in told] == ["in-sound-1.wav", "in-sound-2.wav"]
    assert [one["recipe"]["seed"] for one in told] == [3, 4]
    heard = [read_audio(one["path"]) for one in told]
    assert all(one.seconds == 1 for one in heard) and not np.array_equal(*(one.samples_SC for one in heard))
    code, out, _ = call("generate", "-m", model, TRUST, "--video", film, "-o", "x.flac", "--steps", "1", "-q")
    assert code == 0 and streams("x.flac") == ["audio"], "the ending says it too"


def test_states_need_neither_encoder_nor_trust(film: Path, tmp_path: Path, call: Call) -> None:
    folder = sound.write(tmp_path / "bare")
    for file in (folder / "encoder").iterdir():
        file.unlink()
    states = sound.states_file(tmp_path / "states.safetensors")
    code, _, err = call("generate", "-m", folder, "--video", film, "--states", states, "rain", "-o", "a.mp4")
    assert code == 0 and streams("a.mp4") == ["video", "audio"], err
    assert f"--states {states}" in call("show", "a.mp4")[1]


def test_words_become_a_clip_with_sound(model: Path, call: Call) -> None:
    code, out, err = call(
        "generate", "a red heart", "--seconds", "0.7", "--steps", "1", "--seed", "5", "--sound", "--sound-model", model,
        TRUST, "-o", "heart.mp4",
    )  # fmt: skip
    assert code == 0 and out.splitlines() == ["heart.mp4"] and "audio by" in err, err
    assert streams("heart.mp4") == ["video", "audio"]
    film = mux.probe("heart.mp4")
    recipe = recipes.read(Path("heart.mp4"))
    assert (recipe["model"], recipe["seed"], recipe["sound"]["seed"]) == ("nano2-t2v", 5, 5)
    assert recipe["sound"]["model"] == str(model) and recipe["sound"]["seconds"] == pytest.approx(
        film.seconds, abs=1e-3
    )
    assert f"--sound --sound-model {model}" in recipes.command(recipe)
    assert not list(Path().glob("*.latent*")) and not list(Path().glob(".*"))


@pytest.fixture
def bad(tmp_path: Path, film: Path) -> dict[str, Path]:
    """Films that are none."""
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:200])
    Image.new("RGB", (16, 16)).save(tmp_path / "still.png")
    write_audio(Audio(np.zeros((800, 1), np.int16), 8000), tmp_path / "sound.wav")
    Video(np.zeros((2, 16, 16, 3), np.uint8), fps=8, seed=0)
    return {path.name: path for path in tmp_path.iterdir()}


CASES = {
    "no film": (["rain"], "makes sound for an input video, and none was given: give `--video FILE`"),
    "absent": (["--video", "none.mp4"], "video `none.mp4` does not exist"),
    "no film at all": (["--video", "{text.mp4}"], "cannot be read"),
    "cut off": (["--video", "{cut.mp4}"], "cannot be read|no video stream"),
    "no video stream": (["--video", "{sound.wav}"], "has no video stream"),
    "no length": (["--video", "{still.png}"], "is a still image of 0 seconds"),
    "longer than the film": (["--video", "{in.mp4}", "--seconds", "3"], "lasts 2.00 s, and 3 s"),
    "no seconds": (["--video", "{in.mp4}", "--duration", "0"], "must be a number above 0"),
    "unknown ending": (["--video", "{in.mp4}", "-o", "x.avi"], "with sound, use .mp4"),
    "sound's ending": (["--video", "{in.mp4}", "--audio-only", "-o", "x.mp3"], "use .wav or .flac"),
    "unwritable": (["--video", "{in.mp4}", "-o", "/proc/x.mp4"], "cannot be written"),
    "the film itself": (["--video", "{in.mp4}", "-o", "{in.mp4}"], "is the video itself"),
    "webm of h264": (["--video", "{in.mp4}", "-o", "x.webm"], "does not go into .webm"),
    "an option of clips": (["--video", "{in.mp4}", "--size", "64x64"], "takes no --size"),
    "another option": (["--video", "{in.mp4}", "--lora", "x"], "takes no --lora"),
    "no trust": (["--video", "{in.mp4}"], "not run unasked: add `--trust-remote-code`"),
    "absent states": (["--video", "{in.mp4}", "--states", "s.safetensors"], "states `s.safetensors` are not there"),
    "steps": (["--video", "{in.mp4}", "--steps", "0"], "use a whole number"),
    "device": (["--video", "{in.mp4}", "--device", "gpu"], "device `gpu` is unknown"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name: str, model: Path, bad: dict[str, Path], call: Call) -> None:
    arguments, words = CASES[name]
    before = {path: path.read_bytes() for path in bad.values() if path.is_file()}
    filled = [argument.format_map({}) if "{" not in argument else str(bad[argument[1:-1]]) for argument in arguments]
    code, out, err = call("generate", "-m", model, *filled)
    lines = [line for line in err.splitlines() if not line.startswith("hint:")]
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    assert any(part in lines[0] for part in words.split("|")), lines
    assert all(path.read_bytes() == content for path, content in before.items()), "films are never touched"
    assert not list(Path().iterdir()) and not (model / "ran").exists()


def test_an_encoder_that_is_not_there(film: Path, tmp_path: Path, call: Call) -> None:
    folder = sound.write(tmp_path / "bare")
    for file in (folder / "encoder").iterdir():
        file.unlink()
    code, _, err = call("generate", "-m", folder, TRUST, "--video", film)
    assert code == 2 and "`encoder/` of" in err and "not on this machine" in err
    code, _, err = call("generate", "-m", "kandinsky4-v2a", TRUST, "--video", film)
    assert code == 2 and "`ai-forever/kandinsky-4-v2a` are not on this machine" in err
    assert "kandinsky download kandinsky4-v2a" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sound-model", "nano-v2a"], "add --sound"),
        (["--sound", "--sound-model", "nano-t2v"], "`nano-t2v` makes no sound"),
        (["--sound", "--sound-model", "nano-t2v"], "such as `nano-v2a`"),
        (["--sound", "--sound-model", "{model}", "-o", "x.gif"], "cannot hold audio"),
        (["--sound", "--sound-model", "{model}", "--seconds", "0"], "cannot hold audio"),
        (["--sound", "--sound-model", "{model}"], "not run unasked"),
        (["--audio-only"], "generates no audio and takes no --audio-only"),
        (["--sound", "--audio-only"], "--sound adds audio to a new clip and takes no --audio-only"),
        (["-m", "nano-i2v", "--video", "x.mp4"], "changes a video and was not told how"),
        (["-m", "kandinsky5-lite-t2i", "--states", "x"], "generates no audio and takes no --states"),
    ],
)
def test_clips_with_sound_are_refused_before_they_are_made(
    arguments: list[str], words: str, model: Path, call: Call
) -> None:
    filled = [argument.replace("{model}", str(model)) for argument in arguments]
    code, out, err = call("generate", "a heart", *filled)
    assert code == 2 and out == "" and words in err and not list(Path().iterdir())


def test_a_list_of_prompts_with_sound_is_told_how_to_add_it_afterwards(call: Call, tmp_path: Path) -> None:
    (prompts := tmp_path / "p.txt").write_text("a heart\na star\n")
    code, out, err = call("generate", "--prompts", prompts, "--sound")
    assert code == 2 and out == "" and "hint: audio is added to a finished clip by `kandinsky generate --video" in err


def test_every_model_names_what_gives_its_clips_sound() -> None:
    named = {card.id: card.sounds_with for card in catalogue.cards().values()}
    assert named["nano-t2v"] == named["nano-i2v"] == "nano-v2a"
    assert named["nano2-t2v"] == named["nano2-i2v"] == "nano-v2a"
    assert named["kandinsky5-lite-t2v-sft-5s"] == named["kandinsky4-t2v-flash"] == "kandinsky4-v2a"


def test_the_catalogue_knows_sound(call: Call, film: Path) -> None:
    assert "video-to-audio" in (listed := call("models")[1]) and "sound, 12 s at a time" in listed
    shown = call("show", "kandinsky4-v2a")[1]
    assert "window_s" in shown and "cogvlm2-video" in shown
    plan = json.loads(call("plan", "-m", "kandinsky4-v2a", "--json")[1])
    assert plan["download_bytes"] > 27e9 and plan["passes"] == 100 and plan["components"]["dit"]["weights"] > 2e9
    code, out, err = call("generate", "-m", "kandinsky4-v2a", "--video", film, "--plan", "--count", "3", "--json")
    assert code == 0 and json.loads(out)["clips"] == 3, err


def test_writing_a_clip_in_memory_with_sound(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    audio = Audio((3000 * np.sin(np.arange(16000) / 20)).astype(np.int16)[:, None], 16000)
    clip = Video(rng.integers(0, 255, (8, 32, 32, 3), np.uint8), fps=8, seed=0, recipe={"kandinsky": "x"}, audio=audio)
    for name in ("x.mp4", "x.webm"):
        path = write_video(clip, tmp_path / name)
        assert streams(path) == ["video", "audio"] and recipes.read(path) == {"kandinsky": "x"}
    assert streams(write_video(clip, tmp_path / "x.gif")) == ["video"]


def test_a_whole_repository_is_fetched_but_for_other_formats() -> None:
    """The encoder's part lists `./`: weights, code, tokenizer; no second copy of its weights."""
    there = dict.fromkeys(["config.json", "films.py", "model.safetensors", "model.bin", "more/x.txt"])
    assert hub._in_folder("./", there) == ["config.json", "films.py", "model.safetensors", "more/x.txt"]
    assert hub._in_folder("more/", there) == ["more/x.txt"]
