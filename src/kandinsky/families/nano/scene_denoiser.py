"""The second Nano's transformer as a denoiser: it is given a draft of its scene, and predicts the clean latent.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

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
        known: Of known frames only the mask is given, since they are pinned in the latent. A first frame that the state
            follows with the noise of each time is seen without it, since drafts go on from a given first frame.
    """

    def __init__(self, inner: VelocityDenoiser, packed_BG: Tensor, known: Known) -> None:
        self.inner, self.packed_BG, self.known = inner, packed_BG, known
        self._told: Told | None = None
        follow = known.follow.get(VIDEO)
        self._first = known.clean[VIDEO][:, :1] if follow is not None and bool(follow[:, 0].all()) else None

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        seen_BTHWC = x_BTHWC
        if self._first is not None:
            seen_BTHWC = torch.cat([self._first.to(x_BTHWC).expand_as(x_BTHWC[:, :1]), x_BTHWC[:, 1:]], dim=1)
        if self._told is None:
            self._told = self._tell(seen_BTHWC)
            self.inner.condition_BTHWC = self._told.condition_BTHWC
        time = t.to(x_BTHWC).clamp_min(LEAST_TIME).expand(len(x_BTHWC))
        guess = self._told.guess(x_BTHWC, time)
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
        mask = self.known.mask.get(VIDEO)
        if self._first is not None:
            mask = torch.zeros(1, frames, 1, 1, 1, dtype=torch.bool) if mask is None else mask.clone()
            mask[:, :1] = True
        return tell(
            net.portraits,
            net.linear,
            self.inner.text.expand(B),
            self.packed_BG.to(x_BTHWC.device).expand(B, -1),
            x_BTHWC,
            None if mask is None else mask.to(x_BTHWC.device),
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
    return OnTrack(VIDEO, SceneVelocity(inner, packed.to(torch.float32), known), "velocity")
