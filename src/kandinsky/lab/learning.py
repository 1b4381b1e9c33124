"""Does each kind of training learn? A problem of seconds for each, and the bound that its figure must fall below.

    python -m kandinsky.lab.learning

trains every objective on a problem of ``lab/distil``'s size, from fixed seeds, and prints a table: the figure at the
beginning and at the end, the share of the first that the last must be below, and the seconds of processor time. The
figure is a loss, as the mean of ten steps. Of DMD2, whose loss has the right gradient and no meaning of its own, it is
how far the student's samples are from those that the teacher makes in many steps (energy distance). Of LADD, where two
networks work against each other, it is the discriminator's loss while the student hardly moves; what becomes of the
student in a whole training stands in the table of ``lab/distil``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.bench.random_weights import changed
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import Job
from kandinsky.lab import distil
from kandinsky.lab.distil import Bench, Measure, Way, World
from kandinsky.model.card import Component
from kandinsky.model.denoiser import AUDIO
from kandinsky.train import loop, reward, sound
from kandinsky.train.autoencoder import AutoencoderLosses, AutoencoderObjective, Fragments
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising
from kandinsky.train.model_recipe import Batch, ClipBatches, PromptedData
from kandinsky.train.objective import Objective, Portion, Rng
from kandinsky.train.optimisers import Change
from kandinsky.train.preference import PreferenceObjective
from kandinsky.train.times import Times

Found = tuple[float, float]  # a figure before and after


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to learn.

    Attributes:
        kind: Of recipe.
        name: What is learned.
        bound: Share of its first value that the figure must fall below.
        run: Learns it, in a folder, and gives the figure before and after.
        figure: What is looked at.
        teacher: Process and frames of the teacher that it needs.
    """

    kind: str
    name: str
    bound: float
    run: Callable[[Path], Found]
    figure: str = "loss"
    teacher: tuple[str, int] | None = None


def _of_log(objective: Objective, steps: int, folder: Path, **settings: Any) -> Found:
    losses = distil.trained(objective, steps, folder, **settings)["loss"]
    return losses[0], losses[-1]


@cache
def _bench(process: str, frames: int) -> Bench:
    """A teacher that has learned a little, and batches of twelve clips."""
    with tempfile.TemporaryDirectory() as folder:
        made = distil.prepared(process, Path(folder), steps=100, frames=frames)
    return dataclasses.replace(made, world=World(frames, clips=12))


def _denoiser(process: str, steps: int, folder: Path) -> Found:
    denoising, network = distil.bare(distil.NOISE if process == "noise" else distil.SETTINGS[process])
    return _of_log(DenoiserObjective(denoising, network, World(), Times()), steps, folder, lr=4e-3)


def _way(name: str) -> Way:
    (way,) = [way for way in distil.WAYS if way.name == name]
    return way


def _distilled(process: str, name: str, steps: int, folder: Path) -> Found:
    """By its loss."""
    way = _way(name)
    bench = _bench(process, way.frames)
    objective = way.make(bench, bench.teacher(way.guidance), bench.student())
    return _of_log(objective, steps, folder, **{"lr": 2e-3, **way.settings})


def _nearer(process: str, name: str, steps: int, folder: Path) -> Found:
    """By its samples."""
    way = _way(name)
    bench = _bench(process, way.frames)
    measure, student = Measure(bench, way.guidance), bench.student()
    if way.frames == 1:
        bench = dataclasses.replace(bench, world=World(way.frames))
        bench.world.pool = measure.synthetic(1)
    walk = bench.walk(way.steps)
    before = measure.energy(measure.sampled(measure.by(student), walk))
    distil.trained(way.make(bench, bench.teacher(way.guidance), student), steps, folder, **way.settings)
    return before, measure.energy(measure.sampled(measure.by(student), walk))


def _told_apart(process: str, folder: Path) -> Found:
    """Real clips from those of a student that predicts nothing, and hardly learns."""
    bench, way, student = _bench(process, 1), _way("LADD, 4"), _bench(process, 1).student()
    with torch.no_grad():
        for p in student.get_submodule("out_layer.out_layer").parameters():
            p.zero_()
    objective = way.make(bench, bench.teacher(way.guidance), student)
    updates = {"discriminator": Change(lr=1e-2)}
    losses = distil.trained(objective, 50, folder, lr=1e-6, updates=updates)[_JUDGED]
    return losses[0], losses[-1]


