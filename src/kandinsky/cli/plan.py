"""`kandinsky plan`: what a generation will need, before anything is fetched or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kandinsky import catalogue
from kandinsky.cli.chosen import Bare, Same, chosen_model
from kandinsky.cli.streams import emit_json

if TYPE_CHECKING:
    from kandinsky.runtime.plan import Plan


def plan(
    context: typer.Context,
    model: Bare = None,
    same: Same = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length; 0 is a still image.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="1 is off and halves the time.")] = None,
    fps: Annotated[
        str | None, typer.Option("--fps", help="Of models that make key frames: low, medium or high.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str | None, typer.Option("--offload", help="none, module or block; what fits.")] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="int8 or fp8 for the network, or dit=int8,text=nf4.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Plan for a card of that size, such as 12GB, not for this machine.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="Plan for so many processes, each on its own.")] = None,
    parallel: Annotated[
        str | None, typer.Option("--parallel", metavar="LAYOUT", help="Their layout, as tp=4; chosen when absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a generation needs: gigabytes to fetch, peak memory, time, placement. Fetches and loads nothing."""
    from kandinsky.catalogue import plan as make
    from kandinsky.engine.request import parse_size

    width, height = (None, None) if size is None else parse_size(size)
    made = make(
        chosen_model(context, model, same),
        width=width,
        height=height,
        seconds=seconds,
        steps=steps,
        guidance=guidance,
        fps=fps,
        device=device,
        dtype=dtype,
        offload=offload,
        quantize=quantize,
        memory=memory,
        gpus=gpus,
        parallel=parallel,
    )
    show_plan(made, as_json=as_json)


def show_plan(made: Plan, *, as_json: bool, clips: int = 1) -> None:
    """Print a plan; ``clips`` is how many results share it."""
    from kandinsky.runtime.plan import gigabytes

    if as_json:
        emit_json({**made.to_dict(), "clips": clips})
        return
    many = f", {clips} clips one after another" if clips > 1 else ""
    print(f"model      {made.model}")
    length = f"{made.clip_seconds:g} s, {made.frames} frames" if made.frames > 1 else "one image"
    if (card := catalogue.cards().get(made.model)) is not None and card.sound is not None:
        length = f"the picture of {card.sound.window_s:g} s of sound"
    print(f"clip       {made.size}, {length}, {made.tokens} tokens{many}")
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
        print(f"  {name:<14}{gigabytes(need.weights)} of weights{scheme}, {gigabytes(need.work)} of work")
    print("  needs         " + ", ".join(f"{name} {gigabytes(size)}" for name, size in made.placements.items()))
    print(f"placement  {made.device}, {made.dtype}, offload {made.offload}: {made.why}")
    if made.fits is False:
        print(f"           {made.advice}")
    time = made.seconds * clips
    print(f"time       {made.time_class}: about {_duration(time)} for {made.passes * clips} passes (estimate)")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
