"""Objective of a Kandinsky 5 denoiser: flow matching on cached latents and the known slots of each clip.

x_t = (1 − t)·x_0 + t·noise, the network learns the velocity noise − x_0 (FACTS section 6; Lipman et al. 2023, eq. 23).
Legend: B batch, T latent frames, H W latent rows and columns, C channels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.data import captions
from kandinsky.data.concepts import Concept, load_concepts
from kandinsky.data.nano import CAMERAS, POSITIONS, SCALES, Clips, Scene, composite
from kandinsky.nets.kandinsky5.denoiser import CONDITIONS, join_condition
from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.nets.text.nano import ROLES, NanoTextNetwork
from kandinsky.nets.vae.nano import NanoAutoencoder
from kandinsky.train.autoencoder import to_unit
from kandinsky.types import TextStates

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
    """Velocity matching over a curriculum of clip lengths; a causal latent's first frames are a clip themselves.

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
    ) -> None:
        self.latents_MTHWC = np.load(latents, mmap_mode="r")
        rows = json.loads(latents.with_suffix(".json").read_text())
        self.slots_MR = torch.tensor([slots_of(row) for row in rows])
        is_plain = [row["position"] is None and row["scale"] is None and row["camera"] is None for row in rows]
        self.plain = [number for number, plain in enumerate(is_plain) if plain]
        self.moved = [number for number, plain in enumerate(is_plain) if not plain]
        self.words, self.stages, self.steps = words.requires_grad_(False), list(stages), steps
        self.rope_scale, self.time_shift = rope_scale, time_shift
        self.keep_first, self.condition = keep_first, condition
        self.plain_share, self.drop_text = plain_share if self.moved else 1.0, drop_text
        self.network = DiffusionTransformer3D(params)

    def stage(self, step: int) -> Stage:
        share = step / max(1, self.steps)
        return next((stage for stage in self.stages if share < stage.until), self.stages[-1])

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, TextStates]:
        """Latents [B, T, H, W, C], float32, and the states of what they show; a share of them says nothing."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        # still pictures stay in the mix, or the network would forget them
        stage = self.stages[0] if rng.random() < self.keep_first else self.stage(step)
        pools = [self.plain if rng.random() < self.plain_share else self.moved for _ in range(stage.batch)]
        rows = [pool[rng.integers(len(pool))] for pool in pools]
        dropped = torch.from_numpy(rng.random(stage.batch) < self.drop_text)
        latents = np.stack([np.asarray(self.latents_MTHWC[row, : stage.frames]) for row in rows])
        return torch.from_numpy(latents).float(), self.states(self.slots_MR[rows], dropped, still=stage.frames == 1)

    def states(self, slots_BR: Tensor, dropped_B: Tensor, *, still: bool) -> TextStates:
        """Text states of known slots; where ``dropped_B``, those of the empty prompt."""
        counts = self.words.params.slots
        choices = {
            role: F.one_hot(torch.where(dropped_B, counts[role], slots_BR[:, r]), counts[role] + 1).float()
            for r, role in enumerate(ROLES)
        }
        return self.words.speak(choices, torch.where(dropped_B, 2, int(still)))

    def loss(self, batch: tuple[Tensor, TextStates], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean, text = batch
        t = torch.sigmoid(torch.randn(len(clean), generator=generator))
        t = self.time_shift * t / (1 + (self.time_shift - 1) * t)
        noise = torch.randn(clean.shape, generator=generator)
        device = next(self.network.parameters()).device  # numbers are drawn on the processor: the same on any device
        clean, noise, t, text = clean.to(device), noise.to(device), t.to(device), text.to(device)
        noisy = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
        x = join_condition(noisy, self.network.params, CONDITIONS[self.condition](noisy))
        velocity = self.network(x, t * 1000, text, rope_scale=self.rope_scale).float()
        loss = F.mse_loss(velocity, noise - clean)
        return loss, {f"loss_{clean.shape[1]}": float(loss.detach())}


def slots_of(row: dict[str, Any]) -> tuple[int, ...]:
    """Slot numbers of a cached clip in the order of ROLES; 0 of position, size and camera means: nothing special."""

    def number(names: Sequence[str], name: str | None) -> int:
        return 0 if name is None else names.index(name) + 1

    return (
        row["concept"],
        row["colour"],
        number(captions.POSITIONS, row["position"]),
        number(captions.SCALES, row["scale"]),
        number(captions.CAMERAS, row["camera"]),
    )
