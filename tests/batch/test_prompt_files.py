"""Files of prompts: every kind, types, and what is refused with which line."""

import json
from pathlib import Path

import pytest

from kandinsky.errors import RequestError
from kandinsky.jobs.prompt_files import read, read_texts
from kandinsky.model.values import Request

BASE = Request(model="nano-t2v", prompt="", steps=3)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines(tmp_path: Path) -> None:
    rows = read(written(tmp_path, "p.txt", "# a note\na dot, red\n\n  панда  \n"))
    assert [(row.line, row.request(BASE).prompt) for row in rows] == [(2, "a dot, red"), (4, "панда")]
    assert read_texts(tmp_path / "p.txt") == ["a dot, red", "панда"]


def test_csv_has_types_and_leaves_empty_cells_to_the_options(tmp_path: Path) -> None:
    text = '\ufeffprompt, seed,size,guidance,expand,output\n"a dot, red",7,64x32,2.5,no,a.png\nпанда,,,,,\n\n'
    first, second = read(written(tmp_path, "p.csv", text))
    assert first.request(BASE) == BASE.with_values(prompt="a dot, red", seed=7, width=64, height=32, guidance=2.5)
    assert first.output == "a.png" and first.has_seed and not second.has_seed
    assert second.request(BASE) == BASE.with_values(prompt="панда") and second.output is None and second.line == 3


def test_jsonl(tmp_path: Path) -> None:
    text = (
        '{"prompt": "a\\u2028b", "steps": 5, "seconds": 0}\n\n{"prompt": "c", "seed": null, "negative_prompt": "d"}\n'
    )
    first, second = read(written(tmp_path, "p.jsonl", text))
    assert first.request(BASE) == BASE.with_values(prompt="a\u2028b", steps=5, seconds=0)
    assert second.request(BASE) == BASE.with_values(prompt="c", negative_prompt="d") and second.line == 3
    with pytest.raises(RequestError, match=r"line 1: only prompts"):
        read_texts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "# nothing\n", "holds no prompt"),
        ("p.csv", "", "first line must name"),
        ("p.csv", "a panda\n", "first line must name the columns, `prompt` among them"),
        ("p.csv", "concept,motion_level\nx,y\n", "first line must name the columns, `prompt` among them"),
        ("p.csv", "prompt,model\nx,y\n", "column `model` is not for rows: the model is one for the whole file"),
        ("p.csv", "prompt,Guidence\nx,3\n", "column `Guidence` is unknown: did you mean `guidance`"),
        ("p.csv", "prompt,sed\nx,3\n", "did you mean `seed`"),
        (
            "p.csv",
            'prompt,"neg\x1bative_prompt"\nx,3\n',
            r"column `neg\\x1bative_prompt` is unknown: did you mean `neg",
        ),
        ("p.csv", "prompt,prompt\nx,y\n", "named twice"),
        ("p.csv", "prompt,seed\na, b, 3\n", "line 2: 3 cells for 2 columns"),
        ("p.jsonl", '{"prompt": "x"}\n{"promt": "x"}\n', "line 2: column `promt` is unknown: did you mean `prompt`"),
        ("p.jsonl", '{"prompt": "x", "model": "y"}\n', "line 1: column `model` is not for rows"),
        ("p.jsonl", "{\n", "line 1 is no JSON"),
        ("p.jsonl", '["x"]\n', "line 1 is no JSON object"),
    ],
)
def test_a_broken_file_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        read(written(tmp_path, name, text))


MOVIEGEN = """prompt,concept,motion_level,expanded_prompt,ru_prompt,ru_expanded_prompt
A dog runs.,"animal,scene",high,"A brown dog runs, fast.",Собака бежит.,"Бурая собака бежит, быстро."
A hill.,scene,low,,Холм.,
,scene,low,,,
"""


def test_published_tables_are_read_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, empty = read(written(tmp_path, "moviegen.csv", MOVIEGEN))
    assert first.request(BASE) == BASE.with_values(prompt="A dog runs.", expanded_prompt="A brown dog runs, fast.")
    assert second.request(BASE) == BASE.with_values(prompt="A hill.") and empty.values == {}
    assert caplog.messages == [
        f"prompts `{tmp_path / 'moviegen.csv'}`: ignored `concept`, `motion_level`, `ru_prompt`, `ru_expanded_prompt`, "
        "which no request has"
    ]
    assert read_texts(written(tmp_path, "two.csv", MOVIEGEN.rpartition("\n,")[0])) == [
        "A brown dog runs, fast.",
        "A hill.",
    ]


@pytest.mark.parametrize(
    "name", ["id", "tags", "caption", "level", "difficulty", "ru_prompt", "prompt_en", "a\x07b", "стиль"]
)
def test_columns_of_others_are_ignored_in_both_kinds_of_file(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(written(tmp_path, "p.csv", f"{name},prompt\nx,a cat\n"))
    (same,) = read(written(tmp_path, "p.jsonl", json.dumps({"prompt": "a cat", name: {"deep": 1}}) + "\n"))
    assert row.request(BASE) == same.request(BASE) == BASE.with_values(prompt="a cat")
    assert [repr(name)[1:-1] in said and "\x07" not in said for said in caplog.messages] == [True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "seed": 1.5}', "seed `1.5` is not a whole number"),
        ('{"prompt": "x", "steps": true}', "steps `True` is not a whole number"),
        ('{"prompt": "x", "guidance": "much"}', "guidance `much` is not a number"),
        ('{"prompt": "x", "expand": "maybe"}', "expand `maybe` is not true or false"),
        ('{"prompt": 3}', "prompt `3` is not text"),
        ('{"prompt": "x", "size": "64x64", "width": 64}', "not both"),
    ],
)
def test_a_wrong_value_is_its_rows_alone(line: str, message: str, tmp_path: Path) -> None:
    bad, good = read(written(tmp_path, "p.jsonl", line + '\n{"prompt": "y"}\n'))
    with pytest.raises(RequestError, match=message):
        bad.request(BASE)
    assert good.request(BASE).prompt == "y"
