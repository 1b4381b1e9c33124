"""The official YAML files as cards: one checkpoint each, with paths into a local `weights/` folder.

Read strictly: an unknown key is an error, and so is a value that this library does not use. A file does not say
what its model is for; as on the official command line its name does, and where it does not, its contents do.
Source: kandinskylab/kandinsky-5@6e2a805, configs/*.yaml; ai-forever/Kandinsky-5@873617b, configs/*.yaml.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.family import FAMILY
from kandinsky.files import local_path
from kandinsky.model.card import Card, Clip, Component, FileSet, Sampling, SizeClass
from kandinsky.model.family import Cards
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.printing import escaped
from kandinsky.weights.untrusted import shown

log = logging.getLogger(__name__)
# kandinsky/t2v_pipeline.py: RESOLUTIONS, as WIDTHxHEIGHT
SIZES = {
    512: ("512x512", "512x768", "768x512"),
    1024: ("1024x1024", "640x1408", "1408x640", "768x1280", "1280x768", "896x1152", "1152x896"),
}
VIDEO_NEGATIVE_PROMPT = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, "
    "walking backwards"
)
FPS = 24.0
SMALLEST, LARGEST = 1e-3, 100_000  # of any number in such a file
# positions of the 3-D rotary table on the time axis: 128 latent frames
MAX_SECONDS = 127 * 4 // 24
# kandinsky/i2v_pipeline.py: pixels, and multiple of the sides, that an image is brought to
IMAGE_FIT = {512: SizeClass(area=512 * 768, multiple=16), 1024: SizeClass(area=1024 * 1024, multiple=128)}


@dataclass(frozen=True, slots=True)
class Calls:
    """Defaults of the official calls of one task, which the YAML files do not contain.

    Attributes:
        vae: The autoencoder it needs.
        shift: Default of `scheduler_scale`; no official code reads the YAML's own value.
        seconds: Default duration; 0 for stills.
        max_seconds: Longest duration; 0 for stills.
        temporal: Pixel frames per latent frame.
        fit: See ``Clip``.
    """

    vae: str
    shift: float
    negative_prompt: str
    template: str
    default_size: Mapping[int, str]
    seconds: float
    max_seconds: float
    temporal: int
    fit: str = "list"
    normalize_first_frame: bool = False


_VIDEO = Calls(
    vae="hunyuan",
    shift=10.0,
    negative_prompt=VIDEO_NEGATIVE_PROMPT,
    template="video",
    default_size={512: "768x512", 1024: "1280x768"},
    seconds=5.0,
    max_seconds=MAX_SECONDS,
    temporal=4,
)
_IMAGE = Calls(
    vae="flux",
    shift=3.0,
    negative_prompt="",
    template="image",
    default_size={512: "512x512", 1024: "1024x1024"},
    seconds=0.0,
    max_seconds=0.0,
    temporal=1,
)
CALLS = {
    "text-to-video": _VIDEO,
    "image-to-video": replace(_VIDEO, fit="area", normalize_first_frame=True),
    "text-to-image": _IMAGE,
    "image-editing": _IMAGE,
}
# in this order, as the official command line looks at the path of the file
_MARKERS = {"t2i": "text-to-image", "i2i": "image-editing", "i2v": "image-to-video", "t2v": "text-to-video"}

_KEYS: dict[str, frozenset[str]] = {
    "": frozenset({"metrics", "model", "magcache"}),
    "metrics": frozenset({"scheduler_scale", "scale_factor", "resolution"}),
    "model": frozenset(
        {"checkpoint_path", "num_steps", "guidance_weight", "dit_params", "attention", "vae", "text_embedder"}
    ),
    "model.vae": frozenset({"checkpoint_path", "name"}),
    "model.text_embedder": frozenset({"qwen", "clip"}),
    "model.text_embedder.qwen": frozenset({"checkpoint_path", "emb_size", "max_length"}),
    "model.text_embedder.clip": frozenset({"checkpoint_path", "emb_size", "max_length"}),
    "magcache": frozenset({"mag_ratios"}),
}
# hyper-parameters of the transformer; all have defaults
DIT_KEYS = frozenset(
    {"in_visual_dim", "in_text_dim", "in_text_dim2", "time_dim", "out_visual_dim", "patch_size", "model_dim", "ff_dim"}
    | {"num_text_blocks", "num_visual_blocks", "axes_dims", "visual_cond", "instruct_type"}
)
_OPTIONAL = frozenset({"magcache", "scheduler_scale"})


def read(path: Path, *, cards: Cards, bases: Iterable[Path] | None = None, task: str | None = None) -> Card:
    """The card of one official YAML file.

    Args:
        path: The file.
        cards: The catalogue.
        bases: Folders that relative checkpoint paths are looked for under, best first; by default the working directory
            (as officially), then the file's folder and the one above it.
        task: What the model is for, a key of ``CALLS``; by default the file's name and contents tell.

    Raises:
        RequestError: The file is not such YAML, a value has another type or is out of range, or it is for another task.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"configuration `{path}` is not there: give one of the official YAML files")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # beside its own error, it lets through those of numbers and dates that cannot be, and of deep nesting
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = shown(" ".join(str(error).split()))
        raise RequestError(f"configuration `{escaped(path)}` is not valid YAML: {reason}") from error
    folder = path.resolve().parent
    return card_of(
        values, name=path.stem, cards=cards, bases=list(bases or (Path.cwd(), folder, folder.parent)), task=task
    )


