"""How a model is loaded and run: ``RunOptions``, declared once for Python, the command line and the API.

The command line turns it into flags, ``kandinsky.load`` into keyword arguments, and cluster workers receive its value.
No torch.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from kandinsky.diffusion.caching import CacheSettings
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.model.checks import check_fields, check_names
from kandinsky.model.diffusers_words import LOAD, answers, translated
from kandinsky.model.option import described, option
from kandinsky.runtime import devices, quantise, tuning
from kandinsky.runtime.budget import check_offload
from kandinsky.runtime.parallel.layout import PROCESSES, Layout
from kandinsky.weights.lora_files import LoraSpecs

if TYPE_CHECKING:
    import torch

    from kandinsky.model.card import Card

_ON_OFF = {"on": True, "off": False}
P = ParamSpec("P")
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a model is loaded and run; every field has a default that suits most machines."""

    device: str | torch.device | Mapping[str, str | torch.device] | None = option(
        None,
        "where to run, `cpu`, `cuda`, `cuda:0`, `mps`; a mapping places `dit`, `text` and `vae` apart. Default: the "
        "first CUDA device, else CPU",
        flags=("--device",),
        short="cpu, cuda, cuda:N or mps; default: the best available.",
    )
    dtype: str | torch.dtype | None = option(
        None,
        "compute type, `float32`, `bfloat16` or `float16`. Default: float32, on CUDA bfloat16",
        flags=("--dtype",),
        short="Compute type: float32, bfloat16 or float16.",
    )
    offload: str | None = option(
        None,
        "`none`, the default; `module` holds each network on its device only while it runs; `block` only one or two "
        "blocks of it at a time. Latents are the same to the last bit, and frames too, unless `block` makes an "
        "autoencoder decode layer by layer, which rounds differently",
        flags=("--offload",),
        short="none: keep all networks loaded; module: one at a time; block: one block.",
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
        served=True,
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
        short="LoRA file, folder or downloaded repository; may be repeated.",
        metavar="F[:SCALE]",
        served=True,
    )
    quantize: str | Mapping[str, str] | None = option(
        None,
        'weights in fewer bits, `int8` or `fp8` for the transformer\'s linear layers, or `{"dit": "int8", "text": '
        '"nf4"}`; see ``runtime/quantise.py``',
        flags=("--quantize",),
        short="int8 or fp8 for the transformer, or dit=int8,text=nf4.",
    )
    tiling: str | None = option(
        None,
        "of autoencoders that can decode in tiles, `none`, `auto` or `official`",
        flags=("--tiling",),
        short="Tiled decoding: none, auto or official.",
    )
    backends: str = option(
        "default",
        "ways to compute the same that differ in speed and rounding: `default`, `tuned` takes what was fastest on this "
        "machine, or by name, as in `linear=torch,attention=math`; see ``runtime/tuning.py``",
        flags=("--backends",),
        short="default, tuned (see `kandinsky tune`), or as in linear=torch,attention=math.",
    )
    text_cache: bool | str | Path | None = option(
        None,
        "whether, or in which folder, text embeddings are kept on disk; see ``text/store.py``",
        flags=("--text-cache",),
        short="Cache text embeddings on disk.",
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
        short="Under torchrun: auto, or a layout such as cfg=2,ulysses=2.",
        metavar="LAYOUT",
    )
    trust_remote_code: bool = option(
        False,
        "run the program code in the repository of an encoder that comes with some",
        flags=("--trust-remote-code",),
        short="Allow an encoder to run code from its own repository.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.text_cache, str):
            object.__setattr__(self, "text_cache", _ON_OFF.get(self.text_cache.strip().lower(), self.text_cache))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build options from names and values; some are known by Diffusers' name too.

        Args:
            values: Values by name.

        Returns:
            The options.

        Raises:
            RequestError: A name is unknown (the nearest is suggested), or a value has the wrong type.
        """
        values = translated(values, LOAD, None)
        check_names(values, [f.name for f in dataclasses.fields(cls)], "option", answers(LOAD))
        return cls(**values)

    def check(self) -> None:
        """Refuse what no model can run with, before torch is loaded.

        Raises:
            RequestError: A value is unknown or out of range.
            BackendError: A device is not available.
        """
        if not isinstance(self.device, Mapping):
            devices.check_device(None if self.device is None else str(self.device))
        if self.dtype is None or isinstance(self.dtype, str):
            devices.choose_dtype(self.dtype, str(self.device or "cpu"))
        check_offload(self.offload or "none")
        quantise.parse(self.quantize)
        tuning.check(self.backends)
        if isinstance(self.text_cache, str | Path):
            folder = local_path(self.text_cache, "text cache")
            if folder.exists() and not folder.is_dir():
                raise RequestError(f"text cache `{folder}` is not a folder: use on, off, or a folder")

    @property
    def loras(self) -> tuple[str, ...]:
        """The entries of ``lora``, one by one."""
        if self.lora is None:
            return ()
        return (str(self.lora),) if isinstance(self.lora, str | Path) else tuple(map(str, self.lora))

    def applied_to(self, card: Card) -> Card:
        """The card with its autoencoder's tiling replaced, if a tiling was given.

        Raises:
            RequestError: The autoencoder is never tiled.
        """
        if self.tiling is None:
            return card
        if not card.part("vae").tilings:
            raise RequestError(
                f"tiling `{self.tiling}` was asked for, and the autoencoder of `{card.id}` is never tiled"
            )
        vae = dataclasses.replace(card.vae, params=dict(card.vae.params) | {"tiling": self.tiling})
        return dataclasses.replace(card, vae=vae)

    def changed(self, **values: Any) -> Self:
        """The same with some values replaced."""
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(RunOptions):
    """What to plan for: a clip, a machine, and how it would run; None = the card's default, or this machine."""

    width: int | None = option(None, "width in pixels")
    height: int | None = option(None, "height in pixels")
    seconds: float | None = option(
        None, "length; 0 plans a still image", flags=("--seconds",), short="Length; 0 plans a still image."
    )
    overlap: float | str | None = option(
        None,
        "of a clip longer than the model's longest, what each window knows of the one before",
        flags=("--overlap",),
        short="Of longer clips, what each window knows of the one before, as 0.5s or 12 frames.",
        metavar="TIME",
    )
    upscale: str | float | None = option(
        None,
        "size of the result of a second stage, `1920x1080`, or a factor, `2`",
        flags=("--upscale",),
        short="Size of the result of a second stage: WIDTHxHEIGHT, or a factor such as 2.",
        metavar="SIZE",
    )
    upscale_strength: float | None = option(
        None,
        "the time of the sampler that the second stage begins at",
        flags=("--upscale-strength",),
        short="With --upscale: how far the second stage changes the clip, above 0 to 1.",
    )
    branch: LoraSpecs | None = option(
        None,
        "files of branches that work at all steps",
        flags=("--branch",),
        short="File of a control or reference branch; may be repeated.",
        metavar="FILE",
    )
    steps: int | None = option(None, "steps of the sampler", flags=("--steps",), short="Steps of the sampler.")
    guidance: float | None = option(
        None,
        "classifier-free guidance scale; 1 disables it and halves the time",
        flags=("--guidance",),
        short="Classifier-free guidance scale; 1 disables it and halves the time.",
    )
    fps: str | None = option(
        None,
        "of models that make keyframes, `low`, `medium` or `high`",
        flags=("--fps",),
        short="For models that make keyframes: low, medium or high.",
    )
    memory: str | None = option(
        None,
        "`12GB`: plan for a GPU with that much memory instead of this machine",
        flags=("--memory",),
        short="Plan for a GPU with that much memory, such as 12GB, instead of this machine.",
    )
    gpus: int | None = option(
        None,
        "that many processes, each on a GPU of its own",
        flags=("--gpus",),
        short="Plan for that many processes, each on a GPU of its own.",
        most=PROCESSES,
        least=1,
    )

    @property
    def branches(self) -> tuple[str, ...]:
        """The entries of ``branch``, one by one."""
        if self.branch is None:
            return ()
        return (str(self.branch),) if isinstance(self.branch, str | Path) else tuple(map(str, self.branch))

    def run(self) -> RunOptions:
        """How it would run."""
        return RunOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(RunOptions)})


def spelled_out(kind: Callable[P, RunOptions]) -> Callable[[Callable[..., Told]], Callable[..., Told]]:
    """Decorate a function with `**options` so that its help and signature list the options one by one.

    Args:
        kind: The dataclass of the options. In the docstring, its fields take the place of the line `options: …`.

    Returns:
        The decorator.
    """

    def around(function: Callable[..., Told]) -> Callable[..., Told]:
        signature = inspect.signature(function)
        assert isinstance(kind, type)
        options = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=own + options)  # type: ignore[attr-defined]
        lines = (function.__doc__ or "").splitlines()
        function.__doc__ = "\n".join(described(kind) if line.strip().startswith("options:") else line for line in lines)
        return function

    return around
