"""What a job will need, said before anything is fetched or loaded."""

from __future__ import annotations

from pathlib import Path

from kandinsky.engine.attention import attention_for
from kandinsky.engine.options import RunOptions
from kandinsky.engine.parallel import check_whole, demand_of
from kandinsky.engine.request import Job
from kandinsky.errors import RequestError
from kandinsky.runtime.parallel.layout import AUTO, Layout, read, settle
from kandinsky.runtime.plan import Plan, parse_memory, plan_clip
from kandinsky.runtime.plan_parallel import Company
from kandinsky.runtime.quantise import parse


def plan_resolved(
    job: Job,
    options: RunOptions | None = None,
    *,
    root: Path | None = None,
    memory: str | None = None,
    gpus: int | None = None,
) -> Plan:
    """What a job needs that was already checked against its card.

    Args:
        options: device, type, placement, quantisation and layout; an ``offload`` that is None is chosen.
        root: as in ``model.card.Source``.
        memory: `12GB`: plan for a card of that size instead of this machine's.
        gpus: so many processes, each on a card of its own; their layout is chosen where only their number is given.

    Raises: RequestError or BackendError as a generation would.
    """
    options = options or RunOptions()
    quantize = parse(options.quantize)
    device = options.device if isinstance(options.device, str) else None
    return plan_clip(
        job.card,
        job.shape,
        job.latent,
        root=root,
        clip_seconds=job.seconds,
        passes=job.steps * (1 if job.guidance == 1 else 2),
        device=device,
        dtype=None if options.dtype is None else str(options.dtype),
        offload=options.offload,
        quantize=quantize,
        memory=None if memory is None else parse_memory(memory),
        company=_company(job, options, gpus, quantize=bool(quantize)),
    )


def _company(job: Job, options: RunOptions, gpus: int | None, *, quantize: bool) -> Company | None:
    """The processes that would share the work. Raises: RequestError for a layout that does not fit."""
    parallel = options.parallel
    if parallel in (None, AUTO) and gpus is None:
        return None
    if gpus is not None and gpus < 1:
        raise RequestError(f"`{gpus}` GPUs make nothing: use 1 or more")
    card = job.card
    count = gpus
    if count is None:
        asked = parallel if isinstance(parallel, Layout) else read(parallel or AUTO)
        # as `settle` reads it: shards alone bring the tokens along
        count = asked.size * (asked.fsdp if asked.context == 1 else 1)
    demand = demand_of(job, attention_for(card, job.sampling, "auto"), clips=0)
    layout, why = settle(parallel, count, demand)
    if layout.cuts_weights:
        check_whole(layout, offload=options.offload or "none", lora=None, quantize=quantize)
    if card.keyframes is not None:  # every process runs all stages
        return Company(layout, why, tuple(card.components))
    return Company(layout, why, ("dit", "vae") if card.part("vae").decodes_together else ("dit",))
