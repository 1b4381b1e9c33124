"""The recipe of a result: what made it, stored in the file's own metadata, and the command that makes it again.

| suffix | where the recipe is |
|---|---|
| .mp4, .webm, .mov, .mkv, .wav, .flac | the container's `comment` tag, JSON |
| .gif | the comment extension, JSON |
| .webp | EXIF ImageDescription, JSON |
| .png | a tEXt chunk named `kandinsky`, JSON |
| a folder of frames | the tEXt chunk of each frame |
| .y4m | a file beside it, `NAME.y4m.json`: FFmpeg reads no header of more than 128 characters |

A file may come from anywhere, so its contents are checked: every recipe that leaves this module is a ``Recipe``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

import kandinsky
from kandinsky.diffusion import caching
from kandinsky.errors import RequestError
from kandinsky.files import listed
from kandinsky.media import container
from kandinsky.media.image import opened, quiet
from kandinsky.model.checks import allowed, fits, hints_of
from kandinsky.model.timeline import prompts_at
from kandinsky.printing import shell_command

SLOWEST_FPS, FASTEST_FPS = 0.001, 1000.0

PNG_KEY = "kandinsky"
AUDIO_ENDINGS = (".wav", ".flac")
EXIF_IMAGE_DESCRIPTION = 0x010E
MOST_CHARACTERS = 2**20  # Pillow's limit for text in a PNG
_DEEPEST = 64  # depth of recipes within recipes
# the smallest numbers that make sense
_LEAST = {"seed": 0, "seconds": 0, **dict.fromkeys(("width", "height", "frames", "steps", "windows"), 1)}
RAW = ".y4m"
IMAGES = (".gif", ".webp", ".png", ".jpg", ".jpeg")
_VERSIONED = ("torch", "transformers", "diffusers", "tokenizers", "numpy", "av")


class Given(TypedDict, total=False):
    """A file that a result was made from.

    Attributes:
        file: Its path; None for one from memory.
        sha256: Digest of the file.
        given: Size as given.
        used: Size as used.
        fit: How it was fitted.
        grow: Pixels by which a mask was grown.
        recipe: Its own recipe, if it has one.
    """

    file: str | None
    sha256: str
    given: str
    used: str
    fit: str
    grow: int
    recipe: dict[str, Any]


class GivenCondition(Given, total=False):
    """Known frames or a source that a result was made from: a file, and the values of the request.

    Attributes:
        at: Of known frames, their place in the result.
        cut: The part that was used.
        source: True for a source.
        strength: Of a source.
        span: Of a source.
        place: Of a source.
        mask: Of a source, the mask's file; None for one from memory.
        prompt: Of a source.
        control: True for a control.
        reference: True for a reference.
        branch: Of these, the file of the branch; absent for the model's own.
        branch_sha256: Its digest.
        signal: Of a control, what the branch is shown.
        is_map: Of a control, whether its clip shows that already.
        steps: Of these, the share of the steps.
    """

    at: int | str
    cut: str
    source: bool
    strength: float
    span: str
    place: str
    mask: str | None
    prompt: str
    control: bool
    reference: bool
    branch: str | None
    branch_sha256: str
    signal: str
    is_map: bool
    steps: str


class GivenPrompt(TypedDict, total=False):
    """A prompt for a part of a clip, as a request gives it.

    Attributes:
        prompt: The prompt.
        at: Where it begins.
        until: Where it ends.
    """

    prompt: str
    at: float | str
    until: float | str


class UsedLora(TypedDict):
    source: str
    scale: float


class UsedCache(TypedDict, total=False):
    option: str


class UsedSound(TypedDict):
    model: str


Interpolated = TypedDict("Interpolated", {"factor": float, "from": dict[str, Any]}, total=False)


class Recipe(TypedDict, total=False):
    """What made a result; a file may hold null for any of these, and other keys, whose values are plain JSON."""

    kandinsky: str
    model: str
    revision: str
    prompt: str
    expanded_prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    seconds: float
    frames: int
    fps: float
    rate: str
    motion: str
    steps: int
    guidance: float
    image_guidance: float
    interpolation_guidance: float
    shift: float
    noise: str
    image: Given
    mask: Given
    conditions: list[GivenCondition]
    resample: int
    prompt_at: list[GivenPrompt]
    fade: float
    overlap: float
    loop: bool
    upscale: str
    upscale_strength: float
    video: Given
    states: str
    sound: UsedSound
    interpolated: Interpolated
    cache: UsedCache
    quantize: dict[str, str]
    tiling: str
    backends: str
    attention: str
    kept_blocks: float
    lora: list[UsedLora]
    unused_words: list[str]
    timeline: list[dict[str, Any]]
    first_frame: int
    frames_sha256: str
    windows: int
    dtype: str
    device: str
    versions: dict[str, str]


def build(
    settings: Mapping[str, Any], *, revision: str, dtype: str, device: str, kernels: str | None = None
) -> dict[str, Any]:
    """Build the recipe of one result.

    Args:
        settings: Model, prompt, seed and the rest (``Job.settings()``).
        revision: Revision of the weights.
        dtype: Compute type, such as `float32`.
        device: Device, such as `cpu`.
        kernels: What large work on the processor was done by; one of the versions that change last bits.

    Returns:
        The recipe, as plain values.
    """
    values = dict(settings)
    model = values.pop("model")
    head = {"kandinsky": kandinsky.__version__, "model": model, "revision": revision}
    known = versions() | ({} if kernels is None else {"kernels": kernels})
    return {**head, **values, "dtype": dtype, "device": device, "versions": known}


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result, without importing them."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def to_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as one line of ASCII JSON, since not every container preserves other characters."""
    return json.dumps(recipe, ensure_ascii=True, separators=(",", ":"), sort_keys=False)


