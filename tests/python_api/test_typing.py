"""What type checkers and readers of help see: every option, once declared, typed at each door."""

import inspect
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import kandinsky
from kandinsky.engine.options import PlanOptions, RunOptions
from kandinsky.engine.pipeline import EACH, ClipOptions, GenerationPipeline
from kandinsky.model.diffusers_words import CALL, CallWords
from kandinsky.model.values import Request

ROOT = Path(__file__).parents[2]
mypy_api: Any = pytest.importorskip("mypy.api", reason="mypy is not installed: the extra `dev` brings it")
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
RIGHT = """
from pathlib import Path
import kandinsky
from kandinsky.engine.preview import Preview

clips = kandinsky.load("nano-t2v", {options})
sounds = kandinsky.load("nano-v2a", device="cpu")
by_name = kandinsky.load(model=Path("folder"), device={{"dit": "cuda:0", "text": "cpu"}}, lora=["a", "b:0.5"])
default = kandinsky.load()

def look(step: int, total: int, preview: Preview) -> bool | None:
    return preview.image.size > (0, 0)

video = clips("a panda", seconds=1, seed=7, on_step=look, progress=False)
reveal_type(video)
reveal_type(clips(["a panda", "a cat"], num_inference_steps=4, seed=[1, 2]))
reveal_type(sounds("rain", video=video, seconds=1))
reveal_type(default)
reveal_type(video[0])
reveal_type(video[1:3])
reveal_type(clips.to("cpu"))
reveal_type(kandinsky.plan("nano-t2v", memory="12GB", {options}))
video.save("panda.mp4")
"""
REVEALED = [
    "Video", "list[Video]", "Soundtrack", "GenerationPipeline", "ndarray", "Video", "GenerationPipeline", "Plan",
]  # fmt: skip
WRONG = {
    'kandinsky.load("nano-t2v", bogus=1)': 'Unexpected keyword argument "bogus"',
    'kandinsky.load("nano-t2v", attention=None)': "No overload variant",
    'kandinsky.load("nano-t2v", offload=3)': "No overload variant",
    'kandinsky.load("nano-t2v", "cpu")': "No overload variant",
    'kandinsky.load("nano-t2v")("a dot", stepz=3)': 'did you mean "steps"',
    'kandinsky.load("nano-t2v")("a dot", steps="3")': "No overload variant",
    'kandinsky.load("nano-t2v")(5)': "No overload variant",
    'kandinsky.load("nano-v2a")("rain", image="x.png")': 'Unexpected keyword argument "image"',
    'kandinsky.plan("nano-t2v", memory=5)': 'incompatible type "int"',
}


CONFIG = """
[mypy]
strict = True
mypy_path = {src}
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,transformers.*,diffusers.*,safetensors.*,huggingface_hub.*,tokenizers.*,av.*,rich.*,typer.*,yaml.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What `mypy --strict` says of programs that use the package, by file; large libraries beside it are not read."""
    folder = tmp_path_factory.mktemp("mypy")
    options = ", ".join(
        f"{name}={sample(hint) if name != 'only' else ['dit']}" for name, hint in hints(RunOptions).items()
    )
    programs = {
        "readme.py": "\n".join(README),
        "right.py": RIGHT.format(options=options),
        "wrong.py": "\n".join(["import kandinsky", *WRONG]),
    }
    for name, code in programs.items():
        (folder / name).write_text(code, encoding="utf-8")
    (folder / "mypy.ini").write_text(CONFIG.format(src=ROOT / "src"), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", *programs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return {name: [line for line in lines if line.startswith(f"{name}:")] for name in programs} | {"all": lines}


def sample(hint: Any) -> str:
    """A value of an annotation, written down."""
    kinds = typing.get_args(hint) or (hint,)
    return next(text for kind, text in ((str, '"x"'), (bool, "True"), (int, "1"), (float, "1.0")) if kind in kinds)


@pytest.mark.slow
def test_mypy_accepts_the_readme_and_every_option(said: dict[str, list[str]]) -> None:
    assert README and said["all"][-1].startswith("Found"), said["all"]
    assert not [line for name in ("readme.py", "right.py") for line in said[name] if " error: " in line], said
    revealed = re.findall(r'Revealed type is "([^"]+)"', "\n".join(said["right.py"]))
    assert len(revealed) == len(REVEALED)
    for found, wanted in zip(revealed, REVEALED, strict=True):
        assert wanted in re.sub(r"[a-z_]+\.", "", found), revealed


@pytest.mark.slow
def test_mypy_refuses_what_the_library_would(said: dict[str, list[str]]) -> None:
    for line, message in enumerate(WRONG.values(), 2):
        found = [one for one in said["wrong.py"] if one.startswith(f"wrong.py:{line}:")]
        assert any(message in one for one in found), f"{line}: {said['wrong.py']}"


def hints(kind: Any) -> Mapping[str, Any]:
    from kandinsky.model.checks import hints_of

    return hints_of(kind)


@pytest.mark.parametrize(("door", "kind"), [(kandinsky.load, RunOptions), (kandinsky.plan, PlanOptions)])
def test_help_shows_every_option_with_its_text(door: Any, kind: type) -> None:
    shown = inspect.signature(door).parameters
    assert list(shown) == ["model", *(f.name for f in fields(kind))]
    text = pydoc.plain(pydoc.render_doc(door))
    for field in fields(kind):
        assert shown[field.name].default == field.default
        about = field.metadata["about"]
        assert about and f"{field.name}: {about[:1].upper()}{about[1:].rstrip('.')}." in text
    assert "options:" not in text


def test_a_call_takes_what_a_request_has() -> None:
    """The call's own dictionary of types says of each field what ``Request`` says, or a list of the same."""
    own = hints(Request)
    call = {name: hint for name, hint in hints(ClipOptions).items() if name not in hints(CallWords)}
    extra = {"size", "keep_latent", "on_step", "progress"}
    assert set(call) - extra == set(own) - {"model", "prompt", "states"}
    for name in set(call) - extra - {"conditions", "prompt_at"}:  # a call takes plain forms of them too
        kinds, wanted = set(typing.get_args(call[name]) or [call[name]]), set(typing.get_args(own[name]) or [own[name]])
        lists = {kind for kind in kinds - wanted if typing.get_origin(kind) is not None}
        assert kinds - lists == wanted and bool(lists) == (name in EACH), name
    shown = inspect.signature(GenerationPipeline.__call__).parameters
    assert set(shown) == {"self", "prompt", *call, *hints(CallWords)}
    doc = GenerationPipeline.__call__.__doc__ or ""
    for name in call:
        assert f"\n            {name}: " in doc, name


def test_words_of_diffusers_that_are_taken_are_typed() -> None:
    assert {name for name, word in CALL.items() if word.ours} == set(hints(CallWords))
    assert all(word.ours in hints(ClipOptions) for word in CALL.values() if word.ours)
