"""`kandinsky evaluate`: prompt sets of benchmarks, metrics of clips, and what comes of results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit, emit_json, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.evaluate.suites import SUITES
from kandinsky.model.values import Request
from kandinsky.printing import escaped

if TYPE_CHECKING:
    from kandinsky.evaluate.clip_files import ClipFile
    from kandinsky.evaluate.suites import Suite

NANO = "nano"
OF_A_RUN = ("negative_prompt", "seconds", "steps", "guidance", "shift", "seed", "cache", "fps", "motion")
OF_LOADING = tuple(f.name for f in dataclasses.fields(RunOptions) if f.metadata.get("flags") and f.name != "parallel")
SUMMARY, TIMES, VALUES = "generation.jsonl", "times.json", "measures.jsonl"


class Suites(TyperGroup):
    """A group whose commands are suites; without the name of one, the first word is a model for Nano's own."""

    def with_suite(self, words: list[str]) -> list[str]:
        """The words with the command that they mean."""
        return words if not words or words[0] in (*self.commands, "-h", "--help") else [NANO, *words]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = self.with_suite(args)
        if words != args and not args[0].startswith("-") and len(args) > 1 and not args[1].startswith("-"):
            raise RequestError(
                f"suite `{escaped(args[0])}` does not exist: use {', '.join(f'`{name}`' for name in self.commands)}"
            )
        return super().parse_args(ctx, words)


