"""Requests validated against a card: everything is checked and filled in before anything heavy is loaded.

Imports no torch, so that the command line refuses wrong input at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kandinsky.diffusion import caching
from kandinsky.diffusion.caching import CacheSettings
from kandinsky.engine import conditions
from kandinsky.engine.upscale import Upscale, base_size, check_upscale, is_of_file, upscale_of
from kandinsky.engine.windows import LONGEST, Long, check_able, in_one_go, is_long, long_of
from kandinsky.errors import RequestError
from kandinsky.media.image import (
    LONGEST_SIDE,
    FittedImage,
    InputImage,
    area_size,
    nearest_shape,
    open_image,
    size_within,
)
from kandinsky.media.input_clip import FittedClip, InputClip, open_clip
from kandinsky.media.mask import Mask, open_mask
from kandinsky.model.card import Card, Sampling
from kandinsky.model.checks import checked, shown
from kandinsky.model.condition import Condition, recorded
from kandinsky.model.given import END, Control, Frames, Source, without_cut
from kandinsky.model.values import LatentShape, Request, VideoShape

if TYPE_CHECKING:
    from kandinsky.media.mux import InputVideo
    from kandinsky.model.values import Video

log = logging.getLogger(__name__)
_SIZE = re.compile(r"\s*([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})\s*")
SEED_LIMIT = 2**63  # torch generators take more, but not every format that stores a seed does


class Extra(Protocol):
    """What jobs of some families carry beyond what every job has."""

    def settings(self, job: Job) -> dict[str, Any]:
        """The values that determine the job's result, under the names a recipe uses."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """A request with every field filled in and every value valid for its card.

    Attributes:
        card: The model.
        prompt: As given.
        negative_prompt: As given, or the card's.
        seconds: Duration as asked for; the actual one is ``frames / fps``.
        fps: Frames per second.
        shape: Frames, height, width in pixels, as they are made: on the autoencoder's grid.
        latent: The same clip for the denoiser.
        steps: Sampling steps.
        guidance: Classifier-free guidance scale.
        shift: Timestep shift.
        seed: As given, or drawn.
        sampling: The card's values for this size.
        conditions: What the result follows besides text.
        resample: How often each step is taken again, see ``diffusion/sample.steps``.
        cache: The step cache, with its ratios.
        expand: Whether the prompt is to be expanded.
        expanded_prompt: The expanded text.
        extra: Further values of a family's own requests.
        long: How a clip that is longer than the model's longest is made.
        begin: Of a window of such a clip, its first latent frame in the whole; noise is then drawn frame by frame.
        upscale: The second stage that makes it larger.
        cut: Of a clip that is made longer than asked for, since the grid is coarse: how many frames are kept.
    """

    card: Card
    prompt: str
    negative_prompt: str
    seconds: float
    fps: float
    shape: VideoShape
    latent: LatentShape
    steps: int
    guidance: float
    shift: float
    seed: int
    sampling: Sampling
    conditions: tuple[Condition, ...] = ()
    resample: int = 0
    cache: CacheSettings | None = None
    expand: bool = False
    expanded_prompt: str | None = None
    extra: Extra | None = None
    long: Long | None = None
    begin: int | None = None
    upscale: Upscale | None = None
    cut: int | None = None

    @property
    def frames(self) -> int:
        """Frames of the result."""
        return self.shape.frames if self.cut is None else self.cut

    @property
    def text(self) -> str:
        """The prompt the text encoder reads."""
        return self.prompt if self.expanded_prompt is None else self.expanded_prompt

    @property
    def image(self) -> FittedImage | None:
        """The image that the request brings, at the size it is used at."""
        given = (one.data for one in self.conditions)
        return next((data for data in given if isinstance(data, FittedImage)), None)

    @property
    def video(self) -> InputVideo | Video | None:
        """The input video that the request brings."""
        return next((data for one in self.conditions if one.kind == "clip" and not isinstance(
            data := one.data, FittedImage | FittedClip)), None)  # fmt: skip

    @property
    def strength(self) -> float:
        """The time that sampling begins at; 1 = noise alone."""
        return next((one.strength for one in self.conditions if one.kind == "init"), 1.0)

    @property
    def source_prompt(self) -> str | None:
        """What the clip shows that is changed by the difference of two prompts; None if none is."""
        return next((one.prompt for one in self.conditions if one.prompt is not None), None)

    def settings(self) -> dict[str, Any]:
        """The values that determine the result, under the names a recipe uses."""
        return self.plain_settings() if self.extra is None else self.extra.settings(self)

    def plain_settings(self) -> dict[str, Any]:
        """Those of ``settings`` that every clip and image has."""
        given = recorded(self.conditions) | ({"resample": self.resample} if self.resample else {})
        given |= {} if self.long is None else self.long.settings()
        given |= {} if self.upscale is None else self.upscale.settings()
        expanded = {} if self.expanded_prompt is None else {"expanded_prompt": self.expanded_prompt}
        return {
            "model": self.card.id,
            "prompt": self.prompt,
            **expanded,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "width": self.shape.width,
            "height": self.shape.height,
            "seconds": self.seconds,
            "frames": self.frames,
            "fps": self.fps,
            "steps": self.steps,
            "guidance": self.guidance,
            "shift": self.shift,
            "noise": self.sampling.noise,
            **given,
        }


def resolve(request: Request, card: Card, *, needs_image: bool = True) -> Job:
    """Check a request against its card and fill in the card's defaults; a missing seed is drawn.

    Args:
        request: The request.
        card: The model.
        needs_image: False accepts a request without the image its task needs, for plans.

    Returns:
        The job.

    Raises:
        RequestError: A value is not allowed; the message says what was given, what is allowed and what to do.
    """
    return card.does.resolve()(request, card, needs_image)


def resolve_clip(request: Request, card: Card, needs_image: bool = True) -> Job:
    """Resolve a request for models whose result is one clip or image, sampled as a whole; see ``resolve``.

    Args:
        request: The request.
        card: The model.
        needs_image: False accepts a request without the image its task needs, for plans.

    Returns:
        The job.

    Raises:
        RequestError: A value is not allowed.
    """
    refuse_foreign(request, card)
    check_upscale(request, card)
    large: InputClip | None = None
    if is_of_file(request):
        large, request = _large_source(request)
        needs_image = False
    others = conditions.opened(request, card)
    given = _image(request.image, card, needs_image and not conditions.first_is_known(others))
    mask = _mask(request, card, given, needs_image)
    begins = given is not None or conditions.first_is_known(others)
    prompt = checked_prompt(request.prompt, card, may_lack=begins and card.prompt == "optional")
    leading = given or next((one.clip.first for one in others if one.decides_size), None)
    chosen = (request.width, request.height)
    if leading is None and chosen == (None, None):
        chosen = base_size(request, card, large) or chosen
    width, height, fitted = _size(*chosen, leading, card)
    image = None if given is None else fitted
    sampling = card.sampling_for(width, height)
    own_length = conditions.seconds_of(others, card) if request.seconds is None else None
    if large is not None:
        own_length = _length_of(large, request, card)
    seconds = _seconds(request.seconds if own_length is None else own_length, card, request)
    steps = checked_steps(request.steps, card, sampling)
    guidance, negative = checked_guidance(request.guidance, request.negative_prompt, sampling)
    shift = checked_number(
        "shift",
        request.shift,
        sampling.shift,
        least=sampling.min_shift,
        most=sampling.max_shift,
        note="1 changes nothing",
    )
    frames, cut = _lengths(seconds, card, request, others)
    shape = VideoShape(frames=frames, height=height, width=width)
    if mask is not None and image is not None:
        _check_seen(mask, image, card.clip.spatial)
    is_frame = card.does.image_is == "frames"
    known = conditions.laid(
        others, image if is_frame else None, shape, card, lambda one: fitted_to(one, width, height, card)
    )
    if image is not None and not is_frame:
        known = (Condition(card.does.image_is, image, mask=mask), *known)
    cache = checked_cache(request.cache, card, sampling.mag_ratios)
    long = long_of(request, prompt, seconds, shape, card, cut=cut)
    if large is not None:  # there is no first stage, and the windows are those of the second
        long = long or in_one_go(shape, card, prompt)
    upscale = upscale_of(request, card, shape, long or in_one_go(shape, card), large)
    resample = checked_resample(request.resample, known, cache, is_long=long is not None)
    return Job(
        card=card,
        prompt=prompt,
        negative_prompt=negative,
        seconds=seconds,
        fps=card.clip.fps,
        shape=shape,
        latent=latent_of(shape, card),
        steps=steps,
        guidance=guidance,
        shift=shift,
        seed=checked_seed(request.seed),
        sampling=sampling,
        conditions=known,
        resample=resample,
        cache=cache,
        expand=_expands(request, card),
        expanded_prompt=request.expanded_prompt,
        long=long,
        upscale=upscale,
        cut=cut,
    )


def _large_source(request: Request) -> tuple[InputClip, Request]:
    """The input video that is made larger as it is, and the request without it.

    Raises:
        RequestError: It cannot be read, or what belongs to a first stage is given beside it.
    """
    for name in ("image", "last_image", "control", "reference", "resample", "cache", "mask_grow"):
        if getattr(request, name) is not None:
            raise RequestError(f"a video is made larger as it is, in one stage: leave `{name}=…` out")
    if request.conditions or request.loop:
        raise RequestError("a video is made larger as it is, in one stage: leave known frames and `loop=True` out")
    data, cut = without_cut(request.video) if isinstance(request.video, str) else (request.video, None)
    return open_clip(data, cut), request.with_values(video=None)


def _length_of(clip: InputClip, request: Request, card: Card) -> float:
    """Seconds of an input video, or of the part that a request asks for.

    Raises:
        RequestError: It is shorter.
    """
    count = len(clip.shown_at(card.clip.fps))
    whole = 0.0 if card.clip.max_seconds == 0 else (count - 1) / card.clip.fps
    if request.seconds is not None and frames_of(request.seconds, card) > count:
        raise RequestError(
            f"{clip.what} has {count} frames at {card.clip.fps:g} a second, which is {whole:.4g} s: ask for no more "
            "seconds than that, or for none"
        )
    return whole if request.seconds is None else request.seconds


def latent_of(shape: VideoShape, card: Card) -> LatentShape:
    """The latent of a clip.

    Raises:
        RequestError: The clip does not fit the autoencoder's grid.
    """
    clip = card.clip
    return LatentShape.from_video(shape, temporal=clip.temporal, spatial=clip.spatial, channels=clip.channels)


def checked_resample(
    resample: int | None, known: Sequence[Condition], cache: CacheSettings | None, *, is_long: bool = False
) -> int:
    """How often each step is taken again, 0 if nothing is given.

    Raises:
        RequestError: Nothing is known that it could help, or a step cache counts on whole runs.
    """
    edits = any(one.prompt is not None for one in known)
    follows = is_long or any(
        one.way == "replacement" and (one.kind == "frames" or one.kept is not None) for one in known
    )
    if resample and (edits or not follows):
        why = "nothing is replaced by `source_prompt`" if edits else "neither is given"
        raise RequestError(
            f"`resample={resample}` takes steps again for known frames or a mask, and {why}: leave it out"
        )
    if cache is not None and (resample or edits or any(one.kind == "init" and one.strength < 1 for one in known)):
        raise RequestError(
            "step caches need every step of a run, and once: leave `cache=…` out, or `strength=…`, "
            "`source_prompt=…` and `resample=…`"
        )
    return resample or 0


# Fields that only some tasks accept, and how other tasks refuse them.
FOREIGN = {
    **dict.fromkeys(
        ("fps", "motion", "image_guidance", "interpolation_guidance"), "makes no keyframes and takes no {name}"
    ),
    "states": "makes no sound and takes no {name}",
}


def refuse_foreign(request: Request, card: Card, own: Collection[str] = ()) -> None:
    """Refuse values that only models of other tasks accept.

    Args:
        request: The request.
        card: The model.
        own: Fields that this model's task accepts.

    Raises:
        RequestError: Such a value was given.
    """
    for name, words in FOREIGN.items():
        if name not in own and getattr(request, name) is not None:
            raise RequestError(f"`{card.id}` {words.format(name=name.replace('_', ' '))}: leave it out")


def common(jobs: Sequence[Job]) -> Job:
    """The first job, after checking that all others agree with it.

    Raises:
        RequestError: There are no jobs, or they differ in more than prompt, negative prompt, seed and image.
    """
    if not jobs:
        raise RequestError("a batch needs at least one request")
    first = jobs[0]
    for one in jobs[1:]:
        alike = [condition.form for condition in one.conditions] == [condition.form for condition in first.conditions]
        aligned = dataclasses.replace(
            one,
            prompt=first.prompt,
            negative_prompt=first.negative_prompt,
            seed=first.seed,
            expanded_prompt=first.expanded_prompt,
            conditions=first.conditions if alike else one.conditions,
        )
        if aligned != first:
            raise RequestError("the requests of one batch may differ in prompt, negative prompt, seed and image only")
    return first


def frames_of(seconds: float, card: Card) -> int:
    """Pixel frames of a clip: 1 for a still, else 1 + a multiple of the autoencoder's time factor.

    Source: kandinskylab/kandinsky-5, kandinsky/t2v_pipeline.py: time_length · 24 // 4 + 1 latent frames.
    """
    if seconds == 0:
        return 1
    # 0.7 · 30 is 20.999… in binary; a clip must not lose a step of the grid to that.
    return int(seconds * card.clip.fps + 1e-6) // card.clip.frame_step * card.clip.frame_step + 1


def _lengths(
    seconds: float, card: Card, request: Request, others: Sequence[conditions.Opened]
) -> tuple[int, int | None]:
    """Pixel frames of a clip on the autoencoder's grid, and how many of them are kept, if not all.

    A length between two of the grid is the one below, as the official code counts, unless the card says that clips are
    cut: then a group more is made, and the rest of it is cut off. What gives a clip its length has no frames for that
    group, and what belongs to the clip's end would be cut off: these stay on the grid, the latter at the nearest of
    its lengths.
    """
    clip, below = card.clip, frames_of(seconds, card)
    asked, above = math.ceil(seconds * clip.fps - 1e-6), below + clip.frame_step
    longest = math.inf if is_long(request, card, seconds) else frames_of(clip.max_seconds, card)
    has_own = request.video is not None or any(isinstance(one.asked, Source | Control) for one in others)
    if not clip.cuts or asked <= below or above > longest or has_own:
        return below, None
    ends = any(isinstance(one.asked, Frames) and one.asked.at == END for one in others)
    if not (ends or request.loop or request.upscale is not None):
        return above, asked
    wanted = seconds * clip.fps
    return (above if above - wanted < wanted - below else below), None


def parse_size(text: str) -> tuple[int, int]:
    """Parse `WIDTHxHEIGHT`.

    Returns:
        (width, height).

    Raises:
        RequestError: The text has another form.
    """
    found = _SIZE.fullmatch(checked("size", text, str))
    if found is None:
        raise RequestError(f"size `{shown(text)}` is not of the form WIDTHxHEIGHT, such as `512x512`")
    return int(found[1]), int(found[2])


def _image(image: object, card: Card, needs_image: bool) -> InputImage | None:
    task = card.does
    if image is None:
        if task.image == "required" and needs_image:
            raise RequestError(f"`{card.id}` makes {_a(task.makes)} from an image, and none was given: give `image=…`")
        return None
    if task.image == "none" and "first frame" not in task.knows:
        raise RequestError(
            f"`{card.id}` makes {_a(task.makes)} from text alone and takes no image: leave it out, or use a model for "
            "`image-to-video` or `image-editing`",
            hint="`kandinsky models` lists them all",
        )
    return open_image(image)


def _mask(request: Request, card: Card, image: InputImage | None, needs_image: bool) -> Mask | None:
    """The mask over an image; one over a video belongs to the video."""
    if not card.does.mask:
        if request.video is not None:
            return None
        if request.mask is not None and "source" in card.does.knows and image is None:
            raise RequestError(
                "the mask says which part of a video is generated anew, and none was given: give `video=…`"
            )
        for name in ("mask", "mask_grow"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"`{card.id}` repaints no part of an image and takes no {name.replace('_', ' ')}: leave it out, or "
                    "use a model for `inpainting`",
                    hint="`kandinsky models` lists them all",
                )
        return None
    if image is None:  # only for a plan
        return None
    if request.mask is None:
        raise RequestError(
            f"`{card.id}` repaints a part of an image, and no mask says which: give `mask=…`, white where to repaint"
        )
    return open_mask(request.mask, image, grow=0 if request.mask_grow is None else request.mask_grow)


def _check_seen(mask: Mask, image: FittedImage, spatial: int) -> None:
    """Refuse a mask of which nothing is left in the latent, which sees one pixel of each square.

    Raises:
        RequestError: Nothing of the mask is left.
    """
    if not mask.fitted(image)[::spatial, ::spatial].any():
        raise RequestError(
            f"the mask marks too little of the {image.used} that are used: nothing of it is left in squares of "
            f"{spatial} pixels: grow it, such as with `mask_grow={spatial}`"
        )


def checked_prompt(prompt: str, card: Card, *, may_lack: bool) -> str:
    """Check a request's prompt.

    Args:
        prompt: What was given.
        card: The model.
        may_lack: Whether it may be empty.

    Returns:
        The prompt.

    Raises:
        RequestError: It is not text, or is empty although it may not be.
    """
    if not prompt.strip() and not may_lack:
        makes = card.does.makes
        raise RequestError(f"the prompt is empty: say what the {makes} should show, such as `a panda waves`")
    return prompt


def checked_guidance(guidance: float | None, negative: str | None, sampling: Sampling) -> tuple[float, str]:
    """The guidance scale and the negative prompt, the card's if none is given.

    Args:
        guidance: What was given.
        negative: The negative prompt that was given.
        sampling: The card's values.

    Returns:
        Both.

    Raises:
        RequestError: The scale is out of range, or the negative prompt is not text.
    """
    value = checked_weight("guidance", guidance, sampling.guidance, sampling)
    if 0 < sampling.good_guidance < value:
        log.warning("guidance %g burns colours: this model is made for up to %g", value, sampling.good_guidance)
    negative = sampling.negative_prompt if negative is None else negative
    if value == 1 and negative != sampling.negative_prompt and negative.strip():
        log.warning("the negative prompt has no effect at guidance 1: no second pass runs")
    return value, negative


def _expands(request: Request, card: Card) -> bool:
    """Whether the prompt is still to be expanded."""
    if request.expanded_prompt is not None:
        if not request.expanded_prompt.strip():
            raise RequestError("the expanded prompt is empty: leave it out, or ask for `expand=True`")
        return False
    if request.expand:
        able = card.part("text").expands
        if not able:
            raise RequestError(
                f"`{card.id}` cannot expand prompts: its text encoder `{card.text.kind}` only reads; leave "
                "`expand=True` out, or use a Kandinsky 5 model"
            )
        if card.task not in able:
            raise RequestError(
                f"`{card.id}` cannot expand prompts for `{card.task}`: {', '.join(able)} can be; leave it out"
            )
    return bool(request.expand)


def _size(
    width: int | None, height: int | None, image: InputImage | None, card: Card
) -> tuple[int, int, FittedImage | None]:
    """Width, height, and the image at that size; an image decides if nothing else does."""
    is_given = width is not None or height is not None
    if image is None:
        size = _legal_size(width, height, card) if is_given else parse_size(card.clip.default_size)
        return *size, None
    own = _fitted(image, card)
    if not is_given:
        return own.width, own.height, own
    size = (own.width, own.height) if (width, height) == (own.width, own.height) else _legal_size(width, height, card)
    return *size, fitted_to(image, *size, card)


def fitted_to(image: InputImage, width: int, height: int, card: Card) -> FittedImage:
    """An image at the size of a result: by the card's rule if that leads there, else cut to cover it."""
    own = _fitted(image, card)
    return own if (own.width, own.height) == (width, height) else FittedImage(image, width, height, how="cover")


