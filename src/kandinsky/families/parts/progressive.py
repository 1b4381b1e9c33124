"""Begin an autoencoder of HunyuanVideo's kind as one of a lower ratio: 8x16x16 as 8x8x8, and that as 4x8x8.

A higher ratio in time has the same layers, one more of which halves the frames. A higher one in space has levels behind
those of the lower one. All layers of the lower one are carried over. A new level's convolution to fewer places is the
mean of each square, the one to more places repeats, its other layers add nothing, and new channels of the latents are
not listened to yet; all of these learn from the first step on. Clips without motion are coded as before where only time
is new, and clips of one colour in every case. Elsewhere the start is no exact copy: convolutions along time see frames
at another distance, and so it is to be trained on, not to be used.

Sources: the growing of GANs (Karras et al., arXiv 1710.10196); zeros at the end of residual blocks, Fixup (Zhang et
al., arXiv 1901.09321).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.families.parts.params import HunyuanParams

_LEVEL = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.")
# layers whose inputs or outputs are channels of latents
_TO_LATENTS = ("encoder.conv_out.conv", "quant_conv")
_FROM_LATENTS = ("post_quant_conv", "decoder.conv_in.conv")


def check_grows(higher: HunyuanParams, lower: HunyuanParams) -> None:
    """Refuse what one network cannot begin as.

    Raises:
        RequestError: Widths of levels differ, a ratio or the number of channels is lower, or another number of layers
            makes a level.
    """
    own, other = higher.block_out_channels, lower.block_out_channels
    same = ("layers_per_block", "in_channels", "out_channels", "act_fn", "norm_num_groups", "mid_block_add_attention")
    for name in same:
        if (one := getattr(higher, name)) != (two := getattr(lower, name)):
            raise RequestError(f"`{name}` is {one}, and that of the lower autoencoder is {two}: use equal ones")
    if own[: len(other)] != other or any(width != other[-1] for width in own[len(other) :]):
        raise RequestError(
            f"`block_out_channels` {list(own)} do not go on from {list(other)}: begin with these, and give further "
            f"levels {other[-1]}"
        )
    for name in ("temporal_compression_ratio", "latent_channels"):
        if getattr(higher, name) < getattr(lower, name):
            raise RequestError(f"`{name}` {getattr(higher, name)} is less than {getattr(lower, name)}: use as much")


@torch.no_grad()
def grown(fresh: Mapping[str, Tensor], lower: Mapping[str, Tensor], higher: HunyuanParams) -> dict[str, Tensor]:
    """Weights of a network that begins as a lower one.

    Args:
        fresh: Its random weights, under Diffusers' names.
        lower: The lower one's weights.
        higher: Its hyper-parameters, which ``check_grows`` has passed.

    Returns:
        Weights for every name of ``fresh``.
    """
    before = 1 + max(int(found[2]) for name in lower if (found := _LEVEL.match(name)))
    more = len(higher.block_out_channels) - before
    made = {}
    for name, own in fresh.items():
        old = lower.get(_earlier(name, more))
        if old is None:
            made[name] = _new(name, own)
        elif old.shape == own.shape:
            made[name] = old.to(own)
        else:
            made[name] = _wider(name, own, old.to(own))
    return made


def _earlier(name: str, more: int) -> str:
    """What a tensor is called in the lower network; its decoder has fewer levels in front."""
    found = _LEVEL.match(name)
    if found is None or found[1].startswith("encoder"):
        return name
    number = int(found[2]) - more
    return f"{found[1]}.{number}.{name[found.end() :]}" if number >= 0 else ""


def _new(name: str, own: Tensor) -> Tensor:
    """Of a new level, or between the last level of the lower network and the new ones."""
    if ".conv2.conv." in name:
        return torch.zeros_like(own)  # what it adds
    if "samplers." not in name:
        return own.clone()
    made = torch.zeros_like(own)
    if own.dim() > 1:
        same = torch.eye(own.shape[0]).to(own)
        if ".downsamplers." in name:  # places 2i - 1, 2i and 2i + 1 are seen, and 2i and 2i + 1 are a square
            made[:, :, -1, 1:, 1:] = same[..., None, None] / 4
        else:
            made[:, :, -1, 1, 1] = same
    return made


def _wider(name: str, own: Tensor, old: Tensor) -> Tensor:
    """Weights of a layer beside latents of more channels: known ones first, means before log-variances."""
    layer = name.rpartition(".")[0]
    made = own.clone() if layer in _TO_LATENTS else torch.zeros_like(own)
    if layer in _TO_LATENTS:
        half, more = old.shape[0] // 2, own.shape[0] // 2
        places = torch.cat((torch.arange(half), torch.arange(half) + more)).to(own.device)
        if layer == "quant_conv" and own.dim() > 1:
            made.zero_()  # each new channel as it comes
            made[torch.arange(2 * more), torch.arange(2 * more)] = 1.0
            made[places] = 0.0
            made[places[:, None], places[None]] = old
        else:
            made[places] = old
            if own.dim() == 1 and layer == "quant_conv":
                new = torch.ones(2 * more, dtype=torch.bool)
                new[places.cpu()] = False
                made[new.to(own.device)] = 0.0
        return made
    if layer == "post_quant_conv" and own.dim() > 1:
        made[torch.arange(own.shape[0]), torch.arange(own.shape[1])] = 1.0
        made[: old.shape[0]] = 0.0
        made[: old.shape[0], : old.shape[1]] = old
        return made
    if layer in _FROM_LATENTS:
        made[tuple(slice(size) for size in old.shape)] = old  # nothing is heard of new channels yet
        return made
    raise RequestError(f"`{name}` has the shape {list(own.shape)}, and that of the lower autoencoder {list(old.shape)}")
