"""What compression costs: small autoencoders of several ratios and channels, each beside PCA of as many numbers.

    python -m kandinsky.lab.compression --out FOLDER [--emoji CACHE] [--network nano|hunyuan]

trains one autoencoder after the other on clips that are drawn, and on the emoji of ``kandinsky data nano`` where their
cache is named; measures PSNR on clips that it never saw; and prints a table, and writes its curve into FOLDER.
What was done is kept there: a run that was stopped goes on, and the curve shows all that the folder holds. PCA takes
the patches that become one latent place, and keeps as many components as there are channels.

Two kinds of network: Nano's, which is PCA plus a residual network that begins at zero, so that it is above PCA from the
first step on, and costs an eighth of the work; and HunyuanVideo's, by the code of recipes of kind `autoencoder`, which
begins with random weights and needs far longer to come as far. ``--shipped`` measures the autoencoder of nano-t2v,
which `recipes/nano-autoencoder.yaml` trained for 5000 steps, beside PCA with as many numbers, on emoji that it never
saw.

Legend: B batch; T H W C frames, rows, columns, channels; pixels in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.catalogue import part, source_of
from kandinsky.engine.build import bare_network, stored_network
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.params import NanoAutoencoderParams
from kandinsky.files import replacing
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.emoji import Clips
from kandinsky.lab.nano.measure import judge_autoencoder
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.lab.nano.train_autoencoder import AutoencoderObjective as NanoObjective
from kandinsky.model.card import Component
from kandinsky.train import loop
from kandinsky.train.autoencoder import AutoencoderLosses, AutoencoderObjective, Fragments, decoded, encoded
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update

FRAMES, SIDE = 17, 64
TRAINED, TESTED, FIRST_TESTED = 4096, 32, 100_000  # drawn clips, by their numbers
PATCHES = 20_000  # that PCA sees
RATIOS = ((4, 8), (8, 8), (8, 16))
WIDTH = 16
KINDS = ("nano", "hunyuan")
RATE = {"nano": 1e-3, "hunyuan": 2e-3}
SHIPPED_SIDE, SHIPPED_STEPS = 96, 5000  # of nano-t2v's autoencoder, by its recipe
WHITENING = 0.6  # as Nano's autoencoder has it


@dataclass(frozen=True, slots=True)
class Cell:
    """One autoencoder: frames, and rows or columns, of a latent place, and its channels."""

    temporal: int
    spatial: int
    channels: int

    @property
    def share(self) -> float:
        """Numbers of a latent for each number of a clip."""
        return self.channels / (3 * self.temporal * self.spatial**2)

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}x{self.spatial}, {self.channels}"


# as many numbers, by three ratios: 16 and then 48 numbers of a clip for one of its latent
CELLS = tuple(Cell(t, s, share * t * s * s // 256) for share in (48, 16) for t, s in RATIOS)


def drawn(number: int) -> Tensor:
    """A clip of shapes with texture that move over a ground that pans, [T, H, W, C]; each number is another one."""
    rng = np.random.default_rng(number)
    ground = _texture(rng, 3 * SIDE, 4)
    speed = rng.uniform(-1.2, 1.2, 2)
    shapes = []
    for _ in range(int(rng.integers(2, 5))):
        size = rng.uniform(0.12, 0.3) * SIDE
        colour = rng.uniform(-1, 1, 3).astype(np.float32)
        shapes.append((rng.uniform(0, SIDE, 2), rng.uniform(-1.5, 1.5, 2), size, colour, bool(rng.integers(2))))
    rows, columns = np.indices((SIDE, SIDE)).astype(np.float32)
    frames = []
    for t in range(FRAMES):
        y, x = (np.clip(SIDE + speed * t, 0, 2 * SIDE - 1)).astype(int)
        frame = ground[y : y + SIDE, x : x + SIDE].copy()
        for place, move, size, colour, is_round in shapes:
            dy, dx = rows - (place[0] + move[0] * t), columns - (place[1] + move[1] * t)
            far = np.hypot(dy, dx) if is_round else np.maximum(abs(dy), abs(dx))
            cover = np.clip(size - far + 0.5, 0, 1)[..., None]
            stripes = 0.25 * np.sin(0.8 * dx)[..., None]
            frame = frame * (1 - cover) + cover * np.clip(colour + stripes, -1, 1)
        frames.append(frame)
    return torch.from_numpy(np.stack(frames).astype(np.float32))


def _texture(rng: np.random.Generator, side: int, coarse: int) -> np.ndarray:
    """Noise of rising frequency and falling strength, as natural pictures have it: [side, side, 3]."""
    total = torch.zeros(1, 3, side, side)
    for octave in range(4):
        cells = coarse * 2**octave
        noise = torch.from_numpy(rng.uniform(-1, 1, (1, 3, cells, cells)).astype(np.float32))
        total += F.interpolate(noise, size=(side, side), mode="bicubic") / 2**octave
    return (0.5 * total[0].permute(1, 2, 0)).clamp(-1, 1).numpy()


class Footage:
    """Drawn clips, and emoji in turns with them where there are some.

    Args:
        emoji: Cache of ``kandinsky data nano``; None for drawn clips alone.
        batch: Clips of a step.
    """

    def __init__(self, emoji: Path | None, batch: int = 4) -> None:
        self.batch = batch
        self._drawn = lru_cache(maxsize=1024)(drawn)
        self.emoji = None if emoji is None else Clips(emoji)

    def clip(self, number: int, *, tests: bool = False) -> Tensor:
        """Clip of a number; those for tests are none of the others."""
        if self.emoji is not None and number % 2:
            rows = len(self.emoji) // 10
            row = number // 2 % rows if tests else rows + number // 2 % (len(self.emoji) - rows)
            return _emoji(self.emoji, row)
        return self._drawn(FIRST_TESTED + number if tests else number % TRAINED)

    def tests(self) -> Tensor:
        """Clips that no training sees."""
        return torch.stack([self.clip(number, tests=True) for number in range(TESTED)])

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        """A portion of the clips of a step."""
        numbers = portion.of(range(self.batch))
        picked = [int(torch.randint(1 << 30, (), generator=rng.example(n, "clip"))) for n in numbers]
        return Fragments(torch.stack([self.clip(number) for number in picked]), numbers)


def _emoji(clips: Clips, row: int) -> Tensor:
    """An emoji over grey, [T, H, W, C]."""
    rgba = torch.from_numpy(np.array(clips.rgba_NTHWC[row])).float() / 255
    rgba = rgba[torch.arange(FRAMES) % len(rgba)]
    over = (rgba[..., :3] * rgba[..., 3:] + 0.5 * (1 - rgba[..., 3:])).permute(0, 3, 1, 2)
    return F.interpolate(over, size=(SIDE, SIDE), mode="area").permute(0, 2, 3, 1) * 2 - 1


def network_of(cell: Cell) -> Any:
    """A small autoencoder of HunyuanVideo's kind, with seeded weights."""
    levels = {8: 4, 16: 5}[cell.spatial]
    params = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * levels,
        "block_out_channels": (WIDTH, *(2 * WIDTH,) * (levels - 1)),
        "layers_per_block": 1,
        "latent_channels": cell.channels,
        "norm_num_groups": 4,
        "temporal_compression_ratio": cell.temporal,
        "spatial_compression_ratio": cell.spatial,
    }
    with loop.seeded(0):
        return bare_network(part("hunyuan"), Component("hunyuan", (), params=params), Path())


