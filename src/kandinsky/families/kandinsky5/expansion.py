"""Prompt expansion: the text encoder's own language model expands a short prompt.

The instruction is a constant of the models, one text per task (`expansions.json`), misspellings and white space
included. One user turn goes through the chat template that lies beside the model; the answer is sampled with the
model's own settings.
Source: kandinskylab/kandinsky-5@6e2a805, expand_prompt of kandinsky/{t2v,i2v,t2i,i2i}_pipeline.py. Importing this
module loads no torch.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5.templates import IMAGE_PAD

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256
SLOT = "{prompt}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the image stands in the turn, and the fraction of its width and height that is shown."""

    image: Literal["none", "first", "last"] = "none"
    shown: int = 1


LAYOUTS = {
    "text-to-video": Layout(),
    "text-to-image": Layout(),
    "image-to-video": Layout("first"),
    "image-editing": Layout("last", shown=4),
}


@cache
def questions() -> dict[str, str]:
    """The texts by task; ``{prompt}`` takes the prompt."""
    return dict(json.loads(Path(__file__).with_name("expansions.json").read_text(encoding="utf-8")))


def messages(prompt: str, task: str, image: Image | None = None) -> list[dict[str, Any]]:
    """The one turn that the model receives; an image that the task does not show is omitted."""
    layout = LAYOUTS[task]
    content: list[dict[str, Any]] = [{"type": "text", "text": questions()[task].replace(SLOT, prompt)}]
    if image is not None and layout.image != "none":
        shown = image if layout.shown == 1 else image.resize(_part(image.size, layout.shown))
        content.insert(0 if layout.image == "first" else 1, {"type": "image", "image": shown})
    return [{"role": "user", "content": content}]


def expand(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    task: str,
    seed: int,
    image: Image | None = None,
    image_processor: Any | None = None,
) -> str:
    """Expand a prompt with the language model.

    Args:
        model: ``Qwen2_5_VLForConditionalGeneration``.
        tokenizer: The model's own, with the chat template.
        prompt: The prompt.
        task: From the card.
        seed: The same seed gives the same text.
        image: Input image of the task, at full size; needs ``image_processor``.
        image_processor: Prepares the image.

    Returns:
        The model's answer; the prompt itself if it is empty.

    Raises:
        WeightsError: The chat template or the image processor is not beside the model.
    """
    import torch

    from kandinsky.runtime.randomness import seeded

    if not getattr(tokenizer, "chat_template", None):
        raise WeightsError("prompts cannot be expanded: no chat template lies beside the text encoder, fetch it again")
    turns = messages(prompt, task, image)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    images = [part["image"] for part in turns[0]["content"] if part["type"] == "image"]
    shown: dict[str, Any] = {}
    if images:
        if image_processor is None:
            raise WeightsError("Qwen2.5-VL cannot be shown images: `preprocessor_config.json` does not lie beside it")
        if IMAGE_PAD in prompt:
            raise RequestError(f"a prompt must not contain `{IMAGE_PAD}`: it stands for the image")
        shown = dict(image_processor(images=images, return_tensors="pt"))
        count = int(shown["image_grid_thw"].prod()) // image_processor.merge_size**2
        text = text.replace(IMAGE_PAD, IMAGE_PAD * count)
    inputs = dict(tokenizer([text], return_tensors="pt"))
    if images:
        image_token = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        inputs |= shown | {"mm_token_type_ids": (inputs["input_ids"] == image_token).int()}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    with seeded(seed, model.device), torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
    written = answer[:, inputs["input_ids"].shape[1] :]
    expanded = str(tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])
    if not expanded.strip():
        log.warning("the language model wrote nothing: the prompt is used as it is")
        return prompt
    return expanded


def _part(size: tuple[int, int], part: int) -> tuple[int, int]:
    return max(1, size[0] // part), max(1, size[1] // part)
