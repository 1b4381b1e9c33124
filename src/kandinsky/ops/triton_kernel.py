"""The kernel of ``triton_blocks.py``; imports Triton, which settles then whether its interpreter is used.

Legend: as there.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def attend(
    q, k, v, out, counts, columns, real,
    q_b, q_s, q_n, q_k, k_b, k_s, k_n, k_k, v_b, v_s, v_n, v_k, o_b, o_s, o_n, o_k,
    N, Q, most, scale, WIDTH: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    b, n = (head // N).to(tl.int64), (head % N).to(tl.int64)
    inside, width = tl.arange(0, SIZE), tl.arange(0, WIDTH)
    rows = block.to(tl.int64) * SIZE + inside
    queries = tl.load(q + b * q_b + n * q_n + rows[:, None] * q_s + width[None, :] * q_k)
    largest = tl.full([SIZE], -1e30, tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    sums = tl.zeros([SIZE, WIDTH], tl.float32)
    row = head.to(tl.int64) * Q + block
    for place in range(tl.load(counts + row)):
        column = tl.load(columns + row * most + place).to(tl.int64)
        seen = column * SIZE + inside
        keys = tl.load(k + b * k_b + n * k_n + seen[None, :] * k_s + width[:, None] * k_k)
        scores = tl.dot(queries, keys) * scale
        if PADDED:
            scores = tl.where((inside < tl.load(real + column))[None, :], scores, -1e30)
        top = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - top[:, None])
        keep = tl.exp2(largest - top)
        values = tl.load(v + b * v_b + n * v_n + seen[:, None] * v_s + width[None, :] * v_k)
        sums = sums * keep[:, None] + tl.dot(weights.to(values.dtype), values)
        total = total * keep + tl.sum(weights, 1)
        largest = top
    sums = sums / total[:, None]
    at = out + b * o_b + n * o_n + rows[:, None] * o_s + width[None, :] * o_k
    tl.store(at, sums.to(out.dtype.element_ty))
