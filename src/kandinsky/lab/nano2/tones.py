"""Fitting the tones of skin: ``families/nano/tones.py`` says what they are.

    python -m kandinsky.lab.nano2.tones --data DATA --run RUN [--hold] [--model FOLDER]

The same emoji are there in yellow and in five tones, with the same motion, so every pixel shows what becomes of it: it
is skin, hair or neither, whichever of two maps of colours, or none, fits it best in all five; maps and pixels are
fitted in turns. Then the network learns to see on portraits as codes show them which pixel is what. It writes
`RUN/tones.safetensors`, and with ``--model`` puts it into a model's files too. With ``--hold`` every fourth concept is
left out and measured, and nothing is written: so well it does on concepts that the network never saw.

Legend: N clips, S colours (yellow and five tones), T frames, K terms of a map, P pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.portraits import SIDE
from kandinsky.families.nano.scenes import TONES
from kandinsky.families.nano.tones import HIDDEN, KINDS, TERMS, ToneMap, products, straight
from kandinsky.files import replacing
from kandinsky.lab.nano2.catalogue import Sources, catalogue, toned
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)

SHOWN = (0, 6, 12, 18, 24)
"""The frames of each clip that are looked at."""
HELD = 4
"""Every so manieth concept is left out by ``--hold``."""
STEPS, BATCH, RATE, EVERY, SHIFT = 4000, 12, 5e-3, 4, 8
"""Of the network's training: steps, images, their rate, of which pixels the loss is, and how far images are moved."""
MATTERS = 0.3
"""Where kinds differ by more than this in squared error, a pixel counts no more."""
FILE, PREFIX = "tones.safetensors", "portraits.tones."
"""In a run's folder and in a model's, and how its tensors begin in the latter."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Concepts in yellow and in the five tones, as portraits.

    Args:
        concepts: Their numbers.
        real_NSTCHW: Real clips, uint8: yellow, then each tone.
        coded_NTCHW: Yellow ones as their codes show them, uint8.
    """

    concepts: tuple[int, ...]
    real_NSTCHW: Tensor
    coded_NTCHW: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, sources: Sources, portraits: Portraits) -> Pairs:
        """All that move alike in every tone."""
        numbers, real, coded = [], [], []
        for concept in sorted(toned()):
            others = [sources.toned(concept, tone) for tone in range(1, len(TONES) + 1)]
            if any(other is None for other in others):
                continue
            clips = torch.stack([sources.frames(concept), *(o for o in others if o is not None)])[:, list(SHOWN)]
            small = F.interpolate(clips.flatten(0, 1), size=(SIDE, SIDE), mode="bilinear", antialias=True)
            codes = portraits.numbers_NPE[concept, None].float() * portraits.scale_E
            numbers.append(concept)
            real.append(small.mul(255).round().byte().unflatten(0, clips.shape[:2]))
            coded.append(portraits.decoder(codes)[0, list(SHOWN)].mul(255).round().byte())
        return cls(tuple(numbers), torch.stack(real), torch.stack(coded))


def solved(terms_PK: Tensor, wanted_P3: Tensor) -> Tensor:
    """The map of colours that fits best, [3, TERMS]."""
    x = terms_PK.double()
    products_KK = x.T @ x + 1e-4 * max(1, len(x)) * torch.eye(x.shape[1], dtype=x.dtype)
    found: Tensor = torch.linalg.solve(products_KK, x.T @ wanted_P3.double())
    return found.T.float()


