"""What the cases of Kandinsky 3 and Kandinsky Video 1 share: the U-Net, its text, its noise, its loops.

Official tensors are rows [(B·T), C, H, W], the frames of a clip one after the other; ours are [B, T, H, W, C].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, Renoise
from kandinsky.diffusion.cosine import CosineSchedule
from kandinsky.diffusion.guidance import Denoising, Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.steps import Step
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import UNet
from kandinsky.golden.cases import Case
from kandinsky.golden.tracking import CaseError, Settings, Tensors
from kandinsky.model.values import TextEmbeddings
from kandinsky.weights.keymaps import KeyMap


def network(case: Case, keymap: KeyMap) -> UNet:
    """The network of a case, with its weights."""
    return case.network(lambda: UNet(UNetParams.from_dict(case.config)), keymap=keymap)


def clips(rows: Tensor, frames: int) -> Tensor:
    """Official rows [(B·T), C, H, W] → [B, T, H, W, C]."""
    out: Tensor = rows.movedim(1, -1).unflatten(0, (-1, frames))
    return out


def rows(x_BTHWC: Tensor) -> Tensor:
    """[B, T, H, W, C] → official rows [(B·T), C, H, W]."""
    return x_BTHWC.flatten(0, 1).movedim(-1, 1)


def noises(draws: Tensor, frames: int) -> Tensor:
    """Recorded draws [N, (B·T), C, H, W] → [N, B, T, H, W, C]."""
    return torch.stack([clips(one, frames) for one in draws])


def per_clip(inputs: Tensors, name: str, frames: int) -> Tensor:
    """One value or tensor a clip, from rows that repeat it for every frame.

    Raises:
        CaseError: They differ.
    """
    each = inputs[name]
    one = each[::frames]
    if not torch.equal(each, one.repeat_interleave(frames, dim=0)):
        raise CaseError(f"inputs.{name}", "differs from frame to frame of a clip, which is not supported")
    return one


def text(inputs: Tensors, frames: int, prefix: str = "") -> TextEmbeddings:
    """Text embeddings of the prompts, one a clip."""
    tokens_BLC = per_clip(inputs, f"{prefix}context", frames)
    return TextEmbeddings(tokens_BLC, tokens_BLC.mean(dim=1), per_clip(inputs, f"{prefix}context_mask", frames).bool())


def negative_text(inputs: Tensors, frames: int) -> TextEmbeddings:
    """What guidance contrasts the prompt with: the negative prompt where one is recorded, otherwise no text.

    The official code masks a negative prompt as the prompt is masked, unless it is given a mask of its own.
    """
    if "negative_context" not in inputs:
        return no_text(inputs)
    inputs.documentary("null_embedding")  # an argument of the official loops, which they ignore then
    tokens_BLC = per_clip(inputs, "negative_context", frames)
    mask = "negative_context_mask" if "negative_context_mask" in inputs else "context_mask"
    return TextEmbeddings(tokens_BLC, tokens_BLC.mean(dim=1), per_clip(inputs, mask, frames).bool())


def no_text(inputs: Tensors) -> TextEmbeddings:
    """The learned embedding of an empty prompt: one token."""
    null = inputs["null_embedding"][None]
    return TextEmbeddings(null[:, None], null)


def guidance(call: Settings, key: str = "guidance_scale") -> Guidance:
    """Official scales count from 0, ours from 1."""
    return Guidance(call.number(key) + 1)


def quantile(call: Settings) -> float | None:
    """The quantile of dynamic thresholding; None clamps at 1."""
    return call.number("percentile") if call.has("percentile") else None


def schedule(call: Settings, steps: str, *, predicts: str = "noise") -> CosineSchedule:
    """The noise schedule. ``steps``: the setting that says how many levels it has."""
    if (name := call.text("schedule")) != "cosine":
        raise CaseError("call.schedule", f"is `{name}`: only `cosine` is supported")
    return CosineSchedule(call.integer(steps, least=1, most=LEVELS), predicts=predicts)


def check_shape(call: Settings, key: str, tensor: Tensor) -> None:
    """Compare a recorded shape with a tensor.

    Raises:
        CaseError: A recorded shape is not that of the tensor it describes.
    """
    if call.has(key) and call.integers(key) != list(tensor.shape):
        raise CaseError(f"call.{key}", f"is {call.integers(key)}, the recorded noise has {list(tensor.shape)}")


def run_recorded(denoiser: Denoising[Tensor], start: Tensor, times: Tensor, step: Step) -> Mapping[str, Tensor]:
    """Run the loop, and keep the state after every step; of the distilled loop, the clean estimate."""
    states: list[Tensor] = []

    def on_step(_number: int, _total: int, clean: Tensor) -> None:
        if isinstance(step, Renoise):
            states.append(clean)

    kept = step if isinstance(step, Renoise) else _Keeping(step, states)
    latents = sample(denoiser, start, times, step=kept, on_step=on_step)
    return {"latents": rows(latents), "trajectory": torch.stack([rows(one) for one in states])}


class _Keeping:
    """A step that keeps the states it makes."""

    def __init__(self, step: Step, states: list[Tensor]) -> None:
        self._step = step
        self._states = states
        self.clean = step.clean

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        self._states.append(self._step.step(x, velocity, t, t_next))
        return self._states[-1]
