"""What the network of image editing learns: an image from the one before the edit and an instruction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.engine.context import Context
from kandinsky.engine.lesson import LATENT, Lesson, latent_of
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError
from kandinsky.model.denoiser import Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.protocol import ImageTextEncoder

SOURCE = "source"


class Editing(Lesson):
    """``source`` [1, 1, H, W, C] is the latent of the image before; the text encoder sees that image too."""

    tensors = (LATENT, SOURCE)
    pairs = ("edited", "sources")
    is_plain = False

    def shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Of both images."""
        return dict.fromkeys(self.tensors, (1, *job.latent.as_tuple()))

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """The edited image, and the one before."""
        edited, before = frames_THWC
        return {LATENT: latent_of(context, edited[0]), SOURCE: latent_of(context, before[0])}

    def text(self, context: Context, caption: str, *frames_THWC: np.ndarray) -> TextEmbeddings:
        """Embeddings of the instruction beside the image before."""
        with context.placement.hold("text") as encoder, torch.no_grad():
            if not isinstance(encoder, ImageTextEncoder):
                raise BackendError(f"`{type(encoder).__name__}` cannot be shown an image: use another text encoder")
            return encoder.encode_with_images([caption], [Image.fromarray(frames_THWC[1][0])])

    def given(self, job: Job, tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Known]:
        """The edited image, and the one before."""
        return tensors[LATENT].float(), Known(extra={SOURCE: tensors[SOURCE].float()})


EDITING = Editing()
