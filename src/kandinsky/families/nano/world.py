"""Nano's small world: what an action does to the place of its subject, learned from clips that actions moved.

A small network looks at the last latent frame, as the denoiser made it, and at what is done next, and says where the
subject will stand: the column of a grid, whether it is in the air, and whether it is grown. The denoiser is told that
place as a shift of its coordinates and as the size in its text, and makes the frames that lead there.

Legend: B batch; H W C rows, columns, channels of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.weights.read import load_into

ACTIONS = ("stay", "left", "right", "jump", "grow")
COLUMNS, STEP = 5, 1 / 6
"""Columns of the world, the middle one that of the beginning, and their distance as a share of the frame; a jump is as
high. It is a token of the denoiser, whose rotary positions are relative: a shift by it is none to what it attends."""
SIDE, CHANNELS = 12, 48
SMALL, PLAIN = 1, 0  # slots of the text network's sizes: at rest, and grown


class Steering(nn.Module):
    """The last latent frame and an action to logits of the next place."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Linear(CHANNELS, 32)
        self.found = nn.Linear(32, 8)
        self.where = nn.Linear(8 * SIDE * SIDE, 48)
        self.inner = nn.Linear(48 + len(ACTIONS), 64)
        self.out = nn.Linear(64, COLUMNS + 2 + 2)

    def forward(self, latent_BHWC: Tensor, action_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the column, of being in the air, and of being grown."""
        flat = latent_BHWC.flatten(1, 2)
        x = flat - flat.median(dim=1, keepdim=True).values  # the background is most of it
        x = self.found(F.gelu(self.look(x)))
        seen = F.gelu(self.where(x.flatten(1)))
        done = F.one_hot(action_B, len(ACTIONS)).to(seen)
        column, air, grown = self.out(F.gelu(self.inner(torch.cat((seen, done), dim=-1)))).split((COLUMNS, 2, 2), -1)
        return column, air, grown

    @torch.no_grad()
    def after(self, latent_BHWC: Tensor | None, actions: Sequence[str]) -> Tensor:
        """The next places, [B, 3]: shares of the frame to the right and down, and whether it is grown.

        Args:
            latent_BHWC: The last latent frame; None at the beginning, which is at rest in the middle.
            actions: Of each clip.

        Raises:
            RequestError: There is no such action, or the latent has another size.
        """
        if unknown := [action for action in actions if action not in ACTIONS]:
            raise RequestError(f"Nano's world knows no action `{unknown[0]}`: use {', '.join(ACTIONS)}")
        if latent_BHWC is None:
            return torch.zeros(len(actions), 3)
        if latent_BHWC.shape[1:] != (SIDE, SIDE, CHANNELS):
            raise RequestError("Nano's world has one size, 96x96")
        numbers = torch.tensor([ACTIONS.index(action) for action in actions])
        column, air, grown = (one.argmax(-1) for one in self(latent_BHWC.float().cpu(), numbers))
        return torch.stack(((column - COLUMNS // 2) * STEP, -air * STEP, grown.float()), dim=-1)

    @classmethod
    def read(cls, path: Path) -> Steering:
        """Raises: WeightsError: The file is missing or of another network."""
        made = cls()
        load_into(made, path, dtype=torch.float32)
        return made.eval().requires_grad_(False)
