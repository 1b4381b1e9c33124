"""Nano's text encoder: the shipped tokenizer file and the small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kandinsky.errors import RequestError
from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.pretrained import check_vocabulary, read_tokenizer_file
from kandinsky.weights.read import load_into


class NanoTextEncoder:
    """English or Russian prompts to the states nano's denoiser attends to; runs where the network's weights are."""

    def __init__(self, network: NanoTextNetwork, tokenizer: Tokenizer) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        tokenizer.enable_truncation(network.params.max_tokens)
        tokenizer.enable_padding()

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts: tokens [B, 6, C], pooled [B, P], no mask.

        A prompt without a letter or sign gives the unconditional state. Words beyond the 64th token are not read.
        still: the result will be one image; it has a state of its own.
        """
        if isinstance(prompts, str) or not prompts:
            raise RequestError("prompts must be a list of at least one string: write `encode([prompt])`")
        ids_BL, mask_BL, said_B = self.tokenize(prompts)
        still_B = torch.full_like(said_B, still)
        with torch.inference_mode(False), torch.no_grad():
            return self.network(ids_BL, mask_BL, said_B, still_B)

    def tokenize(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token numbers [B, L], which of them count [B, L], and which prompts say anything [B]."""
        encodings = self.tokenizer.encode_batch(list(prompts))
        device = self.network.queries.weight.device
        ids = torch.tensor([e.ids for e in encodings], device=device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=device, dtype=torch.bool)
        said = torch.tensor([bool(p.strip()) for p in prompts], device=device)
        return ids, mask, said

    @classmethod
    def from_files(cls, weights: Path, tokenizer: Path, params: Mapping[str, Any]) -> NanoTextEncoder:
        """Read both files. params: fields of NanoTextParams that differ from its defaults.

        Raises:
            WeightsError: For a file that is missing or does not fit.
            RequestError: For an unknown parameter.
        """
        read = read_tokenizer_file(Path(tokenizer))
        network = NanoTextNetwork(NanoTextParams.from_dict(params))
        load_into(network, Path(weights), dtype=torch.float32)
        check_vocabulary(read.get_vocab(), network.params.vocab_size, tokenizer)
        return cls(network, read)
