"""What an audio model sees of an input video: embeddings of its frames and of text, from an encoder or from a file.

Legend: N windows of a video, T embeddings of a window's frames, L of the text, E their width; H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.weights.read import check_finite, read_state
from kandinsky.weights.write import write_state


@runtime_checkable
class ClipEncoder(Protocol):
    """Encodes a video's frames, and prompts, to embeddings of one width E."""

    def encode_frames(self, frames_THWC: Tensor, times_s: Tensor) -> Tensor:
        """Embeddings of one window's frames.

        Args:
            frames_THWC: uint8 RGB of any size, on the encoder's device.
            times_s: When each is shown, from the start of the window.

        Returns:
            [1, T', E]; T' may differ from the number of frames.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encode B prompts to [B, L, E] with L ≥ 1, the same for every text; the denoiser attends to every position."""
        ...


# name in a file of embeddings → field; the official argument names
NAMES = {
    "image_embeds": "frames_NTE",
    "prompt_embeds": "text_1LE",
    "negative_image_embeds": "black_1TE",
    "negative_prompt_embeds": "negative_1LE",
}


@dataclass(frozen=True, slots=True)
class ClipEmbeddings:
    """Embeddings of a video and two prompts.

    Attributes:
        frames_NTE: Embeddings of each window's frames.
        text_1LE: Embeddings of the prompt.
        black_1TE: Embeddings of a black video, for the unconditional pass; None without guidance.
        negative_1LE: Embeddings of the negative prompt; None without guidance.
    """

    frames_NTE: Tensor
    text_1LE: Tensor
    black_1TE: Tensor | None = None
    negative_1LE: Tensor | None = None


def write_embeddings(states: ClipEmbeddings, path: Path) -> Path:
    """Write embeddings as safetensors, for ``read_embeddings`` and `--states`; returns the path."""
    tensors = {name: getattr(states, field) for name, field in NAMES.items()}
    return write_state({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def read_embeddings(path: str | Path) -> ClipEmbeddings:
    """Read embeddings made elsewhere, under the official names, with or without the first axis.

    Raises:
        RequestError: The file does not exist, lacks an embedding or has others.
        WeightsError: The file is damaged, or a number in it is not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise RequestError(f"states `{path}` are not there: give a .safetensors file with `image_embeds`")
    try:
        tensors = read_state(path)
    except WeightsError as error:
        raise WeightsError(f"states cannot be read: {error}") from error
    if unknown := sorted(set(tensors) - set(NAMES)):
        raise RequestError(f"states `{path}` hold `{unknown[0]}`: only {', '.join(f'`{n}`' for n in NAMES)} are known")
    for name in ("image_embeds", "prompt_embeds"):
        if name not in tensors:
            raise RequestError(f"states `{path}` lack `{name}`: both `image_embeds` and `prompt_embeds` are needed")
    found = {
        field: t[None] if (t := tensors[name]).dim() == 2 else t for name, field in NAMES.items() if name in tensors
    }
    widths = {tuple(t.shape[2:]) for t in found.values()}
    if len(widths) != 1 or any(t.dim() != 3 or not t.is_floating_point() for t in found.values()):
        shapes = ", ".join(f"`{name}` {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        raise RequestError(
            f"states `{path}` do not fit together: {shapes}; all must be [n, length, width] of one width"
        )
    given = {name: found[field] for name, field in NAMES.items() if field in found}
    for name, tensor in given.items():
        if not tensor.numel():
            raise RequestError(f"states `{path}`: `{name}` {list(tensor.shape)} is empty")
        if name != "image_embeds" and len(tensor) != 1:
            raise RequestError(f"states `{path}`: `{name}` holds {len(tensor)} texts or clips, one is needed")
    check_finite(given, str(path))
    return ClipEmbeddings(**found)
