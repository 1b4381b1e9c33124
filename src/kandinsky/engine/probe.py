"""A few blocks of a model's transformer at the size of its default request, to measure choices that are of a network.

Which way to run both passes of guidance, or blocks, is faster depends on how much work a call is; so that is measured
by the network itself, with random weights: nothing of the model is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.diffusion.guidance import Denoising, Guidance, Pairing
from kandinsky.engine.attention import attention_for
from kandinsky.engine.build import bare_network
from kandinsky.engine.request import resolve
from kandinsky.model.card import Card
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.runtime.compiling import compiled
from kandinsky.runtime.graphs import Graphed
from kandinsky.runtime.placement import Precision
from kandinsky.weights.made_up import fill

DIGITS = 8
MOST_TOKENS = 2048  # of a pass: above, calls are so few to the work that nothing between them shows
Ways = dict[str, dict[str, Callable[[], object]]]


def measured(card: Card) -> str:
    """What of a card ``ways`` reads besides sizes: cards for which it is the same may share what was measured.

    Returns:
        The kind of network, and digits of its hyper-parameters and of how its passes run; how many blocks it has does
        not count.
    """
    part, job = card.part("dit"), resolve(Request(card.id, "any", seed=0), card, needs_image=False)
    params = {name: one for name, one in card.dit.params.items() if part.depth is None or name != part.depth.name}
    attention = str(attention_for(card, job.sampling, "auto"))
    facts = [params, Guidance(job.guidance).is_on, attention, job.sampling.condition]
    told = json.dumps(facts, sort_keys=True, default=str)
    return f"{card.dit.kind} {hashlib.sha256(told.encode()).hexdigest()[:DIGITS]}"


def ways(card: Card, precision: Precision, device: torch.device, tokens: int) -> Ways:
    """What is measured: for each choice its ways, the default one first; nothing where it cannot matter.

    Args:
        card: The model.
        precision: Its compute type.
        device: Where it runs.
        tokens: Of a pass, as in ``tuning.Shape``.
    """
    part = card.part("dit")
    job = resolve(Request(card.id, "any", seed=0), card, needs_image=False)
    guided = Guidance(job.guidance)
    bind = part.bind
    if bind is None or part.depth is None or tokens > MOST_TOKENS:
        return {}
    kept = min(part.depth.kept, part.depth.count()(card.dit))
    few = dataclasses.replace(card.dit, params=dict(card.dit.params) | {part.depth.name: kept})

    def make() -> Any:
        with torch.device("meta"):
            net = bare_network(part, few, Path())
        return fill(net.to(precision.compute).to_empty(device=device)).eval().requires_grad_(False)

    net = make()
    generator = torch.Generator().manual_seed(0)
    width, pooled = net.params.text_widths
    x = {VIDEO: torch.randn(1, *job.latent.as_tuple(), generator=generator).to(device)}
    t = torch.tensor(0.5)
    # lengths differ, as those of a prompt and of an empty one do
    texts = [
        TextEmbeddings(torch.randn(1, count, width, generator=generator), torch.randn(1, pooled, generator=generator))
        for count in (PROMPT_TOKENS, PROMPT_TOKENS // 2)
    ]

    def passes(net: nn.Module, *, together: bool = False) -> list[Denoiser]:
        known, shared = Known(), dict[object, object]()
        spec = attention_for(card, job.sampling, "auto", device.type)
        return [
            bind()(
                net,
                known,
                Pass(text.to(device), condition=job.sampling.condition, rope_scale=job.sampling.rope_scale,
                     attention=spec, shared=shared, together=together),
            )
            for text in texts
        ]  # fmt: skip

    def call(work: Denoising[Mapping[str, Tensor]]) -> Callable[[], object]:
        def called() -> object:
            with torch.no_grad():
                return work(x, t)

        return called

    one, other = passes(net, together=True)
    found: Ways = {}
    apart: Denoising[Mapping[str, Tensor]] = guided.guide(*passes(net))
    if guided.is_on and isinstance(one, Pairing) and one.pair(other) is not None:
        together: Denoising[Mapping[str, Tensor]] = guided.guide(*passes(net, together=True))
        found["guidance"] = {"apart": call(apart), "together": call(together)}
    if device.type == "cuda":  # on a processor a program takes a minute to be compiled, and saves less than our kernels
        by_program: Denoising[Mapping[str, Tensor]] = guided.guide(*passes(compiled(make)))
        found["blocks"] = {"eager": call(apart), "compiled": call(by_program), "graph": call(Graphed(apart))}
    return found
