"""`kandinsky generate`: a prompt becomes a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky.cli.together import together
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model import card as cards
from kandinsky.model.values import Request

if TYPE_CHECKING:
    from kandinsky.cli.sound import SoundModel
    from kandinsky.engine.request import Resolved
    from kandinsky.jobs.batch import Item, Outcome
    from kandinsky.media.image import FittedImage
    from kandinsky.model.values import VideoStream
    from kandinsky.runtime.parallel.layout import Layout

FULL_SIZE_MODEL = "kandinsky5-lite-t2v-sft-5s"


@together
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows. Or use --prompts.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Catalogue id, see `kandinsky models`.")] = (
        cards.DEFAULT_MODEL
    ),
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File to write: .mp4 .webm .gif .webp .png, %03d.png, or a folder `x/`."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Picture to begin with, or to edit.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option("--video", metavar="FILE", help="Film that gets sound, in a copy; -m nano-v2a.")
    ] = None,
    audio_only: Annotated[
        bool, typer.Option("--audio-only", help="With --video: write the sound alone, .wav or .flac.")
    ] = False,
    sound: Annotated[bool, typer.Option("--sound", help="Make the clip's sound too, for .mp4 and .webm.")] = False,
    sound_model: Annotated[
        str | None, typer.Option("--sound-model", metavar="ID", help="With --sound: the model that makes it.")
    ] = None,
    states: Annotated[
        Path | None, typer.Option("--states", metavar="FILE", help="With --video: states of the encoder, made before.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let an encoder run the program code of its own repository.")
    ] = False,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="For inpainting: white where --image is repainted.")
    ] = None,
    mask_grow: Annotated[
        int | None, typer.Option("--mask-grow", metavar="PIXELS", help="Make the mask larger on all sides; 6 is usual.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", "--duration", help="Length; 0 makes a still image.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="How strictly to follow; 1 is off.")] = None,
    shift: Annotated[
        float | None, typer.Option("--shift", help="Scale of the schedule: more steps near noise.")
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", help="What the video should not show.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same video; drawn when absent.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Videos for each prompt, with seeds counting up.")] = 1,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Many prompts: one a line, or .csv or .jsonl with a column each."
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", metavar="FILE", help="What became of each of --prompts; NAME.summary.jsonl."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: auto, local or ray://HOST:10001."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of Ray; one for each GPU, or for every four CPUs.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    offload: Annotated[
        str | None,
        typer.Option("--offload", help="none: all networks stay loaded. module: one at a time. block: one block."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="int8 or fp8 for the network, or dit=int8,text=nf4.")
    ] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="Decoding in tiles: none, auto or official.")] = None,
    text_cache: Annotated[
        str | None, typer.Option("--text-cache", metavar="on|off|FOLDER", help="Keep text states on disk.")
    ] = None,
    attention: Annotated[
        str, typer.Option("--attention", help="auto, dense, nabla or a backend, as in nabla:P=0.8 or sdpa.")
    ] = "auto",
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="Leave out steps: magcache, first-block or taylor, as in taylor:interval=3."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="F[:SCALE]", help="LoRA file, folder or downloaded repository; repeatable."),
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Have the model's language model write the prompt out first.")
    ] = False,
    expanded: Annotated[
        str | None, typer.Option("--expanded-prompt", help="The text it wrote before, to be used again.")
    ] = None,
    fps: Annotated[
        str | None, typer.Option("--fps", help="Of models that make key frames: low, medium or high.")
    ] = None,
    motion: Annotated[
        str | None, typer.Option("--motion", help="Of Kandinsky Video 1.1: low, medium, high or extreme.")
    ] = None,
    image_guidance: Annotated[
        float | None, typer.Option("--image-guidance", help="There: weight of the first frame.")
    ] = None,
    interpolation_guidance: Annotated[
        float | None, typer.Option("--interpolation-guidance", help="Of key frames, when gaps are filled; 1 is off.")
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option("--parallel", metavar="LAYOUT", help="Under torchrun: auto, or as cfg=2,ulysses=2."),
    ] = None,
    sheet: Annotated[str | None, typer.Option("--sheet", help="Also write a contact sheet, a .png.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would need; see `kandinsky plan`.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a result instead of its path.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr but errors.")] = False,
) -> None:
    """Make a video, an image or sound from words, a picture or a film. The result's path is the last line on stdout."""
    from kandinsky.cli.batch import check_ray, run_batch, summary_path
    from kandinsky.engine import sources
    from kandinsky.engine.attention import attention_for
    from kandinsky.engine.parallel import demand_of
    from kandinsky.engine.request import parse_size, resolve
    from kandinsky.jobs.batch import Loading, part_finished, plan_items
    from kandinsky.jobs.names import numbered
    from kandinsky.jobs.prompt_files import read as read_prompts
    from kandinsky.runtime.parallel.launch import World
    from kandinsky.runtime.parallel.layout import settle
    from kandinsky.weights.locate import locate_parts
    from kandinsky.weights.lora_files import find_loras

    if expanded is not None and prompts is not None:
        raise RequestError("--expanded-prompt belongs to one prompt: give that instead of --prompts")
    world = World.started()
    quiet = quiet or not world.is_first
    check_ray(ray, workers, device, prompts)
    if summary is not None and prompts is None:
        raise RequestError("--summary is for many prompts: give them with --prompts FILE")
    if video is not None and model == cards.DEFAULT_MODEL:
        model = cards.DEFAULT_SOUND
    source = sources.find(model)
    if source.card.sound is not None:
        from kandinsky.cli.sound import SoundModel, generate_sound, refuse
        from kandinsky.families.kandinsky4_v2a.request import SoundRequest

        refuse(
            {
                "--image": image, "--mask": mask, "--mask-grow": mask_grow, "--size": size, "--shift": shift,
                "--prompts": prompts, "--quantize": quantize, "--tiling": tiling, "--text-cache": text_cache,
                "--attention": attention, "--cache": cache, "--lora": lora, "--expand": expand,
                "--expanded-prompt": expanded, "--fps": fps, "--motion": motion, "--image-guidance": image_guidance,
                "--interpolation-guidance": interpolation_guidance, "--parallel": parallel, "--sheet": sheet,
                "--sound": sound, "--sound-model": sound_model,
            },
            model,
        )  # fmt: skip
        generate_sound(
            SoundModel(model, device, dtype, offload, trust_remote_code, has_states=states is not None),
            SoundRequest(model, prompt or "", video, negative, seconds, steps, guidance, seed, states),
            output,
            audio_only=audio_only,
            count=count,
            plan=plan,
            as_json=as_json,
            quiet=quiet,
        )
        return
    for option, given in (("--video", video), ("--audio-only", audio_only), ("--states", states)):
        if given:
            raise RequestError(
                f"`{model}` makes no sound and takes no {option}: use -m {cards.DEFAULT_SOUND}, or --sound"
            )
    chained = _sound_model(source.card, sound, sound_model, device, dtype, offload, trust_remote_code)
    if chained and (prompts is not None or parallel is not None):
        raise RequestError("--sound is for single prompts: leave --prompts and --parallel out, or add sound afterwards")
    width, height = (None, None) if size is None else parse_size(size)
    request = Request(
        model=model,
        prompt=prompt or "",
        negative_prompt=negative,
        seconds=seconds,
        width=width,
        height=height,
        steps=steps,
        guidance=guidance,
        shift=shift,
        seed=seed,
        cache=cache,
        expand=expand,
        expanded_prompt=expanded,
        image=None if image is None else str(image),
        mask=None if mask is None else str(mask),
        mask_grow=mask_grow,
        fps=fps,
        motion=motion,
        image_guidance=image_guidance,
        interpolation_guidance=interpolation_guidance,
    )
    _check_prompt(prompt, prompts, may_lack=image is not None and source.card.prompt == "optional")
    loading = Loading(
        source,
        device=device,
        dtype=dtype,
        offload=offload or "none",
        lora=tuple(lora or ()),
        quantize=quantize,
        tiling=tiling,
        text_cache={"on": True, "off": False}.get(text_cache or "", text_cache),
        attention=attention,
    )
    items: list[Item] = []
    settled: list[Outcome] = []
    if prompts is not None:
        items, settled = plan_items(read_prompts(prompts), request, loading, count=count, output=output, sheet=sheet)
        jobs = [item.job for item in items]
    else:
        first = resolve(request, source.card)
        attention_for(source.card, first.sampling, attention)
        jobs = [first, *(resolve(request.with_values(seed=first.seed + i), source.card) for i in range(1, count))]

    if plan:
        from kandinsky.cli.plan import show_plan
        from kandinsky.engine.plan import plan_resolved

        show_plan(
            plan_resolved(jobs[0], root=source.root, device=device, dtype=dtype, offload=offload, quantize=quantize),
            as_json=as_json,
            clips=len(jobs),
        )
        return

    if ray is not None and world.size > 1:
        raise RequestError("--ray starts its own processes: leave `torchrun` out")
    # items of a file are made one by one: there is no batch to split
    clips = len(jobs) if prompts is None else 1
    used = attention_for(source.card, jobs[0].sampling, attention)
    layout, why = settle(parallel, world.size, demand_of(jobs[0], used, clips))
    if prompts is not None:
        loading = replace(loading, parallel=layout if layout.size > 1 else None)
        left, finished = part_finished(items, loading)
        _check([], [], None if ray else device, dtype, offload, quantize)
        if left and not ray:  # the workers of a cluster have files of their own
            find_loras(lora)
            for component in source.card.components.values():
                locate_parts(component, root=source.root, model=source.card.id)
        if world.size > 1 and not quiet:
            _say_layout(str(layout), world.size, why)
        if model == cards.DEFAULT_MODEL and not quiet:
            _say_default(source.card.title)
        run_batch(
            left if world.is_first else items,
            [*settled, *finished],
            loading,
            summary=summary or summary_path(prompts),
            ray=ray,
            workers=workers,
            as_json=as_json,
            quiet=quiet,
            is_first=world.is_first,
        )
        return
    targets = [_target(job, output, i, len(jobs)) for i, job in enumerate(jobs)]
    sheets = [numbered(sheet, i, len(jobs)) if sheet else None for i in range(len(jobs))]
    _check(targets, sheets, device, dtype, offload, quantize)
    if chained:
        from kandinsky.cli.sound import check_clip_targets

        check_clip_targets(targets, chained)
    find_loras(lora)
    for component in source.card.components.values():
        locate_parts(component, root=source.root, model=source.card.id)
    if world.size > 1 and not quiet:
        _say_layout(str(layout), world.size, why)
    if model == cards.DEFAULT_MODEL and not quiet:
        _say_default(source.card.title)
    if (fitted := jobs[0].image) and not quiet:
        _say_image(fitted)
    _run(
        model,
        jobs,
        targets,
        sheets,
        device=device,
        dtype=dtype,
        offload=offload,
        lora=lora,
        quantize=quantize,
        tiling=tiling,
        text_cache=text_cache,
        attention=attention,
        layout=layout,
        sound=chained,
        as_json=as_json,
        quiet=quiet,
    )


