"""Defaults of options: from `KANDINSKY_*` variables and from `~/.config/kandinsky/config.toml`.

Every option of every command can have one, under the option's own name: `--text-cache` is `text_cache` in the file and
`KANDINSKY_TEXT_CACHE` in the environment. In the file, a name at the top applies to all commands, one in the table
`[COMMAND]` to that command. The command line beats the environment, which beats the file; names that are not options
are refused. An option that several commands read differently (`--fps` is a name or a number) takes its default from the
environment and from the top of the file only in the first of them.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError

PREFIX = "KANDINSKY_"
# What the library itself reads.
VARIABLES = {
    "KANDINSKY_CARDS": "folder with model cards of your own",
    "KANDINSKY_FAMILIES": "folder with families of your own",
    "KANDINSKY_WEIGHTS": "official `weights/` folder",
    "KANDINSKY_CACHE": "folder of the cache; the step cache of `--cache` is KANDINSKY_STEP_CACHE",
    "KANDINSKY_API_KEY": "the key of `kandinsky serve`, and of `kandinsky.client`",
    "KANDINSKY_SERVER": "address of a server, for `kandinsky.client` and the ComfyUI nodes",
    "KANDINSKY_NATIVE": "off leaves the processor's work to PyTorch's own kernels",
    "KANDINSKY_PROGRESS": "off shows no progress bars",
    "KANDINSKY_TRUST_REMOTE_CODE": "1 lets encoders run the program code of their repositories",
}
_RENAMED = {"cache": "step_cache"}
_LEFT_OUT = {"help", "version", "install_completion", "show_completion"}
_SIMILARITY = 0.6


@dataclass(frozen=True, slots=True)
class Setting:
    """One default.

    Attributes:
        command: The command.
        option: Name of the option.
        value: As on the command line; several for an option that may be repeated.
        origin: Where it comes from, in words.
    """

    command: str
    option: str
    value: str | list[str]
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All defaults.

    Attributes:
        settings: Defaults by command and parameter.
        problem: Why they cannot be used; commands that need none, such as help, still work.
    """

    settings: Mapping[tuple[str, str], Setting] = field(default_factory=dict)
    problem: RequestError | None = None

    def default_map(self) -> dict[str, Any]:
        """The defaults as contexts of commands expect them: nested by command."""
        found: dict[str, Any] = {}
        for (command, parameter), setting in self.settings.items():
            place = found
            for word in command.split():
                place = place.setdefault(word, {})
            place[parameter] = setting.value
        return found

    def of(self, command: str, parameter: str) -> Setting | None:
        """The default of a parameter; ``command`` is without the program's name."""
        return self.settings.get((command, parameter))

    def distinct(self) -> list[Setting]:
        """One entry per option and origin, for reports."""
        return list({(one.option, one.origin): one for one in self.settings.values()}.values())


def config_path() -> Path:
    """Where the file lies, whether it exists or not."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    return (base if base.is_absolute() else Path("~/.config").expanduser()) / "kandinsky" / "config.toml"


def is_typed(context: Any, parameter: str) -> bool:
    """Whether a parameter's value stands on the command line, and is no default of the program or the user."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def are_some() -> bool:
    """Whether anything may set a default: a file, or a variable that the library does not read itself."""
    names = [name for name, text in os.environ.items() if name.startswith(PREFIX) and text]
    return os.path.lexists(config_path()) or any(name not in VARIABLES for name in names)


def read(command: Any) -> Settings:
    """All defaults for a command and those below it."""
    try:
        return Settings(_collected(list(_options(command, ()))))
    except RequestError as error:
        return Settings(problem=error)


def variable(option: str) -> str:
    """The variable of an option, `text_cache` → `KANDINSKY_TEXT_CACHE`."""
    return PREFIX + _RENAMED.get(option, option).upper()


@dataclass(frozen=True, slots=True)
class _Option:
    """One option of one command; ``kinds`` are the types of its values."""

    command: str
    name: str
    parameter: Any
    kinds: frozenset[object]


