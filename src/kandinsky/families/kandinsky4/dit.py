"""The Kandinsky 4 multimodal transformer: parameters, groups, blocks from small to large, the network.

Legend: B clips; F latent frames of all clips together; T frames of one clip; H W C rows, columns, channels; P tokens of
one frame; S visual tokens; L text tokens; G groups; D width; N heads; K head width; E width of the time vector.
Tensor names are the official ones.

Clips of different length are concatenated to one batch: everything but attention works on frames,
and attention takes all clips of the same length at once. No cumulative lengths live on the device, so nothing waits.

Precision: as in ``families/kandinsky5/dit.py``. The compute type is the type of the weights; modulation, normalisation,
rotation and gated sums are islands in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4.params import DiTParams, Groups, check_groups
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
from kandinsky.ops.attention import AttentionSpec, attention
from kandinsky.ops.blocks import BlockRunner, run_all
from kandinsky.ops.branches import Beside, Site, added
from kandinsky.ops.fused import modulated
from kandinsky.ops.linear import Linear, linear_gelu
from kandinsky.ops.packed import Segments, Size, laid, taken
from kandinsky.ops.precision import island, linear_float32
from kandinsky.ops.rope import Rotation, axis_angles

Kind = Literal["local", "global"]
POSITIONS = 128  # rows of the official tables of angles


def to_groups(x_BTHW: Tensor, groups: Groups, kind: Kind) -> Tensor:
    """Cut the rows and columns of clips into groups.

    Args:
        x_BTHW: [B, T, H, W, …].
        kind: "local" makes contiguous windows; "global" deals rows and columns out in turn, so that group (i, j) has
            the rows = i and columns = j modulo their numbers.

    Returns:
        [B, G, T·H·W / G, …], groups and tokens row-major; a view where there is one group.

    Raises:
        RequestError: The grid cannot be divided.
    """
    return _group_view(x_BTHW, groups, kind).flatten(3, 5).flatten(1, 2)


def _group_view(x_BTHW: Tensor, groups: Groups, kind: Kind) -> Tensor:
    """``to_groups`` without moving anything: [B, rows of groups, columns of groups, T, rows, columns, …]."""
    _, gh, gw = groups
    H, W = x_BTHW.shape[2:4]
    if H % gh or W % gw:
        raise RequestError(f"{H} x {W} tokens (rows x columns) cannot be cut into {gh} x {gw} groups: use other sizes")
    if kind == "local":
        out: Tensor = x_BTHW.unflatten(3, (gw, -1)).unflatten(2, (gh, -1)).movedim((2, 4), (1, 2))
        return out
    out = x_BTHW.unflatten(3, (-1, gw)).unflatten(2, (-1, gh)).movedim((3, 5), (1, 2))
    return out


def join_text(x_BTHWNK: Tensor, text_BLNK: Tensor, groups: Groups, kind: Kind) -> Tensor:
    """Each group's visual tokens with all text tokens behind them, [B·G, T·H·W / G + L, N, K].

    Every number is copied once, from its place in the grid to its place in the sequence.
    """
    cut = _group_view(x_BTHWNK, groups, kind)
    size, S, L = cut.shape[3:6], cut.shape[3:6].numel(), text_BLNK.shape[1]
    joint = cut.new_empty(*cut.shape[:3], S + L, *cut.shape[6:])
    joint[:, :, :, :S].unflatten(3, size).copy_(cut)
    joint[:, :, :, S:] = text_BLNK[:, None, None]
    return joint.flatten(0, 2)


def from_groups(x_BGS: Tensor, grid: Sequence[int], groups: Groups, kind: Kind) -> Tensor:
    """Inverse of ``to_groups``: [B, G, S, …] → [B, T, H, W, …]. ``grid``: (T, H, W)."""
    T, H, W = grid
    _, gh, gw = groups
    x = x_BGS.unflatten(2, (T, H // gh, W // gw)).unflatten(1, (gh, gw))
    x = x.movedim((1, 2), (2, 4)) if kind == "local" else x.movedim((1, 2), (3, 5))
    out: Tensor = x.flatten(4, 5).flatten(2, 3)
    return out


@dataclass(frozen=True, slots=True)
class Pack:
    """Clips concatenated along time: the number of frames of each, and the tokens of a frame.

    Attributes:
        frames: Number of frames of each clip.
        grid: Rows and columns of tokens.
        buckets: For each length that occurs, its frames and the numbers of its clips.
    """

    frames: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def count(self) -> int:
        return len(self.frames)

    @property
    def buckets(self) -> list[tuple[int, list[int]]]:
        return [(n, [i for i, own in enumerate(self.frames) if own == n]) for n in dict.fromkeys(self.frames)]

    def split(self, x_FP: Tensor) -> list[Tensor]:
        """Frames [F, P, …] → one tensor a bucket, [clips, T, H, W, …]; views where all clips are equally long."""
        if len(self.buckets) == 1:
            return [x_FP.unflatten(0, (self.count, -1)).unflatten(2, self.grid)]
        clips = x_FP.split(self.frames)
        return [torch.stack([clips[i] for i in members]).unflatten(2, self.grid) for _, members in self.buckets]

    def join(self, buckets: Sequence[Tensor]) -> Tensor:
        """Inverse of ``split``."""
        flat = [x.flatten(2, 3) for x in buckets]
        if len(flat) == 1:
            return flat[0].flatten(0, 1)
        clips: dict[int, Tensor] = {}
        for (_, members), bucket in zip(self.buckets, flat, strict=True):
            clips |= dict(zip(members, bucket, strict=True))
        return torch.cat([clips[i] for i in range(self.count)])


class TextProjection(nn.Module):
    """Projects text embeddings to the width of the network."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.in_layer = Linear(text_dim, width)

    def forward(self, text_BLC: Tensor) -> Tensor:
        out: Tensor = self.in_layer(text_BLC)
        return out


