"""Text embeddings of Kandinsky 3 and Kandinsky Video 1: T5's last hidden states, projected.

Legend: B prompts, L text tokens, C width of the states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.parts.keymaps import PROJECTION
from kandinsky.model.params import Readable
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.store import join
from kandinsky.text.t5 import END, T5Encoder, T5Params, read_t5
from kandinsky.weights.read import assign_state, read_state

RULES = ("official", "diffusers")


@dataclass(frozen=True, slots=True)
class ProjectedParams(Readable):
    """Settings of a text encoder with a projection.

    Attributes:
        max_length: Maximum number of tokens of a prompt, including the end token.
        table: Where the projection lies in its file, such as `projections.t5`; empty: the file holds nothing else.
        gap_table: Where a projection only for the interpolation lies in it; empty: it uses the common one.
        rule: What rows behind the last token hold: "official", zeros; "diffusers", what the projection makes of zeros,
            and there a negative prompt also keeps an end and a mask of its own, and has as many rows as the prompt.
    """

    what = "text encoder parameter"
    max_length: int = 128
    table: str = ""
    gap_table: str = ""
    rule: str = "official"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise RequestError(f"text encoder's rule `{self.rule}` is unknown: use {' or '.join(RULES)}")


class Projection(nn.Sequential):
    """A linear layer and a normalisation; official names 0 and 1."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, out, bias=False), nn.LayerNorm(out))

    def context(self, hidden_BLC: Tensor, mask_BL: Tensor) -> TextEmbeddings:
        """Context states: masked rows are zero, and rows end one after the last that counts.

        Source:  ai-forever/KandinskyVideo@4e10a23, condition_encoders.py, ConditionEncoder.forward.

        Args:
            mask_BL: True or 1 where a token counts.

        Returns:
            With the mean over all these rows, the zero ones too, as the pooled state: the network asks with it.
        """
        mask = mask_BL.bool()
        length = int(mask.sum(dim=1).max()) + 1
        linear: nn.Linear = self[0]  # type: ignore[assignment]
        tokens = self(hidden_BLC[:, :length].to(linear.weight.dtype)) * mask[:, :length, None]
        return TextEmbeddings(tokens, tokens.mean(dim=1), mask[:, :length])

    def rows(self, hidden_BLC: Tensor, mask_BL: Tensor) -> TextEmbeddings:
        """The same by the rule of Diffusers: every row is projected and none cut off; masked ones are given as zeros.

        Source: Diffusers, models/unets/unet_kandinsky3.py, Kandinsky3EncoderProj.
        """
        linear: nn.Linear = self[0]  # type: ignore[assignment]
        tokens = self(hidden_BLC.to(linear.weight.dtype))
        return TextEmbeddings(tokens, tokens.mean(dim=1), mask_BL)


def no_text(width: int) -> TextEmbeddings:
    """Embeddings of an empty prompt: one masked token, which a network replaces by a learned embedding."""
    tokens = torch.zeros(1, 1, width)
    return TextEmbeddings(tokens, tokens[:, 0], torch.zeros(1, 1, dtype=torch.bool))


