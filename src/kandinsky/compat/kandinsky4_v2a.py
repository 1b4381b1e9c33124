"""The official interface of Kandinsky 4.0 V2A: ``Video2AudioPipeline``, ``load_video`` and ``create_video``.

Arguments, defaults and results are the official ones; the work is done by ``kandinsky.engine``. Corrected: the video
keeps its timing (officially it is played up to 5 % faster), frames are encoded once, nothing is written to the current
folder.
Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/{video2audio_pipe,utils}.py.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky import catalogue
from kandinsky.compat.official_call import at_path, progress_bar
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import VideoToAudioPipeline
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a import stages
from kandinsky.families.kandinsky4_v2a.clip_embeddings import ClipEmbeddings, read_embeddings
from kandinsky.families.kandinsky4_v2a.stages import shares
from kandinsky.media import audio as sounds
from kandinsky.media import clip_frames, spectrogram
from kandinsky.media.mux import frames_at, probe
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.media.video import check_target
from kandinsky.model.values import Audio, Video
from kandinsky.runtime.placement import place

log = logging.getLogger(__name__)
TRUST = "KANDINSKY_TRUST_REMOTE_CODE"  # so that the documented lines run as they are
COLUMN_S = 0.01  # duration of one column of the mel spectrogram
WIDTH_STEP, SPATIAL = 32, 8
OUTPUTS = ("pil", "np", "pt", "latent")
MAX_VALUE = spectrogram.MAX_VALUE


class Video2AudioPipeline:
    """Generates a mel spectrogram, as an image, from frames of a video and a prompt.

    Args:
        path_to_model: Folder with `unet/`, `vae/` and `scheduler/`, or the repository's name; nothing is downloaded.
        torch_dtype: Officially ignored: U-Net and encoder run in bfloat16 on accelerators; float32 is honoured here.
        device: Device of all networks.
        encoder: Folder of CogVLM2-Video, if it is neither in `encoder/` of the model's nor in the Hugging Face cache.
        trust_remote_code: Allow it to run the program code in its repository, as the official code does; None reads the
            variable ``KANDINSKY_TRUST_REMOTE_CODE``. Without it, calls need ``states``.

    Raises:
        RequestError: The folder holds another model.
        BackendError: The device is not available.
        WeightsError: A file is missing; the message names it.
    """

    def __init__(
        self,
        path_to_model: str | Path,
        torch_dtype: torch.dtype = torch.float16,
        device: str | torch.device = "cuda",
        *,
        encoder: str | Path | None = None,
        trust_remote_code: bool | None = None,
    ) -> None:
        source = catalogue.source_of(path_to_model)
        card = dataclasses.replace(source.card, text=at_path(source.card.text, encoder, "model"))
        if trust_remote_code is None:
            trust_remote_code = os.environ.get(TRUST, "").lower() in ("1", "true", "yes", "on")
        self.has_encoder = trust_remote_code
        options = RunOptions(
            device=device,
            dtype="float32" if torch_dtype is torch.float32 else None,
            only=None if trust_remote_code else {"dit", "vae"},
            trust_remote_code=trust_remote_code,
        )
        self.pipeline = VideoToAudioPipeline(build(card, options, root=source.root, name=source.name))

    def __call__(
        self,
        images: Tensor,
        prompt: str,
        negative_prompt: str | None = None,
        height: int = 512,
        duration_sec: float = 10,
        num_inference_steps: int = 50,
        guidance_scale: float = 8,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        *,
        states: str | Path | ClipEmbeddings | None = None,
    ) -> Any:
        """Generate one mel spectrogram as an image.

        Args:
            images: [3, frames, H, W] of integers 0 … 255, as ``load_video`` returns them.
            prompt: The prompt.
            negative_prompt: Officially required; "" if omitted.
            height: Height of the spectrogram, in mel bands.
            duration_sec: The spectrogram has 100 columns per second, truncated to a multiple of 32.
            num_inference_steps: Sampling steps.
            guidance_scale: Classifier-free guidance scale; 1 and below disables it.
            generator: Source of the noise.
            latents: Initial noise [1, 4, height / 8, width / 8].
            output_type: `pil`, `np` or `pt` (0 to 1, 1 = white), or `latent` (the decoder's own output).
            states: Precomputed embeddings; see ``kandinsky.families.kandinsky4_v2a.clip_embeddings``.

        Returns:
            A list with one PIL image; for `np` an array [1, H, W, 3], for the others a tensor [1, 3, H, W].

        Raises:
            RequestError: A value is not allowed; nothing was loaded.
        """
        if output_type not in OUTPUTS:
            raise RequestError(f"output_type `{output_type}` is unknown: use {', '.join(OUTPUTS)}")
        width = int(duration_sec * 100) // WIDTH_STEP * WIDTH_STEP
        if width < WIDTH_STEP or height < SPATIAL or height % SPATIAL:
            raise RequestError(
                f"a spectrogram of {width}x{height} cannot be made: use 1 s or more, and a height that is a "
                f"multiple of {SPATIAL}"
            )
        noise = self._noise(
            latents, generator, (1, self.pipeline.card.clip.channels, height // SPATIAL, width // SPATIAL)
        )
        weight = float(guidance_scale) if guidance_scale > 1 else 1.0
        if states is None:
            states = self._states(images, prompt, negative_prompt or "", weight)
        elif not isinstance(states, ClipEmbeddings):
            states = read_embeddings(states)
        with progress_bar(True) as on_step:
            walk = stages.denoise(
                self.pipeline.context,
                noise.unsqueeze(2).movedim(1, -1)[None],
                states,
                steps=num_inference_steps,
                guidance=weight,
            )
            made = self.pipeline.drive(walk, on_step)
        if output_type == "pil":
            return [Image.fromarray(image.numpy()) for image in stages.decode(self.pipeline.context, made)]
        pixels = stages.pixels(self.pipeline.context, made)
        if output_type == "np":
            return shares(pixels).numpy()
        return (pixels if output_type == "latent" else shares(pixels)).movedim(-1, 1)

    def _states(self, images: Tensor, prompt: str, negative: str, weight: float) -> ClipEmbeddings:
        if not self.has_encoder:
            raise RequestError(
                "the encoder's own program code is not run unasked: make the pipeline with `trust_remote_code=True` "
                f"or set {TRUST}=1, or give `states`"
            )
        if images.dim() != 4 or images.shape[0] != 3:
            raise RequestError(f"images must be [3, frames, height, width], not {list(images.shape)}")
        device = self.pipeline.placement.device("text")
        frames_THWC = images.permute(1, 2, 3, 0).to(device)
        times_s = torch.arange(len(frames_THWC), device=device, dtype=torch.float32)
        with self.pipeline.placement.hold("text") as encoder, torch.no_grad():
            states = ClipEmbeddings(encoder.encode_frames(frames_THWC, times_s), encoder.encode_prompts([prompt]))
            if not Guidance(weight).is_on:
                return states
            black = encoder.encode_frames(torch.zeros_like(frames_THWC), times_s)
            return dataclasses.replace(states, black_1TE=black, negative_1LE=encoder.encode_prompts([negative]))

    def _noise(
        self,
        latents: Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        shape: tuple[int, ...],
    ) -> Tensor:
        """Noise as officially: drawn on the generator's device in the U-Net's type, channels first."""
        if sampler(self.pipeline.card.sampling.sampler).fresh:
            raise RequestError(f"sampler `{self.pipeline.card.sampling.sampler}` draws more noise than this call knows")
        if isinstance(generator, list):
            if len(generator) != 1:
                raise RequestError(f"{len(generator)} generators were given: use one")
            (generator,) = generator
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise RequestError(f"latents have shape {list(latents.shape)}, and {list(shape)} is needed")
            return latents
        where = self.pipeline.placement.device("dit") if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=where, dtype=self.pipeline.precision.compute)


def load_video(
    video: Tensor, fps: float, num_frames: int = 38, max_duration_sec: int = 12
) -> tuple[Tensor, Tensor, int]:
    """Choose frames for the pipeline and trim the video to whole seconds.

    Args:
        video: [T, H, W, 3] uint8.
        fps: Frames per second.
        num_frames: Number of frames that the encoder sees.
        max_duration_sec: Longer videos are cut.

    Returns:
        The chosen frames [3, num_frames, H, W]; the trimmed video [T', H, W, 3]; its duration in seconds.

    Raises:
        RequestError: The video is shorter than one second.
    """
    seconds, total = clip_frames.whole_seconds(len(video), float(fps), max_duration_sec)
    complete = video[:total]
    return complete[clip_frames.spread(total, num_frames)].permute(3, 0, 1, 2), complete, seconds


def create_video(
    spectogram: Image.Image,
    video: Tensor,
    target_dBFS: float = -30.0,
    save_path: str | Path | None = None,
    display_video: bool = False,
    device: str | torch.device = "cuda",
) -> None:
    """Write the video with the audio of a mel spectrogram.

    Args:
        spectogram: The pipeline's image (official spelling).
        video: [T, H, W, 3] uint8, from ``load_video``.
        target_dBFS: Loudness of the audio.
        save_path: `.mp4` or `.webm`.
        display_video: Show it in a notebook.
        device: Device on which the waveform is reconstructed.

    Raises:
        RequestError: The file cannot be written.
        BackendError: The device is not available.
    """
    if save_path is not None:
        check_target(save_path)
    clip = _with_audio(spectogram, video, target_dBFS, place(device))
    if save_path is not None:
        clip.save(save_path)
    if display_video:
        _display(clip, save_path)


def read_video(
    filename: str | Path,
    start_pts: float = 0,
    end_pts: float | None = None,
    pts_unit: str = "pts",
    output_format: str = "THWC",
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Read a whole video file: ``torchvision.io.read_video``, which torchvision no longer has since 0.28.

    Args:
        filename: Any file that FFmpeg reads.
        start_pts: 0; parts of a file are not supported.
        end_pts: None; likewise.
        pts_unit: `pts` or `sec`, which makes no difference for a whole file.
        output_format: `THWC` or `TCHW`, the axes of the frames.

    Returns:
        Frames as uint8; samples [channels, samples] as float32 from -1 to 1; `video_fps` and, if the file has audio,
        `audio_fps`.

    Raises:
        RequestError: The file does not exist or is not a video, or only a part of it was asked for.
    """
    if start_pts != 0 or end_pts not in (None, math.inf):
        raise RequestError("start_pts and end_pts are not supported: read the whole video and take a part of it")
    if pts_unit not in ("pts", "sec"):
        raise RequestError(f"pts_unit `{pts_unit}` is unknown: use `pts` or `sec`")
    if output_format not in ("THWC", "TCHW"):
        raise RequestError(f"output_format `{output_format}` is unknown: use `THWC` or `TCHW`")
    video = probe(filename)
    audio = sounds.read_audio(filename) if video.has_audio else Audio(np.zeros((0, 1), np.int16), 0)
    rates = {"video_fps": video.fps} | ({"audio_fps": audio.rate} if video.has_audio else {})
    frames_THWC = torch.from_numpy(frames_at(video, range(len(video.times_s))))
    samples_CS = torch.from_numpy((audio.samples_SC.T / sounds.FULL_SCALE).astype(np.float32))
    return frames_THWC if output_format == "THWC" else frames_THWC.permute(0, 3, 1, 2), samples_CS, rates


def fill_torchvision() -> None:
    """Add ``read_video`` to an imported torchvision that no longer has it, so that the documented lines run.

    They import torchvision first. Nothing happens if it was not imported, or still has the function.
    """
    io = getattr(sys.modules.get("torchvision"), "io", None)
    if io is not None and not hasattr(io, "read_video"):
        io.read_video = read_video


def _with_audio(image: Image.Image, video: Tensor, dbfs: float, device: torch.device) -> Video:
    """The clip with its audio, as long as the video: whole seconds, of which the spectrogram covers a little less."""
    image_MTC = torch.from_numpy(np.array(image.convert("RGB")))
    params = SpectrogramParams(num_frequencies=len(image_MTC))
    seconds = math.ceil(image_MTC.shape[1] * COLUMN_S)
    mel = spectrogram.mel_of_image(image_MTC, params, max_value=MAX_VALUE).to(device)
    waveform = spectrogram.griffin_lim(spectrogram.magnitudes_of_mel(mel, params), params).cpu()
    samples = sounds.leveled(waveform.T.numpy(), dbfs)
    audio = Audio(sounds.fit_length(samples, seconds * params.sample_rate), params.sample_rate)
    frames = np.ascontiguousarray(video.cpu().numpy())
    return Video(frames, fps=len(frames) / seconds, seed=0, audio=audio)


def _display(clip: Video, path: str | Path | None) -> None:
    try:
        from IPython.display import Video as Shown
        from IPython.display import display
    except ImportError:
        log.warning("display_video is for notebooks, and IPython is not there: nothing is shown")
        return
    with tempfile.TemporaryDirectory() as folder:
        shown = path or clip.save(Path(folder) / "clip.mp4")
        display(Shown(str(shown), embed=True))
