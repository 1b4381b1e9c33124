"""`kandinsky.plan`: what a generation will need, said before anything is fetched or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kandinsky.pipelines import sources
from kandinsky.pipelines.request import Resolved, resolve
from kandinsky.runtime.plan import Plan, parse_memory, plan_clip
from kandinsky.runtime.quantise import parse
from kandinsky.types import Request


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
) -> Plan:
    """What one clip of a model needs; no prompt and no image is needed, since they change nothing here.

    Args:    as for a generation; None = the card's default, and for ``offload`` the placement that fits.
             memory: `12GB`: plan for a card of that size instead of this machine's.
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
                         memory=memory)  # fmt: skip


def plan_resolved(
    resolved: Resolved,
    *,
    root: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    quantize: str | Mapping[str, str] | None = None,
    memory: str | None = None,
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
    )
