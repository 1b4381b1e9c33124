"""Measure the ways of distilling on a problem of seconds: are few-step students nearer to their teacher than it itself?

    python -m kandinsky.lab.distil

trains a small teacher of each kind of model (flow matching, v-prediction) on points of a plane that are spread over
latents, distils it in each way, samples with the models' own samplers, and prints a table: how far the student's
samples, and the teacher's at the same few steps, are from the teacher's at many steps. `rms` is the distance at equal
noise and prompt, where the sampler is deterministic; `energy` that of the distributions of each prompt.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.bench.random_weights import changed
from kandinsky.catalogue import source_of
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.train import loop
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising, Given, Untold
from kandinsky.train.distil.discriminator import Discriminator
from kandinsky.train.distil.dmd import DmdObjective, DmdSettings, Matching
from kandinsky.train.distil.guidance import GuidanceObjective
from kandinsky.train.distil.ladd import LaddObjective, LaddSettings
from kandinsky.train.distil.selfforcing import Asked, ChunkSettings, ForcingSettings, Rollout, SelfForcingObjective
from kandinsky.train.distil.steps import StepObjective, StepSettings
from kandinsky.train.distil.teacher import Teacher
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Objective, Portion, Rng
from kandinsky.train.optimisers import Change
from kandinsky.train.times import Times

MANY = 64
"""Steps of the samples that others are held against."""
PROMPTS = 4
POOL = 2000  # clips of each prompt
CHANNELS, SIDE = 4, 2
FRAMEWISE = ChunkSettings(1, "frames")
SPREAD = 0.05  # of the points around the middle of each cluster


@dataclass(frozen=True, slots=True)
class Setting:
    """A small model of the catalogue's kind.

    Attributes:
        model: Of the catalogue; its sampler is the teacher's.
        params: Of its network.
        student_sampler: Of its few-step models.
        shift: Of its schedule.
        sampler: In the place of the model's, for another kind of prediction.
    """

    model: str
    params: Mapping[str, Any]
    student_sampler: str | None = None
    shift: float = 1.0
    sampler: str | None = None


_SHARED = {
    "in_visual_dim": CHANNELS, "out_visual_dim": CHANNELS, "in_text_dim": 16, "time_dim": 32,
    "model_dim": 32, "ff_dim": 96, "axes_dims": [4, 6, 6], "patch_size": [1, 2, 2],
}  # fmt: skip
SETTINGS = {
    "flow": Setting(
        "kandinsky5-lite-t2v-sft-5s",
        _SHARED | {"in_text_dim2": 16, "num_text_blocks": 1, "num_visual_blocks": 2, "visual_cond": True},
        shift=5.0,
    ),
    "v": Setting(
        "kandinsky4-t2v", _SHARED | {"num_blocks": 1, "visual_cond": True}, student_sampler="cogvideox-renoise"
    ),
}
# a network of Kandinsky 5's kind that predicts noise, as the U-Nets do
NOISE = Setting("kandinsky5-lite-t2v-sft-5s", SETTINGS["flow"].params, sampler="kandinsky3")


class World:
    """Clips of frames that each show a point of a plane; prompt k asks for points near two places of a circle.

    Along time the point turns by a fixed angle, one way or the other, so that later frames follow from earlier ones.

    Args:
        frames: Of a clip.
        clips: Of a batch.
    """

    def __init__(self, frames: int = 1, clips: int = 32) -> None:
        self.frames, self.clips = frames, clips
        generator = torch.Generator().manual_seed(0)
        size = SIDE * SIDE * CHANNELS
        basis, _ = torch.linalg.qr(torch.randn(size, 2, generator=generator))
        self.basis = basis * (size / 2) ** 0.5  # latents of unit variance
        tokens = torch.randn(PROMPTS + 1, 2, 16, generator=generator)
        tokens[PROMPTS] = 0.0
        self.text = TextEmbeddings(tokens, tokens.mean(1))
        self.drop_text = 0.0
        prompts = torch.arange(PROMPTS).repeat_interleave(POOL)
        self.pool = self.latents(prompts, torch.Generator().manual_seed(1)).unflatten(0, (PROMPTS, POOL))

    def latents(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """A clip for each prompt, [B, T, H, W, C]."""
        side, turn = torch.randint(2, (2, len(prompts), 1), generator=generator)
        moved = torch.arange(self.frames) * 0.2 * (1 - 2 * turn)
        angles = 2 * torch.pi * (prompts[:, None] + 0.15 + 0.5 * side + moved) / PROMPTS
        points = 1.4 * torch.stack((angles.cos(), angles.sin()), dim=-1)
        points = points + SPREAD * torch.randn(points.shape, generator=generator)
        out: Tensor = (points @ self.basis.T).unflatten(-1, (SIDE, SIDE, CHANNELS))
        return out

    def given(self, prompts: Tensor) -> Given:
        """What a network is told of prompts; number ``PROMPTS`` is the empty one."""
        return Given(TextEmbeddings(self.text.tokens_BLC[prompts], self.text.pooled_BC[prompts]))

    @property
    def empty(self) -> TextEmbeddings:
        """Embeddings of the empty prompt."""
        return self.given(torch.tensor([PROMPTS])).text

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""
        numbers = portion.of(range(self.clips))
        count = self.pool.shape[1]
        places = torch.tensor([int(torch.randint(count, (), generator=rng.example(n, "clip"))) for n in numbers])
        prompts = torch.tensor([n % PROMPTS for n in numbers])
        dropped = places % 100 < 100 * self.drop_text
        given = self.given(prompts.masked_fill(dropped, PROMPTS))
        clean, shown = self.pool[prompts, places], 0
        if self.frames > 1 and self.drop_text:  # teachers learn clips of every length, with earlier frames or without
            generator = rng.example(-1, "length")
            length, is_shown = (int(torch.randint(n, (), generator=generator)) for n in (self.frames, 2))
            clean, shown = clean[:, : length + 1], length * is_shown
        if shown:
            mask = torch.zeros(len(clean), clean.shape[1], 1, 1, 1, dtype=torch.bool)
            mask[:, :shown] = True
            given = Given(given.text, Known({VIDEO: clean}, {VIDEO: mask}))
        return Batch(clean, given, numbers, self.clips)


@dataclass(frozen=True, slots=True)
class Bench:
    """A trained teacher and its world."""

    process: str
    setting: Setting
    denoising: Denoising
    network: nn.Module
    world: World

    def teacher(self, guidance: float = 1.0) -> Teacher:
        """A copy of the teacher."""
        return Teacher(
            self.denoising,
            copy.deepcopy(self.network).requires_grad_(False),
            guidance,
            Untold(self.world.empty, self.world.empty),
        )

    def student(self) -> nn.Module:
        """A copy of the teacher that learns."""
        return copy.deepcopy(self.network).requires_grad_(True)

    def walk(self, steps: int, *, students: bool = True) -> Walk:
        """A walk by the sampler of students, or of the teacher."""
        return Walk(self.denoising, StudentSteps(steps, self.setting.student_sampler if students else None))


def bare(setting: Setting) -> tuple[Denoising, nn.Module]:
    """The door of a small network, and the network with seeded weights."""
    card = source_of(setting.model).card
    card = changed(card, {f"dit.{name}": value for name, value in setting.params.items()})
    job = resolve(Request(card.id, "any", seed=0), card, needs_image=False)
    job = dataclasses.replace(job, shift=setting.shift)
    if setting.sampler is not None:
        job = dataclasses.replace(job, sampling=dataclasses.replace(job.sampling, sampler=setting.sampler))
    context = build(card, RunOptions(device="cpu", dtype="float32", only=()))
    with loop.seeded(0):
        network = bare_network(card.part("dit"), card.dit, Path()).float()
    return Denoising(context, job), network


def trained(objective: Objective, steps: int, out: Path, **settings: Any) -> dict[str, list[float]]:
    """Run a training. Returns: figures of every tenth step, by name."""
    lines: dict[str, list[float]] = {}

    def note(line: Mapping[str, float]) -> None:
        for name, value in line.items():
            lines.setdefault(name, []).append(value)

    values: dict[str, Any] = {"lr": 1e-3, "warmup": 20, "decay": 0.5, "weight_decay": 0.0, "ema": 0.98} | settings
    made = loop.run(
        objective,
        loop.LoopSettings(steps=steps, bf16=False, log_every=10, **values),
        out,
        resume=False,
        on_log=note,
    )
    first = objective.updates[0]
    first.network.load_state_dict(made[first.name], strict=False)
    first.network.eval()
    return lines


def prepared(name: str, out: Path, *, steps: int = 800, frames: int = 1) -> Bench:
    """Train a teacher, with prompts dropped now and then, for guidance."""
    denoising, network = bare(SETTINGS[name])
    world = World(frames)
    world.drop_text = 0.1
    trained(DenoiserObjective(denoising, network, world, Times()), steps, out, lr=2e-3)
    world.drop_text = 0.0
    return Bench(name, SETTINGS[name], denoising, network, world)


def energy_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """√(2·E|a − b| − E|a − a'| − E|b − b'|) of two sets of points, 0 for equal distributions (Székely and Rizzo)."""
    between, a, b = (torch.cdist(x, y) for x, y in ((a_ND, b_ND), (a_ND, a_ND), (b_ND, b_ND)))
    n, m = len(a), len(b)
    value = 2 * between.mean() - a.sum() / (n * (n - 1)) - b.sum() / (m * (m - 1))
    return float(value.clamp_min(0).sqrt())


@dataclass(frozen=True, slots=True)
class Row:
    """One distillation: distances of the student and of the teacher at the same few steps."""

    process: str
    way: str
    steps: int
    passes: tuple[int, int]
    rms: tuple[float, float] | None
    energy: tuple[float, float]
    seconds: float
    losses: Sequence[float] = field(default=())

    @property
    def is_nearer(self) -> bool:
        """Whether the student is nearer in every measure."""
        return all(student < teacher for student, teacher in (self.rms or (0.0, 1.0), self.energy))

    def __str__(self) -> str:
        def two(pair: tuple[float, float] | None) -> str:
            return "| — | — " if pair is None else f"| {pair[0]:.3f} | {pair[1]:.3f} "

        passes = f"{self.passes[0]} / {self.passes[1]}"
        loss = f"{self.losses[0]:.3f} → {self.losses[-1]:.3f}"
        figures = f"{two(self.rms)}{two(self.energy)}| {loss} | {self.seconds:.0f} |"
        return f"| {self.process} | {self.way} | {self.steps} | {passes} {figures}"


HEADER = (
    "| process | way | steps | passes, student / teacher | rms, student | rms, teacher | energy, student "
    "| energy, teacher | loss | s |\n|---|---|---|---|---|---|---|---|---|---|"
)


class Measure:
    """Samples of a bench, held against the teacher's of many steps.

    Args:
        bench: The teacher.
        guidance: The teacher's.
        each: Samples of each prompt.
    """

    def __init__(self, bench: Bench, guidance: float, each: int = 64) -> None:
        self.bench, self.each = bench, each
        self.prompts = torch.arange(PROMPTS).repeat_interleave(each)
        self.given = bench.world.given(self.prompts)
        self.teacher = bench.teacher(guidance)
        self.shape = (bench.world.frames, SIDE, SIDE, CHANNELS)
        self.aim = self.sampled(self.teacher.predict, bench.walk(MANY, students=False))

    def by(self, student: nn.Module) -> Asked:
        """The student as a predictor."""
        return partial(self.bench.denoising.predict, student)

    @torch.no_grad()
    def sampled(self, asked: Asked, walk: Walk, seeds: Sequence[int] = ()) -> Tensor:
        """Samples of fixed seeds, those of clips frame by frame; whatever the sampler, the first state is the same."""
        draws = walk.draws(self.shape, seeds or range(len(self.prompts)))
        draws[[0, walk.rules.unused]] = draws[[walk.rules.unused, 0]]
        if self.bench.world.frames > 1:
            return Rollout(walk, FRAMEWISE).sampled(asked, draws, self.given.text)
        return walk.sampled(lambda x, t: asked(x, t, self.given), draws)

    def synthetic(self, times: int = 3) -> Tensor:
        """The teacher's samples of other seeds, by prompt, as examples to train on."""
        count, walk = len(self.prompts), self.bench.walk(MANY, students=False)
        made = [
            self.sampled(self.teacher.predict, walk, range(n * count, (n + 1) * count)).unflatten(0, (PROMPTS, -1))
            for n in range(1, times + 1)
        ]
        return torch.cat(made, dim=1)

    def rms(self, samples: Tensor) -> float:
        """Root mean square of the difference at equal noise."""
        return float((samples - self.aim).square().mean().sqrt())

    def energy(self, samples: Tensor) -> float:
        """Mean energy distance of the prompts, of latents over √D."""
        a, b = (x.flatten(1) / x[0].numel() ** 0.5 for x in (samples, self.aim))
        pairs = zip(a.split(self.each), b.split(self.each), strict=True)
        return sum(energy_distance(*pair) for pair in pairs) / PROMPTS

    def row(self, way: Way, student: nn.Module, seconds: float, losses: Sequence[float]) -> Row:
        """A student beside the teacher, which gets as many steps, or as many passes of its network."""
        mine = self.bench.walk(way.steps, students=way.sampler)
        theirs = self.bench.walk(way.teacher_steps or way.steps, students=False)
        samples = self.sampled(self.by(student), mine), self.sampled(self.teacher.predict, theirs)
        passes = (way.steps, theirs.steps * (2 if self.teacher.guidance.is_on else 1))
        rms = None if way.by_distribution or mine.rules.fresh else (self.rms(samples[0]), self.rms(samples[1]))
        energy = (self.energy(samples[0]), self.energy(samples[1]))
        return Row(self.bench.process, way.name, way.steps, passes, rms, energy, seconds, losses)


