"""`kandinsky generate`: from a prompt to a file."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli import notes
from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.settings import is_typed
from kandinsky.cli.streams import STDIN, STDOUT, destination, emit, emit_json, read_input, say
from kandinsky.cli.together import together
from kandinsky.engine.options import RunOptions
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.values import Request
from kandinsky.printing import counted

if TYPE_CHECKING:
    from kandinsky.cli.sound import SoundModel
    from kandinsky.engine.request import Job
    from kandinsky.jobs.batch import Item, Loading, Outcome
    from kandinsky.model.values import VideoStream
    from kandinsky.runtime.parallel.layout import Layout

MOST_RESULTS = 10_000  # of one prompt; every one is checked before the first is made
FULL_SIZE_MODEL = "kandinsky5-lite-t2v-sft-5s"
FORMATS = ("mp4", "webm", "gif", "webp", "png", "jpg", "wav", "flac")
LONGEST_PROMPT = 2**20  # bytes


@together
@rendered(asked=Flags(Request), run=Flags(RunOptions))
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to show; `-` reads it from stdin. Or use --prompts.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Catalogue id (see `kandinsky models`), folder, or repository.",
            autocompletion=model_ids,
        ),
    ] = catalogue.DEFAULT_MODEL,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .mp4 .webm .gif .webp .png .jpg, %03d.png, a folder `x/`, or `-` for stdout.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"Without -o, or with `-o -`: {', '.join(FORMATS)}.",
        ),
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    asked: dict[str, Any],
    audio_only: Annotated[
        bool, typer.Option("--audio-only", help="With --video: write the audio alone, .wav or .flac.")
    ] = False,
    sound: Annotated[bool, typer.Option("--sound", help="Generate audio for the clip too; .mp4 and .webm.")] = False,
    sound_model: Annotated[
        str | None,
        typer.Option(
            "--sound-model", metavar="ID", help="With --sound: the model that generates it.", autocompletion=model_ids
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, max=MOST_RESULTS, help="Results per prompt, with consecutive seeds.")
    ] = 1,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Many prompts: one per line, or .csv, .jsonl, .json with named columns; `-` for stdin.",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary", metavar="FILE", help="With --prompts: the outcome of each; default: NAME.summary.jsonl."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="FOLDER", help="With --prompts: where `kandinsky jobs` finds the batch; off = nowhere."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, local or ray://HOST:10001."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray workers; default: one per GPU, or per four CPUs.")
    ] = None,
    run: dict[str, Any],
    sheet: Annotated[str | None, typer.Option("--sheet", help="Also write a contact sheet, a .png.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what it would need; see `kandinsky plan`.")] = False,
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Make it in this process, even where a server of yours would make it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per result instead of its path.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Generate a video, an image or audio from text, images or video. The last line on stdout is the result's path."""
    from kandinsky.cli.batch import check_ray, run_batch, summary_path
    from kandinsky.engine.attention import attention_for
    from kandinsky.engine.parallel import demand_of
    from kandinsky.engine.plan import loses_by_processes
    from kandinsky.engine.request import parse_size
    from kandinsky.jobs.batch import Loading, jobs_of, part_finished, plan_items
    from kandinsky.jobs.names import numbered
    from kandinsky.jobs.prompt_files import parse as parse_prompts
    from kandinsky.jobs.prompt_files import read as read_prompts
    from kandinsky.media.video import check_still
    from kandinsky.runtime.parallel.launch import World
    from kandinsky.runtime.parallel.layout import settle

    options = RunOptions(**run)
    is_piped = output == STDOUT
    _check_streams(is_piped, form, output, many=count > 1 or prompts is not None, as_json=as_json)
    if asked["expanded_prompt"] is not None and prompts is not None:
        raise RequestError("--expanded-prompt belongs to one prompt: give that instead of --prompts")
    world = World.started()
    quiet = quiet or not world.is_first
    check_ray(ray, workers, run["device"], prompts)
    if summary is not None and prompts is None:
        raise RequestError("--summary is for many prompts: give them with --prompts FILE")
    # as a setting it is of servers and workers too
    if store is not None and prompts is None and is_typed(context, "store"):
        raise RequestError("--store is for many prompts: give them with --prompts FILE")
    # a video that is to be changed in no way is one to be heard, unless a model was named
    if (
        asked["video"] is not None
        and not is_typed(context, "model")
        and not any(
            asked[name] is not None for name in ("strength", "mask", "span", "place", "source_prompt", "upscale")
        )
    ):
        model = catalogue.DEFAULT_SOUND if model == catalogue.DEFAULT_MODEL else model
    source = catalogue.source_of(model)
    width, height = (None, None) if size is None else parse_size(size)
    if STDIN in (prompt, str(prompts)) and world.size > 1:
        raise RequestError("standard input belongs to one process: give the prompt, or a file with --prompts")
    if prompt == STDIN and prompts is None:
        prompt = read_input("the prompt", longest=LONGEST_PROMPT).strip()
    request = Request(model=model, prompt=prompt or "", width=width, height=height, **asked)
    is_default = model == catalogue.DEFAULT_MODEL and not is_typed(context, "model")
    if is_default and (other := _giving_way(source, [request], quiet=quiet)) is not None:
        source, model = other, other.name
        request = replace(request, model=model)
    if source.card.does.makes == "sound":
        from kandinsky.cli.sound import SoundModel, generate_sound, refuse

        refuse(
            {
                "--image": request.image, "--last-image": request.last_image, "--known": list(request.conditions),
                "--control": request.control, "--reference": request.reference, "--branch": request.branch,
                "--prompt-at": list(request.prompt_at), "--fade": request.fade, "--overlap": request.overlap,
                "--loop": request.loop, "--strength": request.strength, "--span": request.span,
                "--place": request.place, "--upscale": request.upscale, "--upscale-strength": request.upscale_strength,
                "--source-prompt": request.source_prompt, "--resample": request.resample,
                "--mask": request.mask, "--mask-grow": request.mask_grow, "--size": size,
                "--shift": request.shift, "--prompts": prompts, "--quantize": options.quantize,
                "--tiling": options.tiling, "--text-cache": options.text_cache, "--attention": options.attention,
                "--cache": request.cache, "--lora": run["lora"], "--expand": request.expand,
                "--expanded-prompt": request.expanded_prompt, "--fps": request.fps, "--motion": request.motion,
                "--image-guidance": request.image_guidance, "--interpolation-guidance": request.interpolation_guidance,
                "--backends": None if options.backends == "default" else options.backends,
                "--parallel": options.parallel, "--sheet": sheet, "--sound": sound, "--sound-model": sound_model,
            },
            model,
        )  # fmt: skip
        generate_sound(
            SoundModel(model, options, has_states=request.states is not None),
            request,
            output,
            form=form,
            audio_only=audio_only,
            count=count,
            plan=plan,
            as_json=as_json,
            quiet=quiet,
        )
        return
    is_heard = request.video is not None and not source.card.does.knows
    for option, given in (("--video", is_heard), ("--audio-only", audio_only), ("--states", request.states)):
        if given and sound:
            raise RequestError(f"--sound adds audio to a new clip and takes no {option}: leave one of them out")
        if given:
            raise RequestError(
                f"`{model}` generates no audio and takes no {option}: use -m {catalogue.DEFAULT_SOUND}, or --sound"
            )
    chained = _sound_model(source.card, sound, sound_model, options)
    if chained and (prompts is not None or options.parallel is not None):
        raise RequestError(
            "--sound is for single prompts: leave --prompts and --parallel out",
            hint="audio is added to a finished clip by `kandinsky generate --video CLIP`",
        )
    _check_prompt(prompt, prompts, may_lack=request.image is not None and source.card.prompt == "optional")
    loading = Loading(source, options)
    items: list[Item] = []
    settled: list[Outcome] = []
    if prompts is not None:
        if str(prompts) == STDIN:
            rows = parse_prompts(read_input("prompts", errors="surrogateescape"))
        else:
            rows = read_prompts(prompts)
        asking = []
        for row in rows if is_default else []:
            with contextlib.suppress(RequestError):  # told of where the row is planned
                asking.append(row.request(request))
        if (other := _giving_way(source, asking, quiet=quiet)) is not None:
            source, loading = other, Loading(other, options)
            request = replace(request, model=other.name)
        items, settled = plan_items(rows, request, loading, count=count, output=output, sheet=sheet, form=form)
        jobs = [item.job for item in items]
    else:
        jobs = jobs_of(request, loading, count)

    if plan:
        from kandinsky.cli.plan import show_plan
        from kandinsky.engine.plan import plan_resolved

        _check_read(source, jobs)
        show_plan(plan_resolved(jobs[0], options, root=source.root), as_json=as_json, clips=len(jobs))
        return

    if count > 1 and not quiet and source.card.part("text").settles:
        say(f"`{model}` shows what the words say, so other seeds look nearly the same: other words make other clips")
    if ray is not None and world.size > 1:
        raise RequestError("--ray starts its own processes: leave `torchrun` out")
    # items of a file are made one by one, so there is no batch to split
    clips = len(jobs) if prompts is None else 1
    used = attention_for(source.card, jobs[0].sampling, options.attention)
    layout, why = settle(options.parallel, world.size, demand_of(jobs[0], used, clips))
    options = options.changed(parallel=layout if layout.size > 1 else None)
    loading = Loading(source, options)
    if prompts is not None:
        left, finished = part_finished(items, loading)
        _check([], [], options.changed(device=None) if ray else options)
        if left and not ray:  # the workers of a cluster have files of their own
            loading.check_files()
        if not quiet:
            _say_run(source, layout, why, is_chosen=is_typed(context, "model"))
        run_batch(
            left if world.is_first else items,
            [*settled, *finished],
            loading,
            summary=summary or summary_path(prompts),
            ray=ray,
            workers=workers,
            as_json=as_json,
            quiet=quiet,
            store=store,
            is_first=world.is_first,
        )
        return
    with ExitStack() as held:
        if is_piped:
            ending = _piped_ending(jobs[0], form)
            output = held.enter_context(destination(STDOUT if world.is_first else f"result{ending}", ending=ending))
        targets = [_target(job, output, i, len(jobs), form) for i, job in enumerate(jobs)]
        if jobs[0].long:
            jobs = [_going_on(job, target, request) for job, target in zip(jobs, targets, strict=True)]
        sheets = [numbered(sheet, i, len(jobs)) if sheet else None for i in range(len(jobs))]
        _check(targets, sheets, options)
        for job, target in zip(jobs, targets, strict=True):
            check_still(target, job.frames)
        if chained:
            from kandinsky.cli.sound import check_clip_targets

            check_clip_targets(targets, chained)
        loading.check_files()
        if not quiet:
            _say_run(source, layout, why, is_chosen=is_typed(context, "model"))
            if layout.size > 1 and (slower := loses_by_processes(jobs[0], options, layout)):
                say(f"note: {slower}")
        for note in () if quiet else notes.before(jobs[0]):
            say(note)
        tell = _no_result if is_piped else emit_json if as_json else _say_path
        is_alone = len(jobs) == 1 and world.size == 1 and not chained and sheet is None
        if is_alone and not no_server and _is_handed(loading, request, jobs[0], targets[0], tell=tell, quiet=quiet):
            return
        _run(loading, jobs, targets, sheets, layout=layout, sound=chained, tell=tell, quiet=quiet)


