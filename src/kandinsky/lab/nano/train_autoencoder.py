"""Objective of nano's autoencoder: reconstruct clips from slightly noisy latents.

Legend: B batch, T frames, H W pixels, C colours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.params import NanoAutoencoderParams
from kandinsky.lab.nano.emoji import CAMERAS, POSITIONS, SCALES, Clips, Scene, composite
from kandinsky.train.objective import Loss


def to_unit(frames: np.ndarray) -> Tensor:
    """uint8 [..., 3] → float32 [-1, 1]."""
    return torch.from_numpy(frames).float().div_(127.5).sub_(1)


def random_scene(rng: np.random.Generator, colours: list[tuple[int, int, int]], *, plain: float = 0.5) -> Scene:
    """A scene without a caption: half of the backgrounds are of the palette, half any colour."""
    if rng.random() < 0.5:
        rgb = colours[rng.integers(len(colours))]
    else:
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        rgb = (red, green, blue)
    if rng.random() < plain:
        return Scene(rgb)
    move = rng.random() < 0.4
    return Scene(
        rgb,
        position=str(rng.choice(list(POSITIONS))) if rng.random() < 0.5 else None,
        scale=str(rng.choice(list(SCALES))) if rng.random() < 0.5 else None,
        camera=str(rng.choice(CAMERAS)) if move else None,
    )


class AutoencoderObjective:
    """Composited clips, for ``reconstruction_loss``."""

    def __init__(
        self,
        cache: Path,
        rows: list[int],
        colours: list[tuple[int, int, int]],
        params: NanoAutoencoderParams,
        *,
        side: int = 96,
        frames: int = 9,
        batch: int = 4,
        latent_noise: float = 0.1,
        frozen_encoder: bool = False,
        pca_clips: int = 300,
    ) -> None:
        self.clips, self.rows, self.colours = Clips(cache), rows, colours
        self.side, self.frames, self.batch_size, self.latent_noise = side, frames, batch, latent_noise
        self.network = NanoAutoencoder(params)
        self.explained = self._start(pca_clips)
        fixed = ["to_latent"] + (["encoder_in", "encoder_blocks", "encoder_out"] if frozen_encoder else [])
        for name in fixed:
            self.network.get_submodule(name).requires_grad_(False)

    def clip(self, rng: np.random.Generator, frames: int) -> np.ndarray:
        """One random composited clip, uint8 [frames, side, side, 3]."""
        row = self.rows[rng.integers(len(self.rows))]
        start = int(rng.integers(0, self.clips.rgba_NTHWC.shape[1] - frames + 1))
        whole = self.clips.rgba_NTHWC[row, start : start + frames]
        return composite(np.asarray(whole), random_scene(rng, self.colours), side=self.side)

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return to_unit(np.stack([self.clip(rng, self.frames) for _ in range(self.batch_size)]))

    def loss(self, batch: Tensor, generator: torch.Generator) -> Loss:
        return reconstruction_loss(self.network, batch, self.latent_noise, generator)

    def _start(self, clips: int) -> float:
        rng = np.random.default_rng(0)
        patches = [
            self.network.patchify(to_unit(self.clip(rng, self.frames))[None]).flatten(0, 3) for _ in range(clips)
        ]
        return self.network.start_from_pca(torch.cat(patches))


def reconstruction_loss(
    network: NanoAutoencoder, batch_BTHWC: Tensor, latent_noise: float, generator: torch.Generator
) -> Loss:
    """Mean squared error plus a small L1 on neighbouring pixels' differences, which sharpens edges.

    Half of the latents get noise: a generated latent is never exact, so the decoder learns to forgive.
    """
    device = next(network.parameters()).device
    batch = batch_BTHWC.to(device)
    latents = network.encode(batch).float()
    level = latent_noise * torch.rand((len(batch), 1, 1, 1, 1), generator=generator).round()
    noisy = latents + (level * torch.randn(latents.shape, generator=generator)).to(device)
    out = network.decode(noisy).float()
    error = F.mse_loss(out, batch)
    edges = sum(F.l1_loss(out.diff(dim=d), batch.diff(dim=d)) for d in (2, 3))
    clean = (level.flatten() == 0).to(device)
    psnr = (
        float(10 * torch.log10(4 / (out - batch)[clean].detach().pow(2).flatten(1).mean(1)).mean())
        if clean.any()
        else float("nan")
    )
    parts = {} if np.isnan(psnr) else {"psnr": psnr}
    parts["latent_std"] = float(latents.detach().std())
    # Latents must not drift from unit variance while the encoder learns.
    return Loss(error + 0.05 * edges + 1e-3 * (latents.pow(2).mean() - 1).pow(2), figures=parts)