def _preference(process: str, folder: Path) -> Found:
    """Clips are liked better than the same ones turned round."""
    bench = _bench(process, 1)
    network, before = bench.student(), bench.student().requires_grad_(False).eval()

    def pairs(step: int, rng: Rng, portion: Portion) -> tuple[Batch, Batch]:
        liked = bench.world(step, rng, portion)
        return liked, dataclasses.replace(liked, clean_BTHWC=-liked.clean_BTHWC)

    objective = PreferenceObjective(
        bench.denoising, network, _held(before), pairs, Times(), beta=5.0, frozen={"reference": before}
    )
    return _of_log(objective, 30, folder, lr=2e-3)


def _reward(process: str, folder: Path) -> Found:
    """Clips are to be bright."""
    bench = _bench(process, 1)
    network, before = bench.student(), bench.student().requires_grad_(False).eval()
    recipe = reward.RewardRecipe(
        model="",
        out="",
        data=PromptedData(""),
        loop=loop.LoopSettings(steps=1, lr=1e-3),
        reward="brightness",
        steps=4,
        last=2,
    )

    def decode(latents_BTHWC: Tensor) -> Tensor:
        return latents_BTHWC[..., :3].tanh()

    objective = reward.RewardObjective(
        bench.denoising, network, _held(before), decode, reward.brightness, cast(ClipBatches, bench.world), recipe,
        frozen={"reference": before},
    )  # fmt: skip
    return _of_log(objective, 30, folder, lr=2e-3)


def _held(network: nn.Module) -> Callable[[nn.Module], Any]:
    @contextmanager
    def reference(learning: nn.Module) -> Iterator[nn.Module]:
        yield network

    return reference


_LEVELS = 4  # rows and columns are halved three times
_AUTOENCODER = {
    "down_block_types": ("HunyuanVideoDownBlock3D",) * _LEVELS, "up_block_types": ("HunyuanVideoUpBlock3D",) * _LEVELS,
    "block_out_channels": (8,) * _LEVELS, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2,
    "temporal_compression_ratio": 4, "spatial_compression_ratio": 8,
}  # fmt: skip


def _autoencoder(folder: Path) -> Found:
    """A square that moves over a gradient, in two pieces, against a discriminator in the end."""
    with loop.seeded(0):
        network = bare_network(catalogue.part("hunyuan"), Component("hunyuan", (), params=_AUTOENCODER), Path())
    t = torch.linspace(-1, 1, 9)[:, None, None]
    rows, columns = torch.linspace(-1, 1, 16)[None, :, None], torch.linspace(-1, 1, 16)[None, None]
    inside = ((rows - 0.5 * t).abs() < 0.4) & (columns.abs() < 0.4)
    plain = (rows + columns + 0 * t) / 2
    clip = torch.stack((plain, inside.float() * 2 - 1, -plain), -1)[None]
    losses = AutoencoderLosses(perceptual=0.0, adversarial=0.01, adversarial_from=20, width=4)
    objective = AutoencoderObjective(network, 4, lambda step, rng, portion: Fragments(clip, [0]), losses, 4)
    figures = distil.trained(objective, 40, folder, lr=1e-2)["reconstruction"]
    return figures[0], figures[-1]


_SOUND = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 16, "encoder_dim": 8,
}  # fmt: skip


def _sound(folder: Path) -> Found:
    """Smooth spectrograms, one for each of four clips and captions."""
    card = changed(catalogue.find("kandinsky4-v2a"), {f"dit.{name}": value for name, value in _SOUND.items()})
    context = build(card, RunOptions(device="cpu", dtype="float32", only=()))
    denoising = Denoising(context, cast(Job, sound.Rules(card.sampling, 1.0)), AUDIO)
    with loop.seeded(0):
        network = bare_network(card.part("dit"), card.dit, Path()).float()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "latents": torch.randn(4, 1, 1, 4, generator=generator).expand(4, 4, 8, 4),
        sound.FRAMES: torch.randn(4, 3, 8, generator=generator),
        sound.TEXT: torch.randn(4, 2, 8, generator=generator),
        f"negative_{sound.FRAMES}": torch.zeros(1, 3, 8),
        f"negative_{sound.TEXT}": torch.zeros(1, 2, 8),
    }
    batches = sound.SoundBatches(tensors, sound.SoundData("", batch=8))
    return _of_log(DenoiserObjective(denoising, network, batches, Times("uniform")), 80, folder, lr=4e-3)