def _options(command: Any, path: tuple[str, ...]) -> Iterator[_Option]:
    hints = inspect.signature(command.callback, eval_str=True).parameters if path and command.callback else {}
    for parameter in command.params if path else ():
        long = [flag for flag in parameter.opts if flag.startswith("--")]
        if parameter.param_type_name == "option" and long:
            name = long[0].removeprefix("--").replace("-", "_")
            if name not in _LEFT_OUT:
                yield _Option(" ".join(path), name, parameter, _kinds(hints[parameter.name].annotation))
    for name, below in getattr(command, "commands", {}).items():
        yield from _options(below, (*path, name))


def _kinds(annotation: Any) -> frozenset[object]:
    """The types in the annotation of a command's parameter, without None."""
    kind = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    return frozenset(typing.get_args(kind) or (kind,)) - {type(None)}


def _collected(options: list[_Option]) -> dict[tuple[str, str], Setting]:
    first: dict[str, _Option] = {}
    for option in options:
        first.setdefault(option.name, option)
    common = [option for option in options if option.kinds == first[option.name].kinds]
    found: dict[tuple[str, str], Setting] = {}

    def add(some: list[_Option], name: str, value: Any, origin: str) -> None:
        for option in some:
            if option.name == name:
                text = _text(value, option, origin)
                found[option.command, option.parameter.name] = Setting(option.command, name, text, origin)

    path = config_path()
    table = _file(path)
    commands = {option.command for option in options}
    for key, value in table.items():
        if not isinstance(value, dict):
            add(common, _known(key, first, f"`{key}` in `{path}`"), value, str(path))
    for key, value in _tables(table, (), commands, path):
        own = {option.name: option for option in options if option.command == key}
        for name, entry in value.items():
            known = _known(name, own, f"`{name}` in `{path}`, table [{key}],")
            add(list(own.values()), known, entry, f"{path} [{key}]")
    for name, text in os.environ.items():
        if name.startswith(PREFIX) and text and not _is_service_link(name, text):
            words = {variable(option): option for option in first}
            if name in words:
                add(common, words[name], text, name)
            elif name not in VARIABLES:
                raise _unknown(
                    f"variable `{name}`",
                    name,
                    [*words, *VARIABLES],
                    "unset it; `kandinsky generate --help` lists the options",
                )
    return found


# What Kubernetes tells every container of a service called `kandinsky` or `kandinsky-…`.
_LINK = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_LINK_PORT = re.compile(r"(tcp|udp|sctp)://")


def _is_service_link(name: str, text: str) -> bool:
    word = name.removeprefix(PREFIX)
    return bool(_LINK.fullmatch(word)) or (word.endswith("PORT") and bool(_LINK_PORT.match(text)))


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is nested too deep"
        raise RequestError(f"`{path}` cannot be read: {reason}") from error


def _tables(
    table: Mapping[str, Any], above: tuple[str, ...], commands: set[str], path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of commands, by the command's words."""
    for key, value in table.items():
        if not isinstance(value, dict):
            continue
        words = (*above, key)
        name = " ".join(words)
        if name in commands:
            yield name, value
        elif any(command.startswith(f"{name} ") for command in commands):
            yield from _tables(value, words, commands, path)
        else:
            raise _unknown(
                f"table `[{'.'.join(words)}]` in `{path}`", name, sorted(commands), "use the name of a command"
            )


def _known(name: str, options: Mapping[str, _Option], what: str) -> str:
    plain = name.replace("-", "_")
    if plain not in options:
        raise _unknown(what, plain, list(options), "remove it, or see `kandinsky generate -h`")
    return plain


def _unknown(what: str, name: str, known: list[str], otherwise: str) -> RequestError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=_SIMILARITY)
    return RequestError(f"{what} is not a setting: " + (f"did you mean `{near[0]}`?" if near else otherwise))


def _text(value: Any, option: _Option, origin: str) -> str | list[str]:
    """A value as it would be typed."""
    if option.parameter.multiple:
        parts = value if isinstance(value, list) else value.split(",") if origin.startswith(PREFIX) else [value]
        return [_word(part, option.name, origin) for part in parts]
    return _word(value, option.name, origin)


def _word(value: Any, name: str, origin: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise RequestError(f"`{name}` in {origin} must be text, a number, true or false")
