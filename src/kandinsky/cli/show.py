"""`kandinsky show`: a model's card, or how a result was made."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import emit_json
from kandinsky.errors import RequestError
from kandinsky.printing import escaped


def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE", help="A catalogue id, a file this program wrote, or a branch.", autocompletion=model_ids
        ),
    ],
    concepts: Annotated[
        bool, typer.Option("--concepts", help="List what a model with a closed vocabulary can show, such as Nano.")
    ] = False,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Of these, what the text speaks of.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's card and what it accepts; how a file was made, the command to repeat it last; or a branch."""
    path = Path(what)
    if concepts or search is not None:
        _concepts(what, search or "", as_json)
    elif what in catalogue.cards() or not (path.exists() or path.suffix or "/" in what):
        _card(catalogue.find(what), as_json)
    else:
        _result(path, as_json)


def _concepts(model: str, text: str, as_json: bool) -> None:
    from kandinsky.weights.locate import locate_parts

    source = catalogue.source_of(model)
    component = source.card.components.get("text")
    list_all = None if component is None else catalogue.part(component.kind).vocabulary
    if component is None or list_all is None:
        raise RequestError(f"`{escaped(model)}` has no list of what it can show: its prompts are free text")
    files = locate_parts(component, root=source.root, model=source.name)
    found = list_all()(component, files, text)
    if as_json:
        emit_json({"model": source.name, "concepts": found})
        return
    if not found:
        raise RequestError(f"`{escaped(model)}` knows nothing by `{escaped(text)}`: leave out `--search` for all of it")
    width = max(len(names[0]) for names in found)
    for first, *others in found:
        print(f"{first.ljust(width)}  {', '.join(others)}".rstrip())


def _result(path: Path, as_json: bool) -> None:
    from kandinsky.media import recipe as recipes
    from kandinsky.weights.branch_files import is_branch, read_branch

    if is_branch(path):
        told = read_branch(path).told()
        if as_json:
            emit_json({"path": str(path), "branch": told})
        else:
            _print_table(told)
        return
    recipe = recipes.read(path)
    command = recipes.command(recipe, path)
    if as_json:
        emit_json({"path": str(path), "recipe": recipe, "command": command})
        return
    _print_table(recipe)
    print()
    print(command)


def _card(card: catalogue.Card, as_json: bool) -> None:
    values = catalogue.to_dict(card)
    if as_json:
        emit_json(values)
        return
    from kandinsky.engine.accepts import accepted

    print("accepts")
    _print_table({name.replace("_", "-"): allowed for name, allowed in accepted(card).items()}, "  ")
    print()
    _print_table(values)


def _print_table(values: Mapping[str, Any], indent: str = "") -> None:
    """Print nested plain values as lines; empty ones are skipped."""
    width = max((len(escaped(key)) for key in values), default=0)
    for key, value in values.items():
        name = escaped(key)
        if isinstance(value, dict) and value:
            print(f"{indent}{name}")
            _print_table(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and all(isinstance(entry, dict) for entry in value):
            for entry in value:
                print(f"{indent}{name}")
                _print_table(entry, indent + "  ")
        elif isinstance(value, list | tuple) and sum(map(len, map(str, value))) > 100:
            # words line by line, numbers as they fit
            is_numbers = all(isinstance(entry, int | float) for entry in value)
            for entry in textwrap.wrap(", ".join(map(str, value)), 100) if is_numbers else value:
                print(f"{indent}{name.ljust(width)}  {escaped(entry)}")
        elif value not in ("", None, {}, [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            print(f"{indent}{name.ljust(width)}  {escaped(text)}")
