"""The transformer as a denoiser: what the sampling loop calls, for generation and conformance alike.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor, nn

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D
from kandinsky.families.parts.condition_channels import WithChannels, join_condition
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, OnTrack, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.blocks import BlockRunner
from kandinsky.ops.branches import Beside, at_work
from kandinsky.ops.packed import Size


@dataclass(eq=False, repr=False)
class DiscreteDenoiser:
    """A transformer bound to one prompt batch; callable as ``(x_BTHWC, t) -> v_BTHWC``.

    Args:
        text: Embeddings of B prompts, or of one prompt for any B.
        rope_scale: See the network's ``forward``.
        attention: See the network's ``forward``.
        runner: See the network's ``forward``.
        condition_BTHWC: Condition channels, see ``join_condition``.
        lengths: Of clips that lie end to end, see the network's ``forward``.
        branches: Beside the blocks, each at its own times.
    """

    dit: DiffusionTransformer3D
    text: TextEmbeddings
    _: KW_ONLY
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    attention: AttentionSpec | None = None
    condition_BTHWC: Tensor | None = None
    runner: BlockRunner | None = None
    lengths: tuple[Size, ...] | None = None
    branches: tuple[Beside, ...] = ()

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """The v prediction at time t in [0, 1]; the network's own time is the index t·1000 − 1 of its schedule."""
        B, T = x_BTHWC.shape[:2]
        x = join_condition(x_BTHWC, self.dit.params, self.condition_BTHWC)
        is_packed = self.lengths is not None
        count = B if self.lengths is None else len(self.lengths)
        out: Tensor = self.dit(
            x if is_packed else x.flatten(0, 1),
            (level_of(t) - 1).to(x.device).expand(count),
            self.text.expand(count),
            frames=() if is_packed else [T] * B,
            rope_scale=self.rope_scale,
            attention=self.attention,
            runner=self.runner,
            lengths=self.lengths,
            branches=at_work(self.branches, t),
        )
        return out if is_packed else out.unflatten(0, (B, T))


def bind(net: nn.Module, known: Known, run: Pass) -> Denoiser:
    """The transformer as a denoiser of the track `video`; see ``model/denoiser.Bind``."""
    assert isinstance(net, DiffusionTransformer3D)
    inner = DiscreteDenoiser(
        net,
        run.text,
        rope_scale=run.rope_scale,
        attention=run.attention,
        runner=run.runner,
        lengths=run.lengths,
        branches=run.branches,
    )
    return OnTrack(VIDEO, WithChannels(inner, known, run), "v")
