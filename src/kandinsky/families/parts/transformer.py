"""What the transformers of Kandinsky 5 and Kandinsky 4 share: patches, embeddings of times and patches, modulation.

Legend: B clips; T H W C latent frames, rows, columns, channels; S tokens; D width; E width of the time vector.
Tensor names are the official ones.

Source: kandinskylab/kandinsky-5, kandinsky/models/nn.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.ops.fused import gated
from kandinsky.ops.linear import Linear
from kandinsky.ops.packed import Segments
from kandinsky.ops.precision import island, linear_float32
from kandinsky.ops.rope import frequencies

NORM_EPS = 1e-5


def patchify(x_BTHWC: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, T, H, W, C] → [B, T/pt, H/ph, W/pw, pt·ph·pw·C], C fastest.

    Raises:
        RequestError: The latent is not a multiple of the patch.
    """
    if any(size % p for size, p in zip(x_BTHWC.shape[1:4], patch, strict=True)):
        raise RequestError(
            f"latent of {'x'.join(map(str, x_BTHWC.shape[1:4]))} (frames x rows x columns) cannot be cut into patches "
            f"of {'x'.join(map(str, patch))}: choose a size that is a multiple"
        )
    pt, ph, pw = patch
    x = x_BTHWC.unflatten(3, (-1, pw)).unflatten(2, (-1, ph)).unflatten(1, (-1, pt))
    out: Tensor = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)
    return out


def unpatchify(x_BTHWC: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, t, h, w, C·pt·ph·pw] → [B, t·pt, h·ph, w·pw, C].

    Quirk: C is slowest here, unlike in ``patchify``; the official output layer learnt this order.
    """
    pt, ph, pw = patch
    B, t, h, w, _ = x_BTHWC.shape
    x = x_BTHWC.view(B, t, h, w, -1, pt, ph, pw).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(B, t * pt, h * ph, w * pw, -1)


class TimeEmbeddings(nn.Module):
    """Sinusoid of t·1000 (cosines first), then a small network; float32 throughout."""

    def __init__(self, model_dim: int, time_dim: int) -> None:
        super().__init__()
        self.num_frequencies = model_dim // 2
        self.in_layer = Linear(model_dim, time_dim)
        self.out_layer = Linear(time_dim, time_dim)

    def forward(self, time_B: Tensor) -> Tensor:
        with island(time_B):
            angles = torch.outer(time_B.float(), frequencies(self.num_frequencies, time_B.device))
            wave = torch.cat((angles.cos(), angles.sin()), dim=-1)
            return linear_float32(self.out_layer, F.silu(linear_float32(self.in_layer, wave)))


class VisualEmbeddings(nn.Module):
    """Patches of the latent to tokens."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.in_layer = Linear(patch[0] * patch[1] * patch[2] * channels, width)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return self.of_patches(patchify(x_BTHWC, self.patch))

    def of_patches(self, x: Tensor) -> Tensor:
        """Tokens of what ``patchify`` made."""
        out: Tensor = self.in_layer(x).to(self.in_layer.weight.dtype)
        return out


class Modulation(nn.Module):
    """The conditioning vector to ``parts`` shifts, scales and gates of width D, in float32."""

    def __init__(self, time_dim: int, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.out_layer = Linear(time_dim, parts * width)
        nn.init.zeros_(self.out_layer.weight)  # every block starts as the identity
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, e: Tensor) -> tuple[Tensor, ...]:
        """Vectors to be spread over tokens.

        Args:
            e: [B, E] for the whole clip, or [B, T, E], one for each frame.

        Returns:
            ``parts`` tensors [B, 1, D] or [B, T, D].
        """
        with island(e):
            e_BTE = e.unsqueeze(1) if e.ndim == 2 else e
            return linear_float32(self.out_layer, F.silu(e_BTE)).chunk(self.parts, dim=-1)


def gated_sum(x_BSD: Tensor, gate_BTD: Tensor, update_BSD: Tensor, segments: Segments | None = None) -> Tensor:
    """Compute x + gate·update in float32, rounded to the type of x; T and ``segments`` as for ``modulated_norm``.

    The update is no longer needed: it may be overwritten.
    """
    if segments is not None:
        return segments.each(lambda x, update, gate: gated(x, gate, update), (x_BSD, update_BSD), (gate_BTD,))
    return gated(x_BSD, gate_BTD, update_BSD)
