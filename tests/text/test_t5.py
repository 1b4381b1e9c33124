"""T5's text states: tokens cut, ended and padded, nothing hidden; its vocabulary file read without sentencepiece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from kandinsky.errors import RequestError, WeightsError
from kandinsky.text.sentencepiece import read_spiece
from kandinsky.text.t5 import T5Encoder, T5Params, read_t5, read_t5_tokenizer
from tiny import kandinsky4 as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("k4") / "all") / "weights"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> T5Encoder:
    return read_t5(folder / "text_encoder", folder / "tokenizer", params=T5Params(12), dtype=torch.float32)


def pieces(encoder: T5Encoder, text: str) -> list[str]:
    return [encoder.tokenizer.id_to_token(number) for number in encoder.numbers(text)]


def test_tokens_are_cut_ended_and_padded(encoder: T5Encoder) -> None:
    assert pieces(encoder, "a cat in a red hat") == ["▁a", "▁cat", "▁in", "▁a", "▁red", "▁hat", "</s>"] + ["<pad>"] * 5
    long = pieces(encoder, "a cat in " * 20)
    assert len(long) == 12 and long[-1] == "</s>" and "<pad>" not in long
    assert pieces(encoder, "")[0] == "</s>"


def test_prompts_are_taken_as_they_are(encoder: T5Encoder) -> None:
    assert pieces(encoder, "  a \n cat\t") == pieces(encoder, "a cat")
    assert pieces(encoder, "<br> A")[:-1] != pieces(encoder, "br a")[:-1]
    assert "<unk>" in pieces(encoder, "Ω")


def test_padding_is_attended(encoder: T5Encoder) -> None:
    states = encoder.encode(["a cat", "snow"])
    assert (
        states.tokens_BLC.shape == (2, 12, tiny.WIDTH) and states.mask_BL is None and states.pooled_BC.shape == (2, 0)
    )
    numbers = torch.tensor([encoder.numbers("a cat")])
    with torch.no_grad():
        open_, hidden = (
            encoder.encoder(input_ids=numbers, attention_mask=mask).last_hidden_state
            for mask in (torch.ones_like(numbers), (numbers != 0).long())
        )
    torch.testing.assert_close(states.tokens_BLC[:1], open_, rtol=1e-4, atol=1e-5)
    assert (states.tokens_BLC[:1, :3] - hidden[:, :3]).abs().max() > 1e-3


def test_a_prompt_does_not_depend_on_its_batch(encoder: T5Encoder) -> None:
    together = encoder.encode(["a cat in snow", "hat"]).tokens_BLC
    torch.testing.assert_close(together[1:], encoder.encode(["hat"]).tokens_BLC, rtol=1e-4, atol=1e-5)


def test_both_files_of_the_tokenizer_say_the_same(folder: Path, tmp_path: Path) -> None:
    from_spiece = read_t5_tokenizer(folder / "tokenizer")
    assert from_spiece.token_to_id("<extra_id_0>") == len(tiny.PIECES) + 99
    from_spiece.enable_padding(length=99)
    from_spiece.enable_truncation(3)
    from_spiece.save(str(tmp_path / "tokenizer.json"))
    from_json, again = read_t5_tokenizer(tmp_path), read_t5_tokenizer(folder / "tokenizer")
    for text in ("a cat in a red hat", "unknown Ω words", "</s> literal"):
        assert from_json.encode(text).ids == again.encode(text).ids


@pytest.mark.parametrize("cut", [1, 7, -3])
def test_a_damaged_vocabulary_is_named(tmp_path: Path, cut: int) -> None:
    (tmp_path / "spiece.model").write_bytes(tiny.spiece()[:cut])
    with pytest.raises(WeightsError, match=r"spiece\.model"):
        read_t5_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiny.spiece(model_type=2), "no unigram vocabulary"),
        (tiny.spiece([("a", 0.0, 1)]), "no unigram vocabulary"),
        (tiny.spiece([("<unk>", 0.0, 2), ("<pad>", 0.0, 3), ("</s>", 0.0, 3)]), "is it T5's"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        read_t5_tokenizer(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"looked for `spiece\.model`"):
        read_t5_tokenizer(tmp_path)


def test_scores_decide_how_a_word_is_split(tmp_path: Path) -> None:
    common = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁a", -1.0, 1), ("b", -1.0, 1)]
    for score, expected in ((-1.5, ["▁ab"]), (-9.0, ["▁a", "b"])):
        (tmp_path / "spiece.model").write_bytes(tiny.spiece([*common, ("▁ab", score, 1)]))
        tokenizer: Tokenizer = read_spiece(tmp_path / "spiece.model")
        assert tokenizer.encode("ab").tokens == expected


def test_bad_requests() -> None:
    with pytest.raises(RequestError, match="unknown text encoder parameter `length`"):
        T5Params.from_dict({"length": 3})
    with pytest.raises(RequestError, match="max_length `1`"):
        T5Params.from_dict({"max_length": 1})


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_a_list_of_prompts_is_needed(encoder: T5Encoder, prompts: object) -> None:
    with pytest.raises(RequestError, match="list of at least one prompt"):
        encoder.encode(prompts)  # type: ignore[arg-type]