class RotaryTables(nn.Module):
    """Angles position · frequency of 128 positions on each axis, kept as tensors since the official file keeps them.

    Source: ai-forever/Kandinsky-4, kandinsky/model/nn.py, RoPE3D.
    """

    def __init__(self, axes_dims: tuple[int, int, int]) -> None:
        super().__init__()
        self.axes_dims = axes_dims
        for name, table in self.tables().items():
            self.register_buffer(name, table)

    def tables(self) -> dict[str, Tensor]:
        """The exact tables by name, float32."""
        positions = torch.arange(POSITIONS)
        return {f"args_{axis}": axis_angles(positions, width) for axis, width in enumerate(self.axes_dims)}

    def forward(self, pack: Pack, scales: Sequence[float], rounding: str) -> Tensor:
        """Angles of a pack's tokens, [F, P, K/2] float32; frames count from 0 in every clip.

        Args:
            scales: Divisors of the (t, h, w) angles.
            rounding: See ``DiTParams.rope_angles``.

        Raises:
            RequestError: The grid has more than 128 positions.
        """
        sizes = (max(pack.frames), *pack.grid)
        if max(sizes) > POSITIONS:
            shown = " x ".join(map(str, sizes))
            raise RequestError(f"a clip of {shown} tokens (frames x rows x columns) is too large: {POSITIONS} at most")
        axes = []
        for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
            table = self.get_buffer(f"args_{axis}")[:size]
            if rounding == "exact":
                table = axis_angles(torch.arange(size, device=table.device), self.axes_dims[axis])
            elif rounding == "bfloat16":
                table = table.bfloat16()
            axes.append(table.float() / scale)
        frames = torch.cat([axes[0][:count] for count in pack.frames])
        H, W = pack.grid
        parts = (frames[:, None, None], axes[1][None, :, None], axes[2][None, None, :])
        return torch.cat([part.expand(len(frames), H, W, -1) for part in parts], dim=-1).flatten(1, 2)


