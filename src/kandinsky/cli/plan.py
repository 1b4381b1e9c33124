"""`kandinsky plan`: what a generation will need, before anything is fetched or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.chosen import Bare, Same, chosen_model
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit_json, in_flags
from kandinsky.engine.options import PlanOptions
from kandinsky.model.values import Request

if TYPE_CHECKING:
    from kandinsky.engine.plan import Plan

PLANNED = Flags(
    PlanOptions,
    only=(
        "seconds", "steps", "guidance", "fps", "device", "dtype", "offload", "attention", "quantize", "tiling",
        "parallel", "memory", "gpus",
    ),
    help={
        "offload": "none, module or block; what fits if omitted.",
        "parallel": "Layout of the processes, as tp=4; chosen if omitted.",
    },
)  # fmt: skip


@rendered(planned=PLANNED, asked=Flags(Request, only=("cache",)))
def plan(
    context: typer.Context,
    model: Bare = None,
    same: Same = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    planned: dict[str, Any],
    asked: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a generation needs: gigabytes to download, peak memory, time, placement. Downloads and loads nothing."""
    from kandinsky.engine.request import parse_size

    width, height = (None, None) if size is None else parse_size(size)
    made = catalogue.plan(
        chosen_model(context, model, same), width=width, height=height, **planned, **asked
    )  # fmt: skip
    show_plan(made, as_json=as_json)


def show_plan(made: Plan, *, as_json: bool, clips: int = 1) -> None:
    """Print a plan.

    Args:
        made: The plan.
        as_json: Print one JSON object.
        clips: Number of results that share it.
    """
    from kandinsky.runtime.budget import gigabytes

    if as_json:
        emit_json({**made.to_dict(), "clips": clips})
        return
    many = f", {clips} clips one after another" if clips > 1 else ""
    print(f"model      {made.model}")
    length = f"{made.clip_seconds:g} s, {made.frames} frames" if made.frames > 1 else "one image"
    if (card := catalogue.cards().get(made.model)) is not None and card.sound is not None:
        length = f"the spectrogram of {card.sound.window_s:g} s of audio"
    print(f"clip       {made.size}, {length}, {made.tokens} tokens{many}")
    if made.attention_kept < 1:
        print(f"attention  block-sparse, about {made.attention_kept:.0%} of the blocks (estimate)")
    if card is not None and not card.is_published and made.missing:
        print(f"download   not possible: weights of {made.model} were never published")
        for entry in made.missing:
            print(f"           {entry}")
    elif made.missing:
        fetch, whole = gigabytes(made.download_bytes), gigabytes(made.files_bytes)
        print(f"download   {fetch} of {whole}: kandinsky download {made.model}")
        for entry in made.missing:
            print(f"           {entry}")
    else:
        print("download   nothing: all files are on this machine")
    if made.processes > 1:
        print(f"processes  {made.processes}, --parallel {made.layout}: {made.layout_why}")
    on = f"{gigabytes(made.peak_device_bytes)} on {made.device}, " if made.peak_device_bytes else ""
    print(f"memory     {on}{gigabytes(made.peak_host_bytes)} on the host at the peak (estimate)")
    if made.processes > 1:
        print(f"           {gigabytes(made.other_bytes)} on each process but the first, whose needs these are")
    for name, need in made.components.items():
        scheme = f" in {made.quantize[name]}" if name in made.quantize else ""
        print(f"  {name:<14}{gigabytes(need.weights)} of weights{scheme}, {gigabytes(need.work)} of activations")
    print("  needs         " + ", ".join(f"{name} {gigabytes(size)}" for name, size in made.placements.items()))
    print(f"placement  {made.device}, {made.dtype}, offload {made.offload}: {made.why}")
    if made.fits is False:
        print(f"           {in_flags(made.advice)}")
    number = "" if made.processes == 1 or made.device == "cpu" else f"{made.processes} x "
    time = f"{_duration(made.seconds * clips)} on {number}{made.timed_on}, {made.timed_why}"
    print(f"time       {made.time_class}: about {time} (estimate)")
    for name, seconds in made.times.items():
        passes = f" for {made.passes * clips} passes" if name == "dit" else ""
        print(f"  {name:<14}{_duration(seconds * clips)}{passes}")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
