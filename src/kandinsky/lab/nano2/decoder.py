"""Training the second Nano's decoder on random scenes; its encoder is linear and fixed.

    python -m kandinsky.lab.nano2.decoder --data FOLDER --out runs/nano2/decoder-exact
    python -m kandinsky.lab.nano2.decoder --data FOLDER --out runs/nano2/decoder \
        --start runs/nano2/decoder-exact/vae.safetensors --made

The first learns to decode latents of real clips. What it is given in use are latents that were made, and those lack
what the codes of portraits lose: the second learns to decode drafts too.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.lab.nano2.catalogue import Sources
from kandinsky.lab.nano2.linear import fit_linear
from kandinsky.lab.nano2.objective import KeptScenes, Mix
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.render import render
from kandinsky.runtime.devices import mixed_precision
from kandinsky.train.loop import LoopSettings, run
from kandinsky.train.objective import Loss, One

log = logging.getLogger(__name__)
EXACT_STEPS, MADE_STEPS = 1000, 1150
"""Of the release: on latents of real clips, then on drafts too."""
MADE = 0.8
"""Share of latents that lack something, where drafts are drawn."""


class DecoderObjective:
    """Clips of random scenes, decoded from their latents, half of which get noise: a generated latent is never exact.

    Args:
        drafts: Draws drafts; most latents then lie anywhere between the real clip's and its draft's.
        noise: Largest standard deviation of that noise.
        clips: Of a batch.
        side: Of a clip in pixels.
    """

    def __init__(
        self,
        sources: Sources,
        linear: LinearPatches,
        *,
        drafts: KeptScenes | None = None,
        noise: float = 0.25,
        clips: int = 2,
        side: int = 192,
    ) -> None:
        self.sources, self.drafts, self.noise, self.clips, self.side = sources, drafts, noise, clips, side
        self.network = NanoDecoder(linear)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips, and the latents that they are to be decoded from."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        clips, latents = [], []
        for _ in range(self.clips):
            alone = self.sources.wordless if rng.random() < 0.25 and self.sources.wordless else None
            scene = draw_scene(rng, concepts=len(self.sources), wordless=alone)
            clips.append(render(scene, self.sources, side=self.side))
            latents.append(self.network.linear.encode(clips[-1][None])[0])
            if self.drafts is not None and rng.random() < MADE:
                latents[-1] = torch.lerp(self.drafts.draft(scene), latents[-1], float(rng.uniform(0, 0.6)))
        return torch.stack(clips), torch.stack(latents)

    def loss(self, pair: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        """Squared error, and small absolute errors of the differences in space and time, which sharpen edges."""
        batch, latents = pair
        noisy = torch.rand(len(batch), generator=generator) < (0.5 if self.drafts is None else 0)
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
def judge_decoder(
    network: NanoDecoder, sources: Sources, drafts: KeptScenes | None = None, *, count: int = 24
) -> dict[str, float]:
    """PSNR with the linear decoder and with the learned one, of scenes with emoji that no training saw.

    With ``drafts`` of those too, of scenes of the concepts.
    """
    rng = np.random.default_rng(7)
    linear: list[float] = []
    learned: list[float] = []

    def measure(latents: Tensor, real: Tensor) -> None:
        with mixed_precision(latents.device.type):
            made = network(latents)
        for values, clip in ((linear, network.linear.decode(latents)), (learned, made)):
            values.append(10 * math.log10(4 / float((clip.clamp(-1, 1) - real).pow(2).mean())))

    for _ in range(count):
        real = render(draw_scene(rng, concepts=len(sources), wordless=sources.held), sources)[None]
        measure(network.linear.encode(real), real)
    figures = {"linear_db": float(np.mean(linear)), "decoder_db": float(np.mean(learned)), "worst_db": min(learned)}
    if drafts is not None:
        linear.clear()
        learned.clear()
        for _ in range(count):
            scene = draw_scene(rng, concepts=len(sources))
            measure(drafts.draft(scene)[None], render(scene, sources)[None])
        figures |= {"draft_linear_db": float(np.mean(linear)), "draft_decoder_db": float(np.mean(learned))}
    return figures


def train_decoder(data: Path, out: Path, *, steps: int, start: Path | None = None, made: bool = False) -> None:
    """Train it, or go on; the averaged weights become ``vae.safetensors`` in ``out``, its figures ``figures.json``.

    Args:
        data: Folder of the images.
        out: Folder of the run, beside the linear encoder and the portraits.
        steps: How many; the rate falls in the second half.
        start: Weights to begin with.
        made: Learn to decode drafts too.
    """
    torch.manual_seed(0)
    sources = Sources(data)
    linear, drafts = fit_linear(sources, out.parent / "linear.safetensors"), None
    if made:
        drafts = KeptScenes(sources, linear, Portraits.of(sources, out.parent / "portraits.pt"), Mix(pool=1))
    objective = DecoderObjective(sources, linear, drafts=drafts)
    if start is not None:
        objective.network.load_state_dict(load_file(start))
    lr = 5e-4 if made else 1e-3
    settings = LoopSettings(steps=steps, lr=lr, warmup=100, decay=0.5, weight_decay=0.0, checkpoint_minutes=5)
    averaged = run(One(objective), settings, out)["network"]
    objective.network.load_state_dict(averaged, strict=False)
    save_file({k: v.contiguous() for k, v in objective.network.state_dict().items()}, out / "vae.safetensors")
    figures = judge_decoder(objective.network, sources, drafts)
    log.info("%s", figures)
    (out / "figures.json").write_text(json.dumps(figures))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help=f"default: {EXACT_STEPS}, and {MADE_STEPS} with --made")
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--made", action="store_true", help="learn to decode drafts too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    steps = options.steps or (MADE_STEPS if options.made else EXACT_STEPS)
    train_decoder(options.data, options.out, steps=steps, start=options.start, made=options.made)


if __name__ == "__main__":
    main()
