"""Fitting the decoder of portraits, and the codes of every subject: ``families/nano/portraits.py`` says what they are.

    python -m kandinsky.lab.nano2.portraits --data FOLDER --run runs/nano2

Codes are whole numbers of steps of one size: a number below two thirds of a step is zero, since most are and zeros take
no room in a file. What trains is what ships, so packing a release loses nothing of them.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.portraits import CELL, FRAMES, GRID, MOVES, PIXELS, SIDE, PortraitDecoder
from kandinsky.files import replacing
from kandinsky.lab.nano2.catalogue import Sources
from kandinsky.runtime.devices import mixed_precision
from kandinsky.weights.read import load_into

log = logging.getLogger(__name__)

CODES, BATCH = 768, 4
STEP = 0.9
"""Size of a step, in units of a pixel's value in [0, 1] over a place of 24 × 24 pixels and 25 frames."""
ROUNDS, RATE, PRICE = 28, 0.3, 0.8e-7
"""Of the descent: how many, their rate in steps of a code, and what a bit costs in squared error of a pixel."""
WHITENING = 0.5
"""Of the codes as the network sees them: 0 keeps the spread of the components, 1 makes all equal."""


def own_frame(image_TCHW: Tensor) -> Tensor:
    """Premultiplied RGBA at a portrait's size, [25, 4, 144, 144]; a still image repeats."""
    small = F.interpolate(image_TCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small.expand(FRAMES, 4, SIDE, SIDE)


def cells(image_TCHW: Tensor) -> Tensor:
    """The finest places of a portrait, [144, 25, 4 · 12 · 12]."""
    fine = 2 * GRID
    x = own_frame(image_TCHW).reshape(FRAMES, 4, fine, CELL, fine, CELL)
    return x.permute(2, 4, 0, 1, 3, 5).reshape(fine * fine, FRAMES, -1)


def quantised(values: Tensor, step: float = STEP) -> Tensor:
    """Whole numbers of steps."""
    numbers: Tensor = (values.abs() / step + 1 / 3).floor() * values.sign()
    return numbers


def refined(decoder: PortraitDecoder, scale_E: Tensor, numbers_NPE: Tensor, images_NTCHW: Tensor) -> Tensor:
    """Numbers of steps that decode nearer to the images and take less room, by descent from given ones.

    The projection on components knows nothing of what follows it: that opacities are sharpened, that numbers are
    rounded, and that zeros are free. Rounding is passed straight through, after a third of the rounds.

    Args:
        decoder: Of the codes.
        scale_E: Of a step.
        numbers_NPE: To begin with.
        images_NTCHW: See ``own_frame``.
    """
    numbers = numbers_NPE.float().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([numbers], lr=RATE, betas=(0.8, 0.95))
    for number in range(ROUNDS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (ROUNDS - number) / ROUNDS)
        with torch.enable_grad():  # the rounding too: where nobody watches it, all that is learned is the price
            tried = numbers + (quantised(numbers, 1.0) - numbers).detach() if number > ROUNDS // 3 else numbers
            with mixed_precision(numbers.device.type):
                made = decoder(tried * scale_E).float()
            apart = made - images_NTCHW
            # the expected error before a background of mean 0.5 and variance 0.1
            seen = (apart[:, :, :3] - 0.5 * apart[:, :, 3:]).square().mean() + 0.1 * apart[:, :, 3].square().mean()
            loss = seen + PRICE * torch.log2(1 + numbers.abs()).sum() / len(numbers)
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    return quantised(numbers.detach(), 1.0)


@dataclass(frozen=True, slots=True)
class Portraits:
    """Codes of all concepts and then of the wordless images, as far as they train, and what decodes them.

    Args:
        decoder: Of codes as the network sees them.
        numbers_NPE: Whole numbers of steps, int16.
        scale_E: Of one step of each code, as the network sees it.
    """

    decoder: PortraitDecoder
    numbers_NPE: Tensor
    scale_E: Tensor

    def codes(self) -> Tensor:
        """[N, P, E] as the network sees them."""
        return self.numbers_NPE.float() * self.scale_E

    @classmethod
    def read(cls, path: Path) -> Portraits:
        """What ``of`` wrote, with the tones of skin where `tones.safetensors` lies beside it."""
        state = torch.load(path, weights_only=True)
        decoder = PortraitDecoder(state["numbers"].shape[-1])
        decoder.load_state_dict(decoder.state_dict() | state["decoder"])
        tones = path.with_name("tones.safetensors")
        if tones.exists():  # fitted on portraits, by ``tones.py``
            load_into(decoder.tones, tones, dtype=torch.float32)
        return cls(decoder, state["numbers"], state["scale"])

    @classmethod
    @torch.no_grad()
    def of(cls, sources: Sources, target: Path, *, codes: int = CODES) -> Portraits:
        """Read them from ``target``, or compute and write them there."""
        if target.exists():
            return cls.read(target)
        images = [(number, None) for number in range(len(sources))] + [(None, row) for row in sources.wordless]
        seen = [cells(sources.frames(c, r)).flatten(0, 1)[::7].clone() for c, r in images]  # a view would keep all rows
        pixels = components(seen, PIXELS)
        frames = torch.stack([(cells(sources.frames(c, r)) @ pixels).flatten(1) for c, r in images])
        moves = components(list(frames[:, ::3]), MOVES)
        fine = (frames @ moves).view(len(images), GRID, 2, GRID, 2, MOVES).permute(0, 1, 3, 2, 4, 5)
        groups = fine.reshape(len(images), GRID * GRID, 4 * MOVES)
        places = components(list(groups), codes)
        numbers = quantised(groups @ places)
        spread = (numbers * STEP).pow(2).mean((0, 1)).sqrt().clamp_min(1e-3)
        scale = spread**-WHITENING
        scale = STEP * scale / (spread * scale).pow(2).mean().sqrt()
        decoder = PortraitDecoder(codes)
        decoder.pixels.copy_(pixels)
        decoder.moves.copy_(moves)
        decoder.places.copy_(places * STEP / scale)
        for at in range(0, len(sources), BATCH):  # what ships
            few = slice(at, min(at + BATCH, len(sources)))
            real = torch.stack([own_frame(sources.frames(c)) for c in range(few.start, few.stop)])
            numbers[few] = refined(decoder, scale, numbers[few], real)
            log.info("refined the codes of %d of %d concepts", few.stop, len(sources))
        result = cls(decoder, numbers.to(torch.int16), scale)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            torch.save({"decoder": decoder.state_dict(), "numbers": result.numbers_NPE, "scale": scale}, part)
        log.info("portraits of %d subjects", len(images))
        return result


def components(rows: list[Tensor], count: int) -> Tensor:
    """The principal directions of rows about zero, [features, count]."""
    products = torch.zeros(rows[0].shape[-1], rows[0].shape[-1])
    for x in rows:
        products += x.T @ x
    found: Tensor = torch.linalg.eigh(products)[1][:, -count:].flip(1).contiguous()
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder that gets portraits.pt")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    Portraits.of(Sources(options.data), options.run / "portraits.pt")


if __name__ == "__main__":
    main()
