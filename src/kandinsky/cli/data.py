"""`kandinsky data …`: fetch, build and encode training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.printing import counted, escaped

SHOWN = 20  # skipped examples that are named


def nano(
    folder: Annotated[Path | None, typer.Option("--folder", help="Folder for the downloads and the data set.")] = None,
) -> None:
    """Build the clips that nano models are trained on: animated 3D emoji, captioned in English and Russian."""
    from kandinsky.lab.nano.emoji import build

    print(build() if folder is None else build(cache=folder))


@rendered(run=Flags(RunOptions, only=("device", "dtype", "offload", "quantize", "tiling", "trust_remote_code")))
def encode(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder, metadata.jsonl or .csv, list of files, or WebDataset shards."),
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="ID", help="Model whose encoders are used.", autocompletion=model_ids),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the data set.")],
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="WIDTHxHEIGHT of clips; several times for buckets, each with the share it keeps: 768x512:0.3.",
        ),
    ] = None,
    seconds: Annotated[
        list[float] | None,
        typer.Option(
            "--seconds",
            metavar="SECONDS",
            help="Length of clips at most; several times: the longest of these that a file covers.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that decode files; 0 for none.")] = 1,
    captions: Annotated[
        str, typer.Option("--captions", help="Whether every example must have one: required or optional.")
    ] = "required",
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave out examples whose name or caption cannot be used.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Type of stored numbers: float32, float16 or bfloat16; as computed by default."),
    ] = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", help="Size of the files, in megabytes.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws among sizes.")] = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Official `weights/` folder to read the model from.")
    ] = None,
    *,
    run: dict[str, Any],
) -> None:
    """Encode clips and captions into latents and embeddings for training. A run that was stopped goes on."""
    from kandinsky.cli import progress
    from kandinsky.train.data import encode as encoding

    if captions not in ("required", "optional"):
        raise RequestError(f"captions `{escaped(captions)}`: use `required` or `optional`")
    progress.hush_libraries()
    with progress.counted("encoding") as tell:
        made = encoding.encode(
            source,
            model,
            output,
            sizes=size or (),
            seconds=seconds or (),
            workers=workers,
            captions="required" if captions == "required" else "optional",
            faults="skip" if skip_faulty else "refuse",
            store=store,
            shard_mb=shard_mb,
            seed=seed,
            options=RunOptions(**run, weights=weights),
            on_progress=tell,
        )
    for fault in made.skipped[:SHOWN]:
        say(f"skipped: {fault.reason}")
    if len(made.skipped) > SHOWN:
        say(f"skipped: {len(made.skipped) - SHOWN} more, see `{made.folder / 'dataset.json'}`")
    new = f"{counted(made.clips, 'clip')} ({made.added} new)"
    say(f"{new}, {counted(made.texts, 'caption')}, {len(made.skipped)} skipped")
    emit(made.folder)


def curate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of videos, list of files or of http(s) addresses, metadata.jsonl or .csv, WebDataset, or a "
            "raw table (.parquet).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the data set.")],
    rules: Annotated[
        Path | None,
        typer.Option("--rules", metavar="FILE", help="Filters, buckets and settings, in TOML."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="What is written: folder (clips and metadata.jsonl) or shards (WebDataset).")
    ] = "folder",
    shard_mb: Annotated[int, typer.Option("--shard-mb", help="Size of the shards, in megabytes.")] = 256,
    dataset_name: Annotated[
        str | None,
        typer.Option("--dataset-name", metavar="NAME", help="In the raw table; the name of SOURCE by default."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, local or ray://HOST:10001."),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Ray workers; default: one per CPU.")] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            "--patience",
            metavar="SECONDS",
            help="Restart a Ray worker that makes no progress on a file for this long; default: 600.",
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try files and measures that went wrong again, though nothing has changed.")
    ] = False,
    downloads: Annotated[
        Path | None,
        typer.Option("--downloads", metavar="FOLDER", help="For fetched files; default: in the data set."),
    ] = None,
    most_mb: Annotated[
        int | None, typer.Option("--most-mb", min=1, help="Largest file that is fetched, in megabytes; default: 4096.")
    ] = None,
) -> None:
    """Find, measure, filter and cut the scenes of raw videos. A run that was stopped goes on."""
    from kandinsky.cli.progress import staged
    from kandinsky.curate.engines import LONGEST_PATIENCE_S, PATIENCE_S
    from kandinsky.curate.fetching import MOST_MB
    from kandinsky.curate.run import curate as run

    if form not in ("folder", "shards"):
        raise RequestError(f"format `{escaped(form)}`: use `folder` or `shards`")
    if ray is None and workers is not None:
        raise RequestError("--workers is for a Ray cluster: add --ray, such as `--ray local`")
    if ray is None and patience is not None:
        raise RequestError("--patience is for a Ray cluster: add --ray, such as `--ray local`")
    if patience is not None and not 0 < patience <= LONGEST_PATIENCE_S:
        raise RequestError(f"--patience must be above 0 and up to {LONGEST_PATIENCE_S} seconds, not `{patience:g}`")
    with staged() as tell:
        made = run(
            source,
            output,
            rules=rules,
            form="shards" if form == "shards" else "folder",
            shard_mb=shard_mb,
            dataset_name=dataset_name or "",
            ray=ray,
            workers=workers,
            patience_s=PATIENCE_S if patience is None else patience,
            retry=retry,
            downloads=downloads,
            most_mb=MOST_MB if most_mb is None else most_mb,
            tell=say,
            on_progress=tell,
        )
    for fault in made.faults[:SHOWN]:
        say(f"{fault.name}: {fault.reason}")
    if len(made.faults) > SHOWN:
        say(f"{len(made.faults) - SHOWN} more, see `{made.folder / 'curate.json'}`")
    rates = made.throughput.get("stages", {})
    for tally in made.tallies:
        rate = rates.get(tally.name, {}).get("video_s_per_s") if tally.new else None
        speed = f"; {rate:g} seconds of video a second" if rate else ""
        say(f"{tally.name}: {tally.new} new, {tally.known} known{speed}")
    if made.is_new and "decoding" in rates:
        say(f"decoding alone: {rates['decoding']['video_s_per_s']:g} seconds of video a second, of one worker")
    for name, count in made.dropped.items():
        say(f"dropped by {name}: {count}")
    say(f"{counted(made.files, 'file')}, {counted(made.scenes, 'scene')}, {made.kept} kept")
    if not made.is_new:
        say("nothing to do: all of it is there")
    emit(made.folder)
