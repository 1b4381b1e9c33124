"""Communication between processes: shares of uneven size, tensors and plain values. Nothing is pickled.

Where gradients are asked for, an exchange has its true adjoint: gradients go back to where the numbers came from, and
of a tensor that all processes got those of all are added up. Each process has a loss of its own; where all compute the
same one, the gradients of a parameter are those of all processes' losses together, so their mean over the processes is
the gradient of the one.

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
    if torch.is_grad_enabled() and x.requires_grad:
        joined: Tensor = _Joined.apply(x, dim % x.dim(), tuple(counts), group)  # type: ignore[no-untyped-call]
        return joined
    return _join(x, dim % x.dim(), counts, group)


def _join(x: Tensor, dim: int, counts: Sequence[int], group: Group) -> Tensor:
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
    if torch.is_grad_enabled() and x.requires_grad:
        given = (split, join, tuple(split_counts), tuple(join_counts), group)
        traded: Tensor = _Traded.apply(x, *given)  # type: ignore[no-untyped-call]
        return traded
    return _trade(x, split, join, split_counts, join_counts, group)


def _trade(
    x: Tensor, split: int, join: int, split_counts: Sequence[int], join_counts: Sequence[int], group: Group
) -> Tensor:
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


class _Joined(torch.autograd.Function):
    """``join_parts``; each process gets back the gradients that all have of its part, added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, counts: tuple[int, ...], group: Group) -> Tensor:
        ctx.given = dim, counts, group
        return _join(x, dim, counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dim, counts, group = ctx.given
        own = _trade(grads[0][None], dim + 1, 0, counts, [1] * group.size(), group).sum(0)
        return own, None, None, None


class _Traded(torch.autograd.Function):
    """``trade``; gradients take the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        split: int,
        join: int,
        split_counts: tuple[int, ...],
        join_counts: tuple[int, ...],
        group: Group,
    ) -> Tensor:
        ctx.given = split, join, split_counts, join_counts, group
        return _trade(x, split, join, split_counts, join_counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        split, join, split_counts, join_counts, group = ctx.given
        return _trade(grads[0], join, split, join_counts, split_counts, group), None, None, None, None, None


def enter_parts(x: Tensor, group: Group) -> Tensor:
    """A tensor that all have, on the way into layers of which each process has a part; its gradients are added up.

    With ``leave_parts`` it encloses tensor parallelism, where all processes have one loss and one gradient of what is
    whole: neither has the adjoint of the exchanges above.
    """
    entered: Tensor = _Entered.apply(x, group)  # type: ignore[no-untyped-call]
    return entered


def leave_parts(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes of what each has a part of; the gradient of the sum is that of each part."""
    left: Tensor = _Left.apply(x, group)  # type: ignore[no-untyped-call]
    return left


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        whole = x.contiguous().clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


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


ROOM = 4096  # bytes of a value that travel at once


def collect(value: Any, device: torch.device) -> list[Any]:
    """Gather a plain value of each process on all processes, in order."""
    data = json.dumps(value).encode()
    room = ROOM
    while True:  # once where all values are short, else twice
        own = torch.zeros(8 + room, dtype=torch.uint8)
        own[:8] = torch.tensor([len(data)]).view(torch.uint8)
        own[8 : 8 + len(data)] = torch.frombuffer(bytearray(data[:room] or b" "), dtype=torch.uint8)[: len(data)]
        every = torch.zeros(dist.get_world_size() * len(own), dtype=torch.uint8, device=device)
        gather_into(every, own.to(device))
        rows = every.cpu().view(-1, len(own))
        lengths = [int(row[:8].clone().view(torch.int64)) for row in rows]
        if max(lengths) <= room:
            return [json.loads(bytes(row[8 : 8 + n].numpy())) for row, n in zip(rows, lengths, strict=True)]
        room = max(lengths)
