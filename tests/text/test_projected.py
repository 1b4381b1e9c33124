"""Text states of Kandinsky 3 and Kandinsky Video: what overflows, which projection tells whom, stored states."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import kandinsky
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.parts.projected import ProjectedParams, ProjectedT5Encoder, read_projected_t5
from kandinsky.text.t5 import read_t5_tokenizer
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state
from tiny import unets as tiny

MODEL, PROMPT = "kandinsky-video-1.1", "a cat in a red hat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("projected") / "all")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return read_t5_tokenizer(folder / "weights" / "flan-ul2")


def test_states_that_outgrow_float16_are_refused(tokenizer: Tokenizer) -> None:
    """The official code puts zeros in the place of such a prompt, and makes a clip of nothing."""
    t5 = copy.deepcopy(tiny.t5())
    with torch.no_grad():
        t5.encoder.final_layer_norm.weight.fill_(60000)  # type: ignore[union-attr]

    def encode(dtype: torch.dtype) -> torch.Tensor:
        projection = copy.deepcopy(tiny.projection()).float()
        made = ProjectedT5Encoder(copy.deepcopy(t5).to(dtype), tokenizer, projection)  # type: ignore[arg-type]
        return made.encode([PROMPT]).tokens_BLC

    with pytest.raises(BackendError, match="states are not finite in float16: run it in bfloat16 or float32") as caught:
        encode(torch.float16)
    assert "fp16=False" in (caught.value.hint or "")
    # half the bits, the whole range
    assert torch.isfinite(encode(torch.bfloat16)).all()
    torch.testing.assert_close(encode(torch.bfloat16), encode(torch.float32), rtol=0.1, atol=0.1)


def load(folder: Path, file: Path | None = None, **params: str) -> ProjectedT5Encoder:
    weights = folder / "weights"
    return read_projected_t5(
        weights / "flan-ul2",
        weights / "flan-ul2",
        file or weights / "t5_projections.pt",
        params=ProjectedParams(table="projection_base", **params),
        dtype=torch.float32,
    )


def test_the_interpolation_is_told_through_its_own_projection_where_the_card_says_so(
    folder: Path, tmp_path: Path
) -> None:
    plain, own = load(folder), load(folder, gap_table="projection_interpolation")
    assert torch.equal(plain.encode([PROMPT]).tokens_BLC, own.encode([PROMPT]).tokens_BLC)
    assert torch.equal(plain.encode_for_gaps([PROMPT]).tokens_BLC, plain.encode([PROMPT]).tokens_BLC)
    hidden = own.t5.states(torch.tensor([own._numbers(PROMPT)])).tokens_BLC
    expected = tiny.projection(True)(hidden)
    torch.testing.assert_close(own.encode_for_gaps([PROMPT]).tokens_BLC[:, :-1], expected)
    assert not torch.allclose(expected, own.encode([PROMPT]).tokens_BLC[:, :-1])
    # no text is no text for everybody
    assert torch.equal(own.encode_for_gaps([""]).tokens_BLC, own.encode([""]).tokens_BLC)
    # both tables come through a safetensors file unharmed
    state = read_state(folder / "weights" / "t5_projections.pt")
    assert set(state) == {f"projection_{name}.{tensor}" for name in ("base", "interpolation")
                          for tensor in ("0.weight", "1.weight", "1.bias")}  # fmt: skip
    again = load(folder, write_state(state, tmp_path / "both.safetensors"), gap_table="projection_interpolation")
    assert torch.equal(again.encode_for_gaps([PROMPT]).tokens_BLC, own.encode_for_gaps([PROMPT]).tokens_BLC)
    with pytest.raises(WeightsError, match=r"tensor `projection_wings.0.weight` is missing"):
        load(folder, gap_table="projection_wings")
    with pytest.raises(RequestError, match="unknown text encoder parameter `gap_tabel`: did you mean `gap_table`"):
        ProjectedParams.from_dict({"gap_tabel": "x"})


@pytest.fixture
def cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    return folder / "cards"


def ask(folder: Path, cache: Path, **options: object) -> np.ndarray:
    pipe = kandinsky.load(MODEL, weights=folder / "weights", device="cpu", text_cache=cache)
    picture = np.full((64, 64, 3), 90, np.uint8)
    return pipe(PROMPT, image=picture, size="64x64", steps=1, seed=3, **options).frames  # type: ignore[arg-type]


@pytest.mark.slow
def test_stored_states_stand_for_the_encoder_also_for_negative_prompts(
    folder: Path, cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, given = tmp_path / "cache", {"negative_prompt": "snow"}
    fresh = {key: ask(folder, cache, **options) for key, options in {"plain": {}, "against": given}.items()}
    assert not np.array_equal(fresh["plain"], fresh["against"])
    assert len(list(cache.iterdir())) == 3  # the prompt, no text, what is said against the prompt
    # from now on the encoder must not be read

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the text encoder was read")

    monkeypatch.setattr("kandinsky.families.parts.projected.read_t5", read)
    assert np.array_equal(ask(folder, cache), fresh["plain"])
    assert np.array_equal(ask(folder, cache, **given), fresh["against"])
    with pytest.raises(AssertionError, match="was read"):
        ask(folder, cache, negative_prompt="rain")


@pytest.mark.slow
def test_a_card_may_give_the_interpolation_its_own_projection(
    folder: Path, cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "cards"
    own.mkdir()
    text = (cards / f"{MODEL}.toml").read_text()
    params = 'params = { max_length = 128, table = "projection_base", gap_table = "projection_interpolation" }'
    (own / f"{MODEL}.toml").write_text(text.replace("[[text.parts]]", f"[text]\n{params}\n\n[[text.parts]]", 1))
    told = {}
    for name, place in (("official", cards), ("own", own)):
        monkeypatch.setenv("KANDINSKY_CARDS", str(place))
        told[name] = ask(folder, tmp_path / name, fps="medium")
    # key frames are told the same, the frames between are not
    assert len(told["own"]) == 13 and not np.array_equal(told["official"], told["own"])
