"""What this machine has: versions, devices, attention backends, packages, settings, codecs, free memory and disk."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.errors import KandinskyError
from kandinsky.runtime import devices
from kandinsky.runtime.threads import Threads

_OPTIONAL = {
    "transformers": "text encoders of the full-size models",
    "diffusers": "HunyuanVideo autoencoder",
    "accelerate": "faster loading in transformers",
    "flash_attn": "FlashAttention 2",
    "sageattention": "SageAttention",
    "triton": "compiled kernels",
}
_SETTINGS = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "KANDINSKY_CARDS", "KANDINSKY_WEIGHTS")
_CODECS = {"libx264": ".mp4", "libvpx-vp9": ".webm"}


def report() -> dict[str, Any]:
    """All findings as plain values; `problems` describes what would prevent a first video."""
    problems: list[str] = []
    findings = {
        "kandinsky": kandinsky.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": _torch(problems),
        "processors": devices.processor_count(),
        "threads": asdict(Threads.found()) | {"passive": Threads.found().are_passive},
        "memory": _room(devices.host_memory()),
        "packages": {name: {"version": _version(name), "for": use} for name, use in _OPTIONAL.items()},
        "hub": _hub(),
        "codecs": _codecs(problems),
        "disk": _disk(),
    }
    return {**findings, "problems": problems}


def _torch(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch cannot be imported: {error}")
        return {"version": None}
    found: dict[str, Any] = {"version": torch.__version__, "threads": torch.get_num_threads()}
    found["devices"] = [{"name": "cpu", **_processor()}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        entry = {"name": f"cuda:{index}", "model": facts.name, "capability": f"{facts.major}.{facts.minor}"}
        found["devices"].append({**entry, "memory": _room(devices.device_memory(f"cuda:{index}"))})
    if torch.backends.mps.is_available():
        found["devices"].append({"name": "mps"})
    found["default_device"] = devices.choose_device()
    try:
        from kandinsky.ops.attention import backends

        found["attention"] = list(backends())
    except (ImportError, KandinskyError) as error:
        problems.append(f"attention backends cannot be listed: {error}")
    return found


def _processor() -> dict[str, str]:
    """What decides how fast this processor computes, as torch knows it: its maker's name, its vectors, bfloat16."""
    import torch

    try:
        features = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # torch is older, or does not know this processor
        return {}
    native = any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return {
        "model": str(features.get("cpu_name") or platform.machine()),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "native" if native else "computed in float32: as fast, in half the memory",
    }


def _version(name: str) -> str | None:
    if util.find_spec(name) is None:
        return None
    for distribution in (name, name.replace("_", "-")):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _hub() -> dict[str, Any]:
    from kandinsky.weights.locate import hub_cache

    settings: dict[str, Any] = {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}
    # Whether there is a token, never the token.
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    has_token = bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()
    return {"cache": str(hub_cache()), "token": has_token, "settings": settings}


def _codecs(problems: list[str]) -> dict[str, bool]:
    try:
        import av
    except ImportError as error:
        problems.append(f"PyAV cannot be imported, so no video can be written: {error}")
        return {}
    found = {}
    for codec, ending in _CODECS.items():
        try:
            av.codec.Codec(codec, "w")
            found[codec] = True
        except ValueError:  # PyAV: UnknownCodecError
            found[codec] = False
            problems.append(f"the codec {codec} is missing from PyAV's ffmpeg: `{ending}` cannot be written")
    return found


def _disk() -> dict[str, Any]:
    from kandinsky.weights.locate import hub_cache

    rooms = {}
    for name, folder in (("current folder", Path.cwd()), ("hub cache", hub_cache())):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        rooms[name] = {"path": str(folder), "free_gb": round(shutil.disk_usage(there).free / 1e9, 1)}
    return rooms


def _room(pair: tuple[int, int] | None) -> dict[str, float] | None:
    return None if pair is None else {"free_gb": round(pair[0] / 1e9, 1), "total_gb": round(pair[1] / 1e9, 1)}
