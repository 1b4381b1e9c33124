"""Nano's text encoder: the shipped tokenizer file and the small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.families.nano.known_words import KnownWords
from kandinsky.families.nano.picture import seen
from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
from kandinsky.families.nano.world import PLAIN, SMALL, Steering
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.pretrained import check_vocabulary, read_tokenizer_file
from kandinsky.weights.read import load_into

CERTAIN = 100.0  # a logit that leaves nothing to the other slots


class NanoTextEncoder:
    """English or Russian prompts to the states nano's denoiser attends to; runs where the network's weights are."""

    def __init__(
        self,
        network: NanoTextNetwork,
        tokenizer: Tokenizer,
        known: KnownWords | None = None,
        steering: Steering | None = None,
    ) -> None:
        self.network = network.eval()
        self.known = known
        self.steering = steering
        self.tokenizer = tokenizer
        tokenizer.enable_truncation(network.params.max_tokens)
        tokenizer.enable_padding()

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts: tokens [B, 6, C], pooled [B, P], no mask.

        A prompt without a letter or sign gives the unconditional embedding. Words beyond the 64th token are not read.

        Args:
            prompts: The prompts.
            still: Whether the result will be one image, which has an embedding of its own.

        Returns:
            The embeddings.
        """
        if isinstance(prompts, str) or not prompts:
            raise RequestError("prompts must be a list of at least one string: write `encode([prompt])`")
        ids_BL, mask_BL, said_B = self.tokenize(prompts)
        still_B = torch.full_like(said_B, still)
        with torch.inference_mode(False), torch.no_grad():
            out: TextEmbeddings = self.network(ids_BL, mask_BL, said_B, still_B)
            return out

    def encode_with_images(self, prompts: Sequence[str], images: Sequence[Image]) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts, each beside the picture that the clip begins with.

        The picture decides what words leave open: background, place and size. Where they name nothing that can be
        shown, it decides alone, and the embedding is the unconditional one.
        """
        if self.known is None:
            return self.encode(prompts)
        ids_BL, mask_BL, said_B = self.tokenize(prompts)
        with torch.inference_mode(False), torch.no_grad():
            logits = dict(self.network.read(ids_BL, mask_BL).logits)
            for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
                spoken = self.known.said(prompt, {role: int(of[row].argmax()) for role, of in logits.items()})
                said_B[row] &= "concept" in spoken
                for role, slot in seen(np.asarray(image.convert("RGB")), self.known.colours).items():
                    if role not in spoken:
                        logits[role][row] = F.one_hot(torch.tensor(slot), logits[role].shape[1]) * CERTAIN
            out: TextEmbeddings = self.network.choose(logits, said_B, torch.zeros_like(said_B))
            return out

    def steer(self, latent_BHWC: torch.Tensor | None, actions: Sequence[str]) -> torch.Tensor:
        """What actions lead to from the last latent frame of B clips, see ``Steering.after``.

        Raises:
            RequestError: There is no such action, or the model is no world.
        """
        if self.steering is None:
            raise RequestError("this model has no actions: its card names no part `steering` of the text network")
        return self.steering.after(latent_BHWC, actions)

    def encode_in_world(self, prompts: Sequence[str], led_BS: torch.Tensor) -> tuple[TextEmbeddings, torch.Tensor]:
        """Embeddings of B prompts with the size that the world gives their subjects, and where these stand, [B, 2].

        Args:
            prompts: The prompts.
            led_BS: What ``steer`` said.
        """
        ids_BL, mask_BL, said_B = self.tokenize(prompts)
        with torch.inference_mode(False), torch.no_grad():
            logits = dict(self.network.read(ids_BL, mask_BL).logits)
            slots = torch.where(led_BS[:, 2] > 0, PLAIN, SMALL).to(ids_BL.device)
            logits["size"] = F.one_hot(slots, logits["size"].shape[1]) * CERTAIN
            return self.network.choose(logits, said_B, torch.zeros_like(said_B)), led_BS[:, :2]

    def tokenize(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token numbers [B, L], which of them count [B, L], and which prompts are not empty [B]."""
        encodings = self.tokenizer.encode_batch(list(prompts))
        device = self.network.queries.weight.device
        ids = torch.tensor([e.ids for e in encodings], device=device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=device, dtype=torch.bool)
        said = torch.tensor([bool(p.strip()) for p in prompts], device=device)
        return ids, mask, said

    def unused(self, prompt: str, *, beside_image: bool = False) -> tuple[str, ...]:
        """Words of a prompt that have no influence on what is shown; none if no word list came with the weights."""
        if self.known is None or not prompt.strip():
            return ()
        if beside_image and "concept" not in self.known.said(prompt, self._choice(prompt)):
            return self.known.beside_filler(prompt)  # then the picture decides alone
        end = max(stop for _, stop in self.tokenizer.encode(prompt).offsets)
        return self.known.unused(prompt, self._choice(prompt), self._choice, end=end)

    def _choice(self, prompt: str) -> dict[str, int]:
        """The slot that is chosen for each role."""
        ids_BL, mask_BL, _ = self.tokenize([prompt])
        with torch.inference_mode(False), torch.no_grad():
            logits = self.network.read(ids_BL, mask_BL).logits
        return {role: int(one.argmax()) for role, one in logits.items()}

    @classmethod
    def from_files(
        cls,
        weights: Path,
        tokenizer: Path,
        params: Mapping[str, Any],
        words: Path | None = None,
        steering: Path | None = None,
    ) -> NanoTextEncoder:
        """Read the encoder.

        Args:
            weights: Of the network.
            tokenizer: Its `tokenizer.json`, or that compressed as `.xz`.
            params: Fields of ``NanoTextParams`` that differ from its defaults.
            words: Its `words.json`; see ``known_words.py``.
            steering: Weights of what leads a world; see ``world.py``.

        Raises:
            WeightsError: A file is missing or does not fit.
            RequestError: A parameter is unknown.
        """
        read = read_tokenizer_file(Path(tokenizer))
        network = NanoTextNetwork(NanoTextParams.from_dict(params))
        load_into(network, Path(weights), dtype=torch.float32)
        check_vocabulary(read.get_vocab(), network.params.vocab_size, tokenizer)
        known = None if words is None else KnownWords.read(words)
        if known is not None and words is not None:
            known.check(network.params.concepts, words)
        return cls(network, read, known, None if steering is None else Steering.read(steering))
