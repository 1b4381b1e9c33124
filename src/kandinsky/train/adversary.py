"""A patch discriminator over space and time, and the hinge losses, for autoencoders and denoisers.

Source: PatchGAN (arXiv 1611.07004) with convolutions in time; hinge (arXiv 1705.02894).

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

UPDATE = "discriminator"  # the name of its update


class PatchDiscriminator(nn.Module):
    """One logit for each patch of a clip; an image is a clip of one frame.

    Args:
        channels: Of the clips.
        width: Of the first layer; the next ones have two and four times as many.
        layers: That halve rows and columns; all but the first halve the frames too.
    """

    def __init__(self, channels: int, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        # norms whose state is in their weights alone: a training that goes on is the one that never stopped
        blocks: list[nn.Module] = []
        before = channels
        for number in range(layers + 1):
            after = width * min(2**number, 4) if number < layers else before
            stride = (1, 1, 1) if number == layers else (1 if number == 0 else 2, 2, 2)
            blocks += [nn.Conv3d(before, after, 3, stride, 1)]
            blocks += [nn.GroupNorm(math.gcd(after, 8), after)] if number else []
            blocks += [nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*blocks, nn.Conv3d(before, 1, 1))

    def forward(self, clip_BTHWC: Tensor) -> Tensor:
        """Logits [B, t, h, w]; larger for what seems real."""
        out: Tensor = self.layers(clip_BTHWC.permute(0, 4, 1, 2, 3))
        return out[:, 0]


def told_apart(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss, from its logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def figures(real: Tensor, made: Tensor) -> dict[str, float]:
    """Of the discriminator, for the log: near 1 it wins, which a student does not learn from."""
    right = torch.cat(((real > 0).float().flatten(), (made < 0).float().flatten())).mean()
    return {"discriminator accuracy": float(right), "logit gap": float((real.mean() - made.mean()).detach())}


def balance(wanted: Tensor, other: Tensor, at: Tensor) -> Tensor:
    """What ``other`` is multiplied with so that its gradient at a tensor is as large as that of ``wanted``.

    At the decoder's output, which is before both, so that no second pass through the network is needed.
    Source: VQGAN (arXiv 2012.09841, equation 7), which takes the weight of the last layer.
    """
    first, second = (torch.autograd.grad(loss, at, retain_graph=True)[0].norm() for loss in (wanted, other))
    scale: Tensor = (first / (second + 1e-8)).clamp(0, 1e4)
    return scale.detach()
