"""`kandinsky bench`: where the time of a generation or a training step goes, and what each optimisation gains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky.cli.chosen import Bare, Same, chosen_model
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit_json
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.files import check_writable, replacing
from kandinsky.model.values import Request

ASKED = Flags(Request, only=("seconds", "steps", "guidance"))
TRAIN = "train"  # in the place of a model
RUN = Flags(RunOptions, only=("device", "dtype", "offload", "attention", "backends"))


@rendered(asked=ASKED, run=RUN)
def bench(
    context: typer.Context,
    model: Bare = None,
    same: Same = None,
    stages: Annotated[str | None, typer.Option("--stages", help="Some of text,dit,vae,write; all if omitted.")] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", "--runs", min=1, max=1000, help="Measured rounds, after one warm-up.")
    ] = 3,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    asked: dict[str, Any],
    run: dict[str, Any],
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Networks with random weights; nothing is downloaded or read.")
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="With --random-weights: set a parameter, as in dit.model_dim=512."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="diffusers: run the same work there, in turns.")
    ] = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Each optimisation: its speed-up and its distance from the exact result.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the report as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure each stage of a generation: median, spread, achieved rate, share of the matrix-product rate, memory.

    `kandinsky bench train` measures training steps instead: Nano, a mid Kandinsky 5, a LoRA, activation checkpointing.
    """
    from dataclasses import asdict

    from kandinsky.engine.request import parse_size

    model = chosen_model(context, model, same)
    if output is not None:
        check_writable(output)
    if model == TRAIN:
        if size or asked_for(asked) or stages or random_weights or change or ledger or run["offload"]:
            raise RequestError(
                "`bench train` takes `--repeats`, `--device`, `--dtype`, `--against`, `--output` and `--json` alone"
            )
        found = _train(repeats=repeats, device=run["device"], dtype=run["dtype"], against=against)
        _show(*found, output, as_json=as_json)
        return
    width, height = (None, None) if size is None else parse_size(size)
    request = {"width": width, "height": height, **asked}
    if ledger and (random_weights or change or against or stages):
        raise RequestError("`--ledger` measures a model as it is: leave out random weights, rivals and stages")
    if ledger:
        found = _ledger(model, request, repeats=repeats, device=run["device"], dtype=run["dtype"])
        _show(*found, output, as_json=as_json)
        return
    from kandinsky.bench import run as measure
    from kandinsky.bench.random_weights import parse_changes
    from kandinsky.cli.progress import counted, hush_libraries

    hush_libraries()
    with counted("measuring") as on_run:
        report = measure.bench(
            model,
            stages=stages.split(",") if stages else None,
            repeats=repeats,
            random_weights=random_weights,
            changes=parse_changes(change or []),
            against=against,
            request=request,
            on_run=on_run,
            **run | {"offload": run["offload"] or "none"},
        )
    lines = [asdict(stage) | {"rate": stage.rate, "share": stage.rate / report.matmul_rate} for stage in report.stages]
    _show(asdict(report) | {"stages": lines}, measure.table(report), output, as_json=as_json)


def asked_for(values: dict[str, Any]) -> bool:
    """Whether any of the values was given."""
    return any(value is not None for value in values.values())


def _train(*, repeats: int, device: str | None, dtype: str | None, against: str | None) -> tuple[dict[str, Any], str]:
    from dataclasses import asdict

    from kandinsky.bench import train
    from kandinsky.cli.progress import counted, hush_libraries
    from kandinsky.runtime.devices import choose_device

    hush_libraries()
    place = choose_device(device)
    with counted("measuring") as on_run:
        report = train.bench(repeats=repeats, device=place, dtype=dtype, against=against, on_run=on_run)
    return asdict(report), train.table(report)


def _ledger(
    model: str, request: dict[str, Any], *, repeats: int, device: str | None, dtype: str | None
) -> tuple[dict[str, Any], str]:
    from dataclasses import asdict

    from kandinsky.bench import ledger
    from kandinsky.cli.progress import counted, hush_libraries

    hush_libraries()
    with counted("measuring") as on_run:
        found = ledger.measure(model, request=request, repeats=repeats, device=device, dtype=dtype, on_run=on_run)
    return asdict(found), ledger.table(found)


def _show(report: dict[str, Any], table: str, output: Path | None, *, as_json: bool) -> None:
    """Print a report, and write it if a file was named."""
    if output is not None:
        with replacing(output) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if as_json:
        emit_json(report)
    else:
        print(table)
