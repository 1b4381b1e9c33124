"""The second Nano's text network: a prompt to what it says of up to three subjects and of every other role.

The tokens are read by the first Nano's blocks, whose weights it can start from, so what those learned of synonyms is
kept. One query for each subject, from left to right or from top to bottom, and one for each role look at the token
states. A subject is chosen by likeness of meaning among the concepts, "something that is not said" and "not there"; a
role by a linear layer whose row 0 is "not said". The choices are rows of the denoiser's memory, so the denoiser gets
the token states it was trained with.

Legend: B batch, L tokens, D width, R queries, S subjects, V concepts, P prototypes a concept, M width of a meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.text import Block, NanoTextParams

SUBJECTS = 3


@dataclass(frozen=True, slots=True)
class SceneReading:
    """What was understood, in logits.

    Args:
        subjects_BSV: Row 0 "not said", then the concepts, the last "not there".
        roles: By role [B, words + 1], row 0 "not said".
        meaning_BSM: Of each subject, unit length.
    """

    subjects_BSV: Tensor
    roles: dict[str, Tensor]
    meaning_BSM: Tensor

    def chosen(self, row: int) -> tuple[tuple[int, ...], dict[str, int]]:
        """Rows of the memory for one prompt: of the subjects that are there, and of every role."""
        last = self.subjects_BSV.shape[-1] - 1
        best = self.subjects_BSV[row].argmax(-1).tolist()
        subjects = tuple(number for number in best if number != last)
        return subjects or (0,), {role: int(logits[row].argmax()) for role, logits in self.roles.items()}


class SceneTextNetwork(nn.Module):
    """Token numbers to a ``SceneReading``.

    Args:
        params: Sizes of the first Nano's network; ``concepts`` counts the new catalogue.
        roles: Words of each role, without "not said".
    """

    def __init__(self, params: NanoTextParams, roles: Mapping[str, int]) -> None:
        super().__init__()
        self.params = params
        D, M = params.width, params.meaning_dim
        self.tokens = nn.Embedding(params.vocab_size, D)
        self.places = nn.Embedding(params.max_tokens, D)
        self.blocks = nn.ModuleList(Block(params) for _ in range(params.layers))
        self.norm = nn.LayerNorm(D)
        self.look = nn.Linear(D, SUBJECTS + len(roles))
        self.meaning = nn.Linear(D, M)
        self.lexicon = nn.Linear(D, M, bias=False)
        self.prototypes_VPM = nn.Parameter(torch.randn(params.concepts, params.prototypes, M))
        self.concept_bias_V = nn.Parameter(torch.zeros(params.concepts))
        self.concept_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.open_or_absent = nn.Linear(D, 2)
        self.heads = nn.ModuleDict({role: nn.Linear(D, words + 1) for role, words in roles.items()})
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> SceneReading:
        """Read B prompts of at least one token each; mask: True where a token counts."""
        words_BLD = self.tokens(ids_BL)
        x_BLD = words_BLD + self.places.weight[: ids_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL)
        x_BLD = self.norm(x_BLD)
        looks_BLR = self.look(x_BLD).float().masked_fill(~mask_BL[..., None], float("-inf")).softmax(dim=1)
        looks_BRL = looks_BLR.transpose(1, 2).to(x_BLD.dtype)
        seen_BRD = looks_BRL @ x_BLD
        named_BSD = looks_BRL[:, :SUBJECTS] @ words_BLD
        meaning_BSM = F.normalize((self.meaning(seen_BRD[:, :SUBJECTS]) + self.lexicon(named_BSD)).float(), dim=-1)
        prototypes_VPM = F.normalize(self.prototypes_VPM.float(), dim=-1)
        likeness = self.concept_scale.exp() * torch.einsum("bsm,vpm->bsvp", meaning_BSM, prototypes_VPM)
        concepts_BSV = likeness.logsumexp(dim=-1) + self.concept_bias_V
        open_BS1, absent_BS1 = self.open_or_absent(seen_BRD[:, :SUBJECTS]).float().chunk(2, dim=-1)
        roles = {
            role: self.heads[role](seen_BRD[:, SUBJECTS + number]).float() for number, role in enumerate(self.heads)
        }
        return SceneReading(torch.cat([open_BS1, concepts_BSV, absent_BS1], dim=-1), roles, meaning_BSM)

    @torch.no_grad()
    def start_from(self, first: Mapping[str, Tensor], known: Sequence[int]) -> None:
        """Take over what the first Nano's network learned.

        Args:
            first: Its weights, as float.
            known: Concept numbers here of its concepts, in its order.
        """
        for name, p in self.named_parameters():
            if name.startswith(("tokens.", "places.", "blocks.", "norm.", "meaning.", "lexicon.", "concept_scale")):
                p.copy_(first[name])
        self.prototypes_VPM[list(known)] = first["prototypes_VPM"]
        self.concept_bias_V[list(known)] = first["concept_bias_V"]
        for number in range(SUBJECTS):  # every subject's query begins where the concept's was
            self.look.weight[number] = first["queries.weight"][0]
            self.look.bias[number] = first["queries.bias"][0]
        self.look.weight[SUBJECTS:] = 0
        self.look.bias[SUBJECTS:] = 0