@dataclass(frozen=True, slots=True)
class Way:
    """One way of distilling.

    Attributes:
        name: In the table.
        make: The objective, of a bench, its teacher and a student.
        guidance: The teacher's.
        steps: Of the student.
        teacher_steps: Of the teacher beside it, where they are others: with guidance half as many are as much work.
        training: Steps of training.
        settings: Of the loop.
        by_distribution: Whether the student learns a distribution alone, and no path from noise.
        sampler: Whether the student is sampled by the sampler of few-step models.
        frames: Of a clip; several are made one after the other.
        changes: What is different for a process of the teacher, by its name.
    """

    name: str
    make: Callable[[Bench, Teacher, nn.Module], Objective]
    guidance: float = 3.0
    steps: int = 4
    teacher_steps: int | None = None
    training: int = 400
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_distribution: bool = False
    sampler: bool = True
    frames: int = 1
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def under(self, process: str) -> Way:
        """The way for a process of the teacher."""
        return dataclasses.replace(self, **self.changes.get(process, {}))


def _guidance(bench: Bench, teacher: Teacher, student: nn.Module) -> Objective:
    return GuidanceObjective(bench.denoising, student, teacher, bench.world, Times())


def _steps(settings: StepSettings, bench: Bench, teacher: Teacher, student: nn.Module) -> Objective:
    return StepObjective(bench.denoising, student, teacher, bench.world, settings)


