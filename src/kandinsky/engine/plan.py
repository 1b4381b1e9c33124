"""`kandinsky.plan`: what a generation will need, said before anything is fetched or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kandinsky.engine import sources
from kandinsky.engine.attention import attention_for
from kandinsky.engine.parallel import SHARED_DECODERS, check_whole, demand_of
from kandinsky.engine.request import Resolved, resolve
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.runtime.parallel.layout import AUTO, read, settle
from kandinsky.runtime.plan import Plan, parse_memory, plan_clip
from kandinsky.runtime.plan_parallel import Company
from kandinsky.runtime.quantise import parse


def plan(
    model: str,
    *,
    width: int | None = None,
    height: int | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    fps: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    quantize: str | Mapping[str, str] | None = None,
    memory: str | None = None,
    parallel: str | None = None,
    gpus: int | None = None,
) -> Plan:
    """What one clip of a model needs; no prompt and no image is needed, since they change nothing here.

    Args:    as for a generation; None = the card's default, and for ``offload`` the placement that fits.
             memory: `12GB`: plan for a card of that size instead of this machine's.
             gpus: so many processes, each on a card of its own.   parallel: their layout, as for ``load``; chosen where
             only their number is given.
    Raises:  RequestError or BackendError as a generation would.
    """
    request = Request(
        model,
        "any",
        seconds=seconds,
        width=width,
        height=height,
        steps=steps,
        guidance=guidance,
        fps=fps,
        seed=0,
    )
    source = sources.find(model)
    resolved = resolve(request, source.card, needs_image=False)
    return plan_resolved(resolved, root=source.root, device=device, dtype=dtype, offload=offload, quantize=quantize,
                         memory=memory, parallel=parallel, gpus=gpus)  # fmt: skip


def plan_resolved(
    resolved: Resolved,
    *,
    root: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    quantize: str | Mapping[str, str] | None = None,
    memory: str | None = None,
    parallel: str | None = None,
    gpus: int | None = None,
) -> Plan:
    """The plan of a request that was already held against its card; ``root`` as in ``sources.Source``."""
    return plan_clip(
        resolved.card,
        resolved.shape,
        resolved.latent,
        root=root,
        clip_seconds=resolved.seconds,
        passes=resolved.steps * (1 if resolved.guidance == 1 else 2),
        device=device,
        dtype=dtype,
        offload=offload,
        quantize=parse(quantize),
        memory=None if memory is None else parse_memory(memory),
        company=_company(resolved, parallel, gpus, offload=offload, quantize=bool(parse(quantize))),
    )


def _company(
    resolved: Resolved, parallel: str | None, gpus: int | None, *, offload: str | None, quantize: bool
) -> Company | None:
    """The processes that would share the work. Raises: RequestError for a layout that does not fit."""
    if parallel in (None, AUTO) and gpus is None:
        return None
    if gpus is not None and gpus < 1:
        raise RequestError(f"`{gpus}` GPUs make nothing: use 1 or more")
    card = resolved.card
    count = gpus
    if count is None:
        asked = read(parallel or AUTO)
        # as `settle` reads it: shards alone bring the tokens along
        count = asked.size * (asked.fsdp if asked.context == 1 else 1)
    demand = demand_of(resolved, attention_for(card, resolved.sampling, "auto"), clips=0)
    layout, why = settle(parallel, count, demand)
    if layout.cuts_weights:
        check_whole(layout, offload=offload or "none", lora=None, quantize=quantize)
    if card.keyframes is not None:  # every process runs all stages
        return Company(layout, why, tuple(card.components))
    return Company(layout, why, ("dit", "vae") if card.vae.kind in SHARED_DECODERS else ("dit",))