def _fitted(image: InputImage, card: Card) -> FittedImage:
    """The image at the size it gets by the card's rule.

    Source: kandinskylab/kandinsky-5, kandinsky/i2v_pipeline.py (area), kandinsky/i2i_pipeline.py (list);
        ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py (within).
    """
    if card.clip.fit == "list":
        size = nearest_shape(*image.size, [parse_size(size) for size in card.clip.sizes])
        return FittedImage(image, *size, how="cover")
    group = card.classes[card.class_for(*parse_size(card.clip.default_size)) or ""]
    if card.clip.fit == "within":
        return FittedImage(image, *size_within(*image.size, area=group.area, multiple=group.multiple), how="shrink")
    width, height = area_size(*image.size, area=group.area, multiple=group.multiple)
    most = LONGEST_SIDE // group.multiple * group.multiple
    if max(width, height) > most:  # only for images about ten times as long as wide
        return FittedImage(image, min(width, most), min(height, most), how="cover")
    return FittedImage(image, width, height, how="stretch")


def _legal_size(width: int | None, height: int | None, card: Card) -> tuple[int, int]:
    allowed = either(card.clip.sizes)
    if width is None or height is None:
        raise RequestError(
            f"width and height belong together, and only the {'height' if width is None else 'width'} was given: "
            f"`{card.id}` supports {allowed}"
        )
    if f"{width}x{height}" in card.clip.sizes:
        return width, height
    if unit := card.clip.multiple:
        if all(0 < side <= LONGEST_SIDE and side % unit == 0 for side in (width, height)):
            return width, height
        allowed = f"multiples of {unit} up to {LONGEST_SIDE}, such as {allowed}"
    hint = None
    if min(width, height) > 0:
        # Nearest in shape and area alike: distance of logarithms, so that twice as wide counts as much as half as wide.
        def distance(size: str) -> float:
            w, h = parse_size(size)
            return abs(math.log(w / width)) + abs(math.log(h / height))

        hint = f'the nearest is `size="{min(card.clip.sizes, key=distance)}"`'
    raise RequestError(
        f"size `{shown(width)}x{shown(height)}` is not supported by `{card.id}`: use {allowed}", hint=hint
    )