def _ladd(r1: float, mean: float, bench: Bench, teacher: Teacher, student: nn.Module) -> Objective:
    """``mean``: Of the noise before the discriminator; more shows it how many clips are of which kind."""
    with loop.seeded(1):
        discriminator = Discriminator(bench.denoising, teacher.network)
    settings = LaddSettings(Times(mean=mean, shift=1.0), r1=r1)
    return LaddObjective(bench.denoising, student, discriminator, bench.world, bench.walk(4), settings)


def _dmd(gan: float, bench: Bench, teacher: Teacher, student: nn.Module) -> Objective:
    settings = DmdSettings(every=2, gan=gan)
    matching = Matching(
        bench.denoising, teacher, bench.student(), Times("uniform"), least=settings.least, most=settings.most
    )
    discriminator = None
    if gan:
        with loop.seeded(1):
            discriminator = Discriminator(bench.denoising, teacher.network)
    return DmdObjective(student, matching, bench.world, bench.walk(2), settings, discriminator)


def _self_forcing(
    settings: ForcingSettings, times: Times | None, bench: Bench, teacher: Teacher, student: nn.Module
) -> Objective:
    """With ``times`` where scores are compared the student walks as its teacher does, else as few-step models do."""
    matching = None
    if settings.loss == "dmd":
        at = times or Times("uniform")
        matching = Matching(bench.denoising, teacher, bench.student(), at, least=0.02, most=0.98)
    rollout = Rollout(bench.walk(2, students=settings.loss == "dmd" and times is None), FRAMEWISE)
    return SelfForcingObjective(student, teacher, bench.world, rollout, settings, matching)


