"""The audio side of `kandinsky generate`: audio for an input video (`--video`), and for new clips (`--sound`).

Everything that can be refused is refused before torch is loaded; the input video is only read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.cli.streams import STDOUT, destination, emit, emit_json, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.model.card import Card
from kandinsky.printing import counted

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import VideoToAudioPipeline
    from kandinsky.engine.request import Job
    from kandinsky.media.mux import InputVideo
    from kandinsky.model.values import Request, Video, VideoStream


@dataclass(frozen=True, slots=True)
class SoundModel:
    """Which model generates audio, and how it runs.

    Attributes:
        name: The model.
        asked: Options that were given.
        has_states: Whether precomputed embeddings are given, so that its encoder is not needed.
    """

    name: str
    asked: RunOptions
    has_states: bool = False

    @property
    def card(self) -> Card:
        from kandinsky import catalogue
        from kandinsky.model.card import sound_of

        card = catalogue.source_of(self.name).card
        sound_of(card)
        return card

    @property
    def options(self) -> RunOptions:
        """Of the options that were given, those that an audio model accepts."""
        asked = self.asked
        return RunOptions(
            device=asked.device,
            dtype=asked.dtype,
            offload=asked.offload,
            trust_remote_code=asked.trust_remote_code,
            only=set(self.card.components) - ({"text"} if self.has_states else set()),
        )

    def check(self) -> None:
        """Refuse everything that can be refused before torch is loaded.

        Raises:
            RequestError: The model does not generate audio, or needs remote code that was not allowed.
            WeightsError: A file is missing.
            BackendError: A device or package is not available.
        """
        from kandinsky import catalogue
        from kandinsky.engine.remote_code import check_trust
        from kandinsky.weights.locate import locate_all

        options = self.options
        options.check()
        source, needed = catalogue.source_of(self.name), set(options.only or ())
        check_trust(source.card, options.trust_remote_code, only=needed)
        locate_all(source, only=needed)

    def load(self, *, quiet: bool) -> VideoToAudioPipeline:
        from kandinsky import catalogue
        from kandinsky.cli.progress import hush_libraries, patient
        from kandinsky.engine.pipeline import VideoToAudioPipeline

        hush_libraries()
        with patient("loading", quiet=quiet):
            pipe = catalogue.open_model(catalogue.source_of(self.name), self.options)
        assert isinstance(pipe, VideoToAudioPipeline)
        return pipe


def refuse(given: Mapping[str, Any], model: str) -> None:
    """Refuse options that an audio model does not accept.

    Args:
        given: Options that were given.
        model: The model's name.

    Raises:
        RequestError: There is such an option; the message names the first.
    """
    for option, value in given.items():
        if value not in (None, False, [], "auto"):
            raise RequestError(f"`{model}` generates audio for a video and takes no {option}: leave it out")


def generate_sound(
    model: SoundModel,
    request: Request,
    output: str | None,
    *,
    form: str | None,
    audio_only: bool,
    count: int,
    plan: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Generate audio for one input video, ``count`` times with consecutive seeds; prints the path of each file.

    Args:
        model: The audio model.
        request: The request.
        output: File to write; None for a derived name.
        form: Format, such as `webm`.
        audio_only: Write the audio alone.
        count: Number of results.
        plan: Print what it needs instead.
        as_json: Print JSON objects.
        quiet: Print errors only.

    Raises:
        RequestError: The request is not possible.
        KandinskyError: The result cannot be written to stdout.
    """
    import dataclasses

    from kandinsky.cli.progress import patient
    from kandinsky.engine.request import checked_seed, resolve
    from kandinsky.media.mux import InputVideo

    first = resolve(request, model.card)
    video, windows = first.video, int(first.settings()["windows"])
    jobs = [dataclasses.replace(first, seed=checked_seed(first.seed + i)) for i in range(count)]
    if plan:
        _show_plan(first, model, clips=windows * count, as_json=as_json)
        return
    assert isinstance(video, InputVideo)
    with ExitStack() as held:
        is_piped = output == STDOUT
        if output is not None:
            output = held.enter_context(destination(output, ending=_ending(video, audio_only, form)))
        targets = [_target(video, output, audio_only, form, i, count) for i in range(count)]
        model.check()
        if not quiet:
            _say_video(video, targets[0], windows)
        pipe = model.load(quiet=quiet)
        for job, target in zip(jobs, targets, strict=True):
            begun = time.monotonic()
            with patient(job.prompt or video.path.name, quiet=quiet) as on_step:
                made = pipe.run(job, on_step=on_step)
                path = made.save(target)
            taken = time.monotonic() - begun
            if not quiet:
                say(f"seed {made.seed}, {made.audio.seconds:.2f} s of audio, {taken:.1f} s")
            if as_json:
                emit_json({"path": str(path), "taken_s": round(taken, 3), "recipe": made.recipe})
            elif not is_piped:
                emit(path)


