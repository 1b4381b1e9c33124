"""Text embeddings of Kandinsky 4: the last hidden states of the T5 v1.1 encoder.

Legend: B prompts, L text tokens, C state width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from kandinsky.errors import BackendError, RequestError, WeightsError, needs
from kandinsky.model.params import Readable
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.pretrained import check_vocabulary, read_model, read_tokenizer_file
from kandinsky.text.sentencepiece import read_spiece

PAD, END, EXTRA = 0, 1, 100
# the token embeddings are in the file once or twice; files of the whole model contain its decoder too
LEFT_OVER = ("encoder.embed_tokens.", "decoder.", "lm_head.")


@dataclass(frozen=True, slots=True)
class T5Params(Readable):
    """Settings of a T5 encoder.

    Attributes:
        max_length: Number of tokens of every prompt, including the end token; longer prompts are truncated, shorter
            ones padded.
    """

    what = "text encoder parameter"
    max_length: int = 224

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise RequestError(f"max_length `{self.max_length}` leaves no room for a word: use 2 or more")


class T5Encoder(nn.Module):
    """The encoder and its tokenizer.

    Every prompt has ``max_length`` tokens, and none is hidden: padding takes part in the encoder's attention and in the
    denoiser's, as the model was trained. Prompts are taken as they are: no template, no cleaning.

    Source: ai-forever/Kandinsky-4, kandinsky/model/text_embedders.py, EmbedderWithTokenizer.

    Args:
        encoder: ``T5EncoderModel``.
        tokenizer: Encodes a text without end token and padding.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, params: T5Params | None = None) -> None:
        super().__init__()
        self.encoder: Any = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.params = params or T5Params()

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Text embeddings of B prompts.

        Args:
            still: Ignored.

        Returns:
            Tokens [B, max_length, C] in the encoder's type; pooled states of width 0; no mask.

        Raises:
            RequestError: There are no prompts.
        """
        if isinstance(prompts, str) or not prompts:
            raise RequestError("encode takes a list of at least one prompt")
        return self.states(torch.tensor([self.numbers(prompt) for prompt in prompts]))

    def numbers(self, prompt: str) -> list[int]:
        """Token numbers of one prompt: truncated, with an end token, padded."""
        room = self.params.max_length - 1
        numbers = [*self.tokenizer.encode(prompt, add_special_tokens=False).ids[:room], END]
        return numbers + [PAD] * (self.params.max_length - len(numbers))

    def states(self, numbers_BL: Tensor) -> TextEmbeddings:
        """Embeddings of token numbers, without a mask.

        Raises:
            BackendError: The embeddings are not finite: T5's hidden layers can overflow float16, and the result would
                be a clip of something else (the official code replaces such a prompt with zeros).
        """
        with torch.no_grad():
            tokens = self.encoder(input_ids=numbers_BL.to(self.encoder.device)).last_hidden_state
        if not bool(torch.isfinite(tokens).all()):
            name = str(tokens.dtype).removeprefix("torch.")
            raise BackendError(
                f"the text encoder's states are not finite in {name}: run it in bfloat16 or float32",
                hint='use `dtype="bfloat16"`; `fp16=False` or `dtype` of an official get_T5encoder',
            )
        return TextEmbeddings(tokens, tokens.new_zeros(len(tokens), 0))


def read_t5(folder: Path, tokenizer_folder: Path, *, params: T5Params | None = None, dtype: torch.dtype) -> T5Encoder:
    """Read encoder and tokenizer from local folders, strictly, on the host; nothing is downloaded or executed.

    Args:
        folder: Folder of the encoder.
        tokenizer_folder: Folder of the tokenizer.
        params: Settings of the encoder.
        dtype: Its type.

    Returns:
        The encoder.

    Raises:
        BackendError: transformers is not installed.
        WeightsError: A file is missing or does not fit; the message names the folder and the tensor.
    """
    with needs("transformers", "the text encoder T5"):
        from transformers import T5EncoderModel
    tokenizer = read_t5_tokenizer(tokenizer_folder)  # before the large file
    encoder: Any = read_model(T5EncoderModel, folder, dtype, types=("t5",), may_be_left_over=LEFT_OVER)
    check_vocabulary(tokenizer.get_vocab(), encoder.get_input_embeddings().num_embeddings, tokenizer_folder)
    return T5Encoder(encoder, tokenizer, params)


def read_t5_tokenizer(folder: Path) -> Tokenizer:
    """T5's tokenizer from `spiece.model`, as the official repository has it, or from `tokenizer.json`.

    Raises:
        WeightsError: Neither file exists, or the tokenizer is not T5's.
    """
    if (file := folder / "spiece.model").is_file():
        tokenizer = read_spiece(file)
        tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in reversed(range(EXTRA)))])
    elif (file := folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer_file(file)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        raise WeightsError(f"`{folder}` holds no tokenizer: looked for `spiece.model` and `tokenizer.json`")
    if (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")) != (PAD, END):
        raise WeightsError(f"`{file}` does not number padding and end as T5 does ({PAD}, {END}): is it T5's?")
    return tokenizer