PROGRESSIVE, FORCED = "progressive, 16 → 8 → 4", "self-forcing by regression, 2 a frame"
_TWO = {"fake": Change(lr=1e-3), "discriminator": Change(lr=1e-3)}
WAYS = (
    Way("guidance, at equal work", _guidance, steps=4, teacher_steps=2, sampler=False),
    Way(
        PROGRESSIVE,
        partial(_steps, StepSettings("progressive", (16, 8, 4), level_steps=200)),
        training=600,
        sampler=False,
        settings={"schedule": "constant"},
    ),
    Way("consistency, 8", partial(_steps, StepSettings("consistency", (8,))), steps=8, training=700, sampler=False),
    Way("consistency, 4", partial(_steps, StepSettings("consistency", (4,))), sampler=False),
    Way("regression, 4", partial(_steps, StepSettings("regression", (4,), parts=4)), training=300, sampler=False),
    Way(
        "LADD, 4",
        partial(_ladd, 10.0, 0.0),
        training=1000,
        by_distribution=True,
        settings={"lr": 1e-3, "updates": {"discriminator": _TWO["discriminator"]}},
        # with these rates and the optimiser's momentum the two networks chase each other away; a discriminator that
        # is held back further (R1 of 100, a rate of 5e-4) tells half right, and its student walks at random
        changes={
            "v": {
                "make": partial(_ladd, 1.0, 0.5),
                "training": 800,
                "settings": {
                    "lr": 3e-5,
                    "betas": (0.0, 0.99),
                    "ema": 0.995,
                    "updates": {"discriminator": Change(lr=3e-3)},
                },
            }
        },
    ),
    Way(
        "DMD2, 2",
        partial(_dmd, 0.0),
        guidance=1.0,
        steps=2,
        by_distribution=True,
        settings={"lr": 5e-4, "updates": {"fake": _TWO["fake"]}},
    ),
    Way(
        "DMD2 with GAN, 2",
        partial(_dmd, 0.03),
        guidance=1.0,
        steps=2,
        by_distribution=True,
        settings={"lr": 5e-4, "updates": _TWO},
    ),
    Way(
        FORCED,
        partial(_self_forcing, ForcingSettings("regression", parts=4), None),
        guidance=1.0,
        steps=2,
        training=200,
        frames=3,
        sampler=False,
    ),
    Way(
        "self-forcing by DMD, 2 a frame",
        partial(_self_forcing, ForcingSettings("dmd", every=2), None),
        guidance=1.0,
        steps=2,
        training=300,
        frames=3,
        by_distribution=True,
        settings={"lr": 2e-4, "updates": {"fake": _TWO["fake"]}},
        # two steps with fresh noise between them are a worse start than two of the teacher's own
        changes={
            "v": {
                "make": partial(_self_forcing, ForcingSettings("dmd", every=2), Times("uniform", shift=3.0)),
                "training": 150,
                "sampler": False,
            }
        },
    ),
)


