"""Full-size models on a CPU that cannot hold them, or not run them within an hour: fewer blocks, one frame.

The blocks of a network are alike, so a few of them show the rate of all, and the time of the whole follows
approximately. This is done only with random weights, if nobody chose another size, and it is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kandinsky.bench.random_weights import NO_FILES, changed
from kandinsky.engine.build import bare_network
from kandinsky.engine.options import RunOptions
from kandinsky.engine.plan import Plan, plan_resolved
from kandinsky.engine.request import Job, resolve
from kandinsky.model.card import Card
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.model.values import Request
from kandinsky.runtime import devices
from kandinsky.runtime.budget import gigabytes

LIMIT_S = 1800.0  # of one run of the sampling loop, as planned


@dataclass(frozen=True, slots=True)
class Shortened:
    """What is measured instead of the whole.

    Attributes:
        changes: Hyper-parameters, as for ``random_pipeline``.
        request: Fields of ``Request``.
        times: Factor from a stage's time to that of the whole.
        said: Description; empty if nothing is shortened.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    said: str = ""


def shorten(
    card: Card, request: Mapping[str, Any], *, device: str | None, dtype: str | None, offload: str
) -> Shortened:
    """Choose what this machine can measure of a model; nothing is shortened that fits or runs on an accelerator.

    Args:
        card: The model.
        request: Fields of ``Request``; a length that is given is kept.
        device: As for ``load``.
        dtype: As for ``load``.
        offload: As for ``load``.

    Returns:
        What to measure.

    Raises:
        RequestError: A generation would be refused.
        BackendError: A device or package is not available.
    """
    if not devices.choose_device(device).startswith("cpu") or card.part("dit").flops is None:
        return Shortened()
    whole = _resolved(card, request)
    plan = plan_resolved(whole, RunOptions(device=device, dtype=dtype, offload=offload))
    if plan.fits is not False and plan.seconds < LIMIT_S:
        return Shortened()
    changes: dict[str, Any] = {}
    parts: list[str] = []
    times: dict[str, float] = {}
    for part in ("dit", "text"):
        component = card.component(part)
        depth = card.part(part).depth
        if depth is None:
            continue
        count = depth.count()(component)
        if count > depth.kept:
            changes[f"{part}.{depth.name}"] = depth.kept
            parts.append(f"{part}.{depth.name} {depth.kept} of {count}")
            times[part] = count / depth.kept
    still = request.get("seconds") is None and card.clip.min_seconds == 0 and whole.shape.frames > 1
    asked = {"seconds": 0} if still else {}
    short = _resolved(card, {**request, **asked})
    if still:
        parts.append(f"frames 1 of {whole.shape.frames}")
        times["vae"] = times["write"] = float(whole.shape.frames)
    dit = _dit_flops(card, whole), _dit_flops(changed(card, changes), short)
    if dit[0] and dit[1]:
        times["dit"] = dit[0] / dit[1]
    return Shortened(changes, asked, times, f"measured {', '.join(parts)}, since the whole {_reason(plan)}")


def _resolved(card: Card, request: Mapping[str, Any]) -> Job:
    return resolve(Request(model=card.id, prompt="any", seed=0, **request), card, needs_image=False)


def _dit_flops(card: Card, resolved: Job) -> int | None:
    flops = card.part("dit").flops
    if flops is None:
        return None
    with torch.device("meta"):
        params = bare_network(card.part("dit"), card.dit, NO_FILES).params
    return flops()(params, resolved.latent.as_tuple(), PROMPT_TOKENS)


def _reason(plan: Plan) -> str:
    needs = f"takes {gigabytes(plan.placements[plan.offload])} with offload `{plan.offload}`"
    hours = f"{plan.seconds / 3600:.1f} h for one run"
    return f"{needs} and about {hours} on this processor"
