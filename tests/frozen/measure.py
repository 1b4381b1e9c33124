"""What is measured: every tiny model in every way to run it, each result as a hash, a summary and a recipe.

Only surfaces that outlive a change of the inside are used: `kandinsky.load`, the pipeline's call, `resolve`, `run`,
`finish` and `keep_latent`, `python -m kandinsky`, and the builders of ``tests/tiny``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

import kandinsky
from kandinsky.ops.native import library

HERE = Path(__file__).parent
SAMPLES = 16
PROMPT = "a cat in a red hat"
# What a recipe says of the machine rather than of the result.
OF_THE_MACHINE = ("kandinsky", "versions", "created")

Values = dict[str, np.ndarray]
Options = Mapping[str, Any]


@dataclass
class Found:
    """Results by name. arrays: numbers.   recipes: plain values."""

    arrays: Values = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Found) -> Found:
        self.arrays |= other.arrays
        self.recipes |= other.recipes
        return self


@dataclass(frozen=True)
class Way:
    """One way to run a model. load, call: arguments beside those of the model; `{folder}` is the tiny models'."""

    load: Options = field(default_factory=dict)
    call: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """id: what `load` is given.   weights: folder of official weights, below that of the tiny models.

    call: arguments of every call.   ways: by name; `plain` comes first and is looked at more closely.
    """

    id: str
    ways: Mapping[str, Way]
    call: Options = field(default_factory=dict)
    load: Options = field(default_factory=dict)
    weights: str | None = None


PLAIN = {"plain": Way()}
OFFLOADS = {f"offload {name}": Way({"offload": name}) for name in ("module", "block")}
BACKENDS = {f"attention {name}": Way({"attention": f"dense:backend={name}"}) for name in ("sdpa", "plain")}
INT8 = {"int8": Way({"quantize": "int8"})}
BFLOAT16 = {"bfloat16": Way({"dtype": "bfloat16"})}
GUIDANCE_OFF = {"guidance off": Way(call={"guidance": 1.0})}
NEGATIVE = {"negative prompt": Way(call={"negative_prompt": "snow"})}
OTHER_SEED = {"other seed": Way(call={"seed": 2**40 + 1})}
# six steps, so that something is left out
CACHES = {
    f"cache {name}": Way(call={"cache": text, "steps": 6})
    for name, text in {
        "first-block": "first-block:threshold=0.9",
        "taylor": "taylor:order=1,interval=2,first=2,last=1",
        "magcache": "magcache:threshold=0.5,K=2,retention=0.2",
    }.items()
}
FEW_CACHES = {name: way for name, way in CACHES.items() if "magcache" not in name}  # without a calibration of the card
NABLA = {
    f"attention nabla {name}": Way({"attention": f"nabla:P=0.5,wT=1,wH=1,wW=1,backend={name}"})
    for name in ("gathered", "sdpa", "plain")
}


