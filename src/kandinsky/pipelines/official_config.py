"""The official YAML files as cards: one checkpoint each, with paths into a local `weights/` folder.

Read strictly: an unknown key is an error, and so is a value that no code of this library honours.
Source: kandinskylab/kandinsky-5@6e2a805, configs/*.yaml; ai-forever/Kandinsky-5@873617b, configs/*.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kandinsky.cards import Card, Clip, Component, Part, Sampling
from kandinsky.errors import BackendError, RequestError

# kandinsky/t2v_pipeline.py: RESOLUTIONS, as WIDTHxHEIGHT
SIZES = {
    512: ("512x512", "512x768", "768x512"),
    1024: ("1024x1024", "640x1408", "1408x640", "768x1280", "1280x768", "896x1152", "1152x896"),
}
DEFAULT_SIZE = {512: "768x512", 1024: "1280x768"}
VIDEO_NEGATIVE_PROMPT = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, "
    "walking backwards"
)
CALL_SHIFT = 10.0  # default of `scheduler_scale` in the official call; the YAML's own value is read by no official code
FPS = 24.0
# positions of the 3-D rotary table on the time axis: 128 latent frames
MAX_SECONDS = 127 * 4 // 24

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
_OPTIONAL = frozenset({"magcache", "scheduler_scale"})


def read(path: Path, *, bases: Iterable[Path] | None = None) -> Card:
    """The card of one official YAML file.

    Args:   bases: folders that relative checkpoint paths are looked for under, best first; by default the working
            directory (as officially), then the file's folder and the one above it.
    Raises: RequestError for a file that is no such YAML; BackendError for a model this version does not run.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"configuration `{path}` is not there: give one of the official YAML files")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration `{path}` is not valid YAML: {' '.join(str(error).split())}") from error
    folder = path.resolve().parent
    return card_of(values, name=path.stem, bases=list(bases or (Path.cwd(), folder, folder.parent)))


def card_of(values: Mapping[str, Any], *, name: str, bases: list[Path]) -> Card:
    """The card of a parsed official YAML file; see ``read``."""
    where = f"configuration `{name}`"
    tree = _table(values, "", where)
    metrics, model = _table(tree["metrics"], "metrics", where), _table(tree["model"], "model", where)
    vae = _table(model["vae"], "model.vae", where)
    texts = _table(model["text_embedder"], "model.text_embedder", where)
    qwen = _table(texts["qwen"], "model.text_embedder.qwen", where)
    clip = _table(texts["clip"], "model.text_embedder.clip", where)
    magcache = _table(tree["magcache"], "magcache", where) if tree.get("magcache") else {}
    if vae["name"] not in ("hunyuan", "flux"):
        raise RequestError(f"{where}: model.vae.name `{vae['name']}` is unknown: use `hunyuan` or `flux`")
    if vae["name"] == "flux":
        raise BackendError(f"{where} describes an image model, which is not built yet: use a text-to-video one")
    resolution = metrics["resolution"]
    if resolution not in SIZES:
        raise RequestError(f"{where}: metrics.resolution `{resolution}` is unknown: use 512 or 1024")

    dit = dict(model["dit_params"])
    for key, size in (("in_text_dim", qwen["emb_size"]), ("in_text_dim2", clip["emb_size"])):
        if dit.setdefault(key, size) != size:
            raise RequestError(f"{where}: dit_params.{key} is {dit[key]}, but the text encoder's emb_size is {size}")

    def part(given: str, part_name: str = "", *, is_folder: bool) -> Part:
        target = _absolute(given, bases)
        entry = f"{target.name}/" if is_folder else target.name
        return Part(repo=str(target.parent), files=(entry,), name=part_name)

    return Card(
        id=name,
        family="kandinsky5",
        task="text-to-video",
        title=f"Kandinsky 5.0, {name}",
        licence="MIT",
        parameters=0,
        source=name,
        dit=Component("kandinsky5.dit", (part(model["checkpoint_path"], is_folder=False),), dit),
        text=Component(
            "qwen-clip",
            (
                part(qwen["checkpoint_path"], "qwen", is_folder=True),
                part(clip["checkpoint_path"], "clip", is_folder=True),
            ),
            {
                "qwen_max_length": int(qwen["max_length"]),
                "clip_max_length": int(clip["max_length"]),
                "template": "video",
                "image_template": "image",
            },
        ),
        vae=Component("hunyuan", (part(vae["checkpoint_path"], is_folder=True),)),
        sampling=Sampling(
            steps=int(model["num_steps"]),
            guidance=float(model["guidance_weight"]),
            shift=float(metrics.get("scheduler_scale", CALL_SHIFT)),
            rope_scale=_scale(metrics["scale_factor"], where),
            negative_prompt=VIDEO_NEGATIVE_PROMPT,
            noise="bfloat16",
            attention=dict(model["attention"]),
            mag_ratios=tuple(float(ratio) for ratio in magcache.get("mag_ratios", ())),
        ),
        clip=Clip(
            fps=FPS,
            seconds=5.0,
            min_seconds=0.0,
            max_seconds=float(MAX_SECONDS),
            sizes=SIZES[resolution],
            default_size=DEFAULT_SIZE[resolution],
            channels=int(dit.get("in_visual_dim", 16)),
        ),
    )


def _table(values: Any, path: str, where: str) -> dict[str, Any]:
    known = _KEYS[path]
    if not isinstance(values, Mapping):
        raise RequestError(f"{where}: `{path or 'the file'}` must be a table of {', '.join(sorted(known))}")
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise RequestError(
                f"{where}: unknown key `{prefix}{key}`" + (f", did you mean `{prefix}{near[0]}`" if near else "")
            )
    if gone := sorted(known - _OPTIONAL - set(values)):
        raise RequestError(f"{where}: key `{prefix}{gone[0]}` is missing")
    return dict(values)


def _scale(values: Any, where: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise RequestError(f"{where}: metrics.scale_factor must have 3 numbers, not `{values}`")
    t, h, w = (float(value) for value in values)
    return (t, h, w)


def _absolute(given: str, bases: list[Path]) -> Path:
    path = Path(given).expanduser()
    if path.is_absolute():
        return path
    for base in bases:
        if (base / path).exists():
            return (base / path).resolve()
    return (bases[0] / path).resolve()
