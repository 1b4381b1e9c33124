"""Which cards can be streamed: known from the card, before anything is loaded."""

import dataclasses

import pytest

from kandinsky.catalogue import find
from kandinsky.engine.rolling import check_stream
from kandinsky.errors import RequestError
from kandinsky.model.card import Component, Roll


def test_an_autoencoder_of_whole_clips_is_refused_by_its_card() -> None:
    for name in ("nano-t2v", "kandinsky5-lite-t2v-sft-5s"):
        check_stream(dataclasses.replace(find(name), roll=Roll()))
    card = find("kandinsky5-lite-t2v-sft-5s")
    with pytest.raises(RequestError, match="autoencoder `flux` decodes whole clips"):
        check_stream(dataclasses.replace(card, roll=Roll(), vae=Component("flux", ())))


def test_a_model_of_whole_clips_is_refused() -> None:
    with pytest.raises(RequestError, match="makes a clip as a whole"):
        check_stream(find("nano-t2v"))