def distilled(way: Way, bench: Bench, out: Path) -> Row:
    """Distil in one way and measure."""
    way = way.under(bench.process)
    measure = Measure(bench, way.guidance)
    if way.by_distribution and bench.world.frames == 1:
        bench = dataclasses.replace(bench, world=copy.copy(bench.world))
        bench.world.pool = measure.synthetic()
    student = bench.student()
    began = time.process_time()
    figures = trained(way.make(bench, bench.teacher(way.guidance), student), way.training, out, **way.settings)
    return measure.row(way, student, time.process_time() - began, figures["loss"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.lab.distil", description=__doc__)
    parser.add_argument("--process", nargs="*", choices=list(SETTINGS), default=list(SETTINGS), help="of the teacher")
    parser.add_argument("--way", nargs="*", help="parts of names of rows to measure")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = [way for way in WAYS if not options.way or any(part in way.name for part in options.way)]
    sys.stdout.write(f"{HEADER}\n")
    with tempfile.TemporaryDirectory() as folder:
        for process in options.process:
            benches = {
                frames: prepared(process, Path(folder) / f"{process}-{frames}", frames=frames)
                for frames in sorted({way.frames for way in chosen})
            }
            for number, way in enumerate(chosen):
                row = distilled(way, benches[way.frames], Path(folder) / f"{process}-way-{number}")
                sys.stdout.write(f"{row}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
