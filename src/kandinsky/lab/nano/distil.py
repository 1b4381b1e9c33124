"""Recipes of kind `nano-distillation`: the shipped Nano without guidance, in few steps, or causal.

Its clips and the slots they show are those of its training (``flow.py``); the objectives are those of every model.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.text import NanoTextNetwork
from kandinsky.lab.nano.flow import FlowObjective, Stage, cache_latents
from kandinsky.lab.nano.train import (
    FlowSettings,
    LatentData,
    TrainedAutoencoder,
    TrainedText,
    check_begin,
    frozen_autoencoder,
)
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.train import loop
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising, Given, Untold
from kandinsky.train.distil.dmd import Matching
from kandinsky.train.distil.guidance import GuidanceObjective
from kandinsky.train.distil.selfforcing import ChunkSettings, ForcingSettings, Rollout, SelfForcingObjective
from kandinsky.train.distil.steps import StepObjective, StepSettings
from kandinsky.train.distil.teacher import Teacher
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Objective, Portion, Rng
from kandinsky.train.recipe import Run
from kandinsky.train.times import Times
from kandinsky.train.work import done
from kandinsky.weights.read import load_into
from kandinsky.weights.write import write_state


@dataclass(frozen=True, slots=True)
class NanoDistilRecipe:
    """The keys of a recipe.

    Attributes:
        cache: Folder of `kandinsky data nano`.
        out: Folder of checkpoints, log and weights; of `latents.npy` too.
        text: The text network, of which the memory of slots is used.
        data: Clips that are encoded once.
        loop: See ``LoopSettings``.
        model: The teacher.
        guidance: Its guidance scale, which becomes part of the student; the card's where absent.
        steps: See ``StepSettings``; guidance alone is distilled where absent.
        teacher: Weight file of the teacher, where it is not the model's own.
        student: Weight file that the student begins with; the teacher's weights where absent.
        times: Of guidance alone, where the loss is taken. With `by_frame` (diffusion forcing) the clips themselves are
            learned, since a teacher of whole clips has no answer for frames of several times.
        attention: The student's visual self attention; the model's own where absent.
        forcing: Self-forcing: a clip is made chunk by chunk; see ``ForcingSettings``.
        chunks: Of self-forcing; see ``ChunkSettings``.
        student_steps: Of self-forcing, for each chunk.
        stages: Lengths of clips and batches over the run.
        objective: What clips are drawn.
        autoencoder: Needed where `latents.npy` does not lie in ``out`` yet.
    """

    cache: str
    out: str
    text: TrainedText
    data: LatentData
    loop: loop.LoopSettings
    model: str = "nano-t2v"
    guidance: float | None = field(default=None, metadata={"least": 1})
    steps: StepSettings | None = None
    teacher: str | None = None
    student: str | None = None
    times: Times = field(default_factory=Times)
    attention: str | None = None
    forcing: ForcingSettings | None = None
    chunks: ChunkSettings = field(default_factory=ChunkSettings)
    student_steps: StudentSteps = field(default_factory=StudentSteps)
    stages: tuple[Stage, ...] = (Stage(1.0, 7, 16),)
    objective: FlowSettings = field(default_factory=FlowSettings)
    autoencoder: TrainedAutoencoder | None = None

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        if self.forcing is not None and self.forcing.loss == "dmd":
            return ("student", "fake")
        return ("network",) if self.times.by_frame else ("student",)

    def __post_init__(self) -> None:
        if sum((self.steps is not None, self.forcing is not None, self.times.by_frame > 0)) > 1:
            raise RequestError("`steps`, `forcing` and `times.by_frame` are three ways to learn: give one of them")
        if self.attention is not None:
            AttentionSpec().chosen(self.attention)


class NanoBatches:
    """Batches of Nano's clips, as objectives of catalogue models take them.

    Args:
        flow: Draws clips and their text.
    """

    def __init__(self, flow: FlowObjective) -> None:
        self.flow = flow

    @property
    def empty(self) -> TextEmbeddings:
        """Embeddings of the empty prompt."""
        return self.flow.states(self.flow.slots_MR[:1], torch.tensor([True]), still=False)

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""
        drawn = self.flow.batch(step, rng.generator(0))
        total = len(drawn.latents_BTHWC)
        numbers = list(portion.of(range(total)))
        tokens = drawn.latents_BTHWC[numbers][..., 0].numel() // math.prod(self.flow.network.params.patch_size)
        done(len(numbers), tokens)
        text, clean, given = drawn.text, drawn.latents_BTHWC[numbers], drawn.given_B[numbers]
        mask = None if text.mask_BL is None else text.mask_BL[numbers]
        known = Known()
        if given.any():
            is_known = torch.zeros(*clean.shape[:2], 1, 1, 1, dtype=torch.bool)
            is_known[given, 0] = True
            known = Known({VIDEO: clean}, {VIDEO: is_known})
        embeddings = TextEmbeddings(text.tokens_BLC[numbers], text.pooled_BC[numbers], mask)
        return Batch(clean, Given(embeddings, known), numbers, total)


def distil(recipe: NanoDistilRecipe, run: Run) -> Path:
    """Distil Nano; returns its weight file.

    Raises:
        RequestError: `latents.npy` is absent and no autoencoder is named.
        WeightsError: Weights are missing or broken.
    """
    card = catalogue.source_of(recipe.model).card
    for begin in filter(None, (recipe.student, recipe.teacher)):
        check_begin(DiffusionTransformer3D, DiTParams.from_dict(card.dit.params), begin)
    run.out.mkdir(parents=True, exist_ok=True)
    latents = run.out / "latents.npy"
    if not latents.exists():
        if recipe.autoencoder is None:
            raise RequestError(f"`{latents}` is not there: name the `autoencoder` that makes it")
        cache_latents(Path(recipe.cache), frozen_autoencoder(recipe.autoencoder), latents, **asdict(recipe.data))
    context = build(card, RunOptions(device=run.device, dtype="float32", only=("dit",)))
    denoising = Denoising(context, resolve(Request(card.id, "any", seed=0), card, needs_image=False))
    with context.placement.hold("dit") as held:
        student: nn.Module = copy.deepcopy(held).float().requires_grad_(True)
    if recipe.teacher is not None:
        load_into(student, Path(recipe.teacher), dtype=torch.float32)
        student.requires_grad_(True)
    own = context.attention_of(denoising.job)
    attention = own if recipe.attention is None else own.chosen(recipe.attention)
    learning = denoising.under(attention)
    words = NanoTextNetwork(recipe.text.params)
    load_into(words, Path(recipe.text.weights))
    flow = FlowObjective(
        latents,
        words,
        DiTParams.from_dict(card.dit.params),
        recipe.stages,
        steps=recipe.loop.steps,
        **asdict(recipe.objective),
    )
    batches = NanoBatches(flow)
    network = copy.deepcopy(student).requires_grad_(False).eval()
    scale = card.sampling.guidance if recipe.guidance is None else recipe.guidance
    teacher = Teacher(denoising, network, scale, Untold(batches.empty, batches.empty))
    if recipe.student is not None:
        load_into(student, Path(recipe.student), dtype=torch.float32)
        student.requires_grad_(True)
    objective: Objective
    if recipe.forcing is not None:
        rollout = Rollout(Walk(learning, recipe.student_steps), recipe.chunks, attention)
        matching, forcing = None, recipe.forcing
        if forcing.loss == "dmd":
            fake = copy.deepcopy(network).requires_grad_(True)
            matching = Matching(denoising, teacher, fake, recipe.times, least=forcing.least, most=forcing.most)
        objective = SelfForcingObjective(student, teacher, batches, rollout, forcing, matching)
    elif recipe.times.by_frame:
        objective = DenoiserObjective(learning, student, batches, recipe.times)
    elif recipe.steps is None:
        objective = GuidanceObjective(learning, student, teacher, batches, recipe.times)
    else:
        objective = StepObjective(learning, student, teacher, batches, recipe.steps)
    made = loop.run(
        objective, recipe.loop, run.out, resume=run.resume, device=run.device, recipe=run.recipe, on_log=run.on_log
    )
    return write_state(
        {**student.state_dict(), **made[recipe.learners[0]]}, run.out / "dit.safetensors", layout="official"
    )
