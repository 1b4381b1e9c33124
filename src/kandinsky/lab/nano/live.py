"""Recipes of kind `nano-live`: a causal Nano of few steps a latent frame, on real clips and its own past.

The student goes on from what it made itself, by the roll-out of generation (``diffusion/roll.py``), and is held against
the clip itself: an emoji is a loop, so the right next frame is known for as long as it runs, and no teacher is asked.
Each latent frame of a roll-out is asked for once, from noise alone or from the clip at a time of its own, and what is
answered is what the next ones see.
In some roll-outs the prompt changes on the way: what is remembered is seen again under the new prompt, as in
generation, and from then on the other clip is right. In clips of the small world each latent frame is told where its
subject will stand; that is learned by a small network of its own, from the frame before and the action (``steering``).

What learns are low-rank updates of every linear layer, so that the student is a small file beside the shipped network.

Source: DAgger (arXiv 1011.0686) with the roll-outs of Self Forcing (arXiv 2506.08009).
Legend: B batch; K latent frames; H W C rows, columns, channels; O I outputs and inputs of a layer; R rank.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kandinsky import catalogue
from kandinsky.diffusion.roll import CachedPast, Finished, as_context
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.families.nano.text import ROLES, NanoTextNetwork
from kandinsky.families.nano.world import ACTIONS, COLUMNS, PLAIN, SMALL, STEP, Steering
from kandinsky.lab.nano.flow import slots_of, spoken
from kandinsky.lab.nano.streams import World, at_rest, encode_streams, in_world
from kandinsky.lab.nano.train import TrainedAutoencoder, TrainedText, frozen_autoencoder
from kandinsky.model.denoiser import Known
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues
from kandinsky.ops.lora import LowRank, linear_layers
from kandinsky.train import loop
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update, at_times
from kandinsky.train.recipe import Run
from kandinsky.train.work import done
from kandinsky.weights.read import load_into, read_state
from kandinsky.weights.update import DOWN, UP, write_update
from kandinsky.weights.write import write_state

_COUNT = {"least": 1}
_SHARE = {"least": 0, "most": 1}
ROUNDED = ("attention.", "feed_forward.")  # layers whose products autocast rounds, whatever the stream's type
OWN_CLIPS = 64  # of the student, from which the small network of the world learns what its frames look like
AFTER_SWITCH = 10  # latent frame of a clip that is right behind a change to it: its loop begins again there


@dataclass(frozen=True, slots=True)
class StreamData:
    """Clips, made once: of each concept over so many colours; so many of each that lives in the small world."""

    colours: int = field(default=5, metadata=_COUNT)
    world: int = field(default=15, metadata={"least": 0})


@dataclass(frozen=True, slots=True)
class RollSettings:
    """How roll-outs go.

    Attributes:
        frames: Latent frames of a roll-out.
        batch: Roll-outs of a step.
        context_noise: As ``ChunkSettings``.
        beginning: So many begin with nothing, the others after frames of the clip.
        switches: So many of those others change their prompt on the way.
        world: So many are of the small world.
        noise: So many latent frames are asked for from noise alone, the others from a time between ``least`` and 1.
        shift: Of these times: more than 1 draws more of much noise.
        least: The least of them.
    """

    frames: int = field(default=8, metadata=_COUNT)
    batch: int = field(default=12, metadata=_COUNT)
    context_noise: float = field(default=0.05, metadata=_SHARE)
    beginning: float = field(default=0.35, metadata=_SHARE)
    switches: float = field(default=0.35, metadata=_SHARE)
    world: float = field(default=0.0, metadata=_SHARE)
    noise: float = field(default=0.5, metadata=_SHARE)
    shift: float = field(default=2.0, metadata={"above": 0})
    least: float = field(default=0.2, metadata=_SHARE)


@dataclass(frozen=True, slots=True)
class LiveRecipe:
    """The keys of a recipe.

    Attributes:
        cache: Folder of `kandinsky data nano`.
        out: Folder of checkpoints, log and weights.
        text: The text network, of which the memory of slots is used.
        autoencoder: Which makes the latents.
        loop: See ``LoopSettings``.
        streams: Folder of the clips' latents, which are made where they are missing.
        data: See ``StreamData``.
        model: Whose weights the student begins with.
        attention: The student's.
        rank: Of the updates.
        start: Updates that an earlier recipe of this kind wrote.
        roll: See ``RollSettings``.
    """

    cache: str
    out: str
    text: TrainedText
    autoencoder: TrainedAutoencoder
    loop: loop.LoopSettings
    streams: str
    data: StreamData = field(default_factory=StreamData)
    model: str = "nano-t2v"
    attention: str = "causal:frames=1,reach=6"
    rank: int = field(default=16, metadata=_COUNT)
    start: str | None = None
    roll: RollSettings = field(default_factory=RollSettings)


class LowRankUpdate(nn.Module):
    """A weight with a product of two small matrices added, of which the second begins as zero.

    Args:
        weight_OI: The weight.
        rank: Of the product.
        rounds: Whether to round the sum once where products are of bfloat16, instead of before each of them.
    """

    def __init__(self, weight_OI: Tensor, rank: int, *, rounds: bool) -> None:
        super().__init__()
        self.rounds = rounds
        outputs, inputs = weight_OI.shape
        self.down_RI = nn.Parameter(torch.randn(min(rank, outputs, inputs), inputs) / inputs**0.5)
        self.up_OR = nn.Parameter(torch.zeros(outputs, min(rank, outputs, inputs)))

    def forward(self, weight_OI: Tensor) -> Tensor:
        with torch.autocast(weight_OI.device.type, enabled=False):
            sum_OI = torch.addmm(weight_OI, self.up_OR, self.down_RI)
        return sum_OI.bfloat16() if self.rounds and torch.is_autocast_enabled(weight_OI.device.type) else sum_OI


def adapt(network: nn.Module, rank: int) -> nn.Module:
    """Freeze a network and give every linear layer an update that learns."""
    network.requires_grad_(False)
    for name, layer in linear_layers(network).items():
        update = LowRankUpdate(layer.weight, rank, rounds=any(part in name for part in ROUNDED))
        parametrize.register_parametrization(layer, "weight", update)
        layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    return network


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The updated weights under the plain network's names."""
    plain = copy.deepcopy(network)
    for layer in linear_layers(plain).values():
        parametrize.remove_parametrizations(layer, "weight")
    return plain.state_dict()


