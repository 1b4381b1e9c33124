"""Training the second Nano's decoder on random scenes; its encoder is linear and fixed.

python -m kandinsky.lab.nano2.decoder --data FOLDER --out runs/nano2/decoder --steps 4000
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.lab.nano2.catalogue import Sources
from kandinsky.lab.nano2.compose import render
from kandinsky.lab.nano2.linear import fit_linear
from kandinsky.lab.nano2.scenes import draw_scene
from kandinsky.train.loop import LoopSettings, run
from kandinsky.train.objective import Loss, One


class DecoderObjective:
    """Clips of random scenes, decoded from their latents, half of which get noise: a generated latent is never exact.

    Args:
        noise: Largest standard deviation of that noise.
        clips: Of a batch.
        side: Of a clip in pixels.
    """

    def __init__(
        self, sources: Sources, linear: LinearPatches, *, noise: float = 0.25, clips: int = 2, side: int = 192
    ) -> None:
        self.sources, self.noise, self.clips, self.side = sources, noise, clips, side
        self.network = NanoDecoder(linear)

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        clips = []
        for _ in range(self.clips):
            alone = self.sources.wordless if rng.random() < 0.25 and self.sources.wordless else None
            scene = draw_scene(rng, concepts=len(self.sources), wordless=alone)
            clips.append(render(scene, self.sources, side=self.side))
        return torch.stack(clips)

    def loss(self, batch: Tensor, generator: torch.Generator) -> Loss:
        """Squared error, and small absolute errors of the differences in space and time, which sharpen edges."""
        latents = self.network.linear.encode(batch)
        noisy = torch.rand(len(batch), generator=generator) < 0.5
        level = self.noise * torch.rand(len(batch), generator=generator) * noisy
        latents = latents + level.view(-1, 1, 1, 1, 1) * torch.randn(latents.shape, generator=generator)
        out = self.network(latents)
        edges = sum(F.l1_loss(out.diff(dim=d), batch.diff(dim=d)) for d in (1, 2, 3))
        error = (out - batch).pow(2)
        figures: dict[str, float] = {}
        if not noisy.all():
            mean = error.detach()[~noisy].flatten(1).mean(1)
            figures["psnr"] = float((10 * torch.log10(4 / mean)).mean())
        return Loss(error.mean() + 0.05 * edges, figures=figures)


@torch.no_grad()
def judge_decoder(network: NanoDecoder, sources: Sources, *, count: int = 24) -> dict[str, float]:
    """PSNR of scenes with emoji that no training saw, with the linear decoder and with the learned one."""
    rng = np.random.default_rng(7)
    linear: list[float] = []
    learned: list[float] = []
    for _ in range(count):
        real = render(draw_scene(rng, concepts=len(sources), wordless=sources.held), sources)[None]
        latents = network.linear.encode(real)
        with torch.autocast(latents.device.type, dtype=torch.bfloat16):
            made = network(latents)
        for values, clip in ((linear, network.linear.decode(latents)), (learned, made)):
            values.append(10 * math.log10(4 / float((clip.clamp(-1, 1) - real).pow(2).mean())))
    return {"linear_db": float(np.mean(linear)), "decoder_db": float(np.mean(learned)), "worst_db": min(learned)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    sources = Sources(options.data)
    objective = DecoderObjective(sources, fit_linear(sources, options.out.parent / "linear.safetensors"))
    settings = LoopSettings(steps=options.steps, lr=1e-3, warmup=100, decay=0.5, weight_decay=0.0, checkpoint_minutes=5)
    averaged = run(One(objective), settings, options.out)["network"]
    objective.network.load_state_dict(averaged, strict=False)
    save_file({k: v.contiguous() for k, v in objective.network.state_dict().items()}, options.out / "vae.safetensors")
    figures = judge_decoder(objective.network, sources)
    logging.info("%s", figures)
    (options.out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
