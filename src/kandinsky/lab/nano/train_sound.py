"""Objectives of nano-v2a: the autoencoder of its pictures of sound, and the U-Net with the eye that it hears through.

Legend: B batch, T frames of a clip, L words, E width of the states; pictures are [B, 1, M, W, 3] in [-1, 1], M mel
bands from the highest down, W steps in time, loud is dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.clip_encoder import NanoClipEncoder, NanoClipEncoderParams
from kandinsky.families.nano.params import NanoAutoencoderParams
from kandinsky.lab.nano.emoji import FPS
from kandinsky.lab.nano.sound_data import TIMBRES, SoundClips, SoundData, pitch
from kandinsky.lab.nano.sound_scenes import Scene
from kandinsky.lab.nano.train_autoencoder import reconstruction_loss, to_unit
from kandinsky.media.spectrogram import SpectrogramParams, image_of_mel, mel_of_waveform
from kandinsky.model.params import read_params
from kandinsky.train.objective import Loss, at_times


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """How sound becomes a picture, as the card's `sound` table has it. columns: W.   max_value: what black means."""

    spectrogram: SpectrogramParams
    columns: int
    max_value: float

    @property
    def samples(self) -> int:
        return self.spectrogram.hop * (self.columns - 1)

    def pictures(self, waveform_BS: np.ndarray) -> Tensor:
        """[B, 1, M, W, 3]."""
        mel = mel_of_waveform(torch.from_numpy(waveform_BS), self.spectrogram)
        images = [image_of_mel(one[None], self.spectrogram, max_value=self.max_value)[0] for one in mel]
        return to_unit(torch.stack(images).numpy())[:, None]


class SoundAutoencoderObjective:
    """Pictures of sound, for ``reconstruction_loss``; starts as PCA of ``pca_clips`` of them."""

    def __init__(
        self,
        cache: Path | None,
        pictures: PictureSettings,
        params: NanoAutoencoderParams,
        *,
        batch: int = 16,
        latent_noise: float = 0.1,
        pca_clips: int = 400,
    ) -> None:
        self.data, self.pictures = SoundData(cache), pictures
        self.batch_size, self.latent_noise = batch, latent_noise
        self.network = NanoAutoencoder(params)
        first = self.network.patchify(self._pictures(range(pca_clips))).flatten(0, 3)
        self.explained = self.network.start_from_pca(first)
        self.network.to_latent.requires_grad_(False)

    def _pictures(self, numbers: Sequence[int]) -> Tensor:
        return self.pictures.pictures(self.data.sounds(numbers, samples=self.pictures.samples))

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        return self._pictures(torch.randint(2**62, (self.batch_size,), generator=generator).tolist())

    def loss(self, batch: Tensor, generator: torch.Generator) -> Loss:
        return reconstruction_loss(self.network, batch, self.latent_noise, generator)


class SoundNetwork(nn.Module):
    """Everything that is trained together. ``reading`` says events from the eye's states, and is only used here."""

    def __init__(self, unet: V2AParams, clip: NanoClipEncoderParams) -> None:
        super().__init__()
        self.unet = V2AUNet(unet)
        self.clip = NanoClipEncoder(clip)
        self.reading = nn.Linear(clip.encoder_dim, READINGS)


@dataclass(frozen=True, slots=True)
class SoundBatch:
    """frames_BTCHW in [0, 1]; words_BL numbers; clean_BTHWC latents; events: see ``event_targets``."""

    frames_BTCHW: Tensor
    words_BL: Tensor
    clean_BTHWC: Tensor
    events_BTR: Tensor


KINDS = tuple(TIMBRES)
READINGS = 4 + len(KINDS)  # whether, when, how strong, how high, then which kind


def event_targets(scenes: Sequence[Scene], frames: int) -> Tensor:
    """What happens at each frame, [B, T, READINGS]: 1 where an event is nearest to it; its distance in frames, −½ to
    ½; its strength; its pitch in octaves from 440 Hz; its kind, one of ``KINDS``. Zeros where there is none."""
    out = torch.zeros(len(scenes), frames, READINGS)
    for number, scene in enumerate(scenes):
        for event in scene.events:
            frame = min(frames - 1, round(event.time * FPS))
            said = [1.0, event.time * FPS - frame, event.strength, math.log2(pitch(event.radius) / 440)]
            out[number, frame, :4] = torch.tensor(said)
            out[number, frame, 4 + KINDS.index(event.kind)] = 1
    return out


