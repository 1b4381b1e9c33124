"""The files of a finished job: the result with its recipe, a thumbnail, a sheet of frames to scrub through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.files import beside, replacing
from kandinsky.jobs.order import MEDIA_TYPES
from kandinsky.media.video import write_video
from kandinsky.model.values import Soundtrack, VideoStream

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

THUMBNAIL_PX, TILE_PX, TILES, COLUMNS = 512, 192, 32, 8
PREVIEW_PX, PREVIEW_QUALITY = 256, 70


class Tiles:
    """Keeps, of frames that pass by, what a thumbnail and a sheet show."""

    def __init__(self, count: int) -> None:
        self.count = count
        step = max(1, -(-count // TILES))
        self._wanted = set(range(0, count, step))
        self._middle = count // 2
        self._tiles: list[Image] = []
        self._thumbnail: Image | None = None

    def see(self, number: int, frame_HWC: np.ndarray) -> None:
        """Look at frame ``number``."""
        from PIL import Image

        if number in self._wanted:
            tile = Image.fromarray(frame_HWC)
            tile.thumbnail((TILE_PX, TILE_PX))
            self._tiles.append(tile)
        if number == self._middle:
            self._thumbnail = Image.fromarray(frame_HWC.copy())
            self._thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))

    def write(self, folder: Path, prefix: str) -> dict[str, Any]:
        """Write both images.

        Returns:
            Their names and the sheet's grid, as a result lists them.
        """
        from PIL import Image

        assert self._thumbnail is not None and self._tiles
        names = {"thumbnail": f"{prefix}-thumbnail.webp", "spritesheet": f"{prefix}-spritesheet.jpg"}
        with replacing(folder / names["thumbnail"]) as part:
            self._thumbnail.save(part, "WEBP", quality=85)
        W, H = self._tiles[0].size
        columns = min(COLUMNS, len(self._tiles))
        sheet = Image.new("RGB", (columns * W, -(-len(self._tiles) // columns) * H))
        for place, tile in enumerate(self._tiles):
            sheet.paste(tile, (place % columns * W, place // columns * H))
        with replacing(folder / names["spritesheet"]) as part:
            sheet.save(part, "JPEG", quality=80)
        return {**names, "tiles": {"count": len(self._tiles), "columns": columns, "width": W, "height": H}}


def write_clip(
    stream: VideoStream, folder: Path, prefix: str, form: str, *, look: Callable[[int, int], None]
) -> dict[str, Any]:
    """Decode and write a clip or a still, frame by frame.

    Args:
        stream: The clip; its pieces are consumed.
        folder: Where to write.
        prefix: Begins the names of the files.
        form: The format.
        look: Called with the number of frames that are done, and of all, before each frame; it may raise.

    Returns:
        Names and facts of the files.
    """
    tiles = Tiles(stream.num_frames)
    size: tuple[int, int] = (0, 0)

    def frames() -> Iterator[np.ndarray]:
        nonlocal size
        number = 0
        for piece in stream.pieces:
            for frame_HWC in piece:
                look(number, stream.num_frames)
                tiles.see(number, frame_HWC)
                size = (frame_HWC.shape[1], frame_HWC.shape[0])
                number += 1
                yield frame_HWC[None]
            del piece
        look(number, stream.num_frames)

    watched = dataclasses.replace(stream, pieces=frames())
    name = f"{prefix}-result.{form}"
    write_video(watched, folder / name)
    return {
        "file": name,
        "media_type": MEDIA_TYPES[form],
        "width": size[0],
        "height": size[1],
        "frames": stream.num_frames,
        "fps": stream.fps,
        "seconds": 0.0 if stream.num_frames == 1 else stream.num_frames / stream.fps,
        "seed": stream.seed,
        "recipe": dict(stream.recipe),
        **tiles.write(folder, prefix),
    }


def write_sound(sound: Soundtrack, folder: Path, prefix: str, form: str) -> dict[str, Any]:
    """Write generated audio: the input video with it, or alone.

    Args:
        sound: The audio.
        folder: Where to write.
        prefix: Begins the names of the files.
        form: The format.

    Returns:
        Names and facts of the files.
    """
    name, alone = f"{prefix}-result.{form}", f"{prefix}-audio.wav"
    sound.save(folder / name)
    if form not in ("wav", "flac"):
        sound.save(folder / alone)
    return {
        "file": name,
        "audio": alone if form not in ("wav", "flac") else name,
        "media_type": MEDIA_TYPES[form],
        "seconds": sound.audio.seconds,
        "rate": sound.audio.rate,
        "seed": sound.seed,
        "recipe": dict(sound.recipe),
    }


def write_preview(image: Image, path: Path) -> None:
    """Write a small image of a clip that is being sampled, in the place of the one before."""
    image = image.copy()
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    part = beside(path)
    try:
        image.save(part, "WEBP", quality=PREVIEW_QUALITY, method=0)
        part.replace(path)  # a preview is not worth waiting for the disk
    finally:
        part.unlink(missing_ok=True)


def without_paths(recipe: Mapping[str, Any], loras: Mapping[str, str]) -> dict[str, Any]:
    """A recipe without names of this machine's files.

    Args:
        recipe: The recipe.
        loras: Names of LoRAs, by the path of their file.
    """
    found = dict(recipe)
    for name in ("image", "mask", "video"):
        if isinstance(given := found.get(name), Mapping):
            found[name] = {**given, "file": None}
    if given := found.get("conditions"):
        found["conditions"] = [{key: _without_path(key, value) for key, value in one.items()} for one in given]
    if used := found.get("lora"):
        found["lora"] = [{**one, "source": loras.get(one["source"], one["name"])} for one in used]
    return found


def _without_path(key: str, value: Any) -> Any:
    if key == "branch" and value is not None:
        return Path(value).stem  # as requests name it
    return None if key in ("file", "mask") else value
