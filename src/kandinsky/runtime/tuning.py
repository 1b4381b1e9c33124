"""Which of several ways to compute the same is fastest here: measured once a machine and shape class, and kept.

Each way gives the same result up to rounding, so a choice changes bits. Therefore none is made unless it is asked for
(``RunOptions.backends``), what was chosen is in the recipe, and a recipe's command names it. Answers are kept in the
cache folder, in one file for each kind of machine; ``KANDINSKY_CACHE=off`` keeps none.

| choice | ways |
|---|---|
| `linear` | library of matrix products with weights on CPU: `onednn`, `torch` |
| `attention` | exact backend of dense attention, where the request leaves it open: `native`, `sdpa`, `math` |
| `guidance` | both passes of guidance: `apart`, or `together` as one of twice the batch |
| `blocks` | a transformer's: `eager`, `compiled` (see ``runtime/compiling.py``), or `graph` (``runtime/graphs.py``) |

How many threads are fastest is measured too, and said: it is the environment's to decide (see ``runtime/threads.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kandinsky.errors import RequestError
from kandinsky.files import cache_folder, replacing
from kandinsky.runtime import devices, threads

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
DEFAULT, TUNED = "default", "tuned"
WAYS = {
    "linear": ("onednn", "torch"),
    "attention": ("native", "sdpa", "math"),
    "guidance": ("apart", "together"),
    "blocks": ("eager", "compiled", "graph"),
}
ROUNDS, MARGIN = 9, 0.95  # another way than the default must take less than this share of its time
MOST_TOKENS, MOST_WIDTH = 4096, 4096
Ways = Mapping[str, Mapping[str, Callable[[], object]]]


@dataclass(frozen=True, slots=True)
class Choices:
    """The ways that were chosen; None leaves a choice to the library.

    Attributes:
        linear: Of ``WAYS``.
        attention: Of ``WAYS``.
        guidance: Of ``WAYS``.
        blocks: Of ``WAYS``.
    """

    linear: str | None = None
    attention: str | None = None
    guidance: str | None = None
    blocks: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read choices such as `linear=torch,attention=math`.

        Raises:
            RequestError: There is no such choice or way.
        """
        found: dict[str, str] = {}
        for entry in text.split(","):
            name, _, way = (part.strip() for part in entry.partition("="))
            if name not in WAYS or name in found:
                known = ", ".join(f"`{one}={'|'.join(ways)}`" for one, ways in WAYS.items())
                raise RequestError(f"backends `{text}`: use `{DEFAULT}`, `{TUNED}`, or some of {known}")
            if way not in WAYS[name]:
                allowed = " or ".join(f"`{one}`" for one in WAYS[name])
                raise RequestError(f"backends `{text}`: `{name}` is {allowed}, not `{way}`")
            found[name] = way
        return cls(**found)

    def __str__(self) -> str:
        """The inverse of ``parse``; empty if everything is left to the library."""
        named = {name: getattr(self, name) for name in WAYS}
        return ",".join(f"{name}={way}" for name, way in named.items() if way is not None)

    @property
    def together(self) -> bool | None:
        """Whether both passes of guidance run as one; None as the network has it."""
        return None if self.guidance is None else self.guidance == "together"


@dataclass(frozen=True, slots=True)
class Shape:
    """The work that a choice is for; classes of it share an answer.

    Attributes:
        tokens: Tokens of a sample.
        width: Width of a token.
        heads: Heads of its attention; 0 if it is not known.
        dtype: Compute type.
        device: Kind of device.
        network: What of the network decides what can be measured, and what that finds; see ``engine/probe.measured``.
    """

    tokens: int
    width: int
    heads: int
    dtype: str
    device: str
    network: str = ""

    @property
    def name(self) -> str:
        """The class: sizes as powers of two, for networks of one kind."""
        size = f"{self.device} {self.dtype} width {_power(self.width)} tokens {_power(self.tokens)} heads {self.heads}"
        return f"{size}, {self.network}" if self.network else size


def check(text: str) -> None:
    """Refuse a value of the option `backends`.

    Raises:
        RequestError: It is none.
    """
    if text not in (DEFAULT, TUNED):
        Choices.parse(text)


def settle(text: str, work: Callable[[], Shape], more: Callable[[Shape], Ways] | None = None) -> Choices:
    """What the option `backends` means for some work; measures what was never measured on this machine.

    Args:
        text: `default`, `tuned`, or choices by name.
        work: Returns the work, where it matters.
        more: As for ``tune``.

    Returns:
        The choices.

    Raises:
        RequestError: The text is no value of the option.
    """
    if text == DEFAULT:
        return Choices()
    if text != TUNED:
        return Choices.parse(text)
    shape = work()
    answer = answers().get(shape.name)
    if answer is None:
        log.info("backends are measured for %s", shape.name)
        answer = tune(shape, more)
    return Choices(**{name: answer["chosen"].get(name) for name in WAYS})


def within(choices: Choices, dtype: torch.dtype) -> AbstractContextManager[None]:
    """A block in which linear layers of a type compute as was chosen: around one call of a network."""
    if choices.linear is None:
        return nullcontext()
    from kandinsky.ops import linear

    return linear.taking(dtype, "torch" if choices.linear == "torch" else "onednn")


# -- answers -----------------------------------------------------------------------------------------------------------


