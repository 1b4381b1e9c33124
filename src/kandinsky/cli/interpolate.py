"""`kandinsky interpolate`: more frames a second for any video."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

MODEL = "kandinsky-video-1.1"


def interpolate(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="File to read: .mp4 .webm .gif .webp, or a folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write, as for `kandinsky generate`.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose interpolation network is used.")] = MODEL,
    factor: Annotated[int, typer.Option("--factor", help="4 or 16 times the frames a second.")] = 4,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows, where the model can be told.")] = "",
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Weight of the frames around a gap; 1 is off.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same video.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str | None, typer.Option("--offload", help="As for `kandinsky generate`.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr but errors.")] = False,
) -> None:
    """Fill the gaps between a video's frames with new ones. Length and size stay, sound is not kept."""
    from kandinsky.cli.main import say
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.errors import RequestError
    from kandinsky.media.video import check_target, read_video, write_video
    from kandinsky.pipelines import sources
    from kandinsky.runtime.devices import check_device, choose_dtype
    from kandinsky.runtime.plan import check_offload
    from kandinsky.weights.locate import locate_parts

    target = check_target(output)
    if not video.exists():
        raise RequestError(f"video `{video}` does not exist")
    check_device(device)
    choose_dtype(dtype, device or "cpu")
    check_offload(offload or "none")
    source = sources.find(model)
    hush_libraries()
    from kandinsky.pipelines.interpolation import Raise
    from kandinsky.pipelines.interpolation import interpolate as raised

    settings = Raise(factor, prompt, steps, guidance, seed)
    settings.check(source.card)
    needed = set(source.card.components) - {"dit"} - (set() if prompt.strip() else {"text"})
    for name in sorted(needed):
        locate_parts(source.card.component(name), root=source.root, model=source.card.id)
    given = read_video(video)
    begun = time.monotonic()
    with patient(f"interpolating {video.name}", quiet=quiet) as on_step:
        from kandinsky.pipelines.loading import load

        pipe = load(model, device=device, dtype=dtype, offload=offload or "none", only=needed)
        made = raised(pipe, given, settings, on_step=on_step)
        written = write_video(made, target)
    if not quiet:
        before, after = len(given.frames), len(made.frames)
        spent = time.monotonic() - begun
        say(f"{before} frames at {given.fps:g} a second became {after} at {made.fps:g}, {spent:.1f} s")
    print(written, flush=True)
