"""Training the second Nano from the command line, for as long as wanted: ``python -m kandinsky.lab.nano2.train``.

    python -m kandinsky.lab.nano2.train --data FOLDER --out runs/nano2/denoiser [--minutes 60] [--copy FOLDER]
    python -m kandinsky.lab.nano2.train --data FOLDER --out runs/nano2/denoiser --steps 3200 --cooldown 500

Fits the linear encoder and the portraits where ``linear.safetensors`` and ``portraits.pt`` are missing beside
``--out``, then trains, goes on from the last checkpoint whenever it is started again, and measures itself at every
checkpoint (``eval.jsonl``, ``sheet.png``). How many steps there will be need not be known when a run begins.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kandinsky.evaluate.clips import psnr
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.scene_words import said_of
from kandinsky.families.nano.scenes import MOTIONS, Scene, Subject, plain_scene
from kandinsky.lab.nano.captions import held_colours
from kandinsky.lab.nano2.catalogue import Sources, catalogue
from kandinsky.lab.nano2.linear import fit_linear
from kandinsky.lab.nano2.measures import to_clip
from kandinsky.lab.nano2.objective import KeptScenes, Mix, SceneObjective, network_params, sample
from kandinsky.lab.nano2.picture import strips
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.render import render
from kandinsky.train import interrupts
from kandinsky.train.steady import Steady, run_steadily

STEPS, COOLDOWN = 3200, 500
"""Of the release, and how many of them the rates fall to zero over."""
DONE = "done"
"""In the folder of a run that has taken all of its steps."""
RATES = Steady(muon=3e-4, plain=2e-4, rows=6e-4)
"""What is left to learn beside a draft is small, and so are the steps."""

SEEN = 24
"""Clips of the small measure at every checkpoint."""


def probe_scenes(concepts: int, count: int = SEEN) -> list[Scene]:
    """Fixed scenes that tell how far a run is: half of them plain, before colours held out for their concept."""
    rng = np.random.default_rng(20261129)
    scenes: list[Scene] = []
    for number, concept in enumerate(rng.permutation(concepts)[:count].tolist()):
        colour = int(rng.choice(held_colours(catalogue()[concept])))
        if number % 2 == 0:
            scenes.append(plain_scene(concept, colour))
        elif number % 4 == 1:
            scenes.append(
                Scene((Subject(concept),), colours=(colour, None), motion=MOTIONS[number // 4 % len(MOTIONS)])
            )
        else:
            scenes.append(draw_scene(rng, concepts=concepts))
    return scenes


def kept_buffers(network: nn.Module) -> dict[str, Tensor]:
    """What of a network's state is computed and not trained."""
    return dict(network.named_buffers())


class Probe:
    """The small measure: clips of fixed scenes by the averaged weights, against the real ones."""

    def __init__(self, objective: SceneObjective, out: Path) -> None:
        self.objective, self.out = objective, out
        self.scenes = probe_scenes(min(objective.mix.concepts or len(objective.sources), len(objective.sources)))
        self.real = [to_clip(render(scene, objective.sources)) for scene in self.scenes]

    def __call__(self, step: int, weights: dict[str, Tensor], *, still: bool) -> dict[str, float]:
        """Measure, write a sheet (real clips above made ones), return the figures."""
        network = self.objective.network
        kept = {name: p.detach().clone() for name, p in network.named_parameters()}
        network.load_state_dict(kept_buffers(network) | weights)
        network.eval()
        frames = 1 if still else 4
        real = [clip[:1] if still else clip for clip in self.real]
        line: dict[str, float] = {"step": step}
        try:
            for steps in (1, 4):
                latents = sample(
                    network,
                    [said_of(scene, still=still) for scene in self.scenes],
                    self.scenes,
                    steps=steps,
                    frames=frames,
                )
                made = [to_clip(video) for video in self.objective.linear.decode(latents)]
                values = [psnr(*pair) for pair in zip(made, real, strict=True)]
                line |= {
                    f"db_{steps}": float(np.median(values)),
                    f"lowest_tenth_{steps}": float(np.quantile(values, 0.1)),
                    f"plain_{steps}": float(np.median(values[::2])),
                }
        finally:
            network.load_state_dict(kept_buffers(network) | kept)
            network.train()
        sheet = strips(made, real, across=8 if still else 3)
        sheet.resize((sheet.width // 2, sheet.height // 2)).save(self.out / "sheet.png")
        with (self.out / "eval.jsonl").open("a") as file:
            file.write(json.dumps({key: round(value, 3) for key, value in line.items()}) + "\n")
        return line


def train(
    data: Path,
    out: Path,
    *,
    mix: Mix | None = None,
    settings: Steady | None = None,
    copies: tuple[Path, ...] = (),
    start: Path | None = None,
    minutes: float | None = None,
) -> int:
    """Train the denoiser; see the module. One that is asked to end, by SIGTERM or SIGINT, writes its checkpoint first.

    Returns:
        How many steps it has taken in all.
    """
    sources = Sources(data)
    linear: LinearPatches = fit_linear(sources, out.parent / "linear.safetensors")
    portraits = Portraits.of(sources, out.parent / "portraits.pt")
    torch.manual_seed(0)
    scenes = KeptScenes(sources, linear, portraits, mix or Mix(), kept=out / "latents")
    objective = SceneObjective(scenes, network_params())
    out.mkdir(parents=True, exist_ok=True)
    probe = Probe(objective, out)

    def measure(step: int) -> None:
        began = time.monotonic()
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        averages = state["averages"]
        line = probe(step, averages[0], still=step < objective.mix.still_steps)
        logging.info("step %d: %s, measured in %.0f s", step, line, time.monotonic() - began)

    with interrupts.held() as is_asked_to_stop:
        run_steadily(
            objective,
            settings or RATES,
            out,
            copies=copies,
            start=start,
            minutes=minutes,
            on_checkpoint=measure,
            stop=is_asked_to_stop,
        )
    taken = int(torch.load(out / "checkpoint.pt", weights_only=True, mmap=True)["step"])
    if taken >= (settings or RATES).end:
        (out / DONE).touch()
    return taken


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of `kandinsky data nano`, decoded at 160 pixels"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copy", type=Path, action="append", default=[], help="folder for a copy of every checkpoint")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from where --out has none")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int, help="end after so many; without it only --minutes end a run")
    parser.add_argument(
        "--cooldown", type=int, default=0, help="let the rates fall to zero over the last so many steps"
    )
    parser.add_argument("--still-steps", type=int, default=Mix().still_steps)
    parser.add_argument(
        "--ahead", action="store_true", help="only draw and encode what a run beside this one needs next"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # here and not in the loop: it holds for the whole process
    if options.ahead:
        sources = Sources(options.data)
        linear = fit_linear(sources, options.out.parent / "linear.safetensors")
        portraits = Portraits.of(sources, options.out.parent / "portraits.pt")
        mix = Mix(still_steps=options.still_steps)
        KeptScenes(sources, linear, portraits, mix, kept=options.out / "latents").draw_ahead()
    settings, mix = RATES, Mix(still_steps=options.still_steps)
    if options.steps:
        settings = replace(settings, cooldown=(options.steps - options.cooldown, options.cooldown))
    train(
        options.data,
        options.out,
        mix=mix,
        settings=settings,
        copies=tuple(options.copy),
        start=options.start,
        minutes=options.minutes,
    )


if __name__ == "__main__":
    main()
