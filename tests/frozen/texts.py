"""What is said, word for word: the help of every command, plans, and what is refused, at both doors.

These words are changed on purpose now and then: then ``texts.json`` is recorded anew, in a commit of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kandinsky

from . import measure

LITE, PRO = "kandinsky5-lite-t2v-sft-5s", "kandinsky5-pro-t2v-sft-5s"
T2V = ("generate", "x", "-m", "tiny-t2v")
# Arguments of the command line, exit code 2 (or 1) each.
REFUSED: tuple[tuple[str, ...], ...] = (
    ("generate", "x", "-m", "tinny-t2v"),
    ("generate", "x", "-m", "no/such-repository"),
    (*T2V, "--size", "big"),
    (*T2V, "--size", "100x64"),
    (*T2V, "--seconds", "4000"),
    (*T2V, "--seconds", "-1"),
    (*T2V, "--seconds", "0.01"),
    (*T2V, "--seconds", "nan"),
    (*T2V, "--steps", "0"),
    (*T2V, "--steps", "1001"),
    (*T2V, "--steps", "ten"),
    (*T2V, "--guidance", "-1"),
    (*T2V, "--guidance", "inf"),
    (*T2V, "--shift", "0"),
    (*T2V, "--seed", "-1"),
    (*T2V, "--seed", str(2**63)),
    ("generate", "", "-m", "tiny-t2v"),
    ("generate", "-m", "tiny-t2v"),
    (*T2V, "--prompts", "p.txt"),
    ("generate", "--prompts", "p.txt", "-m", "tiny-t2v"),
    (*T2V, "-o", "x.avi"),
    (*T2V, "--sheet", "x.mp4"),
    (*T2V, "--device", "gpu"),
    (*T2V, "--dtype", "int3"),
    (*T2V, "--offload", "disk"),
    (*T2V, "--quantize", "int4"),
    (*T2V, "--quantize", "vae=int8"),
    (*T2V, "--attention", "magic"),
    (*T2V, "--attention", "nabla:P=2"),
    (*T2V, "--cache", "teacache"),
    (*T2V, "--cache", "taylor:order=3"),
    (*T2V, "--cache", "magcache:ratios=none.toml"),
    (*T2V, "--lora", "gone.safetensors"),
    (*T2V, "--parallel", "rings=2"),
    (*T2V, "--tiling", "some"),
    (*T2V, "--image", "gone.png"),
    (*T2V, "--mask", "gone.png"),
    (*T2V, "--fps", "high"),
    (*T2V, "--sound-model", "nano-v2a"),
    (*T2V, "--video", "gone.mp4"),
    (*T2V, "--summary", "s.json"),
    (*T2V, "--lightning"),
    ("generate", "x", "-m", "tiny-i2v"),
    ("generate", "x", "-m", "tiny-i2v", "--image", "gone.png"),
    ("generate", "x", "-m", "kandinsky-video-1.0", "--seconds", "2"),
    ("generate", "x", "-m", "kandinsky-video-1.1", "--motion", "wild"),
    ("generate", "x", "-m", "kandinsky4-t2v-flash", "--attention", "nabla"),
    ("generate", "x", "-m", LITE),
    ("generate", "x", "--video", "gone.mp4"),
    ("generate", "x", "-m", "nano-v2a"),
    ("plan", "-m", LITE, "--steps", "0"),
    ("plan", "-m", LITE, "--memory", "much"),
    ("plan", "-m", LITE, "--gpus", "0"),
    ("show", "absent.mp4"),
    ("show", "nano"),
    ("decode", "absent.latent.safetensors"),
    ("interpolate", "absent.mp4", "-o", "x.mp4"),
    ("download", "tinny"),
    ("convert", "absent.safetensors", "x.safetensors"),
    ("conformance", "absent"),
    ("calibrate", "tinny"),
    ("train", "absent.yaml"),
    ("evaluate", "tinny"),
    ("bench", "tinny"),
    ("nonsense",),
)
# Without what depends on this machine: the answer to `--device` and `--offload` is given.
PLANS: tuple[tuple[str, ...], ...] = (
    ("nano-t2v", "--device", "cpu", "--offload", "none"),
    (LITE, "--memory", "24GB"),
    (LITE, "--memory", "8GB"),
    (LITE, "--memory", "13GB", "--offload", "module"),
    (LITE, "--memory", "24GB", "--quantize", "dit=int8,text=int8"),
    (PRO, "--memory", "80GB", "--size", "1280x768"),
    ("kandinsky5-lite-t2v-sft-10s", "--memory", "80GB", "--gpus", "4"),
    ("kandinsky5-lite-i2i", "--memory", "48GB"),
    ("kandinsky4-v2a", "--memory", "48GB"),
    (LITE, "--memory", "24GB", "--json"),
)


def refusals(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is refused in Python, by name."""
    load = kandinsky.load
    pipe = load("tiny-t2v", device="cpu", text_cache=False)
    image = load("tiny-i2v", device="cpu", text_cache=False)
    video = load("kandinsky-video-1.0", weights=folder / "unets/weights", device="cpu", text_cache=False)
    motion = load("kandinsky-video-1.1", weights=folder / "unets/weights", device="cpu", text_cache=False)
    mask = load("kandinsky3.0-inpaint", weights=folder / "unets/weights", device="cpu", text_cache=False)
    sound = load("nano-v2a", device="cpu")
    picture = measure.picture(64, 64)
    small = np.ones((8, 8), np.uint8)
    yield "load: unknown model", lambda: load("tinny")
    yield "load: unknown option", lambda: load("tiny-t2v", ofload="none")
    yield "load: offload", lambda: load("tiny-t2v", offload="disk")
    yield "load: dtype", lambda: load("tiny-t2v", dtype="int3")
    yield "load: device", lambda: load("tiny-t2v", device="gpu")
    yield "load: device of a part", lambda: load("tiny-t2v", device={"net": "cpu"})
    yield "load: attention", lambda: load("tiny-t2v", device="cpu", attention="magic")
    yield "load: attention backend", lambda: load("tiny-t2v", device="cpu", attention="dense:backend=flex")
    yield "load: cache", lambda: load("tiny-t2v", device="cpu", cache="teacache")
    yield "load: cache without a calibration", lambda: load("tiny-i2i", device="cpu", cache="magcache")
    yield "load: quantize", lambda: load("tiny-t2v", device="cpu", quantize={"vae": "int8"})
    yield "load: lora", lambda: load("tiny-t2v", device="cpu", lora="gone.safetensors")
    yield "load: tiling", lambda: load("kandinsky3.0", device="cpu", tiling="official")
    yield "load: parallel", lambda: load("tiny-t2v", device="cpu", parallel="ulysses=2")
    yield "load: weights that are not there", lambda: load(LITE, device="cpu")
    yield "load: remote code", lambda: load(folder / "v2a", device="cpu")
    yield "call: no prompt", lambda: pipe("")
    yield "call: prompt of another type", lambda: pipe(["a"])
    yield "call: size twice", lambda: pipe("x", size="64x64", width=64)
    yield "call: width alone", lambda: pipe("x", width=64)
    yield "call: steps", lambda: pipe("x", steps=2.5)
    yield "call: seed", lambda: pipe("x", seed=1.5)
    yield "call: cache", lambda: pipe("x", cache="taylor:interval=0")
    yield "call: expand", lambda: load("nano-t2v", device="cpu")("x", expand=True)
    yield "call: image", lambda: pipe("x", image=picture)
    yield "call: no image", lambda: image("x")
    yield "call: image of floats", lambda: image("x", image=picture / 255)
    yield "call: image that is not there", lambda: image("x", image="gone.png")
    yield "call: frame rate", lambda: video("x", fps="fast")
    yield "call: motion", lambda: motion("x", motion="wild")
    yield "call: no mask", lambda: mask("x", image=picture)
    yield "call: mask of another size", lambda: mask("x", image=picture, mask=small)
    yield "call: U-Net with a cache", lambda: mask("x", image=picture, mask=picture[..., 0], cache="first-block")
    yield "call: cancelled", lambda: pipe("x", seconds=0, steps=2, on_step=lambda *_: False)
    yield "call: video that is not there", lambda: sound("x", video="gone.mp4")
    yield "call: no video", lambda: sound("x")
    yield "finish: nothing", lambda: pipe.finish("gone.safetensors")
    yield "plan: size", lambda: kandinsky.plan(LITE, width=500, height=500)
    yield "plan: layout", lambda: kandinsky.plan(LITE, parallel="tp=3", memory="80GB")
    yield "request: unknown field", lambda: kandinsky.Request.from_dict({"model": "x", "prompt": "y", "sede": 1})


