"""Settings of the visual self-attention: type, parameters, backend. Imports no torch.

On a command line and in a recipe it is one word with options: `auto`, `dense`, `sdpa`, `nabla`, `nabla:P=0.8,wT=7`,
`dense:backend=sdpa`, `causal:frames=3,reach=2,sink=1`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeVar

from kandinsky.errors import BackendError, RequestError

T = TypeVar("T")
TYPES = ("dense", "nabla", "causal")
# official name → ours
_TYPE_ALIASES = {"flash": "dense"}
_FORMER_BACKENDS = {"products": "math"}
DENSE_BACKENDS = ("sdpa", "native", "math", "plain", "flash_attention_2", "flash_attention_3", "sage")
BLOCK_BACKENDS = ("native", "triton", "flex", "gathered", "sdpa", "plain")
BACKENDS = ("auto", *dict.fromkeys((*DENSE_BACKENDS, *BLOCK_BACKENDS)))
_NUMBERS = {"dense": (), "nabla": ("P", "wT", "wH", "wW"), "causal": ("frames", "reach", "sink")}
_ALL_NUMBERS = tuple(name for names in _NUMBERS.values() for name in names)
TILE = 8  # rows and columns of tokens in a block
# How unevenly a query block's probability lies over the key blocks: the standard deviation of its logarithm, taken as
# normal. Chosen so that the published 10 s of Lite (P = 0.9) come out; the figures of Pro at 0.9, 0.8 and 0.7 follow.
UNEVEN = 2.15


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How the visual self attention is computed.

    Attributes:
        type: "dense"; "nabla" (block-sparse, ``ops/nabla.py``); or "causal", chunks of frames that see no later chunk
            (``ops/causal.py``).
        backend: One of ``BACKENDS``; "auto" takes the fastest that is exact.
        P: NABLA's probability mass to keep, 0 to 1; this and the next three are official names.
        wT: NABLA's window in latent frames.
        wH: NABLA's window in rows of tiles of 8×8 tokens.
        wW: NABLA's window in columns of tiles.
        frames: Latent frames of a chunk of causal attention.
        reach: Chunks that a chunk sees before itself; 0 for all of them.
        sink: First chunks of a clip that every later one sees too, however far back they are.
    """

    type: str = "dense"
    backend: str = "auto"
    P: float = 0.9
    wT: int = 11
    wH: int = 3
    wW: int = 3
    frames: int = 1
    reach: int = 0
    sink: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "backend", current_backend(self.backend))
        if self.type not in TYPES:
            raise RequestError(f"unknown attention type `{self.type}`: use one of {_quoted(TYPES)}")
        if self.backend not in BACKENDS:
            raise BackendError(f"attention backend `{self.backend}` is not available: use one of {_quoted(BACKENDS)}")
        fitting = BLOCK_BACKENDS if self.type == "nabla" else DENSE_BACKENDS
        if self.backend not in ("auto", *fitting):
            raise BackendError(
                f"attention backend `{self.backend}` has no {self.type} attention: use `auto` or one of "
                f"{_quoted(fitting)}"
            )
        if isinstance(self.P, bool) or not isinstance(self.P, int | float) or not 0 <= self.P <= 1:
            raise RequestError(f"attention P `{self.P}` must be a number from 0 to 1: the share of the mass to keep")
        for name, least in (("wT", 1), ("wH", 1), ("wW", 1), ("frames", 1), ("reach", 0), ("sink", 0)):
            width = getattr(self, name)
            if isinstance(width, bool) or not isinstance(width, int) or width < least:
                raise RequestError(f"attention {name} `{width}` must be a whole number from {least} on")

    def __str__(self) -> str:
        """The inverse of ``chosen``, for recipes and reports."""
        options = [f"{name}={getattr(self, name):g}" for name in _NUMBERS[self.type]]
        options += [f"backend={self.backend}"] if self.backend != "auto" else []
        return ":".join(filter(None, (self.type, ",".join(options))))

    def chosen(self, choice: str) -> AttentionSpec:
        """This attention, a card's, changed by a user's choice.

        Args:
            choice: `WORD[:KEY=VALUE,…]`; the word is a type, a backend or `auto`, the keys are those of this class. A
                word that is a backend keeps the type.

        Raises:
            RequestError: A word, key or value is not known.
            BackendError: The backend does not fit.
        """
        word, _, rest = choice.strip().partition(":")
        word = current_backend(_TYPE_ALIASES.get(word, word))
        changes: dict[str, Any] = {}
        if word in TYPES:
            changes["type"] = word
        elif word in BACKENDS:
            changes["backend"] = word
        else:
            raise BackendError(
                f"attention `{word}` is not available: use a type, {_quoted(TYPES)}, or a backend, "
                f"{_quoted(BACKENDS[1:])}"
            )
        for entry in filter(None, rest.split(",")):
            key, _, text = entry.partition("=")
            key, text = key.strip(), text.strip()
            if key in changes or key not in ("backend", *_ALL_NUMBERS):
                raise RequestError(
                    f"attention option `{entry}` is not known: use {_quoted(_ALL_NUMBERS)} or `backend`, each once, "
                    "such as `nabla:P=0.8,wT=7`"
                )
            changes[key] = text if key == "backend" else _number(key, text)
        spec = dataclasses.replace(self, **changes)
        if unused := [name for name in changes if name in _ALL_NUMBERS and name not in _NUMBERS[spec.type]]:
            fitting = next(kind for kind, names in _NUMBERS.items() if unused[0] in names)
            raise RequestError(
                f"attention option `{unused[0]}` has no effect on {spec.type} attention: use `{fitting}:{rest}`"
            )
        return spec

    def expected_share(self, grid: tuple[int, int, int]) -> float:
        """The share of all pairs of tokens or blocks that is likely to be computed, for plans; 1 for dense attention.

        What NABLA keeps depends on the content of a clip. The estimate assumes that the probability of key blocks is
        log-normal (``UNEVEN``): then the largest blocks that hold a share P of it are Φ(Φ⁻¹(P) - UNEVEN) of all blocks.
        Blocks of the fixed window are kept as well.

        Args:
            grid: Frames, rows and columns of tokens.

        Returns:
            The share, 0 to 1.
        """
        if self.type == "dense":
            return 1.0
        if self.type == "causal":
            sizes = [min(self.frames, grid[0] - start) for start in range(0, grid[0], self.frames)]
            seen = sum(own * (own + self.frames * len(self.seen(number))) for number, own in enumerate(sizes))
            return seen / grid[0] ** 2
        tiles = (grid[0], math.ceil(grid[1] / TILE), math.ceil(grid[2] / TILE))
        widths = (self.wT, self.wH, self.wW)
        window = math.prod(_near(size, width // 2) for size, width in zip(tiles, widths, strict=True))
        normal = NormalDist()
        mass = self.P if self.P in (0, 1) else normal.cdf(normal.inv_cdf(self.P) - UNEVEN)
        # at least the largest block of each row is kept
        mass = max(mass, 1 / math.prod(tiles))
        return 1 - (1 - mass) * (1 - window)

    def seen(self, number: int) -> list[int]:
        """The earlier chunks that a chunk of causal attention sees, in order of time.

        Args:
            number: Of the chunk, from 0.
        """
        first = max(0, number - self.reach) if self.reach else 0
        return [*range(min(self.sink, first)), *range(first, number)]

    def kept(self, chunks: Sequence[T]) -> list[T]:
        """What the next chunk sees: of all chunks so far, or of what was kept before and one more.

        Args:
            chunks: One entry for each, in order of time.
        """
        return [chunks[number] for number in self.seen(len(chunks))]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentionSpec:
        """Read the `attention` table of a card or an official YAML file, in which dense attention is called "flash".

        Official keys that no official code reads (causal, local, glob, window, chunk, add_sta, method) are accepted
        at their only meaningful values.

        Raises:
            RequestError: Any other key or value was given.
        """
        inert: dict[str, Any] = {"causal": False, "local": False, "glob": False, "chunk": False, "window": 3}
        inert |= {"add_sta": True, "method": "topcdf"}
        known = {f.name for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                chosen[key] = _TYPE_ALIASES.get(value, value) if key == "type" else value
            elif key not in inert:
                raise RequestError(f"unknown attention key `{key}`: use one of {', '.join(sorted(known))}")
            elif value != inert[key]:
                raise RequestError(f"attention key `{key}` = `{value}` has no effect in any Kandinsky 5: remove it")
        return cls(**chosen)


def _near(size: int, reach: int) -> float:
    """Share of all pairs of ``size`` places that are at most ``reach`` apart."""
    reach = min(reach, size - 1)
    return (size + 2 * sum(size - distance for distance in range(1, reach + 1))) / size**2


def current_backend(name: str) -> str:
    """The present name of an attention backend.

    Args:
        name: A backend; a former name is accepted with a warning.

    Returns:
        The same name, or the one that replaced it.
    """
    if not isinstance(name, str) or name not in _FORMER_BACKENDS:
        return name
    warnings.warn(f"attention backend `{name}` is now called `{_FORMER_BACKENDS[name]}`", FutureWarning, stacklevel=2)
    return _FORMER_BACKENDS[name]


def _number(key: str, text: str) -> float | int:
    try:
        return float(text) if key == "P" else int(text)
    except ValueError:
        kind = "a number" if key == "P" else "a whole number"
        raise RequestError(f"attention option `{key}={text}` needs {kind}, such as `nabla:P=0.8,wT=7`") from None


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