def _check_read(source: catalogue.Source, jobs: Sequence[Job]) -> None:
    """Refuse to plan what a text encoder will refuse, where that is told without its weights and its files are here.

    Raises:
        RequestError: It knows nothing of a prompt.
    """
    from kandinsky.errors import WeightsError
    from kandinsky.weights.locate import locate_parts

    check = source.card.part("text").checks
    prompts = {
        prompt: None
        for job in jobs
        if not job.conditions  # beside an image, words may say nothing
        for prompt in ((job.text,) if job.long is None else job.long.script.prompts)
    }
    if check is None or not prompts:
        return
    with contextlib.suppress(WeightsError):
        files = locate_parts(source.card.text, root=source.root, model=source.name)
        for prompt in prompts:
            check()(source.card.text, files, prompt)


def _giving_way(source: catalogue.Source, requests: Sequence[Request], *, quiet: bool) -> catalogue.Source | None:
    """The model that the default one names for conditions that it does not take, or for images to begin with.

    What begins with an image goes to the model for images, and from there to the one that this names.
    """
    from kandinsky.engine.conditions import lacks

    found, why = source, ""
    if requests and all(request.image is not None for request in requests) and found.card.animates_with:
        found, why = catalogue.source_of(found.card.animates_with), "it begins with an image"
    if any(lacks(request, found.card) for request in requests) and found.card.conditions_with:
        why = f"`{found.name}` does not take all conditions that are asked for"
        found = catalogue.source_of(found.card.conditions_with)
    if found is source:
        return None
    if not quiet:
        before, size = source.card.clip.default_size, found.card.clip.default_size
        say(f"note: `{found.name}` is used{'' if size == before else f', which makes {size}'}, since {why}")
    return found


