"""The machine that figures were measured on, as a result file names it: what it is, how it is shared, its rates."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch

import kandinsky
from kandinsky.media.recipe import versions
from kandinsky.runtime import devices
from kandinsky.runtime.meter import matmul_rate
from kandinsky.runtime.threads import Threads


def machine(device: str = "cpu") -> dict[str, Any]:
    """What this runs on, as plain values.

    Args:
        device: The device that is measured.

    Returns:
        Names of processor and accelerator, cores, threads and how they wait, load, memory in bytes, versions.
    """
    found = Threads.found()
    memory = devices.host_memory()
    facts: dict[str, Any] = {
        "processor": devices.processor_name(),
        "cores": found.machine,
        "allowed": found.allowed,
        "quota": found.quota,
        "threads": torch.get_num_threads(),
        "waiting": "passive" if found.are_passive else "active",
        "load": found.load,
        "memory": None if memory is None else memory[1],
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": devices.multiplies_bfloat16("cpu"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"kandinsky": kandinsky.__version__, **versions()},
    }
    if device.startswith("cuda"):
        free_total = devices.device_memory(device)
        facts["accelerator"] = devices.device_name(device)
        facts["accelerator_memory"] = None if free_total is None else free_total[1]
    return facts


def rates(device: str = "cpu") -> dict[str, float]:
    """FLOP/s of products of large matrices in each type that the device has instructions for."""
    place = torch.device(device)
    kinds = [torch.float32] + ([torch.bfloat16] if devices.multiplies_bfloat16(device) else [])
    return {str(kind).removeprefix("torch."): matmul_rate(place, kind) for kind in kinds}


def class_of(facts: dict[str, Any]) -> str:
    """The class of a machine as a file name: its accelerator, else its processor, vectors and threads.

    Args:
        facts: As from ``machine``.

    Returns:
        Such as `amd-epyc-avx2-1-thread`.
    """
    threads = facts["threads"]
    parts = [facts.get("accelerator") or f"{facts['processor']} {facts['vectors']}"]
    if "accelerator" not in facts:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    words = re.sub(r"\((r|tm|c)\)|\bcpu\b|@\s*\S+|processor", " ", " ".join(parts).lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def file_of(facts: dict[str, Any], folder: Path) -> Path:
    """The result file of a machine's class."""
    return folder / f"{class_of(facts)}.json"
