"""Files of prompts: every kind, types, and what is refused with which line."""

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
        ("p.csv", "a panda\n", "column `a panda` is unknown: use prompt"),
        ("p.csv", "prompt,model\nx,y\n", "column `model` is unknown"),
        ("p.csv", "prompt,prompt\nx,y\n", "named twice"),
        ("p.csv", "prompt,seed\na, b, 3\n", "line 2: 3 cells for 2 columns"),
        ("p.jsonl", '{"prompt": "x"}\n{"promt": "x"}\n', "line 2: column `promt` is unknown"),
        ("p.jsonl", "{\n", "line 1 is no JSON"),
        ("p.jsonl", '["x"]\n', "line 1 is no JSON object"),
    ],
)
def test_a_broken_file_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        read(written(tmp_path, name, text))


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
