"""The Kandinsky 5 diffusion transformer: parameters, blocks from small to large, the network.

Legend: B batch; T H W C latent frames, rows, columns, channels; S visual tokens; L text tokens; D width; N heads;
K head width; E width of the conditioning vector (time_dim). Tensor names are the official ones, so that official
files load as they are. Positions, frequencies and masks are made in ``forward``: the network has no buffers.

Precision: the compute type is the type of the weights, and the token stream is kept in it. The islands of
``ops/precision.py`` run in float32 always. Under autocast the matrix products are rounded and the stream stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.parts.transformer import (
    NORM_EPS,
    Modulation,
    TimeEmbeddings,
    VisualEmbeddings,
    gated_sum,
    patchify,
    unpatchify,
)
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec, attention, leaves_open
from kandinsky.ops.blocks import BlockRunner, Mix, run_all
from kandinsky.ops.branches import Beside, Site, added
from kandinsky.ops.causal import ChunkTexts, causal_mix, turns_itself
from kandinsky.ops.fused import modulated, normed_heads
from kandinsky.ops.key_values import KeyValues
from kandinsky.ops.linear import Linear, linear_gelu
from kandinsky.ops.nabla import KeptBlocks, Nabla
from kandinsky.ops.native import products
from kandinsky.ops.packed import Segments, Size, laid, taken
from kandinsky.ops.precision import island
from kandinsky.ops.rope import Rotation, Unturned, axis_angles, grid_angles

# torch's default for float32 input of RMSNorm, which the official module leaves unset
HEAD_NORM_EPS = torch.finfo(torch.float32).eps


class TextProjection(nn.Module):
    """Linear, then LayerNorm in float32; the result returns to the compute type."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.in_layer = Linear(text_dim, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, text: Tensor) -> Tensor:
        x = self.in_layer(text)
        with island(x):
            norm = self.norm
            x = F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return x.to(self.in_layer.weight.dtype)


def modulated_norm(x_BSD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, segments: Segments | None = None) -> Tensor:
    """LayerNorm(x)·(1 + scale) + shift in float32, rounded to the type of x; T is 1, or frames in the order of S.

    With ``segments``, of each of the clips that they divide S and T into.
    """
    if segments is not None:
        return segments.each(modulated_norm, (x_BSD,), (shift_BTD, scale_BTD))
    return modulated(x_BSD, shift_BTD, scale_BTD + 1.0, NORM_EPS)


class HeadNorm(nn.Module):
    """RMSNorm over a head's width, one weight for all heads, and the turn behind it; in float32, rounded once.

    What is given may be overwritten.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BSNK: Tensor, rotation: Rotation | None = None) -> Tensor:
        return normed_heads(x_BSNK, self.weight, HEAD_NORM_EPS, rotation)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, and rotary positions where given."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_query = Linear(width, width)
        self.to_key = Linear(width, width)
        self.to_value = Linear(width, width)
        self.query_norm = HeadNorm(head_dim)
        self.key_norm = HeadNorm(head_dim)
        self.out_layer = Linear(width, width)

    def forward(
        self,
        x_BSD: Tensor,
        context_BLD: Tensor | None = None,
        *,
        rotation: Rotation | None = None,
        mix: Mix = attention,
    ) -> Tensor:
        """Self attention, or cross attention to ``context_BLD``. ``mix`` is the attention proper."""
        context = x_BSD if context_BLD is None else context_BLD
        heads = (-1, self.head_dim)
        q_BSNK = self.to_query(x_BSD).unflatten(-1, heads)
        k_BLNK = self.to_key(context).unflatten(-1, heads)
        v_BLNK = self.to_value(context).unflatten(-1, heads)
        q_BSNK, k_BLNK = self.query_norm(q_BSNK, rotation), self.key_norm(k_BLNK, rotation)
        out: Tensor = self.out_layer(mix(q_BSNK, k_BLNK, v_BLNK).flatten(-2))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = Linear(width, hidden, bias=False)
        self.out_layer = Linear(hidden, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.out_layer(linear_gelu(self.in_layer, x_BSD))
        return out


class TextBlock(nn.Module):
    """Self attention and feed-forward over the text tokens, modulated by the time."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.text_modulation = Modulation(params.time_dim, params.model_dim, 6)
        self.self_attention = Attention(params.model_dim, params.head_dim)
        self.feed_forward = FeedForward(params.model_dim, params.ff_dim)

    def forward(self, text_BLD: Tensor, e_BE: Tensor, rotation: Rotation, mask_BL: Tensor | None) -> Tensor:
        made = products.block(
            text_BLD,
            e_BE,
            self.text_modulation,
            self.self_attention,
            self.feed_forward,
            rotation=rotation,
            norm_eps=NORM_EPS,
            heads_eps=HEAD_NORM_EPS,
            mask=mask_BL,
        )
        if made is not None:
            return made
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.text_modulation(e_BE)
        normed = modulated_norm(text_BLD, shift, scale)
        mix = partial(attention, mask=mask_BL)
        text_BLD = gated_sum(text_BLD, gate, self.self_attention(normed, rotation=rotation, mix=mix))
        normed = modulated_norm(text_BLD, ff_shift, ff_scale)
        return gated_sum(text_BLD, ff_gate, self.feed_forward(normed))


