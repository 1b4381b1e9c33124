"""Known frames and source clips of a request, checked against its model and laid onto the latent's grid. No torch.

An autoencoder that is causal in time has a latent frame for the first frame of a clip, and one for each further group
of `temporal` frames. What is known is therefore known in whole latent frames: a fragment is cut to those that lie
within it, and one that holds none, such as a single image, is held for the group that it begins in.

Legend: F pixel frames, T latent frames, H W rows and columns of pixels, h w of the latent.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.image import FittedImage, InputImage
from kandinsky.media.input_clip import SAME_RATE, FittedClip, InputClip, fit_clip, open_clip
from kandinsky.media.mask import MOST_GROWTH, grown, open_mask
from kandinsky.media.signals import SIGNALS
from kandinsky.model.checks import shown
from kandinsky.model.condition import FIRST_FRAME, Condition, Kept, Span
from kandinsky.model.given import (
    END,
    KINDS,
    Control,
    Frames,
    Given,
    Reference,
    Source,
    frame_at,
    moment,
    part_of,
    placed,
    shares_of,
    without_cut,
)
from kandinsky.model.values import VideoShape
from kandinsky.printing import escaped
from kandinsky.weights.branch_files import CONTROL, REFERENCE, BranchFile, read_branch
from kandinsky.weights.locate import locate_part

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from kandinsky.model.card import Card, Clip
    from kandinsky.model.task import What
    from kandinsky.model.values import Request

log = logging.getLogger(__name__)
FLOW = "flow"  # the sampler of models of flow matching
EDIT_FROM = 0.9  # time that the difference of two prompts is followed from, by default
WORDS = ("strength", "span", "place", "source_prompt")  # of a request, about its ``video``


@dataclass(frozen=True, slots=True)
class Opened:
    """A condition of a request whose file was opened.

    Attributes:
        asked: As the request says it.
        clip: Its image or clip.
        branch: Of a control or a reference.
    """

    asked: Given
    clip: InputClip
    branch: BranchFile | None = None

    @property
    def decides_size(self) -> bool:
        """Whether the result gets its size if the request names none."""
        if isinstance(self.asked, Reference):
            return False
        return not (isinstance(self.asked, Source) and self.asked.place is not None)


def opened(request: Request, card: Card) -> tuple[Opened, ...]:
    """The conditions of a request, its short words among them; the files are opened, and a little of each is read.

    Args:
        request: The request.
        card: The model.

    Returns:
        The conditions, in the request's order; what `image` says is not among them.

    Raises:
        RequestError: The model cannot be given one, a file cannot be read, or one is given twice.
    """
    asked: list[Given] = []
    if request.video is not None:
        asked.append(_source(request, card))
    else:
        for name in WORDS:
            if getattr(request, name) is not None:
                raise RequestError(f"`{name}=…` says how a video is changed, and none was given: give `video=…`")
    asked += request.conditions
    if request.last_image is not None:
        asked.append(Frames(request.last_image, at=END))
    asked += _short_of_branches(request)
    for one in asked:
        _check_taken(one, card)
    if sum(isinstance(one, Source) for one in asked) > 1:
        raise RequestError("several videos are to be changed: give one, and the rest as known frames")
    files = [read_branch(one) for one in request.branches]
    found = []
    for one in asked:
        branch = branch_of(one, files, card) if isinstance(one, Control | Reference) else None
        clip = open_clip(one.data, None if isinstance(one, Reference) else one.cut)
        if isinstance(one, Frames) and "frames" not in card.does.knows and len(clip.times_s) > 1:
            raise RequestError(_not_taken("frames", card))
        if isinstance(one, Reference) and not clip.is_image:
            log.warning("the reference %s is a clip, and a reference one image: its first frame is used", clip.what)
        found.append(Opened(one, clip, branch))
    if unused := [one for one in files if one not in [each.branch for each in found]]:
        raise RequestError(
            f"branch `{escaped(unused[0].path)}` is told a {unused[0].kind}, and none is given that it is for: give "
            f"`{unused[0].kind}=…`, or leave it out"
        )
    return tuple(found)


def _short_of_branches(request: Request) -> list[Given]:
    """What the short words say of branches.

    Raises:
        RequestError: A word says how a clip is followed, and there is none.
    """
    found: list[Given] = []
    if request.control is not None:
        data, cut = without_cut(request.control) if isinstance(request.control, str) else (request.control, None)
        strength = 1.0 if request.control_strength is None else request.control_strength
        found.append(Control(data, strength=strength, steps=request.control_steps, cut=cut))
    elif said := [name for name in ("control_strength", "control_steps") if getattr(request, name) is not None]:
        raise RequestError(f"`{said[0]}=…` says how a control is followed, and none was given: give `control=…`")
    if request.reference is not None:
        strength = 1.0 if request.reference_strength is None else request.reference_strength
        found.append(Reference(request.reference, strength=strength))
    elif request.reference_strength is not None:
        raise RequestError(
            "`reference_strength=…` says how a reference is followed, and none was given: give `reference=…`"
        )
    return found


def branch_of(asked: Control | Reference, files: Sequence[BranchFile], card: Card) -> BranchFile:
    """The branch of a control or a reference.

    Args:
        asked: May name it.
        files: Branches to choose from before those of the card.
        card: The model.

    Returns:
        The branch.

    Raises:
        RequestError: There is none, there are several, or it is told something else.
        WeightsError: It cannot be read, or was trained for another network.
    """
    kind, signal = (CONTROL, asked.signal) if isinstance(asked, Control) else (REFERENCE, None)
    if signal is not None and signal not in SIGNALS:
        raise RequestError(f"control signal `{shown(signal)}` is unknown: use {', '.join(SIGNALS)}")
    if asked.branch is not None:
        found = read_branch(asked.branch)
        if found.kind != kind:
            raise RequestError(f"branch `{escaped(found.path)}` is told a {found.kind}, not a {kind}: give one for it")
        fitting = [found]
    else:
        own = [replace(read_branch(locate_part(part, model=card.id)), is_own=True) for part in card.branches]
        of_kind = [[one for one in each if one.kind == kind] for each in (files, own)]
        fitting = next((each for each in of_kind if each), [])
    if signal is not None and fitting and not any(one.signal == signal for one in fitting):
        raise RequestError(
            f"the control shows {signal}, and branch `{escaped(fitting[0].path)}` follows {fitting[0].signal}: give "
            "a branch for it"
        )
    fitting = fitting if signal is None else [one for one in fitting if one.signal == signal]
    if not fitting:
        raise RequestError(
            f"a {kind} is followed by a {kind} branch, and `{card.id}` has none of its own: give its file as "
            "`branch=…`",
            hint="a recipe of kind `denoiser` with `branch` trains one; see docs/guides/branches.md",
        )
    if len(fitting) > 1:
        raise RequestError(
            f"several branches are told a {kind}, such as `{escaped(fitting[0].path)}` and "
            f"`{escaped(fitting[1].path)}`: name one in the condition's `branch`"
        )
    fitting[0].check_beside(card.dit, card.id)
    return fitting[0]


def _source(request: Request, card: Card) -> Source:
    """What the short words say of the video.

    Raises:
        RequestError: They do not say what changes.
    """
    assert request.video is not None
    chosen = (request.strength, request.mask, request.span, request.place, request.source_prompt)
    if all(one is None for one in chosen) and "source" in card.does.knows:
        raise RequestError(
            f"`{card.id}` changes a video and was not told how: give `strength=0.6`, `mask=…`, `span=1s:2s` or "
            "`place=…`",
            hint="a model such as `nano-v2a` generates audio for it",
        )
    data, cut = without_cut(request.video) if isinstance(request.video, str) else (request.video, None)
    return Source(
        data,
        cut=cut,
        strength=request.strength,
        mask=request.mask,
        span=request.span,
        place=request.place,
        grow=request.mask_grow,
        prompt=request.source_prompt,
    )


def _check_taken(one: Given, card: Card) -> None:
    if isinstance(one, Control | Reference):
        kind = CONTROL if isinstance(one, Control) else REFERENCE
        if kind not in card.part("dit").branches:
            raise RequestError(
                f"`{card.id}` takes no {kind}, since no branch can stand beside its network: leave it out, or use "
                f"{instead_of(card) or 'a model of Kandinsky 4 or 5'}",
                hint="`kandinsky models` lists them all",
            )
        if card.roll is not None:
            raise RequestError(f"`{card.id}` makes its frames along time and takes no {kind} yet: leave it out")
        return
    what: What = "source" if isinstance(one, Source) else "frames"
    if what in card.does.knows or (card.knows_first_alone and _begins(one)):
        return
    raise RequestError(_not_taken(what, card), hint="`kandinsky models` lists them all")


def lacks(request: Request, card: Card) -> bool:
    """Whether a request asks for conditions that a model does not take; no file is opened.

    To be made larger is none of them: another model's clip would be another one, and maybe no larger.

    Args:
        request: The request.
        card: The model.
    """
    takes = {*card.does.knows, *card.part("dit").branches}
    needs = {next(name for name, kind in KINDS.items() if isinstance(one, kind)) for one in request.conditions}
    needs |= {"source"} if request.video is not None else set()
    needs |= {"frames"} if request.last_image is not None else set()
    needs |= {kind for kind in (CONTROL, REFERENCE) if getattr(request, kind) is not None}
    return not needs <= takes


def _begins(one: Given) -> bool:
    """Whether frames stand at the beginning of the result; how many they are is seen in their file."""
    return isinstance(one, Frames) and one.at != END and moment(one.at, "at")[0] == 0


def _not_taken(what: What, card: Card) -> str:
    """Why a model is given no video to change, or no known frames, and what to do."""
    other = instead_of(card) or "a model for `text-to-video` or `image-to-video`"
    if what == "frames" and card.knows_first_alone:
        return (
            f"`{card.id}` goes on from a first frame, and takes no other known frames: give a single one at 0, or use "
            f"{other}"
        )
    named = "video to change" if what == "source" else "known frames"
    return f"`{card.id}` takes no {named}: leave it out, or use {other}"


def instead_of(card: Card) -> str:
    """The model that takes the conditions that this one does not, for a message; empty if its card names none."""
    return f"`{card.conditions_with}`, which does" if card.conditions_with else ""


def first_is_known(conditions: Sequence[Opened]) -> bool:
    """Whether the first frame of the result follows a condition."""
    asked = [one.asked for one in conditions]
    return any(isinstance(one, Source) or _begins(one) for one in asked)


def seconds_of(conditions: Sequence[Opened], card: Card) -> float | None:
    """The length that a source or a control clip gives the result, at most the model's longest; None without one."""
    for one in conditions:
        if isinstance(one.asked, Source | Control) and card.clip.max_seconds > 0:
            if one.clip.is_image:
                if isinstance(one.asked, Control):
                    continue
                return 0.0
            count = len(one.clip.shown_at(card.clip.fps))
            longest = int(card.clip.max_seconds * card.clip.fps + 1e-6)
            if count > longest + 1:
                log.warning("%s has %d frames at %g a second: the first %d are used, which is the longest `%s` makes",
                            one.clip.what, count, card.clip.fps, longest + 1, card.id)  # fmt: skip
            return min(count - 1, longest) / card.clip.fps
    return None