def card_of(values: Mapping[str, Any], *, name: str, cards: Cards, bases: list[Path], task: str | None = None) -> Card:
    """The card of a parsed official YAML file; see ``read``."""
    where = f"configuration `{name}`"
    tree = _table(values, "", where)
    metrics, model = _table(tree["metrics"], "metrics", where), _table(tree["model"], "model", where)
    vae = _table(model["vae"], "model.vae", where)
    texts = _table(model["text_embedder"], "model.text_embedder", where)
    qwen = _table(texts["qwen"], "model.text_embedder.qwen", where)
    clip = _table(texts["clip"], "model.text_embedder.clip", where)
    magcache = _table(tree["magcache"], "magcache", where) if tree.get("magcache") else {}
    if vae["name"] not in ["hunyuan", "flux"]:
        raise RequestError(f"{where}: model.vae.name `{vae['name']}` is unknown: use `hunyuan` or `flux`")
    resolution = metrics["resolution"]
    if not isinstance(resolution, int) or resolution not in SIZES:
        raise RequestError(f"{where}: metrics.resolution `{resolution}` is unknown: use 512 or 1024")

    task = task or _task(name, model)
    calls = CALLS[task]
    if vae["name"] != calls.vae:
        raise RequestError(
            f"{where} is for {task}, which needs model.vae.name `{calls.vae}`, not `{vae['name']}`: is it the file of "
            "another model?"
        )

    for key in ("attention", "dit_params"):
        if not isinstance(model[key], Mapping):
            raise RequestError(f"{where}: model.{key} must be a table, not `{shown(model[key])}`")
    AttentionSpec.from_dict(model["attention"])  # refuses what has no effect
    dit = dict(model["dit_params"])
    _refuse_unknown(dit, DIT_KEYS, "model.dit_params.", where)
    for key, size in (("in_text_dim", qwen["emb_size"]), ("in_text_dim2", clip["emb_size"])):
        if dit.setdefault(key, size) != size:
            raise RequestError(f"{where}: dit_params.{key} is {dit[key]}, but the text encoder's emb_size is {size}")

    checkpoint = Path(str(model["checkpoint_path"])).name
    if "nocfg" in name and "nocfg" not in checkpoint:
        log.warning("%s names `%s`: the hub has a file of its own for the no-CFG model", where, checkpoint)

    def part(given: object, part_name: str = "", *, is_folder: bool) -> FileSet:
        if not isinstance(given, str):
            raise RequestError(f"{where}: checkpoint_path must be text, not `{shown(given)}`")
        target = _absolute(local_path(given, f"{where}: checkpoint_path"), bases)
        entry = f"{target.name}/" if is_folder else target.name
        return FileSet(repo=str(target.parent), files=(entry,), name=part_name)

    return Card(
        id=name,
        family=FAMILY,
        task=task,
        title=f"Kandinsky 5.0, {name}",
        licence="MIT",
        # of the released networks; a file does not say
        parameters=next((card.parameters for card in cards.all() if card.dit.params == dit), 0),
        source=name,
        dit=Component("kandinsky5.dit", (part(model["checkpoint_path"], is_folder=False),), dit),
        text=Component(
            "qwen-clip",
            (
                part(qwen["checkpoint_path"], "qwen", is_folder=True),
                part(clip["checkpoint_path"], "clip", is_folder=True),
            ),
            {
                "qwen_max_length": _whole(qwen["max_length"], "model.text_embedder.qwen.max_length", where),
                "clip_max_length": _whole(clip["max_length"], "model.text_embedder.clip.max_length", where),
                "template": calls.template,
                "image_template": "image",
            },
        ),
        vae=Component(vae["name"], (part(vae["checkpoint_path"], is_folder=True),)),
        sampling=Sampling(
            steps=_whole(model["num_steps"], "model.num_steps", where),
            guidance=_number(model["guidance_weight"], "model.guidance_weight", where),
            shift=_number(metrics.get("scheduler_scale", calls.shift), "metrics.scheduler_scale", where),
            rope_scale=_scale(metrics["scale_factor"], where),
            negative_prompt=calls.negative_prompt,
            noise="bfloat16",
            attention=dict(model["attention"]),
            mag_ratios=_numbers(magcache.get("mag_ratios", []), "magcache.mag_ratios", where),
            normalize_first_frame=calls.normalize_first_frame,
        ),
        clip=Clip(
            fps=FPS,
            seconds=calls.seconds,
            min_seconds=0.0,
            max_seconds=float(calls.max_seconds),
            sizes=SIZES[resolution],
            default_size=calls.default_size[resolution],
            temporal=calls.temporal,
            channels=_whole(dit.get("in_visual_dim", 16), "model.dit_params.in_visual_dim", where),
            fit=calls.fit,
        ),
        classes={str(resolution): IMAGE_FIT[resolution]},
    )