def _seconds(seconds: float | None, card: Card, request: Request) -> float:
    value = checked_number("seconds", seconds, card.clip.seconds)
    low, high = card.clip.min_seconds, card.clip.max_seconds
    if high == 0 and value != 0:
        raise RequestError(f"`{card.id}` makes images: leave the {value:g} seconds out, or use a video model")
    if low <= value and is_long(request, card, value):
        check_able(request, card, value)
        high = LONGEST
    elif value < low and high > 0:  # then what is allowed is said as for lengths that are too long
        with contextlib.suppress(RequestError):
            check_able(request, card, value)
            high = LONGEST
    if not low <= value <= high:
        itself = value == 0 and card.does.image == "required"
        raise RequestError(
            f"`{value:g}` seconds are not supported by `{card.id}`: use {low:g} to {high:g}"
            + (" (0 makes a still image)" if low == 0 else ""),
            hint="a still would be the image itself" if itself else None,
        )
    if value > 0 and frames_of(value, card) == 1:
        raise RequestError(
            f"`{value:g}` seconds are too short for one step in time: use 0 for a still, or "
            f"{shortest_clip(card):g} and more"
        )
    return value


def shortest_clip(card: Card) -> float:
    """Seconds of the shortest clip that is no still, rounded up to hundredths; 0 for models that make images."""
    clip = card.clip
    if clip.max_seconds == 0:
        return 0.0
    return max(clip.min_seconds, math.ceil(clip.frame_step / clip.fps * 100) / 100)


