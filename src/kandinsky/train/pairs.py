"""Pairs of files of one caption: a folder of each, or a file that lists them.

Of preferences the first is the one that people liked better. Of edits the first is the edited image; the folders are
`edited/` and `sources/`, the keys `edited` and `source`.

| source | what it holds |
|---|---|
| a folder | `winners/panda.mp4` with `winners/panda.txt`, and `losers/panda.mp4`, also under another ending |
| `pairs.jsonl` | a line each: `{"caption": "…", "winner": "a.mp4", "loser": "b.mp4"}`, files beside it or below |
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.files import inside, local_path
from kandinsky.printing import escaped
from kandinsky.train.data import sources
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.sources import Example
from kandinsky.weights.untrusted import parse_table, shown

WINNERS, LOSERS = "winners", "losers"


def find(source: str, folders: tuple[str, ...] = (WINNERS, LOSERS)) -> list[Example]:
    """The examples of all pairs: winner, loser, winner, loser …

    Args:
        source: See above.
        folders: Names of the two folders; the keys of a list are the same without the `s` at their ends.

    Raises:
        RequestError: The source is absent or empty, or a pair is not whole.
    """
    place = local_path(source, "pairs")
    first, second = folders
    pairs = _listed(place, first, second) if place.suffix == ".jsonl" else _in_folders(place, first, second)
    return [example for pair in pairs for example in pair]


def _in_folders(place: Path, first: str, second: str) -> list[tuple[Example, Example]]:
    winners = sources.find(place / first)
    losers = {_stem(one): one for one in sources.find(place / second, captions="optional")}
    pairs = []
    for winner in winners:
        if (loser := losers.pop(_stem(winner), None)) is None:
            raise RequestError(f"`{escaped(winner.path)}` has no {_one(second)}: put one of that name into `{second}/`")
        pairs.append((winner, replace(loser, captions=winner.captions)))
    if losers:
        raise RequestError(
            f"`{escaped(next(iter(losers.values())).path)}` has no {_one(first)} of that name in `{first}/`"
        )
    return pairs


def _stem(example: Example) -> str:
    return Path(example.name).with_suffix("").as_posix()


def _one(folder: str) -> str:
    """What one of its files is called."""
    return folder.removesuffix("s")


def _listed(file: Path, first: str, second: str) -> list[tuple[Example, Example]]:
    keys = ("caption", _one(first), _one(second))
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise RequestError(f"pairs `{escaped(file)}` cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"pairs `{escaped(file)}` are not UTF-8 text: {shown(error)}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        row = parse_table(line.encode(), where)
        values = [row.get(key) for key in keys]
        if not all(isinstance(value, str) and value for value in values) or set(row) != set(keys):
            raise RequestError(
                f"`{escaped(where)}` must hold the texts {', '.join(f'`{key}`' for key in keys)}, no more"
            )
        caption, *names = map(str, values)
        files = [inside(file.parent, name) for name in names]
        if absent := [one for one in files if not one.is_file()]:
            raise RequestError(f"`{escaped(where)}` names `{escaped(absent[0])}`, which is not there")
        winner, loser = (
            Example(name, one, one.stat().st_size, (Caption(caption),)) for name, one in zip(names, files, strict=True)
        )
        pairs.append((winner, loser))
    if not pairs:
        raise RequestError(f"pairs `{escaped(file)}` are empty: write a line for each")
    return pairs