def _run(
    model: str,
    jobs: list[Resolved],
    targets: list[Path],
    sheets: list[Path | None],
    *,
    device: str | None,
    dtype: str | None,
    offload: str | None,
    lora: list[str] | None,
    quantize: str | None,
    tiling: str | None,
    text_cache: str | None,
    attention: str,
    layout: Layout,
    sound: SoundModel | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from kandinsky.cli.main import say
    from kandinsky.cli.progress import hush_libraries, patient
    from kandinsky.media.video import write_video

    hush_libraries()
    with patient("loading", quiet=quiet):
        from kandinsky.engine.build import load

        pipe = load(
            model,
            device=device,
            dtype=dtype,
            offload=offload or "none",
            lora=lora,
            quantize=quantize,
            tiling=tiling,
            text_cache={"on": True, "off": False}.get(text_cache or "", text_cache),
            attention=attention,
            parallel=layout if layout.size > 1 else None,
        )
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
            latents = [held.enter_context(_keeping_latent(target)) for target in targets[some]]
            on_step = held.enter_context(patient(title, quiet=quiet))
            videos = pipe.stream_batch(jobs[some], keep_latents=latents, on_step=on_step)
            written = [write_video(*one) for one in zip(videos, targets[some], sheets[some], strict=True)]
        taken = time.monotonic() - begun
        for job, video, path, sheet in zip(jobs[some], videos, written, sheets[some], strict=True):
            if not quiet:
                if job.expand:
                    say(f"expanded prompt: {video.recipe['expanded_prompt']}")
                if (kept := video.recipe.get("kept_blocks")) is not None:
                    say(f"attention {video.recipe['attention']}: kept {kept:.0%} of the blocks")
                say(f"seed {video.seed}, {video.num_frames} frames, {taken:.1f} s")
            facts = {"path": str(path), "sheet": str(sheet) if sheet else None, "taken_s": round(taken, 3)}
            if sound is None:
                _say_result(facts, video.recipe, as_json)
            else:
                silent.append((path, video, facts))
    if sound is not None:
        from kandinsky.cli.sound import add_to_clips

        del pipe  # and with it its networks
        recipes = add_to_clips(sound, [(path, video) for path, video, _ in silent], quiet=quiet)
        for (_, _, facts), recipe in zip(silent, recipes, strict=True):
            _say_result(facts, recipe, as_json)


def _say_result(facts: dict[str, Any], recipe: dict[str, Any], as_json: bool) -> None:
    print(json.dumps({**facts, "recipe": recipe}, ensure_ascii=False) if as_json else facts["path"], flush=True)


def _sound_model(
    card: cards.Card,
    sound: bool,
    name: str | None,
    device: str | None,
    dtype: str | None,
    offload: str | None,
    trust: bool,
) -> SoundModel | None:
    """What makes the sound of the clips, where that was asked for. Raises: RequestError for a model that makes none."""
    from kandinsky.cli.sound import SoundModel

    if not sound:
        if name is not None:
            raise RequestError("--sound-model says which model makes sound: add --sound")
        return None
    model = SoundModel(name or card.sounds_with, device, dtype, offload, trust)
    _ = model.card  # refuses what makes no sound
    return model


@contextmanager
def _keeping_latent(target: Path) -> Iterator[Path]:
    """Where the latent lies until its file is written; it stays where that fails, and what finishes it is said."""
    from kandinsky.cli.main import say
    from kandinsky.engine.latent_names import kept_hint, latent_path

    latent = latent_path(target)
    latent.unlink(missing_ok=True)  # of an earlier run
    try:
        yield latent
    except BaseException as error:
        if latent.exists():
            kept = kept_hint(latent)
            if isinstance(error, KandinskyError):
                error.hint = f"{error.hint}; {kept}" if error.hint else kept
            else:
                say(f"hint: {kept}")
        raise
    latent.unlink(missing_ok=True)


def _check_prompt(prompt: str | None, file: Path | None, *, may_lack: bool = False) -> None:
    if prompt is None and file is None and may_lack:
        return
    if (prompt is None) == (file is None):
        given = "both a prompt and --prompts were" if prompt is not None else "no prompt was"
        raise RequestError(f"{given} given: use one, such as `kandinsky generate 'a panda waves'`")


def _target(job: Resolved, output: str | None, index: int, total: int) -> Path:
    """The file of one result; several results get a number each, or the seed where the name is made up."""
    from kandinsky.jobs.names import NAME, ending_of, made_up_name, numbered

    name = made_up_name(job, seed=job.seed)
    if output is None:
        return Path(name + ending_of(job))
    return Path(output.replace(NAME, name)) if NAME in output else numbered(output, index, total)


def _check(
    targets: list[Path],
    sheets: list[Path | None],
    device: str | None,
    dtype: str | None,
    offload: str | None,
    quantize: str | None,
) -> None:
    """All that can be refused before torch is loaded."""
    from kandinsky.media.video import check_sheet, check_target
    from kandinsky.runtime.devices import check_device, choose_dtype
    from kandinsky.runtime.plan import check_offload
    from kandinsky.runtime.quantise import parse

    for path in targets:
        check_target(path)
    for sheet in sheets:
        if sheet:
            check_sheet(sheet)
    check_device(device)
    choose_dtype(dtype, device or "cpu")
    check_offload(offload or "none")
    parse(quantize)


def _say_image(image: FittedImage) -> None:
    """What becomes of the given picture, where it is not used as it is."""
    from kandinsky.cli.main import say

    if image.given == image.used:
        return
    how = "resized" if image.how == "stretch" else "resized and cut to the middle"
    say(f"image {image.picture.file}: {image.given}, used as {image.used}, {how}")


def _say_layout(layout: str, size: int, why: str) -> None:
    from kandinsky.cli.main import say

    say(f"{size} processes, --parallel {layout}: {why}")


def _say_default(title: str) -> None:
    from kandinsky.cli.main import say

    say(f"model {cards.DEFAULT_MODEL} (the default): {title}; it ships with the package and runs anywhere")
    say(f"for a full-size model: kandinsky plan -m {FULL_SIZE_MODEL}, then generate with -m {FULL_SIZE_MODEL}")