def picture(width: int = 134, height: int = 90) -> np.ndarray:
    """A soft pattern of whole numbers, the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.abs((x * a + y * b) % 240 - 120) * 2 for a, b in ((3, 1), (1, 4), (2, -3))]
    return np.stack(waves, axis=-1).astype(np.uint8)


def clip(frames: int, side: int = 32) -> np.ndarray:
    """A pattern that moves, [T, H, W, 3]."""
    return np.stack([np.roll(picture(side, side), 3 * n, axis=1) for n in range(frames)])


def _mask() -> np.ndarray:
    mask = np.zeros((64, 128), dtype=np.uint8)
    mask[8:, 70:] = 1
    return mask


SHORT = {"seconds": 0.4, "steps": 3, "seed": 7}
SOUND = {"steps": 2, "seed": 7}
TEXT_STORE = {
    "text cache": Way({"text_cache": "{folder}/store"}),
    "text cache again": Way({"text_cache": "{folder}/store"}),
}
KANDINSKY5 = PLAIN | OFFLOADS | INT8

MODELS: dict[str, Model] = {
    "k5 t2v": Model(
        "tiny-t2v",
        KANDINSKY5 | CACHES | BACKENDS | NABLA | BFLOAT16 | GUIDANCE_OFF | NEGATIVE | OTHER_SEED | TEXT_STORE | {
            "int8 of both": Way({"quantize": {"dit": "int8", "text": "int8"}, "offload": "module"}),
            "fp8": Way({"quantize": "fp8"}),
            "lora": Way({"lora": "{folder}/lora.safetensors:0.7"}),
            "lora, block, int8": Way(
                {"lora": "{folder}/lora.safetensors", "offload": "block", "quantize": "int8"}
            ),
            "cache, block": Way({"offload": "block"}, CACHES["cache first-block"].call),
            "tiling official": Way({"tiling": "official"}),
            "tiling none": Way({"tiling": "none"}),
            "shift": Way(call={"shift": 9.0}),
            "still": Way(call={"seconds": 0}),
            "wide": Way(call={"size": "96x64"}),
        },
        SHORT,
    ),
    "k5 t2v nabla": Model(
        "tiny-t2v-nabla",
        KANDINSKY5 | CACHES | {
            "attention dense": Way({"attention": "dense"}),
            "attention wide": Way({"attention": "nabla:P=0.9,wT=3,wH=3,wW=3"}),
        },
        SHORT | {"steps": 2, "seconds": 0.2},
    ),
    "k5 i2v": Model(
        "tiny-i2v",
        KANDINSKY5 | CACHES | GUIDANCE_OFF | {"other image": Way(call={"image": picture(64, 64)})},
        SHORT | {"image": picture(), "seconds": 0.9},
    ),
    "k5 t2i": Model("tiny-t2i", KANDINSKY5 | CACHES | BACKENDS, {"steps": 3, "seed": 7, "size": "96x64"}),
    "k5 i2i": Model("tiny-i2i", KANDINSKY5 | FEW_CACHES | BACKENDS, {"steps": 3, "seed": 7, "image": picture()}),
    "k4 t2v": Model(
        "kandinsky4-t2v-flash",
        KANDINSKY5 | BACKENDS | BFLOAT16 | OTHER_SEED | {"still": Way(call={"seconds": 0})}
        | {name: Way(call={"cache": way.call["cache"]}) for name, way in FEW_CACHES.items()},
        {"seconds": 1, "size": "64x48", "seed": 3},
        weights="k4/weights",
    ),
    "k4 t2v guided": Model(
        "tiny-k4-guided",
        PLAIN | FEW_CACHES | GUIDANCE_OFF,
        {"seconds": 1, "size": "64x48", "seed": 3, "negative_prompt": "snow"},
        weights="k4/weights",
    ),
    "video 1.0": Model(
        "kandinsky-video-1.0",
        PLAIN | {"offload module": OFFLOADS["offload module"]} | INT8 | NEGATIVE | {
            "interpolation": Way(call={"fps": "medium"}),
            "interpolation, block": Way({"offload": "block"}, {"fps": "medium", "interpolation_guidance": 1.0}),
        },
        {"steps": 1, "seed": 3},
        weights="unets/weights",
    ),
    "video 1.1": Model(
        "kandinsky-video-1.1",
        PLAIN | {
            "interpolation, module": Way({"offload": "module"}, {"fps": "medium"}),
            "block, int8": Way({"offload": "block", "quantize": "int8"}),
            "image, high motion": Way(
                call={"image": picture(), "size": "64x64", "image_guidance": 2.0, "motion": "high", "steps": 2}
            ),
        },
        {"steps": 1, "seed": 3},
        weights="unets/weights",
    ),
    "k3": Model(
        "kandinsky3.0",
        PLAIN | OFFLOADS | INT8 | BFLOAT16 | GUIDANCE_OFF | NEGATIVE | OTHER_SEED
        | {"text int8": Way({"quantize": {"text": "int8"}})},
        {"steps": 2, "seed": 3, "size": "128x64"},
        weights="unets/weights",
    ),
    "k3.1 flash": Model(
        "kandinsky3.1-flash", PLAIN | OFFLOADS | INT8, {"seed": 3, "size": "128x64"}, weights="unets/weights"
    ),
    "k3 inpainting": Model(
        "kandinsky3.0-inpaint",
        PLAIN | OFFLOADS | INT8 | GUIDANCE_OFF | {"grown mask": Way(call={"mask_grow": 6})},
        {"steps": 2, "seed": 3, "image": picture(128, 64), "mask": _mask()},
        weights="unets/weights",
    ),
    "k4 v2a": Model(
        "{folder}/v2a",
        PLAIN | OFFLOADS | GUIDANCE_OFF | OTHER_SEED | {
            "windows": Way(call={"video": kandinsky.Video(clip(90), fps=20.0, seed=0)}),
            "part": Way(call={"seconds": 1.25}),
        },
        SOUND | {"video": kandinsky.Video(clip(16), fps=8.0, seed=0)},
        {"trust_remote_code": True},
    ),
    "nano t2v": Model(
        "nano-t2v",
        PLAIN | INT8 | CACHES | {"attention nabla": Way({"attention": "nabla:P=0.5,wT=1,wH=3,wW=3"})},
        {"seconds": 0.4, "steps": 2, "seed": 5},
    ),
    "nano i2v": Model("nano-i2v", PLAIN, {"seconds": 0.4, "steps": 2, "seed": 5, "image": picture()}),
    "nano v2a": Model("nano-v2a", PLAIN, SOUND | {"video": kandinsky.Video(clip(25, 48), fps=12.0, seed=0)}),
}  # fmt: skip
# Two processes: the name of a model above, further arguments of `load`.
GROUPS: dict[str, tuple[str, Way]] = {
    "k5 t2v": ("k5 t2v", Way({"parallel": "ulysses=2"})),
    "k5 t2v, passes": ("k5 t2v", Way({"parallel": "cfg=2"})),
    "k5 t2v, weights": ("k5 t2v", Way({"parallel": "tp=2"})),
    "k4 t2v": ("k4 t2v", Way({"parallel": "ulysses=2"})),
    "k3": ("k3", Way({"parallel": "cfg=2"})),
}


@contextlib.contextmanager
def settled(folder: Path) -> Iterator[None]:
    """One thread, the cards of ``folder``, no hub, an empty working folder, lines of 80 columns."""
    (here := folder / "here").mkdir(exist_ok=True)
    before, threads = Path.cwd(), torch.get_num_threads()
    set_to = {
        "KANDINSKY_CARDS": str(folder / "cards"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "no-cache"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
    }
    gone = ("KANDINSKY_WEIGHTS", "HF_HUB_CACHE", "WORLD_SIZE", "RANK", "LOCAL_RANK", "HF_TOKEN", "NO_COLOR")
    # a collection through all that is imported takes half a second, and there would be hundreds
    with mock.patch.dict(os.environ, set_to), mock.patch.object(gc, "collect", return_value=0):
        for name in gone:
            os.environ.pop(name, None)
        os.chdir(here)
        torch.set_num_threads(1)
        try:
            with _remote_code_in(folder / "modules"):
                yield
        finally:
            torch.set_num_threads(threads)
            os.chdir(before)


@contextlib.contextmanager
def _remote_code_in(folder: Path) -> Iterator[None]:
    import transformers.dynamic_module_utils as dynamic

    with mock.patch.object(dynamic, "HF_MODULES_CACHE", str(folder)):
        yield


def measure(name: str, folder: Path, ways: Mapping[str, Way] | None = None, prefix: str = "") -> Found:
    """A model of ``MODELS`` in all its ways, in turn."""
    model, found = MODELS[name], Found()
    loaded: tuple[object, Any] = (None, None)
    first: dict[str, Any] = {}
    for title, way in (model.ways if ways is None else ways).items():
        if loaded[0] != dict(way.load):
            loaded = (dict(way.load), _load(model, way, folder))
        arrays, recipe = _made(loaded[1], model, way, folder, closely=title == "plain")
        found.arrays |= {f"{prefix}{name}, {title}: {what}": array for what, array in arrays.items()}
        # the first in full, then what differs from it
        recipe = _canonical(recipe, folder)
        told = recipe if not first else _changes(first, recipe)
        first = first or recipe
        found.recipes[f"{prefix}{name}, {title}"] = told
    return found


def _load(model: Model, way: Way, folder: Path) -> Any:
    options = _filled({"device": "cpu", **model.load, **way.load}, folder)
    if model.weights is not None:
        options["weights"] = folder / model.weights
    if not _is_sound(model):
        options.setdefault("text_cache", False)
    return kandinsky.load(str(_filled({"id": model.id}, folder)["id"]), **options)


def _is_sound(model: Model) -> bool:
    return "v2a" in model.id


def _made(pipe: Any, model: Model, way: Way, folder: Path, *, closely: bool) -> tuple[Values, Mapping[str, Any]]:
    call = {**model.call, **way.call}
    previews: list[np.ndarray] = []

    def on_step(step: int, total: int, preview: torch.Tensor) -> None:
        previews.append(preview.float().numpy().copy())

    if _is_sound(model):
        made = pipe(PROMPT, **call, on_step=on_step)
        # there is no file of the latent: the last preview is it
        return {"latent": previews[-1], "samples": made.audio.samples_SC}, made.recipe
    kept = folder / "kept.safetensors"
    image = call.get("image")
    if isinstance(image, np.ndarray):
        call["image"] = Image.fromarray(image)
    made = pipe(PROMPT, **call, keep_latent=kept, **({"on_step": on_step} if closely else {}))
    if os.environ.get("RANK", "0") != "0":
        return {}, {}  # the first process writes for all
    (latent,) = load_file(kept).values()
    arrays = {"latent": latent, "frames": made.frames}
    if closely:
        arrays["previews"] = np.stack(previews) if len({p.shape for p in previews}) == 1 else previews[-1]
        arrays["finished"] = pipe.finish(kept).frames
        if model.weights != "unets/weights":  # which take seconds
            request = kandinsky.Request(model=model.id, prompt=PROMPT, **_of_request(call))
            arrays["resolved and run"] = pipe.run(pipe.resolve(request)).frames
    return arrays, made.recipe


def _of_request(call: Options) -> dict[str, Any]:
    values = dict(call)
    if "size" in values:
        values["width"], values["height"] = map(int, values.pop("size").split("x"))
    return values


def groups(folder: Path) -> Found:
    """``GROUPS``, by two processes on gloo, started once for all."""
    target = folder / "groups.npz"
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
            str(HERE / "group.py"), str(folder), str(target),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return Found(dict(np.load(target)), json.loads(target.with_suffix(".json").read_text()))


def running(values: list[float]) -> list[float]:
    """Running means of six digits, as logs held them when these numbers were recorded."""
    means: list[float] = []
    for value in values:
        means.append(means[-1] * 0.95 + value * 0.05 if means else value)
    return [round(mean, 6) for mean in means]


def trainers(folder: Path) -> Found:
    """The losses in the log of `kandinsky train`, and the weights it leaves, of every kind of recipe."""
    from tiny import training

    found, room = Found(), folder / "train"

    def run(name: str, recipe: Path) -> Path:
        code, out, err = command("train", str(recipe))
        assert code == 0, err
        written = Path(out.splitlines()[-1])
        lines = [json.loads(line) for line in (recipe.parent / "log.jsonl").read_text().splitlines()]
        found.arrays[f"train {name}: losses"] = np.array(running([line["loss"] for line in lines]))
        for file in sorted(recipe.parent.glob("*.safetensors")):
            if file.name != "words.safetensors":
                state = load_file(file)
                flat = [state[key].astype(np.float32).ravel() for key in sorted(state)]
                found.arrays[f"train {name}: {file.stem}"] = np.concatenate(flat)
        return written

    run("denoiser", training.denoiser(room / "denoiser", 20))
    run("autoencoder", training.autoencoder(room / "autoencoder", 20))
    vae = run("sound autoencoder", training.sound_autoencoder(room / "sound-autoencoder", 20))
    run("sound", training.sound(room / "sound", 20, vae))
    return found


def command(*arguments: str) -> tuple[int, str, str]:
    """`python -m kandinsky …` in this process: exit code, stdout, stderr without notes of the log."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["kandinsky", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_module("kandinsky", run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    said = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    return code, out.getvalue(), "\n".join(said)


