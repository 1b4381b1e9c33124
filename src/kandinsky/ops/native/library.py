"""The compiled kernels of ``kernels.cpp``: made once a machine with its own C++ compiler, and held in the cache folder.

A library is named after all that decides what it is: the source, the compiler, the processor. Where it cannot be had -
no compiler, another processor, no cache folder, `KANDINSKY_NATIVE=off` - ``missing`` says why, one log line tells it,
and everything is computed by PyTorch. A library that does not give the definition's numbers is not used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kandinsky.errors import RequestError
from kandinsky.files import OFF, cache_folder, replacing

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("kernels.cpp")
VECTORS = Path(__file__).with_name("vectors.h")
SWITCH = "KANDINSKY_NATIVE"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-w")
NEEDED = frozenset({"avx2", "fma"})  # with AVX-512 vectors are twice as wide
LONGEST_S = 300.0  # for the compiler, on a machine that is busy
VERSION = 3


class Work(ctypes.Structure):
    """Arguments of the attention; see `struct Attention` in ``kernels.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "counted", "firsts", "kept", "counts")),
        *((name, ctypes.c_int64 * 3) for name in ("q_strides", "k_strides", "v_strides")),
        *((name, ctypes.c_int64) for name in ("B", "S", "L", "N", "K", "size", "threads")),
        ("scale", ctypes.c_float),
    ]


class Kernels:
    """A loaded library.

    Raises:
        OSError: The file is no library of this version.
    """

    def __init__(self, path: Path) -> None:
        at = ctypes.CDLL(str(path))
        place, number, small, word = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
        try:
            if (found := at.kandinsky_version()) != VERSION:
                raise OSError(f"`{path}` has version {found} of the kernels, not {VERSION}")
            self.attention = at.kandinsky_attention
            self.normed_heads = at.kandinsky_normed_heads
            self.modulated = at.kandinsky_modulated
            self.gated = at.kandinsky_gated
            self.block = at.kandinsky_block
            self.few_rows = at.kandinsky_few_rows
            self.normed_volume = at.kandinsky_normed_volume
            self.normed_image = at.kandinsky_normed_image
        except AttributeError as error:
            raise OSError(f"`{path}` is no library of these kernels: {error}") from error
        self.attention.argtypes = [ctypes.POINTER(Work), word]
        self.normed_heads.argtypes = [place, place, place, number, number, number, small, word, number]
        self.modulated.argtypes = [place, place, place, place, number, number, small, word, number]
        self.gated.argtypes = [place, place, place, number, number, word, number]
        self.block.argtypes = [place, place, word]
        self.few_rows.argtypes = [place, number, number, place, place, place, number, word]
        self.normed_volume.argtypes = [place, word]
        self.normed_image.argtypes = [place, word]
        silent = self.normed_heads, self.modulated, self.gated, self.block, self.few_rows
        for function in (*silent, self.normed_volume, self.normed_image):
            function.restype = None


def kernels() -> Kernels | None:
    """The library, compiled first if this machine has none; None where it cannot be had."""
    return _found()[0]


def missing(device_type: str | None = None) -> str | None:
    """Why there are no kernels for a kind of device; None where there are. They are compiled to know it."""
    if device_type is not None and device_type != "cpu":
        return "it runs on processors only"
    return _found()[1]


def told() -> str | None:
    """What large work on the processor was done by, for a recipe: `own` and which, or `torch`.

    None where this process has not asked for the kernels: they are not compiled to know it.
    """
    if not _found.cache_info().currsize:
        return None
    return "torch" if kernels() is None else f"own {identity()}"


@functools.cache
def identity() -> str:
    """What our kernels are, as a few digits: of their source and of the modules that decide what they are given.

    Both change last bits, and a number that has to be counted up is forgotten.
    """
    sources = (SOURCE, VECTORS, *sorted(SOURCE.parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels may compute with tensors: of a processor, of one type they know, and nobody watches.

    Gradients, autocast, compilation and dispatch modes (which count operations or make no numbers) need PyTorch's own
    operations.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or not first.is_cpu:
        return False
    if torch.is_grad_enabled():
        return _left("gradients may be wanted")
    if first.dtype not in (torch.bfloat16, torch.float32):
        return _left(f"numbers are {first.dtype}")
    for x in tensors:
        if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or x.dtype is not first.dtype:
            return _left("tensors are of several types, or no plain ones")
    if torch.is_autocast_enabled(first.device.type) or torch._C._len_torch_dispatch_stack():
        return _left("autocast or a dispatch mode is on")
    return kernels() is not None


@functools.cache
def _left(reason: str) -> bool:
    """False, and one log line a process that says what is left to PyTorch."""
    log.info("PyTorch's own kernels compute what ours could, where %s", reason)
    return False


@functools.cache
def _found() -> tuple[Kernels | None, str | None]:
    """The library, or why there is none."""
    reason = _reason_against()
    if reason is None:
        try:
            made = Kernels(_built())
            if (error := _distance(made)) < 0.01:
                return made, None
            reason = f"what was compiled is wrong by {error:.2g}"
        except (OSError, RequestError, subprocess.SubprocessError) as failure:
            reason = f"it cannot be compiled: {failure}"
    log.info("PyTorch's own kernels are used on the processor: %s", reason)
    return None, reason


def _reason_against() -> str | None:
    """What this machine lacks; None for nothing that is known before compiling."""
    if os.environ.get(SWITCH, "").strip().lower() in OFF[:-1]:
        return f"{SWITCH} switches it off"
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return "it is written for x86-64 under Linux"
    if lacking := sorted(NEEDED - _flags()):
        return f"the processor has no {', '.join(lacking)}"
    if _compiler() is None:
        return f"there is no C++ compiler ({', '.join(COMPILERS)}, or CXX)"
    if cache_folder() is None:
        return "there is no cache folder to hold it (KANDINSKY_CACHE)"
    return None


def _compiler() -> str | None:
    given = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [given] if given else COMPILERS)), None)


