"""Objective of a Kandinsky 5 denoiser: flow matching on cached latents, with captions made fresh for every batch.

x_t = (1 − t)·x_0 + t·noise, the network learns the velocity noise − x_0 (FACTS section 6; Lipman et al. 2023, eq. 23).
Legend: B batch, T latent frames, H W latent rows and columns, C channels.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky.data import captions
from kandinsky.data.concepts import Concept, load_concepts
from kandinsky.data.nano import CAMERAS, POSITIONS, SCALES, Clips, Scene, composite
from kandinsky.nets.kandinsky5.denoiser import join_condition
from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.nets.vae.nano import NanoAutoencoder
from kandinsky.text.protocol import TextEncoder
from kandinsky.train.autoencoder import to_unit

log = logging.getLogger(__name__)


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
        words[kind] = str(rng.choice(list({"position": POSITIONS, "scale": SCALES, "camera": CAMERAS}[kind])))
        scenes.append((colour, Scene(captions.COLOURS[colour].rgb, **words)))
    return scenes


@torch.no_grad()
def cache_latents(cache: Path, autoencoder: NanoAutoencoder, target: Path, *, side: int, extras: int) -> None:
    """Encode every training clip once: float16 [M, T, H, W, C], and an index of what each shows."""
    clips, entries = Clips(cache), load_concepts()
    plan = [(number, *scene) for number, entry in enumerate(entries) for scene in scenes_for(number, entry, extras)]
    part, out = target.with_suffix(".part.npy"), None
    for at in range(0, len(plan), 8):
        rows = plan[at : at + 8]
        frames = [
            composite(np.asarray(clips.rgba_NTHWC[clips.row(entries[number].file)]), scene, side=side)
            for number, _, scene in rows
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = autoencoder.encode(to_unit(np.stack(frames))).half().numpy()
        if out is None:
            out = np.lib.format.open_memmap(part, "w+", np.float16, (len(plan), *latents.shape[1:]))
        out[at : at + len(rows)] = latents
    assert out is not None
    out.flush()
    index = [
        {"concept": n, "colour": colour, "position": s.position, "scale": s.scale, "camera": s.camera}
        for n, colour, s in plan
    ]
    target.with_suffix(".json").write_text(json.dumps(index))
    part.rename(target)


class FlowObjective:
    """Velocity matching over a curriculum of clip lengths; a causal latent's first frames are a clip themselves."""

    def __init__(
        self,
        latents: Path,
        encoder: TextEncoder,
        params: DiTParams,
        stages: Sequence[Stage],
        *,
        steps: int,
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        plain_share: float = 0.6,
        drop_text: float = 0.1,
        russian: float = 0.4,
        use_tags: float = 0.3,
        time_shift: float = 1.0,
    ) -> None:
        self.latents_MTHWC = np.load(latents, mmap_mode="r")
        self.index = json.loads(latents.with_suffix(".json").read_text())
        self.entries = load_concepts()
        is_plain = [row["position"] is None and row["scale"] is None and row["camera"] is None for row in self.index]
        self.plain = [number for number, plain in enumerate(is_plain) if plain]
        self.moved = [number for number, plain in enumerate(is_plain) if not plain]
        self.encoder, self.stages, self.steps = encoder, list(stages), steps
        self.rope_scale, self.time_shift = rope_scale, time_shift
        self.plain_share, self.drop_text = plain_share if self.moved else 1.0, drop_text
        self.russian, self.use_tags = russian, use_tags
        self.network = DiffusionTransformer3D(params)

    def stage(self, step: int) -> Stage:
        share = step / max(1, self.steps)
        return next((stage for stage in self.stages if share < stage.until), self.stages[-1])

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        stage = self.stage(step)
        rows, prompts = [], []
        for _ in range(stage.batch):
            pool = self.plain if rng.random() < self.plain_share else self.moved
            row = pool[rng.integers(len(pool))]
            rows.append(row)
            prompts.append("" if rng.random() < self.drop_text else self.caption(row, rng))
        latents = np.stack([np.asarray(self.latents_MTHWC[row, : stage.frames]) for row in rows])
        return torch.from_numpy(latents).float(), prompts

    def caption(self, row: int, rng: np.random.Generator) -> str:
        """One way to say what a row shows; a white background goes unnamed half of the time, as a rule of captions."""
        shown = self.index[row]
        unnamed = shown["colour"] == captions.WHITE and rng.random() < 0.5
        return captions.caption(
            self.entries[shown["concept"]],
            None if unnamed else shown["colour"],
            lang="ru" if rng.random() < self.russian else "en",
            rng=random.Random(int(rng.integers(2**62))),
            position=shown["position"],
            scale=shown["scale"],
            camera=shown["camera"],
            use_tags=self.use_tags,
        )

    def loss(self, batch: tuple[Tensor, list[str]], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean, prompts = batch
        with torch.no_grad():
            text = self.encoder.encode(prompts)
        t = torch.sigmoid(torch.randn(len(clean), generator=generator))
        t = self.time_shift * t / (1 + (self.time_shift - 1) * t)
        noise = torch.randn(clean.shape, generator=generator)
        spread = t.view(-1, 1, 1, 1, 1)
        noisy = torch.lerp(clean, noise, spread)
        x = join_condition(noisy, self.network.params)
        velocity = self.network(x, t * 1000, text, rope_scale=self.rope_scale).float()
        loss = F.mse_loss(velocity, noise - clean)
        return loss, {f"loss_{clean.shape[1]}": float(loss.detach())}