def checked_steps(steps: int | None, card: Card, sampling: Sampling) -> int:
    """Number of sampling steps, the card's if none is given.

    Raises:
        RequestError: It is not an integer from 1 to the card's ``max_steps``.
    """
    if steps is None:
        return sampling.steps
    if not 1 <= steps <= sampling.max_steps:
        raise RequestError(
            f"steps `{shown(steps)}` are not supported by `{card.id}`: "
            f"use a whole number from 1 to {sampling.max_steps}, the default is {sampling.steps}"
        )
    if 0 < sampling.good_steps < steps:
        log.warning(
            "%d steps gain nothing over %d with `%s`, and add grain: the default is %d",
            steps, sampling.good_steps, card.id, sampling.steps,
        )  # fmt: skip
    return steps


def checked_seed(seed: int | None) -> int:
    """The seed, drawn if none is given.

    Raises:
        RequestError: It is not an integer from 0 to 2^63 - 1.
    """
    if seed is None:
        # Short enough to be read out and typed again.
        return secrets.randbelow(2**32)
    if not 0 <= seed < SEED_LIMIT:
        raise RequestError(f"seed `{shown(seed)}` must be a whole number from 0 to 2^63 - 1")
    return seed


def checked_cache(cache: str | CacheSettings | None, card: Card, ratios: Sequence[float]) -> CacheSettings | None:
    """The step cache of a request or a pipeline, see ``caching.choose``.

    Raises:
        RequestError: It cannot be parsed, lacks its calibration, or the model's network supports none.
    """
    chosen = caching.choose(cache, model=card.id, ratios=ratios)
    if chosen is not None and card.roll is not None:
        raise RequestError(f"`{card.id}` takes no step cache, since its steps are few: leave `cache=…` out")
    if chosen is not None and not card.part("dit").caches:
        raise RequestError(f"`{card.id}` supports no step cache: leave `cache=…` out")
    return chosen


