"""How a model is loaded and run: ``RunOptions``, declared once and rendered by every door.

The command line makes flags of it, ``kandinsky.load`` its keyword arguments, workers of a cluster its value. No torch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.diffusion.caching import CacheSettings
from kandinsky.errors import RequestError
from kandinsky.model.option import option
from kandinsky.runtime import devices, quantise
from kandinsky.runtime.budget import check_offload
from kandinsky.runtime.parallel.layout import Layout
from kandinsky.weights.lora_files import LoraSpecs

if TYPE_CHECKING:
    import torch

    from kandinsky.model.card import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a model is loaded and run. Every field has a default that suits most machines."""

    device: str | torch.device | Mapping[str, str | torch.device] | None = option(
        None,
        "where to run, `cpu`, `cuda`, `cuda:0`, `mps`; a mapping places `dit`, `text` and `vae` apart. Default: the "
        "first CUDA device, else CPU",
        flags=("--device",),
        short="cpu, cuda, cuda:N or mps; the best there is.",
    )
    dtype: str | torch.dtype | None = option(
        None,
        "compute type, `float32`, `bfloat16` or `float16`. Default: float32, on CUDA bfloat16",
        flags=("--dtype",),
        short="float32, bfloat16 or float16.",
    )
    offload: str | None = option(
        None,
        "`none`, the default; `module` holds each network on its device only while it runs; `block` only one or two "
        "blocks of it at a time. Results are the same to the last bit",
        flags=("--offload",),
        short="none: all networks stay loaded. module: one at a time. block: one block.",
    )
    weights: str | Path | None = option(
        None, "an official `weights/` folder to read a catalogue model from, instead of the Hugging Face cache"
    )
    attention: str = option(
        "auto",
        "of the visual self attention: a type, `dense` or `nabla`, or a backend of ``ops/attention.py``, with options "
        "as in `nabla:P=0.8,wT=7`; `auto` is the card's",
        flags=("--attention",),
        short="auto, dense, nabla or a backend, as in nabla:P=0.8 or sdpa.",
    )
    cache: str | CacheSettings | None = option(
        None,
        "step cache, `magcache`, `first-block`, `taylor` or `none`, with options as in `first-block:threshold=0.1`; or "
        "a value of ``diffusion/caching.py``. A call may choose another",
    )
    lora: LoraSpecs | None = option(
        None,
        "one or several of `FILE[:SCALE]`; a file, a folder, or a repository that was downloaded",
        flags=("--lora",),
        short="LoRA file, folder or downloaded repository; repeatable.",
        metavar="F[:SCALE]",
    )
    quantize: str | Mapping[str, str] | None = option(
        None,
        'weights in fewer bits, `int8` or `fp8` for the transformer\'s linear layers, or `{"dit": "int8", "text": '
        '"nf4"}`; see ``runtime/quantise.py``',
        flags=("--quantize",),
        short="int8 or fp8 for the network, or dit=int8,text=nf4.",
    )
    tiling: str | None = option(
        None,
        "of autoencoders that can decode in tiles, `none`, `auto` or `official`",
        flags=("--tiling",),
        short="Decoding in tiles: none, auto or official.",
    )
    text_cache: bool | str | Path | None = option(
        None,
        "whether, or in which folder, text embeddings are kept on disk; see ``text/store.py``",
        flags=("--text-cache",),
        short="Keep text states on disk.",
        metavar="on|off|FOLDER",
    )
    only: Collection[str] | None = option(
        None,
        "names of the networks that will be used, of `dit`, `text` and `vae` (and further ones of the card); the "
        "others need not be on this machine. Default: all",
    )
    parallel: str | Layout | None = option(
        None,
        "how the processes that `torchrun` started work together, `auto`, or as `cfg=2,ulysses=2`, see "
        "``runtime/parallel/layout.py``; each makes the same calls. Default: each for itself",
        flags=("--parallel",),
        short="Under torchrun: auto, or as cfg=2,ulysses=2.",
        metavar="LAYOUT",
    )
    trust_remote_code: bool = option(
        False,
        "run the program code in the repository of an encoder that comes with some",
        flags=("--trust-remote-code",),
        short="Let an encoder run the program code of its own repository.",
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunOptions:
        """Options by name. Raises: RequestError for a name that is none, with the nearest."""
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            advice = f"did you mean `{near[0]}`" if near else f"use one of {', '.join(known)}"
            raise RequestError(f"unknown option `{unknown[0]}`: {advice}")
        return cls(**values)

    def check(self) -> None:
        """Refuse what no model can be run with, before torch is loaded. Raises: RequestError, BackendError."""
        if not isinstance(self.device, Mapping):
            devices.check_device(None if self.device is None else str(self.device))
        if self.dtype is None or isinstance(self.dtype, str):
            devices.choose_dtype(self.dtype, str(self.device or "cpu"))
        check_offload(self.offload or "none")
        quantise.parse(self.quantize)

    @property
    def loras(self) -> tuple[str, ...]:
        """All of ``lora``, one by one."""
        if self.lora is None:
            return ()
        return (str(self.lora),) if isinstance(self.lora, str | Path) else tuple(map(str, self.lora))

    def applied_to(self, card: Card) -> Card:
        """The card with its autoencoder's tiling replaced, where one was asked for.

        Raises:
            RequestError: for an autoencoder that is never tiled.
        """
        if self.tiling is None:
            return card
        if not card.part("vae").tilings:
            raise RequestError(
                f"tiling `{self.tiling}` was asked for, and the autoencoder of `{card.id}` is never tiled"
            )
        vae = dataclasses.replace(card.vae, params=dict(card.vae.params) | {"tiling": self.tiling})
        return dataclasses.replace(card, vae=vae)

    def changed(self, **values: Any) -> RunOptions:
        """The same with some values replaced."""
        return dataclasses.replace(self, **values)
