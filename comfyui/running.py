"""What nodes do, as plain functions of a model and values. Imports nothing of ComfyUI."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from kandinsky.engine.interpolation import Raise
from kandinsky.engine.plan import plan_resolved
from kandinsky.engine.plan_text import described
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.errors import Cancelled, RequestError
from kandinsky.model.denoiser import VIDEO
from kandinsky.model.values import Request, Soundtrack, Video, VideoStream
from kandinsky.runtime.devices import host_memory

from .models import Chosen, Host, Kept

if TYPE_CHECKING:
    from torch import Tensor

    from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline
    from kandinsky.engine.preview import OnStep, Preview

HELD = 3 * (4 + 1 + 1)  # bytes of a pixel: ComfyUI's floats, and our frames while they are put together
POLL_S = 0.05  # how often an interrupt is looked for while a step runs


@dataclass(frozen=True)
class Generated:
    """A clip or an image, and its latents [1, T, H, W, C]; None of one that no single latent holds."""

    video: Video
    latents_BTHWC: Tensor | None


def asked(chosen: Chosen, prompt: str, values: Mapping[str, Any]) -> Job:
    """A request checked against its model; nothing is loaded.

    Args:
        chosen: The model.
        prompt: The prompt.
        values: Fields of ``Request``, and `size`, such as `768x512`.

    Returns:
        The job.

    Raises:
        RequestError: A value is not allowed.
    """
    given = dict(values)
    if size := given.pop("size", None):
        given["width"], given["height"] = parse_size(size)
    card = chosen.source.card
    return resolve(Request(card.id, prompt, **given), card)


def generated(chosen: Chosen, prompt: str, values: Mapping[str, Any], kept: Kept) -> Generated:
    """Generate a clip or an image.

    Args:
        chosen: The model.
        prompt: The prompt.
        values: As for ``asked``.
        kept: Loaded models.

    Returns:
        The clip, decoded, and its latents.

    Raises:
        RequestError: The model makes sound, or a value is not allowed.
        KandinskyError: It failed; the message says why.
    """
    if chosen.source.card.does.makes == "sound":
        raise RequestError(f"`{chosen.source.name}` makes sound: use the node Kandinsky Sound, or load another model")
    job = asked(chosen, prompt, values)
    in_turns = job.long is not None or job.upscale is not None  # networks run while frames are consumed
    if in_turns:
        check_held(job)
    show = on_step(kept.host)
    with kept.pipe(chosen, job) as pipe, watched(pipe, kept.host):
        made = pipe.drive(pipe.engine.latents([job], tell=lambda event: pipe.heard(event, show)), show)
        (stream,) = pipe.engine.results(made)
        assert isinstance(stream, VideoStream)
        if in_turns:
            return Generated(stream.gather(), None)
        return Generated(gathered(stream, pipe, kept.host), made.latents[VIDEO])


def check_held(job: Job) -> None:
    """Refuse a clip that this machine's memory would not hold, as ComfyUI holds it: whole, and as floating point.

    Raises:
        RequestError: It is too long, or too large.
    """
    size, memory = job.upscale or job.shape, host_memory()
    needed = job.shape.frames * size.height * size.width * HELD
    if memory is not None and needed > memory[0]:
        raise RequestError(
            f"{job.seconds:.4g} s of {size.width}x{size.height} are {needed / 1e9:.1f} GB, which ComfyUI holds as a "
            f"whole, and {memory[0] / 1e9:.1f} GB are free: ask for less, or let `kandinsky generate` write the file"
        )


def decoded(chosen: Chosen, latents_BTHWC: Tensor, recipe: Mapping[str, Any] | None, kept: Kept) -> Video:
    """Decode latents that a model made.

    Raises:
        RequestError: The latents are another model's.
    """
    from kandinsky.engine.stages import streams

    card = chosen.source.card
    batch, channels = latents_BTHWC.shape[0], latents_BTHWC.shape[-1]
    if channels != card.clip.channels or batch != 1 or card.does.makes == "sound":
        raise RequestError(
            f"a latent of {batch} x {channels} channels is not one that `{chosen.source.name}` decodes: "
            f"give one of 1 x {card.clip.channels}, as Kandinsky Generate makes it with the same model"
        )
    told = dict(recipe or {}) or {"model": chosen.source.name, "fps": card.clip.fps, "seed": 0}
    with kept.pipe(chosen, _like(chosen, None, None)) as pipe, watched(pipe, kept.host):
        (stream,) = streams(pipe.context, latents_BTHWC.clone(), [told])
        return gathered(stream, pipe, kept.host)


def sounded(chosen: Chosen, video: Video, prompt: str, values: Mapping[str, Any], kept: Kept) -> Soundtrack:
    """Generate audio for a clip.

    Raises:
        RequestError: The model makes no sound, or a value is not allowed.
    """
    from kandinsky.engine.pipeline import VideoToAudioPipeline

    if chosen.source.card.does.makes != "sound":
        raise RequestError(
            f"`{chosen.source.card.id}` makes no sound: load `nano-v2a` or `kandinsky4-v2a` for this node"
        )
    job = asked(chosen, prompt, {**values, "video": video})
    with kept.pipe(chosen, job) as pipe, watched(pipe, kept.host):
        assert isinstance(pipe, VideoToAudioPipeline)
        return pipe.run(job, on_step=on_step(kept.host))


def with_sound(made: Soundtrack) -> Video:
    """The clip with its audio, and the recipe of both; of a clip from elsewhere, the audio's."""
    video = made.with_picture()
    assert isinstance(made.video, Video)  # ``with_picture`` has refused a file
    return video if made.video.recipe else replace(video, recipe=made.recipe)