class HeadNorm(nn.LayerNorm):
    """LayerNorm over a head's width, one weight for all heads, in float32 (the result stays float32)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class JointAttention(nn.Module):
    """Visual and text tokens attend to each other, within groups of visual tokens; the text is in every group.

    Quirk: only the first group updates the text, so with groups it sees a part of the clip.
    Source: ai-forever/Kandinsky-4, kandinsky/model/nn.py, MultiheadSelfAttention and its local and global grouping.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_query_key_value = Linear(width, 3 * width)
        self.query_norm = HeadNorm(head_dim)
        self.key_norm = HeadNorm(head_dim)
        self.output_layer = Linear(width, width)

    def forward(self, visual_FPD: Tensor, text_BLD: Tensor, where: Where, kind: Kind) -> tuple[Tensor, Tensor]:
        """Returns updates of both streams, in their shapes."""
        visual, text = self._heads(visual_FPD, where.rotation), self._heads(text_BLD, None)
        seen_FPNK, heard_BLNK = where.mix(visual, text, where, kind)
        return self.output_layer(seen_FPNK.flatten(-2)), self.output_layer(heard_BLNK.flatten(-2))

    def _heads(self, x: Tensor, rotation: Rotation | None) -> list[Tensor]:
        q, k, v = self.to_query_key_value(x).unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        with island(x):
            q, k = self.query_norm(q), self.key_norm(k)
            if rotation is not None:
                q, k = rotation(q), rotation(k)
            return [q.to(v.dtype), k.to(v.dtype), v]


def attend_jointly(visual: Sequence[Tensor], text: Sequence[Tensor], where: Where, kind: Kind) -> tuple[Tensor, Tensor]:
    """Attention over queries, keys and values [F, P, N, K] and [B, L, N, K] → [F, P, N, K], [B, L, N, K]."""
    pack = where.pack
    buckets = [pack.split(part) for part in visual]
    seen: list[Tensor] = []
    heard: dict[int, Tensor] = {}
    for bucket, (_, members) in enumerate(pack.buckets):
        own = list(text) if len(members) == pack.count else [part[members] for part in text]
        mask_BL = None if where.mask_BL is None else where.mask_BL[members]
        visual_BTHWNK, text_one = _attend([part[bucket] for part in buckets], own, mask_BL, where, kind)
        seen.append(visual_BTHWNK)
        heard |= dict(zip(members, text_one, strict=True))
    answers = text_one if len(seen) == 1 else torch.stack([heard[i] for i in range(pack.count)])
    return pack.join(seen), answers


