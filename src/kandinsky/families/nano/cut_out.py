"""What a given picture shows and no word names, cut out of its ground and moved as the words say.

The picture's own ground stays behind it, with the place where it stood filled as the rest of the ground runs. All of a
clip is drawn from its given picture, however long it gets: cut out again and again from what was made of it, edges
would fray and leave traces.

Legend: H W rows and columns, F frames; x to the right and y downwards, as shares of the frame's side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.geometry import Packed
from kandinsky.media.grounds import ground_of

MARGIN = 1.1
"""Side of a cut-out's image, in those of what it shows."""
WHOLE = 0.97
"""What is as large as this share of the frame is no thing before a ground."""
CUT_OFF = 0.03
"""Share of the frame's border behind which a thing goes on: moved, it would show where it is cut off."""
LEAST = 0.35
"""Share of a motion that is kept where the whole of it would lead out of the frame."""


@dataclass(frozen=True, slots=True)
class CutOut:
    """A thing and the ground it stood on.

    Attributes:
        image_CHW: Premultiplied RGBA in [0, 1], square.
        plate_CHW: The frame without it, RGB in [0, 1].
        middle_2: Where its middle was, x before y.
        sides_2: How wide and high it is.
        size: Side of ``image_CHW`` in the frame.
    """

    image_CHW: Tensor
    plate_CHW: Tensor
    middle_2: Tensor
    sides_2: Tensor
    size: float

    def moved(self, scene: Packed) -> Packed:
        """A scene of one subject, that begins where the thing is, as large as it is, and leads no farther than fits."""
        path = scene.path_SF5.clone()
        path[..., :2] += self.middle_2.to(path) - scene.path_SF5[0, 0, :2]
        path[..., 2] *= self.size / scene.path_SF5[0, 0, 2]
        path[..., 3] -= scene.path_SF5[0, 0, 3]  # it is turned already as far as it is
        return kept_inside(replace(scene, path_SF5=path), self.middle_2, self.sides_2)


def cut_out(frame_HWC: Tensor) -> CutOut | None:
    """Cut what stands before a ground out of a frame in [-1, 1]; None where no whole thing does."""
    levels = (frame_HWC.clamp(-1, 1) + 1) * 127.5
    ground = ground_of(levels.float().cpu().numpy())
    if ground is None:
        return None
    alpha, colour = (torch.from_numpy(one).to(frame_HWC.device) for one in (ground.alpha_HW, ground.colour_HWC))
    shown = alpha > 0.5
    extent = extent_of(shown)
    border = torch.cat([shown[0], shown[-1], shown[:, 0], shown[:, -1]]).float()
    if extent is None or float(extent[1].max()) > WHOLE or float(border.mean()) > CUT_OFF:
        return None
    image, colour = ((one / 255).permute(2, 0, 1) for one in (levels, colour))
    hidden = F.max_pool2d((alpha > 0).float()[None], 5, 1, 2) > 0
    plate = torch.where(hidden, colour, image)
    thing = torch.minimum((image - (1 - alpha) * colour).clamp_min(0), alpha)
    middle, sides = extent
    size = MARGIN * float(sides.max())
    cut, scale = max(8, round(size * frame_HWC.shape[0])), torch.eye(2, device=image.device) * size
    rows = torch.cat([scale, (2 * middle - 1)[:, None].to(scale)], dim=1)
    grid = F.affine_grid(rows[None], [1, 4, cut, cut], align_corners=False)
    square = F.grid_sample(torch.cat([thing, alpha[None]])[None], grid, align_corners=False)[0]
    return CutOut(square, plate, middle, sides, size)


def kept_inside(scene: Packed, middle_2: Tensor, sides_2: Tensor) -> Packed:
    """A scene of one subject that leaves the frame no farther than it has to.

    A motion that would lead out of it is shortened, and so is growth, as far as the frame has no room for them and
    ``LEAST`` of them stays.

    Args:
        scene: The scene, in which the subject begins as it is seen.
        middle_2: Where the middle of what is seen of it is.
        sides_2: How large that is.
    """
    path, began = scene.path_SF5.clone(), scene.path_SF5[:, :1]
    middle, half = middle_2.to(path), sides_2.to(path) / 2
    gone = path[..., :2] - began[..., :2]
    before, behind = (room.clamp_min(0) for room in (middle - half, 1 - middle - half))
    needed = torch.maximum(-gone / before.clamp_min(1e-6), gone / behind.clamp_min(1e-6)).max().clamp_min(1e-6)
    path[..., :2] = began[..., :2] + gone * (1 / needed).clamp(LEAST, 1)
    grown = path[..., 2:3] / began[..., 2:3]
    if float(grown.max()) > 1:
        kept = ((0.5 / half.max() - 1) / (grown.max() - 1)).clamp(LEAST, 1)
        grown = torch.where(grown > 1, 1 + (grown - 1) * kept, grown)
        path[..., 2:3] = began[..., 2:3] * grown
        shown = path[..., :2] + grown * (middle - began[..., :2])
        least = (half * grown).clamp_max(0.5)
        path[..., :2] += torch.where(grown > 1, torch.minimum(torch.maximum(shown, least), 1 - least) - shown, 0)
    return replace(scene, path_SF5=path)


def is_told_to_move(scene: Packed | None) -> bool:
    """Whether a scene is of one subject that is there from the beginning and then does something."""
    if scene is None or scene.subjects != 1:
        return False
    path = scene.path_SF5
    return float((path - path[:, :1]).abs().max()) >= 1e-3 and float(path[0, 0, 4]) >= 0.5


def extent_of(mask_HW: Tensor) -> tuple[Tensor, Tensor] | None:
    """Middle and sides of the box around what is true, x before y, as shares of the whole; None if nothing is."""
    down, across = mask_HW.any(1).nonzero().flatten(), mask_HW.any(0).nonzero().flatten()
    if not len(down):
        return None
    whole = torch.tensor(mask_HW.shape[::-1], device=mask_HW.device)
    low, high = torch.stack([across[0], down[0]]) / whole, (torch.stack([across[-1], down[-1]]) + 1) / whole
    return (low + high) / 2, high - low
