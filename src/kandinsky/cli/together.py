"""A command that several processes run at once, as `torchrun` starts them: one speaks, all end when one fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from kandinsky.runtime.parallel import launch

P = ParamSpec("P")
T = TypeVar("T")


def together(command: Callable[P, T]) -> Callable[P, T]:
    """The command, with its errors said by one process; alone it is what it was."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        from kandinsky.cli.main import say

        with launch.together(say):
            return command(*args, **kwargs)
        raise AssertionError  # ``together`` passes every exception on

    return run
