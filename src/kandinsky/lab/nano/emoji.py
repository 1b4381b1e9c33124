"""The pictures nano learns from: animated 3-D emoji over plain backgrounds.

``build`` fetches the packages with the npm client, decodes every animated picture once, and leaves a cache::

    packages/anim-{1..4}/…            the pictures (MIT), packages/emojibase/… the words (MIT)
    clips-128x25.npy                  uint8 [N, T=25, 128, 128, 4], premultiplied RGBA, 12 frames a second
    clips-128x25.json                 {"files": [...N names], "motion": [...N mean absolute frame differences]}

``composite`` then puts one clip over a background colour, at a place, size and camera move: a ``Scene``.
Legend: N clips, T frames.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.errors import BackendError, RequestError

log = logging.getLogger(__name__)

PACKAGES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    **{f"anim-{i}": (f"@lobehub/fluent-emoji-anim-{i}@1.0.0", None) for i in (1, 2, 3, 4)},
    "emojibase": ("emojibase-data@17.0.0", ("package/en/", "package/ru/", "package/LICENSE", "package/package.json")),
}
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
SOURCE_FPS, FPS, FRAMES, SIDE = 24, 12, 25, 128
CACHE = Path(".cache/nano")

# Where the subject's centre stands, as a share of the frame away from the middle (right, down).
POSITIONS = {"left": (-0.2, 0.0), "right": (0.2, 0.0), "top": (0.0, -0.2), "bottom": (0.0, 0.2)}
SCALES = {"small": 0.55, "large": 1.25}
CAMERAS = ("zoom in", "zoom out", "pan left", "pan right")


@dataclass(frozen=True, slots=True)
class Scene:
    """How a subject is shown. ``rgb``: background 0..255. The words are the captions' extra words; None = plain."""

    rgb: tuple[int, int, int]
    position: str | None = None
    scale: str | None = None
    camera: str | None = None


def build(*, cache: Path | str = CACHE) -> Path:
    """Fetch and decode everything nano is trained on; what is already there is kept. Returns the clip file."""
    cache = Path(cache)
    fetch(cache)
    return decode(cache)


