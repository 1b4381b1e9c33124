"""Sound for a film: frames and words → states → picture of sound, by the one sampling loop → waveform.

Each step is public and typed on both sides. A film longer than the model's window is done in windows that overlap, each
with noise of its own, and their sounds are faded into each other.

Legend: N windows of a film, B of them in one pass; M bands and T columns of a picture of sound; H W C rows, columns and
channels of its latent; S samples; E width of the encoder's states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import OnStep, sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.clip_states import FilmStates, read_states
from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser
from kandinsky.families.kandinsky4_v2a.request import (
    ResolvedSound,
    SoundRequest,
    resolve_sound,
    shown_frames,
    sound_of,
    times_of,
)
from kandinsky.families.kandinsky_video1.keyframes import SEED_STEP, Progress
from kandinsky.media import audio as sounds
from kandinsky.media import recipe as recipes
from kandinsky.media import spectrogram
from kandinsky.media.mux import Film, frames_of_windows
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.model.card import Card
from kandinsky.model.values import Audio, LatentShape, Soundtrack, Video
from kandinsky.runtime.placement import Placement, Precision

BLACK_SIZE = (64, 64)  # of the black film that guidance holds a film against; encoders take any


class VideoToAudioPipeline:
    """One model of sound, ready to be asked.

    Args: card: the model.   placement: holds `text` (the encoder of frames and words), `dit` (the U-Net) and `vae`.
          precision: type the U-Net and the encoder run in.   name: what ``load`` finds the model by.
          revision: of the weights.
    """

    def __init__(
        self,
        card: Card,
        placement: Placement,
        precision: Precision,
        *,
        name: str | None = None,
        revision: str = "main",
    ) -> None:
        self.card = card
        self.rules = sound_of(card)
        self.params = SpectrogramParams.from_dict(self.rules.spectrogram)
        self.placement = placement
        self.precision = precision
        self.name = name or card.id
        self.revision = revision

    def __call__(
        self,
        prompt: str = "",
        *,
        video: str | Path | Video,
        seconds: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        states: str | Path | None = None,
        on_step: OnStep | None = None,
    ) -> Soundtrack:
        """Make the sound of one film; what is left out comes from the model's card.

        Args:    prompt: what is to be heard.   video: a file, or a clip in memory.   seconds: of it, from its begin.
                 steps, guidance (1 = off), negative_prompt, seed: as for video; a seed is drawn when not given.
                 states: a file of encoder states, see ``clip_states.py``; the encoder is then not needed.
                 on_step: ``on_step(step, total, preview_latents)``, called after each step; returning False cancels.
        Raises:  RequestError before anything is loaded; WeightsError, BackendError, OutOfMemory, Cancelled later.
        """
        request = SoundRequest(
            self.card.id, prompt, video, negative_prompt, seconds, steps, guidance, seed=seed, states=states
        )
        return self.run(self.resolve(request), on_step=on_step)

    def resolve(self, request: SoundRequest) -> ResolvedSound:
        """Hold a request against the card and its film. Raises: RequestError."""
        return resolve_sound(request, self.card)

    def run(self, resolved: ResolvedSound, *, on_step: OnStep | None = None) -> Soundtrack:
        """The whole way for one resolved request."""
        return self.run_batch([resolved], on_step=on_step)[0]

    def run_batch(
        self, batch: Sequence[ResolvedSound], *, at_once: int = 1, on_step: OnStep | None = None
    ) -> list[Soundtrack]:
        """Several films, with ``at_once`` windows in one pass of the U-Net.

        Results equal those of single runs up to the rounding of differently ordered sums.
        """
        states = self.encode(batch)
        latents = self.sample(batch, states, at_once=at_once, on_step=on_step)
        made = []
        for one, latents_N1HWC in zip(batch, latents, strict=True):
            audio = self.listen(self.decode(latents_N1HWC), one)
            made.append(Soundtrack(audio, one.seed, self.recipe(one), one.film))
        return made

    def encode(self, batch: Sequence[ResolvedSound]) -> list[FilmStates]:
        """States of every film and its prompts; from a file where a request names one.

        Raises: RequestError for a file that does not fit its request.
        """
        given = [None if one.states is None else _fitting(read_states(one.states), one) for one in batch]
        if None not in given:
            return [states for states in given if states is not None]
        device = self.placement.device("text")
        with self.placement.hold("text") as encoder, torch.no_grad():

            @cache
            def words(text: str) -> Tensor:
                return encoder.encode_prompts([text])

            @cache
            def darkness(moments: tuple[float, ...]) -> Tensor:
                black = torch.zeros(len(moments), *BLACK_SIZE, 3, dtype=torch.uint8, device=device)
                return encoder.encode_frames(black, torch.tensor(moments, device=device))

            def states_of(one: ResolvedSound) -> FilmStates:
                windows, moments = [], ()
                for frames_THWC, times_s in self.windows(one):
                    windows.append(encoder.encode_frames(frames_THWC.to(device), times_s.to(device)))
                    moments = moments or tuple(times_s.tolist())
                states = FilmStates(torch.cat(windows), words(one.prompt))
                if not Guidance(one.guidance).is_on:
                    return states
                return dataclasses.replace(states, black_1TE=darkness(moments), negative_1LE=words(one.negative_prompt))

            return [known or states_of(one) for one, known in zip(batch, given, strict=True)]

    def windows(self, resolved: ResolvedSound) -> Iterator[tuple[Tensor, Tensor]]:
        """What the encoder is shown of each window: frames [T, H, W, 3] uint8, and when they are shown, [T] seconds."""
        film, windows = resolved.film, resolved.windows
        times = times_of(film)
        chosen = [shown_frames(times, start, windows.length_s, self.rules) for start in windows.starts_s]
        numbers = [some for some, _ in chosen]
        if isinstance(film, Film):
            frames = frames_of_windows(film, numbers)
        else:
            frames = (film.frames_THWC[some] for some in numbers)
        for pictures, (_, moments) in zip(frames, chosen, strict=True):
            yield torch.from_numpy(np.ascontiguousarray(pictures)), torch.tensor(moments)

    def latent_shape(self, resolved: ResolvedSound) -> LatentShape:
        """Of the picture of one window's sound."""
        clip, unit = self.card.clip, self.rules.multiple
        columns = -(-self.params.columns(resolved.windows.length_s) // unit) * unit
        return LatentShape(1, self.params.num_frequencies // clip.spatial, columns // clip.spatial, clip.channels)

    def sample(
        self,
        batch: Sequence[ResolvedSound],
        states: Sequence[FilmStates],
        *,
        at_once: int = 1,
        on_step: OnStep | None = None,
    ) -> list[Tensor]:
        """Latents of every film's pictures, [N, 1, H, W, C] float32 each, from the states of ``encode``.

        Raises: RequestError for states of another width than the U-Net's; Cancelled when ``on_step`` returns False.
        """
        passes = _passes(
            [(one, self.latent_shape(one), known) for one, known in zip(batch, states, strict=True)], at_once
        )
        rules, shift = sampler(self.card.sampling.sampler), self.card.sampling.shift
        progress = Progress(on_step, sum(len(rules.times(some[0].one.steps, shift)) - 1 for some in passes))
        made: list[list[Tensor]] = [[] for _ in batch]
        with self.placement.hold("dit"):  # once for all windows
            for some in passes:
                one = some[0].one
                seeds = [window_seed(window.one.seed, window.number) for window in some]
                draws = noise_rule.draw_series(
                    some[0].shape, seeds, self.card.sampling.noise, count=rules.draws(one.steps)
                )
                told = _together(some)
                latents = self.denoise(draws, told, steps=one.steps, guidance=one.guidance, on_step=progress.stage())
                for window, latent in zip(some, latents, strict=True):
                    made[window.film].append(latent)
        return [torch.stack(windows) for windows in made]

    def denoise(
        self,
        draws_NBTHWC: Tensor,
        states: FilmStates,
        *,
        steps: int,
        guidance: float,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents [B, 1, H, W, C] float32 of B windows.

        Args: draws_NBTHWC: noise; its first entry is the state to begin with, unless the sampler wants more of it.
              states: of B windows, or of one text for all.
        """
        device = self.placement.device("dit")
        rules, shift = sampler(self.card.sampling.sampler), self.card.sampling.shift
        times = rules.times(steps, shift)
        step = rules.step(times, shift, draws_NBTHWC[rules.unused + 1 :] if rules.fresh else None)
        weight = Guidance(guidance)
        with self.placement.hold("dit") as net:
            width = net.params.encoder_dim
            if (given := states.frames_NTE.shape[-1]) != width:
                raise RequestError(f"the encoder's states are {given} wide, and `{self.card.id}` takes {width}")
            negative = None
            if weight.is_on:
                if states.negative_1LE is None or states.black_1TE is None:
                    raise RequestError(f"guidance {guidance:g} needs states of a negative prompt and of a black film")
                negative = SoundDenoiser(net, states.negative_1LE.to(device), states.black_1TE.to(device))
            guided = weight.guide(
                SoundDenoiser(net, states.text_1LE.to(device), states.frames_NTE.to(device)), negative
            )
            begin_BTHWC = rules.start(draws_NBTHWC, times).to(device, self.precision.islands)
            return sample(guided, begin_BTHWC, times, step=step, on_step=on_step)

    def decode(self, latents_N1HWC: Tensor) -> Tensor:
        """Pictures of sound [N, M, T, 3], uint8 on the host; rounded, as officially."""
        return (shares(self.pixels(latents_N1HWC)) * 255).round().to(torch.uint8)

    def pixels(self, latents_N1HWC: Tensor) -> Tensor:
        """The same as the autoencoder gives it, about [-1, 1], window by window."""
        device = self.placement.device("vae")
        with self.placement.hold("vae") as vae, torch.no_grad():
            return torch.stack([vae.decode(one[None].to(device))[0, 0].float().cpu() for one in latents_N1HWC])

    def listen(self, pictures_NMTC: Tensor, resolved: ResolvedSound) -> Audio:
        """The sound that pictures mean, as long as was asked for."""
        rate, windows = self.params.sample_rate, resolved.windows
        length = round(windows.length_s * rate)
        pieces = []
        for number, picture in enumerate(pictures_NMTC):
            mel = spectrogram.mel_of_image(picture, self.params, max_value=self.rules.max_value)
            generator = torch.Generator().manual_seed(window_seed(resolved.seed, number))
            magnitudes = spectrogram.magnitudes_of_mel(mel, self.params)
            waveform = spectrogram.griffin_lim(magnitudes, self.params, generator=generator)
            pieces.append(waveform.T.numpy()[:length])
        whole = faded(pieces, [round(start * rate) for start in windows.starts_s], round(self.rules.overlap_s * rate))
        samples = sounds.leveled(whole, self.rules.dbfs)
        return Audio(sounds.fit_length(samples, round(resolved.seconds * rate)), rate)

    def recipe(self, resolved: ResolvedSound) -> dict[str, object]:
        """What makes this sound again, as stored in the file; with the recipe of the film, where it has one."""
        settings = resolved.settings() | {"model": self.name}
        film = resolved.film
        try:
            made_by = recipes.read(film.path) if isinstance(film, Film) else film.recipe
        except RequestError:  # another program's film
            made_by = {}
        if made_by:
            settings["video"] |= {"recipe": made_by}
        device = str(self.placement.device("dit"))
        return recipes.build(settings, revision=self.revision, dtype=self.precision.name, device=device)


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """One window's turn. film: its place in the batch."""

    film: int
    number: int
    one: ResolvedSound
    shape: LatentShape
    states: FilmStates


def _passes(films: Sequence[tuple[ResolvedSound, LatentShape, FilmStates]], at_once: int) -> list[list[_Window]]:
    """Neighbouring windows that one pass can take together, at most so many."""
    passes: list[list[_Window]] = []
    last: object = None
    for place, (one, shape, states) in enumerate(films):
        key = (shape, one.steps, one.guidance, states.frames_NTE.shape[1:], states.text_1LE.shape)
        for number in range(len(one.windows.starts_s)):
            if key != last or len(passes[-1]) >= at_once:
                passes.append([])
            last = key
            passes[-1].append(_Window(place, number, one, shape, states))
    return passes


def _together(windows: Sequence[_Window]) -> FilmStates:
    """States of windows as one batch."""

    def joined(tensors: Iterable[Tensor | None]) -> Tensor | None:
        found = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(found) if found else None

    return FilmStates(
        torch.cat([window.states.frames_NTE[window.number, None] for window in windows]),
        torch.cat([window.states.text_1LE for window in windows]),
        joined(window.states.black_1TE for window in windows),
        joined(window.states.negative_1LE for window in windows),
    )


def shares(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] (others are clamped) as shares of white."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def window_seed(seed: int, number: int) -> int:
    """Of a window's noise: the request's for the first, and far apart for the others."""
    return (seed + number * SEED_STEP) % 2**63


def faded(pieces: list[np.ndarray], starts: list[int], overlap: int) -> np.ndarray:
    """Pieces of sound [S, C] as one. Of what two have in common only the middle ``overlap`` samples are faded."""
    cut = list(pieces)
    begins = list(starts)
    for i, (a, b) in enumerate(pairwise(range(len(pieces)))):
        common = begins[a] + len(cut[a]) - starts[b]
        before = max(0, (common - overlap) // 2)
        after = max(0, common - overlap - before)
        cut[a] = cut[a][: len(cut[a]) - after]
        cut[b], begins[i + 1] = cut[b][before:], starts[b] + before
    return sounds.join(cut, begins)


def _fitting(states: FilmStates, one: ResolvedSound) -> FilmStates:
    windows, given = len(one.windows.starts_s), len(states.frames_NTE)
    if windows != given:
        raise RequestError(
            f"states `{one.states}` are of {given} windows, and {one.seconds:g} s of film have {windows}"
        )
    if Guidance(one.guidance).is_on and (states.black_1TE is None or states.negative_1LE is None):
        raise RequestError(
            f"states `{one.states}` lack `negative_image_embeds` or `negative_prompt_embeds`, which guidance "
            f"{one.guidance:g} needs: add them, or use guidance 1"
        )
    return states
