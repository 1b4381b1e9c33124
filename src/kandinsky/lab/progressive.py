"""Is it worth beginning an autoencoder as one of a lower ratio? `python -m kandinsky.lab.progressive --out FOLDER`.

A small network of HunyuanVideo's kind is trained at 4x8x8, one at 8x8x8 that begins as it, and one at 8x16x16 that
begins as that one, on drawn clips; beside each, one from random weights for as many steps. PSNR is on clips that none
of them saw, of all frames but the first. Runs that were stopped go on.

Legend: N clips; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.lab.compression import Cell, Footage, network_of, psnr
from kandinsky.train import loop
from kandinsky.train.autoencoder import AutoencoderLosses, AutoencoderObjective, Fragments, decoded, encoded
from kandinsky.train.objective import Portion, Rng

CELLS = (Cell(4, 8, 16), Cell(8, 8, 16), Cell(8, 16, 32))
PIECE = 16
HEADER = (
    "| ratio | channels | lower one, upsampled | begun as the lower one | trained | from random weights |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Corners:
    """Corners of drawn clips, so that a step is quick.

    Attributes:
        footage: The clips.
        side: Rows and columns that are kept.
    """

    footage: Footage
    side: int

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        """A portion of the batch of a step."""
        found = self.footage(step, rng, portion)
        return Fragments(found.clip_BTHWC[:, :, : self.side, : self.side], found.numbers)

    def tests(self) -> Tensor:
        """Clips that no training sees."""
        return self.footage.tests()[:, :, : self.side, : self.side]


def coded(network: Any, cell: Cell, clips_NTHWC: Tensor) -> Tensor:
    """What clips become."""
    with torch.no_grad():
        means = [encoded(network.eval(), one, PIECE)[0] for one in clips_NTHWC.split(4)]
        return torch.cat([decoded(network, one, PIECE // cell.temporal) for one in means])


def upsampled(through: Callable[[Tensor], Tensor], clips_NTHWC: Tensor, frames: int, side: int) -> Tensor:
    """What becomes of clips that a lower autoencoder sees at so many frames, rows and columns, enlarged again.

    Frames are left out and linearly put in again; pixels are averaged and linearly put in again.
    """
    N, T, H, W, _ = clips_NTHWC.shape
    x = clips_NTHWC[:, :: (T - 1) // (frames - 1)].flatten(0, 1).movedim(-1, 1)
    small = F.interpolate(x, size=(side, side * W // H), mode="area").movedim(1, -1).unflatten(0, (N, -1))
    few = through(small).movedim(-1, 1)
    flat = F.interpolate(few.transpose(1, 2).flatten(0, 1), size=(H, W), mode="bilinear")
    whole = flat.unflatten(0, (N, -1)).transpose(1, 2).flatten(3)  # [N, C, frames, H·W]
    whole = F.interpolate(whole, size=(T, H * W), mode="bilinear", align_corners=True)
    made: Tensor = whole.unflatten(3, (H, W)).movedim(1, -1)
    return made


def carry(known: nn.Module, network: nn.Module) -> None:
    """Give a network of the same shape the weights of a known one."""
    network.load_state_dict(known.state_dict())


def trained(network: Any, cell: Cell, footage: Corners, out: Path, steps: int, lr: float) -> Any:
    """The network after so many steps."""
    losses = AutoencoderLosses(perceptual=0, kl=1e-6, adversarial=0)
    objective = AutoencoderObjective(network, cell.temporal, footage, losses, PIECE)
    settings = loop.LoopSettings(
        steps=steps, lr=lr, warmup=10, decay=0.4, weight_decay=0.0, ema=0.99, log_every=10, checkpoint_minutes=1.0,
        keep=1,
    )  # fmt: skip
    network.load_state_dict(loop.run(objective, settings, out)["autoencoder"], strict=False)
    return network


def rows(out: Path, steps: int, lr: float, footage: Corners) -> Iterator[str]:
    """Lines of the table, each when it is known."""
    tests = footage.tests()
    lower: Any = None
    before = CELLS[0]
    for cell in CELLS:
        name = f"{cell.temporal}x{cell.spatial}x{cell.spatial}"
        plain = trained(network_of(cell), cell, footage, out / f"{name}-plain", steps, lr)
        random = f"{float(psnr(coded(plain, cell, tests), tests).mean()):.2f}"
        if lower is None:
            told, lower = ["", "", random], plain
        else:
            known, old = lower, before
            frames = 1 + (tests.shape[1] - 1) * old.temporal // cell.temporal
            side = tests.shape[2] * old.spatial // cell.spatial
            enlarged = upsampled(partial(coded, known, old), tests, frames, side)
            higher = network_of(cell)
            higher.begin_as(dataclasses.asdict(known.params), partial(carry, known))
            begun = coded(higher, cell, tests)
            lower = trained(higher, cell, footage, out / f"{name}-begun", steps, lr)
            told = [f"{float(psnr(one, tests).mean()):.2f}" for one in (enlarged, begun, coded(lower, cell, tests))]
        before = cell
        yield f"| {name} | {cell.channels} | {' | '.join([*told, random])} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.lab.progressive", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of runs")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--batch", type=int, default=4, help="clips of a step")
    parser.add_argument("--side", type=int, default=64, help="rows and columns of the corner of clips that is used")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate")
    given = parser.parse_args(argv)
    sys.stdout.write(f"{HEADER}\n")
    for row in rows(given.out, given.steps, given.lr, Corners(Footage(None, batch=given.batch), given.side)):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
