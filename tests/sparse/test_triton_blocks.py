"""Triton's block-sparse kernel in its interpreter, against attention under the expanded mask."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from kandinsky.errors import BackendError
from kandinsky.ops import triton_blocks
from kandinsky.ops.attention import attention, backends
from kandinsky.ops.block_sparse import BlockMask

installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def test_it_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "triton" not in backends("cpu", sparse=True)
    assert "Triton" in str(triton_blocks.missing("cpu"))


HELD_AGAINST_THE_MASK = """
import torch
from kandinsky.ops.attention import attention
from kandinsky.ops.block_sparse import BlockMask

for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 3e-3)):
    for counts in (None, torch.tensor([64, 1, 37])):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 192, 2, 32, generator=generator).to(dtype) for _ in range(3))
        kept = (torch.rand(2, 2, 3, 3, generator=generator) < 0.5) | torch.eye(3, dtype=torch.bool)
        mask = BlockMask(kept, 64, counts)
        found = attention(q, k, v, blocks=mask, backend="triton").float()
        wanted = attention(q, k, v, blocks=mask, backend="plain").float()
        dense = attention(q, k, v, blocks=BlockMask(torch.ones_like(kept), 64, counts), backend="plain").float()
        print(dtype, counts is None, float((found - wanted).norm() / wanted.norm()))
        assert (found - wanted).norm() < bound * wanted.norm() < 0.1 * (dense - wanted).norm()
"""


@installed
@pytest.mark.slow
def test_it_is_attention_under_the_mask() -> None:
    """In a process of its own, since Triton settles at its import whether it interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HELD_AGAINST_THE_MASK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@installed
def test_what_it_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q = torch.zeros(1, 64, 1, 24)
    mask = BlockMask(torch.ones(1, 1, 1, 1, dtype=torch.bool), 64)
    with pytest.raises(BackendError, match="heads and blocks of"):
        attention(q, q, q, blocks=mask, backend="triton")
    wide = torch.zeros(1, 64, 1, 32, requires_grad=True)
    with pytest.raises(BackendError, match="no gradients"):
        attention(wide, wide, wide, blocks=mask, backend="triton")
