"""The text encoders of Kandinsky 5 without their files, for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kandinsky.errors import needs
from kandinsky.families.kandinsky5.params import DiTParams, QwenClipSizes
from kandinsky.families.kandinsky5.templates import TEMPLATES
from kandinsky.model.card import Card


def random_qwen_clip(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """Both encoders behind their usual interface, with a tokenizer that only counts."""
    component, takes = card.text, DiTParams.from_dict(card.dit.params)
    # as wide as the card's transformer takes them
    sizes = QwenClipSizes.read(component.params, qwen_width=takes.in_text_dim, clip_width=takes.in_text_dim2)
    with needs("transformers", "the text encoder"):
        from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from kandinsky.families.kandinsky5.qwen_clip import QwenClipEncoder, QwenClipParams

    width = sizes.qwen_width
    # 128 where that divides the width, as at full size
    head = next(head for head in (128, 64, 32, 16) if width % head == 0)
    heads = width // head
    qwen_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": sizes.vocabulary,
            "hidden_size": width,
            "intermediate_size": sizes.hidden,
            "num_hidden_layers": sizes.qwen_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": math.gcd(heads, 4),
            "bos_token_id": 0,
            "eos_token_id": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
        },
        # the vision half is not run; one layer represents it
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    clip_config = CLIPTextConfig(
        vocab_size=min(sizes.vocabulary, 49408),
        hidden_size=sizes.clip_width,
        intermediate_size=4 * sizes.clip_width,
        num_hidden_layers=sizes.clip_layers,
        num_attention_heads=max(1, sizes.clip_width // 64),
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.device(device):
        qwen = Qwen2_5_VLForConditionalGeneration._from_config(qwen_config, dtype=dtype)
        clip = CLIPTextModel._from_config(clip_config, dtype=torch.float32)
    params = {key: value for key, value in component.params.items() if key in QwenClipParams.__dataclass_fields__}
    return QwenClipEncoder(
        qwen,
        clip,
        qwen_tokenizer=CountingTokenizer(sizes.vocabulary, {t.prefix: t.prefix_tokens for t in TEMPLATES.values()}),
        clip_tokenizer=CountingTokenizer(clip_config.vocab_size, {}),
        params=QwenClipParams.from_dict(params),
    )


class CountingTokenizer:
    """Replaces a tokenizer if there is no vocabulary: a made-up token per word.

    Args:
        prefixes: Texts whose number of tokens is known; they count as that many.
    """

    def __init__(self, vocabulary: int, prefixes: Mapping[str, int]) -> None:
        self.vocabulary = vocabulary
        self.prefixes = prefixes

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        max_length: int | None = None,
        **_: Any,
    ) -> Any:
        from transformers import BatchEncoding

        if isinstance(text, str):
            return {"input_ids": [2] * self.count(text)}
        counts = [min(self.count(one), max_length or 2**30) for one in text]
        length = max_length if padding == "max_length" and max_length else max(counts)
        ids = 2 + torch.arange(length).expand(len(counts), -1) % (self.vocabulary - 2)
        mask = (torch.arange(length) < torch.tensor(counts)[:, None]).long()
        return BatchEncoding({"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask})

    def count(self, text: str) -> int:
        """Tokens of a text: those of the prefix it begins with, then one a word."""
        prefix = next((prefix for prefix in self.prefixes if text.startswith(prefix)), "")
        return max(1, self.prefixes.get(prefix, 0) + len(text[len(prefix) :].split()))
