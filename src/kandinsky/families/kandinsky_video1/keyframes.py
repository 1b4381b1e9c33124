"""Key frames → base frames → interpolation: three calls of the one sampling loop (Kandinsky Video 1.0 and 1.1).

encode → [first frame] → key frames → [fill the gaps, once or twice] → decode. Each step is public and typed on both
sides; a network is read when its step is reached, so a clip without interpolation never reads that network.

Legend: B clips; T H W C latent frames, rows, columns, channels; F frames and G = F − 1 gaps between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.cosine import CosineSchedule
from kandinsky.diffusion.gaps import MISSING, around, fill
from kandinsky.diffusion.guidance import Denoiser, Guidance, ImageGuidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.latents import write_latent
from kandinsky.engine.pipeline import GenerationPipeline, OnStep, to_bytes, to_pixels
from kandinsky.engine.request import KeyframeChoice, Resolved
from kandinsky.engine.text_states import Asked
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.families.parts.unet.unet import Marks
from kandinsky.model.card import Keyframes
from kandinsky.model.values import LatentShape, TextStates, VideoStream
from kandinsky.text.protocol import GapTextEncoder

SEED_STEP = 0x9E3779B97F4A7C15  # apart as 64-bit numbers can be, so that stages never share a generator
STAGES = ("key frames", "first frame", "first frame's noise", "interpolation")


class KeyframeStages:
    """The stages of a model of key frames.

    Every stage draws from a generator of its own, made of the seed and the stage's number; so the key frames of a seed
    are the same at every frame rate.

    Args:   base: its pipeline, with what all models have in common: networks, text states, decoding, recipes.
    Raises: BackendError for a model that makes none.
    """

    def __init__(self, base: GenerationPipeline) -> None:
        self.base = base
        self.placement = base.placement
        self.keyframes = _keyframes(base)

    def run(
        self, resolved: Resolved, *, keep_latent: str | Path | None = None, on_step: OnStep | None = None
    ) -> VideoStream:
        """The whole way for one resolved request; decoded as the pieces are taken."""
        progress = Progress(on_step, self.total_steps(resolved))
        text, nothing = self.encode(resolved)
        told = self.encode_for_gaps(resolved, text)
        first = self.first_frame(resolved, text, nothing, on_step=progress.stage())
        latents = self.sample_keyframes(resolved, text, nothing, first, on_step=progress.stage())
        latents = self.interpolate(latents, resolved, told, nothing, stage=progress.stage)
        recipe = self.base.recipe(resolved)
        if keep_latent is not None:
            write_latent(Path(keep_latent), latents[0], recipe)
        return self.base.streams(latents, [recipe])[0]

    def total_steps(self, resolved: Resolved) -> int:
        """Steps of all stages."""
        makes_first = self.keyframes.first_frame is not None and resolved.image is None
        return resolved.steps * (2 if makes_first else 1) + _choice(resolved).passes * self.gap_steps(resolved)

    def gap_steps(self, resolved: Resolved) -> int:
        """Steps of one interpolation pass: the card's, and no more than the key frames take."""
        return min(self.keyframes.steps, resolved.steps)

    def encode(self, resolved: Resolved) -> tuple[TextStates, TextStates]:
        """States of the prompt, and of what it is held against: the negative prompt, else the state for no text."""
        with Asked(self.placement, self.base.text_store) as asked:
            return asked.states(resolved.text), asked.against(resolved.negative_prompt, resolved.text)

    def encode_for_gaps(self, resolved: Resolved, text: TextStates) -> TextStates:
        """What the interpolation is told of the prompt: ``text``, or its own states where the card gives it any."""
        is_its_own = self.base.card.text.params.get("gap_table") and _choice(resolved).passes
        return gap_states(self.base, resolved.text) if is_its_own else text

    def first_frame(
        self, resolved: Resolved, text: TextStates, nothing: TextStates, *, on_step: OnStep | None = None
    ) -> Tensor | None:
        """Clean latent [1, 1, H, W, C] of the first frame: of the given image, else of one made from the text.

        None for models that need none. Quirk: the one that is made is larger than the clip, becomes eight-bit pixels,
        and is reduced, as in the official code.
        """
        if self.keyframes.first_frame is None:
            return None
        if resolved.image is not None:
            return encode_picture(self.base, resolved.image.pixels())
        made = self.make_first_frame(resolved, text, nothing, on_step=on_step)
        size = (resolved.shape.width, resolved.shape.height)
        return encode_picture(self.base, made.resize(size, Image.Resampling.BICUBIC))

    def make_first_frame(
        self, resolved: Resolved, text: TextStates, nothing: TextStates, *, on_step: OnStep | None = None
    ) -> Image.Image:
        """A first frame from the text, larger than the clip. Raises: BackendError for models that need none."""
        first = self.keyframes.first_frame
        if first is None:
            raise BackendError(f"`{self.base.card.id}` makes no first frame")
        latent = resolved.latent
        shape = LatentShape(1, latent.height * first.scale, latent.width * first.scale, latent.channels)
        rules = sampler(resolved.sampling.sampler)
        times = rules.times(resolved.steps, 1.0)
        draws = _draws(self.base, shape, _stage_seed(resolved.seed, "first frame"), rules.draws(resolved.steps))
        step = rules.step(times, 1.0, draws[1:])
        device = self.placement.device("dit")
        empty = torch.zeros_like(torch.cat((draws[0], draws[0][..., :1]), dim=-1)).to(device)
        with self.placement.hold("dit") as net:

            def bound(states: TextStates) -> Denoiser:
                return UNetDenoiser(net, states.to(device), condition_BTHWC=empty)

            guidance = Guidance(first.guidance)
            guided = self.base.team.guide(guidance, bound(text), bound(nothing) if guidance.is_on else None)
            made = sample(guided, draws[0].to(device), times, step=step, on_step=self.base.team.heed(on_step))
        with self.placement.hold("image_vae") as vae, torch.no_grad():
            pixels = to_bytes(vae.decode(made.to(self.placement.device("image_vae"))))
        return Image.fromarray(pixels[0, 0].cpu().numpy())

    def sample_keyframes(
        self,
        resolved: Resolved,
        text: TextStates,
        nothing: TextStates,
        first_BTHWC: Tensor | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents of the key frames [1, F, H, W, C], float32."""
        shape = dataclasses.replace(resolved.latent, frames=self.keyframes.count)
        rules = sampler(resolved.sampling.sampler)
        times = rules.times(resolved.steps, 1.0)
        draws = _draws(self.base, shape, _stage_seed(resolved.seed, "key frames"), rules.draws(resolved.steps))
        step = rules.step(times, 1.0, draws[1:])
        device = self.placement.device("dit")
        marks = self._marks(resolved)
        with self.placement.hold("dit") as net:
            bound = partial(UNetDenoiser, net, marks=marks)
            told, untold = text.to(device), nothing.to(device)
            if first_BTHWC is None:
                guidance = Guidance(resolved.guidance)
                guided = self.base.team.guide(guidance, bound(told), bound(untold) if guidance.is_on else None)
            else:
                condition = self._condition(first_BTHWC, shape, resolved).to(device)
                guided = self.base.team.guide(
                    ImageGuidance(resolved.guidance, _choice(resolved).image_guidance),
                    bound(told, condition_BTHWC=condition),
                    bound(untold, condition_BTHWC=condition),
                    bound(untold, condition_BTHWC=torch.zeros_like(condition)),
                )
            return sample(guided, draws[0].to(device), times, step=step, on_step=self.base.team.heed(on_step))

    def interpolate(
        self,
        latents_BTHWC: Tensor,
        resolved: Resolved,
        text: TextStates,
        nothing: TextStates,
        *,
        stage: Callable[[], OnStep | None] = lambda: None,
    ) -> Tensor:
        """The clip with its gaps filled as often as the frame rate asks, [1, T, H, W, C].

        stage: gives the progress callback of each pass.
        """
        for number in range(_choice(resolved).passes):
            latents_BTHWC = self.fill_gaps(latents_BTHWC, resolved, text, nothing, number=number, on_step=stage())
        return latents_BTHWC

    def fill_gaps(
        self,
        latents_BTHWC: Tensor,
        resolved: Resolved,
        text: TextStates,
        nothing: TextStates,
        *,
        number: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One pass: three frames between every two, [1, 4·(T − 1) + 1, H, W, C].

        Args: number: of the pass; it decides what the network is told of the gaps' length.
        """
        return fill_gaps(
            self.base,
            latents_BTHWC,
            text if self.keyframes.guides_text else nothing,
            nothing,
            steps=self.gap_steps(resolved),
            guidance=_choice(resolved).interpolation_guidance,
            seed=resolved.seed,
            number=number,
            on_step=on_step,
        )

    def _condition(self, first_BTHWC: Tensor, shape: LatentShape, resolved: Resolved) -> Tensor:
        """Condition channels [1, F, H, W, C + 1]: the first frame with noise and a mask of ones, zeros behind it.

        Quirk: the noise is uniform in [0, 1), a slip of the official code that the released numbers have.
        """
        first = self.keyframes.first_frame
        assert first is not None
        schedule = CosineSchedule(zero_snr=True)
        one = dataclasses.replace(shape, frames=1)
        noise = noise_rule.draw_uniform(one, [_stage_seed(resolved.seed, "first frame's noise")])
        key = first_BTHWC.float().cpu()
        noised = schedule.noised(key, noise, torch.tensor(schedule.time(first.noise_level)))
        marked = torch.cat((noised, torch.ones_like(noised[..., :1])), dim=-1)
        return torch.cat((marked, marked.new_zeros(1, shape.frames - 1, *marked.shape[2:])), dim=1)

    def _marks(self, resolved: Resolved) -> Marks:
        places = tuple(float(i * self.keyframes.spacing) for i in range(self.keyframes.count))
        first, motion = self.keyframes.first_frame, _choice(resolved).motion
        if first is None or motion is None:
            return Marks(places)
        return Marks(places, noise_level=first.noise_level, motion=first.motion[motion])


def gap_states(pipe: GenerationPipeline, prompt: str) -> TextStates:
    """What an interpolation that is told the prompt is told of it."""
    own = bool(pipe.card.text.params.get("gap_table"))
    with Asked(pipe.placement, pipe.text_store) as asked:
        return asked.states(prompt, way="for gaps", ask=_for_gaps) if own else asked.states(prompt)


def _for_gaps(encoder: GapTextEncoder, prompt: str) -> TextStates:
    return encoder.encode_for_gaps([prompt])


def _draws(pipe: GenerationPipeline, shape: LatentShape, seed: int, count: int) -> Tensor:
    return noise_rule.draw_series(shape, [seed], pipe.card.sampling.noise, count=count)


def _keyframes(pipe: GenerationPipeline) -> Keyframes:
    if pipe.card.keyframes is None:
        raise BackendError(f"`{pipe.card.id}` makes no key frames")
    return pipe.card.keyframes


def fill_gaps(
    pipe: GenerationPipeline,
    latents_BTHWC: Tensor,
    text: TextStates,
    nothing: TextStates,
    *,
    steps: int,
    guidance: float,
    seed: int,
    number: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Three frames between every two of any clip's latents, [1, 4·(T − 1) + 1, H, W, C].

    Args: text, nothing: states for the guided pass, and for the one that knows neither text nor frames.
          steps, guidance, seed: of this loop.   number: of the pass, from 0.
    """
    keyframes = _keyframes(pipe)
    rules = sampler(keyframes.sampler)
    left, right = around(latents_BTHWC)
    shape = LatentShape(left.shape[1], left.shape[2], left.shape[3], left.shape[4] * MISSING)
    times = rules.times(steps, 1.0)
    draws = _draws(pipe, shape, _stage_seed(seed, "interpolation", number), rules.draws(steps))
    step = rules.step(times, 1.0, draws[1:])
    device = pipe.placement.device("interpolation")
    left, right = left.to(device), right.to(device)
    skips = keyframes.skips
    marks = Marks(skip=skips[min(number, len(skips) - 1)])
    alone = dataclasses.replace(marks, mixes=not keyframes.guides_text)
    nowhere = torch.zeros_like(left)
    with pipe.placement.hold("interpolation") as net:
        weight = Guidance(guidance)
        guided = pipe.team.guide(
            weight,
            UNetDenoiser(net, text.to(device), before_BTHWC=left, condition_BTHWC=right, marks=marks),
            UNetDenoiser(net, nothing.to(device), before_BTHWC=nowhere, condition_BTHWC=nowhere, marks=alone)
            if weight.is_on
            else None,
        )
        filled = sample(guided, draws[0].to(device), times, step=step, on_step=pipe.team.heed(on_step))
    return fill(latents_BTHWC.to(filled), filled)


def encode_picture(pipe: GenerationPipeline, picture: Image.Image) -> Tensor:
    """Latent [1, 1, H, W, C] of one picture, float32."""
    name = "image_vae" if "image_vae" in pipe.card.components else "vae"
    device = pipe.placement.device(name)
    with pipe.placement.hold(name) as vae, torch.no_grad():
        return vae.encode(to_pixels(picture).to(device)).to(pipe.precision.islands)


class Progress:
    """Counts the steps of several stages as one run."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step = on_step
        self._total = total
        self._done = 0

    def stage(self) -> OnStep | None:
        """The callback of the next stage."""
        told = self._on_step
        if told is None:
            return None

        def on_step(_step: int, _total: int, clean: Tensor) -> bool | None:
            self._done += 1
            return told(self._done, self._total, clean)

        return on_step


def _choice(resolved: Resolved) -> KeyframeChoice:
    if resolved.choice is None:
        raise RequestError(f"this request was held against `{resolved.card.id}`, which makes no key frames")
    return resolved.choice


def _stage_seed(seed: int, stage: str, number: int = 0) -> int:
    return (seed + (STAGES.index(stage) + number) * SEED_STEP) % 2**63
