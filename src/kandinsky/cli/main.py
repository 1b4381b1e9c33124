"""The command `kandinsky`: registers one thin file a command, and turns errors into one clear line and an exit code.

stdout carries data (the path of a result stands last), stderr carries talk. Nothing here loads torch: the commands
import what they need when they run.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

import kandinsky
from kandinsky.cli.progress import hush_extensions
from kandinsky.errors import KandinskyError

COMMANDS = (
    "generate",
    "models",
    "show",
    "plan",
    "decode",
    "interpolate",
    "download",
    "doctor",
    "convert",
    "conformance",
    "bench",
    "train",
    "evaluate",
    "calibrate",
)
INTERRUPTED = 130
# typer brings click along, under a name that differs between its versions; its usage error is BadParameter's parent.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def build() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        help="Kandinsky: the whole video family in one command. Start with: kandinsky generate 'a panda waves'",
        no_args_is_help=True,
        add_completion=False,
        # Plain help: it is quick to print, and the same text stands in the documentation.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name in COMMANDS:
        app.command(name)(getattr(import_module(f"kandinsky.cli.{name}"), name))
    app.add_typer(import_module("kandinsky.cli.data").app, name="data")
    return app


def _version(value: bool) -> None:
    if value:
        print(f"kandinsky {kandinsky.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    logging.basicConfig(format="note: %(message)s", stream=sys.stderr, level=logging.WARNING)
    hush_extensions()
    try:
        code = build()(list(sys.argv[1:] if arguments is None else arguments), "kandinsky", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # newer versions of typer turn the interrupt into this code themselves
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except KandinskyError as error:
        say(f"error: {in_flags(str(error))}")
        if error.hint:
            say(f"hint: {in_flags(error.hint)}")
        return error.exit_code
    except _ClickError as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted: nothing half-written was left behind")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `| head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def in_flags(text: str) -> str:
    """A message in the words of the command line: its options are named by their flags."""
    from kandinsky.engine.options import PlanOptions
    from kandinsky.model import option
    from kandinsky.model.values import Request

    return option.in_flags(text, (Request, PlanOptions), {"size": "--size"})


def say(text: str) -> None:
    """One line of talk, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _usage(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())  # type: ignore[attr-defined]
        return 0
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    say(f"error: {message[:1].lower()}{message[1:]}")
    if isinstance(error, _UsageError) and (context := getattr(error, "ctx", None)):
        say(f"hint: `{context.command_path} --help` lists what it takes")
    return int(getattr(error, "exit_code", 2))
