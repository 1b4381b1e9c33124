"""Nano names the words of a prompt that it does not use, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.errors import WeightsError
from kandinsky.families.nano.known_words import KnownWords, stem
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano.captions import evaluation_prompts
from kandinsky.lab.nano.known_words import known_words
from kandinsky.media import recipe

ASSETS = Path(kandinsky.__file__).parent / "assets" / "nano-t2v"


@pytest.fixture(scope="module")
def encoder() -> NanoTextEncoder:
    files = (ASSETS / "text.safetensors", ASSETS / "tokenizer.json.xz")
    return NanoTextEncoder.from_files(*files, catalogue.find("nano-t2v").text.params, ASSETS / "words.json")


@pytest.mark.parametrize(
    ("prompt", "unused"),
    [
        ("a panda", ()),
        ("A PANDA, on a light blue background.", ()),
        ("a green panda", ("green",)),
        ("a panda on a green background", ()),
        ("asdfgh", ("asdfgh",)),
        ("a pizza", ("pizza",)),
        ("two pandas", ("two",)),
        ("two red apples", ("two", "red", "apples")),
        ("a small panda on the left, the camera zooms in", ()),
        ("панды на синем фоне", ()),
        ("большая панда слева, камера приближается", ()),
        ("две панды", ("две",)),
        ("панда на Луне", ("Луне",)),
        ("a panda \x1b[2J", ("2J",)),
        ("🐼", ()),
        ("", ()),
    ],
)
def test_what_is_not_used_is_named(encoder: NanoTextEncoder, prompt: str, unused: tuple[str, ...]) -> None:
    assert encoder.unused(prompt) == unused


@pytest.mark.slow
def test_a_known_word_is_never_named(encoder: NanoTextEncoder) -> None:
    """All labels on all backgrounds of the evaluation, in both languages."""
    named = {p.text: encoder.unused(p.text) for p in evaluation_prompts() if p.kind == "label"}
    assert len(named) > 700 and not {text: words for text, words in named.items() if words}


def test_words_behind_the_last_token_are_not_used(encoder: NanoTextEncoder) -> None:
    found = encoder.unused("a panda " + "on a white background " * 40 + "dances")
    assert found[-1] == "dances" and "panda" not in found


def test_the_list_is_the_one_the_command_writes() -> None:
    assert json.loads((ASSETS / "words.json").read_text(encoding="utf-8")) == known_words()
    assert (ASSETS / "words.json").stat().st_size < 150_000


def test_inflected_forms_have_one_stem() -> None:
    assert len({stem(word) for word in ("панда", "панды", "панду", "пандой", "панд")}) == 1
    assert len({stem(word) for word in ("dance", "dances", "dancing")}) == 1
    assert stem("кот") == "кот" and stem("is") == "is"


def test_a_broken_list_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"filler": 1}', '{"filler": "", "numbers": "", "roles": [], "concepts": []}'):
        (tmp_path / "words.json").write_text(text)
        with pytest.raises(WeightsError, match=r"words\.json"):
            KnownWords.read(tmp_path / "words.json")
    with pytest.raises(WeightsError, match="concepts"):
        KnownWords.read(ASSETS / "words.json").check(3, tmp_path)


def test_every_door_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [
        "generate",
        "two pandas",
        "-m",
        "nano-t2v",
        "--seconds",
        "0",
        "--steps",
        "1",
        "--device",
        "cpu",
        "-o",
        "a.png",
        "--json",
    ]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert "`two`" in said.err and json.loads(said.out)["recipe"]["unused_words"] == ["two"]
    assert recipe.read(tmp_path / "a.png")["unused_words"] == ["two"]
    asked[1] = "a panda"
    assert main(asked) == 0
    said = capsys.readouterr()
    assert "not used" not in said.err and "unused_words" not in json.loads(said.out)["recipe"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("panda", {"panda"}), ("ПАНДЫ", {"panda"}), ("crying cat", {"crying cat"}), ("zqx", set()), ("panda zqx", set())],
)
def test_what_can_be_shown_is_found(text: str, shown: set[str]) -> None:
    known = KnownWords.read(ASSETS / "words.json")
    assert {english for english, _ in known.found(text)} == shown
    assert set(known.found(text)) <= set(known.found()) and len(known.found()) == len(known.concepts)


def test_every_concept_is_found_by_its_own_name() -> None:
    known = KnownWords.read(ASSETS / "words.json")
    assert all(names in known.found(name) for names in known.names for name in names)


def test_the_command_lists_and_searches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nano-t2v", "--concepts", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert everything["model"] == "nano-t2v" and ["panda", "морда панды"] in everything["concepts"]
    assert main(["show", "nano-i2v", "--search", "панды"]) == 0
    assert capsys.readouterr().out.split() == ["panda", "морда", "панды"]
    assert main(["show", "nano-t2v", "--search", "b zqx"]) == 2
    assert "knows nothing by `b zqx`" in capsys.readouterr().err
    assert main(["show", "kandinsky4-t2v-flash", "--concepts"]) == 2
    assert "has no list of what it can show" in capsys.readouterr().err
