"""Text embeddings of Kandinsky 5: Qwen2.5-VL's last hidden states for the tokens, CLIP-L's pooled output for the whole.

Legend: B prompts, L text tokens, C state width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError, WeightsError, needs
from kandinsky.families.kandinsky5 import expansion
from kandinsky.families.kandinsky5.templates import IMAGE_EDIT, IMAGE_PAD, Template, fill_edit, template
from kandinsky.media.image import resized
from kandinsky.model.params import Readable
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.pretrained import check_vocabulary, read_model, read_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

Padding = Literal["trimmed", "full"]
# The CLIP repository has the vision half of the model in the same file.
CLIP_OTHER_HALF = (
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
)


@dataclass(frozen=True, slots=True)
class QwenClipParams(Readable):
    """How prompts are truncated and padded; the defaults are the official video values.

    Attributes:
        qwen_max_length: Prompt tokens kept, not counting the template.
        clip_max_length: Tokens CLIP sees, including padding.
        template: Name of the template in ``families/kandinsky5/templates.py`` for clips.
        image_template: Name of the template for stills.
    """

    what = "text encoder parameter"
    qwen_max_length: int = 256
    clip_max_length: int = 77
    template: str = "video"
    image_template: str = "image"

    def __post_init__(self) -> None:
        template(self.template), template(self.image_template)  # refuses unknown ones


@dataclass(frozen=True, slots=True)
class QwenClipFiles:
    """Folders the two models and their tokenizers are read from; tokenizers usually lie beside their model."""

    qwen: Path
    clip: Path
    qwen_tokenizer: Path | None = None
    clip_tokenizer: Path | None = None


class QwenClipEncoder(nn.Module):
    """Both encoders and their tokenizers.

    Source: kandinskylab/kandinsky-5, kandinsky/models/text_embedders.py.

    Args:
        qwen: ``Qwen2_5_VLForConditionalGeneration``; only its language half is run.
        clip: ``CLIPTextModel``.
        qwen_tokenizer: From transformers.
        clip_tokenizer: From transformers.
        image_processor: ``Qwen2VLImageProcessorPil``, needed if Qwen sees images.
        padding: "trimmed" pads no further than the batch needs; "full" pads to ``qwen_max_length`` and gives a mask, as
            the official code does. Both give a denoiser the same result, as masked tokens count for nothing.

    Raises:
        WeightsError: The tokenizer does not split the templates as the models' own tokenizer does.
    """

    def __init__(
        self,
        qwen: nn.Module,
        clip: nn.Module,
        *,
        qwen_tokenizer: Any,
        clip_tokenizer: Any,
        image_processor: Any | None = None,
        params: QwenClipParams | None = None,
        padding: Padding = "trimmed",
    ) -> None:
        super().__init__()
        self.qwen: Any = qwen.eval().requires_grad_(False)
        self.clip: Any = clip.eval().requires_grad_(False)
        self.qwen_tokenizer = qwen_tokenizer
        self.clip_tokenizer = clip_tokenizer
        self.image_processor = image_processor
        self.params = params or QwenClipParams()
        self.padding: Padding = padding
        for name in (self.params.template, self.params.image_template):
            self._check_prefix(name, template(name))

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Text embeddings of B prompts.

        Args:
            still: Use the template for images.

        Returns:
            Tokens [B, L, C] in Qwen's type, L ≤ ``qwen_max_length``; pooled [B, P] float32; mask [B, L], or None where
            every token counts.

        Raises:
            RequestError: There are no prompts.
        """
        if isinstance(prompts, str) or not prompts:
            raise RequestError("encode takes a list of at least one prompt")
        chosen = template(self.params.image_template if still else self.params.template)
        with torch.no_grad():
            tokens, mask = self._token_states(prompts, chosen)
            pooled = self._pooled_states(prompts)
        return TextEmbeddings(tokens, pooled, mask)

    def encode_with_images(self, prompts: Sequence[str], images: Sequence[Image]) -> TextEmbeddings:
        """Text embeddings of B prompts for image editing, each with its image.

        Qwen sees the image at half its width and height; CLIP sees the text alone. The prompt may have any length.

        Args:
            images: At the size of the result.

        Returns:
            As ``encode``; L is as long as the longest prompt with its image.

        Raises:
            WeightsError: There is no image processor.
            RequestError: A prompt contains an image token.
        """
        if isinstance(prompts, str) or not prompts or len(prompts) != len(images):
            raise RequestError("encode_with_images takes a list of at least one prompt, and an image for each")
        if any(IMAGE_PAD in prompt for prompt in prompts):
            raise RequestError(f"a prompt must not contain `{IMAGE_PAD}`: it stands for the image")
        with torch.no_grad():
            tokens, mask = self._token_states_with_images(prompts, images)
            pooled = self._pooled_states(prompts)
        return TextEmbeddings(tokens, pooled, mask)

    def expand(self, prompt: str, *, task: str, seed: int, image: Image | None = None) -> str:
        """The prompt expanded by Qwen, see ``families/kandinsky5/expansion.py``."""
        return expansion.expand(
            self.qwen,
            self.qwen_tokenizer,
            prompt,
            task=task,
            seed=seed,
            image=image,
            image_processor=self.image_processor,
        )

    def _token_states_with_images(
        self, prompts: Sequence[str], images: Sequence[Image]
    ) -> tuple[Tensor, Tensor | None]:
        if self.image_processor is None:
            raise WeightsError("Qwen2.5-VL cannot be shown images: `preprocessor_config.json` does not lie beside it")
        device = self.qwen.device
        halved = [resized(image, max(1, image.width // 2), max(1, image.height // 2)) for image in images]
        seen = self.image_processor(images=halved, return_tensors="pt")
        counts = seen["image_grid_thw"].prod(dim=1) // self.image_processor.merge_size**2
        texts = [fill_edit(prompt, int(count)) for prompt, count in zip(prompts, counts, strict=True)]
        inputs = self.qwen_tokenizer(texts, padding="longest", padding_side="right", return_tensors="pt").to(device)
        ids, given = inputs["input_ids"], inputs["attention_mask"]
        image_token = self.qwen_tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        states = self.qwen.model(
            input_ids=ids,
            attention_mask=given,
            pixel_values=seen["pixel_values"].to(device),
            image_grid_thw=seen["image_grid_thw"].to(device),
            mm_token_type_ids=(ids == image_token).int(),
            use_cache=False,
        ).last_hidden_state
        # Quirk: the template is three tokens shorter than what is cropped, so the prompt's first three are lost.
        mask = given[:, IMAGE_EDIT.crop_start :].bool()
        return states[:, IMAGE_EDIT.crop_start :], None if bool(mask.all()) else mask

    def _token_states(self, prompts: Sequence[str], chosen: Template) -> tuple[Tensor, Tensor | None]:
        device = self.qwen.device
        inputs = self.qwen_tokenizer(
            [chosen.fill(prompt) for prompt in prompts],
            padding="max_length" if self.padding == "full" else "longest",
            # No mask is given to Qwen: its attention is causal, so padding on the right changes no state before it.
            padding_side="right",
            truncation=True,
            max_length=chosen.crop_start + self.params.qwen_max_length,
            return_tensors="pt",
        )
        # The inner model omits the projection to the vocabulary, which is not needed here.
        states = self.qwen.model(input_ids=inputs["input_ids"].to(device), use_cache=False).last_hidden_state
        mask = inputs["attention_mask"][:, chosen.crop_start :].bool().to(device)
        tokens = states[:, chosen.crop_start :]
        return tokens, None if self.padding == "trimmed" and bool(mask.all()) else mask

    def _pooled_states(self, prompts: Sequence[str]) -> Tensor:
        inputs = self.clip_tokenizer(
            list(prompts),
            padding="max_length",
            padding_side="right",
            truncation=True,
            add_special_tokens=True,
            max_length=self.params.clip_max_length,
            return_tensors="pt",
        ).to(self.clip.device)
        out: Tensor = self.clip(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output.float()
        return out

    def _check_prefix(self, name: str, chosen: Template) -> None:
        length = len(self.qwen_tokenizer(chosen.prefix)["input_ids"])
        if length != chosen.prefix_tokens:
            raise WeightsError(
                f"the tokenizer splits the `{name}` template into {length} tokens, the models were trained with "
                f"{chosen.prefix_tokens}: is it Qwen2.5-VL's?"
            )


def read_qwen_clip(
    files: QwenClipFiles, *, params: QwenClipParams | None = None, dtype: torch.dtype, padding: Padding = "trimmed"
) -> QwenClipEncoder:
    """Read both models and tokenizers from local folders, strictly, on the host; nothing is downloaded or executed.

    Args:
        files: Their folders.
        params: Settings of the encoder.
        dtype: Qwen's compute type; CLIP stays in float32, as in the official code.
        padding: As for ``QwenClipEncoder``.

    Returns:
        The encoder.

    Raises:
        BackendError: transformers is not installed.
        WeightsError: A file is missing or does not fit; the message names the folder and the tensor.
    """
    with needs("transformers", "the text encoder Qwen2.5-VL"):
        from transformers import AutoTokenizer, CLIPTextModel, Qwen2_5_VLForConditionalGeneration
    # before the large files
    qwen_folder, clip_folder = files.qwen_tokenizer or files.qwen, files.clip_tokenizer or files.clip
    qwen_tokenizer, clip_tokenizer = (read_tokenizer(AutoTokenizer, one) for one in (qwen_folder, clip_folder))
    image_processor = _read_image_processor(qwen_folder)
    clip: Any = read_model(
        CLIPTextModel, files.clip, torch.float32, types=("clip", "clip_text_model"), may_be_left_over=CLIP_OTHER_HALF
    )
    check_vocabulary(clip_tokenizer.get_vocab(), clip.get_input_embeddings().num_embeddings, clip_folder)
    qwen: Any = read_model(Qwen2_5_VLForConditionalGeneration, files.qwen, dtype, types=("qwen2_5_vl",))
    check_vocabulary(qwen_tokenizer.get_vocab(), qwen.get_input_embeddings().num_embeddings, qwen_folder)
    return QwenClipEncoder(
        qwen,
        clip,
        qwen_tokenizer=qwen_tokenizer,
        image_processor=image_processor,
        clip_tokenizer=clip_tokenizer,
        params=params,
        padding=padding,
    )


def _read_image_processor(folder: Path) -> Any | None:
    """The image processor beside the tokenizer; None if there is none."""
    from transformers import Qwen2VLImageProcessorPil  # this one needs no torchvision

    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    return read_tokenizer(Qwen2VLImageProcessorPil, folder)