class VisualBlock(nn.Module):
    """Self attention over the clip, cross attention to the text, feed-forward."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.visual_modulation = Modulation(params.time_dim, params.model_dim, 9)
        self.self_attention = Attention(params.model_dim, params.head_dim)
        self.cross_attention = Attention(params.model_dim, params.head_dim)
        self.feed_forward = FeedForward(params.model_dim, params.ff_dim)

    def forward(
        self,
        x_BSD: Tensor,
        text_BLD: Tensor,
        e: Tensor,
        rotation: Rotation,
        told: Tensor | ChunkTexts | None,
        mix: Mix,
        segments: Segments | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            e: [B, E], or [B, T, E], one for each frame.
            told: Text tokens that count, [B, L]; or how each chunk sees a text of its own.
            mix: The attention among the visual tokens.
            segments: Of several clips in one sequence; B is 1 then, but that of the texts, one for each clip. Or of
                unequal parts of the frames of a clip, each with a row of ``e``.
        """
        if segments is None and not isinstance(told, ChunkTexts) and leaves_open(mix):
            made = products.block(
                x_BSD,
                e,
                self.visual_modulation,
                self.self_attention,
                self.feed_forward,
                rotation=rotation,
                norm_eps=NORM_EPS,
                heads_eps=HEAD_NORM_EPS,
                cross=self.cross_attention,
                text_BLD=text_BLD,
                mask=told,
            )
            if made is not None:
                return made
        m = self.visual_modulation(e)
        normed = modulated_norm(x_BSD, m[0], m[1], segments)
        x_BSD = gated_sum(x_BSD, m[2], self.self_attention(normed, rotation=rotation, mix=mix), segments)
        normed = modulated_norm(x_BSD, m[3], m[4], segments)
        to_text: Mix = told if isinstance(told, ChunkTexts) else partial(attention, mask=told)
        if segments is not None and segments.texts and not isinstance(told, ChunkTexts):
            to_text = segments.to_texts(told)
        x_BSD = gated_sum(x_BSD, m[5], self.cross_attention(normed, text_BLD, mix=to_text), segments)
        normed = modulated_norm(x_BSD, m[6], m[7], segments)
        return gated_sum(x_BSD, m[8], self.feed_forward(normed), segments)


