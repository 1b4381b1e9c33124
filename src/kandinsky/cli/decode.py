"""`kandinsky decode`: a latent that was kept becomes the file it was meant to be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.streams import emit, emit_json, say
from kandinsky.errors import RequestError


def decode(
    latent: Annotated[Path, typer.Argument(metavar="LATENT", help="What `generate` kept: x.latent.safetensors.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File to write; by default the one it was made for.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; as it was made on.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; as it was made.")] = None,
    offload: Annotated[
        str | None, typer.Option("--offload", help="block: decode layer by layer, in less memory and more time.")
    ] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="none, auto or official; as it was asked for.")] = None,
    sheet: Annotated[str | None, typer.Option("--sheet", help="Also write a contact sheet, a .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the path.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Finish a result from its latent: the same frames, the autoencoder alone is loaded. The latent stays."""
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.media.video import check_sheet, check_target, write_video
    from kandinsky.runtime.budget import check_offload
    from kandinsky.runtime.devices import check_device

    target = check_target(_target(latent, output))
    if sheet:
        check_sheet(sheet)
    check_device(device)
    check_offload(offload or "none")
    hush_libraries()
    begun = time.monotonic()
    with patient("decoding", quiet=quiet):
        from kandinsky.catalogue import load
        from kandinsky.engine.latents import read_latent

        recipe = read_latent(latent).recipe
        pipe = load(
            recipe["model"],
            device=device or recipe["device"],
            dtype=dtype or recipe["dtype"],
            offload=offload or "none",
            tiling=tiling or recipe.get("tiling"),
            only=("vae",),
        )
        video = pipe.finish_stream(latent)
        written = write_video(video, target, Path(sheet) if sheet else None)
    if not quiet:
        say(f"seed {video.seed}, {video.num_frames} frames, {time.monotonic() - begun:.1f} s")
    if as_json:
        emit_json({"path": str(written), "sheet": sheet, "recipe": video.recipe})
    else:
        emit(written)


def _target(latent: Path, output: str | None) -> Path:
    from kandinsky.engine.latent_names import ENDING, target_of

    if output is not None:
        return Path(output)
    if not latent.is_file():
        raise RequestError(f"latent `{latent}` does not exist")
    target = target_of(latent)
    if target is None:
        raise RequestError(f"latent `{latent}` does not end in `{ENDING}`: say with `-o` what to write")
    return target
