"""Clips of several sizes in one sequence, without padding: where each lies, and attention that keeps them apart.

Attention within a sequence is block-diagonal: the tokens of a clip see those of the same clip alone. It is computed
clip by clip, which every backend can; on CUDA in 16 bits PyTorch's kernel for unequal lengths takes all at once.

Legend: B batch; T H W C latent frames, rows, columns, channels; P clips of a sequence; S query tokens of all clips;
L key tokens; N heads; K head width; F rows of a modulation; D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from kandinsky.ops.attention import attention
from kandinsky.ops.blocks import Mix

Size = tuple[int, int, int]  # frames, rows, columns of a clip


def laid(clips_1THWC: Sequence[Tensor]) -> Tensor:
    """Clips end to end, row by row: [1, T, H, W, C] of several sizes to [1, T·H·W of all, 1, 1, C]."""
    return torch.cat([x.flatten(1, 3) for x in clips_1THWC], dim=1)[:, :, None, None]


def taken(x_1S11C: Tensor, lengths: Sequence[Size]) -> list[Tensor]:
    """The inverse of ``laid``: each clip, [1, T, H, W, C]."""
    parts = x_1S11C.flatten(1, 3).split([math.prod(one) for one in lengths], dim=1)
    return [part.unflatten(1, tuple(one)) for part, one in zip(parts, lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the clips of a sequence lie.

    Attributes:
        tokens: Of each clip.
        rows: Of each clip the rows of its modulation: 1, or one for each of its frames.
        texts: Of each clip's prompt the tokens that count; empty for parts of one clip, which share its prompt.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    texts: tuple[int, ...] = ()

    @classmethod
    def of_frames(cls, frames: int, tokens: int, own: slice) -> tuple[Segments, slice]:
        """Some tokens of a clip as parts of its frames, one row of a modulation each.

        Args:
            frames: Of the clip.
            tokens: Of each frame.
            own: Which tokens of the clip.

        Returns:
            The parts, and which frames they are of.
        """
        of_own = range(own.start // tokens, -(-own.stop // tokens))
        counts = tuple(min(own.stop, (n + 1) * tokens) - max(own.start, n * tokens) for n in of_own)
        assert of_own.stop <= frames, f"tokens {own} of {frames} frames of {tokens}"
        return cls(counts, (1,) * len(counts)), slice(of_own.start, of_own.stop)

    def each(self, apply: Callable[..., Tensor], streams: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """Apply a function of one clip's tokens and rows to every clip.

        Args:
            apply: Called with the parts of ``streams`` and ``rows`` in their order.
            streams: [1, S, D].
            rows: [1, F, D].

        Returns:
            [1, S, …].
        """
        split = [x.split(self.tokens, dim=1) for x in streams] + [m.split(self.rows, dim=1) for m in rows]
        return torch.cat([apply(*parts) for parts in zip(*split, strict=True)], dim=1)

    def mixed(self, mixes: Sequence[Mix]) -> Mix:
        """Attention within each clip, by a mix of its own."""

        def mix(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
            parts = zip(mixes, *(x.split(self.tokens, dim=1) for x in (q_BSNK, k_BSNK, v_BSNK)), strict=True)
            return torch.cat([one(q, k, v) for one, q, k, v in parts], dim=1)

        return mix

    def within(self, backend: str = "auto") -> Mix:
        """Dense attention within each clip."""

        def mix(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
            if _at_once(q_BSNK, backend):
                return _varlen(q_BSNK[0], k_BSNK[0], v_BSNK[0], self.tokens, self.tokens)[None]
            parts = zip(*(x.split(self.tokens, dim=1) for x in (q_BSNK, k_BSNK, v_BSNK)), strict=True)
            return torch.cat([attention(q, k, v, backend=backend) for q, k, v in parts], dim=1)

        return mix

    def to_texts(self, mask_PL: Tensor | None) -> Mix:
        """Attention of each clip's tokens to its own prompt; keys and values are [P, L, N, K].

        Args:
            mask_PL: Text tokens that count.
        """

        def mix(q_BSNK: Tensor, k_PLNK: Tensor, v_PLNK: Tensor) -> Tensor:
            if _at_once(q_BSNK, "auto") and all(self.texts):
                k_LNK, v_LNK = (x.flatten(0, 1) if mask_PL is None else x[mask_PL] for x in (k_PLNK, v_PLNK))
                return _varlen(q_BSNK[0], k_LNK, v_LNK, self.tokens, self.texts)[None]
            out = []
            for number, q in enumerate(q_BSNK.split(self.tokens, dim=1)):
                own = slice(number, number + 1)
                mask = None if mask_PL is None else mask_PL[own]
                out.append(attention(q, k_PLNK[own], v_PLNK[own], mask=mask))
            return torch.cat(out, dim=1)

        return mix


def _at_once(q_BSNK: Tensor, backend: str) -> bool:
    """Whether the kernel for unequal lengths can be used: FlashAttention's conditions hold, and no other is wanted."""
    half = q_BSNK.dtype in (torch.bfloat16, torch.float16)
    width = q_BSNK.shape[-1]
    if backend != "auto" or not (q_BSNK.is_cuda and half and width % 8 == 0 and width <= 256):
        return False
    if torch.version.hip is not None or find_spec("torch.nn.attention.varlen") is None:
        return False
    return torch.cuda.get_device_capability(q_BSNK.device) >= (8, 0)


def _varlen(q_SNK: Tensor, k_LNK: Tensor, v_LNK: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """PyTorch's attention of sequences of unequal length, [S, N, K]."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q_SNK.contiguous(), k_LNK.contiguous(), v_LNK.contiguous(),
        _ends(queries, q_SNK.device), _ends(keys, q_SNK.device), max(queries), max(keys),
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    """0 and the running sums, int32."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
