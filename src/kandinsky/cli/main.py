"""The command `kandinsky`: registers one thin file per command, and turns errors into one clear line and an exit code.

stdout carries data (the path of a result comes last), stderr carries messages. Nothing here loads torch: the commands
import what they need when they run.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import PurePath
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import kandinsky
from kandinsky.cli import failures, settings, signals
from kandinsky.cli.progress import hush_extensions
from kandinsky.cli.streams import in_flags, say, usable
from kandinsky.errors import BackendError, Cancelled, RequestError, WeightsError
from kandinsky.printing import escaped, shortened, subject
from kandinsky.runtime import threads

COMMANDS = (
    "generate",
    "live",
    "models",
    "show",
    "plan",
    "decode",
    "interpolate",
    "download",
    "doctor",
    "tune",
    "convert",
    "soup",
    "extract",
    "conformance",
    "bench",
    "train",
    "calibrate",
    "serve",
    "worker",
)
LIGHT = (
    "models",
    "show",
    "plan",
    "download",
    "install",
    "serve",
    "list",
    "cancel",
    "retry",
    "prune",
    "board",
    "compare",
    "export",
)  # no torch
FAILED, INTERRUPTED = 1, 130
PROGRAM = "kandinsky"
COMPLETION = "_KANDINSKY_COMPLETE"
# What may hold line breaks, or nothing; every other value names or measures something.
TEXTS = ("prompt", "negative_prompt", "expanded_prompt")
# typer brings click along, under a name that differs between its versions; its usage error is BadParameter's parent.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


class Command(TyperCommand):
    """A command whose values are checked before it runs.

    Attributes:
        reports_settings: Whether it shows what is wrong with the defaults instead of refusing to run.
    """

    reports_settings = False

    def invoke(self, ctx: Any) -> Any:
        found: settings.Settings = ctx.find_root().obj
        if found.problem is not None and not self.reports_settings:
            raise found.problem
        for parameter in self.get_params(ctx):
            if parameter.name not in TEXTS:
                values = ctx.params.get(parameter.name)
                for value in values if isinstance(values, list | tuple) else (values,):
                    _check_word(value, parameter)
        if ctx.info_name not in LIGHT:
            failures.check_limit()
        try:
            return super().invoke(ctx)
        except (RequestError, WeightsError, BackendError) as error:
            if used := [one for p in self.params if (one := _default_of(ctx, p.name))]:
                origins = ", ".join(f"`{one.option}` from {one.origin}" for one in used)
                error.hint = f"{error.hint}; defaults: {origins}" if error.hint else f"defaults: {origins}"
            raise


class Report(Command):
    """A command that runs even if the defaults are wrong."""

    reports_settings = True


def build(only: str | None = None) -> typer.Typer:
    """The application with all its commands, or with one of ``COMMANDS``: reading all signatures takes a while."""
    app = typer.Typer(
        help="Kandinsky: the whole video family in one command. Start with: kandinsky generate 'a panda waves'",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        # Plain help: it is quick to print, and the documentation has the same text.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name in COMMANDS if only is None else (only,):
        app.command(name, cls=Report if name == "doctor" else Command)(
            getattr(import_module(f"kandinsky.cli.{name}"), name)
        )
    if only is not None:
        return app
    data = typer.Typer(
        help="Fetch, curate, build and encode training data.", no_args_is_help=True, rich_markup_mode=None
    )
    data.callback()(_group)
    for name in ("curate", "encode", "nano"):
        data.command(name, cls=Command)(getattr(import_module("kandinsky.cli.data"), name))
    app.add_typer(data, name="data")
    app.add_typer(import_module("kandinsky.cli.evaluate").build(Command), name="evaluate")
    comfyui = typer.Typer(help="Nodes for ComfyUI.", no_args_is_help=True, rich_markup_mode=None)
    comfyui.callback()(_group)
    comfyui.command("install", cls=Command)(import_module("kandinsky.cli.comfyui").install)
    app.add_typer(comfyui, name="comfyui")
    jobs = typer.Typer(
        help="List and change the jobs of servers and prompt files.", no_args_is_help=True, rich_markup_mode=None
    )
    jobs.callback()(_group)
    module = import_module("kandinsky.cli.jobs")
    for name in ("list", "show", "cancel", "retry", "prune"):
        jobs.command(name, cls=Command)(getattr(module, f"{name}_jobs" if name in ("list", "prune") else f"{name}_job"))
    app.add_typer(jobs, name="jobs")
    return app


def _group() -> None:
    pass


def _version(value: bool) -> None:
    if value:
        print(f"kandinsky {kandinsky.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@cache
def root_command(only: str | None = None) -> Any:
    """The application as what runs it, made once; ``only`` as for ``build``."""
    return typer.main.get_command(build(only))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name; those of this process if omitted.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted.
    """
    threads.prepare()
    with usable() as stdout, signals.as_interrupts():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("note: %(message)s"))
        handler.addFilter(lambda _record: subject() is not None)
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        hush_extensions()
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        try:
            stdout.flush()
        except BrokenPipeError:
            return code
        if stdout.error is not None:
            say(f"error: standard output cannot be written: {stdout.error.strerror}")
        return code or (FAILED if stdout.error is not None else 0)


