"""`kandinsky decode`: decode a kept latent to the file it was meant to become."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import STDOUT, destination, emit, emit_json, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.printing import counted


@rendered(
    run=Flags(
        RunOptions,
        only=("device", "dtype", "offload", "tiling"),
        help={
            "device": "cpu, cuda, cuda:N or mps; default: as recorded.",
            "dtype": "float32, bfloat16 or float16; default: as recorded.",
            "offload": "block: decode layer by layer, in less memory and more time.",
            "tiling": "none, auto or official; default: as recorded.",
        },
    )
)
def decode(
    latent: Annotated[Path, typer.Argument(metavar="LATENT", help="What `generate` kept: x.latent.safetensors.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File to write; by default the one it was made for.")
    ] = None,
    *,
    run: dict[str, Any],
    sheet: Annotated[str | None, typer.Option("--sheet", help="Also write a contact sheet, a .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of the path.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Decode a latent that was kept into the same frames; only the autoencoder is loaded. The latent stays."""
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.media.video import check_sheet, check_target, write_video

    if output == STDOUT and as_json:
        raise RequestError("output `-` takes one result and nothing else: leave --json out")
    with destination(_target(latent, output), ending=_ending(latent)) as named:
        target = check_target(named)
        if sheet:
            check_sheet(sheet, target)
        RunOptions(**run).check()
        hush_libraries()
        begun = time.monotonic()
        with patient("decoding", quiet=quiet):
            from kandinsky.catalogue import load
            from kandinsky.engine.latents import read_latent

            recipe = read_latent(latent).recipe
            pipe = load(
                recipe["model"],
                device=run["device"] or recipe["device"],
                dtype=run["dtype"] or recipe["dtype"],
                offload=run["offload"] or "none",
                tiling=run["tiling"] or recipe.get("tiling"),
                only=("vae",),
            )
            video = pipe.finish_stream(latent)
            written = write_video(video, target, Path(sheet) if sheet else None)
        if not quiet:
            say(f"seed {video.seed}, {counted(video.num_frames, 'frame')}, {time.monotonic() - begun:.1f} s")
        if as_json:
            emit_json({"path": str(written), "sheet": sheet, "recipe": video.recipe})
        elif output != STDOUT:
            emit(written)


def _target(latent: Path, output: str | None) -> str:
    from kandinsky.engine.latent_names import ENDING, target_of

    if output is not None:
        return output
    if not latent.is_file():
        raise RequestError(f"latent `{latent}` does not exist")
    target = target_of(latent)
    if target is None:
        raise RequestError(f"latent `{latent}` does not end in `{ENDING}`: say with `-o` what to write")
    return str(target)


def _ending(latent: Path) -> str:
    """The ending for stdout: that of the file the latent was made for, if known."""
    from kandinsky.engine.latent_names import target_of

    target = target_of(latent)
    return ".mp4" if target is None or not target.suffix or "%" in target.name else target.suffix
