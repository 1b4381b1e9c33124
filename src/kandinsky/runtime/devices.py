"""Devices and compute types by name: the requested one, or the best available. The only place that knows the names.

``check_device`` avoids loading torch, so that a request is refused early.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

from kandinsky.errors import BackendError, RequestError
from kandinsky.runtime import threads

_DEVICE = re.compile(r"(cpu|mps|cuda(:\d{1,4})?)")
DTYPES = ("float32", "bfloat16", "float16")
_SHORT = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}


def check_device(name: str | None) -> None:
    """Refuse a device that is not available; loads torch only if its build could have that device.

    Raises:
        RequestError: The name is unknown.
        BackendError: This machine does not have the device.
    """
    if name is None or name == "auto":
        return
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise RequestError(f"device `{name}` is unknown: use `cpu`, `cuda`, `cuda:N`, `mps` or `auto`")
    if name == "cpu":
        return
    if name.startswith("cuda") and _is_cpu_build():
        raise BackendError(
            f"device `{name}` was asked for, and the installed torch {_torch_version()} is a CPU-only build",
            hint='use `device="cpu"`, or install a CUDA build of torch',
        )
    import torch

    if name == "mps" and not torch.backends.mps.is_available():
        raise BackendError("device `mps` was asked for, and there is none here", hint='use `device="cpu"`')
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            there = "there is none here" if not count else f"this machine has `cuda:0` to `cuda:{count - 1}`"
            raise BackendError(f"device `{name}` was asked for, and {there}", hint='use `device="cpu"`')


def choose_device(name: str | None = None) -> str:
    """The device to compute on: the requested one, else the first CUDA device, else the CPU.

    Raises:
        RequestError: The name is unknown.
        BackendError: This machine does not have the device.
    """
    check_device(name)
    if name is not None and name != "auto":
        return name
    if _is_cpu_build():
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def choose_dtype(name: str | None, device: str) -> str:
    """The compute type: the requested one, else bfloat16 on CUDA and float32 elsewhere.

    Raises:
        RequestError: The type is unknown.
    """
    if name is None or name == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    name = _SHORT.get(name, name)
    if name not in DTYPES:
        raise RequestError(f"dtype `{name}` is unknown: use `float32`, `bfloat16` or `float16`")
    return name


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device has instructions for products of bfloat16, or a library that makes them fast.

    On x86 processors without AVX-512 they are made number by number: 1024 x 256 x 1024 reached 0.7 to 12 GFLOP/s, by
    the order of the operands, against 27 to 47 in float32 (AMD EPYC of family 25, model 1; one thread, PyTorch 2.13).
    """
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision(device: str) -> AbstractContextManager[object]:
    """A context in which products are made in bfloat16 where that is faster (see ``multiplies_bfloat16``)."""
    import torch

    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=multiplies_bfloat16(device))


def dtype_bytes(name: str) -> int:
    """Bytes of one number of a compute type."""
    return 4 if name == "float32" else 2


def device_memory(device: str) -> tuple[int, int] | None:
    """Free and total bytes of an accelerator; None for the CPU and if unknown."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(torch.device(device))
    return int(free), int(total)


def device_name(device: str) -> str:
    """The driver's name of an accelerator."""
    import torch

    return torch.cuda.get_device_name(torch.device(device))


def host_memory() -> tuple[int, int] | None:
    """Available and total bytes of main memory, within a container's limit if one is set; None if unknown."""
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            facts[key] = int(value.split()[0]) * 1024
        free, total = facts["MemAvailable"], facts["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
        return total, total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def processor_count() -> int:
    """CPU cores this process may use at once, by its affinity and its control groups."""
    return threads.cores()


def processor_name() -> str:
    """The maker's name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _is_cpu_build() -> bool:
    return "+cpu" in _torch_version()


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError as error:
        raise BackendError("torch is not installed: run `pip install kandinsky-video`") from error
