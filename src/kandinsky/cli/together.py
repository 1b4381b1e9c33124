"""A command that several processes run at once, as `torchrun` starts them: one reports, all end when one fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer

from kandinsky.cli import failures
from kandinsky.cli.streams import in_flags, say
from kandinsky.runtime.parallel import launch

P = ParamSpec("P")
T = TypeVar("T")


def together(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command so that its errors are reported by one process; alone it behaves as before."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:

        if launch.World.started().size == 1:
            return command(*args, **kwargs)
        with launch.together(lambda text: say(in_flags(text), keep="\n")):
            try:
                return command(*args, **kwargs)
            except typer.Exit as ending:  # a deliberate exit, with a code
                raise SystemExit(ending.exit_code) from None
            except Exception as error:
                raise failures.explained(error) or error from error
        raise AssertionError  # ``together`` passes every exception on

    return run
