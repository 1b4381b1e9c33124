"""The U-Net's part of a plan: shares and rates counted on the full-size networks on the meta device.

A pixel here is one of the latent. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kandinsky.model.card import Card

# Share of the weights in stages, and in the largest of them; the released networks differ by less than a twentieth.
IN_STAGES, LARGEST_STAGE = 0.94, 0.11
_STAGES = {"kandinsky4.v2a-unet": (0.89, 0.30)}  # which has fewer
# Share in the linear layers that are quantised: attention's, in stages; 0 for kinds that are not.
_LINEAR = {"kandinsky3.unet": 0.148, "kandinsky_video1.keyframes-1.0": 0.246, "kandinsky_video1.keyframes-1.1": 0.246}
# Operations of one pass for each pixel of each frame, with 60 text tokens (of sound: 100, and 96 frames), at the
# released widths.
PASS = {
    "kandinsky3.unet": 2.0e8,
    "kandinsky_video1.keyframes-1.0": 2.4e8,
    "kandinsky_video1.keyframes-1.1": 2.4e8,
    "kandinsky_video1.interpolation-1.0": 2.8e8,
    "kandinsky_video1.interpolation-1.1": 2.8e8,
    "kandinsky4.v2a-unet": 2.5e8,
}
RELEASED_WIDTH = 384
_RELEASED_WIDTHS = {"kandinsky4.v2a-unet": 320}
# Of the rate of plain products that convolutions reach on a GPU: the official notebook's 50 steps of key frames at
# 640x384 in 24 s are 57 TFLOP/s.
GPU_SHARE = 0.12
# Copies of the finest level that live at once: what came in, the way past, the narrow middle before and after.
COPIES = 6


def is_unet(params: Mapping[str, Any]) -> bool:
    """Whether a component's parameters are those of a U-Net."""
    return "dim_mult" in params or "block_out_channels" in params


def base_width(params: Mapping[str, Any]) -> int:
    """Channels of the finest level."""
    return int(params["model_channels"] if "model_channels" in params else params["block_out_channels"][0])


def stages(kind: str) -> tuple[float, float]:
    """Share of a network's weights in stages, and in the largest of them."""
    return _STAGES.get(kind, (IN_STAGES, LARGEST_STAGE))


def linear(kind: str) -> float:
    """Share of a network's weights that can be quantised."""
    return _LINEAR.get(kind, 0.0)


def work_bytes(params: Mapping[str, Any], frames: int, pixels: int, width: int) -> int:
    """Peak of activations: the finest level on the way up, with what was left there beside it."""
    return frames * pixels * 2 * base_width(params) * COPIES * width


def flops(card: Card, frames: int, pixels: int, steps: int, passes: int) -> float:
    """Operations of all stages of a generation.

    Args: frames: of the finished clip.   pixels: of a latent frame.   steps: of the first network.
          passes: of it in all, guidance counted.
    """
    keyframes = card.keyframes
    scale = (base_width(card.dit.params) / _RELEASED_WIDTHS.get(card.dit.kind, RELEASED_WIDTH)) ** 2
    if keyframes is None:
        return scale * PASS[card.dit.kind] * frames * pixels * passes
    total = PASS[card.dit.kind] * keyframes.count * pixels * passes
    if (first := keyframes.first_frame) is not None:
        # a third pass without the first frame, and the first frame itself, of so many times the size
        total *= (passes + steps) / passes
        total += PASS[card.dit.kind] * first.scale**2 * pixels * 2 * steps
    gaps = keyframes.count - 1
    while gaps < frames:  # each pass fills all gaps and makes four of one
        if gaps * 4 + 1 > frames:
            break
        total += PASS[keyframes.interpolation.kind] * gaps * pixels * 2 * keyframes.steps
        gaps *= 4
    return scale * total
