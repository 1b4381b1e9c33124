"""Pairs of clips of one caption, of which people liked the first better: a folder, or a file that lists them.

| source | what it holds |
|---|---|
| a folder | `winners/panda.mp4` with `winners/panda.txt`, and `losers/panda.mp4`, also under another ending |
| `pairs.jsonl` | a line each: `{"caption": "…", "winner": "a.mp4", "loser": "b.mp4"}`, files beside it or below |
"""

from __future__ import annotations

from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.files import inside, local_path
from kandinsky.printing import escaped
from kandinsky.train.data import sources
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.sources import ENDINGS, Example
from kandinsky.weights.untrusted import parse_table, shown

WINNERS, LOSERS = "winners", "losers"
KEYS = ("caption", "winner", "loser")


def find(source: str) -> list[Example]:
    """The examples of all pairs: winner, loser, winner, loser …

    Raises:
        RequestError: The source is absent or empty, or a pair is not whole.
    """
    place = local_path(source, "pairs")
    pairs = _listed(place) if place.suffix == ".jsonl" else _in_folders(place)
    return [example for pair in pairs for example in pair]


def _in_folders(place: Path) -> list[tuple[Example, Example]]:
    winners = sources.find(place / WINNERS)
    losers = {path.stem: path for path in sorted((place / LOSERS).glob("*")) if path.suffix.lower() in ENDINGS}
    pairs = []
    for winner in winners:
        if (loser := losers.pop(winner.path.stem, None)) is None:
            raise RequestError(f"`{escaped(winner.path)}` has no loser: put one of that name into `{LOSERS}/`")
        pairs.append((winner, _example(loser, winner.caption)))
    if losers:
        raise RequestError(f"`{escaped(next(iter(losers.values())))}` has no winner of that name in `{WINNERS}/`")
    return pairs


def _listed(file: Path) -> list[tuple[Example, Example]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
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
        values = [row.get(key) for key in KEYS]
        if not all(isinstance(value, str) and value for value in values) or set(row) != set(KEYS):
            raise RequestError(
                f"`{escaped(where)}` must hold the texts {', '.join(f'`{key}`' for key in KEYS)}, no more"
            )
        caption, *names = map(str, values)
        files = [inside(file.parent, name) for name in names]
        if absent := [one for one in files if not one.is_file()]:
            raise RequestError(f"`{escaped(where)}` names `{escaped(absent[0])}`, which is not there")
        pairs.append((_example(files[0], caption), _example(files[1], caption)))
    if not pairs:
        raise RequestError(f"pairs `{escaped(file)}` are empty: write a line for each")
    return pairs


def _example(path: Path, caption: str) -> Example:
    return Example(str(path), path, path.stat().st_size, (Caption(caption),))
