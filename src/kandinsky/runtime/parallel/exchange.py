"""Communication between processes: shares of uneven size, tensors and plain values. Nothing is pickled.

Legend: B batch, S tokens, N heads, K head width; axis -4 … -1 of a part with heads: batch, tokens, heads, width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup
# (out, part, group): the parts of all, concatenated along axis 0; its name since torch 2.13
gather_into: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def shares(total: int, parts: int) -> list[int]:
    """How many of ``total`` each of ``parts`` gets: the first ones get one more if it does not divide evenly."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def span(counts: Sequence[int], place: int) -> slice:
    """The range of one part among parts of these sizes."""
    end = list(accumulate(counts))[place]
    return slice(end - counts[place], end)


def narrow(x: Tensor, dim: int, where: slice) -> Tensor:
    """A range of an axis, as a view."""
    return x.narrow(dim, where.start, where.stop - where.start)


def own_part(x: Tensor, dim: int, group: Group) -> Tensor:
    """This process' share of an axis, as a view."""
    return narrow(x, dim, span(shares(x.shape[dim], group.size()), group.rank()))


def join_parts(x: Tensor, dim: int, counts: Sequence[int], group: Group) -> Tensor:
    """The inverse of ``own_part``: every process gets the whole axis, of parts of ``counts``."""
    dim %= x.dim()
    most = max(counts)
    lead = x.movedim(dim, 0)
    if lead.shape[0] < most:  # collectives want equal sizes
        lead = torch.cat((lead, lead.new_zeros(most - lead.shape[0], *lead.shape[1:])))
    out = lead.new_empty(len(counts) * most, *lead.shape[1:])
    gather_into(out, lead.contiguous(), group=group)
    parts = [part[:count] for part, count in zip(out.split(most), counts, strict=True)]
    return torch.cat(parts).movedim(0, dim)


def trade(
    x: Tensor, *, split: int, join: int, split_counts: Sequence[int], join_counts: Sequence[int], group: Group
) -> Tensor:
    """All to all: split one axis over the processes, and get another whole.

    Args:
        x: The tensor.
        split: Axis this process has whole, cut into ``split_counts``.
        join: Axis of which it has a part, of the sizes ``join_counts`` over the processes.
        split_counts: Sizes of the parts of ``split``.
        join_counts: Sizes of the parts of ``join``.
        group: The processes.

    Returns:
        Its part of ``split``, and all of ``join``.
    """
    place, size = group.rank(), group.size()
    pieces = [narrow(x, split, span(split_counts, i)) for i in range(size)]
    shape = list(x.shape)
    shape[split] = split_counts[place]
    incoming = [[*shape[:join], join_counts[i], *shape[join + 1 :]] for i in range(size)]
    numbers = [torch.Size(one).numel() for one in incoming]
    out = x.new_empty(sum(numbers))
    sent = torch.cat([piece.reshape(-1) for piece in pieces])
    dist.all_to_all_single(out, sent, numbers, [piece.numel() for piece in pieces], group=group)
    return torch.cat([part.view(one) for part, one in zip(out.split(numbers), incoming, strict=True)], dim=join)


def tell(value: Any, source: int, device: torch.device) -> Any:
    """Send a plain value (anything JSON can represent) from the process ``source`` to all."""
    data = json.dumps(value).encode() if dist.get_rank() == source else b""
    length = torch.tensor([len(data)], dtype=torch.int64, device=device)
    dist.broadcast(length, source)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if data:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    buffer = buffer.to(device)
    dist.broadcast(buffer, source)
    return json.loads(bytes(buffer.cpu().numpy()))


def tell_tensors(tensors: Sequence[Tensor | None] | None, source: int, device: torch.device) -> list[Tensor | None]:
    """Send tensors from the process ``source`` to all, on ``device``; other processes pass None."""
    is_source = dist.get_rank() == source
    heads = None
    if is_source:
        assert tensors is not None
        heads = [None if t is None else [str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]
    heads = tell(heads, source, device)
    received: list[Tensor | None] = []
    for number, head in enumerate(heads):
        if head is None:
            received.append(None)
            continue
        dtype, shape = getattr(torch, head[0]), head[1]
        given = tensors[number] if tensors is not None and is_source else None
        tensor = torch.empty(shape, dtype=dtype, device=device) if given is None else given.to(device).contiguous()
        # not every backend can send booleans
        raw = tensor.view(torch.uint8) if dtype is torch.bool else tensor
        dist.broadcast(raw, source)
        received.append(tensor)
    return received


def collect(value: Any, device: torch.device) -> list[Any]:
    """Gather a plain value of each process on all processes, in order."""
    return [tell(value, source, device) for source in range(dist.get_world_size())]