def reading_loss(read_BTR: Tensor, events_BTR: Tensor, seen_B: Tensor) -> Tensor:
    """How badly events are read: of all frames whether there is one, of those with one all the rest.

    seen_B: 1 for clips that count, 0 for the others; without any that counts the loss is 0.
    """
    counts = seen_B[:, None].expand(events_BTR.shape[:2])
    there = events_BTR[..., 0]
    # one frame in ten has an event
    whether = F.binary_cross_entropy_with_logits(
        read_BTR[..., 0], there, pos_weight=torch.tensor(4.0), reduction="none"
    )
    values = (read_BTR[..., 1:4] - events_BTR[..., 1:4]).square().sum(-1)
    kinds = F.cross_entropy(read_BTR[..., 4:].movedim(-1, 1), events_BTR[..., 4:].argmax(-1), reduction="none")
    rest = ((values + kinds) * there * counts).sum() / (there * counts).sum().clamp_min(1)
    return (whether * counts).sum() / counts.sum().clamp_min(1) + rest


class SoundObjective:
    """Flow matching on latent pictures of sound, by the video-to-audio U-Net that is shown the clip.

    x_t = (1 − t)·clean + t·noise, and the network learns noise − clean, as nano's clips are made. The large model
    predicts the noise; near pure noise that says next to nothing of the sound, and a small network learns it last.
    Clip and words are dropped together for a share of the batch, for guidance: a black film and no word. The eye also
    learns to say the events (``reading``), whose gradient is far clearer than what comes back through the U-Net.

    Args: autoencoder: trained; only its encoder is used.   drop: that share.   reading: weight of saying the events.
    """

    def __init__(
        self,
        cache: Path | None,
        pictures: PictureSettings,
        autoencoder: NanoAutoencoder,
        unet: V2AParams,
        clip: NanoClipEncoderParams,
        *,
        batch: int = 32,
        drop: float = 0.1,
        reading: float = 0.3,
    ) -> None:
        self.data, self.pictures = SoundData(cache), pictures
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.network = SoundNetwork(unet, clip)
        self.batch_size, self.drop, self.reading = batch, drop, reading

    def batch(self, step: int, generator: torch.Generator) -> SoundBatch:
        numbers = torch.randint(2**62, (self.batch_size,), generator=generator).tolist()
        side = self.network.clip.params.side
        return self.prepare(self.data.clips(numbers, side=side, samples=self.pictures.samples))

    @torch.no_grad()
    def prepare(self, clips: SoundClips) -> SoundBatch:
        frames = torch.from_numpy(clips.frames_BTHWC).movedim(-1, 2).float() / 255
        words = torch.tensor([self.network.clip.numbers(scene.word) for scene in clips.scenes])
        latents = self.autoencoder.encode(self.pictures.pictures(clips.waveform_BS)).float()
        return SoundBatch(frames, words, latents, event_targets(clips.scenes, frames.shape[1]))

    def loss(self, batch: SoundBatch, generator: torch.Generator) -> Loss:
        clean, count = batch.clean_BTHWC, len(batch.clean_BTHWC)
        noise = torch.randn(clean.shape, generator=generator)
        # one time from each of ``count`` equal parts of the scale: the loss is less a matter of luck
        t = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).clamp(1e-3, 1)
        share = t[:, None, None, None, None]
        state = (1 - share) * clean + share * noise
        seen = (torch.rand(count, generator=generator) >= self.drop).float()
        frames = self.network.clip(batch.frames_BTCHW * seen[:, None, None, None, None])
        words = self.network.clip.words(batch.words_BL * seen[:, None].long())
        predicted = SoundDenoiser(self.network.unet, words, frames)(state, t)
        error = (predicted.float() - (noise - clean)).square().flatten(1).mean(1)
        # a black film shows no events: it has no part in saying them
        read = reading_loss(self.network.reading(frames).float(), batch.events_BTR, seen)
        figures = {
            "loss_velocity": float(error.detach().mean()),
            "loss_early": float(error.detach()[count // 2 :].mean()),
            "loss_reading": float(read.detach()),
        }
        return Loss(error.mean() + self.reading * read, figures=figures, timed=at_times(t, error.detach()))


def read_pictures(values: dict[str, Any]) -> PictureSettings:
    """A recipe's `pictures`. Raises: RequestError for a key that is not known."""
    settings = dict(values)
    settings["spectrogram"] = SpectrogramParams.from_dict(settings["spectrogram"])
    return read_params(PictureSettings, settings, "picture setting")
