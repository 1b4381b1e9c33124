"""A run of the second Nano before it is a model of the package: its networks, and clips by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.scene_encoder import said_beside_image
from kandinsky.families.nano.scene_words import NOTHING, Said, said_of
from kandinsky.families.nano.scenes import Scene
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measures import to_clip
from kandinsky.lab.nano2.objective import STEPS, SceneDenoiser, network_params, sample
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.lab.nano2.word_list import read
from kandinsky.runtime.devices import mixed_precision


class Trained:
    """A run's networks.

    Args:
        run: Folder with ``linear.safetensors``, ``portraits.pt``, ``denoiser/checkpoint.pt`` and, where it is done,
            ``decoder/vae.safetensors``; without it clips show the borders of the linear decoder's patches.
        average: Which of the averaged weights.
    """

    def __init__(self, run: Path, *, average: int = 0) -> None:
        state = torch.load(run / "denoiser" / "checkpoint.pt", weights_only=True, mmap=True)
        self.step = int(state["step"])
        portraits = Portraits.read(run / "portraits.pt")
        self.scale_E = portraits.scale_E
        self.linear = LinearPatches()
        self.linear.load_state_dict(load_file(run / "linear.safetensors"))
        self.network = SceneDenoiser(network_params(), len(portraits.numbers_NPE))
        self.network.take(portraits, self.linear)
        self.network.load_state_dict(dict(self.network.named_buffers()) | state["averages"][average])
        self.network.eval()
        self.decoder: NanoDecoder | None = None
        if (run / "decoder" / "vae.safetensors").exists():
            self.decoder = NanoDecoder(self.linear)
            self.decoder.load_state_dict(load_file(run / "decoder" / "vae.safetensors"))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [-1, 1] by the learned decoder, or by the linear one where there is none yet."""
        if self.decoder is None:
            return self.linear.decode(latents)
        with mixed_precision(latents.device.type):
            out: Tensor = self.decoder(latents).float()
            return out

    @torch.no_grad()
    def make(
        self,
        said: Sequence[Said],
        places: Sequence[Scene | None],
        *,
        steps: int = STEPS,
        images: Sequence[Tensor] | None = None,
        batch: int = 12,
    ) -> list[Clip]:
        """Clips; ``images`` are first frames [1, H, W, 3] in [-1, 1]."""
        clips: list[Clip] = []
        for at in range(0, len(said), batch):
            first = None
            if images is not None:
                first = torch.cat([self.linear.encode(image[None])[:, 0] for image in images[at : at + batch]])
            part = slice(at, at + batch)
            latents = sample(self.network, said[part], places[part], seed=at, steps=steps, first_BHWC=first)
            clips += map(to_clip, self.decode(latents))
        return clips

    def __call__(self, texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]:
        """One clip a text, as the package's model makes it; ``images`` are first frames."""
        understood = [read(text) for text in texts]
        scenes = [one.scene for one in understood]
        if images is None:
            said = [NOTHING if scene is None else said_of(scene, still=False) for scene in scenes]
            return self.make(said, scenes, **fields)
        frames = [to_unit(image[None]) for image in images]
        return self.make([said_beside_image(one) for one in understood], scenes, images=frames, **fields)

    @torch.no_grad()
    def round_trip(self, clip: Clip) -> Clip:
        """Encoded and decoded."""
        return to_clip(self.decode(self.linear.encode(to_unit(clip)[None]))[0])