def _run(arguments: list[str]) -> int:
    try:
        return _call(arguments)
    except typer.Exit as ending:
        return ending.exit_code
    except _ClickError as error:
        return _usage(error)
    except Cancelled as error:
        return _interrupted(str(error))
    except (KeyboardInterrupt, typer.Abort) as error:
        return _interrupted(str(error) or "nothing half-written was left behind")
    except BrokenPipeError:
        return 0
    except Exception as error:
        known = failures.explained(error)
        if known is None:
            raise
        say(f"error: {in_flags(str(known))}")
        if known.hint:
            say(f"hint: {in_flags(known.hint)}")
        return known.exit_code


def _call(arguments: list[str]) -> int:
    is_set = settings.are_some()
    # whatever sets a default is checked against the options of all commands
    alone = bool(arguments) and arguments[0] in COMMANDS and not is_set and COMPLETION not in os.environ
    command = root_command(arguments[0] if alone else None)
    if COMPLETION in os.environ:
        command.main(arguments, PROGRAM)  # prints words and exits
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise RequestError(
                f"argument `{escaped(argument)}` is not valid UTF-8: type it in a UTF-8 terminal, or rename the file"
            )
    found = settings.read(command) if is_set else settings.Settings()
    with command.make_context(PROGRAM, arguments, default_map=found.default_map(), obj=found) as ctx:
        code = command.invoke(ctx)
    return code if isinstance(code, int) else 0


def _check_word(value: object, parameter: Any) -> None:
    """Refuse a name that is empty or holds control characters.

    Raises:
        RequestError: It is.
    """
    if not isinstance(value, str | PurePath):
        return
    text, name = str(value), parameter.opts[0]
    if parameter.param_type_name == "argument":
        name = parameter.metavar or name
    if not text:
        raise RequestError(f"`{name}` is empty: leave it out, or give a value")
    if escaped(text) != text:
        raise RequestError(f"`{name}` holds control characters, `{text}`: use plain text")


def _default_of(ctx: Any, parameter: str) -> settings.Setting | None:
    """Where a parameter's value comes from, if neither from the command line nor from the program."""
    source = ctx.get_parameter_source(parameter)
    if source is None or source.name != "DEFAULT_MAP":
        return None
    found: settings.Settings = ctx.find_root().obj
    return found.of(ctx.command_path.removeprefix(f"{PROGRAM} "), parameter)


def _interrupted(what: str) -> int:
    say(f"interrupted: {what}")
    return INTERRUPTED


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    message = _refused_value(error) or " ".join(error.format_message().split()).rstrip(".")
    say(f"error: {message[:1].lower()}{message[1:]}")
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is not None and isinstance(error, _UsageError):
        default = _default_of(context, parameter.name) if parameter is not None else None
        if default is not None:
            say(f"hint: the value comes from {default.origin}")
        else:
            say(f"hint: {_quoting(message, context)}`{context.command_path} --help` lists its arguments and options")
    return int(getattr(error, "exit_code", 2))


def _quoting(message: str, context: Any) -> str:
    """What is said first to those who forgot the command, or the quotes around a prompt."""
    if message.startswith("No such command"):
        return "`kandinsky generate 'a panda waves'` makes a clip; "
    if message.startswith("Got unexpected extra argument") and context.info_name == "generate":
        return "a prompt of several words stands in quotes, `kandinsky generate 'a panda waves'`; "
    return ""


# What typer checks itself, by its names; it says neither what was given nor, in plain words, what is allowed.
_REFUSED = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}


def _refused_value(error: Any) -> str:
    """A value of a wrong form in our words; nothing where the error is about something else."""
    cause, parameter = error.__cause__, getattr(error, "param", None)
    details: dict[str, Any] = cause.errors()[0] if hasattr(cause, "errors") else {}
    words = _REFUSED.get(str(details.get("type")))
    if words is None or parameter is None:
        return ""
    allowed = words.format(**details.get("ctx") or {})
    return f"{parameter.opts[0]} {allowed}, not `{shortened(details['input'])}`"


class _OneLine(logging.Formatter):
    """Formats notes on one line each, since their text may come from a file; a traceback keeps its lines.

    Options are named by their flags, and of several results each note says which it is about.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        about = f"{subject()}: " if subject() else ""
        record.message = f"{about}{in_flags(record.message)}"
        return escaped(super().formatMessage(record))
