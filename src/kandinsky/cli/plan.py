"""`kandinsky plan`: what a generation will need, before anything is fetched or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.chosen import Bare, Same, chosen_model
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit_json, in_flags
from kandinsky.engine.options import PlanOptions
from kandinsky.model.values import Request

if TYPE_CHECKING:
    from kandinsky.engine.plan import Plan

PLANNED = Flags(
    PlanOptions,
    only=(
        "seconds", "overlap", "upscale", "upscale_strength", "branch", "steps", "guidance", "fps", "device", "dtype",
        "offload", "attention", "quantize",
        "tiling", "parallel", "memory", "gpus",
    ),
    help={
        "offload": "none, module or block; what fits if omitted.",
        "parallel": "Layout of the processes, as tp=4; chosen if omitted.",
    },
)  # fmt: skip


@rendered(planned=PLANNED, asked=Flags(Request, only=("cache",)))
def plan(
    context: typer.Context,
    model: Bare = None,
    same: Same = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    planned: dict[str, Any],
    asked: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a generation needs: gigabytes to download, peak memory, time, placement. Downloads and loads nothing."""
    from kandinsky.engine.request import parse_size

    width, height = (None, None) if size is None else parse_size(size)
    made = catalogue.plan(
        chosen_model(context, model, same), width=width, height=height, **planned, **asked
    )  # fmt: skip
    show_plan(made, as_json=as_json)


def show_plan(made: Plan, *, as_json: bool, clips: int = 1) -> None:
    """Print a plan.

    Args:
        made: The plan.
        as_json: Print one JSON object.
        clips: Number of results that share it.
    """
    from kandinsky.engine.plan_text import described

    if as_json:
        emit_json({**made.to_dict(), "clips": clips})
        return
    for line in described(made, catalogue.cards().get(made.model), clips=clips):
        print(in_flags(line))
