"""`kandinsky interpolate`: more frames a second for any video."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import emit, say

log = logging.getLogger(__name__)
MODEL = "kandinsky-video-1.1"


def interpolate(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="File to read: .mp4 .webm .gif .webp, or a folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write, as for `kandinsky generate`.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Whose interpolation network is used.", autocompletion=model_ids),
    ] = MODEL,
    factor: Annotated[int | None, typer.Option("--factor", help="2, 4, 8 or 16 times the frames a second; 4.")] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames a second instead of a factor, up to 16 times as many.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows, where the model can be told.")] = "",
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Weight of the frames around a gap; 1 is off.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same video.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[str | None, typer.Option("--offload", help="As for `kandinsky generate`.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Fill the gaps between a video's frames with new ones. Length, size and sound stay."""
    from kandinsky import catalogue
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.errors import RequestError
    from kandinsky.media.animation import image_format
    from kandinsky.media.mux import COPIED_AUDIO, keep_audio, probe, read_input
    from kandinsky.media.video import check_target, read_video, write_video
    from kandinsky.runtime.budget import check_offload
    from kandinsky.runtime.devices import check_device, choose_dtype
    from kandinsky.weights.locate import locate_parts

    target = check_target(output)
    if not video.exists():
        raise RequestError(f"video `{video}` does not exist")
    if target.exists() and target.samefile(video):
        raise RequestError(f"output `{target}` is the video itself: name another file")
    if factor is not None and fps is not None:
        raise RequestError("--factor and --fps were both given: choose one")
    check_device(device)
    choose_dtype(dtype, device or "cpu")
    check_offload(offload or "none")
    source = catalogue.source_of(model)
    hush_libraries()
    from kandinsky.engine.interpolation import Raise

    settings = Raise(4 if factor is None else factor, fps, prompt, steps, guidance, seed)
    settings.check(source.card)
    # films have times of their own, sound and a rotation; animations and folders of frames have none of that
    is_even = video.is_dir() or image_format(video) is not None
    film = None if is_even else probe(video)
    if film is not None:
        settings.rate(film.fps)
    needed = set(source.card.components) - {"dit"} - (set() if prompt.strip() else {"text"})
    for name in sorted(needed):
        locate_parts(source.card.component(name), root=source.root, model=source.name)
    given = read_video(video) if film is None else read_input(film)
    begun = time.monotonic()
    with patient(f"interpolating {video.name}", quiet=quiet) as on_step:
        from kandinsky.catalogue import load

        pipe = load(model, device=device, dtype=dtype, offload=offload or "none", only=needed)
        times = (None, None) if film is None else (film.times_s, film.seconds)
        raised = source.card.family.interpolate
        assert raised is not None  # ``settings.check`` has refused a family that cannot
        made = raised()(pipe, given, settings, times_s=times[0], seconds=times[1], on_step=on_step)
        written = write_video(made, target, sample_aspect=None if film is None else film.sample_aspect)
    if film is not None and film.has_audio:
        if target.suffix.lower() in COPIED_AUDIO:
            keep_audio(film, written)
        else:
            log.warning("the sound of `%s` is left out: `%s` holds none", video, target)
    if not quiet:
        before, after = len(given.frames), len(made.frames)
        spent = time.monotonic() - begun
        say(f"{before} frames at {given.fps:g} a second became {after} at {made.fps:g}, {spent:.1f} s")
    emit(written)
