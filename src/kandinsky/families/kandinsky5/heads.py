"""Heads of a discriminator that looks through the Kandinsky 5 transformer.

That of Kandinsky 5 Flash is not public; these are the heads drawn for Kandinsky 4 Flash, with attention as it is here:
half a block, one behind every fourth. Legend: as in ``dit.py``.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from kandinsky.families.kandinsky5.dit import Attention, DiffusionTransformer3D, modulated_norm
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.parts.transformer import Modulation, gated_sum
from kandinsky.ops.attention import attention
from kandinsky.ops.blocks import Mix
from kandinsky.ops.linear import Linear
from kandinsky.ops.rope import Rotation

EVERY = 4


class Head(nn.Module):
    """Self attention over the clip and cross attention to the text, then a logit of each visual token."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.modulation = Modulation(params.time_dim, params.model_dim, 6)
        self.self_attention = Attention(params.model_dim, params.head_dim)
        self.cross_attention = Attention(params.model_dim, params.head_dim)
        self.out_layer = Linear(params.model_dim, 1)

    def forward(
        self,
        x_BSD: Tensor,
        _before_BSD: Tensor,
        text_BLD: Tensor,
        e_BE: Tensor,
        rotation: Rotation,
        mask_BL: Tensor | None,
        mix: Mix,
    ) -> Tensor:
        """What a block gave and what it was given, see ``dit.VisualBlock``. Returns [B, S, 1]."""
        m = self.modulation(e_BE)
        normed = modulated_norm(x_BSD, m[0], m[1])
        x_BSD = gated_sum(x_BSD, m[2], self.self_attention(normed, rotation=rotation, mix=mix))
        normed = modulated_norm(x_BSD, m[3], m[4])
        to_text = partial(attention, mask=mask_BL)
        x_BSD = gated_sum(x_BSD, m[5], self.cross_attention(normed, text_BLD, mix=to_text))
        out: Tensor = self.out_layer(x_BSD)
        return out


def heads(network: nn.Module) -> dict[str, nn.Module]:
    """Heads behind every fourth visual block, or behind the last of fewer; see ``model/family.Heads``."""
    assert isinstance(network, DiffusionTransformer3D)
    count = network.params.num_visual_blocks
    return {
        f"visual_transformer_blocks.{number}": Head(network.params)
        for number in range(min(EVERY, count) - 1, count, EVERY)
    }
