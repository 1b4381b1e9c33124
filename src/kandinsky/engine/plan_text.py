"""A plan in lines of text, as the command line and other doors show it. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from kandinsky.engine.plan import Plan
from kandinsky.model.card import Card
from kandinsky.printing import counted
from kandinsky.runtime.budget import gigabytes


def described(made: Plan, card: Card | None, *, clips: int = 1) -> Iterator[str]:
    """What a plan says, line by line; options are named as Python does.

    Args:
        made: The plan.
        card: The model's card, if it is in the catalogue.
        clips: Number of results that share the plan.

    Yields:
        Lines, each a word and what it means here.
    """
    many = f", {clips} clips one after another" if clips > 1 else ""
    yield f"model      {made.model}"
    length = f"{made.clip_seconds:g} s, {made.frames} frames" if made.frames > 1 else "one image"
    if card is not None and card.sound is not None:
        length = f"the spectrogram of {card.sound.window_s:g} s of audio"
    yield f"clip       {made.size}, {length}, {counted(made.tokens, 'token')}{many}"
    if made.tiles:
        begun = f"{counted(made.tiles, 'tile')} of {made.tile}, from time {made.upscale_strength:g} on"
        yield f"upscale    a second stage makes {made.tile} larger, in {begun}"
    if made.windows > 1:
        shared = f"{made.overlap_seconds:.3g} s"
        yield f"windows    {made.windows}, neighbours share {shared}; memory is that of one, however long the clip"
    if made.attention_kept < 1:
        yield f"attention  block-sparse, about {made.attention_kept:.0%} of the blocks (estimate)"
    if card is not None and not card.is_published and made.missing:
        yield f"download   not possible: weights of {made.model} were never published"
        for entry in made.missing:
            yield f"           {entry}"
    elif made.missing:
        fetch, whole = gigabytes(made.download_bytes), gigabytes(made.files_bytes)
        yield f"download   {fetch} of {whole}: kandinsky download {made.model}"
        for entry in made.missing:
            yield f"           {entry}"
    else:
        yield "download   nothing: all files are on this machine"
    if made.processes > 1:
        yield f'processes  {made.processes}, `parallel="{made.layout}"`: {made.layout_why}'
    on = f"{gigabytes(made.peak_device_bytes)} on {made.device}, " if made.peak_device_bytes else ""
    yield f"memory     {on}{gigabytes(made.peak_host_bytes)} on the host at the peak (estimate)"
    if made.processes > 1:
        yield f"           {gigabytes(made.other_bytes)} on each process but the first, whose needs these are"
    for name, need in made.components.items():
        scheme = f" in {made.quantize[name]}" if name in made.quantize else ""
        yield f"  {name:<14}{gigabytes(need.weights)} of weights{scheme}, {gigabytes(need.work)} of activations"
        for beside, size in made.branches.items() if name == "dit" else ():
            yield f"                with a {beside} of {gigabytes(size)}"
    yield "  needs         " + ", ".join(f"{name} {gigabytes(size)}" for name, size in made.placements.items())
    yield f"placement  {made.device}, {made.dtype}, offload {made.offload}: {made.why}"
    if made.fits is False:
        yield f"           {made.advice}"
    number = "" if made.processes == 1 or made.device == "cpu" else f"{made.processes} x "
    time = f"{_duration(made.begin_seconds + made.seconds * clips)} on {number}{made.timed_on}, {made.timed_why}"
    yield f"time       {made.time_class}: about {time} (estimate)"
    if made.begin_seconds:
        yield f"  {'begin':<14}{_duration(made.begin_seconds)}, once a process"
    for name, seconds in made.times.items():
        passes = f" for {counted(made.passes * clips, 'pass', 'passes')}" if name == "dit" else ""
        yield f"  {name:<14}{_duration(seconds * clips)}{passes}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
