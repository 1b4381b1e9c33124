"""What stands between a transformer's products: norm and modulation, gate and sum, heads' norm and rotation.

All are islands (``ops/precision.py``): float32 arithmetic, rounded once to the type of the tokens. Each has a plain
form, which is the definition, has gradients and can be compiled; and one for processors without gradients, which writes
over what nobody needs any more and goes through the tokens in stretches that stay in a core's cache, so that no tensor
is cast as a whole. Many tokens are left to our own kernels where there are any (``native/islands.py``).

Legend: B batch; S tokens; D width; T rows of a modulation; N heads; K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.native import islands
from kandinsky.ops.precision import island, rms_norm_float32
from kandinsky.ops.rope import Rotation, Unturned

STRETCH = 2**15  # numbers that are worked on at once, 128 kB in float32


def in_place(x: Tensor) -> bool:
    """Whether the forms for processors serve for these tokens: no gradients, no compiler, no autocast."""
    return (
        x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


def modulated(x_BSD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, eps: float) -> Tensor:
    """LayerNorm(x)·scale + shift, rounded to the type of x.

    Args:
        x_BSD: Tokens.
        shift_BTD: Of each clip; or of each frame, in the order of S.
        scale_BTD: As ``shift_BTD``.
        eps: Of the norm.
    """
    width = x_BSD.shape[-1:]
    if in_place(x_BSD) and shift_BTD.numel() == x_BSD.shape[-1]:
        if (made := islands.modulated(x_BSD, shift_BTD, scale_BTD, eps)) is not None:
            return made
        return F.layer_norm(x_BSD, width, scale_BTD.flatten(), shift_BTD.flatten(), eps)
    with island(x_BSD):
        normed = F.layer_norm(x_BSD.float(), width, eps=eps)
        if (frames := shift_BTD.shape[1]) > 1:
            split = normed.unflatten(1, (frames, -1))
            return torch.addcmul(shift_BTD[:, :, None], split, scale_BTD[:, :, None]).flatten(1, 2).to(x_BSD.dtype)
        return torch.addcmul(shift_BTD, normed, scale_BTD).to(x_BSD.dtype)


def gated(x_BSD: Tensor, gate_BTD: Tensor, update_BSD: Tensor) -> Tensor:
    """The sum of x and gate·update, rounded to the type of x; the gate is of each clip or of each frame.

    The update is overwritten where that is faster.
    """
    with island(x_BSD):
        x, update, gate = x_BSD, update_BSD, gate_BTD
        if (frames := gate_BTD.shape[1]) > 1:
            x, update = x_BSD.unflatten(1, (frames, -1)), update_BSD.unflatten(1, (frames, -1))
            gate = gate_BTD[:, :, None]
        if in_place(x_BSD) and x.dtype is update.dtype and x.shape == update.shape and update.is_contiguous():
            if (made := islands.gated(x_BSD, gate_BTD, update_BSD)) is not None:
                return made
            if x.dtype is torch.float32:
                return torch.addcmul(x, gate, update, out=update).view_as(x_BSD)
            if gate.numel() == x.shape[-1]:
                rows = max(1, STRETCH // x.shape[-1])
                flat = x.flatten(0, -2).split(rows), update.flatten(0, -2).split(rows)
                for of_x, of_update in zip(*flat, strict=True):
                    of_update.copy_(torch.addcmul(of_x.float(), gate.flatten(), of_update.float()))
                return update_BSD
        return torch.addcmul(x.float(), gate, update.float()).view_as(x_BSD).to(x_BSD.dtype)


def normed_heads(x_BSNK: Tensor, weight_K: Tensor, eps: float, rotation: Rotation | None = None) -> Tensor:
    """RMSNorm over each head, then its turn, rounded to the type of x.

    x is overwritten where that is faster.
    """
    turned = rotation is not None and not isinstance(rotation, Unturned)
    if in_place(x_BSNK) and x_BSNK.is_contiguous() and (rotation is None or type(rotation) in (Rotation, Unturned)):
        table = rotation.table if turned and rotation is not None else None
        if (made := islands.normed_heads(x_BSNK, weight_K, eps, table)) is not None:
            return made
    if in_place(x_BSNK) and x_BSNK.is_contiguous() and (tables := _tables(x_BSNK, rotation)) is not None:
        weight, rows = weight_K.float(), max(1, STRETCH // x_BSNK.shape[-2:].numel())
        flat = x_BSNK.flatten(0, -3)
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            y = part.float()
            y.mul_(torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).mul_(weight)
            for table in tables:
                pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)))
                pairs.mul_(torch.view_as_complex(table[start : start + rows]))
            if y is not part:
                part.copy_(y)
        return x_BSNK
    with island(x_BSNK):
        x = rms_norm_float32(x_BSNK, weight_K, eps)
        return (x if rotation is None else rotation(x)).to(x_BSNK.dtype)


def _tables(x_BSNK: Tensor, rotation: Rotation | None) -> list[Tensor] | None:
    """Cosines and sines of each token, [B·S, 1, K/2, 2], none if nothing is turned; None if they do not fit."""
    if rotation is None or isinstance(rotation, Unturned):
        return []
    table = rotation.table.flatten(0, -4)
    return [table] if len(table) == x_BSNK.shape[:-2].numel() else None
