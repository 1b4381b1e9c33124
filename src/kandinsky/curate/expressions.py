"""Filter expressions over columns, such as ``2 <= duration <= 60 and letterbox < 0.05``.

    or:       and ("or" and)*
    and:      not ("and" not)*
    not:      "not" not | compare
    compare:  sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)*        chains mean that every link holds
    sum:      product (("+" | "-") product)*
    product:  sign (("*" | "/") sign)*
    sign:     "-" sign | value
    value:    number | 'text' | name | function "(" or ("," or)* ")" | "(" or ")"

Functions: ``abs(x)``, ``min(a, b)``, ``max(a, b)``, ``missing(name)``, and ``percentile(name, p)``: the value below
which p percent of all rows lie. A comparison with a value that is missing does not hold. Nothing is ever evaluated as
Python: an expression is read into a tree by the grammar above and worked out on whole columns.
"""

from __future__ import annotations

import difflib
import operator as op
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.printing import escaped

LONGEST = 4096  # characters
DEEPEST = 64  # brackets and signs within each other
FUNCTIONS = {"abs": 1, "min": 2, "max": 2, "missing": 1, "percentile": 2}
_WORDS = ("and", "or", "not")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<sign><=|>=|==|!=|[-<>+*/(),]))"
)
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Expression:
    """A filter that was read.

    Attributes:
        text: As it was written.
        names: Columns that it reads.
        tree: A tuple of an operation and its operands.
        is_relative: Whether what holds for a row depends on other rows.
    """

    text: str
    names: frozenset[str]
    tree: tuple[Any, ...]
    is_relative: bool = False

    def holds(self, columns: Columns) -> np.ndarray:
        """For which rows it is true.

        Args:
            columns: Of equal lengths: numbers (NaN where missing), truth values, or texts (None where missing).

        Returns:
            bool, one for each row.

        Raises:
            RequestError: A column does not exist, or texts and numbers are mixed.
        """
        for name in sorted(self.names):
            if name not in columns:
                near = difflib.get_close_matches(name, columns, 1)
                hint = f", did you mean `{near[0]}`" if near else f": there are {', '.join(sorted(columns))}"
                raise RequestError(f"filter `{escaped(self.text)}`: unknown name `{escaped(name)}`{hint}")
        count = len(next(iter(columns.values()), ()))
        with np.errstate(all="ignore"):
            found = _work_out(self.tree, columns, self.text)
        return np.broadcast_to(_truth(found, self.text), (count,)).copy()


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        RequestError: It does not follow the grammar; the place is named.
    """
    if not isinstance(text, str) or not text.strip():
        raise RequestError("a filter is empty: write an expression such as `dynamicity > 0.2`")
    if len(text) > LONGEST:
        raise RequestError(f"filter `{escaped(text[:40])}…` is longer than {LONGEST} characters")
    parser = _Parser(text)
    tree = parser.disjunction()
    parser.end()
    return Expression(text.strip(), frozenset(parser.names), tree, parser.is_relative)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth = text, 0, 0
        self.names: set[str] = set()
        self.is_relative = False
        self.tokens = self._tokens()

    def _tokens(self) -> list[tuple[str, str, int]]:
        out, place = [], 0
        text = self.text.rstrip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                gap = len(text[place:]) - len(text[place:].lstrip())
                self.wrong(f"`{text[place + gap]}` means nothing here", place + gap)
            assert found is not None and found.lastgroup is not None
            out.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            place = found.end()
        return [*out, ("end", "", len(text))]

    def wrong(self, why: str, place: int | None = None) -> None:
        at = self.tokens[self.place][2] if place is None else place
        raise RequestError(f"filter `{escaped(self.text.strip())}`, character {at + 1}: {escaped(why)}")

    def take(self, *signs: str) -> str | None:
        kind, word, _ = self.tokens[self.place]
        if kind in ("sign", "name") and word in signs:
            self.place += 1
            return word
        return None

    def expect(self, sign: str) -> None:
        if self.take(sign) is None:
            self.wrong(f"`{sign}` is missing")

    def end(self) -> None:
        kind, word, _ = self.tokens[self.place]
        if kind != "end":
            self.wrong(f"`{word}` is not expected: join conditions with `and` or `or`")

    def deeper(self, inner: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        self.depth += 1
        if self.depth > DEEPEST:
            self.wrong(f"more than {DEEPEST} levels of brackets and signs within each other")
        found = inner()
        self.depth -= 1
        return found

    def disjunction(self) -> tuple[Any, ...]:
        return self._joined("or", lambda: self._joined("and", self.negation))

    def _joined(self, word: str, inner: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        parts = [inner()]
        while self.take(word):
            parts.append(inner())
        return parts[0] if len(parts) == 1 else (word, *parts)

    def negation(self) -> tuple[Any, ...]:
        if self.take("not"):
            return ("not", self.deeper(self.negation))
        return self.comparison()

    def comparison(self) -> tuple[Any, ...]:
        left = self.sum()
        links = []
        while sign := self.take("<=", ">=", "==", "!=", "<", ">"):
            right = self.sum()
            links.append((sign, left, right))
            left = right
        return left if not links else links[0] if len(links) == 1 else ("and", *links)

    def sum(self) -> tuple[Any, ...]:
        return self._chain(self.product, "+", "-")

    def product(self) -> tuple[Any, ...]:
        return self._chain(self.sign, "*", "/")

    def _chain(self, inner: Callable[[], tuple[Any, ...]], *signs: str) -> tuple[Any, ...]:
        """Operands from left to right, side by side: a long sum is no deep one."""
        first, links = inner(), []
        while sign := self.take(*signs):
            links.append((sign, inner()))
        return ("chain", first, *links) if links else first

    def sign(self) -> tuple[Any, ...]:
        if self.take("-"):
            return ("negative", self.deeper(self.sign))
        return self.value()

    def value(self) -> tuple[Any, ...]:
        kind, word, _ = self.tokens[self.place]
        if self.take("("):
            inner = self.deeper(self.disjunction)
            self.expect(")")
            return inner
        if kind == "number":
            self.place += 1
            return ("number", float(word))
        if kind == "text":
            self.place += 1
            return ("text", word[1:-1])
        if kind == "name" and word not in _WORDS:
            self.place += 1
            if self.tokens[self.place][1] == "(":
                return self.function(word)
            if word in ("true", "false"):
                return ("truth", word == "true")
            self.names.add(word)
            return ("name", word)
        self.wrong("a value is missing" if kind == "end" else f"`{word}` stands where a value belongs")
        raise AssertionError

    def function(self, word: str) -> tuple[Any, ...]:
        if word not in FUNCTIONS:
            self.place -= 1
            self.wrong(f"unknown function `{word}`: there are {', '.join(FUNCTIONS)}")
        self.expect("(")
        given = [self.deeper(self.disjunction)]
        while self.take(","):
            given.append(self.deeper(self.disjunction))
        self.expect(")")
        if len(given) != FUNCTIONS[word]:
            self.place -= 1
            self.wrong(f"`{word}` takes {FUNCTIONS[word]}, not {len(given)}")
        if word == "percentile" and (given[1][0] != "number" or not 0 <= given[1][1] <= 100):
            self.place -= 1
            self.wrong("the second value of `percentile` must be a number from 0 to 100")
        self.is_relative |= word == "percentile"
        return (word, *given)


def _work_out(tree: tuple[Any, ...], columns: Columns, text: str) -> Any:
    what, *operands = tree
    if what in ("number", "text", "truth"):
        return operands[0]
    if what == "name":
        return columns[operands[0]]
    if what == "chain":
        total = _number(_work_out(operands[0], columns, text), text)
        for sign, one in operands[1:]:
            total = _NUMERIC[sign](total, _number(_work_out(one, columns, text), text))
        return total
    values = [_work_out(one, columns, text) for one in operands]
    if what in ("and", "or"):
        found = _truth(values[0], text)
        for value in values[1:]:
            found = found & _truth(value, text) if what == "and" else found | _truth(value, text)
        return found
    if what == "not":
        return ~_truth(values[0], text)
    if what == "missing":
        (value,) = values
        if isinstance(value, str):
            return np.array(False)
        return np.array([one is None for one in value]) if _is_texts(value) else np.isnan(np.asarray(value, float))
    if what in ("==", "!=") and any(_is_text(value) for value in values):
        if not all(_is_text(value) for value in values):
            raise RequestError(f"filter `{escaped(text)}`: a text is compared with a number")
        left, right = np.broadcast_arrays(*(np.asarray(value, dtype="O") for value in values))
        pairs = zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
        wanted = what == "=="
        held = [a is not None and b is not None and (a == b) is wanted for a, b in pairs]
        return np.array(held, bool).reshape(left.shape)
    numbers = [_number(value, text) for value in values]
    if what == "percentile":
        known = numbers[0][~np.isnan(numbers[0])]
        return np.percentile(known, numbers[1]) if known.size else np.nan
    if what in ("<", "<=", ">", ">=", "==", "!="):
        missing = np.isnan(numbers[0]) | np.isnan(numbers[1])
        return _NUMERIC[what](*numbers) & ~missing
    return _NUMERIC[what](*numbers)


_NUMERIC: dict[str, Callable[..., Any]] = {
    "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge, "==": op.eq, "!=": op.ne,
    "+": op.add, "-": op.sub, "*": op.mul, "/": np.divide, "negative": op.neg,
    "abs": np.abs, "min": np.minimum, "max": np.maximum,  # of a missing value: missing
}  # fmt: skip


def _is_texts(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "O"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or _is_texts(value)


def _number(value: Any, text: str) -> Any:
    if _is_text(value):
        raise RequestError(f"filter `{escaped(text)}`: a text is used as a number: compare texts with `==` or `!=`")
    return np.asarray(value, float)


def _truth(value: Any, text: str) -> Any:
    found = np.asarray(value)
    if found.dtype != bool:
        raise RequestError(f"filter `{escaped(text)}` is no condition: compare something, such as `dynamicity > 0.2`")
    return found
