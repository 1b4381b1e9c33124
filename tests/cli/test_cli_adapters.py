"""--lora and --expand: from the words typed to the recipe, and the command that repeats it."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kandinsky.families.kandinsky5 import expansion
from kandinsky.media.video import read_video
from kandinsky.weights.lora import write_lora
from tiny import family
from tiny.loras import lora

Call = Callable[..., "Done"]  # noqa: F821
SHORT = ("--seconds", "0", "--steps", "1", "--seed", "5")


def repeated(command: str) -> list[str]:
    """What `kandinsky show` prints, with another file to write."""
    words = shlex.split(command)
    return [*words[1:], "-o", "y.png"]


def test_loras_are_listed_and_repeated(tiny: Path, call: Call, tmp_path: Path) -> None:
    files = [
        write_lora(lora(family.dit(), seed=i), tmp_path / f"my {n}.safetensors", style="kohya")
        for i, n in enumerate("ab")
    ]
    loras = ("--lora", f"{files[0]}:0.5", "--lora", str(files[1]))
    done = call("generate", "-m", "tiny", *SHORT, *loras, "--json", "-o", "x.png", "a cat")
    assert done.code == 0, done.err
    recipe = json.loads(done.lines[-1])["recipe"]
    assert [(one["name"], one["scale"], one["source"]) for one in recipe["lora"]] == [
        ("my a", 0.5, str(files[0])),
        ("my b", 1.0, str(files[1])),
    ]
    assert all(len(one["sha256"]) == 64 for one in recipe["lora"])
    shown = call("show", "x.png")
    assert f"sha256  {recipe['lora'][0]['sha256']}" in shown.out
    again = call(*repeated(shown.lines[-1]))
    assert again.code == 0, again.err
    plain = call("generate", "-m", "tiny", *SHORT, "-o", "z.png", "a cat")
    assert plain.code == 0
    x, y, z = (read_video(Path(f"{name}.png")).frames for name in "xyz")
    assert np.array_equal(x, y) and not np.array_equal(x, z)


@pytest.mark.parametrize(
    ("option", "message", "hint"),
    [
        ("none.safetensors", "LoRA `none.safetensors` is not there: give a file, a folder or a Hugging Face", ""),
        (
            "owner/name",
            "`lora.safetensors`, `config_lora.json` of `owner/name` are not on this machine",
            "download owner",
        ),
        ("wrong.safetensors", "has 1792 inputs, the layer `visual_transformer_blocks.0.self_attention.to_query`", ""),
        ("wrong.safetensors:big", "scale `big` of LoRA `wrong.safetensors` is not a finite number", ""),
        (":1", "LoRA `:1` is not there", ""),
    ],
)
def test_bad_loras(option: str, message: str, hint: str, tiny: Path, call: Call) -> None:
    layer = "transformer.visual_transformer_blocks.0.self_attention.to_query"
    state = {f"{layer}.lora_A.weight": torch.ones(2, 1792), f"{layer}.lora_B.weight": torch.ones(1792, 2)}
    save_file(state, "wrong.safetensors")
    done = call("generate", "-m", "tiny", "-o", "x.png", "--lora", option, "a cat")
    assert done.code == 2 and message in done.err and hint in done.err, done.err
    assert not Path("x.png").exists()


def test_expanded_prompts_are_shown_stored_and_repeated(
    tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "MAX_NEW_TOKENS", 12)
    done = call("generate", "-m", "tiny", *SHORT, "--expand", "--json", "-o", "x.png", "a cat")
    assert done.code == 0, done.err
    recipe = json.loads(done.lines[-1])["recipe"]
    assert recipe["prompt"] == "a cat" and recipe["expanded_prompt"] != "a cat"
    assert "expanded prompt: " + recipe["expanded_prompt"].splitlines()[0] in done.err
    shown = json.loads(call("show", "x.png", "--json").out)["command"]
    command = shlex.split(shown)
    assert "--expand" not in command and command[command.index("--expanded-prompt") + 1] == recipe["expanded_prompt"]
    monkeypatch.setattr(expansion, "expand", lambda *_, **__: pytest.fail("the stored text was not used"))
    again = call(*repeated(shown))
    assert again.code == 0, again.err
    assert np.array_equal(read_video(Path("x.png")).frames, read_video(Path("y.png")).frames)


def test_expansion_where_nothing_can_write(call: Call, tiny: Path) -> None:
    done = call("generate", "--expand", "a panda")
    assert done.code == 2 and "`nano2-t2v` cannot expand prompts" in done.err
    Path("p.txt").write_text("a\nb\n", encoding="utf-8")
    done = call("generate", "-m", "tiny", "--prompts", "p.txt", "--expanded-prompt", "x")
    assert done.code == 2 and "--expanded-prompt belongs to one prompt" in done.err