def psnr(made: Tensor, clips: Tensor) -> Tensor:
    """Of each clip, of all frames but the first, in dB: [N]."""
    error = (made.clamp(-1, 1) - clips)[:, 1:].square().flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()


@dataclass(frozen=True, slots=True)
class Principal:
    """The best linear projection of patches.

    Attributes:
        mean: [F], F numbers of a patch.
        base: [F, C], orthonormal.
        spread: Standard deviation of each component, [C].
    """

    mean: Tensor
    base: Tensor
    spread: Tensor


def principal(cell: Cell, footage: Footage) -> Principal:
    """Components of patches of clips that are trained on, as many as there are channels."""
    seen, number = list[Tensor](), 0
    while sum(len(one) for one in seen) < PATCHES:
        seen.append(patches(footage.clip(number)[None], cell))
        number += 1
    known = torch.cat(seen)[:PATCHES]
    mean = known.mean(0)
    with loop.seeded(0):
        # more than are kept, since the last ones of the algorithm are not exact
        _, values, base = torch.pca_lowrank(known - mean, q=cell.channels + 32, center=False, niter=6)
    return Principal(mean, base[:, : cell.channels], values[: cell.channels] / len(known) ** 0.5)


class ResidualObjective(Objective):
    """Nano's network on clips; the loss is the negative PSNR, in tens of dB.

    Args:
        network: Begun with PCA.
        footage: Gives clips.
    """

    def __init__(self, network: NanoAutoencoder, footage: Footage) -> None:
        self.network, self.footage = network, footage

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("autoencoder", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        return self.footage(step, rng, portion)

    def loss(self, update: str, batch: Fragments, rng: Rng) -> Loss:
        clip = batch.clip_BTHWC
        error = (self.network(clip).float() - clip).square().flatten(1).mean(1) / 4
        value = error.clamp_min(1e-10).log10().mean()
        return Loss(value, len(clip), {"psnr": float(-10 * value.detach())})


def residual_network(cell: Cell, known: Principal) -> NanoAutoencoder:
    """Nano's autoencoder at another ratio, with seeded weights: it begins as PCA, which stays beside what it learns."""
    with loop.seeded(0):
        network = NanoAutoencoder(
            NanoAutoencoderParams(latent_channels=cell.channels, temporal=cell.temporal, spatial=cell.spatial)
        )
    scale = known.spread.clamp_min(1e-6) ** (-WHITENING)
    scale = scale / (known.spread * scale).square().mean().sqrt()
    with torch.no_grad():
        network.to_latent.weight.copy_((known.base * scale).T)
        network.to_latent.bias.copy_(-(known.mean @ known.base) * scale)
        network.from_latent.weight.copy_(known.base / scale)
        network.from_latent.bias.copy_(known.mean)
    for linear in (network.to_latent, network.from_latent):  # a rate that networks learn at would shake it apart
        linear.requires_grad_(False)
    return network


def by_nano(cell: Cell, footage: Footage, tests: Tensor, out: Path, steps: int, lr: float, known: Principal) -> Tensor:
    """PSNR of Nano's kind of autoencoder that was trained; one that was stopped goes on."""
    network = residual_network(cell, known)
    settings = loop.LoopSettings(
        steps=steps, lr=lr, betas=(0.9, 0.99), warmup=50, decay=0.5, weight_decay=0.0, ema=0.99, log_every=10,
        checkpoint_minutes=1.0, keep=1,
    )  # fmt: skip
    state = loop.run(ResidualObjective(network, footage), settings, out)["autoencoder"]
    network.load_state_dict(state, strict=False)
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.computes_bf16("cpu")):
        made = [network(one).float() for one in tests.split(4)]
    return psnr(torch.cat(made), tests)


