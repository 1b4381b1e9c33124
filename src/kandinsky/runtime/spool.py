"""Storage for frames that are too large for the device: main memory, beyond a limit a temporary file mapped into it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kandinsky.errors import OutOfMemory
from kandinsky.runtime.devices import host_memory

SHARE = 0.5  # of the free main memory that frames may take before they go to a file


class Spool:
    """Allocates tensors; where they lie does not change their values. Fits ``model/autoencoder.Allocate``.

    Args:
        in_memory: Tensors of at least this many bytes lie in a file; by default half of the free memory.
        folder: Folder of the files; by default the system's temporary folder. They have no name: nothing stays behind.
    """

    def __init__(self, *, in_memory: int | None = None, folder: Path | None = None) -> None:
        self.in_memory = in_memory
        self.folder = folder
        self.on_disk = 0

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        if size <= self._limit():
            return torch.empty(shape, dtype=dtype)
        self.on_disk += size
        handle, name = tempfile.mkstemp(prefix="kandinsky-", suffix=".frames", dir=self.folder)
        try:
            _reserve(handle, size, Path(name).parent)
            return torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)
        finally:
            os.close(handle)
            Path(name).unlink()  # the mapping keeps the file until the tensor is gone

    def _limit(self) -> int:
        if self.in_memory is not None:
            return self.in_memory
        memory = host_memory()
        return 2**63 if memory is None else int(memory[0] * SHARE)


def _reserve(handle: int, size: int, folder: Path) -> None:
    """Give a file its room on the disk: a mapped page that finds none would end the process without a word.

    Raises:
        OutOfMemory: The disk has no room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.ftruncate(handle, size)
    except OSError as error:
        raise OutOfMemory(
            f"frames of {size / 1e9:.1f} GB fit neither into memory nor into `{folder}`: {error.strerror}",
            hint="make room there, or name another folder with TMPDIR",
        ) from error
