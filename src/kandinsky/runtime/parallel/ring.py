"""Ring attention: each process keeps its queries, keys and values travel around, results are joined as they come.

Legend: B batch, S own query tokens, L own key tokens, N heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kandinsky.ops.partial_attention import Part, attend_part


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
    size, place = group.size(), group.rank()
    found: Part | None = None
    if beside is not None:
        found = attend_part(q_BSNK, *beside)
    now = torch.stack((k_BLNK, v_BLNK))
    for turn in range(size):
        coming, works = None, []
        if turn < size - 1:
            expected = counts[(place - turn - 1) % size]
            coming = now.new_empty(*now.shape[:2], expected, *now.shape[3:])
            after, before = (dist.get_global_rank(group, (place + step) % size) for step in (1, -1))
            now = now.contiguous()
            works = dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, now, after, group), dist.P2POp(dist.irecv, coming, before, group)]
            )
        part = attend_part(q_BSNK, now[0], now[1])
        found = part if found is None else found.joined(part)
        for work in works:
            work.wait()
        if coming is not None:
            now = coming
    assert found is not None
    return found.finished(v_BLNK.dtype)
