"""Text from a file, a request or another program, made safe to print.

Prompts, recipes, file names and tensor names may hold line breaks, which forge lines of our own output, and escape
sequences, which a terminal obeys. All of them are printed through ``escaped``, and commands through ``shell_command``.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# They reorder the text around them; the other format characters join emoji and letters.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HARMFUL = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, line and paragraph separators
_SHORT = {"\a": r"\a", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}


_SUBJECT: ContextVar[str | None] = ContextVar("subject", default="")


@contextmanager
def speaking_of(what: str | None) -> Iterator[None]:
    """Within the block, notes that are logged are about one of several things, such as `line 3` of a file.

    Args:
        what: What they are about; None where they only repeat what was said, and are dropped.
    """
    token = _SUBJECT.set(what)
    try:
        yield
    finally:
        _SUBJECT.reset(token)


def subject() -> str | None:
    """What ``speaking_of`` says; empty outside of it."""
    return _SUBJECT.get()


def escaped(text: object, *, keep: str = "") -> str:
    r"""Escape every character that a terminal would obey: `\n`, `\x1b`, `\u2028`.

    Args:
        text: Anything; a value that is not text is converted to it.
        keep: Characters left as they are, such as the line break of text that is meant to have lines.

    Returns:
        Printable text that UTF-8 can encode; the same text if there was nothing to escape.
    """
    text = str(text)
    if text.isprintable():  # the usual case, and fast
        return text
    return "".join(c if c in keep or not _is_harmful(c) else _escape(c) for c in text)


def shortened(text: object, longest: int = 48) -> str:
    """Text for a message: ``escaped``, and cut if it is longer than ``longest`` characters."""
    text = str(text)
    shown = escaped(text[: longest + 1])
    return shown if len(text) <= longest and len(shown) <= longest else shown[: longest - 1] + "…"


def counted(number: int, what: str, many: str = "") -> str:
    """`1 frame`, `2 frames`.

    Args:
        number: How many.
        what: What one is called.
        many: What several are called; ``what`` with an s by default.
    """
    return f"{number} {what if number == 1 else many or f'{what}s'}"


def shell_word(text: str) -> str:
    r"""Quote text as one word of a shell's command line.

    Plain words stay, others are quoted as ``shlex.quote`` does. Text with characters that a terminal obeys becomes
    `$'…'`, which bash, zsh and ksh read back. A NUL cannot appear in any command line and is written as `\x00`.
    """
    if text.isprintable() or not any(_is_harmful(c) for c in text):
        return shlex.quote(text)
    quoted = (rf"\{c}" if c in "\\'" else _escape(c, for_shell=True) if _is_harmful(c) else c for c in text)
    return f"$'{''.join(quoted)}'"


def shell_command(words: Iterable[str]) -> str:
    """Join words into a command line, on one line."""
    return " ".join(map(shell_word, words))


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in _HARMFUL or character in _BIDI


def _escape(character: str, *, for_shell: bool = False) -> str:
    if short := _SHORT.get(character):
        return short
    code = ord(character)
    if for_shell and 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not text: Python's own way to carry it
        return f"\\x{code - 0xDC00:02x}"
    # above 0x7f a shell reads `\x` as a byte, not as a character
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
