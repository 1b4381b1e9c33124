"""The second Nano's transformer as a denoiser: it is given a draft of its scene, and predicts the clean latent.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.denoiser import VelocityDenoiser
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.nano.draft import Told, tell
from kandinsky.families.nano.geometry import CANVAS, CHANNELS, LATENT_FRAMES, PACKED
from kandinsky.families.nano.scene_transformer import SceneTransformer
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, OnTrack, Pass
from kandinsky.model.values import TextEmbeddings

LEAST_TIME = 1e-3  # below it a velocity would be the difference of nearly equal numbers over nothing


class SceneVelocity:
    """What the clean estimate says of the velocity: (x − x̂0) / t, where x̂0 is the best guess and its correction.

    Args:
        inner: The bound transformer; its answer is the correction of the guess that it is given.
        packed_BG: Where the subjects of B prompts, or of one for all, stand; see ``geometry.py``.
        known: What is known of the clip. Where the state follows it with the noise of each time, it is seen without
            that noise, since drafts go on from what is known.
        since: See ``Pass``.
        began: See ``Pass``.
    """

    def __init__(
        self,
        inner: VelocityDenoiser,
        packed_BG: Tensor,
        known: Known,
        since: int = 0,
        began: Tensor | None = None,
    ) -> None:
        self.inner, self.packed_BG, self.since, self.began = inner, packed_BG, since, began
        self._follow, self._mask = known.follow.get(VIDEO), known.mask.get(VIDEO)
        self._clean = None if self._follow is None else known.clean[VIDEO]
        self._told: Told | None = None

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        seen_BTHWC = x_BTHWC
        if self._follow is not None and self._clean is not None:
            seen_BTHWC = torch.where(self._follow.to(x_BTHWC.device), self._clean.to(x_BTHWC), x_BTHWC)
        if self._told is None:
            self._told = self._tell(seen_BTHWC)
            self.inner.condition_BTHWC = self._told.condition_BTHWC
        time = t.to(x_BTHWC).clamp_min(LEAST_TIME).expand(len(x_BTHWC))
        guess = self._told.guess(seen_BTHWC, time)
        correction = self.inner(guess, t).to(x_BTHWC.dtype)
        clean = guess + torch.where(self._told.final_B.view(-1, 1, 1, 1, 1), 0, correction)
        return (x_BTHWC - clean) / time.view(-1, 1, 1, 1, 1)

    def _tell(self, x_BTHWC: Tensor) -> Told:
        B, frames, rows, columns, channels = x_BTHWC.shape
        if frames > LATENT_FRAMES or frames + rows + columns > CANVAS or rows != columns:
            raise RequestError(
                f"this model knows the places of a latent of {LATENT_FRAMES} frames of 12x12 at most, not of {frames} "
                f"frames of {columns}x{rows}: ask for no longer clip and no other size"
            )
        assert channels >= CHANNELS
        net = self.inner.dit
        assert isinstance(net, SceneTransformer)
        masks = [one.to(x_BTHWC.device) for one in (self._mask, self._follow) if one is not None]
        return tell(
            net.portraits,
            net.linear,
            self.inner.text.expand(B),
            self.packed_BG.to(x_BTHWC.device).expand(B, -1),
            x_BTHWC,
            functools.reduce(torch.logical_or, masks) if masks else None,
            since=self.since,
            began=None if self.began is None else self.began.to(x_BTHWC.device),
        )


def bind(net: nn.Module, known: Known, run: Pass) -> Denoiser:
    """The transformer as a denoiser of the track `video`; see ``model/denoiser.Bind``."""
    assert isinstance(net, DiffusionTransformer3D)
    width, pooled = net.params.in_text_dim2, run.text.pooled_BC
    packed = pooled[:, width:]
    if packed.shape[1] != PACKED:  # the embeddings of a benchmark say nothing of places
        packed = pooled.new_zeros(len(pooled), PACKED)
    inner = VelocityDenoiser(
        net,
        TextEmbeddings(run.text.tokens_BLC, pooled[:, :width], run.text.mask_BL),
        rope_scale=run.rope_scale,
        attention=run.attention,
        runner=run.runner,
        layouts=run.shared.setdefault("layouts", {}),
        kept=run.kept,
    )
    return OnTrack(VIDEO, SceneVelocity(inner, packed.to(torch.float32), known, run.since, run.began), "velocity")
