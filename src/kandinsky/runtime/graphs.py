"""A denoiser's calls as one CUDA graph: recorded at the second call of a size, played again at all later ones.

A pass over few tokens is hundreds of small kernels, which a processor starts more slowly than a GPU runs them; a graph
starts all of them at once. It reads and writes memory of its own, so what is given is copied in and the answer out.
A denoiser that does more than computing on its device - caches and branches that look at numbers, blocks that are
brought from the host - cannot be recorded: whoever wraps one sees to that (``engine/stages.py``), and a record that
fails all the same leaves the calls as they are, with a log line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kandinsky.model.denoiser import each

log = logging.getLogger(__name__)
State = Any  # a tensor, or tensors by track
# (work) -> (what it gave, a function that does it again into the same memory)
Record = Callable[[Callable[[], State]], tuple[State, Callable[[], None]]]


@dataclass(slots=True)
class _Recorded:
    x: State
    t: Tensor
    out: State
    play: Callable[[], None]


class Graphed:
    """A denoiser whose calls are recorded, one graph for each size.

    Args:
        denoiser: ``(x, t) -> prediction``, the same work at every call of a size.
        record: Records; by default a CUDA graph.
    """

    def __init__(self, denoiser: Callable[[State, Tensor], State], record: Record | None = None) -> None:
        self.denoiser, self.record = denoiser, record or cuda_graph
        self.recorded: dict[Any, _Recorded] = {}
        self.seen: set[Any] = set()
        self.is_off = False

    def __call__(self, x: State, t: Tensor) -> State:
        device = _first(x).device
        key = (_form(x), tuple(t.shape), t.dtype, device)
        if (found := self.recorded.get(key)) is None:
            # what is computed once - positions, condition channels, compiled kernels - is computed by the first call
            if self.is_off or key not in self.seen or (found := self._record(x, t.to(device))) is None:
                self.seen.add(key)
                return self.denoiser(x, t)
            self.recorded[key] = found
        with torch.cuda.device_of(_first(x)):
            each(lambda to, new: to.copy_(new), found.x, x)
            found.t.copy_(t)
            found.play()
            out: State = each(Tensor.clone, found.out)
        return out

    def _record(self, x: State, t: Tensor) -> _Recorded | None:
        own_x, own_t = each(Tensor.clone, x), t.clone()
        try:
            with torch.cuda.device_of(own_t):
                out, play = self.record(lambda: self.denoiser(own_x, own_t))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("calls are made one by one, since they cannot be recorded as a CUDA graph: %s", reason)
            self.is_off = True
            return None
        return _Recorded(own_x, own_t, out, play)


def cuda_graph(work: Callable[[], State]) -> tuple[State, Callable[[], None]]:
    """Record work as a CUDA graph.

    Args:
        work: Computes on the current CUDA device, from memory that stays.

    Returns:
        Where its results lie, and a function that computes them again.

    Raises:
        RuntimeError: Something in it cannot be recorded.
    """
    stream = torch.cuda.Stream()  # libraries choose and allocate what they need beside the recording
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return out, graph.replay


def _first(x: State) -> Tensor:
    found: Tensor = next(iter(x.values())) if isinstance(x, Mapping) else x
    return found


def _form(x: State) -> Any:
    """Sizes and types."""
    if isinstance(x, Mapping):
        return tuple((name, tuple(one.shape), one.dtype) for name, one in x.items())
    return tuple(x.shape), x.dtype