def from_text(text: str | None) -> Recipe | None:
    """Read a recipe; the inverse of ``to_text``.

    Args:
        text: Text from a file's metadata.

    Returns:
        The recipe, or None for other text, such as another program's comment.

    Raises:
        RequestError: The text is a recipe, but a broken one.
    """
    if not text or not text.startswith("{"):
        return None
    if len(text) > MOST_CHARACTERS:
        raise RequestError(f"a recipe of {len(text)} characters is not read: {MOST_CHARACTERS} are allowed")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_recipe = isinstance(values, dict) and values.get("kandinsky") is not None
    return checked(values) if is_recipe else None


def checked(values: object) -> Recipe:
    """Check that values form a recipe.

    Args:
        values: Values from a file.

    Returns:
        The recipe.

    Raises:
        RequestError: A value is not allowed in a recipe; the message names it.
    """
    if not isinstance(values, Mapping):
        raise RequestError(f"a recipe must be a JSON object, not `{type(values).__name__}`")
    _check_plain(values, "recipe", 0)
    hints = hints_of(Recipe)
    for key, value in values.items():
        hint = hints.get(key, Any)
        if value is not None and not _is_right(key, value, hint):
            shown = json.dumps(value)
            least = " above 0" if key == "fps" else f", {_LEAST[key]} or more" if key in _LEAST else ""
            raise RequestError(
                f"the recipe's `{key}` must be {allowed(hint)}{least}, not "
                f"`{shown if len(shown) <= 60 else shown[:60] + '…'}`"
            )
    return cast(Recipe, {key: value for key, value in values.items() if value is not None or key not in hints})


def _is_right(key: str, value: Any, hint: Any) -> bool:
    if not fits(value, hint):
        return False
    if key == "model":
        return bool(value.strip())
    if key == "sound":
        return bool(str(value.get("model") or "").strip())
    if key == "mask":
        return (value.get("grow") or 0) >= 0
    if key == "fps":
        return bool(SLOWEST_FPS <= value <= FASTEST_FPS)
    return key not in _LEAST or value >= _LEAST[key]


def needs(recipe: Recipe, *keys: str) -> None:
    """Refuse a recipe without these keys.

    Raises:
        RequestError: A key is missing.
    """
    for key in keys:
        if key not in recipe:
            raise RequestError(f"the recipe has no `{key}`")


def beside(path: str | Path) -> Path:
    """The file of the recipe of raw video, which holds none itself: `x.y4m.json` for `x.y4m`."""
    return Path(f"{path}.json")


