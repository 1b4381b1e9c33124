"""`kandinsky evaluate`: measure a model's quality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import emit_json


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="ID", help="Catalogue id, see `kandinsky models`.", autocompletion=model_ids)
    ],
    prompts: Annotated[int | None, typer.Option("--prompts", help="Prompts per group; default: all.")] = None,
    groups: Annotated[
        list[str] | None, typer.Option("--group", help="Only this group, such as `en label`; may be repeated.")
    ] = None,
    cache: Annotated[Path, typer.Option("--folder", help="Where `kandinsky data nano` put the clips.")] = Path(
        ".cache/nano"
    ),
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of some clips to this file.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, or bfloat16 where the CPU supports it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how well a model's results match their prompts."""
    catalogue.find(model)
    from kandinsky.cli.progress import counted
    from kandinsky.lab.nano.evaluate import evaluate as measure
    from kandinsky.lab.nano.evaluate import table

    with counted("evaluating") as on_batch:
        result = measure(
            model, prompts=prompts, groups=groups or None, cache=cache, sheet=sheet, dtype=dtype, on_batch=on_batch
        )
    if as_json:
        emit_json(result, indent=1)
    else:
        print(table(result))
