"""What a network learns from an example: its tensors, and of these what is made and what is given.

The base class is the plain lesson, a clip from its caption. A task whose networks are told more names lessons of its
own (``Task.lessons``). What is given enters a network as in generation, through ``Known``.

Legend: T H W C frames, rows, columns, channels (of latents or pixels, as stated).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.engine.stages import to_pixels
from kandinsky.model.denoiser import Known

if TYPE_CHECKING:
    from kandinsky.engine.context import Context
    from kandinsky.engine.request import Job
    from kandinsky.model.values import TextEmbeddings

LATENT = "latent"


class Lesson:
    """A clip or an image is learned from its caption.

    Attributes:
        tensors: That ``encode`` makes.
        encoders: Networks that make them.
        pairs: Folders of the two images of an example, the one that is made and the one that is given; empty where an
            example is one file.
        is_plain: Whether frames and regions of the clip itself can be given.
    """

    tensors: tuple[str, ...] = (LATENT,)
    encoders: tuple[str, ...] = ("vae",)
    pairs: tuple[str, ...] = ()
    is_plain: bool = True

    def clip(self, job: Job) -> tuple[float, int]:
        """Frames per second of an example, and how many there are at most."""
        return job.fps, 1 if job.card.does.makes == "image" else job.shape.frames

    def shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Shapes of ``tensors`` of an example of the job's size."""
        return {LATENT: (1, *job.latent.as_tuple())}

    def job(self, job: Job) -> Job:
        """The job whose sampling the network learns."""
        return job

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """The tensors of an example; ``latent`` [1, T, H, W, C] among them.

        Args:
            context: The model.
            *frames_THWC: uint8; of a pair both.

        Raises:
            RequestError: Nothing can be learned from it.
        """
        unit = torch.from_numpy(frames_THWC[0])[None].float() / 127.5 - 1.0
        with context.placement.hold("vae") as vae, torch.no_grad():
            latent: Tensor = vae.encode(unit.to(context.placement.device("vae")))
        return {LATENT: latent}

    def text(self, context: Context, caption: str, *frames_THWC: np.ndarray) -> TextEmbeddings:
        """Embeddings of a caption, of no words for an empty one; ``frames_THWC`` as for ``encode``."""
        with context.placement.hold("text") as encoder, torch.no_grad():
            made: TextEmbeddings = encoder.encode([caption], still=len(frames_THWC[0]) == 1)
            return made

    def given(self, job: Job, tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Known]:
        """What is made of an example [1, T, H, W, C], and what the network is given besides.

        Args:
            job: Of the recipe.
            tensors: Of the example.
            generator: Of the example in this step.
        """
        return tensors[LATENT].float(), Known()

    def beside(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a branch beside the network is told of an example, by its kind; nothing without one."""
        return {}


def latent_of(context: Context, image_HWC: np.ndarray, name: str = "vae") -> Tensor:
    """Latent [1, 1, H, W, C] of one image, as generation encodes the images it is given."""
    with context.placement.hold(name) as vae, torch.no_grad():
        out: Tensor = vae.encode(to_pixels(Image.fromarray(image_HWC)).to(context.placement.device(name)))
        return out.to(context.precision.islands)
