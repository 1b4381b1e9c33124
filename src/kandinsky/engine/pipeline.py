"""Pipelines: a loaded model as a callable object, with each stage as a method on plain values."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion.step_cache import Branches, StepCache
from kandinsky.engine import rolling, stages, timeline
from kandinsky.engine.branches import place_name
from kandinsky.engine.context import Context
from kandinsky.engine.engine import Engine
from kandinsky.engine.events import Event, Phase, Step
from kandinsky.engine.latents import read_latent
from kandinsky.engine.options import RunOptions
from kandinsky.engine.preview import OnStep, Preview
from kandinsky.engine.progress import Tell, bar, is_on
from kandinsky.engine.request import Job, common, parse_size
from kandinsky.engine.rolling import Prompts, Script
from kandinsky.errors import Cancelled, OutOfMemory, RequestError
from kandinsky.model.card import Card
from kandinsky.model.checks import check_call, checked
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.diffusers_words import CALL, CallWords, answers, translated
from kandinsky.model.given import Given
from kandinsky.model.option import described
from kandinsky.model.timeline import PromptAt, prompt_of, prompts_at
from kandinsky.model.values import Request, Soundtrack, TextEmbeddings, Video, VideoStream
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.ops.native import library
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision, place
from kandinsky.weights.lora import LoraConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.diffusion.caching import CacheSettings

T = TypeVar("T")
log = logging.getLogger(__name__)
# what a call is asked for in vain: Diffusers' words, and options that are chosen once, when the model is loaded
_ANSWERS = {
    **{field.name: "it is an option of `kandinsky.load`" for field in fields(RunOptions)},
    **answers(CALL),
}


class Pipeline:
    """What all pipelines have in common: a context, and the engine that runs it. See ``Context`` for what it holds."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.engine = Engine(context)

    def __repr__(self) -> str:
        devices = dict.fromkeys(str(self.placement.device(name)) for name in self.placement.names)
        told = {"device": " and ".join(devices), "dtype": self.precision.name, "offload": self.placement.offload}
        if self.adapters.scales:
            told["lora"] = ", ".join(self.adapters.scales)
        if self.team.size > 1:
            told["parallel"] = str(self.team.layout)
        return f"{type(self).__name__}({self.name!r}, {', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def card(self) -> Card:
        return self.context.card

    @card.setter
    def card(self, card: Card) -> None:
        self.context.card = card

    @property
    def name(self) -> str:
        return self.context.name

    @property
    def placement(self) -> Placement:
        return self.context.placement

    @property
    def precision(self) -> Precision:
        return self.context.precision

    @property
    def adapters(self) -> Adapters:
        return self.context.adapters

    @property
    def team(self) -> Team:
        return self.context.team

    @check_call()
    def to(self, device: str | torch.device) -> Self:
        """Move to another device, as Diffusers' pipelines do; the number type stays.

        Args:
            device: `cpu`, `cuda`, `cuda:0` or `mps`.

        Returns:
            The pipeline itself.

        Raises:
            RequestError: Weights are quantised or several processes work together: these are placed by ``load``.
            BackendError: The device is not available.
        """
        if (quantized := self.placement.quantized) or self.team.size > 1:
            why = "its weights are quantised" if quantized else "several processes work together"
            raise RequestError(f"`{self.name}` cannot be moved, since {why}: load it with `device=…`")
        self.placement.move(place(device))
        self.context.text_store = None  # its entries are on the device they were made on
        return self

    @check_call()
    def load_lora(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        config: LoraConfig | None = None,
        trigger: str | None = None,
    ) -> str:
        """Load a LoRA and switch it on in addition to those that are on.

        Args:
            source: File, folder, or Hugging Face repository that `kandinsky download` has fetched.
            name: What to call it; the name of the file or folder by default.
            scale: 1 is as trained, 0 is off.
            config: α and rank, in place of the configuration beside the file.
            trigger: Text in front of every prompt while it is on; the one in the file's header by default.

        Returns:
            Its name.

        Raises:
            WeightsError: It does not fit this model; the message names the tensor.
            RequestError: The name is already in use.
        """
        return self.context.adapters.load(source, name=name, scale=scale, config=config, trigger=trigger)

    @check_call()
    def set_lora(self, scales: Mapping[str, float]) -> None:
        """Switch on exactly these LoRAs.

        Args:
            scales: Scale of each by name; ``{}`` switches all off.

        Raises:
            RequestError: A name is not loaded, or a scale is not a finite number.
        """
        self.context.adapters.set(scales)

    @check_call()
    def unload_lora(self, name: str | None = None) -> None:
        """Unload one LoRA or all; the weights are restored bit by bit.

        Args:
            name: Which one; None for all.

        Raises:
            RequestError: The name is not loaded.
        """
        self.context.adapters.remove(name)

    def fuse_lora(self) -> None:
        """Add the LoRAs that are on to the weights, so that they cost no time.

        Raises:
            RequestError: The model is quantised.
        """
        self.context.adapters.fuse()

    def unfuse_lora(self) -> None:
        """Remove them from the weights again, bit by bit; they stay on."""
        self.context.adapters.fuse(False)

    @check_call()
    def load_branch(self, source: str | Path, *, name: str | None = None) -> str:
        """Load a control or reference branch; requests that name none then use it.

        Args:
            source: The file.
            name: What conditions may call it; the name of the file by default.

        Returns:
            Its name.

        Raises:
            WeightsError: It holds no branch, or one for another network.
            RequestError: The name is already in use.
        """
        return self.context.branches.load(source, self.card, name=name)

    @check_call()
    def unload_branch(self, name: str | None = None) -> None:
        """Unload one branch or all; its memory is free once no run holds it.

        Args:
            name: Which one; None for all.

        Raises:
            RequestError: The name is not loaded.
        """
        for file in self.context.branches.remove(name):
            self.placement.drop(place_name(file))

    def cancel(self) -> None:
        """Stop the current run, from any thread: within a sampling step, or a piece of decoding.

        The run raises ``Cancelled``. Without a run, nothing happens.
        """
        self.context.cancelling.set()

    def resolve(self, request: Request) -> Job:
        """Check a request against the card and fill in its defaults.

        Raises:
            RequestError: A value is not allowed for this model.
            BackendError: The attention it asks for is not available.
        """
        return self.engine.resolve(checked("request", request, Request))

    def attention_of(self, job: Job) -> AttentionSpec:
        """The visual self attention of a job.

        Raises:
            BackendError: It cannot run on this device.
        """
        return self.context.attention_of(job)

    def recipe(self, job: Job) -> dict[str, Any]:
        """Everything needed to make this result again, as stored in the file."""
        return self.context.recipe(job)

    def drive(self, running: Generator[Event, None, T], on_step: OnStep | None, *, tell: Tell | None = None) -> T:
        """Consume all events of a run.

        Args:
            running: The run.
            on_step: Called after each step; returning False on the first process cancels.
            tell: Called after each step too, for a progress bar.

        Returns:
            What the run returns.

        Raises:
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
        """
        self.context.cancelling.clear()
        while True:
            try:
                event = next(running)
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                self.heard(event, on_step, tell=tell)
            except Cancelled:
                running.close()
                raise

    def heard(self, event: Event, on_step: OnStep | None, *, tell: Tell | None = None) -> None:
        """Pass one event of a run on.

        Args:
            event: The event.
            on_step: As for ``drive``.
            tell: As for ``drive``.

        Raises:
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
        """
        if isinstance(event, Phase):
            stages.check_cancelled(self.context, f"before the stage `{event.name}`")
        if not isinstance(event, Step):
            return
        if tell is not None:
            tell("", event.step, event.total)
        if on_step is not None and on_step(event.step, event.total, event.preview()) is False and self.team.is_first:
            raise Cancelled(f"cancelled after step {event.step} of {event.total}")