def check_clip_targets(targets: Sequence[Path], model: SoundModel) -> None:
    """Refuse clips that cannot carry audio, and a model that cannot run.

    Args:
        targets: Files of the clips.
        model: The audio model.

    Raises:
        RequestError: A file's format has no audio, or the model does not suit.
        WeightsError: A file of the model is missing.
    """
    from kandinsky.media.mux import AUDIO_CODECS

    for path in targets:
        if path.suffix.lower() not in AUDIO_CODECS:
            raise RequestError(f"output `{path}` cannot hold audio: with --sound, use .mp4 or .webm")
    model.check()


def add_to_clips(
    model: SoundModel, made: Sequence[tuple[Path, Video | VideoStream]], *, quiet: bool
) -> list[dict[str, Any]]:
    """Add audio to clips that were just written, in their files.

    A clip's prompt and seed are also those of its audio. The files are complete without it: an error leaves them as
    they are.

    Args:
        model: The audio model.
        made: File and clip of each result.
        quiet: Print errors only.

    Returns:
        The clips' recipes.
    """
    from kandinsky.cli.progress import patient
    from kandinsky.media import mux

    gc.collect()  # the networks that made the clips are no longer needed
    pipe = model.load(quiet=quiet)
    recipes = []
    for path, video in made:
        begun = time.monotonic()
        with patient(f"audio for {path.name}", quiet=quiet) as on_step:
            sound = pipe(
                str(video.recipe.get("prompt", "")), video=path, seed=video.seed, on_step=on_step, progress=False
            )
            told = {key: value for key, value in sound.recipe.items() if key not in ("video", "prompt", "versions")}
            recipe = video.recipe | {"sound": told}
            mux.copy_with_audio(mux.probe(path), sound.audio, path, recipe=recipe, over=True)
        recipes.append(recipe)
        if not quiet:
            say(f"audio by {model.name}, {time.monotonic() - begun:.1f} s")
    return recipes


def _ending(video: InputVideo, audio_only: bool, form: str | None) -> str:
    """The ending of a result for which no file was named."""
    from kandinsky.media.mux import AUDIO_CODECS

    ending = video.path.suffix.lower() if video.path.suffix.lower() in AUDIO_CODECS else ".mp4"
    return f".{form}" if form else ".wav" if audio_only else ending


def _target(video: InputVideo, output: str | None, audio_only: bool, form: str | None, index: int, count: int) -> Path:
    """The file of one result, checked; named after the video in a folder, by default the current one."""
    from kandinsky.jobs.names import folder_of, numbered
    from kandinsky.media.audio import AUDIO_FILES, check_audio_target
    from kandinsky.media.mux import check_copy_target

    folder = Path() if output is None else folder_of(output)
    named = f"{video.path.stem}-sound{_ending(video, audio_only, form)}"
    path = numbered(str(output) if folder is None else folder / named, index, count)
    if path.suffix.lower() in AUDIO_FILES or audio_only:
        return check_audio_target(path)
    return check_copy_target(path, video)


def _say_video(video: InputVideo, target: Path, windows: int) -> None:
    from kandinsky.media.audio import AUDIO_FILES

    in_windows = f", in {windows} windows" if windows > 1 else ""
    say(f"video {video.path}: {video.seconds:.2f} s, {counted(len(video.times_s), 'frame')}{in_windows}")
    if video.has_audio and target.suffix.lower() not in AUDIO_FILES:
        say("the video's own audio is not copied")


def _show_plan(job: Job, model: SoundModel, *, clips: int, as_json: bool) -> None:
    from kandinsky.cli.plan import show_plan
    from kandinsky.engine.plan import plan_resolved

    show_plan(plan_resolved(job, model.options), as_json=as_json, clips=clips)