def expanded(chosen: Chosen, prompt: str, values: Mapping[str, Any], kept: Kept) -> str:
    """The prompt written out in more detail by the model's own language model.

    Raises:
        RequestError: The model has none.
    """
    job = asked(chosen, prompt, {**values, "expand": True})
    with kept.pipe(chosen, job) as pipe, watched(pipe, kept.host):
        (made,) = _generating(pipe).expand([job])
    return str(made.expanded_prompt)


def interpolated(chosen: Chosen, video: Video, settings: Raise, kept: Kept) -> Video:
    """A clip with more frames a second, its length and sound unchanged.

    Raises:
        RequestError: The model has no interpolation network, or a value is not allowed.
    """
    card = chosen.source.card
    settings.check(card)
    settings.rate(video.fps)
    raised = card.family.interpolate
    assert raised is not None  # ``check`` has refused a family that cannot
    with kept.pipe(chosen, _like(chosen, None, None)) as pipe, watched(pipe, kept.host):
        show = cast("Any", on_step(kept.host))  # a preview is a tensor
        made = raised()(pipe, video, settings, on_step=show).gather()
    return replace(made, audio=video.audio)


def planned(chosen: Chosen, values: Mapping[str, Any], *, memory: str | None = None) -> str:
    """What a generation needs, as text: download, memory, time, placement; nothing is loaded."""
    job = _like(chosen, values.get("size"), values.get("seconds"), **_without(values, "size", "seconds"))
    made = plan_resolved(job, chosen.options, root=chosen.source.root, memory=memory)
    return "\n".join(described(made, chosen.source.card))


def gathered(stream: VideoStream, pipe: GenerationPipeline | VideoToAudioPipeline, host: Host) -> Video:
    """The frames of a clip, decoded piece by piece with progress."""
    done = 0

    def told() -> Iterator[Any]:
        nonlocal done
        for piece in stream.pieces:
            done += len(piece)
            host.progress(done, stream.num_frames, None)
            yield piece

    with pipe.placement.hold("vae"):
        return replace(stream, pieces=told()).gather()


def on_step(host: Host) -> OnStep:
    """Progress and a preview after each step; stops where the user asked for it."""

    def show(step: int, total: int, preview: Preview) -> bool:
        if host.is_interrupted():
            return False
        host.progress(step, total, preview.image)
        return True

    return show


@contextmanager
def watched(pipe: GenerationPipeline | VideoToAudioPipeline, host: Host) -> Iterator[None]:
    """Cancel the pipeline as soon as the user asks for it, also while no step ends.

    Raises:
        Exception: What ComfyUI raises for a node that was stopped.
    """
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(POLL_S):
            if host.is_interrupted():
                pipe.cancel()

    watcher = threading.Thread(target=look, name="kandinsky-interrupt", daemon=True)
    watcher.start()
    try:
        yield
    except Cancelled:
        host.stop()
        raise
    finally:
        ended.set()
        watcher.join()


def _like(chosen: Chosen, size: str | None, seconds: float | None, **values: Any) -> Job:
    """A job of a model, for planning alone: of this size and length, with any prompt and no image."""
    card = chosen.source.card
    width, height = parse_size(size) if size else (None, None)
    seconds = None if card.clip.max_seconds == 0 else seconds
    request = Request(card.id, "any", seed=0, width=width, height=height, seconds=seconds, **values)
    return resolve(request, card, needs_image=False)


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _generating(pipe: Any) -> GenerationPipeline:
    from kandinsky.engine.pipeline import GenerationPipeline

    if not isinstance(pipe, GenerationPipeline):
        raise RequestError(f"`{pipe.name}` makes sound and expands no prompts: use a Kandinsky 5 model")
    return pipe