class OutLayer(nn.Module):
    """Tokens back to a latent velocity."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.patch = params.patch_size
        pt, ph, pw = params.patch_size
        self.modulation = Modulation(params.time_dim, params.model_dim, 2)
        self.out_layer = Linear(params.model_dim, pt * ph * pw * params.out_visual_dim)

    def forward(self, x_BSD: Tensor, e: Tensor, layout: VisualLayout | PackedLayout) -> Tensor:
        shift, scale = self.modulation(e)
        x = self.out_layer(modulated_norm(x_BSD, shift, scale, layout.segments))
        return layout.latent(x, self.patch)


@dataclass(frozen=True, slots=True)
class VisualLayout:
    """What follows from a clip's size alone: computed once for all passes of a generation and both its branches.

    Attributes:
        grid: Frames, rows, columns of tokens.
        rotation: Rotary angles in the order in which the visual blocks see the tokens.
        attention: As given.
        nabla: Order and window of block-sparse attention; None if attention is dense.
    """

    grid: tuple[int, int, int]
    rotation: Rotation
    attention: AttentionSpec
    nabla: Nabla | None = None
    segments: ClassVar[None] = None

    @property
    def turns(self) -> Rotation:
        """The turns of tokens before attention."""
        return Unturned.of(self.rotation) if turns_itself(self.attention) else self.rotation

    def arrange(self, x_BSD: Tensor) -> Tensor:
        """Row-major tokens in the order in which the visual blocks see them."""
        return x_BSD if self.nabla is None else self.nabla.order.arrange(x_BSD)

    def restore(self, x_BSD: Tensor) -> Tensor:
        """The way back."""
        return x_BSD if self.nabla is None else self.nabla.order.restore(x_BSD)

    def latent(self, x_BSC: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Tokens as a latent."""
        return unpatchify(x_BSC.unflatten(1, self.grid), patch)

    def mix(self, layer: int, kept: KeptBlocks | None = None) -> Mix:
        """The attention among the visual tokens of one layer; it reports the share of blocks kept to ``kept``."""
        if self.attention.type == "causal":
            return causal_mix(self.attention, self.grid[0], self.rotation if turns_itself(self.attention) else None)
        if self.nabla is None:
            return partial(attention, backend=self.attention.backend)
        return partial(self.nabla.attend, note=None if kept is None else partial(kept.note, layer))


