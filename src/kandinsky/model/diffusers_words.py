"""Argument names of Diffusers: accepted if they mean the same as one of ours, else answered with the right one.

One table for calls of a pipeline, one for ``load``. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from kandinsky.errors import RequestError
from kandinsky.model.checks import checked, hints_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from kandinsky.model.card import Card


@dataclass(frozen=True, slots=True)
class Word:
    """One argument name of Diffusers.

    Attributes:
        ours: What it is called here; empty if nothing is the same.
        advice: The message if it is not accepted.
        turn: Converts its value to ours, given the card.
    """

    ours: str = ""
    advice: str = ""
    turn: Callable[[Any, Card | None], Any] = lambda value, _card: value


class CallWords(TypedDict, total=False):
    """The names that calls accept, for type checkers."""

    num_inference_steps: int | None
    guidance_scale: float | None
    num_frames: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    mask_image: str | Path | Image | np.ndarray | None


class LoadWords(TypedDict, total=False):
    """The names that ``load`` accepts."""

    torch_dtype: str | torch.dtype | None


def _guidance(value: Any, _card: Card | None) -> Any:
    return max(1.0, value)  # Diffusers runs one pass for 1 and anything below


def _seconds(frames: int, card: Card | None) -> float:
    assert card is not None
    if frames < 1:
        raise RequestError(f"`num_frames` must be 1 or more, not `{frames}`: 1 makes a still image")
    step = card.clip.frame_step
    if 1 < frames < step and card.clip.max_seconds > 0:  # as a length in seconds; else a clip became a still unsaid
        raise RequestError(
            f"`num_frames` is `{frames}`, too few for one step in time: use 1 for a still, or {step + 1} and more"
        )
    # rounded as its pipelines do: one above a multiple of the autoencoder's step
    return max(0, frames - 1 if frames % step == 1 % step else frames // step * step) / card.clip.fps


def _seed(generator: Any, _card: Card | None) -> Any:
    if isinstance(generator, list | tuple):
        return [_seed(one, None) for one in generator]
    seed = int(generator.initial_seed())
    fresh = type(generator)(device=generator.device).manual_seed(seed)
    if not bool((fresh.get_state() == generator.get_state()).all()):
        raise RequestError("`generator` has drawn numbers before, so that its seed says nothing: pass `seed=…`")
    return seed % 2**63


_STAGES = Word(advice="use the stages: `pipe.encode`, `pipe.noise`, `pipe.sample` and `pipe.decode`")
_RESULT = Word(advice="a result is a `Video`: `video.images` are Pillow images, `np.asarray(video)` is an array")
_MANY = Word(advice="pass a list of prompts, and a list of seeds as `seed=…`")
_LORA = Word(advice="did you mean `pipe.set_lora` for scales of LoRAs")
_ON_STEP = Word(advice="did you mean `on_step`")
CALL: Mapping[str, Word] = {
    "num_inference_steps": Word("steps"),
    "guidance_scale": Word("guidance", turn=_guidance),
    "num_frames": Word("seconds", turn=_seconds),
    "generator": Word("seed", turn=_seed),
    "mask_image": Word("mask"),
    **dict.fromkeys(("output_type", "return_dict"), _RESULT),
    **dict.fromkeys(("num_videos_per_prompt", "num_images_per_prompt"), _MANY),
    **dict.fromkeys(("callback", "callback_on_step_end", "callback_on_step_end_tensor_inputs"), _ON_STEP),
    **dict.fromkeys(("latents", "prompt_embeds", "negative_prompt_embeds"), _STAGES),
    **dict.fromkeys(("cross_attention_kwargs", "attention_kwargs"), _LORA),
    "frame_rate": Word(advice="the model decides the frame rate; did you mean `seconds`"),
    "max_sequence_length": Word(advice="the model's card decides it: leave it out"),
    "num_steps": Word(advice="did you mean `steps`"),
    "cfg_scale": Word(advice="did you mean `guidance`"),
    "frames": Word(advice="did you mean `seconds` or `num_frames`"),
    "duration": Word(advice="did you mean `seconds`"),
}
LOAD: Mapping[str, Word] = {
    "torch_dtype": Word("dtype"),
    "device_map": Word(
        advice='did you mean `device`, which takes a mapping such as `{"dit": "cuda:0", "text": "cpu"}`'
    ),
    "variant": Word(advice="the type in memory is `dtype`; files are found by the model's card"),
    "use_safetensors": Word(advice="nothing else is read: leave it out"),
    "revision": Word(advice="the model's card pins it: leave it out"),
    "cache_dir": Word(advice="did you mean `weights`, a folder of official files"),
    "token": Word(advice="`kandinsky download` fetches files, and reads the token that `hf auth login` keeps"),
    "local_files_only": Word(advice="loading never fetches anything: leave it out"),
    "low_cpu_mem_usage": Word(advice="did you mean `offload`"),
    "quantization_config": Word(advice="did you mean `quantize`"),
    "attn_implementation": Word(advice="did you mean `attention`"),
}


def translated(values: Mapping[str, Any], words: Mapping[str, Word], card: Card | None) -> dict[str, Any]:
    """Replace Diffusers' argument names with ours.

    Args:
        values: Arguments by name, ours and theirs.
        words: ``CALL`` or ``LOAD``.
        card: The model's card, which gives the frames per second.

    Returns:
        Arguments by our names.

    Raises:
        RequestError: A name was given together with ours, or has a value of the wrong type.
    """
    hints = hints_of(CallWords if words is CALL else LoadWords)
    found = dict(values)
    for name in [name for name in values if name in words and words[name].ours]:
        word, value = words[name], found.pop(name)
        if value is None:
            continue
        if found.get(word.ours) is not None:
            raise RequestError(f"`{name}` is Diffusers' word for `{word.ours}`, and both were given: leave one out")
        found[word.ours] = word.turn(checked(name, value, hints[name]), card)
    return found


def answers(words: Mapping[str, Word]) -> dict[str, str]:
    """Messages for the names that have no equivalent here."""
    return {name: word.advice for name, word in words.items() if word.advice}
