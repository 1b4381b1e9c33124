"""`kandinsky interpolate`: a higher frame rate for any video."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import STDOUT, destination, emit, say
from kandinsky.engine.options import RunOptions
from kandinsky.printing import counted

log = logging.getLogger(__name__)
MODEL = "kandinsky-video-1.1"


@rendered(run=Flags(RunOptions, only=("device", "dtype", "offload")))
def interpolate(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="File to read: .mp4 .webm .gif .webp, or a folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write, as for `kandinsky generate`.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Model whose interpolation network is used.", autocompletion=model_ids),
    ] = MODEL,
    factor: Annotated[
        int | None, typer.Option("--factor", help="2, 4, 8 or 16 times the frame rate; default: 4.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frame rate instead of a factor, up to 16 times the input's.")
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What the video shows, for models that are conditioned on it.")
    ] = "",
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale of the frames around a gap; 1 disables it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same video.")] = 0,
    *,
    run: dict[str, Any],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Raise a video's frame rate by interpolation. Length, size and audio stay the same."""
    from kandinsky import catalogue
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.errors import RequestError
    from kandinsky.media.animation import image_format
    from kandinsky.media.mux import COPIED_AUDIO, keep_audio, probe, read_input
    from kandinsky.media.video import check_target, read_video, write_video
    from kandinsky.weights.locate import locate_all

    with destination(output) as named:
        target = check_target(named)
        if not video.exists():
            raise RequestError(f"video `{video}` does not exist")
        if target.exists() and target.samefile(video):
            raise RequestError(f"output `{target}` is the video itself: name another file")
        if factor is not None and fps is not None:
            raise RequestError("--factor and --fps were both given: choose one")
        RunOptions(**run).check()
        source = catalogue.source_of(model)
        hush_libraries()
        from kandinsky.engine.interpolation import Raise

        settings = Raise(4 if factor is None else factor, fps, prompt, steps, guidance, seed)
        settings.check(source.card)
        # videos have timestamps, audio and a rotation; animations and folders of frames have none of these
        is_even = video.is_dir() or image_format(video) is not None
        probed = None if is_even else probe(video)
        if probed is not None:
            settings.rate(probed.fps)
        needed = set(source.card.components) - {"dit"} - (set() if prompt.strip() else {"text"})
        locate_all(source, only=needed)
        given = read_video(video) if probed is None else read_input(probed)
        begun = time.monotonic()
        with patient(f"interpolating {video.name}", quiet=quiet) as on_step:
            from kandinsky.catalogue import load

            pipe = load(model, **run, only=needed)
            times = (None, None) if probed is None else (probed.times_s, probed.seconds)
            raised = source.card.family.interpolate
            assert raised is not None  # ``settings.check`` has refused a family that cannot
            made = raised()(pipe, given, settings, times_s=times[0], seconds=times[1], on_step=on_step)
            written = write_video(made, target, sample_aspect=None if probed is None else probed.sample_aspect)
        if probed is not None and probed.has_audio:
            if target.suffix.lower() in COPIED_AUDIO:
                keep_audio(probed, written)
            else:
                log.warning("the audio of `%s` is left out: `%s` holds none", video, target)
        if not quiet:
            before, after = len(given.frames), made.num_frames
            spent = time.monotonic() - begun
            say(f"{counted(before, 'frame')} at {given.fps:g} a second became {after} at {made.fps:g}, {spent:.1f} s")
        if output != STDOUT:
            emit(written)
