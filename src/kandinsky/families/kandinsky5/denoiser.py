"""The transformer as a denoiser: what the sampling loop calls, for generation and conformance alike.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor, nn

from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, VisualLayout
from kandinsky.families.parts.condition_channels import WithChannels, join_condition
from kandinsky.families.parts.two_passes import together
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, OnTrack, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.blocks import BlockRunner
from kandinsky.ops.branches import Beside, at_work
from kandinsky.ops.key_values import KeyValues
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.ops.packed import Size
from kandinsky.ops.precision import island

# Layouts by grid of tokens and device. Made by the caller for one generation, whose branches share it.
Layouts = dict[tuple[tuple[int, int, int], torch.device], VisualLayout]


@dataclass(eq=False, repr=False)
class VelocityDenoiser:
    """A transformer bound to one prompt batch; callable as ``(x_BTHWC, t) -> velocity_BTHWC``.

    Args:
        text: Embeddings of B prompts, or of one prompt for any B.
        rope_scale: See the network's ``forward``.
        attention: See the network's ``forward``.
        condition_BTHWC: Condition channels, see ``join_condition``.
        runner: Runs the visual blocks.
        layouts: Filled at the first call; share one among all denoisers of a generation (same scale and attention).
        kept: Records what block-sparse attention keeps.
        lengths: Of clips that lie end to end, see the network's ``forward``.
        memory: Of earlier chunks, see the network's ``forward``.
        branches: Beside the visual blocks, each at its own times.
    """

    dit: DiffusionTransformer3D
    text: TextEmbeddings
    _: KW_ONLY
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    attention: AttentionSpec | None = None
    condition_BTHWC: Tensor | None = None
    runner: BlockRunner | None = None
    layouts: Layouts = field(default_factory=dict)
    kept: KeptBlocks | None = None
    lengths: tuple[Size, ...] | None = None
    memory: KeyValues | None = None
    branches: tuple[Beside, ...] = ()

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """Velocity at time t in [0, 1], one for all, [B] or [B, T].

        Quirk: t·1000 is formed in float32; its last bit shows in the result.
        """
        return self._predict(x_BTHWC, t, self.text, self.condition_BTHWC)

    def pair(self, other: object) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """This pass and another as one of twice the batch; None if they differ in more than their texts.

        Small clips gain: a pass is many calls then. What works within a pass - caches, branches, memory, block-sparse
        and causal attention - stays with passes of its own.
        """
        if not isinstance(other, VelocityDenoiser) or other.dit is not self.dit:
            return None
        alone = (self.runner, other.runner, self.lengths, other.lengths, self.memory, other.memory)
        if any(one is not None for one in alone) or self.branches or other.branches:
            return None
        spec = self.attention or AttentionSpec()
        if spec.type != "dense" or spec != (other.attention or AttentionSpec()) or self.rope_scale != other.rope_scale:
            return None

        def run(x_BTHWC: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
            condition = self.condition_BTHWC
            return self._predict(x_BTHWC, t, text, None if condition is None else condition.repeat(2, 1, 1, 1, 1))

        return together(run, self.text, other.text)

    def _predict(self, x_BTHWC: Tensor, t: Tensor, text: TextEmbeddings, condition_BTHWC: Tensor | None) -> Tensor:
        sizes = self.lengths or (_size(x_BTHWC),)
        layouts = [self._layout(size, x_BTHWC) for size in sizes]
        B = x_BTHWC.shape[0] if self.lengths is None else len(sizes)
        time = (t.float() * 1000.0).to(x_BTHWC.device)
        out: Tensor = self.dit(
            join_condition(x_BTHWC, self.dit.params, condition_BTHWC),
            time if time.ndim == 2 else time.expand(B),
            text.expand(B),
            runner=self.runner,
            layout=layouts[0] if self.lengths is None else layouts,
            kept=self.kept,
            lengths=self.lengths,
            memory=self.memory,
            branches=at_work(self.branches, t),
        )
        return out

    def _layout(self, size: Size, x_BTHWC: Tensor) -> VisualLayout:
        if self.memory is not None:  # places of all that a chunk sees
            size = (self.memory.frames + size[0], *size[1:])
        frames, rows, columns = (side // patch for side, patch in zip(size, self.dit.params.patch_size, strict=True))
        grid, device = (frames, rows, columns), x_BTHWC.device
        if (grid, device) not in self.layouts:
            with island(x_BTHWC):
                layout = self.dit.layout(grid, device, rope_scale=self.rope_scale, attention=self.attention)
            self.layouts[grid, device] = layout
        return self.layouts[grid, device]


def _size(x_BTHWC: Tensor) -> Size:
    frames, rows, columns = x_BTHWC.shape[1:4]
    return frames, rows, columns


def bind(net: nn.Module, known: Known, run: Pass) -> Denoiser:
    """The transformer as a denoiser of the track `video`; see ``model/denoiser.Bind``."""
    assert isinstance(net, DiffusionTransformer3D)
    inner = VelocityDenoiser(
        net,
        run.text,
        rope_scale=run.rope_scale,
        attention=run.attention,
        runner=run.runner,
        layouts=run.shared.setdefault("layouts", {}),
        kept=run.kept,
        lengths=run.lengths,
        memory=run.memory,
        branches=run.branches,
    )
    return OnTrack(VIDEO, WithChannels(inner, known, run), "velocity", together=run.together)