def laid(
    conditions: Sequence[Opened],
    image: FittedImage | None,
    shape: VideoShape,
    card: Card,
    fit: Callable[[InputImage], FittedImage],
) -> tuple[Condition, ...]:
    """The conditions on the latent's grid.

    Args:
        conditions: The opened conditions.
        image: The first frame, where the request names it.
        shape: Size of the result.
        card: The model.
        fit: Fits an image to that size.

    Returns:
        The conditions; those of the first frame, where the model was trained to be given it, by themselves.

    Raises:
        RequestError: One leaves the clip, two share frames, or nothing is left to generate.
    """
    found: list[Condition] = []
    knows = card.does.knows
    if image is not None:
        found.append(Condition("frames", image, FIRST_FRAME, way=knows["first frame"]))
    # before anything is decoded, since frames of several conditions could be many times those of the result
    step = card.clip.temporal
    placed = [(FIRST_FRAME, _named(one)) for one in found] + [
        (whole(*_place_of(one.asked, one.clip, shape, card), step), _named_clip(one.clip.file))
        for one in conditions
        if isinstance(one.asked, Frames)
    ]
    known = _check_apart(placed, shape, card.clip)
    if conditions and known == (shape.frames - 1) // step + 1:
        raise RequestError(f"all {shape.frames} frames are known and nothing is left to generate: leave some out")
    for one in conditions:
        if isinstance(one.asked, Source):
            found.append(_laid_source(one.asked, one.clip, shape, card, fit))
        elif isinstance(one.asked, Control):
            found.append(_laid_control(one, one.asked, shape, card, fit))
        elif isinstance(one.asked, Reference):
            seen = _as_trained(one, card, fit_clip(one.clip, [0], fit(one.clip.first)))
            found.append(_told_to_branch(one, one.asked, seen))
        else:
            found.append(_laid_frames(one.asked, one.clip, shape, card, fit))
    source = next((one for one in found if one.kind == "init"), None)
    _check_apart(placed, shape, card.clip, source=source)
    return tuple(found)