def _attend(
    visual: Sequence[Tensor], text: Sequence[Tensor], mask_BL: Tensor | None, where: Where, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Equally long clips: query, key and value [B, T, H, W, N, K] and [B, L, N, K] → their shapes."""
    groups = where.groups
    G, grid = groups[1] * groups[2], visual[0].shape[1:4]
    joint = [join_text(v, t, groups, kind) for v, t in zip(visual, text, strict=True)]
    L = text[0].shape[1]
    S = joint[0].shape[1] - L
    mask = None
    if mask_BL is not None:
        mask = torch.cat((mask_BL.new_ones(len(mask_BL), S), mask_BL), dim=1).repeat_interleave(G, dim=0)
    mixed = attention(joint[0], joint[1], joint[2], mask=mask, backend=where.backend)
    seen, heard = mixed.unflatten(0, (-1, G)).split((S, L), dim=2)
    return from_groups(seen, grid, groups, kind), heard[:, 0]


# (visual and text queries, keys and values, where, kind) -> what both see; as ``attend_jointly``
JointMix = Callable[[Sequence[Tensor], Sequence[Tensor], "Where", Kind], tuple[Tensor, Tensor]]


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = Linear(width, hidden)
        self.out_layer = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_layer(linear_gelu(self.in_layer, x))
        return out


@dataclass(frozen=True, slots=True)
class Where:
    """What all blocks of a forward pass share: the layout of the clips, their groups, the rotation of their tokens.

    Attributes:
        mix: The attention function itself.
        segments: Where the clips of a sequence lie, whose grids differ; their tokens are [1, S, D] then.
        clips: Of these clips, by themselves.
    """

    pack: Pack
    groups: Groups
    rotation: Rotation
    mask_BL: Tensor | None
    backend: str
    mix: JointMix = attend_jointly
    segments: Segments | None = None
    clips: tuple[Where, ...] = ()

    @classmethod
    def of_sequence(cls, clips: Sequence[Where], mask_BL: Tensor | None) -> Where:
        """Several clips, of one frame or grid or another, that lie end to end."""
        tokens = tuple(one.pack.frames[0] * one.pack.grid[0] * one.pack.grid[1] for one in clips)
        segments = Segments(tokens, (1,) * len(clips))
        first, rotation = clips[0], Rotation.joined([one.rotation for one in clips])
        return cls(first.pack, first.groups, rotation, mask_BL, first.backend, attend_each, segments, tuple(clips))

    def per_frame(self, m_B1D: Tensor) -> Tensor:
        """A clip's vector for each of its frames, [F, 1, D]; one clip's vector stays as it is, for broadcasting.

        Of a sequence, [1, clips, D].
        """
        if self.segments is not None:
            return m_B1D.transpose(0, 1)
        frames = self.pack.frames
        if len(frames) == 1:
            return m_B1D
        return torch.cat([m.expand(count, -1, -1) for m, count in zip(m_B1D.split(1), frames, strict=True)])


def attend_each(visual: Sequence[Tensor], text: Sequence[Tensor], where: Where, kind: Kind) -> tuple[Tensor, Tensor]:
    """``attend_jointly`` of clips that lie end to end, [1, S, N, K]; each sees itself and its own text."""
    assert where.segments is not None
    parts = [x.split(where.segments.tokens, dim=1) for x in visual]
    seen, heard = [], []
    for number, own in enumerate(where.clips):
        frames = own.pack.frames[0]
        of_clip = [x[number].unflatten(1, (frames, -1))[0] for x in parts]
        answer, update = own.mix(of_clip, [x[number : number + 1] for x in text], own, kind)
        seen.append(answer.flatten(0, 1)[None])
        heard.append(update)
    return torch.cat(seen, dim=1), torch.cat(heard)


def modulated_norm(
    norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor, segments: Segments | None = None
) -> Tensor:
    """LayerNorm(x)·(1 + scale) + shift in float32, rounded to the type of x.

    The norm's own weight and bias are taken into scale and shift, which have a row a frame instead of a row a token;
    with ``segments``, a row a clip.
    """
    if segments is not None:
        return segments.each(partial(modulated_norm, norm), (x,), (shift, scale))
    with island(x):
        scale = scale + 1.0
        shift, scale = torch.addcmul(shift, norm.bias.float(), scale), norm.weight.float() * scale
    return modulated(x, shift, scale, norm.eps)


class Block(nn.Module):
    """Joint attention, then feed-forward. Both streams share everything but the modulation."""

    def __init__(self, params: DiTParams, kind: Kind) -> None:
        super().__init__()
        D = params.model_dim
        self.kind: Kind = kind
        self.visual_modulation = Modulation(params.time_dim, D, 6)
        self.text_modulation = Modulation(params.time_dim, D, 6)
        self.self_attention_norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.self_attention = JointAttention(D, params.head_dim)
        self.feed_forward_norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.feed_forward = FeedForward(D, params.ff_dim)

    def forward(self, visual_FPD: Tensor, text_BLD: Tensor, e_BE: Tensor, where: Where) -> tuple[Tensor, Tensor]:
        v = [where.per_frame(part) for part in self.visual_modulation(e_BE)]
        t = self.text_modulation(e_BE)
        norm = self.self_attention_norm
        segments = where.segments
        visual_update, text_update = self.self_attention(
            modulated_norm(norm, visual_FPD, v[0], v[1], segments),
            modulated_norm(norm, text_BLD, t[0], t[1]),
            where,
            self.kind,
        )
        visual_FPD = gated_sum(visual_FPD, v[2], visual_update, segments)
        text_BLD = gated_sum(text_BLD, t[2], text_update)
        return self._fed(visual_FPD, *v[3:], segments=segments), self._fed(text_BLD, *t[3:])

    def _fed(
        self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, *, segments: Segments | None = None
    ) -> Tensor:
        normed = modulated_norm(self.feed_forward_norm, x, shift, scale, segments)
        return gated_sum(x, gate, self.feed_forward(normed), segments)


class OutLayer(nn.Module):
    """Tokens back to a latent velocity."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.patch = params.patch_size
        pt, ph, pw = params.patch_size
        self.norm = nn.LayerNorm(params.model_dim, eps=NORM_EPS)
        self.modulation_out = Linear(params.time_dim, 2 * params.model_dim)
        self.out_layer = Linear(params.model_dim, pt * ph * pw * params.out_visual_dim)
        nn.init.zeros_(self.modulation_out.weight)
        nn.init.zeros_(self.modulation_out.bias)

    def forward(self, visual_FPD: Tensor, e_BE: Tensor, where: Where) -> Tensor:
        """Returns [F, H, W, C]; of a sequence its places [1, their number, 1, 1, C], see ``ops/packed.laid``."""
        with island(e_BE):
            m = linear_float32(self.modulation_out, F.silu(e_BE)).unsqueeze(1)
        shift, scale = where.per_frame(m).chunk(2, dim=-1)
        x = self.out_layer(modulated_norm(self.norm, visual_FPD, shift, scale, where.segments))
        if where.segments is not None:
            clips = zip(x.split(where.segments.tokens, dim=1), where.clips, strict=True)
            grids = [(part, (own.pack.frames[0], *own.pack.grid)) for part, own in clips]
            return laid([unpatchify(part.unflatten(1, grid), self.patch) for part, grid in grids])
        return unpatchify(x.unflatten(1, where.pack.grid)[None], self.patch)[0]


class DiffusionTransformer3D(nn.Module):
    """Predicts v of noisy latent clips, given text embeddings and time.

    Source: ai-forever/Kandinsky-4, kandinsky/model/dit.py, DiffusionTransformer3D.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.params = params
        self.time_embeddings = TimeEmbeddings(params.model_dim, params.time_dim)
        self.text_embeddings = TextProjection(params.in_text_dim, params.model_dim)
        self.visual_embeddings = VisualEmbeddings(params.input_channels, params.model_dim, params.patch_size)
        self.rope_embeddings = RotaryTables(params.axes_dims)
        self.transformer_blocks = nn.ModuleList(
            nn.ModuleList((Block(params, "local"), Block(params, "global"))) for _ in range(params.num_blocks)
        )
        self.out_layer = OutLayer(params)

    def blocks(self) -> Iterator[nn.Module]:
        """All blocks in order, local and global in turn."""
        for pair in self.transformer_blocks:
            yield from pair.children()

    @property
    def offload_blocks(self) -> tuple[str, ...]:
        """The lists whose members may visit their device one by one (``runtime/blocks.py``)."""
        return tuple(f"transformer_blocks.{number}" for number in range(self.params.num_blocks))

    def made_tensors(self) -> dict[str, Tensor]:
        """Tensors that a weight file may omit, with their values: the official file is read without strictness."""
        return {f"rope_embeddings.{name}": table for name, table in self.rope_embeddings.tables().items()}

    def forward(
        self,
        x_FHWC: Tensor,
        time_B: Tensor,
        text: TextEmbeddings,
        *,
        frames: Sequence[int] = (),
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        groups: Groups | None = None,
        attention: AttentionSpec | None = None,
        runner: BlockRunner | None = None,
        lengths: Sequence[Size] | None = None,
        branches: Sequence[Beside] = (),
    ) -> Tensor:
        """Predict v = √ā·noise − √(1 − ā)·clean.

        Args:
            x_FHWC: Frames of all clips, concatenated, with condition channels if the network has them.
            time_B: Index of the discrete schedule, 0 … 999, of each clip.
            text: Token states [B, L, C]; a mask hides tokens from all others. Pooled states are ignored.
            frames: Of each clip; the clips of a pack may differ in nothing else. Not with ``lengths``.
            rope_scale: Divisors of the (t, h, w) angles.
            groups: Instead of ``params.num_groups``.
            attention: Only its backend is used.
            runner: Runs the 2·num_blocks blocks on the visual tokens [F, P, D]; the text goes along beside them.
            lengths: Frames, rows and columns of the latents of several clips that lie end to end in ``x_FHWC``
                [1, their places, 1, 1, C], see ``ops/packed.laid``. Each has a text and a time of its own, and sees
                itself alone.
            branches: Beside the blocks, of clips of one length; a copied block has a text of its own, which goes on
                from the network's. Not with ``lengths``.

        Returns:
            [F, H, W, out_visual_dim], in the compute type (autocast's type under autocast); with ``lengths`` as
            ``x_FHWC``.

        Raises:
            RequestError: The clips cannot be patched, grouped or positioned, or do not add up.
        """
        spec = attention or AttentionSpec()
        if spec.type != "dense":
            raise RequestError(f"attention type `{spec.type}` is not for Kandinsky 4: use `dense`; it has groups")
        count = len(frames) if lengths is None else len(lengths)
        adds_up = lengths is not None or (sum(frames) == len(x_FHWC) and min(frames) > 0)
        if not adds_up or not count == len(time_B) == len(text.tokens_BLC):
            raise RequestError(
                f"clips of {list(frames)} frames do not fit {len(x_FHWC)} frames, {len(time_B)} times and "
                f"{len(text.tokens_BLC)} texts"
            )
        groups = groups or self.params.num_groups
        check_groups(groups)
        compute = self.visual_embeddings.in_layer.weight.dtype
        e_BE = self.time_embeddings(time_B)
        text_BLD = self.text_embeddings(text.tokens_BLC.to(compute))
        if lengths is None:
            x_FhwD = self.visual_embeddings(x_FHWC.to(compute)[None])[0]
            pack = Pack(tuple(frames), (x_FhwD.shape[1], x_FhwD.shape[2]))
            with island(x_FHWC):
                rotation = Rotation(self.rope_embeddings(pack, rope_scale, self.params.rope_angles))
            visual_FPD = x_FhwD.flatten(1, 2)
            where = Where(pack, groups, rotation, text.mask_BL, spec.backend)
        else:
            patches = [patchify(x, self.params.patch_size) for x in taken(x_FHWC.to(compute), lengths)]
            visual_FPD = self.visual_embeddings.of_patches(torch.cat([x.flatten(1, 3) for x in patches], dim=1))
            clips = []
            for number, x in enumerate(patches):
                pack, mask = Pack((x.shape[1],), (x.shape[2], x.shape[3])), text.mask_BL
                with island(x_FHWC):
                    angles = self.rope_embeddings(pack, rope_scale, self.params.rope_angles)
                own = None if mask is None else mask[number : number + 1]
                clips.append(Where(pack, groups, Rotation(angles.flatten(0, 1)), own, spec.backend))
            where = Where.of_sequence(clips, text.mask_BL)

        blocks = list(self.blocks())
        begun_BLD = text_BLD

        def site_of(place: int) -> Site:
            own_BLD = begun_BLD

            def run_beside(number: int, block: nn.Module, x_FPD: Tensor) -> Tensor:
                nonlocal own_BLD
                x_FPD, own_BLD = block(x_FPD, begun_BLD if number == 0 else own_BLD, e_BE, where)
                return x_FPD

            return Site(
                place=lambda x_BTHWD: x_BTHWD.flatten(0, 1).flatten(1, 2),
                clips=lambda x_FPD: x_FPD.unflatten(0, (count, -1)).flatten(1, 2),
                back=lambda x_BSD: x_BSD.unflatten(1, (-1, where.pack.grid[0] * where.pack.grid[1])).flatten(0, 1),
                run=run_beside,
            )

        behind = added(branches, site_of) if branches else None

        def run(number: int, visual_FPD: Tensor) -> Tensor:
            nonlocal text_BLD
            out_FPD, text_BLD = blocks[number](visual_FPD, text_BLD, e_BE, where)
            return out_FPD if behind is None else behind(number, visual_FPD, out_FPD)

        visual_FPD = (runner or run_all)(visual_FPD, len(blocks), run)
        out: Tensor = self.out_layer(visual_FPD, e_BE, where)
        return out