def path() -> Path | None:
    """The file with this machine's answers; None if nothing is kept. Nothing is created."""
    if (cache := cache_folder()) is None:
        return None
    import torch

    facts = [devices.processor_name(), torch.backends.cpu.get_cpu_capability(), threads.cores(), torch.__version__]
    facts.append(torch.get_num_threads())
    return cache / "tuned" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def answers() -> dict[str, Any]:
    """This machine's answers by class of work; a file that is damaged is as none."""
    place = path()
    try:
        found = {} if place is None else json.loads(place.read_text(encoding="utf-8"))
        return {name: one for name, one in found.items() if _is_answer(one)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("what was measured of backends, `%s`, is damaged and will be measured again: %s", place, error)
        return {}


def forget() -> bool:
    """Remove this machine's answers; False if there were none."""
    place = path()
    if place is None or not place.is_file():
        return False
    place.unlink()
    return True


def tune(shape: Shape, more: Callable[[Shape], Ways] | None = None) -> dict[str, Any]:
    """Measure a class of work and keep the answer.

    Args:
        shape: The work.
        more: Returns the ways of choices that are a network's, the default one first.

    Returns:
        `chosen` by choice, where another way than the default is faster, and the `seconds` of each way.
    """
    import torch

    device = torch.device(shape.device)
    works: Ways = {**_works(shape), **(more(shape) if more is not None else {})}
    seconds = {name: _in_turns(ways, device, is_alone=name in WAYS) for name, ways in works.items()}
    chosen: dict[str, Any] = {}
    for name, taken in seconds.items():
        usual, *_ = taken
        best = min(taken, key=lambda way, taken=taken: taken[way])  # type: ignore[misc]
        if name in WAYS and best != usual and taken[best] < MARGIN * taken[usual]:
            chosen[name] = best
    answer = {"chosen": chosen, "seconds": seconds}
    place = path()
    if place is not None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            told = json.dumps(answers() | {shape.name: answer}, indent=1)
            with replacing(place) as part:
                part.write_text(told + "\n", encoding="utf-8")
        except (OSError, RequestError) as error:
            log.warning("what was measured of backends cannot be kept in `%s`: %s", place, error)
    return answer


# -- measuring ---------------------------------------------------------------------------------------------------------


def _works(shape: Shape) -> dict[str, dict[str, Callable[[], object]]]:
    """What is measured: for each choice its ways, the default one first."""
    import torch

    from kandinsky.ops import linear
    from kandinsky.ops.attention import attention
    from kandinsky.ops.native import attention as native

    device, dtype = torch.device(shape.device), getattr(torch, shape.dtype)
    tokens, width = min(_power(shape.tokens), MOST_TOKENS), min(_power(shape.width), MOST_WIDTH)
    made = torch.Generator().manual_seed(0)

    def noise(*sizes: int) -> Any:
        return torch.randn(*sizes, generator=made).to(device, dtype)

    x, weight, bias = noise(tokens, width), noise(4 * width, width), noise(4 * width)
    found: dict[str, dict[str, Callable[[], object]]] = {}

    def product(way: str) -> object:
        with within(Choices(linear=way), dtype), torch.no_grad():
            return linear.linear(x, weight, bias)

    if device.type == "cpu":
        own = linear.library(dtype)
        found["linear"] = {way: _call(product, way) for way in sorted(WAYS["linear"], key=lambda way: way != own)}
    if shape.heads and width % shape.heads == 0 and 2 * shape.heads * tokens**2 <= 2**29:
        q, k, v = (noise(1, tokens, shape.heads, width // shape.heads) for _ in range(3))

        def attend(way: str) -> object:
            with torch.no_grad():
                return attention(q, k, v, backend=way)

        with torch.no_grad():
            is_native = native.fits(q, k, v, None, None)
            usual = "native" if is_native and native.pays(q, k) else "sdpa"
        ways = [way for way in WAYS["attention"] if is_native or way != "native"]
        found["attention"] = {way: _call(attend, way) for way in sorted(ways, key=lambda way: way != usual)}
    if device.type == "cpu" and (cores := threads.cores()) > 1:
        count_now = torch.get_num_threads()

        def with_threads(count: str) -> object:
            torch.set_num_threads(int(count))
            try:
                return product(linear.library(dtype))
            finally:
                torch.set_num_threads(count_now)

        counts = dict.fromkeys(map(str, (count_now, 1, cores)))
        found["threads"] = {count: _call(with_threads, count) for count in counts}
    return found


def _call(work: Callable[[str], object], way: str) -> Callable[[], object]:
    return lambda: work(way)


def _in_turns(ways: Mapping[str, Callable[[], object]], device: torch.device, *, is_alone: bool) -> dict[str, float]:
    """Seconds of each way: the quickest of some rounds of all, after one to warm up.

    Of one CPU thread they are seconds of the processor; the quickest round is the one that other work disturbed least.
    """
    from kandinsky.runtime.meter import clock, finish

    now, _ = clock(device) if is_alone else (time.perf_counter, "")
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, work in ways.items():
            begun = now()
            work()
            finish(device)
            if number:
                taken[way].append(now() - begun)
    return {way: min(one) for way, one in taken.items()}


def _power(number: int) -> int:
    """The power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("chosen"), dict):
        return False
    return all(name in WAYS and way in WAYS[name] for name, way in value["chosen"].items())