def _run(
    loading: Loading,
    jobs: list[Job],
    targets: list[Path],
    sheets: list[Path | None],
    *,
    layout: Layout,
    sound: SoundModel | None,
    tell: Callable[[dict[str, Any]], None],
    quiet: bool,
) -> None:
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.media.video import write_video

    hush_libraries()
    with patient("loading", quiet=quiet), _imported_once():
        pipe = loading.load()
    if not pipe.team.is_first:
        for begin in range(0, len(jobs), layout.data):
            pipe.run_batch(jobs[begin : begin + layout.data])
        return
    silent: list[tuple[Path, VideoStream, dict[str, Any]]] = []
    for begin in range(0, len(jobs), layout.data):
        some = slice(begin, begin + layout.data)
        begun = time.monotonic()
        title = jobs[begin].prompt if len(jobs) == 1 else f"{begin + 1}/{len(jobs)} {jobs[begin].prompt}"
        with ExitStack() as held:
            latents = [
                held.enter_context(_keeping_windows(target, job.seed) if job.long else _keeping_latent(target))
                for job, target in zip(jobs[some], targets[some], strict=True)
            ]
            on_step = held.enter_context(patient(title, quiet=quiet))
            videos = pipe.stream_batch(jobs[some], keep_latents=latents, on_step=on_step)
            written = [write_video(*one) for one in zip(videos, targets[some], sheets[some], strict=True)]
        taken = time.monotonic() - begun
        for job, video, path, sheet in zip(jobs[some], videos, written, sheets[some], strict=True):
            if not quiet:
                _say_made(job, video.recipe, video.num_frames, taken)
            facts = {"path": str(path), "sheet": str(sheet) if sheet else None, "taken_s": round(taken, 3)}
            if sound is None:
                tell({**facts, "recipe": video.recipe})
            else:
                silent.append((path, video, facts))
    if sound is not None:
        from kandinsky.cli.sound import add_to_clips

        del pipe  # and with it its networks
        recipes = add_to_clips(sound, [(path, video) for path, video, _ in silent], quiet=quiet)
        for (_, _, facts), recipe in zip(silent, recipes, strict=True):
            tell({**facts, "recipe": recipe})