PARTS = (*MODELS, "groups", "trainers")


def part(name: str, folder: Path) -> Found:
    """One of ``PARTS``."""
    with settled(folder):
        if name == "groups":
            return groups(folder)
        return trainers(folder) if name == "trainers" else measure(name, folder)


def digest(array: np.ndarray) -> str:
    """sha256 of type, shape and little-endian bytes, its first 16 digits."""
    array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    head = f"{array.dtype.name} {list(array.shape)} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:16]


def summary(array: np.ndarray) -> dict[str, Any]:
    """Shape, mean, deviation and some values at even distances."""
    flat = array.ravel()
    places = np.linspace(0, flat.size - 1, SAMPLES).round().astype(int)
    exact = flat.astype(np.float64)
    return {
        "shape": list(array.shape),
        "mean": _short(exact.mean()),
        "std": _short(exact.std()),
        "samples": [_short(value) for value in flat[places]],
    }


def _short(value: Any) -> float | int:
    """As much as float32 holds."""
    value = float(f"{float(np.float32(value)):.8g}")
    return int(value) if value.is_integer() else value


def distance(made: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """How far two summaries are apart, in deviations; infinite where the shapes differ."""
    if made["shape"] != expected["shape"]:
        return float("inf")
    unit = max(abs(expected["std"]), 1e-6)
    pairs = zip((*made["samples"], made["mean"], made["std"]),
                (*expected["samples"], expected["mean"], expected["std"]), strict=True)  # fmt: skip
    return max(abs(a - b) for a, b in pairs) / unit


def processor() -> str:
    """The class of this machine's arithmetic: vendor, instruction set, matrix units, torch's version."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vendor = re.search(r"vendor_id\s*:\s*(\S+)", text)
    flags = set(re.findall(r"\b(?:avx512_bf16|avx512_vnni|avx_vnni|amx_tile)\b", text))
    words = [vendor.group(1) if vendor else "unknown", torch.backends.cpu.get_cpu_capability(), *sorted(flags)]
    if library.missing() is None:  # they round otherwise than PyTorch's
        words.append("own kernels")
    return " ".join([*words, f"torch {torch.__version__}"])


def _canonical(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Without what is of this machine or this day."""
    kept = {key: value for key, value in recipe.items() if key not in OF_THE_MACHINE}
    made: dict[str, Any] = json.loads(without_paths(json.dumps(kept, sort_keys=True), folder))
    return made


def without_paths(text: str, folder: Path) -> str:
    """The tiny models' folder as FOLDER, this package's as PACKAGE, the repository's as REPOSITORY."""
    package = Path(kandinsky.__file__).parent
    words = {folder: "FOLDER", folder.resolve(): "FOLDER", package: "PACKAGE", Path(__file__).parents[2]: "REPOSITORY"}
    for path, word in words.items():
        text = text.replace(str(path), word)
    return text


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return changed | {key: None for key in before if key not in after}


def _filled(options: Options, folder: Path) -> dict[str, Any]:
    return {
        key: value.replace("{folder}", str(folder)) if isinstance(value, str) else value
        for key, value in options.items()
    }


def in_group(folder: Path) -> Found:
    """What each process of ``groups`` does."""
    found = Found()
    for title, (name, way) in GROUPS.items():
        model = MODELS[name]
        arrays, recipe = _made(_load(model, way, folder), model, way, folder, closely=False)
        found.arrays |= {f"two processes, {title}: {what}": array for what, array in arrays.items()}
        found.recipes[f"two processes, {title}"] = _canonical(recipe, folder)
    return found
