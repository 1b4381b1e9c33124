"""Matrices stored as small integers: rows with one scale each, eight bits a number or fewer; or compressed columns.

``NAME.int8_scale`` beside ``NAME`` says so, and gives the scales [rows]; so do ``.int6_scale``, ``.int5_scale`` and
``.int4_scale``. Eight bits are stored as int8 in the tensor's own shape, and the largest number of a row decides its
scale. Fewer are stored as bytes [rows, columns · bits / 8]: numbers get 2^(bits − 1) added and follow one another from
the lowest bit on; the scale is the one that leaves the smallest squared error, since so few steps are better spent on
what is common than on the largest.

``NAME.xz_scale`` [columns] says that the numbers are whole multiples of their column's scale, compressed by LZMA: 16
bits each, column after column, all low bytes before all high ones. The stream lies in a matrix of bytes with as many
rows as the numbers have, filled up with zeros, so that shapes can be told without reading it. That is for numbers most
of which are zero, as codes of images are.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

INT8_SCALE = ".int8_scale"
XZ = 0  # stands for the bits of compressed columns, which have no fixed number
BITS = {INT8_SCALE: 8, ".int6_scale": 6, ".int5_scale": 5, ".int4_scale": 4, ".xz_scale": XZ}
SUFFIXES = tuple(BITS)
_GROUPS = {6: (4, 3), 5: (8, 5), 4: (2, 1)}  # numbers that share bytes, and how many bytes
_MEMORY = 2**27  # bytes that reading a stream may take: those of ``compressed`` take half of that
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # of the largest number of a row


def plain_name(name: str) -> str:
    """The name of the tensor that a tensor of this name belongs to: its own, or the one that it scales."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def scale_of(name: str, state: Mapping[str, Tensor]) -> tuple[int, Tensor] | None:
    """Bits and scales of a tensor's rows, or columns if the bits are ``XZ``, if it is stored so."""
    return next(((bits, state[name + suffix]) for suffix, bits in BITS.items() if name + suffix in state), None)


def fits(tensor: Tensor, scale: Tensor, bits: int) -> bool:
    """Whether a stored tensor and its scales belong together; both may be on the meta device."""
    if bits == XZ:
        return tensor.dtype is torch.uint8 and tensor.dim() == 2 and scale.dim() == 1 and scale.is_floating_point()
    if tensor.dim() < 1 or not scale.is_floating_point() or scale.shape != tensor.shape[:1]:
        return False
    if bits == 8:
        return tensor.dtype is torch.int8
    return tensor.dtype is torch.uint8 and tensor.dim() == 2 and tensor.shape[1] % _GROUPS[bits][1] == 0


def expanded(tensor: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The tensor in float32; on the meta device its shape alone.

    Raises:
        ValueError: Compressed columns are damaged.
    """
    shape = tensor.shape
    if bits == XZ:
        shape = torch.Size((tensor.shape[0], len(scale)))
    elif bits < 8:
        numbers, taken = _GROUPS[bits]
        shape = torch.Size((tensor.shape[0], tensor.shape[1] // taken * numbers))
    if tensor.is_meta:  # arithmetic there imports torch's compiler, a second or more
        return torch.empty(shape, device="meta")
    if bits == XZ:
        return _decompressed(tensor, len(scale)).float().mul_(scale.float())
    values = tensor if bits == 8 else _unpacked(tensor, bits)
    return values.float().mul_(scale.float().view(-1, *[1] * (len(shape) - 1)))


def packed(tensor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A tensor as it is stored, and its scales.

    Raises:
        ValueError: It has no rows of numbers, or rows of which no whole bytes can be made.
    """
    if tensor.dim() < 1 or not tensor.is_floating_point():
        raise ValueError("it is not a matrix of numbers")
    if bits < 8 and (tensor.dim() != 2 or tensor.shape[1] % _GROUPS[bits][0]):
        raise ValueError(f"{bits} bits need a matrix whose rows have a multiple of {_GROUPS[bits][0]} numbers")
    most = 2 ** (bits - 1) - 1
    rows = tensor.detach().cpu().float()
    rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    scale = rows.abs().amax(dim=1) / float(most)
    scale[scale == 0] = 1.0
    if bits == 8:
        return (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape), scale
    tried = scale * torch.tensor(_CLIPS)[:, None]
    errors = [(_rounded(rows, one, most) * one[:, None] - rows).square().sum(1) for one in tried]
    scale = tried.gather(0, torch.stack(errors).argmin(0)[None])[0]
    return _joined(_rounded(rows, scale, most).long() + (most + 1), bits), scale


def compressed(tensor: Tensor, scale: Tensor) -> Tensor:
    """A matrix of whole multiples of its columns' scales as bytes, of as many rows.

    Raises:
        ValueError: It is no such matrix.
    """
    if tensor.dim() != 2 or scale.shape != tensor.shape[1:] or not len(tensor):
        raise ValueError("compressed columns need a matrix with rows, and one scale for each column")
    whole = tensor.detach().cpu().float() / scale.detach().cpu().float()
    numbers = whole.round()
    # put so that what is no number, as with a scale of zero, is refused too
    if not (float((whole - numbers).abs().max()) <= 1e-2 and float(numbers.abs().max()) < 2**15):
        raise ValueError("its numbers are not whole multiples of their columns' scales, of at most 15 bits")
    columns = numbers.to(torch.int16).T.contiguous().numpy().astype("<i2").view(np.uint8).reshape(-1, 2)
    stream = lzma.compress(columns.T.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    width = -(-len(stream) // len(tensor))
    out = torch.zeros(len(tensor), width, dtype=torch.uint8)
    out.view(-1)[: len(stream)] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    return out


def _decompressed(stored: Tensor, columns: int) -> Tensor:
    rows = len(stored)
    wanted = 2 * rows * columns
    try:  # never more than is asked for, whatever the stream says of itself
        found = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY).decompress(stored.numpy().tobytes(), wanted + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"its compressed numbers are damaged ({error})") from None
    if len(found) != wanted:
        raise ValueError(f"it holds {len(found)} bytes of numbers and not {wanted}")
    numbers = np.frombuffer(found, np.uint8).reshape(2, -1).T.copy().view("<i2").astype(np.int16)
    return torch.from_numpy(numbers.reshape(columns, rows)).T.contiguous()


def _rounded(rows: Tensor, scale: Tensor, most: int) -> Tensor:
    return (rows / scale[:, None]).round_().clamp_(-most, most)


def _joined(values: Tensor, bits: int) -> Tensor:
    numbers, taken = _GROUPS[bits]
    words = (values.unflatten(1, (-1, numbers)) << (bits * torch.arange(numbers))).sum(-1)
    parts: Tensor = (words[..., None] >> (8 * torch.arange(taken))) & 255
    return parts.to(torch.uint8).flatten(1)


def _unpacked(stored: Tensor, bits: int) -> Tensor:
    numbers, taken = _GROUPS[bits]
    words = (stored.long().unflatten(1, (-1, taken)) << (8 * torch.arange(taken))).sum(-1)
    values: Tensor = (words[..., None] >> (bits * torch.arange(numbers))) & (2**bits - 1)
    out: Tensor = values.flatten(1) - 2 ** (bits - 1)
    return out
