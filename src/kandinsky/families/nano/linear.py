"""The linear half of the second Nano's autoencoder: 8 × 16 × 16 pixels to one latent vector, by principal components.

The encoder is linear, so a clip over any background is the sum of its parts' latents; whatever can be learned is
learned by the decoder. The first frame of a clip, 1 × 16 × 16 pixels, has a map of its own, since a frame that is
repeated eight times would spend the components of motion on nothing: an image is therefore kept far better than a
clip.

Legend: B batch, T frames (pixel frames outside, latent frames inside), H W rows and columns, C channels, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kandinsky.families.nano.params import LinearPatchParams as LinearPatchParams


class LinearMap(nn.Module):
    """Patches to latents and back: principal components, partly whitened. Buffers only: it is computed, not trained."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.zeros(channels, features))
        self.register_buffer("scale", torch.ones(channels))

    def encode(self, patches: Tensor) -> Tensor:
        """Latents in float32, whatever type the map is kept in."""
        return ((patches.float() - self.mean.float()) @ self.basis.float().T) * self.scale.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Patches in float32."""
        return (latents.float() / self.scale.float()) @ self.basis.float() + self.mean.float()

    def fit(self, covariance: Tensor, mean: Tensor, *, whitening: float = 0.6, rounds: int = 12) -> float:
        """Set the map from the covariance of patches, by subspace iteration.

        Args:
            whitening: 0 keeps the spread of the components, 1 makes all equal; their mean variance is 1 in any case.

        Returns:
            The share of the variance that the components hold.
        """
        channels = len(self.basis)
        generator = torch.Generator().manual_seed(0)
        width = min(len(covariance), channels + 64)
        basis = torch.linalg.qr(torch.randn(len(covariance), width, generator=generator))[0]
        for _ in range(rounds):
            basis = torch.linalg.qr(covariance @ basis)[0]
        values, turn = torch.linalg.eigh(basis.T @ covariance @ basis)
        basis = (basis @ turn).flip(1)[:, :channels].T
        spread = values.flip(0)[:channels].clamp_min(1e-9).sqrt()
        scale = spread ** (-whitening)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.scale.copy_(scale / (spread * scale).pow(2).mean().sqrt())
        return float(spread.pow(2).sum() / covariance.diagonal().sum())

    def energy(self) -> Tensor:
        """Squared pixels of one unit of each channel, [C], of mean 1."""
        energy = self.scale.pow(-2)
        return energy / energy.mean()


class LinearPatches(nn.Module):
    """Clip ↔ latent by two linear maps, for the first frame and for the groups of ``temporal`` frames after it."""

    def __init__(self, params: LinearPatchParams | None = None) -> None:
        super().__init__()
        self.params = p = params or LinearPatchParams()
        self.still = LinearMap(p.still_features, p.latent_channels)
        self.moving = LinearMap(p.moving_features, p.latent_channels)

    def patchify(self, video_BTHWC: Tensor) -> Tensor:
        """Groups of equal length to patches.

        Returns:
            [B, T, H/16, W/16, n·768] of a video [B, T·n, H, W, 3], n being ``temporal`` or 1.
        """
        p = self.params
        B, T, H, W, _ = video_BTHWC.shape
        n = p.temporal if T % p.temporal == 0 else 1
        x = video_BTHWC.reshape(B, T // n, n, H // p.spatial, p.spatial, W // p.spatial, p.spatial, 3)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)

    def unpatchify(self, patches_BTHWF: Tensor) -> Tensor:
        """The inverse of ``patchify``."""
        p = self.params
        B, T, H, W, F = patches_BTHWF.shape
        n = F // p.still_features
        x = patches_BTHWF.reshape(B, T, H, W, n, p.spatial, p.spatial, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(B, T * n, H * p.spatial, W * p.spatial, 3)

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Encode a video in [-1, 1] of 1 + 8k frames to latents of k + 1 frames."""
        latents = self.still.encode(self.patchify(video_BTHWC[:, :1]))
        if video_BTHWC.shape[1] == 1:
            return latents
        return torch.cat([latents, self.moving.encode(self.patchify(video_BTHWC[:, 1:]))], dim=1)

    def held(self, first_BHWC: Tensor) -> Tensor:
        """Latents of a first frame that stands still for the frames of a later latent frame."""
        frame = self.still.decode(first_BHWC)
        return self.moving.encode(frame.repeat(*[1] * (frame.dim() - 1), self.params.temporal))

    def decode(self, latents_BTHWC: Tensor, *, begins: bool = True) -> Tensor:
        """Decode latents to a video in about [-1, 1] of 1 + 8 (T − 1) frames; patch borders are visible.

        Args:
            latents_BTHWC: The latents.
            begins: Whether the first of them is the first of a clip; else there are 8 T frames.
        """
        if not begins:
            return self.unpatchify(self.moving.decode(latents_BTHWC))
        video = self.unpatchify(self.still.decode(latents_BTHWC[:, :1]))
        if latents_BTHWC.shape[1] == 1:
            return video
        return torch.cat([video, self.decode(latents_BTHWC[:, 1:], begins=False)], dim=1)
