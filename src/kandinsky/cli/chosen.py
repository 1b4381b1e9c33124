"""The model of commands that accept its id as an argument as well as with `--model`."""

from __future__ import annotations

from typing import Annotated

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.errors import RequestError

Bare = Annotated[
    str | None,
    typer.Argument(
        metavar="ID", help="Catalogue id, see `kandinsky models`; default: nano2-t2v.", autocompletion=model_ids
    ),
]
Same = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="ID", help="The same, as for other commands.", autocompletion=model_ids),
]


def chosen_model(context: typer.Context, bare: str | None, option: str | None) -> str:
    """The model that was given, else the default.

    Args:
        context: Context of the command.
        bare: Its argument.
        option: Its ``--model``, which may come from the environment or a file; then the argument takes precedence.

    Returns:
        The model's name.

    Raises:
        RequestError: Two different ones were given.
    """
    source = context.get_parameter_source("same")
    is_typed = source is not None and source.name == "COMMANDLINE"
    if is_typed and bare is not None and bare != option:
        raise RequestError(f"both `{bare}` and `--model {option}` were given: use one")
    return bare or option or catalogue.DEFAULT_MODEL
