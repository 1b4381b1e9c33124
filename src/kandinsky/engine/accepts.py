"""What a model accepts, in words, from its card, its parts and its task. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from kandinsky.engine.conditions import FLOW
from kandinsky.engine.upscale import can_upscale
from kandinsky.engine.windows import LONGEST, default_overlap
from kandinsky.media.image import LONGEST_SIDE
from kandinsky.model.card import Card
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime import quantise
from kandinsky.runtime.budget import OFFLOADS

_IMAGE_IS = {"frames": "the first frame", "source": "the image to edit", "repaint": "the image to inpaint"}
_WAYS = {"native": "as it was trained to be given", "replacement": "without training, by replacement"}
_FITS = {
    "list": "takes the listed size nearest in shape, and is cropped to it",
    "area": "keeps its shape and decides the size",
    "within": "keeps its shape and is never enlarged",
}


def accepted(card: Card) -> dict[str, str]:
    """What a request for a model, and a run of it, may set.

    Args:
        card: The model's card.

    Returns:
        The allowed and the default values, by the name of the option, in the order of the command line.
    """
    return dict(_of_sound(card) if card.sound is not None else _of_clips(card))


def _of_sound(card: Card) -> Iterator[tuple[str, str]]:
    sound = card.sound
    assert sound is not None
    yield "prompt", card.prompt
    yield "video", f"required; made in windows of {sound.window_s:g} s"
    if card.part("text").remote_code:
        yield "states", "precomputed embeddings of the video, in the place of the encoder"
        yield "trust_remote_code", "needed: the encoder runs program code of its own repository"
    yield from _of_sampling(card)
    yield "dtype", _dtypes(card)
    yield "offload", ", ".join(OFFLOADS)


def _of_clips(card: Card) -> Iterator[tuple[str, str]]:
    task, clip, dit, vae = card.does, card.clip, card.part("dit"), card.part("vae")
    may_lack = card.prompt == "optional" and task.image != "none"
    yield "prompt", "required" if not may_lack else "required without an image"
    if card.part("text").expands and card.task in card.part("text").expands:
        yield "expand", "the model's own language model rewrites the prompt in more detail"
    if task.image != "none":
        yield "image", f"{task.image}: {_IMAGE_IS.get(task.image_is, task.image_is)}; it {_FITS[clip.fit]}"
    elif (way := task.knows.get("first frame")) is not None:
        yield "image", f"optional: {_IMAGE_IS['frames']}, {_WAYS[way]}; it {_FITS[clip.fit]}"
    if (way := task.knows.get("frames")) is not None:
        yield "conditions", f"frames known anywhere, {_WAYS[way]}; last_image is the last one"
    elif card.conditions_with:
        others = "other known frames, videos to change, controls and references"
        yield "conditions", f"a first frame alone; `{card.conditions_with}` takes {others}"
    if (way := task.knows.get("source")) is not None:
        how = "strength, mask, span, place" + (", source_prompt" if card.sampling.sampler == FLOW else "")
        yield "video", f"to be changed by {how}, {_WAYS[way]}"
        if can_upscale(card):
            most = f"up to {LONGEST_SIDE} pixels a side"
            yield "upscale", f"a second stage by the same model, {most}; or of a video that is changed in no other way"
    for kind, what in (
        ("control", "a clip or image that the result follows"),
        ("reference", "an image of its subject"),
    ):
        if kind in card.part("dit").branches and card.roll is None:
            own = any(kind in name for part in card.branches for name in part.files)
            yield kind, f"{what}, by a {kind} branch" + (" of its own" if own else " whose file is given")
    if task.mask:
        yield "mask", "required; mask_grow enlarges it"
    more = f"; or multiples of {clip.multiple} up to {LONGEST_SIDE}" if clip.multiple else ""
    yield "size", f"{', '.join(clip.sizes)}{more}; default {clip.default_size}"
    yield from _of_time(card)
    if card.chunk is not None:
        yield "stream", f"without end, {card.chunk * clip.temporal / clip.fps:.2g} s at a time"
    yield from _of_sampling(card)
    default = str(AttentionSpec.from_dict(card.sampling.attention))
    yield "attention", f"{', '.join(dit.attention)}, or a backend; default {default}"
    caches = (["magcache"] if card.sampling.mag_ratios else []) + ["first-block", "taylor"]
    uncalibrated = "" if card.sampling.mag_ratios else "; magcache after `kandinsky calibrate`"
    yield "cache", f"{', '.join(caches)}{uncalibrated}" if dit.caches else "not supported"
    yield "lora", "files for its linear layers"
    for name in quantise.COMPONENTS:
        schemes = [scheme for scheme, known in quantise.SCHEMES.items() if name in known.components]
        yield f"quantize {name}", ", ".join(schemes)
    if vae.tilings:
        yield "tiling", ", ".join(vae.tilings)
    yield "dtype", _dtypes(card)
    yield "offload", ", ".join(OFFLOADS)
    yield "parallel", "cfg, data" if dit.split is None else "cfg, data, and splits of the transformer"


def _of_time(card: Card) -> Iterator[tuple[str, str]]:
    clip, keyframes = card.clip, card.keyframes
    if keyframes is not None:
        rates = ", ".join(f"{name} ({rate} frames a second)" for name, rate in keyframes.fps.items())
        yield "seconds", f"{clip.seconds:g}, fixed"
        yield "fps", f"{rates}; default {keyframes.default_fps}"
        if (first := keyframes.first_frame) is not None:
            yield "motion", f"{', '.join(first.motion)}; default {first.default_motion}"
            yield "image_guidance", f"default {first.image_guidance:g}"
        yield "interpolation_guidance", f"default {keyframes.guidance:g}"
    elif clip.max_seconds:
        still = ", where 0 makes a still image" if clip.min_seconds == 0 else ""
        yield "seconds", f"{clip.min_seconds:g} to {clip.max_seconds:g}{still}; default {clip.seconds:g}"
        if clip.overlap != 0 and card.goes_on:
            known = f"{default_overlap(card):.3g}"
            yield "longer clips", f"up to {LONGEST:g} s in windows that share {known} s"
        yield "frame rate", f"{clip.fps:g} frames a second, fixed"


def _of_sampling(card: Card) -> Iterator[tuple[str, str]]:
    sampling = card.sampling
    gain = f"; more than {sampling.good_steps} gain nothing" if sampling.good_steps else ""
    yield "steps", f"1 to {sampling.max_steps}; default {sampling.steps}{gain}"
    without = ", which disables it" if sampling.guidance == 1 else "; 1 disables it"
    burns = f"; above {sampling.good_guidance:g} colours burn" if sampling.good_guidance else ""
    yield "guidance", f"default {sampling.guidance:g}{without}{burns}"
    if card.sound is None:
        yield "shift", f"{sampling.min_shift:g} to {sampling.max_shift:g}; default {sampling.shift:g}"


def _dtypes(card: Card) -> str:
    fixed = [name for name in card.components if card.part(name).stored_dtype]
    told = f"; {', '.join(fixed)} as in its files" if fixed else ""
    return f"float32, bfloat16, float16{told}"
