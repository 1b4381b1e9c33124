"""Objective of a Kandinsky 5 denoiser: flow matching on cached latents and the known slots of each clip.

x_t = (1 − t)·x_0 + t·noise, the network learns the velocity noise − x_0 (FACTS section 6; Lipman et al. 2023, eq. 23).
Legend: B batch, T latent frames, H W latent rows and columns, C channels.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky5.cost import flops, grid_of
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.text import ROLES, NanoTextNetwork
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.concepts import Concept, load_concepts
from kandinsky.lab.nano.emoji import CAMERAS, POSITIONS, SCALES, Clips, Scene, composite
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.runtime.devices import mixed_precision
from kandinsky.train.objective import Loss, Timed
from kandinsky.train.work import done

log = logging.getLogger(__name__)


EXTRAS: dict[str, list[str]] = {"position": list(POSITIONS), "scale": list(SCALES), "camera": list(CAMERAS)}


@dataclass(frozen=True, slots=True)
class Stage:
    """Until this share of the run: so many latent frames a clip, so many clips a batch."""

    until: float
    frames: int
    batch: int


def scenes_for(concept: int, entry: Concept, extras: int) -> list[tuple[int, Scene]]:
    """(colour, scene) of every training clip of a concept: each training colour plain, then ``extras`` more."""
    rng = np.random.default_rng(concept + 1)
    colours = captions.TRAIN_COLOURS(entry)
    scenes = [(colour, Scene(captions.COLOURS[colour].rgb)) for colour in colours]
    for number in range(extras):
        colour = colours[int(rng.integers(len(colours)))]
        words: dict[str, Any] = {"position": None, "scale": None, "camera": None}
        kind = ("position", "scale", "camera")[number % 3]
        words[kind] = str(rng.choice(EXTRAS[kind]))
        scenes.append((colour, Scene(captions.COLOURS[colour].rgb, **words)))
    return scenes


@torch.no_grad()
def cache_latents(
    cache: Path, autoencoder: NanoAutoencoder, target: Path, *, side: int, extras: int, wordless: int = 0
) -> None:
    """Encode every training clip once: float16 [M, T, H, W, C], and an index of what each shows.

    wordless: colours of every further clip that is neither a concept nor held out; its concept is None in the index.
    """
    clips, entries = Clips(cache), load_concepts()
    own = [clips.row(entry.file) for entry in entries]
    plan: list[tuple[int, int | None, int, Scene]] = [
        (own[number], number, *scene)
        for number, entry in enumerate(entries)
        for scene in scenes_for(number, entry, extras)
    ]
    for row in sorted(set(autoencoder_rows(cache)[0]) - set(own)):
        colours = np.random.default_rng(row).permutation(len(captions.COLOURS))[:wordless]
        plan += [(row, None, int(colour), Scene(captions.COLOURS[colour].rgb)) for colour in colours]
    part, out = target.with_suffix(".part.npy"), None
    for at in range(0, len(plan), 8):
        rows = plan[at : at + 8]
        frames = [composite(np.asarray(clips.rgba_NTHWC[row]), scene, side=side) for row, _, _, scene in rows]
        with mixed_precision("cpu"):
            latents = autoencoder.encode(to_unit(np.stack(frames))).half().numpy()
        if out is None:
            out = np.lib.format.open_memmap(part, "w+", np.float16, (len(plan), *latents.shape[1:]))
        out[at : at + len(rows)] = latents
    assert out is not None
    out.flush()
    index = [
        {"concept": n, "colour": colour, "position": s.position, "scale": s.scale, "camera": s.camera}
        for _, n, colour, s in plan
    ]
    target.with_suffix(".json").write_text(json.dumps(index))
    part.rename(target)


@dataclass(frozen=True, slots=True)
class Batch:
    """Latents, float32; the states of what they show (a share says nothing); whose first frame is given."""

    latents_BTHWC: Tensor
    text: TextEmbeddings
    given_B: Tensor


class FlowObjective:
    """Velocity matching over a curriculum of clip lengths; a causal latent's first frames are a clip themselves.

    A share ``image_share`` of the clips of several frames learns image → video: the first latent frame is clean and the
    mask channel says so (FACTS section 3.4). Of these, ``wordless_share`` are clips that have no concept and no text.

    ``words`` is nano's text network: only its memory of slots is used, and what a clip shows is known, so captions need
    no reading here. At generation the network reads a prompt and chooses among the same slots.
    """

    def __init__(
        self,
        latents: Path,
        words: NanoTextNetwork,
        params: DiTParams,
        stages: Sequence[Stage],
        *,
        steps: int,
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        plain_share: float = 0.6,
        drop_text: float = 0.1,
        time_shift: float = 1.0,
        keep_first: float = 0.0,
        condition: str = "zeros",
        image_share: float = 0.0,
        wordless_share: float = 0.5,
    ) -> None:
        self.latents_MTHWC = np.load(latents, mmap_mode="r")
        rows = json.loads(latents.with_suffix(".json").read_text())
        self.slots_MR = torch.tensor([slots_of(row) for row in rows])
        is_plain = [row["position"] is None and row["scale"] is None and row["camera"] is None for row in rows]
        named = [row["concept"] is not None for row in rows]
        self.plain = [number for number, plain in enumerate(is_plain) if plain and named[number]]
        self.wordless = [number for number, known in enumerate(named) if not known]
        self.moved = [number for number, plain in enumerate(is_plain) if not plain]
        self.words, self.stages, self.steps = words.requires_grad_(False), list(stages), steps
        self.rope_scale, self.time_shift = rope_scale, time_shift
        self.keep_first, self.condition = keep_first, condition
        self.image_share, self.wordless_share = image_share, wordless_share if self.wordless else 0.0
        self.plain_share, self.drop_text = plain_share if self.moved else 1.0, drop_text
        self.network = DiffusionTransformer3D(params)

    def stage(self, step: int) -> Stage:
        share = step / max(1, self.steps)
        return next((stage for stage in self.stages if share < stage.until), self.stages[-1])

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        # still pictures stay in the mix, or the network would forget them
        stage = self.stages[0] if rng.random() < self.keep_first else self.stage(step)
        pools = [self.plain if rng.random() < self.plain_share else self.moved for _ in range(stage.batch)]
        dropped = rng.random(stage.batch) < self.drop_text
        given = np.zeros(stage.batch, bool)
        if self.image_share and stage.frames > 1:
            given = rng.random(stage.batch) < self.image_share
            wordless = given & (rng.random(stage.batch) < self.wordless_share)
            pools = [self.wordless if alone else pool for alone, pool in zip(wordless, pools, strict=True)]
            dropped |= wordless
        rows = [pool[rng.integers(len(pool))] for pool in pools]
        latents = np.stack([np.asarray(self.latents_MTHWC[row, : stage.frames]) for row in rows])
        text = self.states(self.slots_MR[rows], torch.from_numpy(dropped), still=stage.frames == 1)
        return Batch(torch.from_numpy(latents).float(), text, torch.from_numpy(given))

    def states(self, slots_BR: Tensor, dropped_B: Tensor, *, still: bool) -> TextEmbeddings:
        """Text states of known slots; where ``dropped_B``, those of the empty prompt."""
        return spoken(self.words, slots_BR, dropped_B, still=still)

    def loss(self, batch: Batch, generator: torch.Generator) -> Loss:
        clean, text, given = batch.latents_BTHWC, batch.text, batch.given_B
        params, latent = self.network.params, clean.shape[1:4]
        tokens = len(clean) * math.prod(grid_of(params, latent))
        # a pass forwards, and two as costly ones backwards
        done(len(clean), tokens, 3 * len(clean) * flops(params, latent, text.tokens_BLC.shape[1]))
        t = torch.sigmoid(torch.randn(len(clean), generator=generator))
        t = self.time_shift * t / (1 + (self.time_shift - 1) * t)
        noise = torch.randn(clean.shape, generator=generator)
        device = next(self.network.parameters()).device  # numbers are drawn on the processor: the same on any device
        clean, noise, t, given = (x.to(device) for x in (clean, noise, t, given))
        text = text.to(device)
        noisy = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
        # the first frame of these is there from the beginning, and nothing is learned from guessing it
        mask = torch.zeros(*clean.shape[:2], 1, 1, 1, dtype=torch.bool, device=device)
        mask[given, 0] = True
        known = Known(clean={VIDEO: clean}, mask={VIDEO: mask}) if given.any() else Known()
        weight = (~mask[..., 0, 0, 0]).float()
        denoiser = bind(self.network, known, Pass(text, condition=self.condition, rope_scale=self.rope_scale))
        velocity = denoiser(known.pin({VIDEO: noisy}), t)[VIDEO].float()
        error_BT = (velocity - (noise - clean)).pow(2).mean(dim=(2, 3, 4))
        loss = (error_BT * weight).sum() / weight.sum()
        with torch.no_grad():  # clips count by their frames that are learned
            learned = weight.sum(1)
            rows = torch.stack((t, (error_BT * weight).sum(1) / learned, learned / learned.mean()), dim=1)
        timed = [Timed(*row) for row in rows.tolist()]
        return Loss(loss, figures={f"loss_{clean.shape[1]}": float(loss.detach())}, timed=timed)


def slots_of(row: dict[str, Any]) -> tuple[int, ...]:
    """Slot numbers of a cached clip in the order of ROLES; 0 of position, size and camera means: nothing special."""

    def number(names: Sequence[str], name: str | None) -> int:
        return 0 if name is None else names.index(name) + 1

    return (
        row["concept"] or 0,  # a wordless clip is only ever seen with its text dropped
        row["colour"],
        number(captions.POSITIONS, row["position"]),
        number(captions.SCALES, row["scale"]),
        number(captions.CAMERAS, row["camera"]),
    )


def spoken(words: NanoTextNetwork, slots_BR: Tensor, dropped_B: Tensor, *, still: bool) -> TextEmbeddings:
    """Text states of known slots; where ``dropped_B``, those of the empty prompt."""
    counts = words.params.slots
    choices = {
        role: F.one_hot(torch.where(dropped_B, counts[role], slots_BR[:, r]), counts[role] + 1).float()
        for r, role in enumerate(ROLES)
    }
    return words.speak(choices, torch.where(dropped_B, 2, int(still)))
