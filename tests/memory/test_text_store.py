"""Text states on disk: a hit needs no encoder and equals a fresh state; whatever is wrong with a file is a miss."""

import logging
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import kandinsky
from kandinsky.files import cache_folder
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.text import store as stores
from kandinsky.text.store import TextStore, encode_each, fingerprint, join


def states_of(prompt: str) -> TextEmbeddings:
    g = torch.Generator().manual_seed(len(prompt))
    return TextEmbeddings(torch.randn(1, len(prompt), 4, generator=g).bfloat16(), torch.randn(1, 3, generator=g))


class Encoder:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held = 0

    def encode(self, prompts, *, still=False):
        (prompt,) = prompts
        self.asked.append(prompt)
        return states_of(prompt)

    @contextmanager
    def hold(self):
        self.held += 1
        yield self


def equal(a: TextEmbeddings, b: TextEmbeddings) -> bool:
    masks = (a.mask_BL is None) == (b.mask_BL is None) and (a.mask_BL is None or torch.equal(a.mask_BL, b.mask_BL))
    return torch.equal(a.tokens_BLC, b.tokens_BLC) and torch.equal(a.pooled_BC, b.pooled_BC) and masks


def test_a_hit_holds_no_encoder_and_gives_the_same_bits(tmp_path: Path) -> None:
    store, encoder = TextStore(tmp_path / "new", lambda: "e"), Encoder()
    prompts = ["a cat", "a longer dog", "a cat"]
    fresh = encode_each(prompts, still=False, encoder=encoder.hold, store=store)
    assert encoder.asked == ["a cat", "a longer dog"] and encoder.held == 1
    again = encode_each(prompts, still=False, encoder=encoder.hold, store=store)
    assert encoder.held == 1, "nothing was missing"
    assert all(equal(a, b) for a, b in zip(fresh, again, strict=True))
    encode_each(["a cat"], still=True, encoder=encoder.hold, store=store)
    assert encoder.held == 2, "a still image has states of its own"
    other = TextStore(store.folder, lambda: "another encoder")
    encode_each(["a cat"], still=False, encoder=encoder.hold, store=other)
    assert encoder.held == 3, "states belong to the encoder that made them"


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_a_miss_with_a_warning(tmp_path: Path, damage: bytes | None, caplog) -> None:
    store, encoder = TextStore(tmp_path, lambda: "e"), Encoder()
    encode_each(["a cat"], still=False, encoder=encoder.hold, store=store)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        (states,) = encode_each(["a cat"], still=False, encoder=encoder.hold, store=store)
    assert equal(states, states_of("a cat")) and encoder.held == 2
    assert "damaged and will be computed again" in caplog.text
    assert equal(store.get("a cat", still=False), states), "the file is whole again"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder = Encoder()
    encode_each(["a cat"], still=False, encoder=encoder.hold, store=TextStore(tmp_path / "file" / "x", lambda: "e"))
    assert "cannot be cached" in caplog.text


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "KEPT_FILES", 2)
    store, encoder = TextStore(tmp_path, lambda: "e"), Encoder()
    for i, prompt in enumerate(["one", "two", "three"]):
        encode_each([prompt], still=False, encoder=encoder.hold, store=store)
        if store.path(prompt, still=False).exists():
            os.utime(store.path(prompt, still=False), (i, i))
    assert store.get("one", still=False) is None and store.get("three", still=False) is not None


def test_joined_states_are_filled_up_and_masked() -> None:
    short, long = states_of("ab"), states_of("abcd")
    both = join([short, long])
    assert both.mask_BL is not None and both.mask_BL.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(both.tokens_BLC[0, :2], short.tokens_BLC[0]) and not both.tokens_BLC[0, 2:].any()
    assert join([long, long]).mask_BL is None and equal(join([short]), short)


def test_the_fingerprint_sees_every_tensor_and_setting(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights, words = tmp_path / "w.safetensors", tmp_path / "tokenizer.json"
    words.write_text("{}")

    def print_of(value: float = 0.0, dtype: str = "float32") -> str:
        save_file({"a": torch.ones(1000), "b": torch.full((1000,), value)}, weights)

        os.utime(weights, (1, 1))
        return fingerprint([weights], [words], {"dtype": dtype})

    first = print_of()
    assert print_of() == first and print_of(value=1.0) != first and print_of(dtype="bfloat16") != first
    words.write_text("{ }")
    assert print_of() != first


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KANDINSKY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/kandinsky")
    monkeypatch.setenv("KANDINSKY_CACHE", "/else")
    assert cache_folder() == Path("/else")
    for word in ("off", "0", "OFF", ""):
        monkeypatch.setenv("KANDINSKY_CACHE", word)
        assert cache_folder() is None


def test_a_pipeline_keeps_states_where_they_are_worth_it(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANDINSKY_CACHE", str(tmp_path / "cache"))
    assert kandinsky.load(official, device="cpu").context.text_store is None, "a small encoder is read as quickly"
    monkeypatch.setattr("kandinsky.engine.text_states.WORTH_IT", 1)
    assert kandinsky.load(official, device="cpu", text_cache=False).context.text_store is None
    pipe = kandinsky.load(official, device="cpu", offload="module")
    assert pipe.context.text_store is not None and pipe.context.text_store.folder == tmp_path / "cache" / "text"
    request = Request(str(official), "a cat", seconds=0, steps=1, seed=7)
    fresh = pipe.encode([pipe.resolve(request)])
    del pipe.placement._builders["text"]
    again = pipe.encode([pipe.resolve(request)])
    assert all(equal(a, b) for a, b in zip(fresh, again, strict=True))
    monkeypatch.setenv("KANDINSKY_CACHE", "off")
    assert kandinsky.load(official, device="cpu").context.text_store is None
    own = kandinsky.load(official, device="cpu", text_cache=tmp_path / "own").context.text_store
    assert own is not None and own.folder == tmp_path / "own"


def test_a_store_of_somebody_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    store = TextStore(tmp_path, lambda: "e")
    store.put("a cat", states_of("a cat"), still=False)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "touch", refused)
    found = store.get("a cat", still=False)
    assert found is not None and equal(found, states_of("a cat")) and not caplog.records
