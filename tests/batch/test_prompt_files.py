"""Files of prompts: every kind, types, and what is refused with which line."""

import json
from pathlib import Path

import pytest

from kandinsky.errors import RequestError
from kandinsky.jobs.prompt_files import parse, read, read_texts
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


def test_lines_end_where_lines_end(tmp_path: Path) -> None:
    text = "a\u2028b\r\nc\u0085d\x0ce\rf\x1cg\u2029h\n"
    path = tmp_path / "p.txt"
    path.write_bytes(text.encode())
    assert [(row.line, row.values["prompt"]) for row in read(path)] == [
        (1, "a\u2028b"), (2, "c\u0085d\x0ce"), (3, "f\x1cg\u2029h")
    ]  # fmt: skip


def test_bytes_that_are_no_text_are_their_rows_fault(tmp_path: Path) -> None:
    for name, head in (("p.txt", b""), ("p.csv", b"prompt\n")):
        path = tmp_path / name
        path.write_bytes(head + b"a caf\xe9\na cat\n")
        bad, good = read(path)
        assert good.request(BASE).prompt == "a cat"
        with pytest.raises(RequestError, match=r"prompt `a caf\\udce9` is not valid UTF-8 text"):
            bad.request(BASE)


def test_a_broken_row_of_a_table_is_alone(tmp_path: Path) -> None:
    text = f'prompt,seed\na, b, 3\n"{"x" * 200_000}",1\na cat,4\n"quoted" and more,5\na fox,6\n'
    rows = read(written(tmp_path, "p.csv", text))
    good = [row.request(BASE) for row in rows if row.fault is None]
    assert [(one.prompt, one.seed) for one in good] == [("a cat", 4), ("a fox", 6)]
    told = [str(row.fault) for row in rows if row.fault is not None]
    assert len(told) == 3 and "line 2: 3 cells for 2 columns" in told[0] and "field limit" in told[1]


def test_an_array(tmp_path: Path) -> None:
    text = '["a dot", {"prompt": "a cat", "seed": 3, "concept": "x"}, 7, {"prompt": null, "image": "x.png"}]'
    first, second, third, fourth = read(written(tmp_path, "p.json", text))
    assert first.request(BASE).prompt == "a dot" and first.line == 1
    assert second.request(BASE) == BASE.with_values(prompt="a cat", seed=3)
    assert fourth.request(BASE) == BASE.with_values(image="x.png")
    with pytest.raises(RequestError, match="entry 3 is not a JSON object"):
        third.request(BASE)
    assert read_texts(written(tmp_path, "q.json", '["a", "b"]')) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a dot\n# no\na cat\n", ["a dot", "a cat"]),
        ('\n["a dot", "a [cat]"]', ["a dot", "a [cat]"]),
        ('{"prompt": "a dot"}\n{"prompt": "a cat"}', ["a dot", "a cat"]),
        ("[blue] dots\n", ["[blue] dots"]),
        ("{blue} dots\nand more", ["{blue} dots", "and more"]),
        ('"quoted"\n12', ['"quoted"', "12"]),
        ("[" * 50_000, ["[" * 50_000]),
    ],
)
def test_text_without_a_file(text: str, prompts: list[str]) -> None:
    assert [row.request(BASE).prompt for row in parse(text)] == prompts


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
        ("p.jsonl", '{"prompt": "x"}\n{"promt": "x"}\n', "line 2: column `promt` is unknown: did you mean `prompt`"),
        ("p.jsonl", '{"prompt": "x", "model": "y"}\n', "line 1: column `model` is not for rows"),
        ("p.json", '{"prompt": "x"}', "must be a JSON array of prompts"),
        ("p.json", "[" * 50_000 + "]" * 50_000, "is not valid JSON: it is nested too deep"),
        ("p.json", '["x", ', "is not valid JSON"),
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


@pytest.mark.parametrize("name", ["id", "tags", "caption", "level", "ru_prompt", "prompt_en", "a\x1bb", "стиль"])
def test_columns_of_others_are_ignored_in_both_kinds_of_file(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(written(tmp_path, "p.csv", f"{name},prompt\nx,a cat\n"))
    (same,) = read(written(tmp_path, "p.jsonl", json.dumps({"prompt": "a cat", name: {"deep": 1}}) + "\n"))
    assert row.request(BASE) == same.request(BASE) == BASE.with_values(prompt="a cat")
    assert [repr(name)[1:-1] in said and "\x1b" not in said for said in caplog.messages] == [True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ('["x"]', "line 1 is not a JSON object"),
        ('{"a": ' * 60_000 + "1" + "}" * 60_000, "line 1 is not valid JSON: it is nested too deep"),
        ('{"prompt": "\\udfff x"}', r"prompt `\\udfff x` is not valid UTF-8 text"),
        ('{"prompt": "x", "output": "a\\u0000b.png"}', r"not valid UTF-8 text"),
        ('{"prompt": "x", "size": "' + "9" * 5000 + '"}', "size .*is not of the form|size .* must"),
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
        _ = bad.request(BASE), bad.output
    assert good.request(BASE).prompt == "y"