@dataclass(frozen=True, slots=True)
class NextLayout:
    """The layout of a chunk of frames behind those that are remembered.

    Attributes:
        whole: Of all frames that the chunk sees, with itself.
        memory: Of those before it.
    """

    whole: VisualLayout
    memory: KeyValues
    segments: ClassVar[None] = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Of the chunk."""
        frames, rows, columns = self.whole.grid
        return frames - self.memory.frames, rows, columns

    @property
    def turns(self) -> Rotation:
        """Nothing is turned before the attention, which turns what is remembered too."""
        return Unturned.of(self.whole.rotation)

    def arrange(self, x_BSD: Tensor) -> Tensor:
        """As ``VisualLayout``."""
        return x_BSD

    def restore(self, x_BSD: Tensor) -> Tensor:
        """As ``VisualLayout``."""
        return x_BSD

    def latent(self, x_BSC: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """As ``VisualLayout``."""
        return unpatchify(x_BSC.unflatten(1, self.grid), patch)

    def mix(self, layer: int, kept: KeptBlocks | None = None) -> Mix:
        """As ``VisualLayout``, with what is remembered."""
        return self.memory.mix(layer, self.whole.rotation)


class PackedLayout:
    """The layouts of clips that lie in one sequence; each has positions, order and attention of its own.

    Args:
        layouts: Of each clip.
        by_frame: Whether each frame has a time of its own.
        texts: Of each prompt the tokens that count.
        chunks: Of each clip the frames of its chunks, where each of these has a text of its own.
    """

    def __init__(
        self,
        layouts: Sequence[VisualLayout],
        *,
        by_frame: bool,
        texts: Sequence[int],
        chunks: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.layouts = layouts
        frames = [(one.grid[0],) for one in layouts] if chunks is None else chunks
        each = [(count, math.prod(one.grid[1:])) for one, own in zip(layouts, frames, strict=True) for count in own]
        tokens, rows = (tuple(n * size for n, size in each), tuple(n if by_frame else 1 for n, _ in each))
        self.segments = Segments(tokens, rows, tuple(texts))
        whole = tuple(math.prod(one.grid) for one in layouts)
        self.clips = Segments(whole, (1,) * len(whole))
        self.turns = type(layouts[0].turns).joined([one.turns for one in layouts])

    def arrange(self, x_BSD: Tensor) -> Tensor:
        """As ``VisualLayout``."""
        return self._each(x_BSD, [one.arrange for one in self.layouts])

    def restore(self, x_BSD: Tensor) -> Tensor:
        """As ``VisualLayout``."""
        return self._each(x_BSD, [one.restore for one in self.layouts])

    def latent(self, x_BSC: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Tokens as latents end to end, see ``ops/packed.laid``."""
        parts = x_BSC.split(self.clips.tokens, dim=1)
        return laid([one.latent(x, patch) for one, x in zip(self.layouts, parts, strict=True)])

    def mix(self, layer: int, kept: KeptBlocks | None = None) -> Mix:
        """As ``VisualLayout``, within each clip; of block-sparse attention nothing is reported."""
        first = self.layouts[0].attention
        if first.type == "dense":
            return self.clips.within(first.backend)
        return self.clips.mixed([one.mix(layer) for one in self.layouts])

    def _each(self, x_BSD: Tensor, changes: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        if all(one.nabla is None for one in self.layouts):
            return x_BSD
        parts = x_BSD.split(self.clips.tokens, dim=1)
        return torch.cat([change(x) for change, x in zip(changes, parts, strict=True)], dim=1)


def _same(x_BSD: Tensor) -> Tensor:
    return x_BSD


class DiffusionTransformer3D(nn.Module):
    """Predicts the velocity of a noisy latent clip, given text embeddings and time.

    Source: kandinskylab/kandinsky-5, kandinsky/models/dit.py, DiffusionTransformer3D; batched here.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.params = params
        self.time_embeddings = TimeEmbeddings(params.model_dim, params.time_dim)
        self.text_embeddings = TextProjection(params.in_text_dim, params.model_dim)
        self.pooled_text_embeddings = TextProjection(params.in_text_dim2, params.time_dim)
        self.visual_embeddings = VisualEmbeddings(params.input_channels, params.model_dim, params.patch_size)
        self.text_transformer_blocks = nn.ModuleList(TextBlock(params) for _ in range(params.num_text_blocks))
        self.visual_transformer_blocks = nn.ModuleList(VisualBlock(params) for _ in range(params.num_visual_blocks))
        self.out_layer = OutLayer(params)

    def layout(
        self,
        grid: tuple[int, int, int],
        device: torch.device,
        *,
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        attention: AttentionSpec | None = None,
        positions: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> VisualLayout:
        """What ``forward`` needs for a clip of ``grid`` tokens (frames, rows, columns); arguments as there."""
        spec = attention or AttentionSpec()
        if positions is None:
            t, h, w = (torch.arange(size, device=device) for size in grid)
            positions = (t, h, w)
        angles_SK = grid_angles(positions, self.params.axes_dims, rope_scale)
        nabla = None
        if spec.type == "nabla":
            nabla = Nabla.of(grid, spec, device)
            angles_SK = angles_SK[nabla.order.order_S]
        return VisualLayout(grid, Rotation(angles_SK), spec, nabla)

    def blocks(self) -> Iterator[nn.Module]:
        """The visual blocks in order."""
        yield from self.visual_transformer_blocks

    def forward(
        self,
        x_BTHWC: Tensor,
        time: Tensor,
        text: TextEmbeddings,
        *,
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        attention: AttentionSpec | None = None,
        positions: tuple[Tensor, Tensor, Tensor] | None = None,
        text_positions: Tensor | None = None,
        runner: BlockRunner | None = None,
        layout: VisualLayout | Sequence[VisualLayout] | None = None,
        kept: KeptBlocks | None = None,
        lengths: Sequence[Size] | None = None,
        memory: KeyValues | None = None,
        branches: Sequence[Beside] = (),
    ) -> Tensor:
        """Predict the velocity (noise − clean).

        Args:
            x_BTHWC: Latent with its condition channels, ``params.input_channels`` in all.
            time: T·1000, float32, 0 … 1000: [B]; or [B, T], one for each latent frame (diffusion forcing, Chen et al.
                2024, arXiv 2407.01392). The text stream, which belongs to all frames, then has the largest; under
                causal attention each chunk has one of its own, at the largest of its frames, so that nothing it is told
                comes from a later chunk.
            text: Token states [B, L, C], pooled states, mask.
            rope_scale: Divisors of the (t, h, w) angles.
            attention: The visual self attention.
            positions: Positions of the visual tokens; 0, 1, 2 … by default.
            text_positions: Positions of the text tokens; 0, 1, 2 … by default.
            runner: Runs the visual blocks; by default all of them in turn.
            layout: Result of ``layout`` for this size, to reuse for many passes; then ``rope_scale``, ``attention``
                and ``positions`` are its own. With ``lengths``, that of each clip.
            kept: Records what block-sparse attention keeps.
            lengths: Frames, rows and columns of the latents of several clips that lie end to end in ``x_BTHWC``
                [1, their places, 1, 1, C], see ``ops/packed.laid``. Each has a text and a time of its own, and sees
                itself alone. ``time`` is [clips], or [1, frames of all], one for each.
            memory: What is remembered of earlier chunks, of which ``x_BTHWC`` is the next; ``layout`` is then that of
                all frames it sees, with itself.
            branches: Beside the visual blocks; not with ``lengths`` or ``memory``.

        Returns:
            [B, T, H, W, out_visual_dim], in the compute type (autocast's type under autocast); with ``lengths`` as
            ``x_BTHWC``.

        Raises:
            RequestError: The latent cannot be patched.
            BackendError: An attention backend is not available.
        """
        compute = self.visual_embeddings.in_layer.weight.dtype
        device = x_BTHWC.device

        pooled_BE = self.pooled_text_embeddings(text.pooled_BC.to(compute))
        text_BLD = self.text_embeddings(text.tokens_BLC.to(compute))
        grids, x_BSD = self._tokens(x_BTHWC.to(compute), lengths)
        before = 0 if memory is None else memory.frames
        with island(x_BTHWC):
            if text_positions is None:
                text_positions = torch.arange(text_BLD.shape[1], device=device)
            text_rotation = Rotation(axis_angles(text_positions, self.params.head_dim))
            if layout is None:
                layouts = [
                    self.layout(
                        (before + n, h, w), device, rope_scale=rope_scale, attention=attention, positions=positions
                    )
                    for n, h, w in grids
                ]
            else:
                layouts = [layout] if isinstance(layout, VisualLayout) else list(layout)
        if memory is not None:
            layouts = [NextLayout(one, memory) for one in layouts]  # type: ignore[misc]
        assert [one.grid for one in layouts] == grids, f"layouts of other tokens than {grids}"
        shown: VisualLayout | NextLayout | PackedLayout = layouts[0]
        chunks = self._chunks(layouts[0].attention, grids) if time.ndim == 2 and memory is None else None
        e_BE, e = self._conditioning(time, pooled_BE, None if lengths is None else [one[0] for one in lengths], chunks)
        mask_BL = text.mask_BL
        told: Tensor | ChunkTexts | None = mask_BL
        if chunks is not None:  # a text for each chunk, at its time
            counts = torch.tensor([len(one) for one in chunks] if lengths else len(chunks[0]), device=device)
            text_BLD = text_BLD.repeat_interleave(counts, dim=0)
            mask_BL = None if mask_BL is None else mask_BL.repeat_interleave(counts, dim=0)
        segments: Segments | None = None
        if lengths is not None:
            texts = [text_BLD.shape[1]] * len(text_BLD) if mask_BL is None else mask_BL.sum(1).tolist()
            shown = PackedLayout(layouts, by_frame=time.ndim == 2, texts=texts, chunks=chunks)
            segments, told = shown.segments, mask_BL

        for text_block in self.text_transformer_blocks:
            text_BLD = text_block(text_BLD, e_BE, text_rotation, mask_BL)
        if chunks is not None and lengths is None:
            text_BLD = text_BLD.unflatten(0, (len(x_BSD), -1)).flatten(1, 2)
            told = ChunkTexts(len(chunks[0]), math.prod(grids[0][1:]) * layouts[0].attention.frames, text.mask_BL)

        mixes = [shown.mix(number, kept) for number in range(len(self.visual_transformer_blocks))]

        more = () if segments is None else (segments,)

        def run_block(block: nn.Module, mix: Mix, x_BSD: Tensor) -> Tensor:
            out: Tensor = block(x_BSD, text_BLD, e, shown.turns, told, mix, *more)
            return out

        def place(x_BTHWD: Tensor) -> Tensor:
            return shown.arrange(x_BTHWD.flatten(1, 3))

        def run_beside(number: int, block: nn.Module, x_BSD: Tensor) -> Tensor:
            return run_block(block, shown.mix(number), x_BSD)

        site = Site(place, clips=_same, back=_same, run=run_beside)
        behind = added(branches, lambda number: site) if branches else None

        def run(number: int, x_BSD: Tensor) -> Tensor:
            out = run_block(self.visual_transformer_blocks[number], mixes[number], x_BSD)
            return out if behind is None else behind(number, x_BSD, out)

        if kept is not None:
            kept.begin()
        x_BSD = shown.arrange(x_BSD)
        x_BSD = (runner or run_all)(x_BSD, len(self.visual_transformer_blocks), run)
        out: Tensor = self.out_layer(shown.restore(x_BSD), e, shown)
        return out

    def _tokens(self, x_BTHWC: Tensor, lengths: Sequence[Size] | None) -> tuple[list[tuple[int, int, int]], Tensor]:
        """Grids of the clips, and the tokens of all, [B, S, D]."""
        if lengths is None:
            x = self.visual_embeddings(x_BTHWC)
            frames, rows, columns = x.shape[1:4]
            return [(frames, rows, columns)], x.flatten(1, 3)
        patches = [patchify(x, self.params.patch_size) for x in taken(x_BTHWC, lengths)]
        grids = [(x.shape[1], x.shape[2], x.shape[3]) for x in patches]
        return grids, self.visual_embeddings.of_patches(torch.cat([x.flatten(1, 3) for x in patches], dim=1))

    def _chunks(self, spec: AttentionSpec, grids: Sequence[tuple[int, int, int]]) -> list[tuple[int, ...]] | None:
        """Of each clip the frames of its chunks; None unless attention is causal."""
        if spec.type != "causal":
            return None
        return [tuple(min(spec.frames, n - at) for at in range(0, n, spec.frames)) for n, _, _ in grids]

    def _conditioning(
        self,
        time: Tensor,
        pooled_BE: Tensor,
        frames: Sequence[int] | None,
        chunks: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of times and pooled texts: the vectors of the texts [B, E], and those of the clips or their frames.

        Args:
            time: As for ``forward``.
            pooled_BE: Of each prompt.
            frames: Of each clip of a packed sequence, in which the vectors of the clips are [1, clips or frames, E].
            chunks: Frames of tokens of the chunks that have a text of their own, of a clip or of each packed one; the
                vectors of the texts are [B · chunks, E] then.
        """
        if time.ndim == 1:
            e_BE = self.time_embeddings(time) + pooled_BE
            return e_BE, e_BE if frames is None else e_BE[None]
        patch = self.params.patch_size[0]
        if frames is None:
            parts = [time] if chunks is None else time.split([n * patch for n in chunks[0]], dim=1)
            largest = torch.stack([one.amax(1) for one in parts], dim=1)
            of_texts = pooled_BE.repeat_interleave(len(parts), dim=0)
            return self.time_embeddings(largest.flatten()) + of_texts, self.frame_times(time) + pooled_BE[:, None]
        each = time.split(list(frames), dim=1)
        own = [(n,) for n in frames] if chunks is None else [[n * patch for n in one] for one in chunks]
        parts = [part for one, sizes in zip(each, own, strict=True) for part in one.split(list(sizes), dim=1)]
        counts = torch.tensor([len(sizes) for sizes in own], device=time.device)
        of_texts = pooled_BE.repeat_interleave(counts, dim=0)
        e_BE = self.time_embeddings(torch.cat([one.amax(1) for one in parts])) + of_texts
        rows = [self.frame_times(one) + pooled for one, pooled in zip(each, pooled_BE, strict=True)]
        return e_BE, torch.cat(rows, dim=1)

    def frame_times(self, time_BT: Tensor) -> Tensor:
        """Embeddings of the time of each frame of tokens, [B, T, E]."""
        step = self.params.patch_size[0]
        out: Tensor = self.time_embeddings(time_BT[:, ::step].flatten()).unflatten(0, (len(time_BT), -1))
        return out
