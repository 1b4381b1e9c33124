"""WebDataset shards: tar files in which what belongs to one example has one name and several endings.

Only headers are walked through; a member's bytes are read where they lie when they are needed. Nothing is unpacked:
links, devices and folders are passed over, and names only tell members apart.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.files import relative_parts
from kandinsky.printing import escaped
from kandinsky.train.data import captions
from kandinsky.train.data.captions import LONGEST, Caption
from kandinsky.train.data.folders import Found, captions_in, checked_name
from kandinsky.train.data.sources import ENDINGS, Example, Fault
from kandinsky.weights.untrusted import first_line, shown

ENDING = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST = 100_000  # shards of a range


def is_shards(path: Path) -> bool:
    """Whether a source is one shard, a range of them, or a folder with shards and no table."""
    if path.name.lower().endswith((ENDING, *PACKED)) and not path.is_dir():
        return True
    if not path.is_dir() or any((path / name).is_file() for name in ("metadata.jsonl", "metadata.csv")):
        return False
    return any(file.suffix.lower() == ENDING for file in path.iterdir())


def files(path: Path) -> list[Path]:
    """The shards that a name stands for, in their order.

    Raises:
        RequestError: The name is a range that is none, or of packed tar files.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() == ENDING and file.is_file())
    if path.name.lower().endswith(PACKED):
        raise RequestError(f"shard `{escaped(path)}` is packed: unpack it to a plain .tar, which can be read anywhere")
    found = _RANGE.search(path.name)
    if found is None:
        return [path]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MOST:
        raise RequestError(f"shards `{escaped(path)}`: the range must rise, and name no more than {_MOST} files")
    digits = len(found[1])
    return [
        path.with_name(f"{path.name[: found.start()]}{number:0{digits}d}{path.name[found.end() :]}")
        for number in range(first, last + 1)
    ]


def read(paths: Sequence[Path], *, needs_captions: bool) -> Found:
    """The examples of shards, and what of them cannot be used.

    Raises:
        RequestError: A shard does not exist or is no tar file.
    """
    examples: list[Example] = []
    faults: list[Fault] = []
    for path in paths:
        found, wrong = _shard(path, needs_captions)
        examples += found
        faults += wrong
    return examples, faults


def _shard(path: Path, needs_captions: bool) -> Found:
    media: dict[str, list[Example]] = {}
    texts: dict[str, list[tuple[tuple[str, str], Caption]]] = {}
    broken: dict[str, str] = {}
    faults: list[Fault] = []
    size = _size(path)
    with path.open("rb") as stream:
        for member in _members(path, size, faults):
            name = f"{path.name}/{member.name}"
            try:
                relative_parts(checked_name(member.name))
            except RequestError as error:
                faults.append(Fault(shown(name), f"shard `{escaped(path)}`: {error}"))
                continue
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            key, ending = f"{folder}/{stem}", ending.lower()
            last = f".{ending.rpartition('.')[2]}"
            where = f"shard `{escaped(path)}`: `{shown(member.name)}`"
            try:
                if last in ENDINGS:
                    media.setdefault(key, []).append(Example(name, path, member.size, (), member.offset_data))
                elif last in (".txt", ".caption", ".json"):
                    stream.seek(member.offset_data)
                    text = stream.read(min(member.size, LONGEST * 16 + 1))
                    if last == ".json":
                        found = captions_in(_object(text, where), where)
                        texts.setdefault(key, []).extend(((one.language, one.length), one) for one in found)
                    elif (kind := captions.variant(ending.split(".")[:-1])) is not None:
                        texts.setdefault(key, []).append((kind, Caption(captions.checked(text, where), *kind)))
            except RequestError as error:
                broken[key] = str(error)
    examples = []
    for key, clips in media.items():
        words = tuple(dict.fromkeys(caption for _, caption in sorted(texts.get(key, ()), key=lambda one: one[0])))
        if len(clips) > 1:
            faults.append(
                Fault(clips[1].name, f"shard `{escaped(path)}`: `{shown(key.lstrip('/'))}` has {len(clips)} clips")
            )
        elif key in broken:
            faults.append(Fault(clips[0].name, broken[key]))
        elif needs_captions and not words:
            faults.append(
                Fault(
                    clips[0].name,
                    f"shard `{escaped(path)}`: `{shown(clips[0].name)}` has no caption: put one beside it as .txt or "
                    "in a .json, or make captions optional",
                )
            )
        else:
            (clip,) = clips
            examples.append(Example(clip.name, path, clip.bytes, words, clip.offset))
    return examples, faults


def _members(path: Path, size: int, faults: list[Fault]) -> Iterator[tarfile.TarInfo]:
    """Files of a shard whose bytes lie in it whole; a shard that is cut or damaged behind its begin is a fault.

    Raises:
        RequestError: It is no tar file from its begin.
    """
    count, before = 0, -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset <= before:
                    raise tarfile.ReadError("its members run in a circle")
                before = member.offset
                tar.members.clear()  # type: ignore[attr-defined]  # they are not kept: a shard may have millions
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size or member.size < 0:
                    raise tarfile.ReadError(f"it ends within `{shown(member.name)}`")
                count += 1
                yield member
    except RequestError:
        raise
    except Exception as error:  # a tar of somebody else's: whatever its headers make the reader do
        reason = f"shard `{escaped(path)}` is damaged: {first_line(error)}"
        if not count:
            raise RequestError(reason) from error
        faults.append(Fault(path.name, f"{reason}; {count} files before it are used"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise RequestError(f"shard `{escaped(path)}` cannot be read: {error.strerror or error}") from error


def _object(text: bytes, where: str) -> dict[str, object]:
    try:
        values = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else shown(error)
        raise RequestError(f"{where} is not valid JSON: {why}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{where} is not a JSON object")
    return values
