"""What defines a family of models, as values: a ``Family`` of ``Part``s, ``Task``s, folder ``Format``s and runners.

The shared code (``engine``, ``runtime``, ``bench``, ``conformance``) reads these values and names no family. They hold
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
from kandinsky.model.task import Task, What

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
    """Recognises one naming of a network's tensors in files."""

    def __call__(self, names: Collection[str]) -> KeyMap | None: ...


class Reader(Protocol):
    """Reads a model that comes with its own tokenizer and classes, such as a text encoder."""

    def __call__(self, component: Component, files: Files, precision: Precision) -> object: ...


class Vocabulary(Protocol):
    """Names of what a text encoder can name, in each of its languages, as far as a text speaks of it; "": of all."""

    def __call__(self, component: Component, files: Files, text: str) -> list[tuple[str, ...]]: ...


class MadeUp(Protocol):
    """Makes a network with random weights where its files are absent, for benchmarks."""

    def __call__(self, card: Card, device: torch.device, dtype: torch.dtype) -> object: ...


class Twin(Protocol):
    """The same denoising network in another library."""

    def __call__(
        self, library: Any, network: Any, rope_scale: tuple[float, float, float], /
    ) -> tuple[Any, Callable[..., Any]]:
        """Build it.

        Args:
            library: The imported package.
            network: Ours, with the weights that it begins with.
            rope_scale: Of the rotary embedding.

        Returns:
            The network, with weights of its own, and how it predicts: (network, noisy [B, T, H, W, C], times [B],
            text) to what ours predicts where nothing is known.
        """
        ...


class Rival(Protocol):
    """A part's work done by another library, for comparison."""

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
    """How a denoiser's work is distributed over processes.

    Attributes:
        rules: How its blocks are hooked and cut; see ``runtime/parallel/split.py``.
        demand: What there is to split in one pass over a latent: heads, widths, tokens, groups. Imports no torch.
    """

    rules: Lazy[SplitRules]
    demand: Lazy[Callable[[Component, LatentShape], Demand]]


@dataclass(frozen=True, slots=True)
class Depth:
    """A hyper-parameter that counts like blocks, a few of which show the rate of all; for benchmarks.

    Attributes:
        name: As a card writes it.
        kept: How many are measured if the network is too large.
        count: How many a component has. Imports no torch.
    """

    name: str
    kept: int
    count: Lazy[Callable[[Component], int]]