# -- known frames ------------------------------------------------------------------------------------------------------


def _laid_frames(
    asked: Frames, clip: InputClip, shape: VideoShape, card: Card, fit: Callable[[InputImage], FittedImage]
) -> Condition:
    step, numbers = card.clip.temporal, clip.shown_at(card.clip.fps)
    start, stop = _place_of(asked, clip, shape, card)
    span = whole(start, stop, step)
    first, end = pixels_of(span, step)
    # what is held is repeated at its ends
    wanted = [numbers[min(max(frame - start, 0), len(numbers) - 1)] for frame in range(first, end)]
    if span.start:  # the frame before gives the context in which the others are encoded
        wanted = [numbers[max(first - start - 1, 0)], *wanted]
    if (first, end) != (start, stop):
        how = "held for" if end - first > stop - start else "kept in"
        log.info("%s is %s frames %d to %d: this model knows whole groups of %d frames after the first",
                 clip.what, how, first, end - 1, step)  # fmt: skip
    return Condition(
        "frames",
        fit_clip(clip, wanted, fit(clip.first)),
        span,
        way=card.does.knows.get("frames") or card.does.knows["first frame"],
        context=min(span.start, 1),
        asked={"at": asked.at} | ({} if asked.cut is None else {"cut": asked.cut}),
    )