@dataclass(frozen=True, slots=True)
class Rolled:
    """A batch of roll-outs, which begin at one latent frame.

    Attributes:
        clean_BKHWC: The clips, from the first latent frame that is seen on.
        before: How many frames of them are seen before the roll-out.
        texts: What is told for each latent frame.
        places_KBP: Where the subject stands at the end of each, of clips of the world; see ``Steering.after``.
        switch: Latent frame at which the prompt changes.
    """

    clean_BKHWC: Tensor
    before: int
    texts: tuple[TextEmbeddings, ...]
    places_KBP: Tensor | None = None
    switch: int | None = None

    def given(self, k: int) -> Given:
        """What the network is told of a latent frame."""
        if self.places_KBP is None:
            return Given(self.texts[k])
        return Given(self.texts[k], Known(extra={"place": self.places_KBP[k, :, :2]}))


class Latents:
    """Clips of ``encode_streams``."""

    def __init__(self, path: Path) -> None:
        self.latents_MKHWC = np.load(path, mmap_mode="r")
        rows: list[dict[str, Any]] = json.loads(path.with_suffix(".json").read_text())
        self.slots_MR = torch.tensor([slots_of(row) for row in rows])
        self.actions = [row["actions"] for row in rows]
        states = [World().states(actions) for actions in self.actions if actions]
        self.states_MKS = torch.tensor([[[one.column, one.air, one.grown] for one in clip] for clip in states])

    def __len__(self) -> int:
        return len(self.latents_MKHWC)

    def of(self, rows: np.ndarray, begin: int, end: int) -> Tensor:
        """Latent frames from one to another of some clips, float32."""
        return torch.from_numpy(np.stack([self.latents_MKHWC[row, begin:end] for row in rows])).float()