def _with_options(doc: str | None, options: Any) -> str:
    """The docstring with those fields of ``Request`` that are among the options, in place of the line `options:`."""
    told = described(Request, only=options.__annotations__, indent=12)
    return "\n".join(told if line.strip().startswith("options:") else line for line in (doc or "").splitlines())


class ClipOptions(CallWords, total=False):
    """What a call accepts besides its prompts: fields of ``Request``, and how to follow the call.

    With a list of prompts, options that may be lists have one entry per prompt.
    """

    image: str | Path | Image | np.ndarray | Sequence[str | Path | Image | np.ndarray] | None
    last_image: str | Path | Image | np.ndarray | Sequence[str | Path | Image | np.ndarray] | None
    conditions: Sequence[Given | str | Mapping[str, Any]] | Given | str
    control: str | Path | Image | np.ndarray | Video | None
    control_strength: float | None
    control_steps: str | None
    reference: str | Path | Image | np.ndarray | Sequence[str | Path | Image | np.ndarray] | None
    reference_strength: float | None
    branch: str | Path | Sequence[str | Path] | None
    video: str | Path | Video | None
    strength: float | None
    mask: str | Path | Image | np.ndarray | Video | Sequence[str | Path | Image | np.ndarray] | None
    mask_grow: int | None
    span: str | None
    place: str | None
    source_prompt: str | None
    resample: int | None
    upscale: str | float | None
    upscale_strength: float | None
    seconds: float | None
    prompt_at: Sequence[PromptAt | str | tuple[Any, ...] | Mapping[str, Any]]
    fade: float | None
    overlap: float | str | None
    loop: bool
    width: int | None
    height: int | None
    size: str | None
    steps: int | None
    guidance: float | None
    shift: float | None
    negative_prompt: str | Sequence[str] | None
    seed: int | Sequence[int] | None
    cache: str | CacheSettings | None
    expand: bool
    expanded_prompt: str | Sequence[str] | None
    fps: str | None
    motion: str | None
    image_guidance: float | None
    interpolation_guidance: float | None
    keep_latent: str | Path | Sequence[str | Path] | None
    on_step: OnStep | None
    progress: bool | None