def kinds_of(pairs: Pairs, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """Which pixel is what, by the real clips.

    Args:
        pairs: The clips.
        chosen: Of which the maps are fitted.

    Returns:
        Kinds uint8 [N, T, H, W], and how much worse the next kind fits there, float16.
    """
    clips = pairs.real_NSTCHW[chosen][:, :, len(SHOWN) // 2].float() / 255
    opaque = clips[:, 0, 3] > 0.95
    first, *others = (clips[:, s, :3].permute(0, 2, 3, 1)[opaque] for s in range(clips.shape[1]))
    terms = products(clips[:, 0, :3]).permute(0, 2, 3, 1)[opaque]
    changes = torch.stack([(other - first).abs().amax(1) for other in others]).amax(0) > 0.15
    yellow = changes & (first[:, 0] - first[:, 2] > 0.3)
    kinds = [yellow & (others[0].mean(1) > 0.5), yellow & (others[0].mean(1) < 0.35)]  # hair is dark beside light skin
    maps = torch.zeros(KINDS - 1, len(TONES), 3, TERMS)
    for _ in range(3):
        for kind, which in enumerate(kinds):
            for tone, other in enumerate(others):
                maps[kind, tone] = solved(terms[which], other[which])
        errors = [
            sum((terms @ m.T - other).square().sum(1) for m, other in zip(one, others, strict=True)) for one in maps
        ]
        errors.append(sum((first - other).square().sum(1) for other in others))
        best = torch.stack([torch.as_tensor(e) for e in errors]).argmin(0)
        kinds = [best == kind for kind in range(KINDS - 1)]
    found, margins = [], []
    for clip in pairs.real_NSTCHW:
        image, *rest = clip.float() / 255
        terms, alpha = products(straight(image)), image[:, 3:]
        apart = [
            [
                (alpha * torch.einsum("ok,tkhw->tohw", m, terms) - other[:, :3]).square().sum(1)
                for m, other in zip(one, rest, strict=True)
            ]
            for one in maps
        ]
        apart.append([(image[:, :3] - other[:, :3]).square().sum(1) for other in rest])
        error = torch.stack([torch.stack(one).sum(0) for one in apart])
        two = error.sort(0).values
        found.append(error.argmin(0).byte())
        margins.append((two[1] - two[0]).clamp(max=1).half())
    return torch.stack(found), torch.stack(margins)


def fit_maps(result: ToneMap, pairs: Pairs, kinds_NTHW: Tensor, chosen: list[int]) -> None:
    """Both maps of each tone, of colours as the codes show them."""
    for kind in range(KINDS - 1):
        terms, wanted = [], []
        for n in chosen:
            image, clips = pairs.coded_NTCHW[n].float() / 255, pairs.real_NSTCHW[n].float() / 255
            which = (kinds_NTHW[n] == kind) & (image[:, 3] > 0.3) & (clips[0, :, 3] > 0.8)
            terms.append(products(straight(image)).permute(0, 2, 3, 1)[which][::3])
            wanted.append(straight(clips[1:].flatten(0, 1)).unflatten(0, clips[1:].shape[:2]))
            wanted[-1] = wanted[-1].permute(1, 3, 4, 0, 2)[which][::3]
        for tone in range(len(TONES)):
            result.maps[kind, tone] = solved(torch.cat(terms), torch.cat(wanted)[:, tone])


def fit_kinds(
    result: ToneMap, pairs: Pairs, kinds_NTHW: Tensor, margins_NTHW: Tensor, chosen: list[int], steps: int
) -> None:
    """Train the network to see which pixel is what; seven of ten images are as the codes show them."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    trained = [value for name, value in result.named_buffers() if name != "maps"]
    for value in trained:  # as layers begin
        spread = (value[0].numel() if value.ndim > 1 else HIDDEN) ** -0.5
        value.uniform_(-spread, spread).requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, 1.6 * (1 - step / steps))
        at = [(int(rng.choice(chosen)), int(rng.integers(len(SHOWN))), rng.random() < 0.7) for _ in range(BATCH)]
        images = torch.stack([pairs.coded_NTCHW[n, t] if c else pairs.real_NSTCHW[n, 0, t] for n, t, c in at])
        kinds, margins = (torch.stack([x[n, t] for n, t, _ in at]) for x in (kinds_NTHW, margins_NTHW))
        moved = tuple(int(v) for v in rng.integers(-SHIFT, SHIFT + 1, 2))
        images, kinds, margins = (x.roll(moved, (-2, -1)) for x in (images, kinds, margins))
        down, across = (int(v) for v in rng.integers(EVERY, size=2))
        logits = result.logits(images.float() / 255, EVERY, (down, across))
        kinds, margins = (x[:, down::EVERY, across::EVERY] for x in (kinds, margins))
        weight = margins.float().clamp(max=MATTERS)
        loss = (F.cross_entropy(logits, kinds.long(), reduction="none") * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 500 == 499:
            log.info("step %d: %.3f", step + 1, loss.item())
    for value in trained:
        value.requires_grad_(False)


def fit(pairs: Pairs, *, chosen: list[int], steps: int = STEPS) -> ToneMap:
    """Everything, of the chosen pairs."""
    result = ToneMap()
    kinds, margins = kinds_of(pairs, chosen)
    fit_maps(result, pairs, kinds, chosen)
    log.info("fitted the maps of colours")
    fit_kinds(result, pairs, kinds, margins, chosen, steps)
    return result


@torch.no_grad()
def figures(result: ToneMap, pairs: Pairs, chosen: list[int]) -> dict[str, Any]:
    """Decibels against the real clips over grey by tone, medians of concepts.

    "recoloured" is of portraits as the codes show them, "left yellow" of the same without a tone, "real ones
    recoloured" of real yellow clips, and "yellow, for comparison" how far the codes are from these.
    """
    rows: dict[str, list[list[float]]] = {}

    def decibels(made: Tensor, real: Tensor) -> float:
        apart = (made[..., :3, :, :] - real[..., :3, :, :]) - 0.5 * (made[..., 3:, :, :] - real[..., 3:, :, :])
        return float(-10 * apart.square().mean().clamp_min(1e-10).log10())

    for n in chosen:
        real, coded = pairs.real_NSTCHW[n].float() / 255, pairs.coded_NTCHW[n].float() / 255
        made, exact = (result(image, range(1, 6)).transpose(0, 1) for image in (coded, real[0]))
        rows.setdefault("recoloured", []).append([decibels(a, b) for a, b in zip(made, real[1:], strict=True)])
        rows.setdefault("left yellow", []).append([decibels(coded, b) for b in real[1:]])
        rows.setdefault("real ones recoloured", []).append(
            [decibels(a, b) for a, b in zip(exact, real[1:], strict=True)]
        )
        rows.setdefault("yellow, for comparison", []).append([decibels(coded, real[0])])
    told: dict[str, Any] = {name: np.round(np.median(values, axis=0), 1).tolist() for name, values in rows.items()}
    made_db = np.array(rows["recoloured"])
    told["recoloured, lowest tenth"] = np.round(np.quantile(made_db, 0.1, axis=0), 1).tolist()
    worst = made_db.min(axis=1).argsort()[:6]
    told["worst"] = {catalogue()[pairs.concepts[chosen[n]]].en: round(float(made_db[n].min()), 1) for n in worst}
    return told


@torch.no_grad()
def sheet(result: ToneMap, pairs: Pairs, chosen: list[int], *, across: int = 4) -> Image.Image:
    """One frame of each concept: real in yellow and five tones, and below it what is skin and hair, and made ones."""
    cells = []
    for n in chosen:
        real, image = pairs.real_NSTCHW[n, :, 2].float() / 255, pairs.coded_NTCHW[n, 2:3].float() / 255
        kinds = torch.cat([result.kinds(image)[0] * image[0, 3:], image[0, 3:]])
        made = torch.cat([kinds[None], result(image, range(1, 6))[0]])
        both = [torch.cat([*(x[:, :3] + 1 - x[:, 3:])], dim=2) for x in (real, made)]
        cells.append(torch.cat(both, dim=1)[:, ::2, ::2])
    cells += [torch.ones_like(cells[0])] * (-len(cells) % across)
    rows = [torch.cat(cells[at : at + across], dim=2) for at in range(0, len(cells), across)]
    pixels = torch.cat(rows, dim=1).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def write(result: ToneMap, target: Path, metadata: Mapping[str, str] | None = None, *, prefix: str = "") -> None:
    """A file of it: convolutions in eight bits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    state = {f"{prefix}{name}": value.detach().contiguous() for name, value in result.state_dict().items()}
    few = [name for name, value in state.items() if value.ndim > 1 and not name.endswith("maps")]
    write_state(state, target, metadata=metadata, int8=few)


def add_to(result: ToneMap, model: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write it into a model's folder, as a part of its denoiser.

    Args:
        result: What was fitted.
        model: Folder with `dit.safetensors.index.json`.
        metadata: Text for the header.
    """
    write(result, model / FILE, metadata, prefix=PREFIX)
    index = model / "dit.safetensors.index.json"
    told = json.loads(index.read_text(encoding="utf-8"))
    told["weight_map"] |= {f"{PREFIX}{name}": FILE for name in result.state_dict()}
    with replacing(index) as part:
        part.write_text(json.dumps(told, indent=0) + "\n", encoding="utf-8")


def make(data: Path, run: Path) -> ToneMap:
    """Fit it on all concepts and write it beside a run's portraits."""
    torch.set_flush_denormal(True)
    pairs = Pairs.of(Sources(data), Portraits.read(run / "portraits.pt"))
    result = fit(pairs, chosen=list(range(len(pairs.concepts))))
    write(result, run / FILE)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder with portraits.pt")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--hold", action="store_true", help="leave every fourth concept out, and measure these")
    parser.add_argument("--model", type=Path, help="folder of a model's files that gets them too")
    parser.add_argument("--sheet", type=Path, help="a picture of what was measured")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pairs = Pairs.of(Sources(options.data), Portraits.read(options.run / "portraits.pt"))
    every = list(range(len(pairs.concepts)))
    held = every[1::HELD] if options.hold else every
    result = fit(pairs, chosen=[n for n in every if n not in held] if options.hold else every, steps=options.steps)
    sys.stdout.write(json.dumps({"concepts": len(held)} | figures(result, pairs, held), indent=1) + "\n")
    if not options.hold:
        write(result, options.run / FILE)
        if options.model is not None:
            add_to(result, options.model)
    if options.sheet is not None:
        sheet(result, pairs, held).save(options.sheet)


if __name__ == "__main__":
    main()
