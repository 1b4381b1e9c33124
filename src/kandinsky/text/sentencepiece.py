"""Reads `spiece.model`, the vocabulary file of T5, into a tokenizer; the package `sentencepiece` is not needed.

The file is a protocol buffer. It provides the pieces with their scores, the table that normalises characters, and
the kind of model, which must be "unigram".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kandinsky.errors import WeightsError
from kandinsky.weights.untrusted import reading

# field numbers in sentencepiece_model.proto
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_KIND = 1, 2, 3
TRAINER_MODEL, NORMALIZER_TABLE = 3, 2
UNIGRAM, UNKNOWN = 1, 2
SPACE = "▁"


def read_spiece(file: Path) -> Tokenizer:
    """Read the tokenizer of a SentencePiece file, without the end token that a model may need.

    Raises:
        WeightsError: The file is damaged or holds another kind of model.
    """
    vocabulary: list[tuple[str, float]] = []
    unknown: int | None = None
    model: int | bytes = UNIGRAM
    table = b""
    with reading(file, "is not a SentencePiece file, or cut off, fetch it again"):
        for field, value in _fields(file.read_bytes()):
            if field == PIECES:
                piece = dict(_fields(_bytes(value)))
                if piece.get(PIECE_KIND) == UNKNOWN:
                    unknown = len(vocabulary)
                score = struct.unpack("<f", _bytes(piece[PIECE_SCORE]))[0] if PIECE_SCORE in piece else 0.0
                if not math.isfinite(score):
                    raise ValueError(f"piece {len(vocabulary)} has the score {score}")
                vocabulary.append((_bytes(piece[PIECE_TEXT]).decode("utf-8"), score))
            elif field == TRAINER:
                model = dict(_fields(_bytes(value))).get(TRAINER_MODEL, UNIGRAM)
            elif field == NORMALIZER:
                table = _bytes(dict(_fields(_bytes(value))).get(NORMALIZER_TABLE, b""))
    if model != UNIGRAM or not vocabulary or unknown is None:
        raise WeightsError(f"`{file}` holds no unigram vocabulary: is it T5's?")
    with reading(file, "holds no valid unigram vocabulary"):
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
        if table:
            tokenizer.normalizer = normalizers.Precompiled(table)
    # words are split at white space, and a piece never crosses it
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message: integers, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, at = _number(data, at)
        else:
            length, at = _number(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + length > len(data):
                raise ValueError("cut off")
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits per byte, lowest first, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 70:
            raise ValueError("a number of more than ten bytes")
        if byte < 128:
            return value, at


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number in the place of bytes")
    return value