class LiveObjective(Objective):
    """A causal student on its own past, held against clips.

    Args:
        student: What learns, see ``adapt``.
        denoising: Its noise process, under causal attention.
        words: Nano's text network: its memory of slots.
        weights_C: Of each channel of the latent in the error.
        rest: Clips of subjects that stay where they are.
        world: Clips of the small world.
        settings: See ``RollSettings``.
    """

    def __init__(
        self,
        student: nn.Module,
        denoising: Denoising,
        words: NanoTextNetwork,
        weights_C: Tensor,
        rest: Latents,
        world: Latents | None,
        settings: RollSettings,
    ) -> None:
        assert denoising.attention is not None
        self.student, self.denoising, self.words = student, denoising, words.requires_grad_(False)
        self.weights_C, self.rest, self.world, self.settings = weights_C, rest, world, settings
        self.attention = denoising.attention
        self.reach = self.attention.reach

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("student", self.student),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Rolled:
        own = np.random.default_rng(int(torch.randint(2**62, (), generator=rng.generator(0))))
        settings, in_world = self.settings, False
        if self.world is not None:
            in_world = bool(own.random() < settings.world)
        clips = self.world if in_world and self.world is not None else self.rest
        total = clips.latents_MKHWC.shape[1]
        begin = 0 if own.random() < settings.beginning else int(own.integers(1, total - settings.frames + 1))
        first = max(0, begin - self.reach)
        rows = own.integers(len(clips), size=settings.batch)
        end = begin + settings.frames
        clean, before = clips.of(rows, first, end), begin - first
        slots = clips.slots_MR[rows]
        switch, places, texts = None, None, [self._told(slots)] * (end - first)
        if in_world:
            places, texts = self._in_world(clips, rows, first, end)
        elif begin and own.random() < settings.switches:
            switch = before + int(own.integers(0, max(1, settings.frames - 3)))
            others = own.integers(len(clips), size=settings.batch)
            count = len(texts) - switch
            clean[:, switch:] = clips.of(others, AFTER_SWITCH, AFTER_SWITCH + count)
            texts[switch:] = [self._told(clips.slots_MR[others])] * count
        return Rolled(clean, before, tuple(texts), places, switch)

    def loss(self, update: str, batch: Rolled, rng: Rng) -> Loss:
        generator = rng.generator(1)
        clean, level = batch.clean_BKHWC, self.settings.context_noise
        noise = torch.randn(clean.shape, generator=generator)
        seen = as_context(self.denoising.noised, clean, torch.randn(clean.shape, generator=generator), level)
        errors, rows = list[Tensor](), list[Timed]()
        with parametrize.cached():
            for layer in linear_layers(self.student).values():
                layer.weight  # made once, and now: where no gradient is kept it would be one without  # noqa: B018
            past = self._past(batch)
            for k in range(batch.before):
                past.keep(Finished(k, seen[:, k : k + 1]))
            kept = [seen[:, k : k + 1] for k in range(batch.before)]
            for k in range(batch.before, clean.shape[1]):
                if k == batch.switch:  # what is remembered is seen again under the new prompt
                    past = self._past(batch)
                    for place in range(max(0, k - self.reach), k):
                        past.keep(Finished(k, kept[place]))
                right, own_noise, t = clean[:, k : k + 1], noise[:, k : k + 1], self._times(len(clean), generator)
                x = self.denoising.noised(right, own_noise, t)
                prediction = past.ask(x, t, k)
                target = self.denoising.target(right, own_noise, t)
                errors.append(((prediction - target).pow(2) * self.weights_C).mean(dim=(1, 2, 3, 4)))
                rows += at_times(t, errors[-1].detach())
                if k + 1 < clean.shape[1]:
                    made = self.denoising.clean_of(prediction.detach(), x, t)
                    own = torch.randn(made.shape, generator=generator)
                    kept.append(as_context(self.denoising.noised, made, own, level))
                    past.keep(Finished(k, kept[-1]))
        value = torch.stack(errors).mean()
        done(len(clean), len(errors) * clean[:, 0, ..., 0].numel() // 4)
        kind = "world" if batch.places_KBP is not None else "begin" if not batch.before else "on"
        if batch.switch is not None:
            kind = "switch"
        figures = {f"loss_{kind}": float(value.detach())}
        if from_noise := [row.error for row in rows if row.time == 1]:
            figures[f"noise_{kind}"] = sum(from_noise) / len(from_noise)
        timed = [one._replace(weight=1 / len(errors)) for one in rows]
        return Loss(value, len(clean), figures=figures, timed=timed)

    def _times(self, count: int, generator: torch.Generator) -> Tensor:
        settings, u = self.settings, torch.rand(2, count, generator=generator)
        shifted = settings.shift * u[0] / (1 + (settings.shift - 1) * u[0])
        between = settings.least + (1 - settings.least) * shifted
        return torch.where(u[1] < settings.noise, torch.ones(count), between)

    def _in_world(self, world: Latents, rows: np.ndarray, first: int, end: int) -> tuple[Tensor, list[TextEmbeddings]]:
        """Where subjects of the world stand in some latent frames, and the texts, which say their size."""
        states_KBS, texts = world.states_MKS[rows, first:end].transpose(0, 1), []
        for grown_B in states_KBS[..., 2]:
            sized = world.slots_MR[rows].clone()
            sized[:, ROLES.index("size")] = torch.where(grown_B > 0, PLAIN, SMALL)
            texts.append(self._told(sized))
        return states_KBS * torch.tensor([STEP, -STEP, 1.0]), texts

    @torch.no_grad()
    def own_frames(self, rows: np.ndarray, seed: int = 0) -> Tensor:
        """Clips of the world as the student makes them of the same places, [B, K, H, W, C]."""
        assert self.world is not None
        right = self.world.of(rows, 0, self.world.latents_MKHWC.shape[1])
        places, texts = self._in_world(self.world, rows, 0, right.shape[1])
        generator, made = torch.Generator().manual_seed(seed), list[Tensor]()
        with parametrize.cached():
            past = self._past(Rolled(right, 0, tuple(texts), places))
            for k in range(right.shape[1]):
                noise, own = (torch.randn(right[:, :1].shape, generator=generator) for _ in range(2))
                t = torch.ones(len(rows))
                made.append(self.denoising.clean_of(past.ask(noise, t, k), noise, t))
                level = self.settings.context_noise
                past.keep(Finished(k, as_context(self.denoising.noised, made[-1], own, level)))
        return torch.cat(made, dim=1)

    def _past(self, batch: Rolled) -> CachedPast:
        memory = KeyValues(self.attention)
        predict = partial(self.denoising.predict, self.student)
        return CachedPast(
            lambda x, t, begin: predict(x, t.expand(len(x)), batch.given(begin), memory=memory),
            [memory],
            self.settings.context_noise,
        )

    def _told(self, slots_BR: Tensor) -> TextEmbeddings:
        return spoken(self.words, slots_BR, torch.zeros(len(slots_BR), dtype=torch.bool), still=False)


def train(recipe: LiveRecipe, run: Run) -> Path:
    """Train a causal Nano.

    Returns:
        `update.safetensors`, what is added to the model's weights, as a card's part `update` has it; beside it
        `dit.safetensors`, the whole network.

    Raises:
        WeightsError: Weights are missing or broken.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    folder, frozen, rules = Path(recipe.streams), frozen_autoencoder(recipe.autoencoder), World()
    folder.mkdir(parents=True, exist_ok=True)
    rest, world = folder / "rest.npy", folder / "world.npy"
    if not rest.exists():
        encode_streams(Path(recipe.cache), frozen, rest, partial(at_rest, colours=recipe.data.colours))
    if recipe.roll.world and not world.exists():
        encode_streams(Path(recipe.cache), frozen, world, partial(in_world, clips=recipe.data.world), rules)
    card = catalogue.source_of(recipe.model).card
    context = build(card, RunOptions(device=run.device, dtype="float32", only=("dit",)))
    denoising = Denoising(context, resolve(Request(card.id, "any", seed=0), card, needs_image=False))
    with context.placement.hold("dit") as held:
        student = copy.deepcopy(held).float()
    with loop.seeded(recipe.loop.seed):
        adapt(student, recipe.rank)
    if recipe.start is not None:
        begin_with(student, read_state(Path(recipe.start)))
    moved = Latents(world) if recipe.roll.world else None
    words = NanoTextNetwork(recipe.text.params)
    load_into(words, Path(recipe.text.weights))
    objective = LiveObjective(
        student,
        denoising.under(AttentionSpec().chosen(recipe.attention)),
        words,
        seen_weights(frozen.to_latent.weight),
        Latents(rest),
        moved,
        recipe.roll,
    )
    made = loop.run(
        objective, recipe.loop, run.out, resume=run.resume, device=run.device, recipe=run.recipe, on_log=run.on_log
    )["student"]
    student.load_state_dict(made, strict=False)
    if moved is not None:
        rows = np.random.default_rng(recipe.loop.seed).permutation(len(moved))[:OWN_CLIPS]
        with torch.autocast(run.device, torch.bfloat16, enabled=recipe.loop.computes_bf16(run.device)):
            own = torch.cat([objective.own_frames(some) for some in np.array_split(rows, -(-len(rows) // 16))])
        network = steering(moved, own.float(), rows)
        path = run.out / "steering.safetensors"
        write_state(network.state_dict(), path, layout="official", int8=["where.weight"])
    write_state(merged(student), run.out / "dit.safetensors", layout="official")
    return write_update(updates_of(student), run.out / "update.safetensors")


def steering(
    world: Latents,
    own_MKHWC: Tensor | None = None,
    own_rows: np.ndarray | None = None,
    *,
    steps: int = 600,
    batch: int = 96,
    seed: int = 0,
) -> Steering:
    """Learn what actions do, from clips that they moved, and from what the denoiser makes of the same places.

    Frames are made coarser at random, as those of a denoiser may be: later channels of the latent are left out,
    neighbours are mixed, contrast is taken away and noise added.
    """
    with loop.seeded(seed):
        network = Steering()
        rng, optimiser = np.random.default_rng(seed), torch.optim.Adam(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        total = world.states_MKS.shape[1] - 1
        for _ in range(steps):
            rows, at = rng.integers(len(world), size=batch), rng.integers(total, size=batch)
            half = 0 if own_MKHWC is None or own_rows is None else batch // 2
            picked = rng.integers(len(own_MKHWC), size=half) if own_MKHWC is not None else rows[:0]
            if half and own_rows is not None:
                rows[:half] = own_rows[picked]
            frames = np.stack([world.latents_MKHWC[row, k] for row, k in zip(rows, at, strict=True)])
            seen = torch.from_numpy(frames).float()
            if half and own_MKHWC is not None:
                seen[:half] = own_MKHWC[torch.from_numpy(picked), torch.from_numpy(at[:half])]
            finest = torch.from_numpy(rng.integers(4, seen.shape[-1] + 1, size=batch))
            seen = seen * (torch.arange(seen.shape[-1]) < finest[:, None])[:, None, None]
            soft = torch.nn.functional.avg_pool2d(seen.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
            shares = torch.rand(3, batch)[..., None, None, None]
            seen = torch.lerp(seen, soft, shares[0]) * (0.6 + 0.45 * shares[1])
            seen = seen + torch.randn(seen.shape) * shares[2] * 0.5
            done_B = torch.tensor([ACTIONS.index(world.actions[row][k]) for row, k in zip(rows, at, strict=True)])
            column, air, grown = network(seen, done_B)
            right = world.states_MKS[rows, at + 1]
            loss = (
                torch.nn.functional.cross_entropy(column, right[:, 0] + COLUMNS // 2)
                + torch.nn.functional.cross_entropy(air, right[:, 1])
                + torch.nn.functional.cross_entropy(grown, right[:, 2])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def seen_weights(to_latent_CP: Tensor) -> Tensor:
    """How much of a channel of the latent is seen: roots of the energies that it has in pixels, 1 on average.

    Channels are nearly whitened, but the first ones hold colours and places, and the last ones texture.

    Args:
        to_latent_CP: The autoencoder's projection of the pixels of a patch.
    """
    energies_C = torch.linalg.pinv(to_latent_CP.float()).pow(2).sum(0)
    weights_C: Tensor = energies_C.sqrt() / energies_C.sqrt().mean()
    return weights_C


def _update_of(layer: nn.Module) -> LowRankUpdate:
    made = layer.parametrizations.weight[0]  # type: ignore[index, union-attr]
    assert isinstance(made, LowRankUpdate)
    return made


def updates_of(student: nn.Module) -> dict[str, LowRank]:
    """What was added to each linear layer."""
    made = {name: _update_of(layer) for name, layer in linear_layers(student).items()}
    return {name: LowRank(one.down_RI.detach(), one.up_OR.detach(), 1.0) for name, one in made.items()}


def begin_with(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Begin from updates that were written."""
    with torch.no_grad():
        for name, layer in linear_layers(student).items():
            own = _update_of(layer)
            own.down_RI.copy_(state[name + DOWN])
            own.up_OR.copy_(state[name + UP].T)