def by_hunyuan(cell: Cell, footage: Footage, tests: Tensor, out: Path, steps: int, lr: float) -> Tensor:
    """PSNR of HunyuanVideo's kind of autoencoder that was trained; one that was stopped goes on."""
    network = network_of(cell)
    losses = AutoencoderLosses(perceptual=0, kl=1e-6, adversarial=0)
    piece = 16
    objective = AutoencoderObjective(network, cell.temporal, footage, losses, piece)
    settings = loop.LoopSettings(
        steps=steps, lr=lr, warmup=30, decay=0.4, weight_decay=0.0, ema=0.99, log_every=10,
        checkpoint_minutes=1.0, keep=1,
    )  # fmt: skip
    state = loop.run(objective, settings, out)["autoencoder"]
    network.load_state_dict(state, strict=False)
    network.eval()
    with torch.no_grad():
        made = [decoded(network, encoded(network, one, piece)[0], piece // cell.temporal) for one in tests.split(4)]
    return psnr(torch.cat(made), tests)


def patches(clips: Tensor, cell: Cell) -> Tensor:
    """What becomes one latent place, of all frames but the first: [N, numbers]."""
    t, s = cell.temporal, cell.spatial
    x = clips[:, 1:].unflatten(1, (-1, t)).unflatten(3, (-1, s)).unflatten(5, (-1, s))
    found: Tensor = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(0, 3)
    return found


def by_pca(cell: Cell, tests: Tensor, known: Principal) -> Tensor:
    """PSNR of the best linear projection of patches onto as many numbers as there are channels."""
    wanted = patches(tests, cell)
    made = (wanted - known.mean) @ known.base @ known.base.T + known.mean
    error: Tensor = (made.clamp(-1, 1) - wanted).square().unflatten(0, (len(tests), -1)).flatten(1).mean(1) / 4
    return -10 * error.clamp_min(1e-10).log10()


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    cell: Cell
    trained: float
    pca: float
    gains: Sequence[float]
    steps: int
    seconds: float

    def __str__(self) -> str:
        c = self.cell
        by_kind = ", ".join(f"{gain:+.2f}" for gain in self.gains)
        return (
            f"| {c.temporal}×{c.spatial}×{c.spatial} | {c.channels} | {1 / c.share:.0f} | {self.trained:.2f} | "
            f"{self.pca:.2f} | {self.trained - self.pca:+.2f} | {by_kind} | {self.steps} | {self.seconds:.0f} |"
        )


def shipped(emoji: Path) -> Row:
    """The autoencoder of nano-t2v and PCA, on whole scenes of emoji that were held out of its training."""
    source = source_of("nano-t2v")
    network = stored_network(source.card, "vae", root=source.root, model=source.name)().float().eval()
    trained_on, _ = autoencoder_rows(emoji)
    palette = [colour.rgb for colour in captions.COLOURS]
    begun = time.process_time()
    linear = NanoObjective(emoji, trained_on, palette, network.params, side=SHIPPED_SIDE).network
    with torch.no_grad():
        made, pca = (judge_autoencoder(emoji, one, side=SHIPPED_SIDE)["psnr_db"] for one in (network, linear))
    params = network.params
    cell = Cell(params.temporal, params.spatial, params.latent_channels)
    return Row(cell, made, pca, (made - pca,), SHIPPED_STEPS, time.process_time() - begun)


HEADER = (
    "| ratio | channels | numbers of a clip for one of its latent | PSNR trained, dB | PSNR of PCA, dB | gain, dB | "
    "of drawn clips, of emoji | steps | processor s |\n|---|---|---|---|---|---|---|---|---|"
)


def rows(
    cells: Sequence[Cell], out: Path, *, emoji: Path | None, steps: int, lr: float, kind: str = "nano"
) -> Iterator[Row]:
    """Train and measure; what was measured before with the same settings is read."""
    footage = Footage(emoji)
    tests = footage.tests()
    for cell in cells:
        folder = out / f"{kind}-{cell.temporal}x{cell.spatial}x{cell.spatial}-{cell.channels}"
        said = {"cell": asdict(cell), "steps": steps, "lr": lr, "emoji": emoji is not None, "side": SIDE}
        kept, spent = folder / "result.json", folder / "seconds.txt"
        if kept.is_file() and (told := json.loads(kept.read_text()))["settings"] == said:
            yield Row(cell, told["trained"], told["pca"], told["gains"], steps, told["seconds"])
            continue
        folder.mkdir(parents=True, exist_ok=True)
        before = float(spent.read_text()) if spent.is_file() else 0.0  # of runs that were stopped
        begun = time.process_time()
        try:
            known = principal(cell, footage)
            if kind == "nano":
                trained = by_nano(cell, footage, tests, folder, steps, lr, known)
            else:
                trained = by_hunyuan(cell, footage, tests, folder, steps, lr)
        finally:
            seconds = before + time.process_time() - begun
            spent.write_text(f"{seconds:.1f}")
        pca = by_pca(cell, tests, known)
        gains = [float((trained - pca)[n::2].mean()) for n in range(1 if emoji is None else 2)]
        told = {"settings": said, "trained": float(trained.mean()), "pca": float(pca.mean()), "gains": gains}
        with replacing(kept) as part_:
            part_.write_text(json.dumps(told | {"seconds": seconds}))
        yield Row(cell, told["trained"], told["pca"], gains, steps, seconds)


def kept_rows(out: Path, kind: str) -> list[Row]:
    """All that was measured in a folder, whatever the numbers of steps."""
    told = [json.loads(path.read_text()) for path in sorted(out.glob(f"{kind}-*/result.json"))]
    return [
        Row(Cell(**one["settings"]["cell"]), one["trained"], one["pca"], one["gains"], one["settings"]["steps"],
            one["seconds"])
        for one in told
    ]  # fmt: skip


def curve(found: Sequence[Row]) -> str:
    """PSNR against compression as SVG: lines of equal ratio, trained ones full and those of PCA dashed."""
    wide, high, left, low = 560, 320, 46, 34
    x = [np.log2(1 / row.cell.share) for row in found]
    y = [value for row in found for value in (row.trained, row.pca)]
    x0, x1, y0, y1 = min(x) - 0.3, max(x) + 0.3, min(y) - 1, max(y) + 1

    def at(share: float, value: float) -> str:
        across = left + (np.log2(1 / share) - x0) / (x1 - x0) * (wide - left - 10)
        return f"{across:.1f},{10 + (y1 - value) / (y1 - y0) * (high - low - 10):.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif">',
           '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for number, ratio in enumerate(RATIOS):
        some = sorted((r for r in found if (r.cell.temporal, r.cell.spatial) == ratio), key=lambda r: r.cell.share)
        colour = ("#0b62a4", "#c2410c", "#15803d")[number]
        for name, dash in (("trained", ""), ("pca", ' stroke-dasharray="5 4"')):
            points = " ".join(at(row.cell.share, getattr(row, name)) for row in some)
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            for row in some:
                x_place, y_place = at(row.cell.share, getattr(row, name)).split(",")
                inside = colour if name == "trained" else "white"
                out.append(f'<circle cx="{x_place}" cy="{y_place}" r="4" fill="{inside}" stroke="{colour}"/>')
        label = f"{ratio[0]}×{ratio[1]}×{ratio[1]}"
        out.append(f'<text x="{wide - 90}" y="{24 + 16 * number}" font-size="12" fill="{colour}">{label}</text>')
    for value in np.linspace(y0, y1, 5):
        place = at(found[0].cell.share, float(value)).split(",")[1]
        out.append(f'<text x="{left - 6}" y="{place}" font-size="11" text-anchor="end">{value:.0f}</text>')
    for row in {row.cell.share: row for row in found}.values():
        place = at(row.cell.share, y0).split(",")[0]
        out.append(
            f'<text x="{place}" y="{high - 18}" font-size="11" text-anchor="middle">{1 / row.cell.share:.0f}</text>'
        )
    out.append(f'<text x="{wide / 2}" y="{high - 3}" font-size="12" text-anchor="middle">numbers of a clip for one of '
               "its latent; dB; dashed, hollow: PCA</text></svg>")  # fmt: skip
    return "".join(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.lab.compression", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of trainings and results")
    parser.add_argument("--emoji", type=Path, help="cache of `kandinsky data nano`")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--network", choices=KINDS, default="nano", help="kind of network")
    parser.add_argument("--lr", type=float, help="learning rate; that of the kind where absent")
    parser.add_argument("--cell", nargs="*", type=int, default=range(len(CELLS)), help="numbers of rows, from 0")
    parser.add_argument("--shipped", action="store_true", help="measure nano-t2v's autoencoder instead")
    options = parser.parse_args(arguments)
    if options.shipped and options.emoji is None:
        parser.error("--shipped needs --emoji")
    if not options.shipped and options.out is None:
        parser.error("--out is missing: name a folder")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sys.stdout.write(f"{HEADER}\n")
    sys.stdout.flush()
    if options.shipped:
        sys.stdout.write(f"{shipped(options.emoji)}\n")
        return 0
    lr = RATE[options.network] if options.lr is None else options.lr
    chosen = [CELLS[number] for number in options.cell]
    for row in rows(chosen, options.out, emoji=options.emoji, steps=options.steps, lr=lr, kind=options.network):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    with replacing(options.out / "compression.svg") as part_:
        part_.write_text(curve(kept_rows(options.out, options.network)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
