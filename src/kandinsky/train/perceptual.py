"""Perceptual distance of clips, frame by frame, in the features of a frozen network of VGG-16's shape.

The weights of the published measure (LPIPS) are not part of this package. Without any, the network has random ones
from a fixed seed: such features still see edges and textures at four scales, and differences that pixels do not show,
but they are no measure of what people see. A file with torchvision's VGG-16 makes it the perceptual loss of arXiv
1603.08155.

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import WeightsError
from kandinsky.train.loop import seeded
from kandinsky.weights.read import read_state

SEED = 20240229
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3))  # (channels, convolutions) at each scale
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images it was trained on


class PerceptualDistance(nn.Module):
    """Distance of features whose channels are normalised at every place, summed over scales.

    Args:
        weights: File with `features.N.weight` and `.bias`, as torchvision names them; None for random ones.
        divisor: Of the numbers of channels, where the weights are random.

    Raises:
        WeightsError: The file cannot be read, or is of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None, *, divisor: int = 4) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before, number = 3, 0
        names: list[tuple[str, nn.Conv2d]] = []
        with seeded(SEED):
            for channels, count in STAGES:
                stage = nn.ModuleList()
                for _ in range(count):
                    after = channels if weights is not None else max(4, channels // divisor)
                    layer = nn.Conv2d(before, after, 3, padding=1)
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                    stage.append(layer)
                    names.append((f"features.{number}", layer))
                    before, number = after, number + 2  # a ReLU behind each
                self.stages.append(stage)
                number += 1  # pooling
        if weights is not None:
            self._load(weights, names)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.requires_grad_(False)

    def forward(self, a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
        """The mean distance over all frames. Pixels in [-1, 1]."""
        total = a_BTHWC.new_zeros(())
        first, second = (self._normed(clip) for clip in (a_BTHWC, b_BTHWC))
        for number, stage in enumerate(self.stages):
            if number:
                if min(first.shape[-2:]) < 2:
                    break
                first, second = F.max_pool2d(first, 2), F.max_pool2d(second, 2)
            assert isinstance(stage, nn.ModuleList)
            for layer in stage:
                first, second = F.relu(layer(first)), F.relu(layer(second))
            difference = F.normalize(first, dim=1, eps=1e-6) - F.normalize(second, dim=1, eps=1e-6)
            total = total + difference.square().sum(1).mean()
        return total

    def _normed(self, clip_BTHWC: Tensor) -> Tensor:
        frames = clip_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        return (frames / 2 + 0.5 - self.mean) / self.std

    @staticmethod
    def _load(file: Path, names: list[tuple[str, nn.Conv2d]]) -> None:
        state = read_state(file)
        for name, layer in names:
            for part, parameter in layer.named_parameters():
                tensor = state.get(f"{name}.{part}")
                if tensor is None or tensor.shape != parameter.shape:
                    raise WeightsError(f"`{file}` has no `{name}.{part}` of shape {list(parameter.shape)}: give VGG-16")
                parameter.data = tensor.float().clone()
