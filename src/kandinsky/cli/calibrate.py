"""`kandinsky calibrate`: measure the ratios MagCache needs for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit, emit_json
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.model.values import Request


@rendered(
    asked=Flags(Request, only=("seconds", "steps", "guidance", "image")),
    run=Flags(RunOptions, only=("device", "dtype")),
)
def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Catalogue id, see `kandinsky models`; or a folder.", autocompletion=model_ids
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="TOML or JSON file for `--cache magcache:ratios=FILE`.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="Write the ratios into this card file of the model.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Text file with one prompt per line.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Seeds per prompt.")] = 2,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    asked: dict[str, Any],
    run: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure MagCache ratios of a model: how much each step's residual grows against the last one's."""
    from kandinsky.engine.request import parse_size
    from kandinsky.jobs.prompt_files import read_texts

    if output is not None and output.suffix not in (".toml", ".json"):
        raise RequestError(f"output `{output}` has an unknown ending: use `.toml` or `.json`")
    if card is not None and not card.is_file():
        raise RequestError(f"card `{card}` does not exist: the shipped ones lie in `{catalogue.HERE}`")
    width, height = (None, None) if size is None else parse_size(size)
    request = {"width": width, "height": height, **asked}
    if request["image"] is None:
        del request["image"]
    texts = read_texts(prompts) if prompts is not None else None

    from kandinsky.bench import calibrate as measure
    from kandinsky.cli.progress import counted, hush_libraries

    hush_libraries()
    with counted("calibrating") as on_run:
        found = measure.calibrate(
            model,
            prompts=texts or measure.PROMPTS,
            seeds=range(seeds),
            request=request,
            **run,
            on_run=on_run,
        )
    values = {"model": model, "steps": found.steps, "setting": found.setting, "mag_ratios": found.ratios}
    if as_json:
        emit_json(values)
    else:
        print(measure.table(found))
    if output is not None:
        text = json.dumps(values, indent=1) + "\n" if output.suffix == ".json" else measure.to_toml(found)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        emit(output)
    if card is not None:
        emit(measure.write_into_card(found, card))
