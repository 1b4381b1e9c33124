"""Attention kernels of other packages, under the official names of the engines. Imported at first use.

Each is dense, takes no mask, and wants a CUDA device and 16-bit numbers.
Legend: B batch, S query tokens, L key tokens, N heads, K head width.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import BackendError

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Engine:
    """The kernel of one package.

    Attributes:
        title: Name for people.
        module: Module to import.
        function: The kernel in it.
        install: How to install it.
        capability: Least compute capability of the device.
        options: Further arguments of the kernel.
    """

    title: str
    module: str
    function: str
    install: str
    capability: tuple[int, int]
    options: tuple[tuple[str, Any], ...] = ()

    def missing(self, device_type: str) -> str | None:
        """Why it cannot run there; None where it can, as far as is known without importing it."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.title} is not installed: {self.install}"
        if device_type != "cuda":
            return f"{self.title} runs on CUDA devices only"
        found = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
        if found < self.capability:
            least, have = (".".join(map(str, pair)) for pair in (self.capability, found))
            return f"{self.title} needs compute capability {least}, this device has {have}"
        return None

    def __call__(self, q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            raise BackendError(f"{self.title} takes no mask: use `sdpa`")
        if q_BSNK.dtype not in HALF:
            given = str(q_BSNK.dtype).removeprefix("torch.")
            raise BackendError(f"{self.title} computes in bfloat16 or float16, not {given}: choose such a dtype")
        # layout B S N K throughout
        out = self.kernel()(q_BSNK, k_BLNK, v_BLNK, **dict(self.options))
        # some builds of FlashAttention 3 return the log of the softmax' sums beside the result
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def kernel(self) -> Callable[..., Any]:
        """The package's function.

        Raises:
            BackendError: The package is absent or broken.
        """
        try:
            out: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
            return out
        except (ImportError, AttributeError, OSError) as error:
            raise BackendError(f"{self.title} cannot be imported ({error}): {self.install}") from error


ENGINES: dict[str, Engine] = {
    "flash_attention_2": Engine(
        "FlashAttention 2", "flash_attn", "flash_attn_func", "`pip install flash-attn`", (8, 0)
    ),
    # no package of the index: built from the folder `hopper` of its repository
    "flash_attention_3": Engine(
        "FlashAttention 3", "flash_attn_interface", "flash_attn_func", "build it from its repository", (9, 0)
    ),
    "sage": Engine(
        "SageAttention",
        "sageattention",
        "sageattn",
        "`pip install sageattention`",
        (8, 0),
        (("tensor_layout", "NHD"), ("is_causal", False)),
    ),
}
