"""A model's networks without its files: built on the meta device, materialised where they run, filled with noise.

Speed and memory do not depend on what the numbers are; so a full-size model can be measured before, or without, its
download, and at other sizes. What such a pipeline makes is noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky.engine.build import COMPONENTS, ENCODERS, NETWORKS, Encoder, places_for
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.templates import TEMPLATES
from kandinsky.model.card import Card, Component
from kandinsky.runtime.placement import Placement, Precision
from kandinsky.weights.locate import locate_parts
from kandinsky.weights.read import made_tensors

NO_FILES = Path("random-weights")  # a network that would look for a `config.json` finds none
SEED = 0


def random_pipeline(
    card: Card,
    *,
    changes: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    attention: str = "auto",
) -> GenerationPipeline:
    """A pipeline for a card, each network made at its first use, from one seed.

    Args:   changes: hyper-parameters to replace, by component: ``{"dit.model_dim": 512, "text.qwen_layers": 4}``; for
            text encoders of Kandinsky 5 the fields of ``QwenClipSizes``.
    Raises: RequestError for a hyper-parameter that is none; BackendError for a kind that cannot be made.
    """
    places = places_for(device)
    precision = Precision.choose(dtype, places["dit"])
    card = changed(card, changes or {})
    builders: dict[str, Callable[[], Any]] = {}
    for part in COMPONENTS:
        component = card.component(part)
        if component.kind in NETWORKS:
            make = partial(NETWORKS[component.kind], component, NO_FILES)
            with torch.device("meta"):
                make()  # refuses a wrong hyper-parameter now
            builders[part] = partial(_materialised, make, places[part], precision.compute)
        elif made_up := ENCODERS_MADE_UP.get(component.kind):
            builders[part] = partial(made_up, card, places[part], precision.compute)
        elif encoder := ENCODERS.get(component.kind):
            # encoders that ship with the package, vocabulary and all, need no stand-in
            builders[part] = partial(_as_it_is, encoder, component, card.id, precision)
        else:
            raise BackendError(f"component `{component.kind}` cannot be made with random weights")
    placement = Placement(builders, device=places["dit"], places=places, offload=offload)
    return GenerationPipeline(card, placement, precision, attention=attention, name=f"{card.id} (random weights)")


def _as_it_is(encoder: Encoder, component: Component, model: str, precision: Precision) -> Any:
    return encoder.read(component, locate_parts(component, model=model), precision)


def changed(card: Card, changes: Mapping[str, Any]) -> Card:
    """The card with some hyper-parameters replaced. Raises: RequestError for a name without a component."""
    for name, value in changes.items():
        part, dot, key = name.partition(".")
        if not dot or part not in COMPONENTS:
            raise RequestError(f"`{name}` names no hyper-parameter: use `dit.…`, `text.…` or `vae.…`")
        component = card.component(part)
        replaced: Any = {part: dataclasses.replace(component, params=component.params | {key: value})}
        card = dataclasses.replace(card, **replaced)
    return card


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`dit.model_dim=512`, `dit.axes_dims=8,12,12` → values. Raises: RequestError."""

    def number(text: str) -> int | float:
        try:
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise RequestError(f"`{text}` is no number, such as `dit.model_dim=512` takes") from None

    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise RequestError(f"`{text}` is not of the form `dit.model_dim=512`")
        parts = [number(part) for part in value.split(",")]
        values[name] = parts if len(parts) > 1 else parts[0]
    return values


