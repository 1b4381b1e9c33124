"""What is true of a family of models, as values: a ``Family`` of ``Part``s, ``Task``s, folder ``Format``s and runners.

The machinery (``engine``, ``runtime``, ``bench``, ``conformance``) asks these values and names no family. They hold
nothing heavy: what needs torch is named by a ``Lazy`` reference and imported when it is first called, so that a request
is checked and a plan is made without it. Values can be pickled, so that they travel to workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kandinsky.errors import RequestError
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kandinsky.engine.interpolation import Interpolate
    from kandinsky.golden.cases import Runner
    from kandinsky.model.card import Card, Component
    from kandinsky.model.cost import Cost, Load
    from kandinsky.model.denoiser import Bind
    from kandinsky.model.values import LatentShape
    from kandinsky.runtime.parallel.layout import Demand
    from kandinsky.runtime.parallel.split import SplitRules
    from kandinsky.runtime.placement import Precision
    from kandinsky.weights.keymaps import KeyMap

Files = Mapping[str, Path]


class Spelling(Protocol):
    """Recognises one way in which files name a network's tensors."""

    def __call__(self, names: Collection[str]) -> KeyMap | None: ...


class Reader(Protocol):
    """Reads a model that comes with its own tokenizer and classes, such as a text encoder."""

    def __call__(self, component: Component, files: Files, precision: Precision) -> object: ...


class MadeUp(Protocol):
    """Makes a network with random weights where its files are absent, for benchmarks."""

    def __call__(self, card: Card, device: torch.device, dtype: torch.dtype) -> object: ...


class Rival(Protocol):
    """A part's work done by another library."""

    def __call__(self, side: Any, *inputs: Any) -> Callable[[], Any]:
        """Prepare the work.

        Args:
            side: An ``engine.rival.Side``.
            *inputs: None for a text encoder; noise and text embeddings of both passes for a denoiser; latents for an
                autoencoder.

        Returns:
            A callable that does the work once.
        """
        ...


class Heads(Protocol):
    """Makes the heads of a discriminator, by the name of the block that each stands behind, in the order they run.

    A head is called with what its block gave and then what the block was given, and answers with one logit for each
    visual token.
    """

    def __call__(self, network: nn.Module) -> Mapping[str, nn.Module]: ...


@dataclass(frozen=True, slots=True)
class Split:
    """How a denoiser's work is shared by processes.

    Attributes:
        rules: How its blocks are hooked and cut; see ``runtime/parallel/split.py``.
        demand: What there is to split of one pass over a latent: heads, widths, tokens, groups. Imports no torch.
    """

    rules: Lazy[SplitRules]
    demand: Lazy[Callable[[Component, LatentShape], Demand]]


@dataclass(frozen=True, slots=True)
class Depth:
    """A hyper-parameter that counts like blocks, a few of which show the rate of all; for benchmarks.

    Attributes:
        name: As a card writes it.
        kept: How many are measured of a network that is too large.
        count: How many a component has. Imports no torch.
    """

    name: str
    kept: int
    count: Lazy[Callable[[Component], int]]