def read(path: Path) -> Recipe:
    """Read the recipe stored in a result.

    Args:
        path: A file or a folder of frames.

    Returns:
        The recipe.

    Raises:
        RequestError: The file does not exist, cannot be read, or has no recipe or a broken one.
    """
    path = Path(path)
    if path.is_dir():
        frames = listed(path, ".png")
        if not frames:
            raise RequestError(f"`{path}` holds no frames (*.png)")
        path = frames[0]
    if not path.is_file():
        raise RequestError(f"`{path}` is not a file" if path.exists() else f"`{path}` does not exist")
    readers = dict.fromkeys(container.FORMATS, _of_container) | dict.fromkeys(IMAGES, _of_image)
    readers[RAW] = _of_raw
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"`{path}` is of no kind that carries a recipe: {', '.join(sorted(readers))}")
    text = reader(path)
    try:
        recipe = from_text(text)
    except RequestError as error:
        raise RequestError(f"`{path}`: {error}") from error
    if recipe is None:
        raise RequestError(f"`{path}` carries no recipe: it was not written by this program, or was converted since")
    return recipe


def read_if_any(path: Path) -> Recipe:
    """The recipe stored in a result; empty if there is none that can be read."""
    try:
        return read(path)
    except RequestError:
        return {}


def command(recipe: Mapping[str, Any], path: str | Path = "") -> str:
    """The shell command that makes a result again, on one line.

    Args:
        recipe: What made it.
        path: Where it was read; a file of audio alone is asked for as one.

    Returns:
        The command.

    Raises:
        RequestError: The recipe has no model or no prompt, or is broken.
    """
    given = cast("dict[str, Any]", checked(recipe))
    needs(cast(Recipe, given), "model", "prompt")
    if "interpolated" in given:
        return _interpolation(given)
    if "timeline" in given:
        words = ["kandinsky", "live", "--replay", str(path) if path else "FILE", "--output", "again.y4m"]
        return shell_command([*words, *(["--device", given["device"]] if "device" in given else [])])
    prompt = given["prompt"]
    is_dashed = prompt.startswith("-")  # only after `--` it is no option, and nothing can follow there
    words = ["kandinsky", "generate", *([] if is_dashed else [prompt]), "--model", given["model"]]
    if "width" in given and "height" in given:
        words += ["--size", f"{given['width']}x{given['height']}"]
    # a frame rate chosen by name also determines the length
    length = ("rate", "--fps") if "rate" in given else ("seconds", "--seconds")
    for key, option in (
        length,
        ("motion", "--motion"),
        ("image_guidance", "--image-guidance"),
        ("interpolation_guidance", "--interpolation-guidance"),
        ("steps", "--steps"),
        ("guidance", "--guidance"),
        ("shift", "--shift"),
        ("negative_prompt", "--negative"),
        ("seed", "--seed"),
        ("dtype", "--dtype"),
        ("device", "--device"),
    ):
        # Without guidance there is no second pass, so a negative prompt has no effect.
        if key in given and not (key == "negative_prompt" and given.get("guidance") == 1):
            words += [option, _plain(given[key])]
    if image := given.get("image"):
        words += ["--image", image.get("file") or "IMAGE"]  # one from memory has no name
    if video := given.get("video"):
        words += ["--video", video.get("file") or "VIDEO"]
        if (ending := Path(path).suffix.lower()) in AUDIO_ENDINGS:
            words += ["--audio-only", "--format", ending[1:]]
    if sound := given.get("sound"):
        words += ["--sound", "--sound-model", str(sound["model"])]
    if states := given.get("states"):
        words += ["--states", states]
    if mask := given.get("mask"):
        words += ["--mask", mask.get("file") or "MASK"]
        words += ["--mask-grow", str(mask["grow"])] if mask.get("grow") else []
    for one in given.get("conditions", []):
        words += _condition(one)
    if resample := given.get("resample"):
        words += ["--resample", str(resample)]
    for told in prompts_at(given.get("prompt_at")):
        words += ["--prompt-at", told.written()]
    if fade := given.get("fade"):
        words += ["--fade", _plain(fade)]
    if overlap := given.get("overlap"):
        words += ["--overlap", f"{_plain(overlap)}s"]
    if given.get("loop"):
        words.append("--loop")
    if upscale := given.get("upscale"):
        words += ["--upscale", upscale]
        if (strength := given.get("upscale_strength")) is not None:
            words += ["--upscale-strength", _plain(strength)]
    if quantize := given.get("quantize"):
        words += ["--quantize", ",".join(f"{part}={scheme}" for part, scheme in quantize.items())]
    if tiling := given.get("tiling"):
        words += ["--tiling", tiling]
    if backends := given.get("backends"):
        words += ["--backends", backends]
    if attention := given.get("attention"):
        words += ["--attention", attention]
    if cache := caching.option_of(given):
        words += ["--cache", cache]
    for lora in given.get("lora", []):
        words += ["--lora", f"{lora['source']}:{_plain(lora['scale'])}"]
    if expanded := given.get("expanded_prompt"):
        words += ["--expanded-prompt", expanded]
    return shell_command([*words, *(["--", prompt] if is_dashed else [])])