def _task(name: str, model: Mapping[str, Any]) -> str:
    """What a model is for: by the name of the file, of its checkpoint, then by its networks."""
    for text in (name, Path(str(model["checkpoint_path"])).name):
        for marker, task in _MARKERS.items():
            if marker in text.lower():
                return task
    if model["vae"]["name"] != "flux":
        return "text-to-video"
    return "image-editing" if model["dit_params"].get("instruct_type") == "channel" else "text-to-image"


def _table(values: Any, path: str, where: str) -> dict[str, Any]:
    known = _KEYS[path]
    if not isinstance(values, Mapping):
        raise RequestError(f"{where}: `{path or 'the file'}` must be a table of {', '.join(sorted(known))}")
    prefix = f"{path}." if path else ""
    _refuse_unknown(values, known, prefix, where)
    if gone := sorted(known - _OPTIONAL - set(values)):
        raise RequestError(f"{where}: key `{prefix}{gone[0]}` is missing")
    return dict(values)


def _refuse_unknown(values: Mapping[str, Any], known: frozenset[str], prefix: str, where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise RequestError(
                f"{where}: unknown key `{prefix}{key}`" + (f", did you mean `{prefix}{near[0]}`" if near else "")
            )


def _scale(values: Any, where: str) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise RequestError(f"{where}: metrics.scale_factor must have 3 numbers, not `{shown(values)}`")
    t, h, w = _numbers(values, "metrics.scale_factor", where)
    return (t, h, w)


def _numbers(values: Any, key: str, where: str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise RequestError(f"{where}: {key} must be a list of numbers, not `{shown(values)}`")
    return tuple(_number(value, key, where, least=0.0) for value in values)


def _number(value: Any, key: str, where: str, *, least: float = SMALLEST) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
        raise RequestError(f"{where}: {key} must be a number from {least} to {LARGEST:,}, not `{shown(value)}`")
    return float(value)


def _whole(value: Any, key: str, where: str) -> int:
    if (number := _number(value, key, where)) % 1:
        raise RequestError(f"{where}: {key} must be a whole number, not `{shown(value)}`")
    return int(number)


def _absolute(path: Path, bases: list[Path]) -> Path:
    if path.is_absolute():
        return path
    for base in bases:
        if (base / path).exists():
            return (base / path).resolve()
    return (bases[0] / path).resolve()
