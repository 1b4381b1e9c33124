"""Nano's text network: prompts to a meaning, and a meaning to what Nano can show.

A small bidirectional transformer reads the tokens. Five learned queries look at its states, one for each thing a
caption says: concept, background, position, size, camera. The concept's also takes the tokens as the lexicon has them,
unread, so that a rare word keeps its own meaning. Each answer is compared with a memory of slots (the concept
by likeness of meaning, the others by a linear layer), and the state handed to the denoiser is the memory's value, a
nearly hard choice. So a synonym that was never in a caption lands where training captions land, and the denoiser
sees the same few states from both languages. A sixth embedding says whether a clip or one image is wanted.

The last slot of every memory means "nothing was said at all": the state of the empty prompt.

Legend: B batch, L tokens, D width, C width of the states, M width of a meaning, R roles, V slots, P prototypes a slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.model.params import Readable
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import attention

ROLES = ("concept", "background", "position", "size", "camera")
MEMORY_SEED = 20261121


@dataclass(frozen=True, slots=True)
class NanoTextParams(Readable):
    """Sizes. The slot counts are those of data/concepts.json and lab/nano/captions.py, without the empty slot."""

    what = "text network parameter"
    vocab_size: int = 10_000
    max_tokens: int = 64
    width: int = 192
    heads: int = 4
    ff_width: int = 512
    layers: int = 3
    meaning_dim: int = 256
    prototypes: int = 4
    token_dim: int = 256
    pooled_dim: int = 256
    concepts: int = 396
    backgrounds: int = 12
    positions: int = 5
    sizes: int = 3
    cameras: int = 5

    @property
    def slots(self) -> dict[str, int]:
        return dict(
            zip(ROLES, (self.concepts, self.backgrounds, self.positions, self.sizes, self.cameras), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """How a prompt was understood.

    Attributes:
        meaning_BM: Embedding of the concept, of unit length.
        logits: By role, [B, V] without the empty slot.
    """

    meaning_BM: Tensor
    logits: dict[str, Tensor]


class Block(nn.Module):
    """Pre-norm self attention and feed-forward; x_BLD to x_BLD."""

    def __init__(self, params: NanoTextParams) -> None:
        super().__init__()
        D = params.width
        self.heads = params.heads
        self.attention_norm = nn.LayerNorm(D)
        self.query_key_value = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.feed_forward_norm = nn.LayerNorm(D)
        self.feed_forward = nn.Sequential(nn.Linear(D, params.ff_width), nn.GELU(), nn.Linear(params.ff_width, D))

    def forward(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.attention_norm(x_BLD)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        x_BLD = x_BLD + self.out(attention(q, k, v, mask=mask_BL, backend="sdpa").flatten(-2))
        out: Tensor = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return out


class Memory(nn.Module):
    """Slots of one role: a choice among them becomes one token state and a part of the pooled state.

    The values are fixed buffers of unit variance a channel, drawn once from MEMORY_SEED.
    """

    tokens_VC: Tensor
    pooled_VC: Tensor

    def __init__(self, slots: int, token_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.register_buffer("tokens_VC", torch.zeros(slots + 1, token_dim))
        self.register_buffer("pooled_VC", torch.zeros(slots + 1, pooled_dim))

    def forward(self, choice_BV: Tensor) -> tuple[Tensor, Tensor]:
        return choice_BV @ self.tokens_VC.to(choice_BV.dtype), choice_BV @ self.pooled_VC.to(choice_BV.dtype)


class NanoTextNetwork(nn.Module):
    """Token numbers to TextEmbeddings with one state a role and one for the kind of result, in the order of ROLES."""

    sharpness: Tensor

    def __init__(self, params: NanoTextParams) -> None:
        super().__init__()
        self.params = params
        D, M = params.width, params.meaning_dim
        self.tokens = nn.Embedding(params.vocab_size, D)
        self.places = nn.Embedding(params.max_tokens, D)
        self.blocks = nn.ModuleList(Block(params) for _ in range(params.layers))
        self.norm = nn.LayerNorm(D)
        self.queries = nn.Linear(D, len(ROLES))
        self.meaning = nn.Linear(D, M)
        self.lexicon = nn.Linear(D, M, bias=False)
        self.prototypes_VPM = nn.Parameter(torch.zeros(params.concepts, params.prototypes, M))
        self.concept_bias_V = nn.Parameter(torch.zeros(params.concepts))
        self.concept_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.heads = nn.ModuleDict({r: nn.Linear(D, n) for r, n in params.slots.items() if r != "concept"})
        self.memories = nn.ModuleDict(
            {r: Memory(n, params.token_dim, params.pooled_dim) for r, n in params.slots.items()}
        )
        self.kind = Memory(2, params.token_dim, params.pooled_dim)
        self.register_buffer("sharpness", torch.tensor(4.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.5 if table is self.tokens else 0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "feed_forward.2.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.params.layers))
        nn.init.zeros_(self.queries.weight)
        nn.init.normal_(self.prototypes_VPM)
        # a denoiser is trained on these values without this network's weights, so they must be the same everywhere
        generator = torch.Generator().manual_seed(MEMORY_SEED)
        for name, buffer in self.named_buffers():
            if name.endswith("_VC"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, device=generator.device))

    def read(self, ids_BL: Tensor, mask_BL: Tensor) -> Reading:
        """Understand B prompts of L ≤ max_tokens tokens; mask: True where a token counts, at least one a row."""
        words_BLD = self.tokens(ids_BL)
        x_BLD = words_BLD + self.places.weight[: ids_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL)
        x_BLD = self.norm(x_BLD)
        looks_BLR = self.queries(x_BLD).float().masked_fill(~mask_BL[..., None], float("-inf")).softmax(dim=1)
        seen_BRD = looks_BLR.transpose(1, 2).to(x_BLD.dtype) @ x_BLD
        named_BD = (looks_BLR[:, None, :, 0].to(x_BLD.dtype) @ words_BLD)[:, 0]
        meaning_BM = F.normalize((self.meaning(seen_BRD[:, 0]) + self.lexicon(named_BD)).float(), dim=-1)
        prototypes_VPM = F.normalize(self.prototypes_VPM.float(), dim=-1)
        likeness_BVP = self.concept_scale.exp() * torch.einsum("bm,vpm->bvp", meaning_BM, prototypes_VPM)
        logits = {"concept": likeness_BVP.logsumexp(dim=-1) + self.concept_bias_V}
        logits |= {role: self.heads[role](seen_BRD[:, i]).float() for i, role in enumerate(ROLES) if i > 0}
        return Reading(meaning_BM, logits)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, said_B: Tensor, still_B: Tensor) -> TextEmbeddings:
        """Embeddings of B prompts.

        Args:
            ids_BL: Token numbers.
            mask_BL: True where a token counts.
            said_B: False for an empty prompt: every role then takes the empty slot.
            still_B: True for one image.

        Returns:
            Tokens [B, 6, C], pooled [B, P], no mask: every embedding counts.
        """
        return self.choose(self.read(ids_BL, mask_BL).logits, said_B, still_B)

    def choose(self, logits: Mapping[str, Tensor], said_B: Tensor, still_B: Tensor) -> TextEmbeddings:
        """Embeddings of B prompts by their logits, see ``Reading``; the rest as for ``forward``."""
        nothing_B1 = (~said_B).float()[:, None]
        choices = {}
        for role in ROLES:
            choice_BV = (self.sharpness.float() * logits[role]).softmax(dim=-1)
            choices[role] = torch.cat([choice_BV * said_B[:, None], nothing_B1], dim=-1)
        return self.speak(choices, torch.where(said_B, still_B.long(), torch.full_like(said_B, 2, dtype=torch.long)))

    def speak(self, choices: Mapping[str, Tensor], kind_B: Tensor) -> TextEmbeddings:
        """From what was understood to embeddings.

        Args:
            choices: By role, shares of its slots [B, V + 1], the empty slot last.
            kind_B: 0 for a clip, 1 for one image, 2 for an empty prompt.

        Returns:
            The embeddings.
        """
        states, pooled = zip(*(self.memories[role](choices[role]) for role in ROLES), strict=True)
        token_BC, part_BC = self.kind(F.one_hot(kind_B, 3).float())
        # the concept weighs as much as all the rest together; the weights keep the variance at one
        rest = torch.stack([*pooled[1:], part_BC]).sum(dim=0) / math.sqrt(len(ROLES))
        return TextEmbeddings(torch.stack([*states, token_BC], dim=1), (pooled[0] + rest) / math.sqrt(2.0))
