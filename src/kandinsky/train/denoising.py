"""How training enters a model's denoiser: noise, target and prediction, through the same ``bind`` as sampling.

Nothing here knows a family: what a network predicts and on which schedule follow from the model's sampler, so the
objectives built on ``Denoising`` serve flow matching, noise prediction and v-prediction alike.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.context import Context
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.denoiser import VIDEO, Known, Pass, Predicts
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues
from kandinsky.ops.packed import Size, laid, taken
from kandinsky.text.store import join
from kandinsky.train.branch import beside_of
from kandinsky.train.times import LEVELS, to_levels
from kandinsky.train.work import done


@dataclass(frozen=True, slots=True)
class Given:
    """What a network is told besides the noisy latent.

    Attributes:
        text: Embeddings of B prompts.
        known: What is known of the results.
    """

    text: TextEmbeddings
    known: Known = field(default_factory=Known)

    def to(self, device: torch.device | str) -> Given:
        """The same on another device."""
        return Given(self.text.to(device), self.known.over(lambda x: x.to(device)))


@dataclass(frozen=True, slots=True)
class Untold:
    """Embeddings of one prompt for clips and for stills, which text encoders may put into other words around it.

    Attributes:
        clip: For clips of several frames.
        still: For images.
    """

    clip: TextEmbeddings
    still: TextEmbeddings

    def of(self, latent_BTHWC: Tensor) -> TextEmbeddings:
        """Those for latents like these."""
        return self.still if latent_BTHWC.shape[1] == 1 else self.clip


class Denoising:
    """The noise process and the door of a model's denoiser.

    Args:
        context: The model.
        job: Gives the card's values for the size that is trained: sampler, shift, condition channels, attention.
        track: Of the state.
        part: The component that is trained.
        attention: The visual self attention; the job's where absent.

    Raises:
        BackendError: The model's network is no denoiser.
    """

    def __init__(
        self,
        context: Context,
        job: Job,
        track: str = VIDEO,
        part: str = "dit",
        attention: AttentionSpec | None = None,
    ) -> None:
        bind = context.part(part).bind
        if bind is None:
            raise BackendError(f"network `{context.card.components[part].kind}` is not a denoiser")
        self.context, self.job, self.track = context, job, track
        self.rules, self.shift = sampler(job.sampling.sampler), job.shift
        self.noising, self._bind = self.rules.noising(job.shift), bind()
        self.attention = attention

    def under(self, attention: AttentionSpec) -> Denoising:
        """The same noise process and network under another visual self attention."""
        other = copy.copy(self)
        other.attention = attention
        return other

    @property
    def predicts(self) -> Predicts:
        """What the network predicts."""
        return self.rules.predicts

    @property
    def is_flow(self) -> bool:
        """Whether the way from latent to noise is straight, and its times continuous."""
        return self.predicts == "velocity"

    def times(self, t: Tensor) -> Tensor:
        """Times as the schedule has them: those with discrete levels take the next one."""
        return t if self.is_flow else to_levels(t)

    def as_noisy(self, u: Tensor) -> Tensor:
        """Times at which noise has the share u of latent and noise together, as it has at time u of flow matching.

        Times that are drawn to say how much noise there shall be mean the same for every schedule then: that of
        CogVideoX has σ / (α + σ) = 0.11 at time 0.018.
        """
        if self.is_flow:
            return u
        apart = (self._noise_of_levels.to(u.device)[None] - u.flatten()[:, None]).abs()
        return ((apart.argmin(1) + 1) / LEVELS).view(u.shape)

    @cached_property
    def _noise_of_levels(self) -> Tensor:
        """The share of noise at each level of the schedule."""
        signal, spread = (share.flatten() for share in self.shares(torch.arange(1, LEVELS + 1) / LEVELS))
        return spread / (signal + spread)

    def noised(self, clean_BTHWC: Tensor, noise_BTHWC: Tensor, t: Tensor) -> Tensor:
        """Clean latents with as much noise as there is at time t, [B] or [B, T], one of each frame."""
        return self._mix(clean_BTHWC, noise_BTHWC, t, lambda x, e, at: self.noising.noised(x, e, at))

    def target(self, clean_BTHWC: Tensor, noise_BTHWC: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict of ``noised`` at the same times."""
        return self._mix(clean_BTHWC, noise_BTHWC, t, lambda x, e, at: self.rules.target(x, e, at, self.shift))

    def shares(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of latent and noise at times [B] or [B, T], to be spread over latents."""
        one, none = torch.ones(()), torch.zeros(())
        each = t.flatten().cpu()
        at = [(self.noising.noised(one, none, now), self.noising.noised(none, one, now)) for now in each]
        signal, spread = (torch.stack(values).view(t.shape).to(t.device) for values in zip(*at, strict=True))
        return _spread(signal), _spread(spread)

    def clean_of(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction means."""
        if self.predicts == "clean":
            return prediction
        if self.predicts == "velocity":
            return noisy - _spread(t.to(noisy)) * prediction
        signal, spread = self.shares(t)
        if self.predicts == "v":
            return signal * noisy - spread * prediction
        return (noisy - spread * prediction) / signal.clamp_min(1e-3)

    def noise_of(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction means."""
        if self.predicts == "noise":
            return prediction
        if self.predicts == "velocity":
            return noisy + (1 - _spread(t.to(noisy))) * prediction
        signal, spread = self.shares(t)
        if self.predicts == "v":
            return spread * noisy + signal * prediction
        return (noisy - signal * prediction) / spread.clamp_min(1e-3)

    def moved(self, prediction: Tensor, noisy: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """One deterministic step (Euler, DDIM) from times t to earlier times ``to``."""
        if self.is_flow:
            return noisy + _spread((to - t).to(noisy)) * prediction
        return self.noised(self.clean_of(prediction, noisy, t), self.noise_of(prediction, noisy, t), to)

    def predict(
        self, network: nn.Module, noisy_BTHWC: Tensor, t: Tensor, given: Given, memory: KeyValues | None = None
    ) -> Tensor:
        """The network's prediction, float32, with what is known in its place in the input.

        Args:
            network: The model's denoiser, or one of the same kind.
            noisy_BTHWC: Latents at times t.
            t: [B]; or [B, T], where the network takes a time of each frame.
            given: Text and what is known.
            memory: Of finished frames, whose next chunk these are.
        """
        return self._predict(network, noisy_BTHWC, t, given, None, memory)

    def predict_packed(
        self, network: nn.Module, noisy: Sequence[Tensor], times: Sequence[Tensor], given: Sequence[Given]
    ) -> list[Tensor]:
        """The network's predictions of clips of several sizes, in one pass.

        Args:
            network: The model's denoiser, of a kind that ``packs``.
            noisy: Latents of one clip each, [1, T, H, W, C].
            times: Of each clip, all [1] or all [1, T].
            given: Of each clip.
        """
        lengths = [_size(x) for x in noisy]
        whole = Given(join([one.text for one in given]), _laid([one.known for one in given], noisy, self.track))
        t = torch.cat(list(times), dim=-1)
        out = self._predict(network, laid(noisy), t, whole, tuple(lengths))
        return taken(out, lengths)

    def _predict(
        self,
        network: nn.Module,
        noisy: Tensor,
        t: Tensor,
        given: Given,
        lengths: tuple[Size, ...] | None,
        memory: KeyValues | None = None,
    ) -> Tensor:
        run = Pass(
            given.text,
            condition=self.job.sampling.condition,
            rope_scale=self.job.sampling.rope_scale,
            attention=self.attention or self.context.attention_of(self.job),
            lengths=lengths,
            memory=memory,
            branches=beside_of(network, given.known.extra),
        )
        state = given.known.pin({self.track: noisy})
        sizes = [_size(noisy)] * len(noisy) if lengths is None else lengths
        done(flops=self._flops(network, noisy, sizes, given.text.tokens_BLC.shape[1], run.attention))
        return self._bind(network, given.known, run)(state, t)[self.track].float()

    def _flops(
        self, network: nn.Module, x: Tensor, sizes: Sequence[Size], text_tokens: int, attention: AttentionSpec | None
    ) -> float:
        """Operations of a pass over clips of these sizes, with those of its way back; 0 where the family is silent."""
        part = self.context.part("dit")
        if part.flops is None:
            return 0.0
        params, forwards = getattr(network, "params", None), 0.0
        patch = getattr(params, "patch_size", (1, 1, 1))
        is_dense = attention is None or attention.type == "dense"
        for frames, rows, columns in sizes:
            grid = (frames // patch[0], rows // patch[1], columns // patch[2])
            kept = None if is_dense else attention.expected_share(grid)  # type: ignore[union-attr]
            forwards += float(part.flops()(params, (frames, rows, columns), text_tokens, kept))
        return forwards * (1 + _ways_back(network, x))

    def _mix(self, clean: Tensor, noise: Tensor, t: Tensor, rule: object) -> Tensor:
        """Apply a rule of one time to each clip, or to each frame of each clip."""
        assert callable(rule)
        if t.ndim == 0:
            out: Tensor = rule(clean, noise, t)
            return out
        return torch.stack([self._mix(*each, rule) for each in zip(clean, noise, t, strict=True)])


def _ways_back(network: nn.Module, x: Tensor) -> float:
    """Passes backwards, as many as a pass forwards costs: one for what came in, one for the weights that learn."""
    if not torch.is_grad_enabled():
        return 0.0
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    learned = sum(size for size, learns in sizes if learns)
    if not learned:
        return float(x.requires_grad)
    return 1.0 + learned / sum(size for size, _ in sizes)


def _size(x_BTHWC: Tensor) -> Size:
    frames, rows, columns = x_BTHWC.shape[1:4]
    return frames, rows, columns


def _laid(known: Sequence[Known], clips: Sequence[Tensor], track: str) -> Known:
    """What is known of clips, as that of the sequence in which they lie end to end."""
    names = dict.fromkeys(name for one in known for name in one.extra)
    if odd := [name for name in names if not all(name in one.extra for one in known)]:
        raise RequestError(
            f"`{odd[0]}` is given of some clips of a sequence, and not of others: give it of all or none"
        )
    extra = {name: laid([one.extra[name] for one in known]) for name in names}
    if not any(one.mask for one in known):
        return Known(extra=extra)
    masks = [
        (one.mask[track] if one.mask else x.new_zeros(1, 1, 1, 1, 1, dtype=torch.bool)).expand(*x.shape[:4], 1)
        for one, x in zip(known, clips, strict=True)
    ]
    clean = [one.clean.get(track, x) for one, x in zip(known, clips, strict=True)]
    return Known({track: laid(clean)}, {track: laid(masks)}, extra)


def _spread(t: Tensor) -> Tensor:
    """[B] or [B, T] with dimensions behind it up to [B, T, H, W, C]; a scalar as it is."""
    return t.view(*t.shape, *(1,) * (5 - t.ndim)) if t.ndim else t
