"""What a request offers to split over processes. Imports no torch, so that an unsuitable layout is refused at once."""

from __future__ import annotations

import dataclasses

from kandinsky.engine.attention import attention_for
from kandinsky.engine.request import Job, resolve
from kandinsky.errors import RequestError
from kandinsky.model.card import Card
from kandinsky.model.values import Request
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.parallel.layout import Demand, Layout, check
from kandinsky.weights.lora_files import LoraSpecs


def demand_of(resolved: Job, attention: AttentionSpec, clips: int = 1) -> Demand:
    """What there is to split in a batch of such requests."""
    card, is_guided = resolved.card, abs(resolved.guidance - 1.0) > 1e-6
    split = card.part("dit").split
    alone = ""
    if card.roll is not None:
        alone = f"`{card.id}` makes its clips along time, by one process"
    elif resolved.long is not None:
        alone = "clips made in windows are made by one process"
    elif resolved.upscale is not None:
        alone = "a clip is made larger by one process"
    beside = next((f"a {one.kind} branch" for one in resolved.conditions if one.branch is not None), "")
    if split is None:
        bare = Demand(heads=1, hidden=1, tokens=1, has_tokens=False)
        return dataclasses.replace(bare, is_guided=is_guided, clips=clips, alone=alone)
    demand = split.demand()(card.dit, resolved.latent)
    is_sparse = attention.type != "dense"
    return dataclasses.replace(demand, is_guided=is_guided, is_sparse=is_sparse, clips=clips, alone=alone, whole=beside)


def demand_of_card(card: Card, attention: str) -> Demand:
    """The same for the card's default request, and any number of clips.

    Raises:
        RequestError: The attention does not suit the card.
    """
    resolved = resolve(Request(card.id, "any", seed=0), card, needs_image=False)
    return demand_of(resolved, attention_for(card, resolved.sampling, attention), clips=0)


def check_fits(layout: Layout, resolved: Job, attention: AttentionSpec, clips: int = 1) -> None:
    """Check a running team's layout against a request; without guidance some processes are merely idle.

    Args:
        layout: The team's layout.
        resolved: The request.
        attention: Its visual self attention.
        clips: Number of clips in the batch.

    Raises:
        RequestError: The layout does not divide the request evenly.
    """
    demand = demand_of(resolved, attention, clips)
    check(layout, dataclasses.replace(demand, is_guided=demand.is_guided or layout.cfg > 1))


def check_whole(layout: Layout, *, offload: str, lora: LoraSpecs | None, quantize: bool) -> None:
    """Refuse options that need a whole transformer on every process.

    Args:
        layout: How the work is split.
        offload: The placement.
        lora: The LoRAs.
        quantize: Whether weights are quantised.

    Raises:
        RequestError: The layout cuts the weights, and an option needs them whole.
    """
    given = {f"offload `{offload}`": offload != "none", "a LoRA": bool(lora), "quantised weights": quantize}
    if refused := [name for name, is_given in given.items() if is_given]:
        raise RequestError(
            f"layout `{layout}` leaves each process a part of the weights, and {refused[0]} needs them whole: leave "
            "`tp` and `fsdp` out, or that"
        )
