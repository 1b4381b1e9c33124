"""`kandinsky models`: the catalogue."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kandinsky import cards


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """List all models: id, title, size of the files, whether they are on this machine, licence."""
    from kandinsky.runtime.plan import gigabytes
    from kandinsky.weights.locate import card_bytes, missing_parts

    rows = []
    for card in cards.catalogue().values():
        rows.append((card, card_bytes(card), not missing_parts(card)))
    rows.sort(key=lambda row: (row[0].id != cards.DEFAULT_MODEL, row[0].id))
    if as_json:
        keys = ("id", "title", "task", "licence", "parameters")
        facts = [{**{k: getattr(card, k) for k in keys}, "bytes": size, "local": local} for card, size, local in rows]
        print(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    table = [("ID", "TITLE", "FILES", "LOCAL", "LICENCE")]
    table += [
        (card.id, card.title, gigabytes(size), "yes" if local else "no", card.licence) for card, size, local in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
