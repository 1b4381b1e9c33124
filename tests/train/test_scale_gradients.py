"""Gradients of processes are added weight by weight, also where a process has none of some weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kandinsky.train.scale import Scaling


def test_a_weight_that_one_process_did_not_use_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: nn.Parameter(torch.zeros(2)) for name in "abc"}
    weights["a"].grad, weights["c"].grad = torch.ones(2), torch.full((2,), 3.0)
    seen: list[list[float]] = []

    def all_reduce(tensor: Tensor, *_: Any, **__: Any) -> Any:
        """Of two processes, of which the other has a gradient of `b` too, and the same ones besides."""
        if tensor.numel() == len(weights):
            tensor.fill_(1.0)
        else:
            seen.append(tensor.tolist())
            tensor.add_(torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    scaling = object.__new__(Scaling)
    scaling._holders, scaling.device = SimpleNamespace(size=lambda: 2), torch.device("cpu")  # type: ignore[assignment]
    grads = {name: p.grad for name, p in weights.items() if p.grad is not None}
    scaling._add_up(weights, grads)
    assert seen == [[1.0, 1.0, 0.0, 0.0, 3.0, 3.0]]
    assert [p.grad.tolist() for p in weights.values() if p.grad is not None] == [[1.0, 1.0], [1.0, 1.0], [3.0, 3.0]]
