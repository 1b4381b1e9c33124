"""How a transformer becomes a denoiser, by the card's kind of transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kandinsky.diffusion.guidance import Denoiser
from kandinsky.errors import BackendError
from kandinsky.families.kandinsky4.denoiser import DiscreteDenoiser
from kandinsky.families.kandinsky5.denoiser import Layouts, VelocityDenoiser
from kandinsky.families.kandinsky5.dit import BlockRunner
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.model.values import TextStates
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.nabla import KeptBlocks


@dataclass(frozen=True, slots=True)
class Shared:
    """What the denoisers of one generation have in common.

    rope_scale, attention, condition_BTHWC: as in ``VelocityDenoiser``.
    layouts: filled by the first denoiser that runs.   kept: told what block-sparse attention keeps.
    """

    rope_scale: tuple[float, float, float]
    attention: AttentionSpec
    condition_BTHWC: Tensor | None = None
    layouts: Layouts = field(default_factory=dict)
    kept: KeptBlocks | None = None


Maker = Callable[[Any, TextStates, Shared, BlockRunner | None], Denoiser]


def _velocity(dit: Any, text: TextStates, shared: Shared, runner: BlockRunner | None) -> Denoiser:
    return VelocityDenoiser(
        dit,
        text,
        rope_scale=shared.rope_scale,
        attention=shared.attention,
        condition_BTHWC=shared.condition_BTHWC,
        runner=runner,
        layouts=shared.layouts,
        kept=shared.kept,
    )


def _discrete(dit: Any, text: TextStates, shared: Shared, runner: BlockRunner | None) -> Denoiser:
    return DiscreteDenoiser(
        dit,
        text,
        rope_scale=shared.rope_scale,
        attention=shared.attention,
        condition_BTHWC=shared.condition_BTHWC,
        runner=runner,
    )


def _unet(dit: Any, text: TextStates, shared: Shared, runner: BlockRunner | None) -> Denoiser:
    if runner is not None:
        raise BackendError("step caches are not built for U-Nets: use `none`")
    return UNetDenoiser(dit, text, condition_BTHWC=shared.condition_BTHWC)


DENOISERS: dict[str, Maker] = {"kandinsky5.dit": _velocity, "kandinsky4.dit": _discrete, "kandinsky3.unet": _unet}


def denoiser(kind: str, dit: Any, text: TextStates, shared: Shared, runner: BlockRunner | None = None) -> Denoiser:
    """A transformer bound to one prompt batch.

    Args:   kind: of the card's transformer.   runner: of its blocks, one object for each denoiser.
    Raises: BackendError for a kind without an entry.
    """
    if kind not in DENOISERS:
        raise BackendError(f"transformer `{kind}` is not built yet: this version knows {', '.join(DENOISERS)}")
    return DENOISERS[kind](dit, text, shared, runner)
