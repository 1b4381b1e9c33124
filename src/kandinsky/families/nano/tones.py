"""Tones of skin: how a portrait that is yellow looks in one of the five tones of Unicode.

The emoji are drawn in yellow, skin and hair alike, and again in five tones with the same motion: the skin in that
tone, the hair in a colour that goes with it, everything else as it was. So a tone is two maps of colours, one for skin
and one for hair, and what is to be known of a portrait is which is which. A small network that looks at the picture
says it for each pixel: four convolutions at a quarter of the size see what is around, and one more layer the pixel's
own colour. It is the same for all concepts, and is not told which one it sees.

Legend: N images, H W pixels, K kinds of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

SHRUNK = 4
"""How much smaller the picture is in which the network looks around."""
REACH = (1, 2, 4, 8)
"""Spacing of the taps of each convolution."""
WIDTH, FEATURES, HIDDEN = 24, 8, 12
KINDS, TERMS, TONES = 3, 10, 5
"""Skin, hair and the rest; terms of a map of colours; tones."""


class ToneMap(nn.Module):
    """Portraits in another tone of skin; buffers only, for nothing of a denoiser's training moves them.

    Before it is fitted it leaves every picture as it is.
    """

    maps: Tensor

    def __init__(self) -> None:
        super().__init__()
        for number in range(len(REACH)):
            self.register_buffer(f"look_{number}", torch.zeros(WIDTH, WIDTH if number else 6, 3, 3))
            self.register_buffer(f"look_{number}_bias", torch.zeros(WIDTH))
        self.register_buffer("seen", torch.zeros(FEATURES, WIDTH, 1, 1))
        self.register_buffer("inner", torch.zeros(HIDDEN, FEATURES + 3, 1, 1))
        self.register_buffer("inner_bias", torch.zeros(HIDDEN))
        self.register_buffer("kind", torch.zeros(KINDS, HIDDEN, 1, 1))
        self.register_buffer("kind_bias", torch.tensor([-30.0, -30.0, 0.0]))
        self.register_buffer("maps", torch.zeros(KINDS - 1, TONES, 3, TERMS))

    @property
    def is_fitted(self) -> bool:
        """Whether it knows of any tone."""
        return bool(self.maps.any())

    def logits(self, image_N4HW: Tensor, every: int = 1, first: tuple[int, int] = (0, 0)) -> Tensor:
        """What ``kinds`` is the softmax of, of all pixels or of those of every few rows and columns from given ones."""
        own = {name: value.float() for name, value in self.named_buffers()}
        x = F.avg_pool2d(image_N4HW, SHRUNK)
        down, across = (torch.linspace(-1, 1, n, device=x.device) for n in x.shape[-2:])
        at = torch.stack(torch.meshgrid(down, across, indexing="ij"))
        x = torch.cat([x, at.expand(len(x), -1, -1, -1)], dim=1)
        for number, reach in enumerate(REACH):
            found = F.conv2d(x, own[f"look_{number}"], own[f"look_{number}_bias"], padding=reach, dilation=reach)
            x = F.relu(found) + (x if number else 0)
        around = F.interpolate(F.conv2d(x, own["seen"]), size=image_N4HW.shape[-2:], mode="bilinear")
        x = torch.cat([around, straight(image_N4HW)], dim=1)[..., first[0] :: every, first[1] :: every]
        x = F.relu(F.conv2d(x, own["inner"], own["inner_bias"]))
        return F.conv2d(x, own["kind"], own["kind_bias"])

    def kinds(self, image_N4HW: Tensor) -> Tensor:
        """How far each pixel is skin, hair and neither, [N, KINDS, H, W]; they sum up to one.

        Args:
            image_N4HW: Premultiplied RGBA in [0, 1]; the sides are multiples of ``SHRUNK``.
        """
        return self.logits(image_N4HW).softmax(dim=1)

    def forward(self, image_N4HW: Tensor, tones: Sequence[int]) -> Tensor:
        """Images in each of some tones, premultiplied RGBA [N, len(tones), 4, H, W].

        Args:
            image_N4HW: Premultiplied RGBA in [0, 1].
            tones: 1 for the lightest to 5 for the darkest.
        """
        return self.recoloured(image_N4HW, self.kinds(image_N4HW), tones)

    def recoloured(self, image_N4HW: Tensor, kinds_NKHW: Tensor, tones: Sequence[int]) -> Tensor:
        """The same where it is known which pixel is what."""
        skin, hair, rest = kinds_NKHW.split(1, dim=1)
        terms, alpha = products(straight(image_N4HW)), image_N4HW[:, 3:]
        made = []
        for tone in tones:
            of_skin, of_hair = (torch.einsum("ok,nkhw->nohw", one[tone - 1].float(), terms) for one in self.maps)
            colour = rest * image_N4HW[:, :3] + alpha * (skin * of_skin + hair * of_hair)
            made.append(torch.cat([torch.minimum(colour.clamp_min(0), alpha), alpha], dim=1))
        return torch.stack(made, dim=1)


def straight(image_N4HW: Tensor) -> Tensor:
    """Colours without their opacity, [N, 3, H, W]."""
    return image_N4HW[:, :3] / image_N4HW[:, 3:].clamp_min(1e-2)


def products(colour_N3HW: Tensor) -> Tensor:
    """One, the three channels, and their products: what a map of colours adds up, [N, TERMS, H, W]."""
    r, g, b = colour_N3HW.unbind(1)
    return torch.stack([torch.ones_like(r), r, g, b, r * r, g * g, b * b, r * g, r * b, g * b], dim=1)