class ProjectedT5Encoder(nn.Module):
    """T5's encoder and the projection.

    An empty text counts as no text: one masked token, which each network replaces with an embedding it learned. Every
    prompt is encoded by itself, so that its embeddings do not depend on others.

    Quirk: one zero row is left behind the last token, and is part of the pooled mean, except for prompts of the full
    length.

    Args:
        encoder: As for ``T5Encoder``.
        tokenizer: As for ``T5Encoder``.
        projection: That of the denoiser.
        gaps: That of the interpolation, if it has its own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        projection: Projection,
        params: ProjectedParams | None = None,
        *,
        gaps: Projection | None = None,
    ) -> None:
        super().__init__()
        params = params or ProjectedParams()
        self.rule = params.rule
        self.t5 = T5Encoder(encoder, tokenizer, T5Params(params.max_length))
        self.projection = projection.eval().requires_grad_(False)
        self.gap_projection = projection if gaps is None else gaps.eval().requires_grad_(False)

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Text embeddings of B prompts.

        Args:
            still: Ignored.

        Returns:
            Tokens [B, L, C] and mask [B, L]; pooled states [B, C], see ``Projection.context``.

        Raises:
            RequestError: There are no prompts.
        """
        return self._all(prompts, self.projection)

    def encode_for_gaps(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """``encode`` for the interpolation, through its own projection if there is one."""
        return self._all(prompts, self.gap_projection)

    def encode_against(self, negative: str, prompt: str) -> TextEmbeddings:
        """Embeddings of a negative prompt as the official code computes them beside a prompt.

        Quirk: it is truncated to the prompt's number of tokens, its last one is the end token, and it is masked as the
        prompt is, so that a shorter one also includes the padding behind it. Not so by the other rule, see
        ``ProjectedParams``.
        """
        if not negative.strip():
            return self.nothing()
        length = len(self._numbers(prompt))
        if self.rule == "diffusers":
            return self._states(self._numbers(negative), self.projection, rows=self._rows(length))
        numbers = self.t5.numbers(negative)[:length]
        if numbers[-1] != 0:
            numbers[-1] = END
        return self._states(numbers, self.projection)

    def nothing(self) -> TextEmbeddings:
        """Embeddings of an empty prompt, see ``no_text``."""
        like = self.projection.get_submodule("1").get_parameter("weight")
        return no_text(len(like)).to(like.device, like.dtype)

    def _all(self, prompts: Sequence[str], projection: Projection) -> TextEmbeddings:
        if isinstance(prompts, str) or not prompts:
            raise RequestError("encode takes a list of at least one prompt")
        return join([self._states(self._numbers(p), projection) if p.strip() else self.nothing() for p in prompts])

    def _numbers(self, prompt: str) -> list[int]:
        numbers = self.t5.numbers(prompt)
        return numbers[: numbers.index(END) + 1]

    def _rows(self, length: int) -> int:
        """Number of rows of a prompt of ``length`` tokens."""
        return min(length + 1, self.t5.params.max_length)

    def _states(self, numbers: list[int], projection: Projection, *, rows: int | None = None) -> TextEmbeddings:
        hidden = self.t5.states(torch.tensor([numbers])).tokens_BLC
        rows = self._rows(len(numbers)) if rows is None else rows
        mask = torch.arange(rows, device=hidden.device)[None] < len(numbers)
        project = projection.rows if self.rule == "diffusers" else projection.context
        return project(nn.functional.pad(hidden, (0, 0, 0, rows - len(numbers))), mask)  # cut where there are too many


def read_projected_t5(
    folder: Path,
    tokenizer_folder: Path,
    projection: Path,
    *,
    params: ProjectedParams | None = None,
    dtype: torch.dtype,
) -> ProjectedT5Encoder:
    """Read encoder and projection from local files, strictly, on the host.

    Args:
        folder: Folder of the encoder.
        tokenizer_folder: Folder of the tokenizer.
        projection: The file with the projection; may be the U-Net's own.
        params: Settings of the encoder.
        dtype: Its type.

    Returns:
        The encoder.

    Raises:
        BackendError: transformers is not installed.
        WeightsError: A file is missing or does not fit; the message names the tensor.
    """
    params = params or ProjectedParams()
    state = read_state(projection)
    read = partial(projection_of, state, dtype=dtype, where=str(projection))
    layers = read(table=params.table)
    gaps = read(table=params.gap_table) if params.gap_table else None
    bare = read_t5(folder, tokenizer_folder, dtype=dtype)
    return ProjectedT5Encoder(bare.encoder, bare.tokenizer, layers, params, gaps=gaps)


def projection_of(state: Mapping[str, Tensor], *, table: str = "", dtype: torch.dtype, where: str) -> Projection:
    """Build the projection from its tensors, whose shapes give its size.

    Args:
        state: Tensors by name.
        table: Prefix of their names.
        dtype: Its type.
        where: What to call the file in messages.

    Returns:
        The projection.

    Raises:
        WeightsError: A tensor is missing or does not fit.
    """
    prefix = f"{table}." if table else ""
    tensors = {PROJECTION.to_ours(name.removeprefix(prefix)): t for name, t in state.items() if name.startswith(prefix)}
    if "0.weight" not in tensors:
        raise WeightsError(f"tensor `{prefix}0.weight` is missing in `{where}`: it holds no such projection")
    out, width = tensors["0.weight"].shape
    with torch.device("meta"):
        layers = Projection(width, out)
    assign_state(layers, tensors, dtype=dtype, where=where)
    return layers