def said(folder: Path) -> dict[str, dict[str, list[str]]]:
    """All of it, as lines by section and name."""
    found: dict[str, dict[str, list[str]]] = {}
    with measure.settled(folder):
        found["help"] = {" ".join(("kandinsky", *words)): lines for words, lines in helps(())}
        found["plans"] = {" ".join(words): _plan(words, folder) for words in PLANS}
        found["refused on the command line"] = {" ".join(words): _refused(words, folder) for words in REFUSED}
        found["refused in Python"] = {name: _raised(ask, folder) for name, ask in refusals(folder)}
    return found


def helps(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The help of a command and of those below it."""
    _, out, _ = measure.command(*words, "--help")
    yield words, out.splitlines()
    below = re.search(r"^Commands:\n((?:  .*\n?)+)", out, re.MULTILINE)
    for name in re.findall(r"^  (\S+)", below.group(1), re.MULTILINE) if below else ():
        yield from helps((*words, name))


def _plan(words: tuple[str, ...], folder: Path) -> list[str]:
    code, out, err = measure.command("plan", *words)
    assert code == 0, err
    # on CPU times follow the number of cores, and what fits the memory
    text = re.sub(r"(?ms)^(placement  cpu|time ).*$", r"\1 …", out) if "cpu" in words else out
    return _lines(text, folder)


def _refused(words: tuple[str, ...], folder: Path) -> list[str]:
    code, out, err = measure.command(*words)
    return [f"exit {code}", *_lines(out + err, folder)]


def _raised(ask: Callable[[], Any], folder: Path) -> list[str]:
    try:
        made = ask()
    except Exception as error:
        hint = getattr(error, "hint", "")
        text = f"{type(error).__name__}: {error}" + (f"\nhint: {hint}" if hint else "")
        return _lines(text, folder)
    return [f"no error: {type(made).__name__}"]


def _lines(text: str, folder: Path) -> list[str]:
    """Without this machine's paths, and without the number of models, which grows."""
    return re.sub(r"lists all \d+", "lists all …", measure.without_paths(text, folder)).splitlines()
