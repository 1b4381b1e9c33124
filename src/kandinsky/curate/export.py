"""What a training reads: clips in a folder with ``metadata.jsonl``, or WebDataset shards.

A file is written beside its place and renamed, and one that holds the same already is not written again.
"""

from __future__ import annotations

import io
import json
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kandinsky.curate.clip_work import ENDING, STAGE
from kandinsky.curate.stages import Row, digest
from kandinsky.curate.store import hash_of
from kandinsky.files import remove, replaced, replacing

Format = Literal["folder", "shards"]
CLIPS, METADATA = "clips", "metadata.jsonl"
# what of a scene stands beside its caption
_TOLD = (
    *("id", "raw_id", "width", "height", "duration", "fps"),
    *("dynamicity", "aesthetic_score", "bucket", "bucket_seconds"),
)


def described(scene: Row) -> dict[str, Any]:
    """A scene's line of ``metadata.jsonl``, but for its file name."""
    line: dict[str, Any] = {}
    for caption in scene["captions"] or ():
        name = "_".join(filter(None, ("caption", caption["language"], caption["length"])))
        line.setdefault(name, []).append(caption["text"])
    line = {name: texts[0] if len(texts) == 1 else texts for name, texts in line.items()}
    told = {name: scene[name] for name in _TOLD if scene.get(name) is not None}
    return line | {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}


def write_folder(scenes: Iterable[Row], output: Path) -> bool:
    """Write ``metadata.jsonl``; clips that no line names are removed, and shards too. Whether anything changed."""
    for shard in output.glob("shard-*.tar"):
        remove(shard)
    ids = array("Q")

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for scene in scenes:
                ids.append(hash_of(scene["id"]))
                line = {"file_name": f"{CLIPS}/{scene['id']}{ENDING}", **described(scene)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    is_changed = replaced(output / METADATA, write)
    _sweep(output / CLIPS, ids)
    return is_changed


def write_shards(scenes: Iterable[Row], output: Path, clips: Path, shard_mb: int) -> bool:
    """Write `shard-000000.tar` and on; those that hold the same already are left alone. Whether anything changed."""
    remove(output / METADATA)
    remove(output / CLIPS)
    is_changed = False
    names, ids = list[str](), array("Q")
    for number, group in enumerate(_groups(scenes, shard_mb << 20)):
        name = f"shard-{number:06d}.tar"
        names.append(name)
        ids.extend(hash_of(scene["id"]) for scene in group)
        texts = {scene["id"]: json.dumps(described(scene), ensure_ascii=False).encode() for scene in group}
        # a new revision of the stage cuts clips anew, under the same lineage of scenes
        seen = digest(
            STAGE.revision, [[scene["id"], scene["clip_lineage"], texts[scene["id"]].decode()] for scene in group]
        )
        mark = clips.with_name("shards") / f"{number:06d}"
        if (output / name).is_file() and mark.is_file() and mark.read_text() == seen:
            continue
        is_changed = True
        remove(mark)
        with replacing(output / name) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for scene in group:
                _add(tar, f"{scene['id']}{ENDING}", (clips / f"{scene['id']}{ENDING}").read_bytes())
                _add(tar, f"{scene['id']}.json", texts[scene["id"]])
        with replacing(mark) as part:
            part.write_text(seen)
    for shard in output.glob("shard-*.tar"):
        if shard.name not in names:
            remove(shard)
            is_changed = True
    _sweep(clips, ids)
    return is_changed


def _groups(scenes: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Scenes whose clips have no more bytes together; one at least."""
    group, filled = list[Row](), 0
    for scene in scenes:
        if group and filled + scene["clip_bytes"] > most:
            yield group
            group, filled = [], 0
        group.append(scene)
        filled += scene["clip_bytes"]
    if group:
        yield group


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _sweep(folder: Path, ids: array[int]) -> None:
    """Remove clips that are in no row.

    Args:
        folder: Of the clips.
        ids: Hashes of the scenes that have one.
    """
    wanted = np.sort(np.frombuffer(ids, np.uint64))
    for file in folder.glob(f"*{ENDING}") if folder.is_dir() else ():
        own = np.uint64(hash_of(file.name.removesuffix(ENDING)))
        place = int(np.searchsorted(wanted, own))
        if place == len(wanted) or wanted[place] != own:
            remove(file)
