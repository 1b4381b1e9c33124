"""Ring attention: each process keeps its queries, keys and values travel around, results are joined as they come.

Backwards they travel once more, and the gradients that each process adds travel with them, one step behind.

Legend: B batch, S own query tokens, L own key tokens, N heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kandinsky.ops.partial_attention import Backward, Part, attend_part


def ring_attention(
    q_BSNK: Tensor,
    k_BLNK: Tensor,
    v_BLNK: Tensor,
    counts: Sequence[int],
    group: dist.ProcessGroup,
    *,
    beside: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Attention of the own queries to the keys of all processes.

    Args:
        q_BSNK: Own queries.
        k_BLNK: Own keys.
        v_BLNK: Own values.
        counts: Number of keys of each process.
        group: The processes.
        beside: Keys and values that every process has, [B, M, N, K], and which of them may be seen, [B, M].

    Returns:
        [B, S, N, K], in the type of v. The next keys are transferred while the current ones are used.
    """
    more = (None, None, None) if beside is None else beside
    ring = Ring(tuple(counts), group)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q_BSNK, k_BLNK, v_BLNK, *more)):
        mixed: Tensor = _Ring.apply(q_BSNK, k_BLNK, v_BLNK, *more, ring)  # type: ignore[no-untyped-call]
        return mixed
    return _attend(q_BSNK, k_BLNK, v_BLNK, more, ring).finished(v_BLNK.dtype)


@dataclass(frozen=True, slots=True)
class Ring:
    """Who passes to whom, and how many keys each process has at the start."""

    counts: tuple[int, ...]
    group: dist.ProcessGroup

    def passed(self, now: Tensor, turn: int, axis: int) -> tuple[Tensor, list[dist.Work]]:
        """Begin to hand on what stands here in a turn, and to take what stands there in the next.

        Returns:
            What comes, and what to wait for before it is there.
        """
        size, place = self.group.size(), self.group.rank()
        shape = list(now.shape)
        shape[axis] = self.counts[(place - turn - 1) % size]
        coming = now.new_empty(shape)
        after, before = (dist.get_global_rank(self.group, (place + step) % size) for step in (1, -1))
        send = dist.P2POp(dist.isend, now.contiguous(), after, self.group)
        return coming, dist.batch_isend_irecv([send, dist.P2POp(dist.irecv, coming, before, self.group)])


More = tuple[Tensor | None, Tensor | None, Tensor | None]


def _attend(q: Tensor, k: Tensor, v: Tensor, beside: More, ring: Ring) -> Part:
    size = ring.group.size()
    found: Part | None = None
    keys, values, mask = beside
    if keys is not None and values is not None:
        found = attend_part(q, keys, values, mask)
    now = torch.stack((k, v))
    for turn in range(size):
        coming, works = ring.passed(now, turn, 2) if turn < size - 1 else (now, [])
        part = attend_part(q, now[0], now[1])
        found = part if found is None else found.joined(part)
        for work in works:
            work.wait()
        now = coming
    assert found is not None
    return found


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        mask: Tensor | None,
        ring: Ring,
    ) -> Tensor:
        found = _attend(q, k, v, (keys, values, mask), ring)
        out = found.finished(v.dtype)
        ctx.save_for_backward(q, k, v, keys, values, mask, out, found.log_BNS)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys, values, mask, out, log = ctx.saved_tensors
        ring: Ring = ctx.ring
        size = ring.group.size()
        back = Backward(grads[0], q, out, log)
        of_keys = of_values = None
        if keys is not None:
            of_keys, of_values = back.of(keys, values, mask)
        now = torch.stack((k, v))
        gradients = torch.zeros(now.shape, dtype=torch.float32, device=now.device)
        for turn in range(size):
            coming, works = ring.passed(now, turn, 2) if turn < size - 1 else (now, [])
            gradients += torch.stack(back.of(now[0], now[1]))
            # they go with their keys; after the last turn that is home
            moved, further = ring.passed(gradients, turn, 2)
            for work in (*works, *further):
                work.wait()
            now, gradients = coming, moved
        return (
            back.of_queries.to(q.dtype),
            gradients[0].to(k.dtype),
            gradients[1].to(v.dtype),
            None if of_keys is None else of_keys.to(keys.dtype),
            None if of_values is None else of_values.to(values.dtype),
            None,
            None,
        )
