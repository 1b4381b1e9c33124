"""Training examples of video to audio: the latent of a video's own sound, and the embeddings of its frames and caption.

Legend: M bands and T columns of a spectrogram; H W C rows, columns and channels; E width of the encoder's embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kandinsky.engine.context import Context
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.request import Windows, latent_shape, shown_frames
from kandinsky.families.kandinsky4_v2a.stages import BLACK_SIZE, spectrogram_params
from kandinsky.media import audio, spectrogram
from kandinsky.media.mux import frames_at, probe
from kandinsky.model.card import Card, sound_of
from kandinsky.model.task import TrainingExamples
from kandinsky.model.values import TextEmbeddings


@dataclass(frozen=True, slots=True)
class SoundExamples:
    """The first window of each video that has sound.

    ``latent`` is that of the spectrogram, [1, 1, H, W, C]; ``video`` and ``black`` are the embeddings [1, T, E] of its
    frames, and of a black video that takes their place where the video is dropped.
    """

    tensors: tuple[str, ...] = ("latent", "video", "black")

    def shapes(self, card: Card) -> dict[str, tuple[int, ...]]:
        """Of a whole window."""
        rules = sound_of(card)
        latent = latent_shape(card, rules, Windows.over(rules.window_s, rules))
        frames = (1, rules.frames, V2AParams.from_dict(card.dit.params).encoder_dim)
        return {"latent": (1, *latent.as_tuple()), "video": frames, "black": frames}

    def cut(self, path: Path, card: Card, seconds: float | None) -> dict[str, np.ndarray]:
        """Spectrogram [M, T, 3] and frames [T, H, W, 3] as uint8, and the times of the frames.

        Raises:
            RequestError: The file cannot be read, has no sound, or is shorter than the shortest window.
        """
        rules, params = sound_of(card), spectrogram_params(card)
        video = probe(path)
        if not video.has_audio:
            raise RequestError(f"video `{path}` has no sound to learn from")
        if video.seconds < rules.least_s:
            raise RequestError(f"video `{path}` lasts {video.seconds:.2f} s, and {rules.least_s:g} s are needed")
        longest = rules.window_s if seconds is None else min(seconds, rules.window_s)
        windows = Windows.over(min(video.seconds, longest), rules)
        columns = latent_shape(card, rules, windows).width * card.clip.spatial
        samples_SC = audio.read_audio(path, rate=params.sample_rate, mono=not params.stereo).samples_SC
        fitted_SC = audio.fit_length(samples_SC, min(columns - 1, params.columns(windows.length_s) - 1) * params.hop)
        whole_SC = audio.fit_length(fitted_SC, (columns - 1) * params.hop)
        if params.stereo and whole_SC.shape[1] == 1:
            whole_SC = whole_SC.repeat(2, axis=1)
        mel = spectrogram.mel_of_waveform(torch.from_numpy(whole_SC.T.astype(np.float32)), params)[..., :columns]
        picture, _ = spectrogram.image_of_mel(mel, params, max_value=rules.max_value)
        numbers, moments = shown_frames(video.times_s, 0.0, windows.length_s, rules)
        return {"spectrogram": picture.numpy(), "frames": frames_at(video, numbers), "times": np.array(moments)}

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Latent of the spectrogram, embeddings of the frames and of as many black ones."""
        unit_MTC = torch.from_numpy(made["spectrogram"]).float() / 127.5 - 1
        with context.placement.hold("vae") as vae:
            latent = vae.encode(unit_MTC[None, None].to(context.placement.device("vae")))
        device = context.placement.device("text")
        times = torch.from_numpy(made["times"]).float().to(device)
        with context.placement.hold("text") as encoder:
            frames = encoder.encode_frames(torch.from_numpy(made["frames"]).to(device), times)
            black = torch.zeros(len(times), *BLACK_SIZE, 3, dtype=torch.uint8, device=device)
            return {"latent": latent, "video": frames, "black": encoder.encode_frames(black, times)}

    def text(self, context: Context, caption: str) -> TextEmbeddings:
        """Embeddings of the words, and their mean."""
        with context.placement.hold("text") as encoder:
            words_1LE = encoder.encode_prompts([caption])
            return TextEmbeddings(words_1LE, words_1LE.mean(1))


EXAMPLES: TrainingExamples = SoundExamples()
