"""`kandinsky generate` and what follows from its result, with the real classes at tiny size."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.cli import main as cli
from kandinsky.media import video as media
from kandinsky.media.video import read_video
from tiny import command_line

Call = Callable[..., "Done"]  # noqa: F821


def test_result_path_is_the_last_line(tiny: Path, call: Call) -> None:
    done = call("generate", "A panda, waves!", "-m", "tiny", "--seed", "7")
    assert done.code == 0, done.err
    assert done.lines == ["a-panda-waves-7.mp4"]
    video = read_video(done.lines[-1])
    assert video.frames.shape == (13, 64, 64, 3) and video.fps == 24
    assert [path.name for path in Path().iterdir()] == ["a-panda-waves-7.mp4"]
    assert "seed 7, 13 frames" in done.err


def test_options_reach_the_result(tiny: Path, call: Call) -> None:
    done = call(
        *("generate", "панда", "-m", "tiny", "-o", "new/x.webm", "--sheet", "new/x.png", "--json", "--quiet"),
        *("--size", "96x64", "--seconds", "0.2", "--steps", "3", "--guidance", "1.5", "--shift", "4", "--seed", "5"),
        *("--negative", "dark", "--device", "cpu", "--dtype", "float32", "--offload", "module"),
    )
    assert done.code == 0, done.err
    assert done.err == ""
    (line,) = done.lines
    result = json.loads(line)
    assert result["path"] == "new/x.webm" and result["sheet"] == "new/x.png"
    recipe = result["recipe"]
    asked = {"model": "tiny", "prompt": "панда", "negative_prompt": "dark", "width": 96, "height": 64, "seconds": 0.2}
    asked |= {"steps": 3, "guidance": 1.5, "shift": 4.0, "seed": 5, "dtype": "float32", "device": "cpu", "frames": 5}
    assert {key: recipe[key] for key in asked} == asked
    assert recipe["revision"] == "local" and recipe["versions"]["torch"]
    assert read_video("new/x.webm").frames.shape == (5, 64, 96, 3)
    assert read_video("new/x.webm").recipe == recipe
    assert media.recipes.read(Path("new/x.png")) == recipe
    assert sorted(path.name for path in Path("new").iterdir()) == ["x.png", "x.webm"]


def test_show_prints_the_command_that_makes_the_same_frames(tiny: Path, call: Call) -> None:
    assert call("generate", 'it\'s a "panda" & $HOME', "-m", "tiny", "--seconds", "0.2", "-o", "a.gif").code == 0
    shown = call("show", "a.gif")
    assert shown.code == 0 and 'it\'s a "panda" & $HOME' in shown.out
    command = shown.lines[-1]
    assert json.loads(call("show", "a.gif", "--json").out)["command"] == command
    words = shlex.split(command)
    assert words[0] == "kandinsky"
    again = call(*words[1:], "-o", "b.gif")
    assert again.code == 0, again.err
    assert np.array_equal(read_video("a.gif").frames, read_video("b.gif").frames)
    assert read_video("a.gif").recipe == read_video("b.gif").recipe


def test_count_and_prompts(tiny: Path, call: Call) -> None:
    options = ("-m", "tiny", "--seconds", "0", "--steps", "1", "--seed", "3", "--quiet")
    done = call("generate", "a dot", *options, "--count", "2")
    assert done.lines == ["a-dot-3.png", "a-dot-4.png"]
    first, second = (read_video(name).frames for name in done.lines)
    assert not np.array_equal(first, second)
    Path("prompts.txt").write_text("# a note\na dot\n\n  панда  \n", encoding="utf-8")
    done = call("generate", "--prompts", "prompts.txt", *options, "-o", "out/x.png")
    assert done.lines == ["out/x-1.png", "out/x-2.png"]
    assert np.array_equal(read_video("out/x-1.png").frames, first), "the same whoever else is asked for"
    assert read_video("out/x-2.png").recipe["prompt"] == "панда"


def test_a_drawn_seed_is_told(tiny: Path, call: Call) -> None:
    done = call("generate", "a dot", "-m", "tiny", "--seconds", "0", "--steps", "1", "--json")
    seed = json.loads(done.out)["recipe"]["seed"]
    assert 0 <= seed < 2**32 and Path(f"a-dot-{seed}.png").exists() and f"seed {seed}," in done.err


def test_every_kind_of_file(tiny: Path, call: Call) -> None:
    for target in ("a.mp4", "a.png", "frames/", "f%02d.png"):
        done = call("generate", "a dot", "-m", "tiny", "--seconds", "0.2", "--steps", "1", "-o", target, "--seed", "1")
        assert done.code == 0, done.err
        assert done.lines[-1] == target.rstrip("/")
    assert sorted(path.name for path in Path("frames").iterdir()) == [f"{i:04d}.png" for i in range(5)]
    assert {path.name for path in Path().glob("f0*.png")} == {f"f{i:02d}.png" for i in range(5)}
    assert call("show", "frames").lines[-1] == call("show", "a.mp4").lines[-1] == call("show", "f01.png").lines[-1]


def test_plan_needs_no_weights_and_no_torch(tiny: Path, fresh: Call) -> None:
    arguments = ("generate", "a dot", "-m", "kandinsky5-lite-t2v-sft-5s", "--device", "cpu", "--plan")
    done = fresh(*arguments)
    assert done.code == 0 and done.err.splitlines()[-1] == "False"
    assert "download   23.3 GB of 23.3 GB" in done.out and "(estimate)" in done.out
    plan = json.loads(fresh(*arguments, "--json").out)
    assert plan["passes"] == 100 and plan["tokens"] == 31 * 32 * 48 and plan["download_bytes"] == 23_311_500_000
    assert not list(Path().iterdir())


def test_the_default_model_says_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("generate", "a panda on a blue background", "--seconds", "0", "--steps", "1", "--seed", "1")
    assert done.code == 0, done.err
    assert "model nano2-t2v (the default)" in done.err and "-m kandinsky5-lite-t2v-sft-5s" in done.err
    assert done.lines == ["a-panda-on-a-blue-background-1.png"]


def test_interrupt_while_working(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kandinsky.engine.stages.decode_pieces", interrupted)
    done = call("generate", "a dot", "-m", "tiny", "--seconds", "0", "--steps", "1")
    assert done.code == cli.INTERRUPTED == 130
    assert done.out == "" and "interrupted" in done.err and "Traceback" not in done.err
    (latent,) = Path().iterdir()  # what was finished is kept, and nothing else
    assert f"`kandinsky decode {latent}` goes on from there" in done.err


@pytest.mark.slow
def test_ctrl_c_for_real(tiny: Path) -> None:
    options = ("-m", "tiny", "--seconds", "0.2", "--steps", "50", "--count", "99")
    process = command_line.Forked(
        [sys.executable, "-m", "kandinsky", "generate", "a dot", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    first = process.stdout.readline().strip()  # one result is finished, the next is in work
    assert first.endswith(".mp4")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted") and "Traceback" not in err
    left = {path.name for path in Path().iterdir()}
    # a latent is whole, and kept where the interrupt falls into decoding
    ended = all(name.endswith((".mp4", ".latent.safetensors")) and not name.startswith(".") for name in left)
    assert first in left and ended
    assert len(read_video(first).frames) == 5


def test_a_still_may_be_a_jpeg_and_a_clip_is_none(tiny: Path, call: Call) -> None:
    words = ("generate", "a dot", "-m", "tiny", "--steps", "1", "--seed", "3")
    for name in ("x.jpg", "x.jpeg"):
        assert call(*words, "--seconds", "0", "-o", name).code == 0
        assert call("show", name).lines[-1].startswith("kandinsky generate 'a dot' --model tiny ")
        assert read_video(name).frames.shape == (1, 64, 64, 3)
    done = call(*words, "--seconds", "0.5", "-o", "y.jpg")
    assert done.code == 2 and "is one image, and this is a clip of 13 frames" in done.err and not Path("y.jpg").exists()
    assert call(*words, "--seconds", "0", "--format", "jpg").lines == ["a-dot-3.jpg"]


def test_a_folder_holds_several_results(tiny: Path, call: Call) -> None:
    words = ("generate", "a dot", "-m", "tiny", "--steps", "1", "--seed", "3", "--seconds", "0")
    done = call(*words, "--count", "2", "-o", "out/", "--format", "webp")
    assert done.lines == ["out/a-dot-3.webp", "out/a-dot-4.webp"]
    assert call(*words, "-o", "frames/").code == 0 and [one.name for one in Path("frames").iterdir()] == ["0000.png"]


def test_a_clip_is_cut_to_what_was_asked_for(tiny: Path, call: Call) -> None:
    words = ("generate", "a panda", "-m", "nano2-t2v", "--seed", "3")
    for seconds, name, frames in (("1.4", "whole.png", 17), ("1", "cut.png", 12)):
        done = call(*words, "--seconds", seconds, "-o", name.replace(".", "%02d."))
        assert done.code == 0 and f"seed 3, {frames} frames" in done.err
        assert call("show", name.replace(".", "00.")).code == 0
    whole, cut = (sorted(Path().glob(f"{name}*.png")) for name in ("whole", "cut"))
    assert (len(whole), len(cut)) == (17, 12)
    assert all(
        np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b))) for a, b in zip(whole, cut, strict=False)
    )


def test_what_a_reader_refuses_is_refused_with_the_plan(call: Call) -> None:
    for words in (("xyzzy",), ("a cat", "--prompt-at", "1s xyzzy", "--seconds", "3")):
        done = call("generate", *words, "--plan")
        assert done.code == 2 and "this model knows nothing that `xyzzy` asks for" in done.err, done.err
    done = call("generate", "a cat", "--plan")
    assert done.code == 0 and "for 1 pass\n" in done.out and "begin         0.8 s, once a process" in done.out


def test_those_who_forget_the_command_or_the_quotes_are_told(call: Call) -> None:
    for words, said in ((("a panda",), "makes a clip"), (("generate", "a", "panda"), "stands in quotes")):
        done = call(*words)
        assert done.code == 2 and said in done.err, done.err
        assert "kandinsky generate 'a panda waves'" in done.err


def test_a_note_is_said_once_for_all_seeds(fresh: Call, tmp_path: Path) -> None:
    done = fresh(
        "generate", "a cat", "--seconds", "0", "--guidance", "3", "--count", "2", "-o", str(tmp_path / "cat.png")
    )
    assert done.code == 0 and done.err.count("guidance 3 burns colours") == 1