def build(command: type) -> typer.Typer:
    """The group, its commands of a class."""
    group = typer.Typer(
        cls=Suites,
        help="Measure how good a model's results are: suites of prompts, and what comes of their results. Without the "
        "name of a suite: Nano's own.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.callback()(_group)
    for suite in SUITES.values():
        told = f"Make clips for {suite.title} ({suite.file}), or take those of a folder, and measure them."
        group.command(suite.name, cls=command, help=told)(run_suite)
    for function in (nano, autoencoder, compare, report, board, export, distance):
        group.command(function.__name__, cls=command)(function)
    return group


def _group() -> None:
    pass


def nano(
    model: Annotated[
        str, typer.Argument(metavar="ID", help="Catalogue id, see `kandinsky models`.", autocompletion=model_ids)
    ],
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=1, help="Prompts per group; default: all, and 48 or 16 of scenes.")
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option("--group", help="Only this group, such as `plain`; may be repeated.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            "--data",
            metavar="FOLDER",
            help="Where `kandinsky data nano` put the clips; default: .cache/nano. Nano 2 does without, but for "
            "fidelity.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of some clips to this file.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps; default: the model's.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Classifier-free guidance scale; default: the model's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, or bfloat16 where the CPU supports it.")
    ] = None,
    branches: Annotated[
        bool, typer.Option("--branches", help="Measure how the model's own branches are followed instead.")
    ] = False,
    branch: Annotated[
        list[str] | None,
        typer.Option("--branch", metavar="FILE", help="Measure how this branch is followed; one of each kind."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how well a model's results match their prompts, or what its branches are told."""
    catalogue.find(model)
    from kandinsky.cli.progress import counted
    from kandinsky.lab.nano.evaluate import evaluate as measure
    from kandinsky.lab.nano.evaluate import table

    with counted("evaluating") as on_batch:
        result = measure(
            model, prompts=prompts, groups=groups or None, cache=cache, sheet=sheet, dtype=dtype, on_batch=on_batch,
            steps=steps, guidance=guidance, branches=branch or ([] if branches else None),
        )  # fmt: skip
    if as_json:
        emit_json(result, indent=1)
    else:
        print(table(result))


@rendered(asked=Flags(Request, only=OF_A_RUN), run=Flags(RunOptions, only=OF_LOADING))
def run_suite(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Catalogue id, folder or repository; with --clips, what to call them.",
            autocompletion=model_ids,
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="The suite's prompts, a file of yours.")
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help="Which column of it the model is given.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many prompts, the first ones.")] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Clips of each prompt; default: as many as the suite says.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="Folder of clips and results; default: SUITE-MODEL."),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option("--clips", metavar="FOLDER", help="Measure these clips, named as the suite does; make none."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option("--references", metavar="FOLDER", help="Clips to compare with: PSNR, SSIM, FVD, KVD."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric; may be repeated.")
    ] = None,
    extractors: Annotated[
        list[str] | None,
        typer.Option("--extractor", metavar="NAME=PATH", help="Weights of a network that metrics look through."),
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    asked: dict[str, Any],
    run: dict[str, Any],
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, local or ray://HOST:10001."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray workers; default: one per GPU, or per four CPUs.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="FOLDER", help="Where `kandinsky jobs` finds the clips; off = nowhere."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result file instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Make clips for a suite, or take those of a folder, and measure them. The last line is the result's path."""
    from kandinsky.cli.batch import check_ray
    from kandinsky.cli.progress import counted
    from kandinsky.evaluate import results
    from kandinsky.evaluate.clip_files import all_in, found
    from kandinsky.evaluate.extractors import find_tools
    from kandinsky.evaluate.measuring import measure, needed
    from kandinsky.evaluate.metrics import chosen
    from kandinsky.evaluate.prompts import with_clips
    from kandinsky.files import check_writable

    suite = SUITES[str(ctx.info_name)]
    names = list(metrics or suite.metrics)
    chosen(names)
    weights = _named(extractors or ())
    check_ray(ray, workers, run["device"], prompts)
    if model is None and clips is None:
        raise RequestError("no model was given: name one, or clips that exist with --clips FOLDER")
    if prompts is None and (clips is None or suite.name != "own"):
        raise RequestError(f"no prompts were given: name {suite.file} with --prompts FILE")
    model = model or Path(str(clips)).resolve().name
    asked_for = [] if prompts is None else suite.read(prompts, column)[:limit]
    if count is not None:
        asked_for = with_clips(asked_for, count)
    folder = output or Path(f"{suite.name}-{model.strip('/').replace('/', '-')}")
    check_writable(folder / results.FILE)
    if clips is None:
        files = _generated(
            suite, model, asked_for, folder, size, asked, RunOptions(**run), ray=ray, workers=workers, store=store,
            quiet=quiet,
        )  # fmt: skip
    else:
        files = found(asked_for, clips) if prompts is not None else all_in(clips)[:limit]
    tools = find_tools(needed(names, has_references=references is not None), weights, device=run["device"])
    with counted("measuring") as on_clip:
        measured = measure(files, names, tools, references=references, kept=folder / VALUES, on_clip=on_clip)
    result = results.build(
        suite, model, files, measured, tools, prompts=prompts, column=column, folder=folder, seconds=_times(folder)
    )
    path = results.write(result, folder / results.FILE)
    if as_json:
        emit_json(json.loads(path.read_text(encoding="utf-8")), indent=1)
    else:
        print(results.table(result))
        emit(path)


def autoencoder(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Catalogue id or folder of a model, or the folder of an autoencoder as training writes it.",
            autocompletion=model_ids,
        ),
    ],
    clips: Annotated[Path, typer.Option("--clips", metavar="FOLDER", help="Clips to code and decode.")],
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT; default: each clip's own, cropped.")] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Of each clip, at most; its beginning.")] = 17,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many clips, the first ones.")] = None,
    extractors: Annotated[
        list[str] | None,
        typer.Option("--extractor", metavar="NAME=PATH", help="Weights of lpips or i3d, for LPIPS and rFVD."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; default: the best.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result there, a .json file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what an autoencoder loses (PSNR, SSIM, LPIPS, flicker, rFVD), and what its latents are like."""
    from kandinsky.cli.progress import counted
    from kandinsky.engine.request import parse_size
    from kandinsky.evaluate import autoencoders, results
    from kandinsky.evaluate.clip_files import clips_of
    from kandinsky.evaluate.extractors import find_tools
    from kandinsky.files import check_writable, replacing

    RunOptions(device=device, dtype=dtype).check()
    wanted = None if size is None else parse_size(size)
    files = dict(sorted(clips_of(clips).items())[:limit])
    if output is not None:
        check_writable(output)
    tools = find_tools(autoencoders.NEEDED, _named(extractors or ()), device=device)
    with autoencoders.opened(model, device=device, dtype=dtype) as coder, counted("measuring") as on_clip:
        ratio = f"{coder.temporal}x{coder.spatial}x{coder.spatial}"
        found = autoencoders.evaluate(coder, files, tools, size=wanted, frames=frames, on_clip=on_clip)
    told = {"kandinsky_autoencoder": 1, "model": model, "ratio": ratio, "weights": dict(tools.weights)} | found
    told["machine"] = results.machine()
    if output is not None:
        with replacing(output) as part:
            part.write_text(json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        emit_json(told, indent=1)
    else:
        print(f"{model}, {ratio}: {len(files)} clips\n{autoencoders.table(found)}")
        if output is not None:
            emit(output)


def compare(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FOLDER...", help="Runs, or folders of clips; files of one prompt share a name."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What people call it; default: the date. Not the models.")
    ] = None,
    questions: Annotated[
        str, typer.Option("--questions", metavar="NAME", help="Questionnaire: simple or kandinsky-5.")
    ] = "simple",
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="Annotators per pair.")] = 5,
    annotators: Annotated[
        int | None,
        typer.Option("--annotators", min=1, help="Among whom pairs are dealt; default: each sees all pairs."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--deal", min=0, metavar="SEED", help="Seed of sides and orders; default: drawn."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many prompts, the first ones.")] = None,
    checks: Annotated[
        int,
        typer.Option("--checks", min=0, help="Prompts of attention checks: a clip beside a coarse copy of itself."),
    ] = 0,
    owner: Annotated[
        str | None,
        typer.Option("--owner", metavar="NAME", help="Whose key may read the report on a server with --keys."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="FOLDER", help="The store of the server; default: in your data folder."),
    ] = None,
) -> None:
    """Begin a side-by-side study, which people answer at /compare of a server. The line on stdout is its name."""
    import time

    from kandinsky.evaluate.studies import plan_study, read_set
    from kandinsky.evaluate.study_store import StudyStore, new_id
    from kandinsky.jobs.sqlite_store import open_store

    sets = []
    for given in folders:
        called, mark, folder = given.partition("=")
        if mark and not Path(given).exists():
            sets.append(read_set(Path(folder), called))
        else:
            sets.append(read_set(Path(given)))
    study, clips, left_out = plan_study(
        new_id(), name or f"Comparison of {time.strftime('%Y-%m-%d %H:%M')}", sets, questions=questions,
        overlap=overlap, seats=annotators, seed=seed, limit=limit, owner=owner or "", created=time.time(),
        checks=checks,
    )  # fmt: skip
    StudyStore(open_store(store).folder).add(study, clips)
    if left_out:
        say(f"{left_out} prompts are left out, since not every set has a clip of them")
    say(f"{len(study.prompts)} prompts, {study.count} pairs for the first annotator; `kandinsky serve"
        f"{f' --store {store}' if store else ''}` shows it at /compare#{study.id}")  # fmt: skip
    emit(study.id)


def report(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, as `compare` printed it.")],
    votes: Annotated[
        Path | None, typer.Option("--votes", metavar="FILE", help="Write its votes too, a .jsonl or .csv file.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="FOLDER", help="The store of the server; default: in your data folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what people answered in a side-by-side study, for whoever runs the server."""
    from kandinsky.evaluate.studies import report as counted
    from kandinsky.evaluate.studies import report_table
    from kandinsky.evaluate.study_store import StudyStore
    from kandinsky.evaluate.votes import write_votes
    from kandinsky.jobs.sqlite_store import open_store

    studies = StudyStore(open_store(store).folder)
    found = studies.get(study)
    if found is None:
        raise RequestError(f"there is no study `{escaped(study)}` in this store: `kandinsky evaluate compare` names it")
    cast = studies.votes(found.id)
    if votes is not None:
        write_votes(cast, votes)
    told = counted(found, cast)
    if as_json:
        emit_json({"study": found.id, "name": found.name, "models": list(found.models), **told}, indent=1)
    else:
        emit(report_table(found, told))


def board(
    given: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Runs, their result files, or results of VBench's official tool."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, a .html file.")],
    title: Annotated[str, typer.Option("--title", help="Its heading.")] = "Comparison of models",
) -> None:
    """Write a leaderboard, one page: metrics, tables, cost against quality, contact sheets. Its path on stdout."""
    from kandinsky.evaluate import results
    from kandinsky.evaluate.board import write

    emit(write([results.read(path) for path in given], output, title=title))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of the suite vbench.")],
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help="Its prompts, VBench_full_info.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new folder.")],
) -> None:
    """Lay a run's clips out as the official VBench tool reads them. The last line on stdout is the folder."""
    from kandinsky.evaluate.clip_files import clips_of
    from kandinsky.evaluate.prompts import read_vbench
    from kandinsky.evaluate.vbench import export as write

    there = clips_of(run)
    files, entries = [], []
    for one in read_vbench(prompts):
        mine = [(there[stem], one.name, i) for i, stem in enumerate(one.files()) if stem in there]
        files += mine
        if mine:
            entries.append(
                {"prompt_en": one.name, "dimension": [name.replace(" ", "_") for name in one.dimensions],
                 **({"auxiliary_info": dict(one.facts)} if one.facts else {})}
            )  # fmt: skip
    if not files:
        raise RequestError(f"`{run}` holds no clip of `{prompts}`: make them with `kandinsky evaluate vbench`")
    write(files, entries, output)
    say(f"{len(files)} clips of {len(entries)} prompts; the tool takes `videos` and `full_info.json`")
    emit(output)


