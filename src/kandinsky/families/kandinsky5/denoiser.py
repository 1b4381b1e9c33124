"""The transformer as a denoiser: what the sampling loop calls, for generation and conformance alike.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, VisualLayout
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, OnTrack, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.blocks import BlockRunner
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.ops.packed import Size, laid, taken
from kandinsky.ops.precision import island


class TakesCondition(Protocol):
    """Parameters of a network whose input may carry condition channels."""

    @property
    def in_visual_dim(self) -> int: ...

    @property
    def has_condition_channels(self) -> bool: ...


def join_condition(x_BTHWC: Tensor, params: TakesCondition, condition_BTHWC: Tensor | None = None) -> Tensor:
    """Append the condition channels to the latent.

    Args:
        x_BTHWC: The latent.
        params: Parameters of the network.
        condition_BTHWC: ``in_visual_dim`` condition channels and a mask; None = nothing given, zeros.

    Returns:
        [B, T, H, W, params.input_channels]; x itself if the network has no condition channels.

    Raises:
        RequestError: The network has no channels for the condition, or it has another shape.
    """
    if not params.has_condition_channels:
        if condition_BTHWC is not None:
            raise RequestError("this model has no condition channels: it cannot take an image")
        return x_BTHWC
    shape = (*x_BTHWC.shape[:-1], params.in_visual_dim + 1)
    if condition_BTHWC is None:
        condition_BTHWC = x_BTHWC.new_zeros(shape)
    elif condition_BTHWC.shape != shape:
        raise RequestError(f"condition channels have shape {tuple(condition_BTHWC.shape)}, the latent needs {shape}")
    return torch.cat((x_BTHWC, condition_BTHWC.to(x_BTHWC)), dim=-1)


def coordinate_channels(latent_BTHWC: Tensor) -> Tensor:
    """Condition channels that say where each place is: cosines and sines of row and column, and an empty mask.

    Rotary positions are relative only; a small network learns slowly from them alone where the borders are.

    Args:
        latent_BTHWC: Gives size, type and device; its C must be a multiple of 4.

    Returns:
        [B, T, H, W, C + 1].
    """
    B, T, H, W, C = latent_BTHWC.shape
    if C % 4:
        raise RequestError(f"coordinates need a multiple of 4 latent channels, not {C}")
    turns = torch.pi * torch.arange(1, C // 4 + 1, device=latent_BTHWC.device)

    def waves(size: int) -> Tensor:
        places = (torch.arange(size, device=latent_BTHWC.device) + 0.5) / size
        angles = torch.outer(places, turns)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    rows, columns = waves(H)[:, None].expand(H, W, -1), waves(W)[None].expand(H, W, -1)
    both = torch.cat((rows, columns, rows.new_zeros(H, W, 1)), dim=-1)
    return both.to(latent_BTHWC.dtype).expand(B, T, H, W, C + 1)


# What the condition channels hold where nothing is known, by the card's `sampling.condition`.
CONDITIONS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "zeros": lambda latent_BTHWC: None,
    "coordinates": coordinate_channels,
}


def condition_channels(latent_BTHWC: Tensor, known: Known, kind: str) -> Tensor | None:
    """The condition channels, [B, T, H, W, C + 1]; None for zeros.

    Args:
        latent_BTHWC: Gives size, type and device.
        known: Of known frames, only the mask is given, since they are pinned in the latent (FACTS section 3.4); of a
            source to edit, its latent and a mask of ones.
        kind: A key of ``CONDITIONS``.

    Returns:
        The channels.
    """
    if (source := known.extra.get("source")) is not None:
        return torch.cat((source, torch.ones_like(source[..., :1])), dim=-1).to(latent_BTHWC)
    plain = CONDITIONS[kind](latent_BTHWC)
    if (mask := known.mask.get(VIDEO)) is None:
        return plain
    shape = (*latent_BTHWC.shape[:-1], latent_BTHWC.shape[-1] + 1)
    marked = latent_BTHWC.new_zeros(shape) if plain is None else plain.clone()
    marked[..., -1:] = mask.to(marked.device, marked.dtype)
    return marked


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

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """Velocity at time t in [0, 1], one for all, [B] or [B, T].

        Quirk: t·1000 is formed in float32; its last bit shows in the result.
        """
        sizes = self.lengths or (_size(x_BTHWC),)
        layouts = [self._layout(size, x_BTHWC) for size in sizes]
        B = x_BTHWC.shape[0] if self.lengths is None else len(sizes)
        time = (t.float() * 1000.0).to(x_BTHWC.device)
        out: Tensor = self.dit(
            join_condition(x_BTHWC, self.dit.params, self.condition_BTHWC),
            time if time.ndim == 2 else time.expand(B),
            self.text.expand(B),
            runner=self.runner,
            layout=layouts[0] if self.lengths is None else layouts,
            kept=self.kept,
            lengths=self.lengths,
        )
        return out

    def _layout(self, size: Size, x_BTHWC: Tensor) -> VisualLayout:
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
    )
    return OnTrack(VIDEO, conditioned(inner, known, run), "velocity")


def _channels(x_BTHWC: Tensor, known: Known, run: Pass) -> Tensor | None:
    """The condition channels; of clips that lie end to end, each by itself, since coordinates are of a clip."""
    if run.lengths is None:
        return condition_channels(x_BTHWC, known, run.condition)
    lengths, found = run.lengths, []
    for number, x in enumerate(taken(x_BTHWC, lengths)):
        own = known.over(partial(_one_of, lengths, number))
        found.append(condition_channels(x, own, run.condition))
    if all(one is None for one in found):
        return None
    shape = (1, 1, 1, 1, x_BTHWC.shape[-1] + 1)
    sizes = zip(found, lengths, strict=True)
    return laid([x_BTHWC.new_zeros(shape).expand(1, *size, -1) if one is None else one for one, size in sizes])


def _one_of(lengths: Sequence[Size], number: int, x: Tensor) -> Tensor:
    return taken(x, lengths)[number]


class Conditioned(Protocol):
    """A denoiser of plain tensors that takes condition channels."""

    condition_BTHWC: Tensor | None

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor: ...


def conditioned(inner: Conditioned, known: Known, run: Pass) -> Callable[[Tensor, Tensor], Tensor]:
    """``inner`` with its condition channels, which are computed at the first call and shared by all passes."""

    def denoiser(x_BTHWC: Tensor, t: Tensor) -> Tensor:
        if "condition" not in run.shared:
            run.shared["condition"] = _channels(x_BTHWC, known, run)
        inner.condition_BTHWC = run.shared["condition"]
        return inner(x_BTHWC, t)

    return denoiser
