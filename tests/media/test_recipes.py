"""Recipes: what they hold, what they refuse, and commands that mean what they say."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
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
    assert recipes.build({"model": "m"}, revision="", dtype="x", device="cpu", kernels="own 1f")["versions"]["kernels"]
    assert "kernels" not in recipe["versions"]  # type: ignore[operator]
    assert "torch" in recipe["versions"] and "numpy" in recipe["versions"]  # type: ignore[operator]


def words_of(command: str) -> list[str]:
    """A command's words, as bash takes them where the quoting is its own."""
    assert len(command.splitlines()) == 1
    if "$'" not in command:
        return shlex.split(command)
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    )
    return printed.stdout.decode().split("\0")[:-1]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@example(prompt="-o x", negative="", seed=0, guidance=2.0, shift=1.0)
@given(prompt=text, negative=text, seed=st.integers(0, 2**63 - 1), guidance=st.floats(0, 50), shift=st.floats(0.01, 50))
def test_the_command_repeats_the_request(prompt: str, negative: str, seed: int, guidance: float, shift: float) -> None:
    """Parsed as a shell and then the program would, the values come out as they went in."""
    recipe = made(prompt=prompt, negative_prompt=negative, seed=seed, guidance=guidance, shift=shift)
    words = words_of(recipes.command(recipe))
    assert words[:2] == ["kandinsky", "generate"]
    # the prompt comes first, so that `-o x` can be appended; one with a dash is no option only after `--`
    rest = words[2:-2] if prompt.startswith("-") else words[3:]
    assert (words[-2:] == ["--", prompt]) if prompt.startswith("-") else (words[2] == prompt)
    options = dict(zip(rest[::2], rest[1::2], strict=True))
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
        with pytest.raises(RequestError, match=r"cannot be read|is not an image"):
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


def test_an_interpolated_clip_is_interpolated_again() -> None:
    recipe = {
        "kandinsky": "0.1.0", "model": "kandinsky-video-1.1", "prompt": "", "seed": 0, "width": 64, "height": 64,
        "interpolated": {"factor": 2.5, "from": {}}, "steps": 3, "interpolation_guidance": 1.0, "fps": 30.0,
    }  # fmt: skip
    assert recipes.command(recipe) == (
        "kandinsky interpolate VIDEO --output OUTPUT.mp4 --model kandinsky-video-1.1 --fps 30 --steps 3 --guidance 1 "
        "--seed 0"
    )


def test_what_the_catalogue_writes_is_read() -> None:
    for name in catalogue.cards():
        card = catalogue.find(name)
        resolved = resolve(Request(model=name, prompt="a panda", seed=3), card, needs_image=False)
        recipe = recipes.build(resolved.settings(), revision="abc", dtype="float32", device="cpu")
        assert recipes.from_text(recipes.to_text(recipe)) == recipe
        assert recipes.command(recipe).startswith(f"kandinsky generate 'a panda' --model {name} ")


BROKEN = {
    "prompt": [3, ["a"], {"a": 1}, True, "\ud800", "a\0b"],
    "model": ["", "  ", 5, ["x"]],
    "seed": ["7", 1.5, -1, True, 10**30],
    "width": [0, -8, "64", 1.5, False],
    "steps": [0, "x", 2.0],
    "seconds": ["long", -1, float("nan"), float("inf"), 1e400],
    "fps": [0, -12.0, "24"],
    "guidance": ["5", [1], float("inf")],
    "image": ["a.png", 3, [], {"file": 3}, {"file": ["a"]}, {"sha256": 1}],
    "mask": [{"grow": "2"}, {"grow": -1}, {"file": {}}],
    "video": [{"file": 1}, {"recipe": 5}],
    "sound": ["x", {}, {"model": 1}],
    "lora": [
        "x",
        {"source": "a"},
        [1],
        [{"source": "a"}],
        [{"source": 1, "scale": 1}],
        [{"source": "a", "scale": "b"}],
    ],
    "quantize": ["int8", {"dit": 8}, [1]],
    "cache": ["x", {"option": 3}],
    "interpolated": [4, {"factor": "x"}, {"from": 3}],
    "versions": [[], {"torch": 2}],
    "attention": [{}, 1],
    "device": [0],
}


@pytest.mark.parametrize("key", BROKEN)
def test_a_value_of_another_type_is_named(key: str) -> None:
    for value in BROKEN[key]:
        text = recipes.to_text(made() | {key: value})
        for attempt in (lambda: recipes.from_text(text), lambda: recipes.command(made() | {key: value})):  # noqa: B023
            with pytest.raises(RequestError, match=f"`{key}`|`file`|`option`") as caught:
                attempt()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_recipes_that_are_endless_or_huge(tmp_path: Path) -> None:
    deep: object = {"kandinsky": "0", "model": "m", "prompt": "p"}
    for _ in range(100):
        deep = {"kandinsky": "0", "model": "m", "prompt": "p", "interpolated": {"factor": 2, "from": deep}}
    with pytest.raises(RequestError, match="nested more than 64 levels"):
        recipes.checked(deep)
    for text in (
        "[" * 50_000,
        '{"kandinsky":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"kandinsky": ' + "9" * 5000 + "}",
    ):
        assert recipes.from_text(text) is None
    with pytest.raises(RequestError, match="characters is not read"):
        recipes.from_text('{"kandinsky":"0","prompt":"' + "x" * 2_000_000 + '"}')
    for other in ([], "x", None, 3):
        with pytest.raises(RequestError, match="must be a JSON object"):
            recipes.checked(other)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp", "a.mp4"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "x"}, "`seed` must be a whole number"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"image": ["\x1b[31m"]}, "`image` must be an object"),
        ({"other": {"a": [1, {"b": 2}, []]}}, ""),
        ({"other\x1b[2J": "\x1b]0;title\x07\u202e"}, ""),
        ({"prompt": "a\nkandinsky download evil"}, ""),
    ],
)
def test_show_says_one_line_of_a_broken_recipe_and_obeys_none(
    name: str, change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Video(np.zeros((2, 16, 16, 3), np.uint8), fps=8.0, seed=0, recipe=made() | change).save(tmp_path / name)
    code = main(["show", str(path)])
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\u202e")
    if said:
        assert code == 2 and not out and said in err and len(err.splitlines()) == 1
    else:
        assert code == 0 and " --model kandinsky5-lite-t2v-sft-5s --size " in out.splitlines()[-1]


def test_text_of_a_png_that_explodes_or_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for compressed in (False, True):
        info = PngInfo()
        info.add_text(recipes.PNG_KEY, '{"kandinsky":"' + "x" * 70_000_000 + '"}', zip=compressed)
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
        assert main(["show", str(tmp_path / "a.png")]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and len(err) < 400
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0000.png").mkdir()
    with pytest.raises(RequestError, match="is not a file"):
        recipes.read(tmp_path / "folder")