_SAMPLES, _JUDGED = "samples", "discriminator loss"


def _by_loss(kind: str, way: str, bound: float, *, frames: int = 1) -> tuple[Problem, ...]:
    return tuple(
        Problem(kind, f"{way}, {process}", bound, partial(_distilled, process, way, 30), teacher=(process, frames))
        for process in distil.SETTINGS
    )


def _by_samples(kind: str, way: str, bound: float, steps: int, process: str) -> Problem:
    return Problem(kind, f"{way}, {process}", bound, partial(_nearer, process, way, steps), _SAMPLES, (process, 1))


PROBLEMS = (
    Problem("denoiser", "flow matching", 0.7, partial(_denoiser, "flow", 40)),
    Problem("denoiser", "v-prediction", 0.7, partial(_denoiser, "v", 40)),
    Problem("denoiser", "noise prediction", 0.7, partial(_denoiser, "noise", 40)),
    *_by_loss("guidance-distillation", "guidance, at equal work", 0.6),
    *_by_loss("step-distillation", distil.PROGRESSIVE, 0.9),
    *_by_loss("step-distillation", "consistency, 4", 0.9),
    _by_loss("step-distillation", "regression, 4", 0.7)[0],
    Problem("ladd", "its discriminator, flow", 0.9, partial(_told_apart, "flow"), _JUDGED, ("flow", 1)),
    Problem("ladd", "its discriminator, v", 0.9, partial(_told_apart, "v"), _JUDGED, ("v", 1)),
    _by_samples("dmd2", "DMD2, 2", 0.8, 100, "flow"),
    *_by_loss("self-forcing", distil.FORCED, 0.85, frames=3),
    Problem("preference", "flow", 0.9, partial(_preference, "flow"), teacher=("flow", 1)),
    Problem("preference", "v", 0.9, partial(_preference, "v"), teacher=("v", 1)),
    Problem("reward", "flow", 0.9, partial(_reward, "flow"), teacher=("flow", 1)),
    Problem("reward", "v", 0.9, partial(_reward, "v"), teacher=("v", 1)),
    Problem("autoencoder", "4x8x8, with a discriminator", 0.8, _autoencoder, "reconstruction"),
    Problem("sound", "noise prediction", 0.8, _sound),
)


@dataclass(frozen=True, slots=True)
class Learned:
    """What became of a problem.

    Attributes:
        problem: Which.
        found: Its figure before and after.
        seconds: Of processor time, without those of the teacher, which problems share.
    """

    problem: Problem
    found: Found
    seconds: float

    @property
    def is_learned(self) -> bool:
        """Whether the figure fell below the bound."""
        return self.found[1] < self.problem.bound * self.found[0]

    def __str__(self) -> str:
        before, after = self.found
        one = self.problem
        return (
            f"| {one.kind} | {one.name} | {one.figure} | {before:.3f} | {after:.3f} | {after / before:.2f} | "
            f"{one.bound:g} | {self.seconds:.1f} |"
        )


HEADER = (
    "| kind | problem | figure | first | last | share | bound | s |\n"
    "|---|---|---|---|---|---|---|---|"
)  # fmt: skip


def learned(problem: Problem, folder: Path) -> Learned:
    """Learn a problem, in a new folder."""
    if problem.teacher is not None:
        _bench(*problem.teacher)
    began = time.process_time()
    found = problem.run(folder)
    return Learned(problem, found, time.process_time() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above. Ends with 1 where something was not learned."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.lab.learning", description=__doc__)
    parser.add_argument("--kind", nargs="*", help="of recipe; all by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sys.stdout.write(f"{HEADER}\n")
    lazy = False
    with tempfile.TemporaryDirectory() as folder:
        for number, problem in enumerate(PROBLEMS):
            if options.kind and problem.kind not in options.kind:
                continue
            row = learned(problem, Path(folder) / str(number))
            lazy = lazy or not row.is_learned
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    return int(lazy)


if __name__ == "__main__":
    raise SystemExit(main())