class Flops(Protocol):
    """Counts the floating-point operations of a network."""

    def __call__(self, params: Any, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
        """Count the floating-point operations of one pass over one clip.

        Args:
            params: Hyper-parameters, as the network has them.
            latent: Frames, rows, columns.
            text_tokens: Number of text tokens.
            kept: Share of the blocks of block-sparse attention that is computed; None for dense attention.

        Returns:
            Floating-point operations; a multiply-add is two.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of network: how it is built, read, bound to a request, split over processes and planned for.

    Attributes:
        network: Builds the bare network from (component, file or folder of its weights); one routine reads the weights.
        reader: Reads models and tokenizers together, if there is no bare network.
        tensors: Names of the reader's file sets that hold tensors; their headers are checked before anything is read.
        keymap: Official tensor names to ours; None if they are equal.
        spellings: Further namings of the tensors in files, each recognised by the names themselves.
        bind: Turns a denoising network, what is known and a pass into a denoiser; the one interface of the network.
        split: How a denoiser's work is split; None if only the passes of guidance and whole clips can be distributed.
        attention: Types of visual self attention it can run.
        conditions: What its condition channels can hold where nothing is known, by a card's `sampling.condition`.
        heeds: Of what a task lets requests say to be known, what a denoiser makes one clip of; None for all of it.
        frame_times: Whether a denoiser accepts a time for each frame, [B, T].
        packs: Whether a denoiser accepts clips of several sizes in one sequence, see ``denoiser.Pass.lengths``.
        caches: Whether step caches can work between its blocks.
        tilings: Ways in which an autoencoder's clips can be cut into tiles.
        decodes_together: Whether several processes can share the decoding of one clip.
        carries: Whether an autoencoder decodes a clip whose end is not known yet (``CarryingAutoencoder``).
        rounds: Whether an autoencoder's pixels are rounded to bytes, not truncated as in the official code: a truncated
            plain colour trembles by one level.
        contrasting: Whether a text encoder uses the prompt when it encodes the negative prompt.
        expands: Tasks for which a text encoder can expand a prompt.
        tells_unused: Whether a text encoder reports the words of a prompt that it does not use.
        settles: Whether a prompt settles what is made, so that seeds make hardly a difference.
        mixes: Whether a mean of a text encoder's states is between what they say, as a fade between prompts needs.
        steers: Whether a text encoder tells what the actions of a card's `roll.actions` lead to (``SteeringEncoder``).
        vocabulary: Lists what a text encoder with a closed vocabulary can name; None if it is open. Imports no torch.
        checks: Refuses a prompt, alone and without an image, that a text encoder would refuse; None if it reads any.
            Imports no torch.
        remote_code: Whether its classes come from its own repository and run only if that was allowed.
        stored_dtype: Whether it runs in the type its files have, whatever the others do.
        cost: Memory and operations of one generation, for the plan; returns None if it is not used. Imports no torch.
        flops: Operations of one pass of a denoiser, for benchmarks.
        depth: Its number of blocks, for benchmarks of a part of it.
        adapts: Linear layers that a LoRA changes unless told otherwise: endings of their names.
        heads: Discriminator heads over its blocks, for adversarial distillation.
        branches: Kinds of the networks that can stand beside a denoiser's blocks, by what they are told: `control` of a
            clip, `reference` of an image.
        made_up: Stands in for missing files, in benchmarks.
        rivals: The same work done by other libraries, by the library's name.
        twins: The same network in other libraries, to be trained beside it, by the library's name.
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
    heeds: tuple[What, ...] | None = None
    frame_times: bool = False
    packs: bool = False
    caches: bool = False
    tilings: tuple[str, ...] = ()
    decodes_together: bool = False
    carries: bool = False
    rounds: bool = False
    contrasting: bool = False
    expands: tuple[str, ...] = ()
    tells_unused: bool = False
    settles: bool = False
    mixes: bool = True
    steers: bool = False
    vocabulary: Lazy[Vocabulary] | None = None
    checks: Lazy[Callable[[Component, Files, str], None]] | None = None
    remote_code: bool = False
    stored_dtype: bool = False
    cost: Lazy[Callable[[Card, Component, Load], Cost | None]] | None = None
    flops: Lazy[Flops] | None = None
    depth: Depth | None = None
    adapts: tuple[str, ...] = ()
    made_up: Lazy[MadeUp] | None = None
    rivals: Mapping[str, Lazy[Rival]] = field(default_factory=dict)
    twins: Mapping[str, Lazy[Twin]] = field(default_factory=dict)
    heads: Lazy[Heads] | None = None
    branches: Mapping[str, str] = field(default_factory=dict)


class Convert(Protocol):
    """Writes the model at ``source`` to ``target`` in the layout ``to``; ``card`` is given if it is known."""

    def __call__(self, source: Path, target: Path, to: str, card: Card | None) -> Path: ...


class Cards(Protocol):
    """The catalogue as a format sees it."""

    def find(self, model: str) -> Card: ...

    def all(self) -> Iterable[Card]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One layout in which a model of a family may lie in a folder.

    Attributes:
        name: What it is called.
        holds: Whether a folder has this layout; imports no torch.
        read: Reads the folder's card.
    """

    name: str
    holds: Lazy[Callable[[Path], bool]]
    read: Lazy[Callable[[Path, Cards], Card]]


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """A model's folders in the Diffusers layout.

    Attributes:
        dit: Folder of the denoiser.
        vae: Folder of the autoencoder.
        text: Folder of each file set of the text encoder, by name.
        params: Hyper-parameters of the text encoder that replace the card's.
    """

    dit: str
    vae: str
    text: Mapping[str, str]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiffusersFormat:
    """How a family's models lie in Diffusers' folders.

    Attributes:
        pipelines: Diffusers' pipeline class → the card whose sampling defaults apply to a folder that no card names and
            none resembles: such folders carry no defaults of their own.
        layout: The folders.
        read: (folder, that card, all cards) → the folder's card.
    """

    pipelines: Mapping[str, str]
    layout: FolderLayout
    read: Lazy[Callable[[Path, Card, Cards], Card]]


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models.

    Attributes:
        name: What cards call it.
        parts: Networks by the `kind` that cards name.
        tasks: Tasks by the `task` that cards name.
        formats: Folders it can be read from, besides its own cards.
        diffusers: The Diffusers layout, if it has one.
        convert: Writes a model in another layout.
        interpolate: Raises the frame rate of any clip.
        cases: Conformance runners by component name.
        manifest: The network that a manifest of tensors describes.
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
        """Look up a kind of network.

        Args:
            kind: The `kind` a card gives a component.

        Returns:
            The part.

        Raises:
            RequestError: The family does not have this kind.
        """
        try:
            return self.parts[kind]
        except KeyError:
            known = ", ".join(f"`{name}`" for name in self.parts)
            raise RequestError(f"family `{self.name}` has no network `{kind}`: it has {known}") from None

    def task(self, name: str) -> Task:
        """Look up a task.

        Args:
            name: The `task` of a card.

        Returns:
            The task.

        Raises:
            RequestError: The family does not have this task.
        """
        try:
            return self.tasks[name]
        except KeyError:
            known = ", ".join(f"`{name}`" for name in self.tasks)
            raise RequestError(f"family `{self.name}` has no task `{name}`: it has {known}") from None
