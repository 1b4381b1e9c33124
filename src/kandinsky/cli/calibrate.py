"""`kandinsky calibrate`: measure what MagCache needs to know of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.errors import RequestError


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
        Path | None, typer.Option("--card", help="Put the ratios into this card file of the model.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Text file with one prompt a line.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Seeds for each prompt.")] = 2,
    image: Annotated[Path | None, typer.Option("--image", help="First frame or source, for models that take one.")] = (
        None
    ),
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length of the clips.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="How strictly to follow; 1 is off.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure MagCache ratios of a model: how much each step's residual grows against the last one's."""
    from kandinsky.engine.request import parse_size
    from kandinsky.jobs.prompt_files import read_texts

    if output is not None and output.suffix not in (".toml", ".json"):
        raise RequestError(f"output `{output}` has an unknown ending: use `.toml` or `.json`")
    if card is not None and not card.is_file():
        raise RequestError(f"card `{card}` does not exist: the shipped ones lie in `{catalogue.HERE}`")
    width, height = (None, None) if size is None else parse_size(size)
    request: dict[str, Any] = {
        "width": width,
        "height": height,
        "seconds": seconds,
        "steps": steps,
        "guidance": guidance,
    }
    if image is not None:
        request["image"] = image
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
            device=device,
            dtype=dtype,
            on_run=on_run,
        )
    values = {"model": model, "steps": found.steps, "setting": found.setting, "mag_ratios": found.ratios}
    print(json.dumps(values) if as_json else measure.table(found))
    if output is not None:
        text = json.dumps(values, indent=1) + "\n" if output.suffix == ".json" else measure.to_toml(found)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        print(output)
    if card is not None:
        print(measure.write_into_card(found, card))