def _place_of(asked: Frames, clip: InputClip, shape: VideoShape, card: Card) -> tuple[int, int]:
    """The frames of the result that a clip is asked to be: the first, and the one after the last.

    Raises:
        RequestError: They leave the result.
    """
    frames, fps = shape.frames, card.clip.fps
    numbers = clip.shown_at(fps)
    start = frames - len(numbers) if asked.at == END else frame_at(asked.at, "at", fps=fps, frames=frames)
    stop = start + len(numbers)
    if not 0 <= start < frames:
        raise RequestError(
            f"{clip.what} is to be known at `{shown(asked.at)}`, which is frame {start}: the result has frames 0 to "
            f"{frames - 1} ({frames / fps:.4g} s)"
        )
    if stop > frames:
        raise RequestError(
            f"{clip.what} has {len(numbers)} frames at {fps:g} a second and is to be known from frame {start} on: the "
            f"result ends after {frames}: use a part of it, such as `[0:{frames - start}]`, or more seconds"
        )
    return start, stop


def whole(start: int, stop: int, step: int) -> Span:
    """The latent frames that lie within pixel frames ``start`` to ``stop``; else the one that they begin in."""
    first = 0 if start == 0 else -(-(start - 1) // step) + 1
    last = (stop - 1) // step
    if first > last:
        first = last = latent_of_frame(start, step)
    return Span(first, last + 1)


def latent_of_frame(frame: int, step: int) -> int:
    """The latent frame that a pixel frame belongs to."""
    return -(-frame // step)


def pixels_of(span: Span, step: int) -> tuple[int, int]:
    """The pixel frames of some latent frames: the first, and the one after the last."""
    return max(0, (span.start - 1) * step + 1), (span.stop - 1) * step + 1


# -- a source ----------------------------------------------------------------------------------------------------------


def _laid_source(
    asked: Source, clip: InputClip, shape: VideoShape, card: Card, fit: Callable[[InputImage], FittedImage]
) -> Condition:
    import numpy as np

    frames, fps = shape.frames, card.clip.fps
    numbers = clip.shown_at(fps)
    if len(numbers) < frames:
        raise RequestError(
            f"{clip.what} has {len(numbers)} frames at {fps:g} a second and the result {frames}: ask for fewer "
            "seconds, or for none and it has the source's length"
        )
    if asked.prompt is not None and card.sampling.sampler != FLOW:
        raise RequestError(
            f"`{card.id}` cannot be asked for the difference of two prompts, which needs a model of flow matching: "
            "leave `source_prompt` out, and give `strength=0.6`"
        )
    if not asked.has_part and asked.strength is None and asked.prompt is None:
        raise RequestError("a source needs `strength=…`, or a part that changes: `mask=…`, `span=…` or `place=…`")
    if asked.place is None:
        box, left, top = fit(clip.first), 0, 0
    else:
        width, height, left, top = _where(asked.place, shape)
        box = FittedImage(clip.first, width, height, "cover")
    fitted = _on_canvas(fit_clip(clip, numbers[:frames], box), shape, left, top)
    kept = None
    if asked.has_part:
        anew = np.ones((frames, shape.height, shape.width), bool)
        inside = _anew(asked, clip, frames, fps, box)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), left + box.width, top + box.height
        anew[:, y0:y1, x0:x1] = inside[:, y0 - top : shape.height - top, x0 - left : shape.width - left]
        begin, stop = part_of(asked.span, "span", fps=fps, frames=frames)
        outside = np.ones(frames, bool)
        outside[begin:stop] = False
        anew[outside] = False
        keep = ~_any_of(anew, card.clip)
        if keep.all():
            raise RequestError("nothing of the source is to be generated anew: choose a larger mask, span or margin")
        kept = Kept(keep, hashlib.sha256(f"{keep.shape}".encode() + np.packbits(keep).tobytes()).hexdigest())
    strength = asked.strength or (1.0 if asked.prompt is None else EDIT_FROM)
    way = card.does.knows["source"]
    return Condition("init", fitted, way=way, strength=strength, kept=kept, prompt=asked.prompt, asked=_told(asked))


def _told(asked: Source) -> Mapping[str, Any]:
    """What a recipe says of a source besides its file: the values of a request; of a mask, its file if it has one."""
    found: dict[str, Any] = {"source": True}
    for name in ("strength", "span", "place", "grow", "cut", "prompt"):
        if (value := getattr(asked, name)) is not None:
            found[name] = value
    if asked.mask is not None:
        found["mask"] = str(asked.mask) if isinstance(asked.mask, str | Path) else None
    return found


def _where(place: str, shape: VideoShape) -> tuple[int, int, int, int]:
    width, height, left, top = placed(place)
    if left >= shape.width or top >= shape.height or left + width <= 0 or top + height <= 0:
        raise RequestError(f"place `{place}` lies outside of the result, which is {shape.width}x{shape.height}")
    return width, height, left, top


def _on_canvas(clip: FittedClip, shape: VideoShape, left: int, top: int) -> FittedClip:
    """The clip in its place, its border repeated around it, so that no edge is encoded."""
    import numpy as np

    rows = np.clip(np.arange(shape.height) - top, 0, clip.frames_THWC.shape[1] - 1)
    columns = np.clip(np.arange(shape.width) - left, 0, clip.frames_THWC.shape[2] - 1)
    return replace(clip, frames_THWC=clip.frames_THWC[:, rows][:, :, columns])


def _anew(asked: Source, clip: InputClip, frames: int, fps: float, used: FittedImage) -> np.ndarray:
    """Where the source is generated anew, [F, H, W] at the size it is used; everywhere or nowhere without a mask."""
    import numpy as np

    if asked.mask is None:
        # a place alone keeps all of the source
        return np.full((frames, used.height, used.width), asked.place is None or asked.span is not None)
    grow = asked.grow or 0
    masks = None if _is_still(asked.mask) else open_clip(asked.mask)
    if masks is None or masks.is_image:
        mask = open_mask(asked.mask, clip.first, grow=grow)
        return np.repeat((mask.fitted(used) > 0)[None], frames, axis=0)
    if masks.first.size != clip.first.size:
        given, wanted = ("{}x{}".format(*size) for size in (masks.first.size, clip.first.size))
        raise RequestError(f"the masks of {masks.what} are {given} and the video {wanted}: give masks of its size")
    numbers = masks.shown_at(fps)
    if len(numbers) < frames:
        raise RequestError(
            f"{masks.what} has {len(numbers)} masks at {fps:g} a second and the result {frames} frames: give one each"
        )
    if not 0 <= grow <= MOST_GROWTH:
        raise RequestError(f"mask growth `{grow}` must be a whole number of pixels from 0 to {MOST_GROWTH}")
    fitted = fit_clip(masks, numbers[:frames], FittedImage(masks.first, used.width, used.height, used.how))
    return np.stack([grown(frame.max(axis=-1) >= 128, grow) for frame in fitted.frames_THWC])


def _is_still(mask: Any) -> bool:
    """Whether a mask is an image or an array of one, which ``open_mask`` reads."""
    shape = getattr(mask, "shape", None)
    return hasattr(mask, "convert") or (shape is not None and len(shape) < 4)


def _any_of(anew_FHW: np.ndarray, clip: Clip) -> np.ndarray:
    """Latent places of which any pixel is generated anew, [T, h, w]."""
    import numpy as np

    F, H, W = anew_FHW.shape
    space = clip.spatial
    in_space = np.asarray(anew_FHW.reshape(F, H // space, space, W // space, space).any(axis=(2, 4)))
    groups = in_space[1:].reshape(-1, clip.temporal, *in_space.shape[1:]).any(axis=1)
    joined: np.ndarray = np.concatenate([in_space[:1], groups])
    return joined


# -- what branches are told --------------------------------------------------------------------------------------------


def _laid_control(
    opened: Opened, asked: Control, shape: VideoShape, card: Card, fit: Callable[[InputImage], FittedImage]
) -> Condition:
    clip, frames, fps = opened.clip, shape.frames, card.clip.fps
    width, height = clip.first.size
    if abs(width * shape.height - height * shape.width) > max(width, height, shape.width, shape.height):
        raise RequestError(
            f"the control {clip.what} is {width}x{height} and the result {shape.width}x{shape.height}: give one of "
            "the same shape, since what is cut off cannot be followed"
        )
    if clip.fps is not None and abs(clip.fps - fps) >= SAME_RATE:
        raise RequestError(
            f"the control {clip.what} has {clip.fps:g} frames a second and the result {fps:g}: give one of that rate"
        )
    count = len(clip.times_s)
    if not clip.is_image and count < frames:
        raise RequestError(
            f"the control {clip.what} has {count} frames and the result {frames}: ask for fewer seconds, or for none "
            "and it has the control's length"
        )
    used = fit_clip(clip, [0] * frames if clip.is_image else range(frames), fit(clip.first))
    return _told_to_branch(opened, asked, used)


def _as_trained(opened: Opened, card: Card, data: FittedClip) -> FittedClip:
    """A reference before the ground that the card's own branch has seen images on."""
    if card.references_on != "white" or opened.branch is None or not opened.branch.is_own:
        return data
    from kandinsky.media.grounds import on_white

    image = data.frames_THWC[0]
    changed = on_white(image)
    if changed is None:
        log.warning("the reference %s has no plain ground: `%s` follows drawings on white, so cut the subject out",
                    opened.clip.what, card.id)  # fmt: skip
        return data
    if changed is not image:
        log.warning("the reference %s is put on white, as `%s` was trained", opened.clip.what, card.id)
    return replace(data, frames_THWC=changed[None])


def _told_to_branch(opened: Opened, asked: Control | Reference, data: FittedClip) -> Condition:
    branch, signal = opened.branch, ""
    assert branch is not None
    told: dict[str, Any] = {branch.kind: True} | ({} if branch.is_own else {"branch": str(branch.path)})
    told["branch_sha256"] = branch.sha256
    if isinstance(asked, Control):
        is_found = not asked.is_map and SIGNALS[branch.signal].of_clip is not None
        signal = branch.signal if is_found else ""
        told |= {"signal": branch.signal} | ({"is_map": True} if asked.is_map else {})
        told |= {} if asked.cut is None else {"cut": asked.cut}
    told |= {"strength": asked.strength} | ({} if asked.steps is None else {"steps": asked.steps})
    return Condition(
        "control" if isinstance(asked, Control) else "reference",
        data,
        strength=asked.strength,
        branch=branch,
        signal=signal,
        shares=shares_of(asked.steps, "steps"),
        asked=told,
    )


# -- together ----------------------------------------------------------------------------------------------------------


def _check_apart(
    placed: Sequence[tuple[Span, str]], shape: VideoShape, clip: Clip, *, source: Condition | None = None
) -> int:
    """Refuse frames that are known twice.

    Args:
        placed: Latent frames that are known, and what a message calls that which they are known from.
        shape: Size of the result.
        clip: The model's clips.
        source: A clip that is kept in some places.

    Returns:
        How many latent frames are known.

    Raises:
        RequestError: Two have a frame in common.
    """
    taken: dict[int, str] = {}
    for span, name in placed:
        for frame in range(span.start, span.stop):
            first, end = pixels_of(Span(frame, frame + 1), clip.temporal)
            if frame in taken:
                named = (
                    f"frame {first}" if end - first == 1 else f"frames {first} to {end - 1}, which are known together"
                )
                raise RequestError(f"{taken[frame]} and {name} are both to be known at {named}: place them apart")
            if source is not None and source.kept is not None and source.kept.keep_THW[frame].any():
                raise RequestError(
                    f"{name} is to be known at frame {first}, where {_named(source)} is kept: leave one out"
                )
            taken[frame] = name
    return len(taken)


def _named(one: Condition) -> str:
    file = one.data.source.file if isinstance(one.data, FittedImage) else getattr(one.data, "file", None)
    return "the image" if file is None and isinstance(one.data, FittedImage) else _named_clip(file)


def _named_clip(file: str | None) -> str:
    return f"`{file}`" if file else "a clip from memory"