@contextmanager
def _imported_once() -> Iterator[None]:
    """Pass over, in collections of garbage, what a fresh process imports within the block: it lives as long as that.

    Looking through torch takes a third of a second each time.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _is_handed(
    loading: Loading, request: Request, job: Job, target: Path, *, tell: Callable[[dict[str, Any]], None], quiet: bool
) -> bool:
    """Whether a server of the same user has made the result, and written its file."""
    from kandinsky.cli.handed import handed
    from kandinsky.files import output_path

    begun = time.monotonic()
    path = output_path(target)
    recipe = handed(loading.source, loading.options, request, job, path, quiet=quiet)
    if recipe is None:
        return False
    taken = time.monotonic() - begun
    if not quiet:
        _say_made(job, recipe, job.frames, taken)
    tell({"path": str(path), "sheet": None, "taken_s": round(taken, 3), "recipe": recipe})
    return True


def _say_made(job: Job, recipe: Mapping[str, Any], frames: int, taken: float) -> None:
    """That a result is made, and what its recipe says of how."""
    for note in notes.after(job, recipe):
        say(note)
    say(f"seed {job.seed}, {counted(frames, 'frame')}, {taken:.1f} s")


def _say_path(result: dict[str, Any]) -> None:
    emit(result["path"])


def _no_result(result: dict[str, Any]) -> None:
    """Print nothing, for results that are written to stdout themselves."""


def _check_streams(is_piped: bool, form: str | None, output: str | None, *, many: bool, as_json: bool) -> None:
    """Refuse options that do not go together with `-o -` and `--format`.

    Raises:
        RequestError: The format is unknown, several results go to stdout, or both options name a format.
    """
    from kandinsky.jobs.names import folder_of

    if form is not None and form not in FORMATS:
        raise RequestError(f"format `{form}` is not supported: use {', '.join(FORMATS)}")
    if is_piped and (many or as_json):
        what = "--json" if as_json else "several results"
        raise RequestError(f"output `-` takes one result and nothing else, not {what}: name files with -o")
    if form is not None and output is not None and not is_piped and not (many and folder_of(output)):
        raise RequestError(f"--format and -o {output} both say what is written: the ending of -o decides")


def _piped_ending(job: Job, form: str | None) -> str:
    """The ending of a result that goes to stdout.

    Raises:
        RequestError: The frames would be several files.
    """
    from kandinsky.jobs.names import ending_of

    ending = ending_of(job, form)
    if ending in (".png", ".jpg") and job.frames > 1:
        raise RequestError(
            f"format `{ending[1:]}` is one image, and this is a clip: use mp4, webm, gif or webp, or --seconds 0"
        )
    return ending


def _sound_model(card: catalogue.Card, sound: bool, name: str | None, options: RunOptions) -> SoundModel | None:
    """The model that generates the audio of the clips, if asked for.

    Raises:
        RequestError: The model cannot generate audio, or it was named without `--sound`.
    """
    from kandinsky.cli.sound import SoundModel

    if not sound:
        if name is not None:
            raise RequestError("--sound-model names the model that generates audio: add --sound")
        return None
    model = SoundModel(name or card.sounds_with, options)
    _ = model.card  # refuses models without audio
    return model


@contextmanager
def _keeping_latent(target: Path) -> Iterator[Path]:
    """Where the latent lies until its file is written; on failure it stays, and a message says how to finish it."""
    from kandinsky.engine.latent_names import kept_hint, latent_path

    latent = latent_path(target)
    latent.unlink(missing_ok=True)  # of an earlier run
    try:
        yield latent
    except KeyboardInterrupt as error:
        if latent.exists():
            raise KeyboardInterrupt(kept_hint(latent)) from error
        raise
    except BaseException as error:
        if latent.exists():
            kept = kept_hint(latent)
            if isinstance(error, KandinskyError):
                error.hint = f"{error.hint}; {kept}" if error.hint else kept
            else:
                say(f"hint: {kept}")
        raise
    latent.unlink(missing_ok=True)


@contextmanager
def _keeping_windows(target: Path, seed: int) -> Iterator[Path]:
    """Where finished windows lie until their clip is written; those that an earlier run left are used."""
    from kandinsky.engine.latent_names import ENDING, windows_hint, windows_path

    folder = windows_path(target)
    hint = windows_hint(folder, seed)
    try:
        yield folder
    except BaseException as error:
        if folder.is_dir():
            if isinstance(error, KandinskyError):
                error.hint = f"{error.hint}; {hint}" if error.hint else hint
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(hint) from error
            else:
                say(f"hint: {hint}")
        raise
    with contextlib.suppress(OSError):  # it may hold what is not ours
        for file in folder.glob(f"[0-9][0-9][0-9][0-9][0-9]*{ENDING}"):
            file.unlink()
        folder.rmdir()


def _going_on(job: Job, target: Path, request: Request) -> Job:
    """The job with the seed of the windows that an earlier run left, if none was asked for."""
    import dataclasses

    from kandinsky.engine.latent_names import window_name, windows_path

    of_file = job.upscale is not None and job.upscale.source is not None  # then there is no first stage
    first = windows_path(target) / window_name(0, is_large=of_file)
    if request.seed is not None or not first.is_file():
        return job
    from kandinsky.engine.latents import read_latent
    from kandinsky.media.recipe import from_text, to_text

    try:
        left = read_latent(first).recipe
    except KandinskyError:
        return job
    seed = left.get("seed")
    if seed is None:
        return job
    again = dataclasses.replace(job, seed=int(seed))
    settings = from_text(to_text({"kandinsky": "", **again.settings()})) or {}
    alike = left.get("model") in (job.card.id, request.model) and all(
        left.get(name) == value for name, value in settings.items() if name not in ("kandinsky", "model")
    )
    if not alike:
        say(f"windows in `{first.parent}` are of another clip, and its own take their place")
    return again if alike else job


def _check_prompt(prompt: str | None, file: Path | None, *, may_lack: bool = False) -> None:
    if prompt is None and file is None and may_lack:
        return
    if (prompt is None) == (file is None):
        given = "both a prompt and --prompts were" if prompt is not None else "no prompt was"
        raise RequestError(f"{given} given: use one, such as `kandinsky generate 'a panda waves'`")


def _target(job: Job, output: str | None, index: int, total: int, form: str | None) -> Path:
    """The file of one result; several results get a number each, or the seed if the name is derived."""
    from kandinsky.files import output_path
    from kandinsky.jobs.names import NAME, ending_of, folder_of, has_name, made_up_name, numbered

    name = made_up_name(job, seed=job.seed)
    folder = folder_of(output) if total > 1 else None
    if output is None or folder is not None:
        return (folder or Path()) / (name + ending_of(job, form))
    return output_path(output.replace(NAME, name)) if has_name(output) else numbered(output, index, total)


def _check(targets: list[Path], sheets: list[Path | None], options: RunOptions) -> None:
    """Refuse everything that can be refused before torch is loaded."""
    from kandinsky.files import sweep
    from kandinsky.media.video import check_sheet, check_target

    for path in targets:
        check_target(path)
    for folder in {path.parent for path in targets}:
        sweep(folder)  # what a killed run left
    for path, sheet in zip(targets, sheets, strict=True):
        if sheet:
            check_sheet(sheet, path)
    options.check()


def _say_run(source: catalogue.Source, layout: Layout, why: str, *, is_chosen: bool) -> None:
    """Say how several processes share the work, and which model it is where nobody chose one."""
    if layout.size > 1:
        say(f"{layout.size} processes, --parallel {layout}: {why}")
    if source.name == catalogue.DEFAULT_MODEL and not is_chosen:
        say(f"model {source.name} (the default): {source.card.title}; it ships with the package and runs anywhere")
        say(f"for a full-size model: kandinsky plan -m {FULL_SIZE_MODEL}, then generate with -m {FULL_SIZE_MODEL}")
