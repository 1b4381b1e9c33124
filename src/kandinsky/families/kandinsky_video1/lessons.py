"""What the networks of keyframe models learn: keyframes from a caption, and the frames between them.

Legend: T H W C latent frames, rows, columns, channels; G gaps between the frames that are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion.gaps import MISSING, around
from kandinsky.engine.context import Context
from kandinsky.engine.lesson import LATENT, Lesson, latent_of
from kandinsky.engine.request import Job
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky_video1.keyframes import (
    first_frame_channels,
    keyframe_marks,
    of_gaps,
    of_keyframes,
)
from kandinsky.families.kandinsky_video1.request import frames_after, keyframes_of
from kandinsky.families.parts.projected import no_text
from kandinsky.families.parts.unet.unet import Marks
from kandinsky.model.denoiser import Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.protocol import GapTextEncoder

UNGUIDED = 0.1  # share of the examples without frames around them, for guidance


class _OfFrames(Lesson):
    """Frames are encoded one by one, as generation encodes the frames it is given."""

    is_plain = False

    def shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Of as many frames as an example has at most."""
        return {LATENT: (1, self.clip(job)[1], *job.latent.as_tuple()[1:])}

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """The latents of all frames."""
        (frames,) = frames_THWC
        name = "image_vae" if "image_vae" in context.card.components else "vae"
        return {LATENT: torch.cat([latent_of(context, image, name) for image in frames], dim=1)}


class KeyframeLesson(_OfFrames):
    """Keyframes; models that begin with a given frame see it, with noise in it, of most of the examples."""

    encoders = ("vae", "image_vae")

    def clip(self, job: Job) -> tuple[float, int]:
        """The lowest frame rate: no gap is filled."""
        keyframes = keyframes_of(job.card)
        return float(next(iter(keyframes.fps.values()))), keyframes.count

    def given(self, job: Job, tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Known]:
        """Keyframes, their places and the first of them."""
        clean = tensors[LATENT].float()
        card, frames = job.card, clean.shape[1]
        condition = None
        if keyframes_of(card).first_frame is not None:
            seed = int(torch.randint(2**31, (), generator=generator))
            condition = first_frame_channels(card, clean[:, :1], frames, seed)
            if float(torch.rand((), generator=generator)) < UNGUIDED:
                condition = torch.zeros_like(condition)
        return clean, of_keyframes(keyframe_marks(card, job, frames), condition)


class GapLesson(_OfFrames):
    """The three frames within each gap between keyframes, given those around it; not the gaps of a second pass."""

    encoders = ("vae", "image_vae")

    def clip(self, job: Job) -> tuple[float, int]:
        """The frame rate after one pass."""
        keyframes = keyframes_of(job.card)
        return float(list(keyframes.fps.values())[1]), frames_after(keyframes, 1)

    def job(self, job: Job) -> Job:
        """That of the interpolation's sampler."""
        return dataclasses.replace(
            job, sampling=dataclasses.replace(job.sampling, sampler=keyframes_of(job.card).sampler)
        )

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """As many frames as make whole gaps.

        Raises:
            RequestError: There are fewer than one gap has.
        """
        (frames,) = frames_THWC
        gaps = (len(frames) - 1) // (MISSING + 1)
        if not gaps:
            raise RequestError(
                f"a clip of {len(frames)} frames has no gap of {MISSING} to learn: use clips of {MISSING + 2} or more "
                f"at {self.rate(context):g} frames per second"
            )
        return super().encode(context, frames[: gaps * (MISSING + 1) + 1])

    def rate(self, context: Context) -> float:
        """Frames per second of an example."""
        return float(list(keyframes_of(context.card).fps.values())[1])

    def text(self, context: Context, caption: str, *frames_THWC: np.ndarray) -> TextEmbeddings:
        """What the interpolation is told: the prompt where it is guided by it, else nothing."""
        if not keyframes_of(context.card).guides_text or not caption:
            return no_text(int(context.card.dit.params["context_dim"]))
        with context.placement.hold("text") as encoder, torch.no_grad():
            if context.card.text.params.get("gap_table"):
                assert isinstance(encoder, GapTextEncoder)
                return encoder.encode_for_gaps([caption])
            made: TextEmbeddings = encoder.encode([caption])
            return made

    def given(self, job: Job, tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Known]:
        """The frames of all gaps [1, G, H, W, 3 · C], and those around them."""
        latent = tensors[LATENT].float()
        keyframes = keyframes_of(job.card)
        left, right = around(latent[:, :: MISSING + 1])
        between = latent[:, :-1].unflatten(1, (-1, MISSING + 1))[:, :, 1:]
        # a network that is guided by its text sees gaps apart where it is not guided: that is a matter of the whole
        # batch, and is left out
        if not keyframes.guides_text and float(torch.rand((), generator=generator)) < UNGUIDED:
            left = right = torch.zeros_like(left)
        return between.movedim(2, -2).flatten(-2), of_gaps(Marks(skip=keyframes.skips[0]), left, right)


KEYFRAMES, GAPS = KeyframeLesson(), GapLesson()