def fetch(cache: Path, packages: Mapping[str, tuple[str, tuple[str, ...] | None]] = PACKAGES) -> None:
    """Download npm packages into ``cache/packages``, each with all its files or those that begin so.

    Raises: BackendError where the npm client is missing or fails.
    """
    for name, (spec, members) in packages.items():
        target = cache / "packages" / name
        if (target / "package.json").exists():
            continue
        if shutil.which("npm") is None:
            raise BackendError("`npm` was not found: `kandinsky data nano` fetches its pictures with the npm client")
        download = cache / "npm"
        download.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s", spec)
        done = subprocess.run(
            ["npm", "pack", spec, "--silent", "--pack-destination", str(download)], capture_output=True, text=True
        )
        if done.returncode:
            raise BackendError(f"npm could not fetch `{spec}`: {done.stderr.strip().splitlines()[-1:] or 'no message'}")
        archive = download / done.stdout.strip().splitlines()[-1]
        unpacking = target.with_name(target.name + ".part")
        shutil.rmtree(unpacking, ignore_errors=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                if members is None or member.name.startswith(members):
                    member.name = member.name.removeprefix("package/")
                    tar.extract(member, unpacking, filter="data")
        unpacking.rename(target)
        archive.unlink()


def decode(cache: Path, *, side: int = SIDE, frames: int = FRAMES) -> Path:
    """Decode every animated picture without a skin tone to ``frames`` frames at 12 a second.

    Shorter animations are repeated, as the originals loop. Colours are multiplied by alpha before they are
    made smaller, or dark fringes would appear.
    """
    target = cache / f"clips-{side}x{frames}.npy"
    index = target.with_suffix(".json")
    if target.exists() and index.exists():
        return target
    files = sorted(
        path
        for i in (1, 2, 3, 4)
        for path in (cache / "packages" / f"anim-{i}" / "assets").glob("*.webp")
        if not any(tone in path.stem for tone in SKIN_TONES)
    )
    animated = [path for path in files if _frame_count(path) > 1]
    if not animated:
        raise RequestError(f"no animated pictures below `{cache / 'packages'}`: run `kandinsky data nano` first")
    part = target.with_suffix(".part.npy")
    clips = np.lib.format.open_memmap(part, "w+", np.uint8, (len(animated), frames, side, side, 4))
    motion = []
    for number, path in enumerate(animated):
        clips[number] = decode_one(path, side, frames)
        over_grey = clips[number, ..., :3] + (128 * (1 - clips[number, ..., 3:] / 255.0))
        motion.append(float(np.abs(np.diff(over_grey, axis=0)).mean()))
        if number % 100 == 0:
            log.info("decoded %d of %d", number, len(animated))
    clips.flush()
    names = [str(path.relative_to(cache / "packages")) for path in animated]
    index.write_text(json.dumps({"files": names, "motion": motion}))
    part.rename(target)
    return target


class Clips:
    """The decoded clips, read lazily from the cache."""

    def __init__(self, cache: Path = CACHE, *, side: int = SIDE, frames: int = FRAMES) -> None:
        target = cache / f"clips-{side}x{frames}.npy"
        if not target.exists():
            raise RequestError(f"`{target}` is missing: run `kandinsky data nano --folder {cache}` first")
        self.rgba_NTHWC = np.load(target, mmap_mode="r")
        index = json.loads(target.with_suffix(".json").read_text())
        self.files: list[str] = index["files"]
        self.motion: list[float] = index["motion"]
        self._rows = {name: row for row, name in enumerate(self.files)}

    def __len__(self) -> int:
        return len(self.files)

    def row(self, file: str) -> int:
        """Number of a picture, by its file name below ``packages/``."""
        return self._rows[file]

    def rows(self, files: Iterable[str]) -> list[int]:
        return [self._rows[file] for file in files]


def open_clips(cache: Path) -> Clips:
    """The clips of a folder that ``kandinsky data nano --folder`` filled, decoded if they are not yet.

    Raises:
        RequestError: There are none.
    """
    decode(cache)
    return Clips(cache)


def composite(rgba_THWC: np.ndarray, scene: Scene, *, side: int) -> np.ndarray:
    """Put a premultiplied RGBA clip over a plain background.

    Args:    rgba_THWC: uint8 [T,S,S,4], premultiplied.   side: width and height of the result in pixels.
    Returns: uint8 [T,side,side,3].
    """
    frames, source = len(rgba_THWC), rgba_THWC.shape[1]
    background = np.asarray(scene.rgb, np.float32)
    out = np.empty((frames, side, side, 3), np.uint8)
    x, y = POSITIONS[scene.position] if scene.position else (0.0, 0.0)
    scale = SCALES[scene.scale] if scene.scale else 1.0
    still = scene.position is None and scene.scale is None and scene.camera is None
    for t in range(frames):
        if still:
            picture = Image.fromarray(rgba_THWC[t], "RGBa").resize((side, side), Image.Resampling.BILINEAR)
        else:
            zoom, pan = _camera(scene.camera, t / max(frames - 1, 1))
            span = source / (scale * zoom)  # side of the window on the source that fills the frame
            left = source / 2 - span / 2 - (x + pan) * span
            top = source / 2 - span / 2 - y * span
            picture = window(rgba_THWC[t], left, top, span, side)
        rgba = np.asarray(picture, np.float32)
        out[t] = np.clip(rgba[..., :3] + background * (1 - rgba[..., 3:] / 255.0) + 0.5, 0, 255).astype(np.uint8)
    return out


def _camera(move: str | None, progress: float) -> tuple[float, float]:
    """(zoom, horizontal shift as a share of the frame) at ``progress`` 0..1 of the clip."""
    if move == "zoom in":
        return 0.75 + 0.5 * progress, 0.0
    if move == "zoom out":
        return 1.25 - 0.5 * progress, 0.0
    if move == "pan left":  # the camera turns left: the subject drifts to the right
        return 0.8, -0.2 + 0.4 * progress
    if move == "pan right":
        return 0.8, 0.2 - 0.4 * progress
    return 1.0, 0.0


def window(rgba: np.ndarray, left: float, top: float, span: float, side: int) -> Image.Image:
    """Resample a square window of the picture, transparent outside of it, to side × side."""
    margin = int(np.ceil(max(0.0, -left, -top, left + span - len(rgba), top + span - len(rgba)))) + 1
    padded = np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))
    box = (left + margin, top + margin, left + margin + span, top + margin + span)
    return Image.fromarray(padded, "RGBa").resize((side, side), Image.Resampling.BILINEAR, box=box)


def _frame_count(path: Path) -> int:
    with Image.open(path) as picture:
        return int(getattr(picture, "n_frames", 1))


def decode_one(path: Path, side: int, frames: int) -> np.ndarray:
    step = SOURCE_FPS // FPS
    out = np.empty((frames, side, side, 4), np.uint8)
    with Image.open(path) as picture:
        total = int(getattr(picture, "n_frames", 1))
        wanted = [(t * step) % total for t in range(frames)]
        seen: dict[int, np.ndarray] = {}
        for number in range(max(wanted) + 1):
            picture.seek(number)
            if number in wanted:
                premultiplied = picture.convert("RGBA").convert("RGBa")
                seen[number] = np.asarray(premultiplied.resize((side, side), Image.Resampling.BOX))
    for t, number in enumerate(wanted):
        out[t] = seen[number]
    return out