class Flops(Protocol):
    """Counts the floating-point operations of a network."""

    def __call__(self, params: Any, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
        """Floating-point operations of one pass over one clip.

        Args:
            params: Hyper-parameters, as the network has them.
            latent: Frames, rows, columns.
            text_tokens: Number of text tokens.
            kept: Share of the blocks of block-sparse attention that is computed; None for dense attention.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of network: how it is built, read, bound to a request, split over processes and reckoned with.

    network:  builds the bare network from (component, file or folder of its weights); one routine reads the weights.
    reader:   reads models and tokenizers together, where there is no bare network.
    tensors:  names of the reader's file sets that hold tensors; their headers are checked before anything is read.
    keymap:   official tensor names to ours; None where they are equal.
    spellings: further ways in which files name the tensors, each recognised by the names themselves.
    bind:     turns a denoising network, what is known and a pass into a denoiser; the one door of the network.
    split:    of the work of a denoiser; None where only the passes of guidance and whole clips can be shared.
    attention: types of visual self attention it can run.
    conditions: what its condition channels can hold where nothing is known, by a card's `sampling.condition`.
    caches:   whether step caches can stand between its blocks.
    tilings:  ways an autoencoder's clips can be cut into tiles.
    decodes_together: whether several processes can share the decoding of one clip.
    contrasting: a text encoder that makes the embeddings of a negative prompt with a look at the prompt.
    expands:  tasks for which a text encoder can write a prompt out at length.
    tells_unused: a text encoder that tells which words of a prompt it does not use.
    remote_code: its classes come from its own repository and run only where that was allowed.
    stored_dtype: it runs in the type its files have, whatever the others do.
    cost:     memory and operations of one generation, for the plan; None where it is not used. Imports no torch.
    flops:    operations of one pass of a denoiser, for benchmarks.
    depth:    its number of blocks, for benchmarks of a part of it.
    made_up:  stands in for files that are absent, in benchmarks.
    rivals:   the same work done by other libraries, by the library's name.
    heads:    makes the heads of a discriminator that looks through a denoiser; see ``Heads``.
    """

    network: Lazy[Callable[[Component, Path], nn.Module]] | None = None
    reader: Lazy[Reader] | None = None
    tensors: tuple[str, ...] = ()
    keymap: Lazy[KeyMap] | None = None
    spellings: tuple[Lazy[Spelling], ...] = ()
    bind: Lazy[Bind] | None = None
    split: Split | None = None
    attention: tuple[str, ...] = ("dense",)
    conditions: tuple[str, ...] = ("zeros",)
    caches: bool = False
    tilings: tuple[str, ...] = ()
    decodes_together: bool = False
    contrasting: bool = False
    expands: tuple[str, ...] = ()
    tells_unused: bool = False
    remote_code: bool = False
    stored_dtype: bool = False
    cost: Lazy[Callable[[Card, Component, Load], Cost | None]] | None = None
    flops: Lazy[Flops] | None = None
    depth: Depth | None = None
    made_up: Lazy[MadeUp] | None = None
    rivals: Mapping[str, Lazy[Rival]] = field(default_factory=dict)
    heads: Lazy[Heads] | None = None


class Convert(Protocol):
    """Writes a model at ``source`` to ``target`` in the layout ``to``; ``card`` where it is known."""

    def __call__(self, source: Path, target: Path, to: str, card: Card | None) -> Path: ...


class Cards(Protocol):
    """What a format may ask of the catalogue."""

    def find(self, model: str) -> Card: ...

    def all(self) -> Iterable[Card]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One way a model of a family may lie in a folder.

    holds: whether a folder is of this format; imports no torch.   read: the folder's card.
    """

    name: str
    holds: Lazy[Callable[[Path], bool]]
    read: Lazy[Callable[[Path, Cards], Card]]


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """A model's folders in the Diffusers layout: of the denoiser, of the autoencoder, and of each file set of the text
    encoder by name; ``params`` of the text encoder go over the card's."""

    dit: str
    vae: str
    text: Mapping[str, str]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiffusersFormat:
    """How a family's models lie in Diffusers' folders.

    pipelines: Diffusers' pipeline class to the card whose sampling defaults a folder gets that no card names and none
               is like: such folders carry no defaults of their own.
    read:      (folder, that card, all cards) to the folder's card.
    """

    pipelines: Mapping[str, str]
    layout: FolderLayout
    read: Lazy[Callable[[Path, Card, Cards], Card]]


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models.

    parts:   by the `kind` that cards name.   tasks: by the `task` that cards name.
    formats: folders it can be read from, besides its own cards.   diffusers: the Diffusers layout, where it has one.
    convert: writes a model in another layout.   interpolate: raises the frame rate of any clip.
    cases:   conformance runners by component name.   manifest: the network that a manifest of tensors describes.
    """

    name: str
    parts: Mapping[str, Part]
    tasks: Mapping[str, Task]
    formats: tuple[Format, ...] = ()
    diffusers: DiffusersFormat | None = None
    convert: Lazy[Convert] | None = None
    interpolate: Lazy[Interpolate] | None = None
    cases: Lazy[Mapping[str, Runner]] | None = None
    manifest: Lazy[Callable[[Mapping[str, Any]], Component | None]] | None = None

    def part(self, kind: str) -> Part:
        """The part of a kind. Raises: RequestError for a kind the family has not."""
        try:
            return self.parts[kind]
        except KeyError:
            known = ", ".join(f"`{name}`" for name in self.parts)
            raise RequestError(f"family `{self.name}` has no network `{kind}`: it has {known}") from None

    def task(self, name: str) -> Task:
        """The task of a name. Raises: RequestError for one the family does not do."""
        try:
            return self.tasks[name]
        except KeyError:
            known = ", ".join(f"`{name}`" for name in self.tasks)
            raise RequestError(f"family `{self.name}` has no task `{name}`: it has {known}") from None
