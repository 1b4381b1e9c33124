"""`kandinsky tune`: which backends are fastest on this machine."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from kandinsky.cli.chosen import Bare, Same, chosen_model
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit_json
from kandinsky.engine.options import RunOptions

RUN = Flags(RunOptions, only=("device", "dtype"))


@rendered(run=RUN)
def tune(
    context: typer.Context,
    model: Bare = None,
    same: Same = None,
    *,
    run: dict[str, Any],
    show: Annotated[bool, typer.Option("--show", help="Only print what was measured on this machine.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what was measured on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure backends for a model on this machine, and keep what is fastest for `--backends tuned`."""
    from kandinsky.runtime import tuning

    if clear:
        was_there = tuning.forget()
        print("nothing was kept" if not was_there else "forgotten")
        return
    if not show:
        from kandinsky import catalogue
        from kandinsky.engine.build import places_for, shape_of, ways_of
        from kandinsky.runtime.placement import Precision

        card = catalogue.source_of(chosen_model(context, model, same)).card
        options = RunOptions(**run)
        options.check()
        device = places_for(options, card.components)["dit"]
        precision = Precision.choose(options.dtype, device)
        tuning.tune(shape_of(card, precision, device), partial(ways_of, card, precision, device))
    found = tuning.answers()
    if as_json:
        emit_json(found, indent=1)
        return
    print(f"kept in {tuning.path() or 'nothing: KANDINSKY_CACHE is off'}")
    for name, answer in found.items():
        print(name)
        for choice, seconds in answer["seconds"].items():
            best = answer["chosen"].get(choice)
            told = ", ".join(f"{way} {taken * 1e3:.2f} ms" for way, taken in seconds.items())
            verdict = f"→ {best}" if best else "→ as by default" if choice in tuning.WAYS else "(OMP_NUM_THREADS)"
            print(f"  {choice:<10} {told} {verdict}")