def distance(
    one: Annotated[Path, typer.Argument(metavar="FEATURES", help="An .npy file: a row of features for each clip.")],
    other: Annotated[Path, typer.Argument(metavar="OTHERS", help="The same of other clips.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fréchet and kernel distance of two sets of features."""
    from kandinsky.evaluate.distance import frechet, kernel

    rows = [_features(path) for path in (one, other)]
    found = {"frechet": frechet(*rows), "kernel": kernel(*rows), "clips": [len(rows[0]), len(rows[1])]}
    if as_json:
        emit_json(found)
    else:
        emit(f"Fréchet {found['frechet']:.6g}, kernel {found['kernel']:.6g}, {len(rows[0])} and {len(rows[1])} clips")


def _features(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"features `{path}` cannot be read: use an .npy file of numbers") from error


def _named(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not mark or not path:
            raise RequestError(f"--extractor `{one}` is no NAME=PATH, such as `clip-b32=folder`")
        found[name] = path
    return found


def _generated(
    suite: Suite, model: str, prompts: Sequence[Any], folder: Path, size: str | None, asked: dict[str, Any],
    options: RunOptions, *, ray: str | None, workers: int | None, store: str | None, quiet: bool,
) -> list[ClipFile]:  # fmt: skip
    """Make the clips that are not there yet.

    Raises:
        typer.Exit: Some could not be made.
    """
    from kandinsky.cli.batch import run_batch
    from kandinsky.engine.request import parse_size
    from kandinsky.evaluate.clip_files import CLIPS, planned
    from kandinsky.jobs.batch import Loading, part_finished, plan_items
    from kandinsky.jobs.prompt_files import Row

    source = catalogue.source_of(model)
    if source.card.does.makes == "sound":
        raise RequestError(f"`{model}` makes sound, and the suite `{suite.name}` measures clips: choose another model")
    width, height = (None, None) if size is None else parse_size(size)
    files = planned(prompts, folder, asked["seed"] or 0)
    request = Request(model=model, width=width, height=height, **{**asked, "seed": None})
    rows = [
        Row(one.prompt.line, {"prompt": one.prompt.text, "seed": one.seed, "output": one.path.name}) for one in files
    ]
    loading = Loading(source, options)
    items, refused = plan_items(rows, request, loading, output=str(folder / CLIPS / "{name}.mp4"))
    left, finished = part_finished(items, loading)
    (options.changed(device=None) if ray else options).check()
    if left and not ray:
        loading.check_files()
    times = _times(folder)
    try:
        run_batch(
            left, [*refused, *finished], loading, summary=folder / SUMMARY, ray=ray, workers=workers, as_json=False,
            quiet=quiet, store=store, paths=False,
        )  # fmt: skip
    finally:
        _keep_times(folder, times)
    return files


def _times(folder: Path) -> dict[str, float]:
    """Seconds of each clip, by the stem of its file, from all runs so far."""
    try:
        return dict(json.loads((folder / TIMES).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _keep_times(folder: Path, times: dict[str, float]) -> None:
    from kandinsky.files import replacing

    try:
        lines = [json.loads(line) for line in (folder / SUMMARY).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return
    times |= {Path(one["path"]).stem: one["taken_s"] for one in lines if "taken_s" in one and "path" in one}
    with replacing(folder / TIMES) as part:
        part.write_text(json.dumps(times), encoding="utf-8")
