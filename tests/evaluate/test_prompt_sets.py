"""Readers of prompt sets: what they take, and the one line that says why they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate.prompts import read_evalcrafter, read_moviegen, read_own, read_vbench

SIX = "prompt,concept,motion_level,expanded_prompt,ru_prompt,ru_expanded_prompt\n"
ROW = 'a fox,"animal,unusual activity",high,"a red fox, running",лиса,"рыжая лиса, бежит"\n'


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_moviegen_has_six_columns_of_which_one_is_used(tmp_path: Path) -> None:
    path = written(tmp_path, "bench.csv", "\ufeff" + SIX + ROW + ROW)
    one, same = read_moviegen(path)
    assert (one.text, one.key, same.key, one.clips) == ("a red fox, running", "0001", "0002", 1)
    assert one.tags == {"concept": "animal,unusual activity", "motion_level": "high"}
    assert read_moviegen(path, "ru_prompt")[0].text == "лиса"
    assert read_moviegen(path, "prompt")[1].files() == ["0002"]


def test_moviegen_as_a_plain_list_and_as_its_first_table(tmp_path: Path) -> None:
    plain = written(tmp_path, "bench.txt", "a fox\r\n\r\n  a bear \n")
    assert [(one.text, one.line) for one in read_moviegen(plain)] == [("a fox", 1), ("a bear", 3)]
    table = written(tmp_path, "tags.csv", "Prompt,Concept,Motion level\na fox,animal,low\n")
    assert read_moviegen(table)[0].tags == {"concept": "animal", "motion_level": "low"}


def test_vbench_names_files_by_prompts_and_counts_seeds_by_dimension(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"prompt_en": "a red bus", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
        {"prompt_en": "a lake, still", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a red bus", "dimension": ["object_class"], "auxiliary_info": {"object_class": "bus"}},
    ]
    bus, lake = read_vbench(written(tmp_path, "info.json", json.dumps(entries)))
    assert bus.dimensions == ("color", "object class") and bus.facts["object_class"] == "bus" and bus.clips == 5
    assert bus.files() == [f"a red bus-{i}" for i in range(5)] and lake.files()[-1] == "a lake, still-24"
    for entry in entries:
        entry["prompt_aug"] = f"much more of {entry['prompt_en']}"
    longer = read_vbench(written(tmp_path, "longer.json", json.dumps(entries)), "prompt_aug")[0]
    assert longer.text == "much more of a red bus" and longer.name == "a red bus"


def test_evalcrafter_as_text_list_and_object(tmp_path: Path) -> None:
    text = read_evalcrafter(written(tmp_path, "prompt700.txt", "a fox\na bear\n"))
    listed = read_evalcrafter(written(tmp_path, "list.json", '["a fox", {"Prompt": "a bear", "type": "animal"}]'))
    named = read_evalcrafter(written(tmp_path, "named.json", '{"0": {"prompt": "a fox"}, "1": {"prompt": "a bear"}}'))
    for found in (text, listed, named):
        assert [(one.text, one.files()) for one in found] == [("a fox", ["0000"]), ("a bear", ["0001"])]
    assert listed[1].tags == {"type": "animal"}


def test_own_sets_have_keys_tags_and_columns(tmp_path: Path) -> None:
    lines = (
        '{"id": "k1", "prompt": "a fox", "concept": "animal"}\n\n{"id": 7, "prompt": "a bear", "long": "a big bear"}\n'
    )
    one, other = read_own(written(tmp_path, "own.jsonl", lines))
    assert (one.key, one.tags, other.key, other.line) == ("k1", {"concept": "animal"}, "7", 3)
    assert [one.text for one in read_own(written(tmp_path, "own.json", '["a", {"prompt": "b"}]'))] == ["a", "b"]
    assert read_own(written(tmp_path, "own.csv", "prompt,de\na fox,ein Fuchs\n"), "de")[0].text == "ein Fuchs"


BAD = (
    (read_moviegen, "x.csv", "", "hold no prompt"),
    (read_moviegen, "x.csv", SIX, "hold no prompt"),
    (read_moviegen, "x.csv", "text\na fox\n", "line 2: there is no column `prompt`: it has `text`"),
    (read_moviegen, "x.csv", "prompt,prompt\na,b\n", "line 1: a column is named twice"),
    (read_moviegen, "x.csv", "prompt,concept\na, b, c\n", "line 2: 3 cells for 2 columns"),
    (read_moviegen, "x.csv", 'prompt\n"a fox\n', "line 2: unexpected end of data"),
    (read_moviegen, "x.csv", "prompt,concept\n,animal\n", "line 2: `prompt` is empty"),
    (read_vbench, "x.json", "{}", "are not VBench's"),
    (read_vbench, "x.json", "[", "are not valid JSON"),
    (read_vbench, "x.json", '["a fox"]', "entry 1 is no object"),
    (read_vbench, "x.json", '[{"prompt_en": "a"}]', "entry 1: `dimension` is missing"),
    (read_vbench, "x.json", '[{"prompt_en": "a", "dimension": ["beauty"]}]', "dimension `beauty` is none of VBench's"),
    (read_vbench, "x.json", '[{"prompt_en": "../a", "dimension": ["scene"]}]', "cannot name a file"),
    (read_vbench, "x.json", f'[{{"prompt_en": "{"a" * 300}", "dimension": ["scene"]}}]', "cannot name a file"),
    (read_evalcrafter, "x.json", '{"0": {"text": "a"}}', "entry 1: there is no column `prompt`: it has `text`"),
    (read_evalcrafter, "x.json", "[]", "hold no prompt"),
    (read_own, "x.jsonl", '{"prompt": "a"}\nno\n', "line 2 is not valid JSON"),
    (read_own, "x.jsonl", "[1]\n", "line 1 is neither a text nor an object"),
    (read_own, "x.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "line 2: `id` 1 is that of line 1"),
    (read_own, "x.jsonl", '{"prompt": 5}\n', "line 1: `prompt` is empty"),
    (read_own, "x.json", '{"prompt": "a"}', "must be a JSON array"),
)  # fmt: skip


@pytest.mark.parametrize(("read", "name", "text", "said"), BAD, ids=range(len(BAD)))
def test_bad_files_are_one_clear_line(tmp_path: Path, read: object, name: str, text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(written(tmp_path, name, text))  # type: ignore[operator]
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_own(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        read_own(tmp_path / "latin.txt")
    with pytest.raises(RequestError, match="none of MovieGen's"):
        read_moviegen(tmp_path / "latin.txt", "caption")
