"""T5 encoders without their files, for benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kandinsky.errors import needs
from kandinsky.families.parts.params import FLAN_UL2, T5_VOCABULARY, T5_XXL, T5Sizes
from kandinsky.model.card import Card
from kandinsky.weights.made_up import fill


def random_t5(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """T5 v1.1-XXL of another width, or of another depth by `text.num_layers`; every word is unknown to it."""
    from kandinsky.text.t5 import T5Encoder, T5Params

    params = dict(card.text.params)
    sizes = T5_XXL.changed({"width": card.dit.params["in_text_dim"], **params})
    params.pop("num_layers", None)
    net = _t5_network(device, dtype, sizes)
    return T5Encoder(net, _one_word_tokenizer(), T5Params.from_dict(params))


def random_projected_t5(card: Card, device: torch.device, dtype: torch.dtype) -> Any:
    """Flan-UL2's encoder and the projection; of another size by `text.width` and `text.num_layers`."""
    from kandinsky.families.parts.projected import ProjectedParams, ProjectedT5Encoder, Projection

    params = dict(card.text.params)
    sizes = FLAN_UL2.changed(params)
    params = {key: value for key, value in params.items() if key not in ("width", "num_layers")}
    net = _t5_network(device, dtype, sizes)
    with torch.device(device):
        projection = fill(Projection(sizes.width, card.dit.params["context_dim"]).to(dtype))
    return ProjectedT5Encoder(net, _one_word_tokenizer(), projection, ProjectedParams.from_dict(params))  # type: ignore


def _t5_network(device: torch.device, dtype: torch.dtype, sizes: T5Sizes) -> nn.Module:
    with needs("transformers", "the text encoder"):
        from transformers import T5Config, T5EncoderModel
    width, head = sizes.width, sizes.head
    config = T5Config(
        vocab_size=T5_VOCABULARY,
        d_model=width,
        d_kv=head if width % head == 0 else width,
        d_ff=sizes.hidden,
        num_layers=sizes.num_layers,
        num_heads=max(1, width // head),
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.device(device):
        out: nn.Module = T5EncoderModel._from_config(config, dtype=dtype)
        return out


def _one_word_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], unk_id=2))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer
