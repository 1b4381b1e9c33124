"""Encodes videos and prompts with CogVLM2-Video-LLaMA3, as Kandinsky 4's video to audio was trained.

The model's class is program code in its own repository. It runs only if the caller has allowed it; what this library
leaves open (the size of frames, the tokens) is up to that code.

Legend: T frames, P places of a frame's tokens, L tokens of text, E width of the embeddings.
Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/video2audio_pipe.py, extract_video_embedding and
extract_text_embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.errors import BackendError, OutOfMemory, WeightsError, needs
from kandinsky.model.params import Readable
from kandinsky.text.pretrained import from_folder
from kandinsky.weights.read import check_finite, read_meta
from kandinsky.weights.untrusted import first_line

TEMPLATE = "base"  # the text as it is, no numbers between the frames
SEES, READS = 1, 0  # kinds of tokens


@dataclass(frozen=True, slots=True)
class CogVlm2Params(Readable):
    """Settings of the encoder.

    Attributes:
        max_words: Number of embeddings of every prompt; longer ones are truncated, shorter ones padded with zeros,
            which are attended to.
    """

    what = "encoder parameter"
    max_words: int = 100


class _Reached(Exception):  # noqa: N818 - no fault: the rest of the model is not needed
    """Carries the states."""

    def __init__(self, states_BLE: Tensor) -> None:
        self.states_BLE = states_BLE


class CogVlm2Encoder(nn.Module):
    """A ``ClipEncoder``: hidden states before the last layer of the language model, one per frame and per token.

    Args:
        model: The model, with ``build_conversation_input_ids``, as in its repository.
        tokenizer: From the same repository.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, params: CogVlm2Params | None = None) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.params = params or CogVlm2Params()

    def encode_frames(self, frames_THWC: Tensor, times_s: Tensor) -> Tensor:
        """Embed frames, [1, T, E]: the mean over each frame's tokens. This model ignores the times."""
        states_SE = self._states("", [frames_THWC.permute(3, 0, 1, 2)], SEES)
        out: Tensor = states_SE.unflatten(0, (len(frames_THWC), -1)).mean(dim=1)[None]
        return out

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to [B, max_words, E]; each prompt in a run of its own."""
        return torch.stack([self._words(prompt) for prompt in prompts])

    def _words(self, prompt: str) -> Tensor:
        states_LE = self._states(prompt, [], READS)[: self.params.max_words]
        missing = self.params.max_words - len(states_LE)
        return torch.cat((states_LE, states_LE.new_zeros(missing, states_LE.shape[1])))

    def _states(self, text: str, films_CTHW: list[Tensor], kind: int) -> Tensor:
        """States of the tokens of one kind, [n, E].

        Raises:
            BackendError: The model's own code fails.
        """
        device = next(self.model.parameters()).device
        try:
            given = self.model.build_conversation_input_ids(
                tokenizer=self.tokenizer, query=text, images=films_CTHW, history=[], template_version=TEMPLATE
            )
            inputs = {name: given[name][None].to(device) for name in ("input_ids", "token_type_ids", "attention_mask")}
            if films_CTHW:
                inputs["images"] = [[given["images"][0].to(device, next(self.model.parameters()).dtype)]]
            states_BLE = self._before_last_layer(inputs)
        except (torch.OutOfMemoryError, MemoryError, OutOfMemory):
            raise
        except Exception as error:  # it is foreign code: anything may come
            raise _foreign(error) from error
        return states_BLE[0, inputs["token_type_ids"][0] == kind]

    def _before_last_layer(self, inputs: dict[str, Any]) -> Tensor:
        """The input of the last layer, which is not computed, nor is the head with its 128,000 tokens."""

        def stop(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(named["hidden_states"] if "hidden_states" in named else given[0])

        hook = self.model.model.layers[-1].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self.model(**inputs)
        except _Reached as reached:
            return reached.states_BLE
        finally:
            hook.remove()
        raise BackendError("the encoder never came to its last layer: is it CogVLM2-Video?")


def read_cogvlm2(folder: Path, *, params: CogVlm2Params | None = None, dtype: torch.dtype) -> CogVlm2Encoder:
    """Read model and tokenizer from a local folder, on the host; this runs the program code in that folder.

    Nothing is downloaded. Callers check permission first, see ``engine/remote_code.py``.

    Raises:
        BackendError: transformers is not installed, or the folder's code fails.
        WeightsError: Files are damaged.
    """
    with needs("transformers", "the encoder"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
    read_meta(folder, stored=True)  # reports a truncated tensor before any is read
    classes: tuple[Any, Any] = (AutoTokenizer, AutoModelForCausalLM)
    try:
        tokenizer = from_folder(classes[0], folder, trust_remote_code=True)
        model, report = from_folder(
            classes[1],
            folder,
            trust_remote_code=True,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError, WeightsError):
        raise
    except Exception as error:  # it is foreign code: anything may come
        raise _foreign(error) from error
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"tensor `{missing[0]}` is missing in `{folder}` ({len(missing)} such)")
    check_finite(dict(model.named_parameters()), str(folder))
    return CogVlm2Encoder(model, tokenizer, params)


def _foreign(error: Exception) -> BackendError:
    from transformers import __version__

    return BackendError(
        f"the encoder's own program code fails with transformers {__version__}: {type(error).__name__}: "
        f"{first_line(error)}",
        hint="install the versions that its repository names, or give precomputed embeddings as `states=…`",
    )
