"""How long a processor takes for given operations: public peak rates, and the share that each kind of work gets.

The rates are the vendors' own, without structured sparsity: NVIDIA's data sheets of the data centre cards and the
architecture white papers of the GeForce cards (Ampere GA102, Ada, Blackwell), products in 16 bit with float32 sums.
The shares that kernels reach are given once per kind of work, in ``Shares``, not per model. They were measured on
the H100; chips with less arithmetic for their memory reach larger shares, so that times for those are on the long side.

Imports torch only to ask a GPU for its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kandinsky.model.cost import Operations
from kandinsky.runtime import devices


@dataclass(frozen=True, slots=True)
class Shares:
    """What kernels reach of a processor's peak rate, by kind of work.

    Attributes:
        linear: Share of the peak rate in linear layers.
        convolution: Share of the peak rate in convolutions.
        attention: Share of the peak rate in dense attention.
        sparse: Share of the peak rate in block-sparse attention.
        exponential: Operations of the matrix units in whose time one exponential is computed, which dense attention's
            softmax waits for.
        memory: Share of the memory bandwidth that element-wise steps reach.
        kernel_s: Seconds between the end of one kernel and the start of the next.
    """

    linear: float
    convolution: float
    attention: float
    sparse: float
    exponential: float
    memory: float
    kernel_s: float


GPU = Shares(
    # Large products in bfloat16 alone run at 600 to 790 of the H100's 989 TFLOP/s, held back by its power limit; those
    # of a transformer's layers, of uneven sizes and one after another, somewhat below.
    linear=0.55,
    # PyTorch's convolutions in 16 bit, channels first. The published times of Kandinsky 5 Lite with 100, 50 and 16
    # passes leave 15 s for decoding 5 s, whose tiles take 1653 TFLOP: 110 TFLOP/s of an H100. It is near what is
    # left for decoding in those of 10 s and of Pro.
    convolution=0.12,
    # FlashAttention-3 and cuDNN on Hopper keep the matrix units busy except while exponentials are computed. The H100
    # has 989 TFLOP/s for products and 3.9 T/s for exponentials (Shah et al., FlashAttention-3, arXiv 2407.08608,
    # section 3.1): 254 operations each. That makes 494 TFLOP/s at heads of 64 and 659 at 128; the paper's figure 5
    # measures 497 and 648.
    attention=1.0,
    exponential=256.0,
    # FlexAttention comes near FlashAttention-2, which makes 324 (heads of 64) to 370 TFLOP/s of an H100 in that figure.
    sparse=0.33,
    memory=0.9,
    kernel_s=4e-6,
)
# PyTorch on CPU: rates below are what large products reach, so that layers reach all of it; attention was
# measured at half of it in this library's benchmarks (docs/benchmarks.md).
CPU = Shares(
    linear=1.0, convolution=0.85, attention=0.5, sparse=0.25, exponential=0.0, memory=1.0, kernel_s=5e-6
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor that a plan's times are for.

    Attributes:
        name: Its name.
        half: Peak operations per second in 16 bit.
        single: Peak operations per second in float32.
        bandwidth: Memory bandwidth in bytes per second.
        shares: What kernels reach of these rates.
        memory: Bytes of its own memory; 0 for a CPU.
        names: Pattern of the names that drivers report.
        is_usual: Whether it stands for all GPUs with as much memory, if only the memory is known.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: int = 0
    names: str = ""
    is_usual: bool = True
    shares: Shares = GPU

    def seconds(self, operations: Operations, dtype: str) -> float:
        """How long operations take, those of one kind after those of another.

        Args:
            operations: The operations.
            dtype: Compute type.

        Returns:
            Seconds.
        """
        shares, peak = self.shares, self.single if dtype == "float32" else self.half
        waits = operations.linear / shares.linear + operations.convolution / shares.convolution
        waits += operations.attention / shares.attention + operations.sparse / shares.sparse
        waits += operations.scores * shares.exponential
        return waits / peak + operations.moved / (shares.memory * self.bandwidth) + operations.kernels * shares.kernel_s


def _gpu(
    name: str, gb: int, half: float, single: float, bandwidth: int, names: str, is_usual: bool = True
) -> Processor:
    """A GPU from rates in TFLOP/s and bandwidth in GB/s."""
    return Processor(name, half * 1e12, single * 1e12, bandwidth * 1e9, gb * 10**9, names, is_usual)


# by memory; of those that share a pattern the first counts
GPUS = (
    _gpu("RTX 4060", 8, 30.2, 15.1, 272, r"RTX 4060"),
    _gpu("RTX 3080", 10, 59.5, 29.8, 760, r"RTX 3080", False),
    _gpu("RTX 4070", 12, 58.3, 29.2, 504, r"RTX 4070"),
    _gpu("RTX 3060", 12, 25.5, 12.7, 360, r"RTX 3060", False),
    _gpu("RTX 4080", 16, 97.5, 48.7, 717, r"RTX 4080"),
    _gpu("T4", 16, 65, 8.1, 320, r"T4\b", False),
    _gpu("V100", 16, 125, 15.7, 900, r"V100", False),
    _gpu("RTX 4090", 24, 165, 82.6, 1008, r"RTX 4090"),
    _gpu("RTX 3090", 24, 71, 35.6, 936, r"RTX 3090", False),
    _gpu("L4", 24, 121, 30.3, 300, r"L4\b", False),
    _gpu("A10", 24, 125, 31.2, 600, r"A10\b", False),
    _gpu("RTX 5090", 32, 209, 104.8, 1792, r"RTX 5090"),
    _gpu("A100 40GB", 40, 312, 19.5, 1555, r"A100.*40GB"),
    _gpu("L40S", 48, 362, 91.6, 864, r"L40S"),
    _gpu("RTX A6000", 48, 155, 38.7, 768, r"A6000|A40\b", False),
    _gpu("H100 PCIe", 80, 756, 51, 2000, r"H100.*PCIe", False),
    _gpu("H100", 80, 989, 67, 3350, r"H100"),
    _gpu("A100 80GB", 80, 312, 19.5, 2039, r"A100", False),
    _gpu("H200", 141, 989, 67, 4800, r"H200"),
    _gpu("B200", 180, 2250, 75, 8000, r"B200"),
)
# one core with AVX-512: what this library's training was measured to reach, 82 GFLOP/s in float32, 204 in bfloat16
_CORE_SINGLE, _CORE_BFLOAT16, _CORE_BANDWIDTH = 80e9, 200e9, 10e9
_APPLE = Processor("Apple GPU", 8e12, 5e12, 100e9)  # an M-series chip of middling size
LINK = 25e9  # bytes a second between host and device, PCI Express 4.0 with 16 lanes


def of_memory(memory: int) -> tuple[Processor, str]:
    """The GPU that times are for if nothing is known but its memory, and why."""
    usual = [gpu for gpu in GPUS if gpu.is_usual]
    chosen = next((gpu for gpu in usual if gpu.memory >= memory * 0.95), usual[-1])
    return chosen, "assumed from the memory"


def at_hand(device: str, dtype: str) -> tuple[Processor, str]:
    """The processor behind a device of this machine, and how it is known."""
    if device == "cpu":
        cores = devices.processor_count()
        half = cores * (_CORE_BFLOAT16 if dtype == "bfloat16" else _CORE_SINGLE)
        name = f"{cores} CPU core{'s' if cores > 1 else ''}"
        return Processor(name, half, cores * _CORE_SINGLE, cores * _CORE_BANDWIDTH, shares=CPU), "in this machine"
    if device == "mps":
        return _APPLE, "assumed for `mps`"
    name, memory = devices.device_name(device), devices.device_memory(device)
    if (found := named(name)) is not None:
        return found, "in this machine"
    assumed, _ = of_memory(memory[1] if memory else 0)
    return assumed, f"assumed for `{name}`, whose rates are not known"


def named(name: str) -> Processor | None:
    """The GPU of a name that a driver reports; None if it is not listed."""
    fitting = (gpu for gpu in GPUS if gpu.names and re.search(gpu.names, name))
    return next(fitting, None)
