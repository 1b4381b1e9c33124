"""Recipes of kind `autoencoder`: train a video autoencoder of a shipped kind, whatever its ratios, on long clips.

A clip passes in pieces whose causal convolutions carry what the piece before left, and each piece is computed again
in the backward pass: memory is that of one piece, while gradients go through all of the clip. Losses see the whole.
Sources: HunyuanVideo (arXiv 2412.03603, section 4.1: L1 + 0.1 LPIPS + 0.05 GAN + 1e-6 KL); the penalty of outliers,
Movie Gen (arXiv 2410.13720, section 3.1.1); the balance of the adversarial loss, VQGAN (arXiv 2012.09841); for
equivariance see ``train/equivariance.py``.

Legend: B batch; T H W C frames, rows, columns, channels; pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kandinsky import catalogue
from kandinsky.engine.build import bare_network
from kandinsky.engine.request import parse_size
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.media.image import cover, open_image
from kandinsky.media.mux import InputVideo, probe
from kandinsky.model.card import Component
from kandinsky.printing import counted, escaped
from kandinsky.train import equivariance, loop
from kandinsky.train.adversary import UPDATE, PatchDiscriminator, balance, figures, told_apart
from kandinsky.train.data import sources
from kandinsky.train.data.clips import fitted, is_still, nearest
from kandinsky.train.data.sources import Example, Fault
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update, check_portions
from kandinsky.train.perceptual import PerceptualDistance
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.work import done
from kandinsky.weights.keymaps import KeyMap, keymap_of
from kandinsky.weights.read import load_into
from kandinsky.weights.untrusted import read_table
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
KEPT_VIDEOS = 64  # whose times of frames are kept in memory
MEASURED = 16  # steps whose latents say the scaling factor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What is trained.

    Attributes:
        kind: Of the network.
        params: Hyper-parameters under Diffusers' names; the released autoencoder's where absent.
        weights: File or folder to begin with; random ones where absent.
        lower: Folder of an autoencoder of a lower ratio in Diffusers' layout, as a training writes it, to begin as;
            instead of ``weights``. See ``families/parts/progressive.py``.
        scaling: The factor that gives latents a standard deviation of 1: `measured` at the end, or `kept` as `params`
            say it, for denoisers that know it. Where absent, it is kept with `weights`, and else measured.
    """

    kind: Literal["hunyuan", "cogvideox"]
    params: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    lower: str | None = None
    scaling: Literal["measured", "kept"] | None = None

    @property
    def measures(self) -> bool:
        """Whether the scaling factor is measured."""
        return self.scaling == "measured" or (self.scaling is None and self.weights is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSettings:
    """What is trained on: fragments of videos, and images as clips of one frame.

    Attributes:
        source: Folder of images and videos; captions beside them are not read.
        size: Width and height.
        frames: Of a fragment, 1 + a multiple of ``piece``; shorter videos are left out.
        fps: Frames a second of a fragment; those of each file where absent.
        piece: Frames of a piece; the first has one more.
        batch: Clips of a step, over all processes.
        most_stride: Fragments skip up to so many frames less one, at random, so that fast motion is seen.
        image_share: Share of the steps whose clips are single frames.
    """

    source: str
    size: str = "256x256"
    frames: int = field(default=129, metadata={"least": 1})
    fps: float | None = field(default=None, metadata={"above": 0})
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
        equivariance: Of what latents that were turned or made smaller decode to, from the clip changed so: the
            reconstruction and the perceptual loss once more. See ``train/equivariance.py``.
        equivariance_share: Of the steps that have it.
        equivariance_scale: The least scale; 1 for turns alone.
        equivariance_turns: Whether there are turns; else scales alone, as in arXiv 2502.14831.
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
    equivariance: float = field(default=0.0, metadata={"least": 0})
    equivariance_share: float = field(default=0.5, metadata={"above": 0, "most": 1})
    equivariance_scale: float = field(default=0.25, metadata={"above": 0, "most": 1})
    equivariance_turns: bool = True
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


@runtime_checkable
class GrowingAutoencoder(Protocol):
    """An autoencoder that can begin as one of a lower ratio."""

    def begin_as(self, config: Mapping[str, Any], read: Callable[[nn.Module], None]) -> None: ...


def begin_as(network: nn.Module, lower: str, keymap: KeyMap) -> None:
    """Give a network the weights of one of a lower ratio.

    Args:
        network: Of any kind.
        lower: Folder in Diffusers' layout.
        keymap: Of the kind.

    Raises:
        RequestError: Networks of this kind cannot, the folder has no `config.json`, or the networks do not fit.
        WeightsError: Weights are broken or of another network.
    """
    folder = local_path(lower, "weights")
    if not isinstance(network, GrowingAutoencoder):
        raise RequestError("`network.lower` is for networks of the kind `hunyuan`: use `network.weights`")
    if not (folder / "config.json").is_file():
        raise RequestError(f"`network.lower` `{lower}` has no `config.json`: name the folder `vae` of a training")
    read: Callable[[nn.Module], None] = lambda net: load_into(net, folder, keymap=keymap, dtype=torch.float32)  # noqa: E731
    network.begin_as(read_table(folder / "config.json"), read)


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


@dataclass(frozen=True, slots=True)
class Footage:
    """A file that was looked at.

    Attributes:
        example: The file.
        fps: Frames a second that fragments have; 0 of an image.
        last_s: When the last frame is shown.
    """

    example: Example
    fps: float = 0.0
    last_s: float = 0.0

    def lasts(self, frames: int, stride: int = 1) -> bool:
        """Whether so many frames are there; times in files are rounded."""
        return frames == 1 or (self.fps > 0 and self.last_s + 0.5 / self.fps >= (frames - 1) * stride / self.fps)


class FragmentBatches:
    """Fragments drawn with replacement, all of a step of one length.

    Every file is looked at once. One that cannot be read is left out and named, and so is a video that is too short;
    one that can no longer be read later is named, and another is drawn in its place.

    Args:
        files: At least one.
        settings: Size, length and shares.

    Raises:
        RequestError: No file can be used, or no video is long enough.
    """

    def __init__(self, files: Sequence[Example], settings: PixelSettings) -> None:
        self.settings = settings
        self.width, self.height = parse_size(settings.size)
        self._probed = lru_cache(KEPT_VIDEOS)(_probed)
        self.faults: list[Fault] = []
        self.files: list[Footage] = []
        for example in files:
            try:
                self.files.append(self._looked_at(example))
            except RequestError as error:
                self._leave_out(example, error)
        self.videos = [one for one in self.files if one.lasts(settings.frames)]
        if self.faults:
            log.warning("%d of %s cannot be used", len(self.faults), counted(len(files), "file"))
        if not self.files or (not self.videos and settings.image_share < 1):
            why = f": {self.faults[0].reason}" if self.faults else ""
            what = "nothing is left of the data" if not self.files else f"no video has {settings.frames} frames"
            raise RequestError(f"{what}{why}", hint="use fewer `frames`, or `image_share` 1 for images alone")

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        """A portion of the batch of a step."""
        settings = self.settings
        numbers = portion.of(range(settings.batch))
        is_image = float(torch.rand((), generator=rng.example(-1, "image"))) < settings.image_share
        frames = 1 if is_image else settings.frames
        clips = [self._drawn(frames, number, rng) for number in numbers]
        done(samples=len(clips))
        return Fragments(torch.stack(clips), numbers)

    def _drawn(self, frames: int, number: int, rng: Rng) -> Tensor:
        """A fragment of a file that can be read."""
        files = self.files if frames == 1 else self.videos
        generator, problem = rng.example(number, "file"), RequestError("no file can be read")
        for _ in range(10 * len(files)):
            file = files[int(torch.randint(len(files), (), generator=generator))]
            try:
                shown = self._fragment(file, frames, rng.example(number, "fragment"))
                return torch.from_numpy(shown).float() / 127.5 - 1
            except RequestError as error:
                problem = error
                if file.example.name not in {one.name for one in self.faults}:
                    self._leave_out(file.example, error)
        raise problem

    def _fragment(self, file: Footage, frames: int, generator: torch.Generator) -> np.ndarray:
        """[T, H, W, 3], uint8."""
        with file.example.decoded() as path:
            if not file.fps:
                return np.asarray(cover(open_image(path).image, self.width, self.height))[None]
            video = dataclasses.replace(self._probed(file.example), path=path)
            wanted = window(video.times_s, file, frames, self.settings.most_stride, generator)
            return fitted(video, wanted, lambda image: (self.width, self.height))

    def _looked_at(self, example: Example) -> Footage:
        with example.decoded() as path:
            if is_still(path, example):
                open_image(path)
                return Footage(example)
            video = probe(path)
        found = Footage(example, self.settings.fps or video.fps, video.times_s[-1])
        if not found.lasts(frames := self.settings.frames):
            raise RequestError(
                f"`{escaped(example.name)}` shows its last frame at {found.last_s:.2f} s, and {frames} frames at "
                f"{found.fps:g} a second need {(frames - 1) / found.fps:.2f} s"
            )
        return found

    def _leave_out(self, example: Example, error: RequestError) -> None:
        self.faults.append(Fault(example.name, str(error)))
        log.warning("left out: %s", error)


def window(
    times_s: Sequence[float], file: Footage, frames: int, most_stride: int, generator: torch.Generator
) -> list[int]:
    """Numbers of the frames of a fragment: those nearest in time to its moments, from a random one on.

    Args:
        times_s: Of the file's frames.
        file: Of what rate the fragment is.
        frames: Of the fragment.
        most_stride: See ``PixelSettings``.
        generator: Draws.
    """
    strides = [stride for stride in range(1, most_stride + 1) if file.lasts(frames, stride)] if frames > 1 else [1]
    stride = 1 + int(torch.randint(max(1, len(strides)), (), generator=generator))
    step = stride / file.fps
    starts = bisect_right(times_s, file.last_s - (frames - 1) * step + 0.5 / file.fps)
    start = times_s[int(torch.randint(max(1, starts), (), generator=generator))]
    return [nearest(times_s, start + number * step) for number in range(frames)]


def _probed(example: Example) -> InputVideo:
    with example.decoded() as path:
        return probe(path)


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
        terms = self.terms(clip, made, mean, logvar, z) | self.changed(clip, z, rng)
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

    def likeness(self, clip: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The reconstruction and the perceptual loss, each times its weight."""
        error = made - clip
        smooth = self.losses.reconstruction == "charbonnier"
        terms = {"reconstruction": (error.square() + 1e-6).sqrt().mean() if smooth else error.abs().mean()}
        if self.perceptual is not None:
            terms["perceptual"] = self.losses.perceptual * self.perceptual(made, clip)
        return terms

    def changed(self, clip: Tensor, z: Tensor, rng: Rng) -> dict[str, Tensor]:
        """The loss of equivariance, times its weight; nothing in the steps that have none."""
        losses = self.losses
        if not losses.equivariance:
            return {}
        change = equivariance.drawn(
            z.shape[2], z.shape[3], rng.example(-1, "equivariance"), least_scale=losses.equivariance_scale,
            is_turned=losses.equivariance_turns, share=losses.equivariance_share,
        )  # fmt: skip
        if change is None:
            return {}
        network: Any = self.network
        wanted = change(clip, clip.shape[2] // z.shape[2])
        made = decoded(network, change(z).to(z.dtype), self.latent_piece).float()
        return {"equivariance": losses.equivariance * torch.stack([*self.likeness(wanted, made).values()]).sum()}

    def terms(self, clip: Tensor, made: Tensor, mean: Tensor, logvar: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The losses that need no discriminator, each times its weight; float32."""
        losses = self.losses
        made, mean, logvar, z = (x.float() for x in (made, mean, logvar, z))
        error = made - clip
        terms = self.likeness(clip, made)
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
    with torch.device("meta"):
        known: Any = bare_network(part, component, Path()).params
    check(recipe, known.temporal_compression_ratio, known.spatial_compression_ratio)
    files = sources.find(recipe.data.source, captions="optional")
    batches = FragmentBatches(files, recipe.data)
    with loop.seeded(recipe.loop.seed):
        network = bare_network(part, component, Path())
    params: Any = network.params
    temporal = params.temporal_compression_ratio
    keymap = keymap_of(part)
    if recipe.network.weights is not None:
        load_into(network, local_path(recipe.network.weights, "weights"), keymap=keymap, dtype=torch.float32)
    if recipe.network.lower is not None:
        begin_as(network, recipe.network.lower, keymap)
    objective = AutoencoderObjective(
        network,
        temporal,
        batches,
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
    if recipe.network.measures:
        network.load_state_dict(state)
        params = dataclasses.replace(params, scaling_factor=scaling_factor(objective, recipe.loop))
    config = {"_class_name": type(network.net).__name__, **dataclasses.asdict(params)}
    return write_state(keymap.as_file(state), run.out / "vae", layout="diffusers", config=config)


@torch.no_grad()
def scaling_factor(objective: AutoencoderObjective, settings: loop.LoopSettings) -> float:
    """What gives latents a standard deviation of 1, over clips that a longer run would have seen next.

    Args:
        objective: With its trained network.
        settings: Of the run.
    """
    network: Any = objective.network.eval()
    count, total, squares = 0, 0.0, 0.0
    for step in range(settings.steps, settings.steps + MEASURED):
        rng = Rng(settings.seed, step)
        for micro in range(settings.accumulate):
            batch = objective.batch(step, rng, Portion(micro, settings.accumulate))
            mean, logvar = encoded(network, batch.clip_BTHWC.to(works_on(network)), objective.piece)
            # of latents as they are drawn
            count, total = count + mean.numel(), total + float(mean.double().sum())
            squares += float((mean.double().square() + logvar.double().exp()).sum())
    spread = math.sqrt(max(squares / count - (total / count) ** 2, 1e-12))
    return float(f"{1 / spread:.6g}")


def check(recipe: AutoencoderRecipe, temporal: int, spatial: int) -> None:
    """Refuse lengths, sizes and batches that cannot be. Raises: RequestError."""
    if recipe.network.lower is not None and recipe.network.weights is not None:
        raise RequestError("a network begins with `weights` or as a `lower` one: leave one of them out")
    data, (width, height) = recipe.data, parse_size(recipe.data.size)
    check_portions(recipe.loop.accumulate, data.batch)
    if width % spatial or height % spatial:
        raise RequestError(f"size `{data.size}` does not fit the network: use multiples of {spatial}")
    if data.piece % (2 * temporal):
        raise RequestError(f"`piece` {data.piece} does not fit the network: use a multiple of {2 * temporal}")
    if (data.frames - 1) % data.piece:
        raise RequestError(f"`frames` {data.frames} are no whole pieces: use 1 + a multiple of {data.piece}")
