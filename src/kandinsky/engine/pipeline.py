"""Generation: resolve → encode → noise → sample → decode. Each step is public and typed on both sides.

One pipeline serves every task of the transformers of Kandinsky 5 and nano: text to video, image to video, text to image
and image editing. What an image means to a task stands in two tables, ``tasks.TASKS`` and ``conditioning.IMAGE_USES``.

Legend: B batch; T H W C frames, rows, columns, channels (of latents or pixels, as said); L text tokens.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion import step_cache
from kandinsky.diffusion.caching import CacheSettings
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.diffusion.guidance import Denoiser, Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.step_cache import Branches, StepCache
from kandinsky.engine.attention import attention_for
from kandinsky.engine.conditioning import condition, encode_image
from kandinsky.engine.denoisers import Shared, denoiser
from kandinsky.engine.latents import read_latent, write_latent
from kandinsky.engine.lora import LoraMethods
from kandinsky.engine.parallel import SHARED_DECODERS, check_fits, demand_of
from kandinsky.engine.request import Resolved, parse_size, resolve
from kandinsky.engine.text_states import CONTRASTING, Asked
from kandinsky.errors import BackendError, RequestError
from kandinsky.media import recipe
from kandinsky.model.autoencoder import decode_pieces
from kandinsky.model.card import Card
from kandinsky.model.task import task_of
from kandinsky.model.values import Request, TextStates, Video, VideoStream
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision
from kandinsky.text.protocol import ImageTextEncoder, PromptWriter
from kandinsky.text.store import TextStore, encode_each, join

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.text.protocol import TextEncoder

log = logging.getLogger(__name__)
# (step from 1, total, clean latents expected at present [B, T, H, W, C]); returning False cancels
OnStep = Callable[[int, int, Tensor], bool | None]


class GenerationPipeline(LoraMethods):
    """One model, ready to be asked.

    Args: card: the model.   placement: holds `text`, `dit` and `vae`.   precision: types it runs in.
          attention: of the visual self attention, as in ``AttentionSpec.chosen``; `auto` is the card's.
          name: what ``load`` finds the model by.   revision: of the weights.
          noise_device: device of the noise generator. None = the processor, so that a seed means the same clip on every
          machine; the official code draws on its CUDA device, and the official call keeps that.
          cache: step cache of requests that name none.   adapters: LoRAs of the transformer.
          text_store: text states on disk.   settings: further entries of every recipe.
          team: the processes that work together; every one of them makes the same calls and gets the same results.
    """

    def __init__(
        self,
        card: Card,
        placement: Placement,
        precision: Precision,
        *,
        attention: str = "auto",
        name: str | None = None,
        revision: str = "main",
        noise_device: torch.device | None = None,
        cache: str | CacheSettings | None = None,
        adapters: Adapters | None = None,
        text_store: TextStore | None = None,
        settings: Mapping[str, Any] | None = None,
        team: Team | None = None,
    ) -> None:
        self.card = card
        self.placement = placement
        self.precision = precision
        self.attention = attention
        self.name = name or card.id
        self.revision = revision
        self.noise_device = noise_device
        self.cache = cache
        self.adapters = adapters or Adapters(card.id, dict)
        self.text_store = text_store
        self.settings = dict(settings or {})
        self.team = team or Team()

    def __call__(
        self,
        prompt: str = "",
        *,
        image: Any = None,
        mask: Any = None,
        mask_grow: int | None = None,
        seconds: float | None = None,
        width: int | None = None,
        height: int | None = None,
        size: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        cache: str | CacheSettings | None = None,
        expand: bool = False,
        fps: str | None = None,
        motion: str | None = None,
        image_guidance: float | None = None,
        interpolation_guidance: float | None = None,
        keep_latent: str | Path | None = None,
        on_step: OnStep | None = None,
    ) -> Video:
        """Make one clip or image; what is left out comes from the model's card.

        Args:    prompt: what it shows; with an image some models need none.
                 image: a path, a Pillow image or a uint8 array [H, W, 3], for models whose task takes one. Any size: it
                 decides the size of the result and is fitted to it; the recipe says how.
                 mask: of the image's size, for models that repaint a part of it: white, or 1 in an array [H, W], where.
                 mask_grow: pixels by which it is grown; the officially prepared masks have 6.
                 seconds: length; 0 makes one still frame.   width, height: pixels.   size: both, `768x512`.
                 steps: network steps.   guidance: weight of the prompt, 1 = off.   shift: more time near noise.
                 negative_prompt: what to keep away from.   seed: drawn when not given; the result carries it.
                 cache: step cache of this call, `none` for none; see ``diffusion/caching.py``.
                 expand: have the text encoder's language model write the prompt out first; the recipe keeps its text.
                 fps: of models that make key frames, `low`, `medium` or `high`: these alone, or the gaps between them
                 filled once or twice.   motion: `low` to `extreme`, how much should move.   image_guidance: weight of
                 the first frame.   interpolation_guidance: of the frames around a gap; 1 = off.
                 keep_latent: file for the latent, written before it is decoded; see ``finish``.
                 on_step: ``on_step(step, total, preview_latents)``, called after each step; returning False cancels.
        Raises:  RequestError before anything is loaded; WeightsError, OutOfMemory, Cancelled later.
        """
        width, height = _one_size(width, height, size)
        request = Request(
            model=self.card.id,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seconds=seconds,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            shift=shift,
            seed=seed,
            image=image,
            mask=mask,
            mask_grow=mask_grow,
            cache=cache,
            expand=expand,
            fps=fps,
            motion=motion,
            image_guidance=image_guidance,
            interpolation_guidance=interpolation_guidance,
        )
        return self.run(self.resolve(request), keep_latent=keep_latent, on_step=on_step)

    def run(self, resolved: Resolved, *, keep_latent: str | Path | None = None, on_step: OnStep | None = None) -> Video:
        """The whole way for one resolved request."""
        kept = None if keep_latent is None else [Path(keep_latent)]
        return self.run_batch([resolved], keep_latents=kept, on_step=on_step)[0]

    def run_batch(
        self, batch: Sequence[Resolved], *, keep_latents: Sequence[Path] | None = None, on_step: OnStep | None = None
    ) -> list[Video]:
        """Several requests in one pass of each network; they may differ in prompt, negative prompt, seed and image
        (all with one, or none).

        keep_latents: a file for each latent, written before any is decoded.
        Results equal those of single runs up to the rounding of differently ordered sums.
        Raises: RequestError where the requests differ in size, length, steps, guidance or shift.
        """
        streams = self.stream_batch(batch, keep_latents=keep_latents, on_step=on_step)
        with ExitStack() as held:
            if self.team.size == 1:
                held.enter_context(self.placement.hold("vae"))  # once for all clips
            return [stream.gather() for stream in streams]

    def stream_batch(
        self, batch: Sequence[Resolved], *, keep_latents: Sequence[Path] | None = None, on_step: OnStep | None = None
    ) -> list[VideoStream]:
        """``run_batch`` up to the latents: clips are decoded as their pieces are taken, so that none need ever lie in
        memory whole. Several processes, which must decode at the same time, have done so.
        """
        first = _common(batch)
        # refuses what cannot run, before anything is loaded
        check_fits(self.team.layout, first, self.attention_of(first), len(batch))
        batch = self._agreed(batch)
        if first.choice is not None:
            from kandinsky.families.kandinsky_video1.keyframes import KeyframeStages  # which needs this module

            targets: Sequence[Path | None] = keep_latents or [None] * len(batch)
            stages = KeyframeStages(self)
            return [stages.run(one, keep_latent=to, on_step=on_step) for one, to in zip(batch, targets, strict=True)]
        kept = KeptBlocks()
        images = self.encode_images(batch)
        with ExitStack() as held:
            if any(one.expand for one in batch) and self.team.is_first:
                held.enter_context(self.placement.hold("text"))  # one visit for writing and reading
            batch = self.expand(batch)
            text, negative = self.encode(batch)
        cache = self.start_cache(first)
        latents = self.sample(
            self.noise(batch),
            text,
            negative,
            first,
            image_BTHWC=images,
            fresh_NBTHWC=self.fresh_noise(batch),
            cache=cache,
            kept=kept,
            on_step=on_step,
        )
        if cache:
            cache.skips = self.team.all_passes(cache.skips)
        shares = self._kept_shares(kept, first, len(batch))
        recipes = [self.recipe(one, cache.report(i) if cache else None, shares[i]) for i, one in enumerate(batch)]
        for path, one, latent in zip(keep_latents, recipes, latents, strict=True) if keep_latents else ():
            if self.team.is_first:
                write_latent(path, latent, one)
        return self.streams(latents, recipes)

    def finish(self, kept: str | Path) -> Video:
        """Decode a latent that ``keep_latent`` wrote: the frames that run would have given.

        Raises: RequestError for a file that is none, or of another model.
        """
        return self.finish_stream(kept).gather()

    def finish_stream(self, kept: str | Path) -> VideoStream:
        """``finish``, decoded as the pieces are taken. Raises: as that."""
        recipe: Mapping[str, Any] | None = None

        def read() -> list[Tensor | None]:
            nonlocal recipe
            latent = read_latent(Path(kept))
            recipe = latent.recipe
            if latent.latents_THWC.shape[-1] != self.card.clip.channels:
                raise RequestError(f"`{kept}` is a latent of `{recipe.get('model')}`, not of `{self.name}`")
            return [latent.latents_THWC[None]]

        (latents_1THWC,) = self.team.once(read)
        assert latents_1THWC is not None
        return self.streams(latents_1THWC, [self.team.agree(recipe)])[0]

    def streams(self, latents_BTHWC: Tensor, recipes: Sequence[Mapping[str, Any]]) -> list[VideoStream]:
        """Clips of these latents and recipes, not decoded yet; by several processes they are."""
        if self.team.size > 1:
            clips = [iter([clip]) for clip in self._decode_together(latents_BTHWC)]
        else:
            clips = [self.decode_pieces(latents_THWC) for latents_THWC in latents_BTHWC]
        num_frames = 1 + (latents_BTHWC.shape[1] - 1) * self.card.clip.temporal
        return [
            VideoStream(pieces, num_frames, fps=float(made["fps"]), seed=int(made["seed"]), recipe=dict(made))
            for pieces, made in zip(clips, recipes, strict=True)
        ]

    def _agreed(self, batch: Sequence[Resolved]) -> list[Resolved]:
        """The requests with the first process' seeds: those that were drawn differ."""
        seeds = self.team.agree([one.seed for one in batch])
        return [dataclasses.replace(one, seed=seed) for one, seed in zip(batch, seeds, strict=True)]

    def _kept_shares(self, kept: KeptBlocks, first: Resolved, clips: int) -> list[float | None]:
        """Of each clip, the share of blocks that block-sparse attention computed, over all processes."""
        own = self.team.own_clips(torch.empty(clips, 0))
        heads = demand_of(first, self.attention_of(first)).heads
        return self.team.all_shares([kept.mean(i) for i in range(len(own))], heads)

    def resolve(self, request: Request) -> Resolved:
        """Hold a request against the card. Raises: RequestError; BackendError for attention that is not there."""
        resolved = resolve(request if request.cache is not None else request.with_values(cache=self.cache), self.card)
        self.attention_of(resolved)
        return resolved

    def attention_of(self, resolved: Resolved) -> AttentionSpec:
        """The visual self attention of a request. Raises: BackendError where it cannot run on this device."""
        return attention_for(self.card, resolved.sampling, self.attention, self.placement.device("dit").type)

    def expand(self, batch: Sequence[Resolved]) -> list[Resolved]:
        """The requests with their prompts written out at length, those that ask for it; each with its own seed."""
        if not any(one.expand and one.expanded_prompt is None for one in batch):
            return list(batch)
        made = batch
        if self.team.is_first:
            made = [self._expand(one) if one.expand and one.expanded_prompt is None else one for one in batch]
        texts = self.team.agree([one.expanded_prompt for one in made])
        return [dataclasses.replace(one, expanded_prompt=text) for one, text in zip(batch, texts, strict=True)]

    def _expand(self, one: Resolved) -> Resolved:
        image = None if one.image is None else one.image.picture.image
        with self.placement.hold("text") as encoder:
            if not isinstance(encoder, PromptWriter):
                raise BackendError(f"`{type(encoder).__name__}` cannot write prompts out: leave `expand` out")
            written = encoder.expand(one.prompt, task=self.card.task, seed=one.seed, image=image)
        log.info("expanded prompt: %s", written)
        return dataclasses.replace(one, expanded_prompt=written)

    def start_cache(self, resolved: Resolved) -> StepCache | None:
        """A fresh step cache for one ``sample``, where the request names one."""
        return step_cache.start(resolved.cache, steps=resolved.steps)

    def encode(self, batch: Sequence[Resolved]) -> tuple[TextStates, TextStates | None]:
        """States of the prompts, and of the negative prompts where guidance is on.

        Prompts are encoded one by one, so that a state is the same in any batch; from the store where it has them.
        """
        made = self.team.once(lambda: _tensors_of(*self._encode(batch)))
        return _states_of(made[:3]), _states_of(made[3:]) if made[3] is not None else None

    def _encode(self, batch: Sequence[Resolved]) -> tuple[TextStates, TextStates | None]:
        first = _common(batch)
        prompts = [self.adapters.trigger + one.text for one in batch]
        negative = [one.negative_prompt for one in batch] if Guidance(first.guidance).is_on else []
        if task_of(self.card).text_sees_image and first.image is not None:
            images = [one.image.pixels() for one in batch if one.image is not None]
            with self.placement.hold("text") as encoder:
                text = _encode_with_images(encoder, prompts, images)
                return text, _encode_with_images(encoder, negative, images) if negative else None
        if negative and self.card.text.kind in CONTRASTING:
            with Asked(self.placement, self.text_store) as asked:
                text = join([asked.states(prompt) for prompt in prompts])
                return text, join([asked.against(n, prompt) for n, prompt in zip(negative, prompts, strict=True)])
        states = encode_each(
            [*prompts, *negative],
            still=first.shape.frames == 1,
            encoder=partial(self.placement.hold, "text"),
            store=self.text_store,
        )
        return join(states[: len(prompts)]), join(states[len(prompts) :]) if negative else None

    def encode_images(self, batch: Sequence[Resolved]) -> Tensor | None:
        """Clean latents [B, 1, H, W, C] of the given images, float32; None without images.

        The mode of the autoencoder's posterior: the official code takes an unseeded sample of it, so that there a seed
        does not repeat a result.
        """
        if _common(batch).image is None:
            return None
        return self.team.once(lambda: [self._encode_images(batch)])[0]

    def _encode_images(self, batch: Sequence[Resolved]) -> Tensor:
        device = self.placement.device("vae")
        with self.placement.hold("vae") as vae, torch.no_grad():
            latents = [
                encode_image(vae.encode, to_pixels(one.image.pixels()).to(device), _fitted_mask(one))
                for one in batch
                if one.image is not None
            ]
        return torch.cat(latents).to(self.precision.islands)

    def noise(self, batch: Sequence[Resolved]) -> Tensor:
        """Noise [B, T, H, W, C] to start from, float32, one generator a sample."""
        first = _common(batch)
        rules = sampler(first.sampling.sampler)
        return rules.start(self._draws(batch), rules.times(first.steps, first.shift))

    def fresh_noise(self, batch: Sequence[Resolved]) -> Tensor | None:
        """What samplers that add noise anew draw after the start, [N, B, T, H, W, C]; None for the others."""
        rules = sampler(_common(batch).sampling.sampler)
        return self._draws(batch)[rules.unused + 1 :] if rules.fresh else None

    def _draws(self, batch: Sequence[Resolved]) -> Tensor:
        first = _common(batch)
        count = sampler(first.sampling.sampler).draws(first.steps)
        seeds = [one.seed for one in batch]
        return noise_rule.draw_series(first.latent, seeds, first.sampling.noise, count=count, device=self.noise_device)

    def sample(
        self,
        noise_BTHWC: Tensor,
        text: TextStates,
        negative: TextStates | None,
        resolved: Resolved,
        *,
        image_BTHWC: Tensor | None = None,
        fresh_NBTHWC: Tensor | None = None,
        cache: Branches | None = None,
        kept: KeptBlocks | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents [B, T, H, W, C], float32, from noise, text states and the latents of images.

        ``resolved`` gives steps, shift, guidance and the card's values; ``fresh_NBTHWC`` is of ``fresh_noise``;
        ``kept`` is told what block-sparse attention keeps.
        Raises: Cancelled when ``on_step`` returns False; RequestError where a sampler lacks its fresh noise.
        """
        device = self.placement.device("dit")
        noise_BTHWC = noise_BTHWC.to(device, self.precision.islands)
        clips, own = len(noise_BTHWC), self.team.own_clips
        noise_BTHWC, text = own(noise_BTHWC), _own_states(text, clips, own)
        negative = None if negative is None else _own_states(negative, clips, own)
        image_BTHWC = None if image_BTHWC is None else own(image_BTHWC)
        if fresh_NBTHWC is not None:
            fresh_NBTHWC = own(fresh_NBTHWC.transpose(0, 1)).transpose(0, 1)
        if self.team.layout.cuts_weights and self.adapters.names:
            raise RequestError(
                f"LoRAs need whole weights: unload them, or leave `{self.team.layout}` without tp and fsdp"
            )
        sampling = resolved.sampling
        condition_BTHWC, pin = condition(self.card.task, sampling.condition, noise_BTHWC, image_BTHWC)
        rules = sampler(sampling.sampler)
        shared = Shared(sampling.rope_scale, self.attention_of(resolved), condition_BTHWC, kept=kept)
        times = rules.times(resolved.steps, resolved.shift)
        step = rules.step(times, resolved.shift, fresh_NBTHWC)
        cache = cache or self.start_cache(resolved)
        with self.placement.hold("dit") as dit:
            self.adapters.apply(dit, dtype=self.precision.compute)

            def bound(states: TextStates, branch: str) -> Denoiser:
                runner = cache.runner(branch) if cache else None
                return denoiser(self.card.dit.kind, dit, states.to(device), shared, runner)

            guided = self.team.guide(
                Guidance(resolved.guidance),
                bound(text, "conditional"),
                None if negative is None else bound(negative, "unconditional"),
            )
            latents = sample(guided, noise_BTHWC, times, step=step, on_step=self.team.heed(on_step), pin=pin)
        latents = normalize_first_frame(latents) if pin and sampling.normalize_first_frame else latents
        return self.team.all_clips(latents, clips)

    def decode(self, latents_BTHWC: Tensor) -> np.ndarray:
        """Frames [B, T, H, W, 3], uint8; one clip at a time, see ``decode_pieces``."""
        if self.team.size > 1:
            return self._decode_together(latents_BTHWC)
        with self.placement.hold("vae"):  # once for all clips
            clips = [np.concatenate(list(self.decode_pieces(one))) for one in latents_BTHWC]
        return np.stack(clips)

    def _decode_together(self, latents_BTHWC: Tensor) -> np.ndarray:
        """Clips in turn by all processes; a single one by all where its autoencoder allows, else by the first."""
        is_shared = len(latents_BTHWC) == 1 and self.card.vae.kind in SHARED_DECODERS

        def frames(latents_THWC: Tensor) -> Tensor:
            if not is_shared:
                return torch.from_numpy(np.concatenate(list(self.decode_pieces(latents_THWC))))
            with self.placement.hold("vae") as vae, torch.no_grad():
                latents_1THWC = latents_THWC[None].to(self.placement.device("vae"))
                return torch.cat([to_bytes(piece[0]) for piece in self.team.decode(vae, latents_1THWC)])

        return np.stack(self.team.by_turns(frames, latents_BTHWC, everyone=is_shared))

    def decode_pieces(self, latents_THWC: Tensor) -> Iterator[np.ndarray]:
        """Frames of one clip, [t, H, W, 3] uint8, piece by piece as the autoencoder finishes them.

        Quirk: (x + 1)·127.5 is cut, not rounded, as in the official code.
        """
        latents_THWC = latents_THWC.to(self.placement.device("vae"))
        with self.placement.hold("vae") as vae:
            pieces = decode_pieces(vae, latents_THWC[None])
            while True:
                with torch.no_grad():  # not around the yield: the caller's own arithmetic is not ours to change
                    if (piece := next(pieces, None)) is None:
                        return
                    frames = to_bytes(piece[0]).cpu().numpy()
                yield frames
                del piece, frames  # not while the next is made

    def recipe(
        self, resolved: Resolved, cache: dict[str, Any] | None = None, kept: float | None = None
    ) -> dict[str, object]:
        """What makes this result again, as stored in the file.

        Args: cache: the step cache's report.   kept: share of the blocks that block-sparse attention computed.
        """
        settings = resolved.settings() | {"model": self.name} | ({"cache": cache} if cache else {}) | self.settings
        attention = self.attention_of(resolved)
        if attention.type == "nabla" or attention != AttentionSpec.from_dict(resolved.sampling.attention):
            settings["attention"] = str(attention)
        if kept is not None:
            settings["kept_blocks"] = round(kept, 4)
        if loras := self.adapters.recipe():
            settings["lora"] = loras
        if self.noise_device is not None and self.noise_device.type != "cpu":
            settings["noise"] = f"{settings['noise']} on {self.noise_device.type}"
        device = str(self.placement.device("dit"))
        return recipe.build(settings, revision=self.revision, dtype=self.precision.name, device=device)


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] (others are clamped) to uint8, cutting the fraction."""
    return ((pixels.float().clamp(-1.0, 1.0) + 1.0) * 127.5).to(torch.uint8)


def _fitted_mask(one: Resolved) -> np.ndarray | None:
    return None if one.mask is None or one.image is None else one.mask.fitted(one.image)


def to_pixels(image: Image) -> Tensor:
    """A Pillow image as a clip of one frame: [1, 1, H, W, 3], float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image))[None, None].float() / 127.5 - 1.0


def _tensors_of(*states: TextStates | None) -> list[Tensor | None]:
    """Tokens, pooled states and mask of each."""
    return [
        tensor
        for one in states
        for tensor in ((None,) * 3 if one is None else (one.tokens_BLC, one.pooled_BC, one.mask_BL))
    ]


def _states_of(tensors: Sequence[Tensor | None]) -> TextStates:
    tokens_BLC, pooled_BC, mask_BL = tensors
    assert tokens_BLC is not None and pooled_BC is not None
    return TextStates(tokens_BLC, pooled_BC, mask_BL)


def _own_states(states: TextStates, clips: int, own: Callable[[Tensor], Tensor]) -> TextStates:
    """The states of this process' clips; those of one prompt for all clips stay as they are."""
    if len(states.tokens_BLC) != clips:
        return states
    return _states_of([None if tensor is None else own(tensor) for tensor in _tensors_of(states)])


def _encode_with_images(encoder: TextEncoder, prompts: list[str], images: list[Image]) -> TextStates:
    if not isinstance(encoder, ImageTextEncoder):
        raise BackendError(f"`{type(encoder).__name__}` cannot be shown an image: use another text encoder")
    # one by one, so that a prompt's states do not depend on its neighbours
    return join([encoder.encode_with_images([p], [image]) for p, image in zip(prompts, images, strict=True)])


def _common(batch: Sequence[Resolved]) -> Resolved:
    """The first request, after a look that all others agree with it."""
    if not batch:
        raise RequestError("a batch needs at least one request")
    first = batch[0]
    for one in batch[1:]:
        aligned = dataclasses.replace(
            one,
            prompt=first.prompt,
            negative_prompt=first.negative_prompt,
            seed=first.seed,
            expanded_prompt=first.expanded_prompt,
            image=first.image if (one.image is None) == (first.image is None) else one.image,
            mask=first.mask if (one.mask is None) == (first.mask is None) else one.mask,
        )
        if aligned != first:
            raise RequestError("the requests of one batch may differ in prompt, negative prompt, seed and image only")
    return first


def _one_size(width: int | None, height: int | None, size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise RequestError("give either `size` or `width` and `height`, not both")
    return parse_size(size)
