"""`kandinsky models`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from kandinsky import catalogue
from kandinsky.cli.streams import emit_json
from kandinsky.printing import escaped


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List all models: id, task, parameters, output, size of the files, whether they are on this machine."""
    from kandinsky.runtime.budget import gigabytes
    from kandinsky.weights.locate import card_bytes, missing_parts

    rows = []
    for card in catalogue.cards().values():
        rows.append((card, card_bytes(card), not missing_parts(card)))
    rows.sort(key=lambda row: (row[0].id != catalogue.DEFAULT_MODEL, row[0].id))
    if as_json:
        keys = ("id", "title", "task", "licence", "parameters")
        facts = [
            {
                **{k: getattr(card, k) for k in keys},
                "seconds": card.clip.max_seconds if card.sound is None else card.sound.window_s,
                "sizes": card.clip.sizes,
                "bytes": size,
                "local": local,
                "published": card.is_published,
            }
            for card, size, local in rows
        ]
        emit_json(facts, indent=1)
        return
    table = [("ID", "TASK", "PARAMETERS", "MAKES", "FILES", "LOCAL", "LICENCE")]
    table += [
        (
            card.id,
            card.task,
            _short(card.parameters),
            _makes(card),
            gigabytes(size) if card.is_published else "not published",
            "yes" if local else "no",
            card.licence,
        )
        for card, size, local in rows
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        print(escaped("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))


def _makes(card: catalogue.Card) -> str:
    """What a model generates: `5 s, 768x512 and 9 other sizes`."""
    if card.sound is not None:
        return f"sound, {card.sound.window_s:g} s at a time"
    clip = card.clip
    others = len(clip.sizes) - 1
    more = f" and {others} other size{'s' if others > 1 else ''}" if others else ""
    return f"{f'{clip.max_seconds:g} s' if clip.max_seconds else 'image'}, {clip.default_size}{more}"


def _short(count: int) -> str:
    """A count, abbreviated: `16 M`, `2.0 B`."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