class StreamOptions(TypedDict, total=False):
    """What ``stream`` accepts besides its prompts: fields of ``Request``."""

    image: str | Path | Image | np.ndarray | None
    width: int | None
    height: int | None
    size: str | None
    steps: int | None
    guidance: float | None
    shift: float | None
    negative_prompt: str | None
    seed: int | None
    expand: bool


Timed = tuple[str, float | str] | tuple[str, float | str, float | str]  # a prompt, where it begins, where it ends
# what may differ between the prompts of a call
EACH = ("image", "last_image", "mask", "reference", "negative_prompt", "seed", "expanded_prompt", "keep_latent")
AT_ONCE = 4  # prompts of one call that go through the networks together


class GenerationPipeline(Pipeline):
    """A model of clips or images, ready to run."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, prompt: str = "", **options: Unpack[ClipOptions]
    ) -> Video: ...
    @overload
    def __call__(self, prompt: Sequence[str], **options: Unpack[ClipOptions]) -> list[Video]: ...
    @overload
    def __call__(self, prompt: Sequence[Timed], **options: Unpack[ClipOptions]) -> Video: ...
    @check_call(_ANSWERS)
    def __call__(
        self, prompt: str | Sequence[str] | Sequence[Timed] = "", **options: Unpack[ClipOptions]
    ) -> Video | list[Video]:
        """Generate one clip or image, or one for each of several prompts; defaults come from the model's card.

        Args:
            prompt: What it shows; with an image, some models need none. A list of prompts gives a list of results: a
                few go through the networks together if they can, the others one after another, with equal results.
                A list of prompts with times, `[("a panda", 0), ("a cat", 5)]`, gives one clip: each holds from that
                second on.
            options: Those of ``Request``.
            size: Width and height as one, `768x512`.
            keep_latent: File for the latent, written before it is decoded; see ``finish``. Of a clip longer than the
                model's longest, a folder for finished windows: the same call goes on from there.
            on_step: ``on_step(step, total, preview)``, called after each step; returning False cancels. The preview is
                a tensor of the latents as currently predicted, and ``preview.image`` a small image of them.
            progress: Whether to show a progress bar; by default in a terminal or notebook, without ``on_step``.

        Returns:
            A ``Video``, also for a still image; for a list of prompts, a list of them.

        Raises:
            RequestError: The request is not possible; nothing was loaded.
            WeightsError: A weight file is damaged.
            OutOfMemory: Memory ran out; the message names the placement to try.
            NotFinite: Numbers overflowed; the message names the step.
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
        """
        given = translated(cast("Mapping[str, Any]", options), CALL, self.card)
        on_step: OnStep | None = given.pop("on_step", None)
        show: bool | None = given.pop("progress", None)
        given["width"], given["height"] = _one_size(given.get("width"), given.get("height"), given.pop("size", None))
        if (timed := _timed(prompt)) is not None:
            prompt = timed[0].prompt
            given["prompt_at"] = [*timed[1:], *prompts_at(given.get("prompt_at"))]
        prompts = [prompt] if isinstance(prompt, str) else list(cast("Sequence[str]", prompt))
        if not prompts:
            raise RequestError("the list of prompts is empty: give one or more")
        rows = _rows(given, len(prompts))
        kept = [None if (path := row.pop("keep_latent", None)) is None else Path(path) for row in rows]
        jobs = [self.resolve(Request(self.card.id, one, **row)) for one, row in zip(prompts, rows, strict=True)]
        shown = (on_step is None or show is True) and is_on(show) and self.team.is_first
        with bar(prompts[0], shown=shown) as tell:
            made = self._each(jobs, kept, on_step, tell)
        return made[0] if isinstance(prompt, str) else made

    __call__.__doc__ = _with_options(__call__.__doc__, ClipOptions)

    def _each(
        self, jobs: Sequence[Job], keep: Sequence[Path | None], on_step: OnStep | None, tell: Tell | None
    ) -> list[Video]:
        """Results in the jobs' order: a few together if they agree, or one by one if that runs out of memory."""
        try:
            is_batch = common(jobs).long is None
        except RequestError:
            is_batch = False
        if not is_batch:
            return self._in_batches(1, jobs, keep, on_step, tell)
        try:
            return self._in_batches(AT_ONCE, jobs, keep, on_step, tell)
        except OutOfMemory:
            if len(jobs) == 1:
                raise
        return self._in_batches(1, jobs, keep, on_step, tell)

    def _in_batches(
        self, size: int, jobs: Sequence[Job], keep: Sequence[Path | None], on_step: OnStep | None, tell: Tell | None
    ) -> list[Video]:
        """``size`` jobs at a time; steps are counted over all."""
        count = -(-len(jobs) // size)
        made: list[Video] = []
        for number in range(count):
            some = slice(number * size, (number + 1) * size)

            def step_of_all(step: int, total: int, preview: Preview, number: int = number) -> bool | None:
                assert on_step is not None
                return on_step(number * total + step, count * total, preview)

            def tell_of_all(what: str, done: int, total: int, number: int = number) -> None:
                assert tell is not None
                tell(what, number * total + done, count * total)

            made += self._batch(jobs[some], keep[some], on_step and step_of_all, tell and tell_of_all)
        return made

    def stream(
        self, prompt: Prompts, *, seconds: float | None = None, **options: Unpack[StreamOptions]
    ) -> Iterator[Video]:
        """Generate a clip along time and give it piece by piece as it is made, without end if no length is given.

        Only for autoregressive models, whose card has a table `roll`. Memory does not grow. Closing the iterator, or
        ``cancel`` from any thread, ends it. The same seed, prompts and settings give the same frames, whatever the
        length.

        Args:
            prompt: What it shows; or pairs of a prompt and the second it begins at, ``[("a panda", 0), ("a cat", 3)]``;
                or a function of the time in seconds, asked before each chunk, which ends the stream with None. A new
                prompt holds from the next chunk on. Of a model whose card has `roll.actions`, ``Play(prompt, action)``
                stands for a prompt with what is done.
            seconds: How long; without end where absent.
            options: Those of a call that have a part in it.

        Yields:
            A ``Video`` of each chunk. Its recipe has the prompt of that chunk, its number (`chunk`) and the second it
            begins at (`start`).

        Raises:
            RequestError: The model cannot be streamed, or the request is not possible; nothing was loaded.
            NotFinite: Numbers overflowed.
            Cancelled: ``cancel`` was called.
        """
        rolling.check_stream(self.card)
        script = rolling.script_of(prompt, seconds, self.card.clip.fps)
        given = translated(cast("Mapping[str, Any]", options), CALL, self.card)
        given["width"], given["height"] = _one_size(given.get("width"), given.get("height"), given.pop("size", None))
        job = self.resolve(Request(self.card.id, "anything" if script.first is None else script.first, **given))
        rolling.spec_of(self.context, job)
        stages.check(self.context, [job])
        return self._pieces(job, script)

    def _pieces(self, job: Job, script: Script) -> Generator[Video, None, None]:
        self.context.cancelling.clear()
        known = stages.known_of(self.context, [job]) if job.conditions else None
        for event in rolling.stream(self.context, job, script, known):
            if isinstance(event, Step):
                continue
            told, start = event.chunk.told, event.begin / job.fps
            recipe = self.recipe(replace(job, prompt=told.prompts[0])) | {"chunk": event.chunk.number, "start": start}
            if told.action:
                recipe["action"] = told.action
            if told.unused and told.unused[0]:
                recipe["unused_words"] = list(told.unused[0])
            yield Video(event.frames_THWC, job.fps, job.seed, recipe)

    def replay(self, recipe: Mapping[str, Any]) -> VideoStream:
        """Make a clip again that was saved from a live stream, to the same frames.

        The stream runs from its beginning, since what it shows depends on what it showed; frames before the clip are
        thrown away as they come.

        Args:
            recipe: That of the clip, with its `timeline`.

        Returns:
            The clip, made as its pieces are consumed.

        Raises:
            RequestError: The recipe has no timeline, belongs to another model, or was made by this one with other
                LoRAs, compute type, attention or quantised weights.
        """
        line = timeline.read(recipe)
        if recipe.get("model") != self.name:
            raise RequestError(f"this recipe is of `{recipe.get('model')}`, not of `{self.name}`: load that model")
        fps = self.card.clip.fps
        given: Any = {name: recipe[name] for name in timeline.GIVEN if recipe.get(name) is not None}
        job = self.resolve(Request(self.card.id, prompt_of(line.prompts[0][1]), **given))
        if (recipe.get("versions") or {}).get("kernels"):
            library.kernels()  # looked for, so that this recipe names them too
        timeline.check_alike(recipe, self.recipe(job))
        shown = self.stream(lambda at: line.at(round(at * fps)), **given)

        def pieces() -> Iterator[np.ndarray]:
            number = 0
            for piece in shown:
                frames = piece.frames[max(0, line.first_frame - number) : line.first_frame + line.frames - number]
                number += len(piece)
                if len(frames):
                    yield frames

        return VideoStream(pieces(), line.frames, fps, recipe["seed"], dict(recipe))

    def run(self, job: Job, *, keep_latent: str | Path | None = None, on_step: OnStep | None = None) -> Video:
        """Run one resolved request from prompt to frames.

        Args:
            job: The request.
            keep_latent: File for the latent, written before it is decoded; see ``finish``.
            on_step: As for a call.

        Returns:
            The clip.

        Raises:
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
            NotFinite: Numbers overflowed; the message names the step.
        """
        kept = None if keep_latent is None else [Path(keep_latent)]
        return self.run_batch([job], keep_latents=kept, on_step=on_step)[0]

    def run_batch(
        self,
        batch: Sequence[Job],
        *,
        keep_latents: Sequence[Path | None] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Video]:
        """Run several jobs in one pass of each network.

        Results equal those of single runs up to the rounding of differently ordered sums.

        Args:
            batch: The jobs; they may differ in prompt, negative prompt, seed and image (all with one, or none).
            keep_latents: A file for each latent, written before any is decoded; for a clip made in windows a
                folder for those that are finished.
            on_step: As for a call.

        Returns:
            A clip per job.

        Raises:
            RequestError: The jobs differ in size, length, steps, guidance or shift.
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
            NotFinite: Numbers overflowed; the message names the step.
        """
        return self._batch(batch, keep_latents or (), on_step, None)

    def _batch(
        self, batch: Sequence[Job], keep: Sequence[Path | None], on_step: OnStep | None, tell: Tell | None
    ) -> list[Video]:
        streams = self._streams(batch, keep, on_step, tell)
        with ExitStack() as held:
            if self.team.size == 1 and not any(job.long for job in batch):
                held.enter_context(self.placement.hold("vae"))  # once for all clips
            if tell is None or any(job.long for job in batch):  # those tell their own steps
                return [stream.gather() for stream in streams]
            return [
                replace(one, pieces=pieces).gather() for one, pieces in zip(streams, _told(streams, tell), strict=True)
            ]

    def stream_batch(
        self,
        batch: Sequence[Job],
        *,
        keep_latents: Sequence[Path | None] | None = None,
        on_step: OnStep | None = None,
    ) -> list[VideoStream]:
        """Run several jobs up to their latents; clips are decoded as their pieces are consumed.

        No clip has to fit in memory whole. Several processes, which must decode at the same time, decode before this
        returns.

        Args:
            batch: As for ``run_batch``.
            keep_latents: A file for each latent, written before any is decoded.
            on_step: As for a call.

        Returns:
            A stream per job.

        Raises:
            RequestError: The jobs differ in size, length, steps, guidance or shift.
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
            NotFinite: Numbers overflowed; the message names the step.
        """
        return self._streams(batch, keep_latents or (), on_step, None)

    def _streams(
        self, batch: Sequence[Job], keep: Sequence[Path | None], on_step: OnStep | None, tell: Tell | None
    ) -> list[VideoStream]:
        def heard(event: Event) -> None:
            self.heard(event, on_step, tell=tell)

        made = self.drive(self.engine.latents(batch, keep=keep, tell=heard), on_step, tell=tell)
        return [one for one in self.engine.results(made) if isinstance(one, VideoStream)]

    def finish(self, kept: str | Path) -> Video:
        """Decode a latent that ``keep_latent`` wrote, to the same frames that run would have returned.

        Args:
            kept: The file.

        Returns:
            The clip.

        Raises:
            RequestError: The file is not a kept latent, or belongs to another model.
            WeightsError: The file is damaged.
        """
        return self.finish_stream(kept).gather()

    def finish_stream(self, kept: str | Path) -> VideoStream:
        """Decode a latent that ``keep_latent`` wrote, as the pieces are consumed.

        Args:
            kept: The file.

        Returns:
            The clip as a stream.

        Raises:
            RequestError: The file is not a kept latent, or belongs to another model.
            WeightsError: The file is damaged.
        """
        self.context.cancelling.clear()
        kept = checked("kept", kept, str | Path)
        recipe: Mapping[str, Any] | None = None

        def read() -> list[Tensor | None]:
            nonlocal recipe
            latent = read_latent(Path(kept))
            recipe = latent.recipe
            if latent.latents_THWC.shape[-1] != self.card.clip.channels:
                raise RequestError(f"`{kept}` is a latent of `{recipe.get('model')}`, not of `{self.name}`")
            return [latent.latents_THWC[None]]

        (latents_1THWC,) = self.team.once(read)
        assert latents_1THWC is not None
        told = self.team.agree(recipe)
        if (size := told.get("upscale")) is not None:
            log.warning(
                "`%s` is of the first stage, so the clip is not %s: make it larger with `upscale=…`", kept, size
            )
            told = {name: value for name, value in told.items() if not name.startswith("upscale")}
        return stages.streams(self.context, latents_1THWC, [told])[0]

    def expand(self, batch: Sequence[Job]) -> list[Job]:
        """See ``stages.expand``."""
        return stages.expand(self.context, batch)

    def encode(self, batch: Sequence[Job]) -> tuple[TextEmbeddings, TextEmbeddings | None]:
        """See ``stages.encode``."""
        return stages.encode(self.context, batch)

    def known(self, batch: Sequence[Job]) -> Known:
        """See ``stages.known_of``."""
        return stages.known_of(self.context, batch)

    def noise(self, batch: Sequence[Job]) -> Tensor:
        """See ``stages.noise``."""
        return stages.noise(self.context, batch)

    def fresh_noise(self, batch: Sequence[Job]) -> Tensor | None:
        """See ``stages.fresh_noise``."""
        return stages.fresh_noise(self.context, batch)

    def start_cache(self, job: Job) -> StepCache | None:
        """See ``stages.start_cache``."""
        return stages.start_cache(job)

    def sample(
        self,
        noise_BTHWC: Tensor,
        text: TextEmbeddings,
        negative: TextEmbeddings | None,
        job: Job,
        *,
        known: Known | None = None,
        fresh_NBTHWC: Tensor | None = None,
        cache: Branches | None = None,
        kept: KeptBlocks | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents [B, T, H, W, C], float32, from noise, text embeddings and what is known; see ``stages.denoise``."""
        walk = stages.denoise(
            self.context,
            {VIDEO: noise_BTHWC},
            text,
            negative,
            job,
            known=known,
            fresh=fresh_NBTHWC,
            cache=cache,
            kept=kept,
        )
        return self.drive(walk, on_step)[VIDEO]

    def decode(self, latents_BTHWC: Tensor) -> np.ndarray:
        """See ``stages.decode``."""
        return stages.decode(self.context, latents_BTHWC)

    def decode_pieces(self, latents_THWC: Tensor) -> Iterator[np.ndarray]:
        """See ``stages.decode_pieces``."""
        return stages.decode_pieces(self.context, latents_THWC)


class VideoToAudioPipeline(Pipeline):
    """An audio model, ready to run."""

    @check_call(_ANSWERS)
    def __call__(
        self,
        prompt: str = "",
        *,
        video: str | Path | Video | None = None,
        seconds: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        states: str | Path | None = None,
        on_step: OnStep | None = None,
        progress: bool | None = None,
        **words: Unpack[CallWords],
    ) -> Soundtrack:
        """Generate audio for one input video; defaults come from the model's card.

        Args:
            prompt: What is to be heard.
            video: A file, or a clip in memory.
            seconds: How much of it, from its start.
            steps: Sampling steps.
            guidance: Classifier-free guidance scale; 1 disables it.
            negative_prompt: What should not be heard.
            seed: Random if omitted.
            states: File of precomputed embeddings of frames and text; the encoder is then not needed.
            on_step: As for clips; its preview is a spectrogram.
            progress: Whether to show a progress bar; by default if no ``on_step`` is given.
            words: Diffusers' names for the same.

        Returns:
            The audio, which can be saved alone or in a copy of the video.

        Raises:
            RequestError: The request is not possible; nothing was loaded.
            WeightsError: A weight file is damaged.
            BackendError: A package is not available.
            OutOfMemory: Memory ran out; the message names the placement to try.
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
        """
        asked = {
            "video": video, "seconds": seconds, "steps": steps, "guidance": guidance, "seed": seed, "states": states,
            "negative_prompt": negative_prompt, **words,
        }  # fmt: skip
        job = self.resolve(Request(self.card.id, prompt, **translated(asked, CALL, self.card)))
        shown = (on_step is None or progress is True) and is_on(progress) and self.team.is_first
        with bar(prompt or "sound", shown=shown) as tell:
            return self._batch([job], 1, on_step, tell)[0]

    def run(self, job: Job, *, on_step: OnStep | None = None) -> Soundtrack:
        """Run one resolved request from input video to audio."""
        return self.run_batch([job], on_step=on_step)[0]

    def run_batch(self, batch: Sequence[Job], *, at_once: int = 1, on_step: OnStep | None = None) -> list[Soundtrack]:
        """Generate audio for several input videos.

        Results equal those of single runs up to the rounding of differently ordered sums.

        Args:
            batch: One job per video.
            at_once: Number of windows in one pass of the U-Net.
            on_step: As for a call.

        Returns:
            The audio of each.

        Raises:
            Cancelled: ``on_step`` returned False, or ``cancel`` was called.
            NotFinite: Numbers overflowed; the message names the step.
        """
        return self._batch(batch, at_once, on_step, None)

    def _batch(self, batch: Sequence[Job], at_once: int, on_step: OnStep | None, tell: Tell | None) -> list[Soundtrack]:
        made = self.drive(self.engine.latents(batch, at_once=at_once), on_step, tell=tell)
        return [one for one in self.engine.results(made) if isinstance(one, Soundtrack)]


def pipeline_of(context: Context) -> GenerationPipeline | VideoToAudioPipeline:
    """The pipeline of a loaded model, by what its task generates."""
    return (VideoToAudioPipeline if context.card.does.makes == "sound" else GenerationPipeline)(context)


def _timed(prompt: object) -> tuple[PromptAt, ...] | None:
    """The prompts of a list that says when each begins; None for any other.

    Raises:
        RequestError: None of them begins the clip.
    """
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt or isinstance(prompt[0], str):
        return None
    found = prompts_at(prompt)
    first = found[0]
    if first.at not in (0, "0", "0s") or first.until is not None:
        raise RequestError(
            "the first prompt of a list holds from the beginning and where no other does: give it the time 0 and no end"
        )
    return found


def _one_size(width: int | None, height: int | None, size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise RequestError("give either `size` or `width` and `height`, not both")
    return parse_size(size)


def _rows(given: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The arguments of each of several prompts.

    Raises:
        RequestError: A list has another length.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in given.items():
        each = value if name in EACH and isinstance(value, list | tuple) else [value] * count
        if len(each) != count:
            prompts = "1 prompt" if count == 1 else f"{count} prompts"
            raise RequestError(f"`{name}` is a list of {len(each)}, for {prompts}: give one value for all, or as many")
        for row, one in zip(rows, each, strict=True):
            row[name] = one
    if count > 1 and isinstance(given.get("keep_latent"), str | Path):
        raise RequestError(f"`keep_latent` is one file, for {count} prompts: give a list of files")
    return rows


def _told(streams: Sequence[VideoStream], tell: Tell) -> list[Iterator[np.ndarray]]:
    """The pieces of clips, which report progress as they are consumed."""
    done, total = 0, sum(stream.num_frames for stream in streams)

    def counted(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for piece in pieces:
            done += len(piece)
            tell("decoding", done, total)
            yield piece

    return [counted(stream.pieces) for stream in streams]