def _condition(one: Mapping[str, Any]) -> list[str]:
    """The words of known frames, a source, a control or a reference."""
    if kind := next((kind for kind in ("control", "reference") if one.get(kind)), ""):
        file = f"[{one['cut']}]" if one.get("cut") else ""
        words = [f"--{kind}", f"{one.get('file') or kind.upper()}{file}"]
        words += ["--branch", one["branch"] or "BRANCH"] if "branch" in one else []
        if one.get("strength", 1) != 1:
            words += [f"--{kind}-strength", _plain(one["strength"])]
        return words + (["--control-steps", one["steps"]] if kind == "control" and one.get("steps") else [])
    cut = f"[{one['cut']}]" if one.get("cut") else ""
    if not one.get("source"):
        return ["--known", f"{one.get('file') or 'FILE'}{cut}@{one.get('at', 0)}"]
    words = ["--video", f"{one.get('file') or 'VIDEO'}{cut}"]
    for key, option in (("strength", "--strength"), ("span", "--span"), ("place", "--place"), ("grow", "--mask-grow"),
                        ("prompt", "--source-prompt")):  # fmt: skip
        if one.get(key):
            words += [option, _plain(one[key])]
    return [*words, "--mask", one["mask"] or "MASK"] if "mask" in one else words


def _interpolation(given: Mapping[str, Any]) -> str:
    """The command that raises a clip's frame rate again; which file it was given is not recorded."""
    words = ["kandinsky", "interpolate", "VIDEO", "--output", "OUTPUT.mp4", "--model", given["model"]]
    for key, option in (
        ("fps", "--fps"),
        ("prompt", "--prompt"),
        ("steps", "--steps"),
        ("interpolation_guidance", "--guidance"),
        ("seed", "--seed"),
        ("dtype", "--dtype"),
        ("device", "--device"),
    ):
        if given.get(key, "") != "":
            words += [option, _plain(given[key])]
    return shell_command(words)


def _plain(value: Any) -> str:
    """A number the way a person types it, without losing digits."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _of_container(path: Path) -> str | None:
    with container.reading(path, "file") as opened_:
        tags = {key.lower(): value for key, value in opened_.metadata.items()}
    return tags.get("comment")


def _of_raw(path: Path) -> str | None:
    place = beside(path)
    try:
        with place.open(encoding="ascii", errors="replace") as file:
            return file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise RequestError(
            f"raw video carries no recipe, and `{place}`, where the one of `{path}` would be, cannot be read "
            f"({error.strerror}): give a file that carries one, such as .mp4, .webm or .png"
        ) from error


def _of_image(path: Path) -> str | None:
    with opened(path, f"`{path}`") as image, quiet():
        if image.format in ("WEBP", "JPEG"):
            text = image.getexif().get(EXIF_IMAGE_DESCRIPTION)
        else:
            text = image.info.get("comment" if image.format == "GIF" else PNG_KEY)
    return (
        text.decode("ascii", errors="replace") if isinstance(text, bytes) else text if isinstance(text, str) else None
    )


def _check_plain(value: object, name: str, depth: int) -> None:
    """Refuse what no result holds: excessive nesting, non-finite numbers, text that cannot be printed or typed."""
    if depth > _DEEPEST:
        raise RequestError(f"the recipe is nested more than {_DEEPEST} levels deep")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(key, "key", depth + 1)
            _check_plain(entry, f"{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_plain(entry, name, depth + 1)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RequestError(f"the recipe's `{name}` holds a NUL or a lone surrogate, which is not valid text")
    elif isinstance(value, int | float) and not abs(value) < 2**64:  # NaN too
        raise RequestError(f"the recipe's `{name}` is a number that is not finite or too large")
