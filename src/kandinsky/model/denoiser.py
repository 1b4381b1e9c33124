"""The one interface of a network, for sampling and training alike: ``Bind`` makes a ``Denoiser`` of it.

The state of a generation is a mapping of tracks, such as ``{"video": …}`` or ``{"audio": …}``, so that audio beside
video is one more track and not another loop. Nothing here imports torch.

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kandinsky.model.values import TextEmbeddings
    from kandinsky.ops.attention import AttentionSpec
    from kandinsky.ops.blocks import BlockRunner
    from kandinsky.ops.branches import Beside
    from kandinsky.ops.key_values import KeyValues
    from kandinsky.ops.nabla import KeptBlocks

    # latents by track, each [B, T, H, W, C]
    State = Mapping[str, Tensor]

VIDEO, AUDIO = "video", "audio"  # names of tracks
Predicts = Literal["velocity", "noise", "v", "clean"]
X = TypeVar("X", bound="Tensor | Mapping[str, Tensor]")


def each(apply: Callable[..., Tensor], first: X, *others: X) -> X:
    """Apply a function to tensors, or to each track of states that have the same tracks."""
    if isinstance(first, Mapping):
        return {name: apply(x, *(one[name] for one in others)) for name, x in first.items()}  # type: ignore
    return apply(first, *others)  # type: ignore


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a result before it is generated; pinning, condition channels and loss weights follow from it.

    Attributes:
        clean: Clean latents by track, of full size; they apply where ``mask`` is true.
        mask: Boolean masks by track, of the latent's shape or one that broadcasts to it, such as [B, T, 1, 1, 1].
        extra: Further inputs by name: `source`, the latent of an image to edit; `kept`, for an image of which a part is
            repainted, a channel that is 1 where it is kept and the latent of what is kept; and what branches are told,
            by their names.
        follow: Boolean masks by track: where the network was not trained to be given clean latents, and the state
            holds ``clean`` with the noise of each time instead; condition channels do not mark it.
        begin: Clean latents by track that the run begins from, with the noise of its first time.
    """

    clean: State = field(default_factory=dict)
    mask: State = field(default_factory=dict)
    extra: State = field(default_factory=dict)
    follow: State = field(default_factory=dict)
    begin: State = field(default_factory=dict)

    def pin(self, state: X) -> X:
        """The state with the known parts set; a new one if anything is known."""
        if not self.mask or not isinstance(state, Mapping):
            return state
        out: X = state | {  # type: ignore[operator]
            name: self.clean[name].to(state[name]).where(mask.to(state[name].device), state[name])
            for name, mask in self.mask.items()
        }
        return out

    def over(self, change: Callable[[Tensor], Tensor]) -> Known:
        """The same with every tensor changed, for example moved to a device or cut to some clips."""
        parts = (self.clean, self.mask, self.extra, self.follow, self.begin)
        return Known(*({name: change(x) for name, x in part.items()} for part in parts))


@dataclass(frozen=True, slots=True)
class Pass:
    """One of the passes of guidance.

    Attributes:
        text: Embeddings of B prompts, or of one prompt for all.
        condition: What condition channels hold where nothing is known, by the card's `sampling.condition`.
        rope_scale: As in the network.
        attention: As in the network.
        runner: Runs its blocks; one object for each pass.
        shared: What the passes of a generation compute once; filled by the first that runs.
        kept: Records what block-sparse attention keeps.
        lengths: In training, frames, rows and columns of the latents of several clips that lie end to end in one state
            [1, their places, 1, 1, C] (``ops/packed.laid``), for networks that can keep them apart (``Part.packs``).
            Each has a prompt in ``text``; times are [clips], or [1, frames of all].
        memory: What this pass remembers of finished chunks of frames, where the state holds the next chunk alone; for
            networks with causal attention.
        branches: Beside its blocks, for networks of which the family names some (``Part.branches``).
        since: Of a part of a longer clip, for how many latent frames the prompt has held before the state's first;
            below 0, so many of the state's frames are from before it.
        began: Of a part of a longer clip under one prompt, the frame that the whole clip was given to begin with, as
            latents [1, 1, H, W, C]; None where there was none, and in the part that begins with it.
        together: Whether this pass and the next run as one of twice the batch where they can; None as the network has
            it by default.
    """

    text: TextEmbeddings
    condition: str = "zeros"
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    attention: AttentionSpec | None = None
    runner: BlockRunner | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    kept: KeptBlocks | None = None
    lengths: tuple[tuple[int, int, int], ...] | None = None
    memory: KeyValues | None = None
    branches: tuple[Beside, ...] = ()
    since: int = 0
    began: Tensor | None = None
    together: bool | None = None


class Denoiser(Protocol):
    """A network bound to a request: what it predicts of a state at time t in [0, 1], 1 = noise.

    t is one time for the whole batch, or [B], as in training.
    """

    @property
    def predicts(self) -> Predicts: ...

    def __call__(self, x: State, t: Tensor, /) -> State: ...


class Bind(Protocol):
    """Makes a denoiser from a network, what is known of the result, and a pass."""

    def __call__(self, net: nn.Module, known: Known, run: Pass) -> Denoiser: ...


class OnTrack:
    """A denoiser of one track: a function of plain tensors, as a denoiser of states.

    Args:
        track: The only track of the state.
        inner: ``(x_BTHWC, t) -> prediction_BTHWC``; may have ``pair``, see ``diffusion/guidance.Pairing``.
        predicts: What it predicts.
        together: As in ``Pass``.
    """

    def __init__(
        self,
        track: str,
        inner: Callable[[Tensor, Tensor], Tensor],
        predicts: Predicts,
        *,
        together: bool | None = None,
    ) -> None:
        self.track, self.inner, self.predicts, self.together = track, inner, predicts, together

    def __call__(self, x: State, t: Tensor, /) -> State:
        return {self.track: self.inner(x[self.track], t)}

    def pair(self, other: object) -> Callable[[State, Tensor], tuple[State, State]] | None:
        """This pass and another in one call, if the inner denoisers can run together; else None."""
        make = None if self.together is False else getattr(self.inner, "pair", None)
        both = make(other.inner) if make is not None and isinstance(other, OnTrack) else None
        if both is None:
            return None

        def paired(x: State, t: Tensor) -> tuple[State, State]:
            first, second = both(x[self.track], t)
            return {self.track: first}, {self.track: second}

        return paired
