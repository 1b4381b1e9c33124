"""Heads of a discriminator that looks through the Kandinsky 4 transformer, as drawn for Kandinsky 4 Flash.

Half a block behind each global block. Legend: as in ``dit.py``.
"""

from __future__ import annotations

from torch import Tensor, nn

from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, JointAttention, Where, modulated_norm
from kandinsky.families.kandinsky4.params import DiTParams
from kandinsky.families.parts.transformer import NORM_EPS, Modulation, gated_sum
from kandinsky.ops.linear import Linear


class Head(nn.Module):
    """Local attention over visual and text tokens; the visual ones alone go on, to a logit of each.

    Source: ai-forever/Kandinsky-4, drawing of the distillation: both streams normalised, scaled and shifted by the
    time, the visual update gated by it, then a linear layer.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        D = params.model_dim
        self.visual_modulation = Modulation(params.time_dim, D, 3)
        self.text_modulation = Modulation(params.time_dim, D, 2)
        self.self_attention_norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.self_attention = JointAttention(D, params.head_dim)
        self.out_layer = Linear(D, 1)

    def forward(
        self,
        output: tuple[Tensor, Tensor],
        _visual_FPD: Tensor,
        _text_BLD: Tensor,
        e_BE: Tensor,
        where: Where,
    ) -> Tensor:
        """What a block gave and what it was given, see ``dit.Block``. Returns [F, P, 1]."""
        visual_FPD, text_BLD = output
        shift, scale, gate = (where.per_frame(part) for part in self.visual_modulation(e_BE))
        norm = self.self_attention_norm
        update, _ = self.self_attention(
            modulated_norm(norm, visual_FPD, shift, scale),
            modulated_norm(norm, text_BLD, *self.text_modulation(e_BE)),
            where,
            "local",
        )
        out: Tensor = self.out_layer(gated_sum(visual_FPD, gate, update))
        return out


def heads(network: nn.Module) -> dict[str, nn.Module]:
    """A head behind each global block; see ``model/family.Heads``."""
    assert isinstance(network, DiffusionTransformer3D)
    return {f"transformer_blocks.{number}.1": Head(network.params) for number in range(network.params.num_blocks)}
