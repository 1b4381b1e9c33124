"""Recipes of kind `autoencoder`: train a video autoencoder of a shipped kind, whatever its ratios, on long clips.

A clip passes in pieces whose causal convolutions carry what the piece before left, and each piece is computed again
in the backward pass: memory is that of one piece, while gradients go through all of the clip. Losses see the whole.
Sources: HunyuanVideo (arXiv 2412.03603, section 4.1: L1 + 0.1 LPIPS + 0.05 GAN + 1e-6 KL); the penalty of outliers,
Movie Gen (arXiv 2410.13720, section 3.1.1); the balance of the adversarial loss, VQGAN (arXiv 2012.09841).

Legend: B batch; T H W C frames, rows, columns, channels; pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kandinsky import catalogue
from kandinsky.engine.build import bare_network
from kandinsky.engine.request import parse_size
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.media.image import cover
from kandinsky.media.video import read_video
from kandinsky.model.card import Component
from kandinsky.train import loop
from kandinsky.train.adversary import UPDATE, PatchDiscriminator, balance, figures, told_apart
from kandinsky.train.data import sources
from kandinsky.train.data.sources import Example
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.perceptual import PerceptualDistance
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.work import done
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import load_into
from kandinsky.weights.write import write_state

KEPT_VIDEOS = 8  # decoded, in memory
CLASSES = {"hunyuan": "AutoencoderKLHunyuanVideo", "cogvideox": "AutoencoderKLCogVideoX"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What is trained.

    Attributes:
        kind: Of the network.
        params: Hyper-parameters under Diffusers' names; the released autoencoder's where absent.
        weights: File or folder to begin with; random ones where absent.
    """

    kind: Literal["hunyuan", "cogvideox"]
    params: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSettings:
    """What is trained on: fragments of videos, and images as clips of one frame.

    Attributes:
        source: Folder of images and videos; captions beside them are not read.
        size: Width and height.
        frames: Of a fragment, 1 + a multiple of ``piece``; shorter videos give what they have.
        piece: Frames of a piece; the first has one more.
        batch: Clips of a step, over all processes.
        most_stride: Fragments skip up to so many frames less one, at random, so that fast motion is seen.
        image_share: Share of the steps whose clips are single frames.
    """

    source: str
    size: str = "256x256"
    frames: int = field(default=129, metadata={"least": 1})
    piece: int = field(default=16, metadata={"least": 1})
    batch: int = field(default=1, metadata={"least": 1})
    most_stride: int = field(default=1, metadata={"least": 1})
    image_share: float = field(default=0.2, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderLosses:
    """Weights of the losses; 0 leaves one out.

    Attributes:
        reconstruction: `l1`, or `charbonnier`, which is smooth near zero.
        perceptual: See ``train/perceptual.py``.
        perceptual_weights: File with torchvision's VGG-16; random features where absent.
        kl: Of the latents' distribution from a normal one, for each number of a latent.
        temporal: L1 of the differences between neighbouring frames.
        outlier: Of latents far from the others, which decoders use as bright dots.
        adversarial: Of a discriminator of patches in space and time.
        adversarial_from: First step whose loss it is part of.
        balanced: Scale the adversarial loss so that its gradient is as large as that of the others.
        width: Of the discriminator.
    """

    reconstruction: Literal["l1", "charbonnier"] = "l1"
    perceptual: float = field(default=0.1, metadata={"least": 0})
    perceptual_weights: str | None = None
    kl: float = field(default=1e-6, metadata={"least": 0})
    temporal: float = field(default=0.0, metadata={"least": 0})
    outlier: float = field(default=0.0, metadata={"least": 0})
    adversarial: float = field(default=0.05, metadata={"least": 0})
    adversarial_from: int = field(default=0, metadata={"least": 0})
    balanced: bool = True
    width: int = field(default=64, metadata={"least": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe:
    """The keys of a recipe.

    Attributes:
        out: Folder of checkpoints, log and weights.
        network: What is trained.
        data: On what.
        losses: Towards what.
        loop: See ``LoopSettings``.
    """

    out: str
    network: NetworkSettings
    data: PixelSettings
    loop: loop.LoopSettings
    losses: AutoencoderLosses = field(default_factory=AutoencoderLosses)

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("autoencoder", UPDATE) if self.losses.adversarial else ("autoencoder",)


class PiecewiseAutoencoder(Protocol):
    """An autoencoder that codes clips in pieces with a memory."""

    def encode_piece(self, video_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Tensor, Any]: ...

    def decode_piece(self, latents_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Any]: ...


def encoded(network: PiecewiseAutoencoder, clip_BTHWC: Tensor, piece: int) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of a clip's latents, unscaled, through pieces of so many frames."""
    memory, found = None, []
    for part in _pieces(clip_BTHWC, piece):
        mean, logvar, memory = checkpoint(network.encode_piece, part, memory, use_reentrant=False)
        found.append((mean, logvar))
    means, logvars = zip(*found, strict=True)
    return torch.cat(means, 1), torch.cat(logvars, 1)


def decoded(network: PiecewiseAutoencoder, latents_BTHWC: Tensor, piece: int) -> Tensor:
    """Pixels of latents, through pieces of so many latent frames."""
    memory, found = None, []
    for part in _pieces(latents_BTHWC, piece):
        pixels, memory = checkpoint(network.decode_piece, part, memory, use_reentrant=False)
        found.append(pixels)
    return torch.cat(found, 1)


def _pieces(x: Tensor, length: int) -> Sequence[Tensor]:
    first = min(x.shape[1], 1 + length)
    return (x[:, :first], *(x[:, start : start + length] for start in range(first, x.shape[1], length)))


@dataclass(frozen=True, slots=True)
class Fragments:
    """Clips of a step. ``numbers``: their places in the global batch."""

    clip_BTHWC: Tensor
    numbers: Sequence[int]


class FragmentBatches:
    """Fragments drawn with replacement; all of a step are as long as the first file allows.

    Args:
        files: At least one.
        settings: Size, length and shares.
    """

    def __init__(self, files: Sequence[Example], settings: PixelSettings) -> None:
        self.files, self.settings = files, settings
        self.width, self.height = parse_size(settings.size)
        self._read = lru_cache(KEPT_VIDEOS)(_frames)

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        """A portion of the batch of a step."""
        settings = self.settings
        numbers = portion.of(range(settings.batch))
        chosen = [self._drawn(n, rng) for n in range(settings.batch)]
        longest = min(len(self._read(file)) for file in chosen)
        is_image = float(torch.rand((), generator=rng.example(-1, "image"))) < settings.image_share
        frames = 1 if is_image else min(settings.frames, 1 + (longest - 1) // settings.piece * settings.piece)
        clips = [self._fragment(self._read(chosen[n]), frames, rng.example(n, "fragment")) for n in numbers]
        done(samples=len(clips))
        return Fragments(torch.stack(clips), numbers)

    def _drawn(self, number: int, rng: Rng) -> Example:
        return self.files[int(torch.randint(len(self.files), (), generator=rng.example(number, "file")))]

    def _fragment(self, video: np.ndarray, frames: int, generator: torch.Generator) -> Tensor:
        most = min(self.settings.most_stride, (len(video) - 1) // max(1, frames - 1)) if frames > 1 else 1
        stride = 1 + int(torch.randint(max(1, most), (), generator=generator))
        start = int(torch.randint(len(video) - (frames - 1) * stride, (), generator=generator))
        chosen = video[start : start + (frames - 1) * stride + 1 : stride]
        fitted = [np.asarray(cover(Image.fromarray(frame), self.width, self.height)) for frame in chosen]
        return torch.from_numpy(np.stack(fitted)).float() / 127.5 - 1


def _frames(example: Example) -> np.ndarray:
    with example.decoded() as file:
        return read_video(file).frames


class AutoencoderObjective(Objective):
    """Reconstruction, with what makes it sharp and its latents good to model.

    Args:
        network: A piecewise autoencoder.
        temporal: Frames of a latent frame.
        batches: Gives fragments.
        losses: Their weights.
        piece: Frames of a piece.
        seed: Of the discriminator.
    """

    def __init__(
        self, network: nn.Module, temporal: int, batches: Any, losses: AutoencoderLosses, piece: int, *, seed: int = 0
    ) -> None:
        self.network, self.batches, self.losses = network, batches, losses
        self.piece, self.latent_piece = piece, piece // temporal
        self.discriminator = None
        if losses.adversarial:
            with loop.seeded(seed):
                self.discriminator = PatchDiscriminator(3, width=losses.width)
        weights = None if losses.perceptual_weights is None else local_path(losses.perceptual_weights, "weights")
        self.perceptual = PerceptualDistance(weights) if losses.perceptual else None

    @property
    def updates(self) -> tuple[Update, ...]:
        own = (Update("autoencoder", self.network),)
        return own if self.discriminator is None else (*own, Update(UPDATE, self.discriminator, averaged=False))

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {} if self.perceptual is None else {"perceptual": self.perceptual}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        fragments: Fragments = self.batches(step, rng, portion)
        return fragments

    def loss(self, update: str, batch: Fragments, rng: Rng) -> Loss:
        clip = batch.clip_BTHWC.to(works_on(self.network))
        weight = len(clip)
        if update == UPDATE:
            assert self.discriminator is not None
            with torch.no_grad():
                made, *_ = self.coded(clip, batch.numbers, rng)
            real, fake = self.discriminator(clip), self.discriminator(made)
            return Loss(told_apart(real, fake), weight, figures(real, fake))
        made, mean, logvar, z = self.coded(clip, batch.numbers, rng)
        terms = self.terms(clip, made, mean, logvar, z)
        value = torch.stack(list(terms.values())).sum()
        found = {name: float(term.detach()) for name, term in terms.items()}
        if self.discriminator is not None and rng.step >= self.losses.adversarial_from:
            fooled = -self.discriminator(made).mean()
            scale = balance(terms["reconstruction"] + terms.get("perceptual", 0), fooled, made)
            value = value + self.losses.adversarial * fooled * (scale if self.losses.balanced else 1)
            found["adversarial"] = float(fooled.detach())
        error = (made.detach().float().clamp(-1, 1) - clip).square().mean() / 4
        return Loss(value, weight, {**found, "psnr": float(-10 * torch.log10(error.clamp_min(1e-10)))})

    def coded(self, clip: Tensor, numbers: Sequence[int], rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance of the latents, and the latents drawn from them."""
        network: Any = self.network
        mean, logvar = encoded(network, clip, self.piece)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=rng.example(n, "latent")) for n in numbers])
        z = mean + (logvar / 2).exp() * noise.to(mean)
        return decoded(network, z, self.latent_piece), mean, logvar, z

    def terms(self, clip: Tensor, made: Tensor, mean: Tensor, logvar: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The losses that need no discriminator, each times its weight; float32."""
        losses = self.losses
        made, mean, logvar, z = (x.float() for x in (made, mean, logvar, z))
        error = made - clip
        smooth = losses.reconstruction == "charbonnier"
        terms = {"reconstruction": (error.square() + 1e-6).sqrt().mean() if smooth else error.abs().mean()}
        if self.perceptual is not None:
            terms["perceptual"] = losses.perceptual * self.perceptual(made, clip)
        if losses.kl:
            terms["kl"] = losses.kl * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        if losses.temporal and clip.shape[1] > 1:
            terms["temporal"] = losses.temporal * error.diff(dim=1).abs().mean()
        if losses.outlier:
            places = z.flatten(1, 3)
            centre, spread = places.mean(1, keepdim=True), places.std(1)
            far = (places - centre).norm(dim=-1) - 3 * spread.norm(dim=-1, keepdim=True)
            terms["outlier"] = losses.outlier * far.clamp_min(0).mean()
        return terms


def train(recipe: AutoencoderRecipe, run: Run) -> Path:
    """Train an autoencoder.

    Returns:
        The folder written, `vae`, in Diffusers' layout.

    Raises:
        RequestError: Lengths or sizes do not fit the network, or there is no data.
        WeightsError: Weights are broken or of another network.
    """
    part = catalogue.part(recipe.network.kind)
    component = Component(recipe.network.kind, (), params=dict(recipe.network.params))
    files = sources.find(recipe.data.source, captions="optional")
    with loop.seeded(recipe.loop.seed):
        network = bare_network(part, component, Path())
    params: Any = network.params
    temporal = params.temporal_compression_ratio
    check(recipe.data, temporal, params.spatial_compression_ratio)
    keymap = keymap_of(part)
    if recipe.network.weights is not None:
        load_into(network, local_path(recipe.network.weights, "weights"), keymap=keymap, dtype=torch.float32)
    objective = AutoencoderObjective(
        network,
        temporal,
        FragmentBatches(files, recipe.data),
        recipe.losses,
        recipe.data.piece,
        seed=recipe.loop.seed,
    )
    weights = loop.run(
        objective,
        recipe.loop,
        run.out,
        resume=run.resume,
        device=run.device,
        recipe={**run.recipe, "data files": sources.fingerprint(files)},
        on_log=run.on_log,
    )
    state = {**network.state_dict(), **weights["autoencoder"]}
    config = {"_class_name": CLASSES[recipe.network.kind], **dataclasses.asdict(params)}
    return write_state(keymap.as_file(state), run.out / "vae", layout="diffusers", config=config)


def check(data: PixelSettings, temporal: int, spatial: int) -> None:
    """Refuse lengths and sizes that the network cannot code. Raises: RequestError."""
    width, height = parse_size(data.size)
    if width % spatial or height % spatial:
        raise RequestError(f"size `{data.size}` does not fit the network: use multiples of {spatial}")
    if data.piece % (2 * temporal):
        raise RequestError(f"`piece` {data.piece} does not fit the network: use a multiple of {2 * temporal}")
    if (data.frames - 1) % data.piece:
        raise RequestError(f"`frames` {data.frames} are no whole pieces: use 1 + a multiple of {data.piece}")