def _materialised(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        net = make()
    made = made_tensors(net)
    if names := [name for name, _ in net.named_buffers() if name not in made]:
        raise BackendError(f"buffer `{names[0]}` cannot be made up: this network needs its files")
    net = net.to(dtype).to_empty(device=device)
    net.load_state_dict(made, strict=False)
    return fill(net).eval().requires_grad_(False)


def fill(net: nn.Module) -> nn.Module:
    """Weights as a fresh initialisation would scale them; no zeros, which would make whole layers idle."""
    device = next(net.parameters()).device
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return net


@dataclass(frozen=True, slots=True)
class QwenClipSizes:
    """What decides the work of both text encoders; the defaults are Qwen2.5-VL-7B's and CLIP-L's."""

    qwen_width: int = 3584
    clip_width: int = 768
    qwen_layers: int = 28
    clip_layers: int = 12
    vocabulary: int = 152064

    @classmethod
    def of(cls, card: Card) -> QwenClipSizes:
        """Widths as the card's transformer takes them, the rest from the card's text parameters where it has them."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in card.text.params.items() if key in known}
        widths = {"qwen_width": card.dit.params["in_text_dim"], "clip_width": card.dit.params["in_text_dim2"]}
        return cls(**(widths | given))

    @property
    def head(self) -> int:
        """Width of Qwen's heads: 128 where that divides the width, as at full size."""
        return next(head for head in (128, 64, 32, 16) if self.qwen_width % head == 0)


def random_qwen_clip(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """Both encoders behind their usual interface, with a tokenizer that only counts."""
    sizes, component = QwenClipSizes.of(card), card.text
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    except ImportError as error:
        raise BackendError("the text encoders need `transformers`: install `kandinsky-video[full]`") from error
    from kandinsky.families.kandinsky5.qwen_clip import QwenClipEncoder, QwenClipParams

    width, head = sizes.qwen_width, sizes.head
    heads = width // head
    qwen_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": sizes.vocabulary,
            "hidden_size": width,
            "intermediate_size": round(width * 18944 / 3584 / 16) * 16,
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
        # the half that sees pictures is not run; one layer stands for it
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


def random_t5(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """T5 v1.1-XXL of another width, or of another depth by `text.num_layers`; every word is unknown to it."""
    from kandinsky.text.t5 import T5Encoder, T5Params

    params, width = dict(card.text.params), card.dit.params["in_text_dim"]
    layers = int(params.pop("num_layers", 24))
    net = _t5_network(device, dtype, width=width, hidden=width * 5 // 2, layers=layers, head=64)
    return T5Encoder(net, _one_word_tokenizer(), T5Params.from_dict(params))


def random_projected_t5(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """Flan-UL2's encoder and the projection; of another size by `text.width` and `text.num_layers`."""
    from kandinsky.families.parts.projected import ProjectedParams, ProjectedT5Encoder, Projection

    params = dict(card.text.params)
    width, layers = int(params.pop("width", 4096)), int(params.pop("num_layers", 32))
    net = _t5_network(device, dtype, width=width, hidden=width * 4, layers=layers, head=256)
    with torch.device(device):
        projection = fill(Projection(width, card.dit.params["context_dim"]).to(dtype))
    return ProjectedT5Encoder(net, _one_word_tokenizer(), projection, ProjectedParams.from_dict(params))  # type: ignore


def _t5_network(
    device: torch.device, dtype: torch.dtype, *, width: int, hidden: int, layers: int, head: int
) -> nn.Module:
    try:
        from transformers import T5Config, T5EncoderModel
    except ImportError as error:
        raise BackendError("the text encoder needs `transformers`: install `kandinsky-video[full]`") from error
    config = T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=head if width % head == 0 else width,
        d_ff=hidden,
        num_layers=layers,
        num_heads=max(1, width // head),
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.device(device):
        return T5EncoderModel._from_config(config, dtype=dtype)


def _one_word_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], unk_id=2))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


# By the card's kind of text encoder.
ENCODERS_MADE_UP: dict[str, Callable[[Card, torch.device, torch.dtype], Any]] = {
    "qwen-clip": random_qwen_clip,
    "t5": random_t5,
    "t5-projected": random_projected_t5,
}


class CountingTokenizer:
    """Stands in for a tokenizer where there is no vocabulary: as many tokens as there are words, all made up.

    Args: prefixes: texts whose number of tokens is known; they count as that many.
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
