"""Recipes: what they hold, what they refuse, and commands that mean what they say."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kandinsky
from kandinsky import catalogue
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.values import Request, Video

CARD = catalogue.find("kandinsky5-lite-t2v-sft-5s")


def made(**fields: object) -> dict[str, object]:
    request = Request(model=CARD.id, prompt="a panda", seed=7).with_values(**fields)
    return recipes.build(resolve(request, CARD).settings(), revision="abc", dtype="float32", device="cpu")


def test_a_recipe_says_everything_that_decides_the_result() -> None:
    recipe = made(seconds=2, steps=10)
    assert set(recipe) == {
        "kandinsky",
        "model",
        "revision",
        "prompt",
        "negative_prompt",
        "seed",
        "width",
        "height",
        "seconds",
        "frames",
        "fps",
        "steps",
        "guidance",
        "shift",
        "noise",
        "dtype",
        "device",
        "versions",
    }
    assert recipe["kandinsky"] == kandinsky.__version__ and recipe["revision"] == "abc"
    assert (recipe["frames"], recipe["steps"], recipe["noise"]) == (49, 10, "bfloat16")
    assert "torch" in recipe["versions"] and "numpy" in recipe["versions"]  # type: ignore[operator]


def words_of(command: str) -> list[str]:
    """A command's words, as bash takes them where the quoting is its own."""
    assert command.isprintable() or "\u2028" not in command and len(command.splitlines()) == 1
    if "$'" not in command:
        return shlex.split(command)
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    )
    return printed.stdout.decode().split("\0")[:-1]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(prompt=text, negative=text, seed=st.integers(0, 2**63 - 1), guidance=st.floats(0, 50), shift=st.floats(0.01, 50))
def test_the_command_repeats_the_request(prompt: str, negative: str, seed: int, guidance: float, shift: float) -> None:
    """Parsed as a shell and then the program would, the values come out as they went in."""
    recipe = made(prompt=prompt, negative_prompt=negative, seed=seed, guidance=guidance, shift=shift)
    words = words_of(recipes.command(recipe))
    assert words[:2] == ["kandinsky", "generate"]
    assert words[-2:] == ["--", prompt]
    options = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    assert options["--model"] == CARD.id and options["--size"] == "768x512"
    assert int(options["--seed"]) == seed
    assert float(options["--guidance"]) == guidance and float(options["--shift"]) == shift
    assert options.get("--negative") == (None if guidance == 1 else negative)
    assert (options["--dtype"], options["--device"]) == ("float32", "cpu")


def test_text_is_ascii_and_comes_back() -> None:
    recipe = made(prompt="панда 🐼")
    assert recipes.to_text(recipe).isascii()
    assert recipes.from_text(recipes.to_text(recipe)) == recipe
    for other in (None, "", "Lavf 61", "{", "[1]", '{"a": 1}'):
        assert recipes.from_text(other) is None


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    for ending in ("mp4", "gif", "webp", "png"):
        path = Video(np.zeros((2, 16, 16, 3), np.uint8), fps=8.0, seed=0).save(tmp_path / f"a.{ending}")
        with pytest.raises(RequestError, match="carries no recipe"):
            recipes.read(path)
        path.write_bytes(b"broken")
        with pytest.raises(RequestError, match="cannot be read|is not an image"):
            recipes.read(path)
    with pytest.raises(RequestError, match="does not exist"):
        recipes.read(tmp_path / "absent.mp4")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(RequestError, match="of no kind that carries a recipe"):
        recipes.read(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no frames"):
        recipes.read(tmp_path / "empty")
    with pytest.raises(RequestError, match="has no `prompt`"):
        recipes.command({"kandinsky": "0.1.0", "model": "x"})
