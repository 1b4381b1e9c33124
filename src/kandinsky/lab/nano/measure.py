"""Measures of nano: does the clip show what was asked, over the right colour, moving as it should?

Retrieval compares a generated clip with the real clip of every concept, composited plainly over the background that was
asked for: both are shrunk to 24 × 24 pixels by area, and the candidate with the smallest mean squared difference over
all frames is the answer. Nothing here is learned, so nothing can be tuned to it.

Legend: M generated clips, K concepts, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import Prompt
from kandinsky.lab.nano.concepts import Concept
from kandinsky.lab.nano.emoji import Clips, Scene, composite
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.lab.nano.train_autoencoder import random_scene, to_unit

# prompts, seeds → uint8 clips [M, T, H, W, 3]
Generate = Callable[[Sequence[str], Sequence[int]], np.ndarray]
SHRUNK = 24


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the table: a group of prompts that belong together."""

    prompts: int
    candidates: int
    retrieval_1: float
    retrieval_5: float
    colour: float
    motion_ratio: float


class NanoJudge:
    """The real clips every generated clip is compared with."""

    def __init__(self, clips: Clips, entries: Sequence[Concept], *, side: int) -> None:
        self.entries = entries
        self.rgba = [np.asarray(clips.rgba_NTHWC[clips.row(entry.file)]) for entry in self.entries]
        self.side = side
        self._candidates: dict[int, Tensor] = {}

    def real(self, concept: int, colour: int) -> np.ndarray:
        """The real clip of a concept over a colour, uint8 [T, H, W, 3]."""
        return composite(self.rgba[concept], Scene(captions.COLOURS[colour].rgb), side=self.side)

    def candidates(self, colour: int) -> Tensor:
        """All concepts over one colour, shrunk: [K, T·24·24·3]."""
        if colour not in self._candidates:
            self._candidates[colour] = torch.stack([shrink(self.real(k, colour)) for k in range(len(self.entries))])
        return self._candidates[colour]

    def rank(self, clip_THWC: np.ndarray, prompt: Prompt) -> int:
        """How many concepts lie nearer to the clip than the one asked for; 0 is a hit."""
        return rank_among(self.candidates(prompt.colour), clip_THWC, prompt.concept_index)

    def figures(self, clips_MTHWC: np.ndarray, prompts: Sequence[Prompt]) -> Figures:
        ranks = np.array([self.rank(clip, prompt) for clip, prompt in zip(clips_MTHWC, prompts, strict=True)])
        colours = [background_colour(clip) == prompt.colour for clip, prompt in zip(clips_MTHWC, prompts, strict=True)]
        made = [motion(clip) for clip in clips_MTHWC]
        real = [motion(self.real(prompt.concept_index, prompt.colour)) for prompt in prompts]
        return Figures(
            prompts=len(prompts),
            candidates=len(self.entries),
            retrieval_1=float((ranks < 1).mean()),
            retrieval_5=float((ranks < 5).mean()),
            colour=float(np.mean(colours)),
            motion_ratio=float(np.median(made) / np.median(real)),
        )


def rank_among(candidates: Tensor, clip_THWC: np.ndarray, own: int) -> int:
    """How many candidates, shrunk [K, …], lie nearer to a clip than that of a number; 0 is a hit."""
    distances = (candidates - shrink(clip_THWC)).pow(2).mean(1)
    return int((distances < distances[own]).sum())


def shrink(clip_THWC: np.ndarray) -> Tensor:
    frames = torch.from_numpy(np.ascontiguousarray(clip_THWC)).permute(0, 3, 1, 2).float().div(255)
    return F.adaptive_avg_pool2d(frames, SHRUNK).flatten()


def background_colour(clip_THWC: np.ndarray) -> int:
    """The palette colour nearest to the median of the outermost two pixels of every frame."""
    edge = np.concatenate([clip_THWC[:, part].reshape(-1, 3) for part in (np.s_[:2], np.s_[-2:])])
    sides = np.concatenate([clip_THWC[:, :, part].reshape(-1, 3) for part in (np.s_[:2], np.s_[-2:])])
    median = np.median(np.concatenate([edge, sides]), axis=0)
    return int(np.argmin([np.square(median - np.array(colour.rgb)).sum() for colour in captions.COLOURS]))


def motion(clip_THWC: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, 0..255."""
    return float(np.abs(np.diff(clip_THWC.astype(np.int16), axis=0)).mean())


def block_edges(clip_THWC: np.ndarray, block: int = 8) -> float:
    """Mean absolute step across the autoencoder's block borders over the mean step elsewhere; 1 = no blocks."""
    x = clip_THWC.astype(np.int16)
    steps = [np.abs(np.diff(x, axis=axis)).mean(axis=(0, 3 - axis, 3)) for axis in (1, 2)]
    on = np.mean([s[block - 1 :: block].mean() for s in steps])
    off = np.mean([np.delete(s, np.s_[block - 1 :: block]).mean() for s in steps])
    return float(on / off)


def choose_prompts(per_group: int | None = None) -> dict[str, list[Prompt]]:
    """Evaluation prompts by group (`en label`, `ru label`, `en synonym`, `ru synonym`), evenly thinned to a number."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in captions.evaluation_prompts():
        groups.setdefault(f"{prompt.lang} {prompt.kind}", []).append(prompt)
    if per_group is not None:
        for name, prompts in groups.items():
            keep = min(per_group, len(prompts))
            groups[name] = [prompts[int(i * len(prompts) / keep)] for i in range(keep)]
    return dict(sorted(groups.items(), key=lambda item: (item[0].split()[1], item[0])))


def judge_groups(
    judge: NanoJudge,
    generate: Generate,
    groups: dict[str, list[Prompt]],
    *,
    batch: int = 16,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Figures]:
    """Generate and judge all groups. Prompt i of a group uses seed ``seed + i``."""
    result, done, total = {}, 0, sum(len(prompts) for prompts in groups.values())
    for name, prompts in groups.items():
        clips = []
        for at in range(0, len(prompts), batch):
            part = prompts[at : at + batch]
            clips.append(generate([prompt.text for prompt in part], [seed + at + i for i in range(len(part))]))
            done += len(part)
            if on_batch:
                on_batch(done, total)
        result[name] = judge.figures(np.concatenate(clips), prompts)
    return result


@torch.no_grad()
def judge_autoencoder(cache: Path, network: NanoAutoencoder, *, side: int, held_every: int = 6) -> dict[str, float]:
    """PSNR and block edges over whole clips never trained on, in random scenes (a fixed draw)."""
    clips = Clips(cache)
    _, held = autoencoder_rows(cache, held_every)
    rng = np.random.default_rng(2024)
    palette = [colour.rgb for colour in captions.COLOURS]
    psnr, before, after = [], [], []
    for row in held:
        real = composite(np.asarray(clips.rgba_NTHWC[row]), random_scene(rng, palette), side=side)
        target = to_unit(real)[None]
        out = network.decode(network.encode(target)).float().clamp(-1, 1)
        psnr.append(10 * math.log10(4 / float((out - target).pow(2).mean())))
        made = ((out[0] + 1) * 127.5).to(torch.uint8).numpy()
        before.append(block_edges(real))
        after.append(block_edges(made))
    return {
        "clips": float(len(held)),
        "psnr_db": float(np.mean(psnr)),
        "psnr_worst_db": float(np.min(psnr)),
        "block_edges_real": float(np.mean(before)),
        "block_edges_decoded": float(np.mean(after)),
    }
