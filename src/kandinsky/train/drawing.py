"""Random weights drawn into a file: of the network, one module at a time is in memory.

Networks initialise themselves in their own ways while they are built. Each module's weights move into a mapped file as
soon as it becomes a part of another, so the draws, and thus the weights, are those of a network built in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from kandinsky.files import beside, not_writable, remove
from kandinsky.train import loop
from kandinsky.weights.write import write_tensors

_ALIGNED = 64  # bytes


def draw(build: Callable[[], nn.Module], seed: int, path: Path) -> None:
    """Write a network with seeded random weights.

    Args:
        build: Makes the network.
        seed: Of the weights.
        path: The file.

    Raises:
        RequestError: It cannot be written.
    """
    with torch.device("meta"):
        described = build().state_dict()
    scratch = beside(path)
    try:
        with _moving(scratch, sum(map(_space, described.values()))) as move:
            with loop.seeded(seed):
                network = build()
            move(network)
            state = network.state_dict()
            write_tensors(path, described, lambda name: state[name])
    finally:
        remove(scratch)


def _space(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED


@contextmanager
def _moving(path: Path, size: int) -> Iterator[Callable[[nn.Module], None]]:
    """Within the block the tensors of each module that becomes a part of another move into a file of so many bytes.

    Yields:
        Moves those of a module.
    """
    try:
        with path.open("wb") as file:
            file.truncate(max(size, 1))
        whole = torch.from_file(str(path), shared=True, size=max(size, 1), dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise not_writable(path, error if isinstance(error, OSError) else OSError(str(error))) from error
    begin, at = whole.data_ptr(), 0

    def move(module: nn.Module) -> None:
        nonlocal at
        for tensor in (*module.parameters(), *module.buffers()):
            is_there = begin <= tensor.data_ptr() < begin + size
            if is_there or tensor.device.type != "cpu" or not tensor.numel() or at + _space(tensor) > size:
                continue
            kept = whole[at : at + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
            kept.copy_(tensor.detach())
            tensor.data = kept
            at += _space(tensor)

    def moved(_parent: nn.Module, _name: str, child: nn.Module | None) -> None:
        if child is not None:
            move(child)

    handle = register_module_module_registration_hook(moved)
    try:
        yield move
    finally:
        handle.remove()
