"""What a training reads: clips in a folder with ``metadata.jsonl``, or WebDataset shards.

A file is written beside its place and renamed, and one that holds the same already is not written again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kandinsky.curate.clip_work import ENDING
from kandinsky.curate.stages import Row, digest
from kandinsky.files import remove, replacing

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


def write_folder(scenes: Sequence[Row], output: Path) -> bool:
    """Write ``metadata.jsonl``; clips that no line names are removed, and shards too. Whether anything changed."""
    for shard in output.glob("shard-*.tar"):
        remove(shard)
    lines = [{"file_name": f"{CLIPS}/{scene['id']}{ENDING}", **described(scene)} for scene in scenes]
    _sweep(output / CLIPS, scenes)
    return _write(output / METADATA, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode())


def write_shards(scenes: Sequence[Row], output: Path, clips: Path, shard_mb: int) -> bool:
    """Write `shard-000000.tar` and on; those that hold the same already are left alone. Whether anything changed."""
    remove(output / METADATA)
    remove(output / CLIPS)
    groups: list[list[Row]] = []
    filled = 0
    for scene in scenes:
        if not groups or filled + scene["clip_bytes"] > shard_mb << 20:
            groups.append([])
            filled = 0
        groups[-1].append(scene)
        filled += scene["clip_bytes"]
    is_changed = False
    names = []
    for number, group in enumerate(groups):
        name = f"shard-{number:06d}.tar"
        names.append(name)
        texts = {scene["id"]: json.dumps(described(scene), ensure_ascii=False).encode() for scene in group}
        seen = digest([[scene["id"], scene["clip_lineage"], texts[scene["id"]].decode()] for scene in group])
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
    _sweep(clips, scenes)
    return is_changed


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _sweep(folder: Path, scenes: Sequence[Mapping[str, Any]]) -> None:
    """Remove clips that are in no row."""
    wanted = {f"{scene['id']}{ENDING}" for scene in scenes}
    for file in folder.glob(f"*{ENDING}") if folder.is_dir() else ():
        if file.name not in wanted:
            remove(file)


def _write(path: Path, data: bytes) -> bool:
    if path.is_file() and path.read_bytes() == data:
        return False
    with replacing(path) as part:
        part.write_bytes(data)
    return True
