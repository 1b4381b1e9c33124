"""Diffusers' pipelines brought in line with the official code, where they deviate from it (FACTS section 15)."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers import transformer_kandinsky

from kandinsky.diffusion.schedule import flow_times
from kandinsky.model.values import TextEmbeddings


class OurTimes(FlowMatchEulerDiscreteScheduler):
    """Diffusers' scheduler on the official times of its `shift`."""

    def set_timesteps(self, num_inference_steps=None, device=None, **_):
        self.sigmas = flow_times(num_inference_steps, self.config.shift)
        self.timesteps = self.sigmas[:-1] * 1000.0
        self._step_index = self._begin_index = None


@pytest.fixture
def exact_rotation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the rounding of the rotary result to bfloat16."""
    processor = transformer_kandinsky.Kandinsky5AttnProcessor
    source = inspect.getsource(processor)
    assert source.count(".to(torch.bfloat16)") == 1
    scope = dict(vars(transformer_kandinsky))
    exec(source.replace(".to(torch.bfloat16)", ""), scope)
    monkeypatch.setattr(processor, "__call__", scope[processor.__name__].__call__)
    yield


def prompts_of(text: TextEmbeddings, negative: TextEmbeddings) -> dict[str, Any]:
    """Our text states as the arguments of their call: templates, cropping and cleaning of prompts differ."""

    def lengths(states: TextEmbeddings) -> torch.Tensor:
        return torch.tensor([0, states.tokens_BLC.shape[1]], dtype=torch.int32)

    return {
        "prompt_embeds_qwen": text.tokens_BLC,
        "prompt_embeds_clip": text.pooled_BC,
        "prompt_cu_seqlens": lengths(text),
        "negative_prompt_embeds_qwen": negative.tokens_BLC,
        "negative_prompt_embeds_clip": negative.pooled_BC,
        "negative_prompt_cu_seqlens": lengths(negative),
    }
