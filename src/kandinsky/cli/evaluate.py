"""`kandinsky evaluate`: measure a model's quality."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kandinsky import cards


def evaluate(
    model: Annotated[str, typer.Argument(metavar="ID", help="Catalogue id, see `kandinsky models`.")],
) -> None:
    """Measure a model and print the figures as JSON: what was asked for against what was made."""
    cards.find(model)
    from kandinsky.evaluate.run import evaluate as measure

    print(json.dumps(measure(model), ensure_ascii=False, indent=1))
