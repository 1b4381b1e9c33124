"""A loaded model: its card, its networks on their devices, and the options they run under."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kandinsky.diffusion.caching import CacheSettings
from kandinsky.diffusion.guidance import Denoising, X
from kandinsky.engine.attention import attention_for
from kandinsky.engine.branches import LoadedBranches
from kandinsky.media import recipe
from kandinsky.model.card import Card
from kandinsky.model.family import Part
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.native import library
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.graphs import Graphed
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision

if TYPE_CHECKING:
    from kandinsky.engine.request import Job
    from kandinsky.text.store import TextStore

log = logging.getLogger(__name__)


@dataclass
class Context:
    """One model, ready to run; every stage receives it.

    Attributes:
        card: The model's card.
        placement: Holds its networks by name: `text`, `dit`, `vae` and further ones.
        precision: Number types it runs in.
        attention: Choice of visual self attention, as in ``AttentionSpec.chosen``; `auto` is the card's.
        dense_backend: Backend of dense attention where neither that choice nor the card names one.
        name: What ``load`` finds the model by.
        revision: Revision of the weights.
        noise_device: Device of the noise generator. None = CPU, so that a seed means the same result on every machine;
            the official code draws on its CUDA device, and the official calls keep that.
        cache: Step cache of requests that name none.
        adapters: LoRAs of the denoiser.
        branches: Control and reference branches that were loaded.
        text_store: Text embeddings on disk.
        settings: Further entries of every recipe.
        team: The processes that work together; each makes the same calls and gets the same results.
        within: What the denoiser is called within, such as chosen backends.
        together: As in ``Pass``.
        graphs: Whether sampling is played as CUDA graphs where it can be.
        cancelling: Set by any thread to stop the current run.
    """

    card: Card
    placement: Placement
    precision: Precision
    attention: str = "auto"
    dense_backend: str = "auto"
    name: str = ""
    revision: str = "main"
    noise_device: torch.device | None = None
    cache: str | CacheSettings | None = None
    adapters: Adapters = None  # type: ignore[assignment]  # made from the card below
    branches: LoadedBranches = field(default_factory=LoadedBranches)
    text_store: TextStore | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    team: Team = field(default_factory=Team)
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    together: bool | None = None
    graphs: bool = False
    cancelling: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.name = self.name or self.card.id
        self.adapters = self.adapters or Adapters(self.card.id, dict)
        self.settings = dict(self.settings)

    def part(self, name: str) -> Part:
        """What the family says of a network, by its name in the card."""
        return self.card.part(name)

    def computing(self, denoiser: Denoising[X], *, is_steady: bool = False) -> Denoising[X]:
        """A guided denoiser whose calls run ``within``.

        Args:
            denoiser: Of one sampling.
            is_steady: Whether all its calls do the same work on its device, so that they can be recorded.
        """
        run = denoiser
        if self.graphs and is_steady:
            run = Graphed(denoiser)
        elif self.graphs:
            log.info("calls are not recorded as a CUDA graph: something between the blocks looks at what they give")

        def called(x: X, t: Tensor) -> X:
            with self.within():
                return run(x, t)

        return called

    def with_card(self, card: Card) -> Context:
        """The same networks under another card's values."""
        return dataclasses.replace(self, card=card)

    def prompt_of(self, job: Job) -> str:
        """What the text encoder is given: the trigger phrases of the active LoRAs, then the prompt."""
        return self.adapters.trigger + job.text

    def attention_of(self, job: Job) -> AttentionSpec:
        """The visual self attention of a job.

        Raises:
            BackendError: It cannot run on this device.
        """
        device = self.placement.device("dit").type if "dit" in self.placement else None  # it may be absent
        return attention_for(self.card, job.sampling, self.attention, device, dense_backend=self.dense_backend)

    def recipe(
        self, job: Job, cache: Mapping[str, Any] | None = None, kept: float | None = None, *, part: str = "dit"
    ) -> dict[str, Any]:
        """Everything needed to make this result again, as stored in the file.

        Args:
            job: The job.
            cache: The step cache's report.
            kept: Share of the blocks that block-sparse attention computed.
            part: Network whose device is named.

        Returns:
            The recipe, as plain values.
        """
        settings = job.settings() | {"model": self.name} | ({"cache": cache} if cache else {}) | dict(self.settings)
        attention = self.attention_of(job)
        if attention.type != "dense" or attention != AttentionSpec.from_dict(job.sampling.attention):
            settings["attention"] = str(attention)
        if kept is not None:
            settings["kept_blocks"] = round(kept, 4)
        if loras := self.adapters.recipe():
            settings["lora"] = loras
        if self.noise_device is not None and self.noise_device.type != "cpu":
            settings["noise"] = f"{settings['noise']} on {self.noise_device.type}"
        device = str(self.placement.device(part))
        kernels = library.told() if device == "cpu" else None
        return recipe.build(settings, revision=self.revision, dtype=self.precision.name, device=device, kernels=kernels)