def checked_number(
    name: str, value: float | None, default: float, *, least: float = -math.inf, most: float = math.inf, note: str = ""
) -> float:
    """A number within bounds, the default if none is given.

    Args:
        name: What a message calls it.
        value: What was given.
        default: The card's.
        least: The smallest allowed.
        most: The largest allowed.
        note: What a message says besides the bounds.

    Returns:
        The number.

    Raises:
        RequestError: It is out of bounds.
    """
    if value is None:
        return default
    if not least <= value <= most:
        bounds = f"{least:g} to {most:g}" + (f" ({note})" if note else "")
        raise RequestError(f"{name} `{value:g}` is out of range: use {bounds}, the default is {default:g}")
    return float(value)


def checked_weight(name: str, value: float | None, default: float, sampling: Sampling) -> float:
    """A guidance scale, the default if none is given.

    Args:
        name: What a message calls it.
        value: What was given.
        default: The card's.
        sampling: The card's values, which hold the largest scale allowed.

    Returns:
        The scale.

    Raises:
        RequestError: It is out of bounds.
    """
    return checked_number(name, value, default, least=0, most=sampling.max_guidance, note="1 disables it")


def either(names: tuple[str, ...]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]


def _a(made: str) -> str:
    return f"an {made}" if made[0] in "aeiou" else f"a {made}"
