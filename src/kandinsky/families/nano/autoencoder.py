"""Nano's autoencoder: causal in time, 4 frames × 8 × 8 pixels to one latent vector.

It starts as PCA of its patches (``start_from_pca``) and learns what PCA cannot say: both directions are a fixed
linear map plus a residual network that begins at zero. All spatial convolutions pad with zeros, so latents near the
border look different and carry position. It computes in the type of its weights.

Legend: B batch, T frames (pixel frames outside, latent frames inside), H W rows and columns, C channels, D width.
A clip has T = 1 + 4k pixel frames and k + 1 latent frames: the first frame is repeated in front, as in other causal
video autoencoders, so a still image is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.params import NanoAutoencoderParams


class CausalBlock(nn.Module):
    """Residual block: a 3×3 convolution in space, then a linear layer over this frame and the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(2 * width, width, 1)
        for tensor in self.time.parameters():
            nn.init.zeros_(tensor)

    def forward(self, x_BTCHW: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            last: What it returned of the frame before; None where these are a clip's first frames.

        Returns:
            The frames, and what the next ones need of the last of them.
        """
        h = self.space(F.silu(self.norm(x_BTCHW.flatten(0, 1))))
        h = F.silu(h).unflatten(0, x_BTCHW.shape[:2])
        before = torch.cat([h[:, :1] if last is None else last, h[:, :-1]], dim=1)
        out = self.time(torch.cat([h, before], dim=2).flatten(0, 1))
        return x_BTCHW + out.unflatten(0, x_BTCHW.shape[:2]), h[:, -1:]


class _Carry:
    """What blocks leave for the next piece of a clip, in the order they run."""

    def __init__(self, carried: Sequence[Tensor] | None) -> None:
        self._given = None if carried is None else iter(carried)
        self.left: list[Tensor] = []

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        out, last = block(x, None if self._given is None else next(self._given))
        self.left.append(last)
        assert isinstance(out, Tensor)
        return out


class NanoAutoencoder(nn.Module):
    """Clip ↔ latent. Both directions are deterministic; latents have about unit variance."""

    def __init__(self, params: NanoAutoencoderParams) -> None:
        super().__init__()
        self.params = p = params
        self.to_latent = nn.Linear(p.patch_features, p.latent_channels)
        self.encoder_in = nn.Conv2d(p.patch_features, p.encoder_width, 1)
        self.encoder_blocks = nn.ModuleList(CausalBlock(p.encoder_width) for _ in range(p.encoder_blocks))
        self.encoder_out = nn.Conv2d(p.encoder_width, p.latent_channels, 1)
        self.from_latent = nn.Linear(p.latent_channels, p.patch_features)
        self.decoder_in = nn.Conv2d(p.latent_channels, p.width, 3, padding=1)
        self.decoder_blocks = nn.ModuleList(CausalBlock(p.width) for _ in range(p.blocks))
        self.to_fine = nn.Conv2d(p.width, p.temporal * 4 * p.fine_width, 1)
        self.fine_blocks = nn.ModuleList(CausalBlock(p.fine_width) for _ in range(p.fine_blocks))
        self.fine_out = nn.Conv2d(p.fine_width, 3 * (p.spatial // 2) ** 2, 3, padding=1)
        for last in (self.encoder_out, self.fine_out):
            for tensor in last.parameters():
                nn.init.zeros_(tensor)

    @property
    def temporal(self) -> int:
        """Pixel frames per latent frame, except the first."""
        return self.params.temporal

    @property
    def reach(self) -> int:
        """How many latent frames before its own a pixel frame depends on: each block looks one frame back."""
        return self.params.blocks + -(-self.params.fine_blocks // self.params.temporal)

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Encode a video in [-1, 1] of 1 + 4k frames to latents of k + 1 frames."""
        patches = self.patchify(video_BTHWC.to(self.to_latent.weight.dtype))
        h = self.encoder_in(patches.movedim(-1, 2).flatten(0, 1)).unflatten(0, patches.shape[:2])
        for block in self.encoder_blocks:
            h, _ = block(h)
        residual = self.encoder_out(h.flatten(0, 1)).unflatten(0, patches.shape[:2])
        out: Tensor = self.to_latent(patches) + residual.movedim(2, -1)
        return out

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Decode latents to a video in about [-1, 1] (not clamped) of 1 + 4 (T − 1) frames."""
        return self.decode_more(latents_BTHWC)[0]

    def decode_more(
        self, latents_BTHWC: Tensor, carried: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``model/autoencoder.CarryingAutoencoder``: together the pieces are what ``decode`` gives of the whole."""
        carry, is_first = _Carry(carried), carried is None
        B, T, H, W, _ = latents_BTHWC.shape
        latents_BTHWC = latents_BTHWC.to(self.from_latent.weight.dtype)
        skipped = self.params.temporal - 1 if is_first else 0  # of the first latent frame only the last frame is one
        coarse = self._unfolded(self.from_latent(latents_BTHWC))[:, skipped:]
        h = self.decoder_in(latents_BTHWC.movedim(-1, 2).flatten(0, 1)).unflatten(0, (B, T))
        for block in self.decoder_blocks:
            h = carry(block, h)
        p = self.params
        h = self.to_fine(h.flatten(0, 1)).view(B, T, p.temporal, p.fine_width, 2, 2, H, W)
        h = h.permute(0, 1, 2, 3, 6, 4, 7, 5).reshape(B, T * p.temporal, p.fine_width, 2 * H, 2 * W)
        h = h[:, skipped:]
        for block in self.fine_blocks:
            h = carry(block, h)
        fine = F.pixel_shuffle(self.fine_out(h.flatten(0, 1)), p.spatial // 2).unflatten(0, (B, -1))
        return coarse + fine.movedim(2, -1), carry.left

    def forward(self, video_BTHWC: Tensor) -> Tensor:
        return self.decode(self.encode(video_BTHWC))

    def patchify(self, video_BTHWC: Tensor) -> Tensor:
        """[B, 1+4k, H, W, 3] → [B, k+1, H/8, W/8, 768]; features ordered (time, row, column, colour)."""
        p = self.params
        B, T, H, W, _ = video_BTHWC.shape
        front = video_BTHWC[:, :1].expand(-1, p.temporal - 1, -1, -1, -1)
        x = torch.cat([front, video_BTHWC], dim=1)
        x = x.reshape(B, (T - 1) // p.temporal + 1, p.temporal, H // p.spatial, p.spatial, W // p.spatial, p.spatial, 3)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of ``patchify``: drops the repeated frames in front."""
        return self._unfolded(patches)[:, self.params.temporal - 1 :]

    def _unfolded(self, patches: Tensor) -> Tensor:
        p = self.params
        B, T, H, W, _ = patches.shape
        x = patches.reshape(B, T, H, W, p.temporal, p.spatial, p.spatial, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(B, T * p.temporal, H * p.spatial, W * p.spatial, 3)

    def start_from_pca(self, patches_NF: Tensor, *, whitening: float = 0.6) -> float:
        """Set both linear maps to the PCA of sample patches.

        Args:
            patches_NF: Sample patches [N, 768].
            whitening: 0 keeps the variances of the components, 1 makes all equal; in between, a denoiser gets more of
                the important components. The mean variance is 1 in any case.

        Returns:
            Share of the patches' variance that the kept components explain.
        """
        x = patches_NF.double()
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        values, vectors = torch.linalg.eigh(covariance)
        keep = self.params.latent_channels
        spread, basis = values[-keep:].flip(0).clamp_min(1e-9).sqrt(), vectors[:, -keep:].flip(1)
        scale = spread ** (-whitening)
        scale = scale / (spread * scale).pow(2).mean().sqrt()
        with torch.no_grad():
            self.to_latent.weight.copy_((basis * scale).T)
            self.to_latent.bias.copy_(-(mean @ basis) * scale)
            self.from_latent.weight.copy_(basis / scale)
            self.from_latent.bias.copy_(mean)
        return float(spread.pow(2).sum() / values.sum())
