"""`kandinsky live`: video along time, without end, into a pipe, a file or the terminal."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import STDIN, STDOUT, emit, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.model.timeline import Play, PromptAt, Shows, check_length, prompts_at, timeline
from kandinsky.model.values import Request
from kandinsky.printing import counted, escaped

if TYPE_CHECKING:
    from kandinsky.model.card import Card
    from kandinsky.model.values import Video

Show = Callable[["Video"], None]
ASKED = ("negative_prompt", "prompt_at", "width", "height", "steps", "guidance", "shift", "image", "seed")


@rendered(
    asked=Flags(Request, only=ASKED),
    run=Flags(RunOptions, only=("device", "dtype", "offload", "attention", "lora", "quantize")),
)
def live(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to show; `-` takes lines of stdin, each of them the prompt from then on."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="An autoregressive model; default: the first of --list.", autocompletion=model_ids
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="`-` for stdout, or a .y4m file: raw video; default: the terminal."),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="FILE", help="Make a clip again that was saved from a live stream."),
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="How long; without it, until Ctrl-C.")] = None,
    play: Annotated[
        str | None,
        typer.Option(
            "--play",
            help="What is done in a world that can be played, a word for each chunk, such as `right right jump`; then "
            "it ends.",
        ),
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT, one of the model's sizes.")] = None,
    *,
    asked: dict[str, Any],
    run: dict[str, Any],
    listed: Annotated[bool, typer.Option("--list", help="List the models that can do this.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
) -> None:
    """Generate video without end and show it as it is made, in the terminal or through a pipe.

    kandinsky live "a panda" -o - | ffplay -. In a terminal, what is typed while it runs is the next prompt; in a world
    that can be played, a line of its actions, such as `right right jump`, is done.
    """
    able = [card.id for card in catalogue.cards().values() if card.roll is not None]
    if listed:
        for name in able:
            emit(escaped(name))
        return
    later = prompts_at(asked.pop("prompt_at"))
    if replay is not None:
        others = {**asked, "model": model, "seconds": seconds, "play": play, "size": size, "later": later or None}
        _replay(replay, output, prompt, others, run, quiet)
        return
    if prompt is None:
        raise RequestError("no prompt was given: say what to show, such as `a panda`, or `-` for lines of stdin")
    if model is None and not able:
        raise RequestError(
            "no model of the catalogue is autoregressive: give --model, or add the card of one",
            hint="recipes/nano-live.yaml trains one; KANDINSKY_CARDS names a folder of cards",
        )
    name = able[0] if model is None else model
    card = catalogue.source_of(name).card
    if card.roll is None:
        known = f": use {', '.join(f'`{one}`' for one in able)}" if able else ""
        raise RequestError(f"`{card.id}` makes a clip as a whole and cannot be streamed{known}")
    actions = None if play is None else _actions(card, play)
    given = {key: value for key, value in asked.items() if value is not None}
    _check(card, seconds, size, given)
    RunOptions(**run).check()
    with ExitStack() as held:
        shows: Callable[[float], Shows | None]
        shows = typed = _Typed(prompt, later, card, seconds, heeds=actions is None)
        if actions is not None:
            shows = _played(typed.at, actions)
        show = held.enter_context(_shown(output))
        from kandinsky.catalogue import load
        from kandinsky.cli.progress import hush_libraries

        hush_libraries()
        pipe: Any = load(name, **run)
        if not quiet:
            say(f"{card.id}: Ctrl-C ends it")
        pieces: Iterator[Video] = pipe.stream(shows, seconds=seconds, size=size, **given)
        begun, made = time.monotonic(), 0
        for piece in pieces:
            show(piece)
            made += len(piece)
            if not quiet and output is not None and piece.recipe["chunk"] % 10 == 9:
                rate = made / (time.monotonic() - begun)
                say(f"{counted(made, 'frame')}, {rate:.1f} a second; {piece.recipe['prompt']}")
    if output not in (None, STDOUT):
        emit(output)


def _check(card: Card, seconds: float | None, size: str | None, given: Mapping[str, Any]) -> None:
    """Refuse what the stream would refuse, before the model is loaded and a file is opened.

    Raises:
        RequestError: The stream is not possible.
    """
    from kandinsky.engine.request import parse_size, resolve

    check_length(seconds)
    others = {name: value for name, value in given.items() if name != "negative_prompt"}  # which is told of once
    if size is not None and others.keys().isdisjoint(("width", "height")):
        others["width"], others["height"] = parse_size(size)
    resolve(Request(card.id, "anything", **others), card)


def _actions(card: Card, play: str) -> list[str]:
    """The actions of `--play`.

    Raises:
        RequestError: There are none, or the model does not know one.
    """
    known, actions = card.roll.actions if card.roll else (), play.split()
    if unknown := [action for action in actions if action not in known] or ([] if actions else [play]):
        may = f"use words of: {', '.join(known)}" if known else "it is no world that can be played"
        raise RequestError(f"--play `{escaped(unknown[0])}`: `{card.id}` knows no such action; {may}")
    return actions


def _played(prompt: Callable[[float], str], actions: Sequence[str]) -> Callable[[float], Play | None]:
    """What each chunk shows, with its action; the stream ends with them."""
    left = iter(actions)

    def shows(at: float) -> Play | None:
        action = next(left, None)
        return None if action is None else Play(prompt(at), action)

    return shows


def _replay(
    file: str, output: str | None, prompt: str | None, asked: dict[str, Any], run: dict[str, Any], quiet: bool
) -> None:
    """Make a saved clip again, from its recipe alone."""
    from kandinsky.engine import timeline
    from kandinsky.media import recipe as recipes

    if prompt is not None or any(value is not None for value in asked.values()):
        raise RequestError("with replay, prompts and settings are those of the clip: give no others")
    recipe: dict[str, Any] = dict(recipes.read(Path(file)))
    line = timeline.read(recipe)
    run["dtype"] = run["dtype"] or recipe.get("dtype")
    RunOptions(**run).check()
    with ExitStack() as held:
        show = held.enter_context(_shown(output))
        from kandinsky.catalogue import load
        from kandinsky.cli.progress import hush_libraries
        from kandinsky.model.values import Video

        hush_libraries()
        pipe: Any = load(recipe["model"], **run)
        if not quiet:
            length = f"{counted(line.frames, 'frame')}, after {line.first_frame} that are not shown"
            say(f"{escaped(recipe['model'])}: {length}")
        clip = pipe.replay(recipe)
        told = hashlib.sha256()
        for frames in clip.pieces:
            told.update(frames.tobytes())
            show(Video(frames, clip.fps, clip.seed, recipe))
        if not quiet:
            same = told.hexdigest() == recipe.get("frames_sha256")
            say("bit for bit the saved frames" if same else "not bit for bit the saved frames: another machine?")
    if output not in (None, STDOUT):
        emit(output)


class _Typed:
    """What a time shows: the newest line of stdin, or the prompt that was named for it, whichever came last.

    Args:
        prompt: The first; `-` waits for a line.
        later: Prompts by time.
        card: The model.
        seconds: How long it lasts; None without an end.
        heeds: Whether lines of a world's actions are done, rather than shown.

    Raises:
        RequestError: There is no first line, or a time is not possible.
    """

    def __init__(
        self, prompt: str, later: Sequence[PromptAt], card: Card, seconds: float | None, *, heeds: bool
    ) -> None:
        self.prompt = prompt
        self._actions = card.roll.actions if card.roll else ()
        self._heeds = heeds
        self._acts: deque[str] = deque()
        follows = prompt == STDIN
        is_read = sys.stdin is not None and (follows or sys.stdin.isatty())
        if is_read and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is told, and ends nothing
        if is_read and follows:
            first = self._line()
            if first is None:
                raise RequestError("standard input holds no prompt: give a line for each, the first one at once")
            self.prompt = first
        changes = timeline(self.prompt, later, length=seconds or math.inf, fps=card.clip.fps).changes
        self._due = deque(changes[1:])
        if is_read:
            threading.Thread(target=self._read, daemon=True).start()

    def at(self, second: float) -> str:
        """The prompt of a time, which does not go back."""
        while self._due and second + 1e-6 >= self._due[0][0]:
            self.prompt = self._due.popleft()[1]
        return self.prompt

    def __call__(self, second: float) -> Shows:
        prompt = self.at(second)
        if not self._actions:
            return prompt
        return Play(prompt, self._acts.popleft() if self._acts else self._actions[0])

    def _read(self) -> None:
        while (line := self._line()) is not None:
            words = line.split()
            if self._heeds and self._actions and set(words) <= set(self._actions):
                self._acts.extend(words)
            else:
                self.prompt = line

    def _line(self) -> str | None:
        """The next line that says something; None at the end."""
        for line in sys.stdin:
            if any("\ud800" <= letter <= "\udfff" for letter in line):
                say(f"`{escaped(line.strip())}` is not valid UTF-8: it is left out")
            elif line.strip():
                return line.strip()
        return None


@contextmanager
def _shown(output: str | None) -> Iterator[Show]:
    """What takes the pieces.

    Raises:
        RequestError: Nothing can be shown there.
    """
    from kandinsky.engine.timeline import Record
    from kandinsky.files import replacing
    from kandinsky.media import recipe as recipes
    from kandinsky.media import terminal, y4m

    if output is None:
        if not sys.stdout.isatty():
            raise RequestError("standard output is no terminal: give --output, `-` for a pipe")
        sys.stdout.write(terminal.HIDE + terminal.CLEAR)
        due = 0.0

        def draw(piece: Video) -> None:
            nonlocal due
            for frame in piece:
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic()) + 1 / piece.fps
                columns, lines = shutil.get_terminal_size()
                sys.stdout.write(terminal.HOME + terminal.drawn(frame, columns, lines - 2) + "\n")
                sys.stdout.flush()

        try:
            yield draw
        finally:
            sys.stdout.write(terminal.SHOW)
        return
    if output == STDOUT and sys.stdout.isatty():
        raise RequestError("output `-`: standard output is a terminal: redirect it to a file or a program")
    if output != STDOUT and not output.lower().endswith(".y4m"):
        raise RequestError(f"output `{escaped(output)}`: a stream is written as raw video, .y4m, or `-` for a pipe")
    sys.stdout.flush()
    try:
        is_new = output != STDOUT and not Path(output).exists()
        # a file of before is kept until there is something to write
        sink = os.fdopen(os.dup(1), "wb") if output == STDOUT else Path(output).open("ab")  # noqa: SIM115
    except OSError as error:
        raise RequestError(f"`{escaped(output)}` cannot be written: {error.strerror}") from error
    begun = False
    is_file = output != STDOUT and Path(output).is_file()  # and no pipe or device
    record = Record()
    with sink:

        def write(piece: Video) -> None:
            nonlocal begun
            if not begun:
                if is_file:
                    sink.truncate(0)
                    recipes.beside(output).unlink(missing_ok=True)
                height, width = piece.frames.shape[1:3]
                sink.write(y4m.header(width, height, piece.fps))
                begun = True
            for frame in y4m.frames(piece.frames):
                sink.write(frame)
            sink.flush()
            if is_file:
                record.take(piece)

        try:
            yield write
        finally:
            if is_new and not begun:
                Path(output).unlink(missing_ok=True)
            if (recipe := record.recipe) is not None:
                with replacing(recipes.beside(output)) as path:
                    path.write_text(recipes.to_text(recipe) + "\n", encoding="ascii")
