"""Text states of known scenes: a memory of what a prompt can say.

Each concept has tokens, the codes of the places of its portrait, and a pooled vector of its own, every other role one
token a word; the first row of each role means that nothing was said of it, so leaving words out is a state of its own,
not a default. There is always room for three subjects, so that a prompt's tokens stand at the same places whatever it
says and whatever stands beside it in a batch.

Legend: B clips, S subjects, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kandinsky.families.nano.portraits import GRID
from kandinsky.families.nano.scenes import (
    ARRANGEMENTS,
    BACKDROPS,
    CAMERAS,
    COLOURS,
    MOST_SUBJECTS,
    MOTIONS,
    PLACES,
    SIZES,
    Scene,
)
from kandinsky.model.values import TextEmbeddings

ROLES: dict[str, int] = {
    "backdrop": len(BACKDROPS),
    "colour": COLOURS,
    "second colour": COLOURS,
    "place": len(PLACES),
    "size": len(SIZES) + 1,
    "motion": len(MOTIONS) + 1,
    "camera": len(CAMERAS) + 1,
    "arrangement": len(ARRANGEMENTS),
    "kind": 2,
}
"""Words of each role, without the row for "not said"."""


@dataclass(frozen=True, slots=True)
class Said:
    """Rows of the memory for one clip; 0 is "not said".

    Args:
        subjects: Concept numbers plus one, of at most three subjects.
        words: Row of every role in ``ROLES``.
    """

    subjects: tuple[int, ...]
    words: dict[str, int] = field(default_factory=dict)


def said_of(scene: Scene, *, still: bool) -> Said:
    """Everything a caption of this scene could say."""

    def among(names: Sequence[str], name: str | None) -> int:
        return 0 if name is None else list(names).index(name) + 1

    second = scene.colours[1]
    return Said(
        tuple(0 if s.concept is None else s.concept + 1 for s in scene.subjects),
        {
            "backdrop": among(BACKDROPS, scene.backdrop),
            "colour": scene.colours[0] + 1,
            "second colour": 0 if second is None else second + 1,
            "place": among(list(PLACES), scene.place),
            "size": 1 if scene.size is None else among(list(SIZES), scene.size) + 1,
            "motion": 1 if scene.motion is None else among(MOTIONS, scene.motion) + 1,
            "camera": 1 if scene.camera is None else among(CAMERAS, scene.camera) + 1,
            "arrangement": among(list(ARRANGEMENTS), scene.arrangement),
            "kind": 2 if still else 1,
        },
    )


def unsaid(said: Said, roles: Sequence[str]) -> Said:
    """The same with some roles left open; "subjects" among them leaves all concepts open."""
    subjects = (0,) * len(said.subjects) if "subjects" in roles else said.subjects
    return Said(subjects, {role: 0 if role in roles else row for role, row in said.words.items()})


NOTHING = Said((0,), dict.fromkeys(ROLES, 0))
"""The empty prompt."""


class RowMemory(nn.Module):
    """Codes of the portrait and a pooled vector of every concept, as rows; the codes are computed and not trained.

    Args:
        concepts: How many there are; row 0 is "not said", and its codes show nothing.
        codes: Of a place.
        pooled: Channels of the pooled vector.
    """

    codes: Tensor

    def __init__(self, concepts: int, *, codes: int, pooled: int) -> None:
        super().__init__()
        # a matrix, as rows of few bits are stored
        self.register_buffer("codes", torch.zeros((concepts + 1) * GRID**2, codes))
        self.pooled = _spread(concepts + 1, pooled)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of subjects [B, S]: codes [B, S, P, E], pooled [B, S, C]."""
        return self.codes.unflatten(0, (len(self.pooled), -1))[rows], self.pooled[rows]


def _spread(*shape: int, std: float = 1.0) -> nn.Parameter:
    """Random weights; none on the meta device, where drawing them would import PyTorch's compiler."""
    made = nn.Parameter(torch.empty(*shape))
    if not made.is_meta:
        nn.init.normal_(made, std=std)
    return made


class SceneWords(nn.Module):
    """The memory.

    Args:
        concepts: How many can be shown.
        codes: Channels of a token: codes of a place of a portrait.
        pooled: Channels of the pooled vector.
    """

    def __init__(self, concepts: int, *, codes: int, pooled: int) -> None:
        super().__init__()
        self.memory = RowMemory(concepts, codes=codes, pooled=pooled)
        self.word_tokens = nn.ParameterDict({r: _spread(n + 1, codes) for r, n in ROLES.items()})
        self.word_pooled = nn.ParameterDict({r: _spread(n + 1, pooled, std=0.25) for r, n in ROLES.items()})

    def forward(self, said: Sequence[Said]) -> TextEmbeddings:
        """States of B clips: tokens [B, 3·36 + 9, C]; the mask leaves out subjects that are not there."""
        B, device = len(said), self.memory.pooled.device
        rows = torch.zeros(B, MOST_SUBJECTS, dtype=torch.long)
        there = torch.zeros(B, MOST_SUBJECTS, dtype=torch.bool)
        for b, one in enumerate(said):
            rows[b, : len(one.subjects)] = torch.tensor(one.subjects)
            there[b, : len(one.subjects)] = True
        rows, there = rows.to(device), there.to(device)
        codes, concept_pooled = self.memory(rows)
        words = torch.tensor([[one.words[role] for role in ROLES] for one in said], device=device)
        others = torch.stack([self.word_tokens[role][words[:, r]] for r, role in enumerate(ROLES)], dim=1)
        pooled = (concept_pooled * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        for r, role in enumerate(ROLES):
            pooled = pooled + self.word_pooled[role][words[:, r]]
        told = torch.ones(B, len(ROLES), dtype=torch.bool, device=device)
        mask = torch.cat([there.repeat_interleave(codes.shape[2], 1), told], dim=1)
        return TextEmbeddings(torch.cat([codes.flatten(1, 2), others], dim=1), pooled, mask)
