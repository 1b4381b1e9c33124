"""Text states of known scenes: a trainable memory of what a prompt can say.

Each concept has tokens, one for each part of its portrait, and a pooled vector of its own, every other role one token a
word; the first row of each role means that nothing was said of it, so leaving words out is a state of its own, not a
default. A subject's tokens also carry which of the subjects it is. There is always room for three subjects, so that a
prompt's tokens stand at the same places whatever it says and whatever stands beside it in a batch.

Legend: B clips, S subjects, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
    """Tokens and a pooled vector of every concept as rows of their own: what a release keeps.

    Args:
        concepts: How many there are; one more row is "not said".
    """

    def __init__(self, concepts: int, *, tokens: int, dim: int) -> None:
        super().__init__()
        # a matrix, so that each token can be stored as a row of its own scale
        self.tokens = nn.Parameter(torch.randn((concepts + 1) * tokens, dim))
        self.pooled = nn.Parameter(torch.randn(concepts + 1, dim))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of subjects [B, S]: tokens [B, S, L, C], pooled [B, S, C]."""
        return self.tokens.unflatten(0, (len(self.pooled), -1))[rows], self.pooled[rows]


class SceneWords(nn.Module):
    """The memory.

    Args:
        memory: Tokens and pooled vectors of subjects, by their number plus one.
        tokens: Of each subject.
        dim: Channels of a token and of the pooled vector.
    """

    def __init__(self, memory: nn.Module, *, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens, self.memory = tokens, memory
        self.place = nn.Parameter(torch.randn(tokens, dim))
        self.which = nn.Parameter(torch.randn(MOST_SUBJECTS, 1, dim))
        self.word_tokens = nn.ParameterDict({r: nn.Parameter(torch.randn(n + 1, dim)) for r, n in ROLES.items()})
        self.word_pooled = nn.ParameterDict({r: nn.Parameter(torch.randn(n + 1, dim) / 4) for r, n in ROLES.items()})

    def forward(self, said: Sequence[Said]) -> TextEmbeddings:
        """States of B clips: tokens [B, 3·L + 9, C]; the mask leaves out subjects that are not there."""
        B, device = len(said), self.place.device
        rows = torch.zeros(B, MOST_SUBJECTS, dtype=torch.long)
        there = torch.zeros(B, MOST_SUBJECTS, dtype=torch.bool)
        for b, one in enumerate(said):
            rows[b, : len(one.subjects)] = torch.tensor(one.subjects)
            there[b, : len(one.subjects)] = True
        rows, there = rows.to(device), there.to(device)
        concept_tokens, concept_pooled = self.memory(rows)
        subjects = (concept_tokens + self.place + self.which).flatten(1, 2)
        words = torch.tensor([[one.words[role] for role in ROLES] for one in said], device=device)
        others = torch.stack([self.word_tokens[role][words[:, r]] for r, role in enumerate(ROLES)], dim=1)
        pooled = (concept_pooled * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        for r, role in enumerate(ROLES):
            pooled = pooled + self.word_pooled[role][words[:, r]]
        told = torch.ones(B, len(ROLES), dtype=torch.bool, device=device)
        mask = torch.cat([there.repeat_interleave(self.tokens, 1), told], dim=1)
        return TextEmbeddings(torch.cat([subjects, others], dim=1), pooled, mask)