@functools.cache
def _flags() -> frozenset[str]:
    """What the processor can do, in the words of Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX)."""
    return "amx_bf16" in _flags()


@functools.cache
def blocks_of_bfloat16() -> bool:
    """Whether ours are the faster blocks in bfloat16.

    They are of pairs where the processor multiplies these, and of float32 where PyTorch multiplies number by number.
    Tiles (AMX), and what oneDNN makes of AVX-512 alone, are left to it.
    """
    return not has_tiles() and ("avx512_bf16" in _flags() or not torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _run(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        SubprocessError: It fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it failed"])[0]
        raise subprocess.SubprocessError(f"{command[0]}: {told}")
    return done.stdout


def _built() -> Path:
    """The library's file, compiled if it is not there.

    Raises:
        OSError: The cache folder cannot be written.
        SubprocessError: The compiler fails.
    """
    compiler, cache = _compiler(), cache_folder()
    assert compiler is not None and cache is not None
    sources = (path.read_text(encoding="utf-8") for path in (SOURCE, VECTORS))
    facts = [_run([compiler, "--version"]), *FLAGS, *sorted(_flags()), *sources]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    path = cache / "native" / f"{name}.so"
    if not path.is_file():
        log.info("kernels for this processor are compiled once, into `%s`", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            _run([compiler, *FLAGS, str(SOURCE), "-o", str(part)])
    return path


def _distance(made: Kernels) -> float:
    """How far its attention is from the definition on a small problem, relative to it; the larger of both types."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 80, 2, 64, generator=generator) for _ in range(3))
    worst = 0.0
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            few = [x.to(dtype) for x in (q, k, v)]
            found = attend(made, *few).float()
            scores = torch.einsum("bsnk,blnk->bnsl", few[0].float(), few[1].float()) / 8.0
            wanted = torch.einsum("bnsl,blnk->bsnk", scores.softmax(-1), few[2].float())
            error = float((found - wanted).norm() / wanted.norm())
            worst = max(worst, error if error == error else math.inf)
    return worst


def attend(
    made: Kernels,
    q_BSNK: Tensor,
    k_BLNK: Tensor,
    v_BLNK: Tensor,
    *,
    counted_BL: Tensor | None = None,
    lists: tuple[Tensor, Tensor, Tensor | None, int] | None = None,
) -> Tensor:
    """softmax(q·kᵀ / √K)·v of each head; the caller has seen to types and shapes.

    Heads that fill no whole registers are filled with zeros, which change nothing and cost their share.

    Args:
        made: The kernels.
        q_BSNK: Queries; the last axis lies together.
        k_BLNK: Keys.
        v_BLNK: Values.
        counted_BL: Bool, which keys count.
        lists: Of block-sparse attention, for each clip, head and block of queries one behind the other: where its kept
            blocks of keys begin (int64, one more than there are), their numbers (int32), how many keys of each block
            are real (int32; None for all), and the tokens of a block, a multiple of 64.

    Returns:
        [B, S, N, K].
    """
    (B, S, N, own), L = q_BSNK.shape, k_BLNK.shape[1]
    if filled := -own % (32 if q_BSNK.dtype is torch.bfloat16 else 16):
        q_BSNK, k_BLNK, v_BLNK = (functional.pad(x, (0, filled)) for x in (q_BSNK, k_BLNK, v_BLNK))
    K = own + filled
    out = q_BSNK.new_empty(B, S, N, K)
    counted = None if counted_BL is None else counted_BL.expand(B, L).contiguous()
    firsts, kept, counts, size = lists or (None, None, None, 0)

    def at(x: Tensor | None) -> int | None:
        return None if x is None else x.data_ptr()

    def strides(x: Tensor) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * 3)(*x.stride()[:3])

    work = Work(
        at(q_BSNK), at(k_BLNK), at(v_BLNK), at(out), at(counted), at(firsts), at(kept), at(counts),
        strides(q_BSNK), strides(k_BLNK), strides(v_BLNK),
        B, S, L, N, K, size, torch.get_num_threads(), 1.0 / math.sqrt(own),
    )  # fmt: skip
    made.attention(ctypes.byref(work), q_BSNK.dtype is torch.bfloat16)
    return out[..., :own]
