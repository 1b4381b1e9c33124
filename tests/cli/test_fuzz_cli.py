"""Argument vectors, defaults and prompt files that nobody would think of: each is done or refused in one line.

Nothing is loaded: what would be made is planned (`--plan`), and networks are never reached. Counts are printed.
"""

import contextlib
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.options import RunOptions
from kandinsky.errors import KandinskyError
from kandinsky.jobs.batch import Loading, Summary, part_finished, plan_items
from kandinsky.jobs.prompt_files import COLUMNS, parse, read
from kandinsky.model.values import Request

HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LINE = re.compile(r"(error|hint|note): |model nano-t2v|for a full-size|reading ")
COUNTS: Counter[str] = Counter()


def calm(examples: int) -> settings:
    return settings(
        max_examples=examples,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


texts = st.text(st.characters(exclude_characters="\x00"), max_size=40)
nasty = st.sampled_from(
    [
        *("", " ", "-", "--", "-o", "a\nb", "\x1b[2J", "\u2028", "\u202e", "\udcff", "\ud800", "x" * 300, "$HOME", "~"),
        *("../x.mp4", "%d%d.png", "/proc/1/x.mp4", "cat: part 1.mp4", "x.avi", "64x64", "9" * 5000 + "x1"),
        *("nan", "inf", "1e400", "9" * 400, "-1", "0", "2.5", "true", "cpu", "int8", "taylor", "dense"),
        *("nano-t2v", "tiny", "kandinsky4-v2a", "nano-v2a"),
    ]
)
FLAGS = """--model -m --output -o --format --size --negative --seconds --steps --guidance --shift --seed --image --mask
--mask-grow --cache --expand --expanded-prompt --fps --motion --video --states --audio-only --sound --sound-model
--count --summary --ray --workers --device --dtype --offload --attention --lora --quantize --tiling --text-cache
--parallel --trust-remote-code --sheet --json --quiet -q -h --help --memory --gpus --nonsense"""
GOOD = """--steps 3|--seed 7|--size 96x96|--seconds 0|--seconds 1.5|--guidance 2|--shift 4|-o x.mp4|--count 3
--device cpu|--json|--dtype bfloat16|--offload block|--attention sdpa|--cache taylor|--quantize int8|--text-cache off|-q
--negative blurry|-m kandinsky5-lite-t2v-sft-5s|-m nano-t2v|-o out/|--sheet s.png|-o -|--format gif"""
flags = st.sampled_from(FLAGS.split())
good = st.sampled_from([pair.split() for pair in re.split(r"[|\n]", GOOD)])
words = st.one_of(nasty, texts, flags)


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    print("\nfuzz of the command line: " + ", ".join(f"{count} {name}" for name, count in sorted(COUNTS.items())))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "here"


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """The command line in this process."""
    out, err = io.BytesIO(), io.BytesIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(out, encoding="utf-8", write_through=True)),
            contextlib.redirect_stderr(io.TextIOWrapper(err, encoding="utf-8", write_through=True)),
        ):
            code = main(arguments)
            return code, out.getvalue().decode(), err.getvalue().decode()
    finally:
        sys.stdin = before


def judge(kind: str, code: int, out: str, err: str, about: object) -> None:
    """Done, or refused in a line or two; nothing that a terminal obeys."""
    assert code in (0, 1, 2), (about, code, err)
    assert not HARMFUL.search(out) and not HARMFUL.search(err), about
    assert "Traceback" not in err, (about, err)
    lines = err.splitlines()
    if code:
        assert sum(line.startswith("error: ") for line in lines) == 1, (about, err)
        assert all(LINE.match(line) for line in lines), (about, err)
    COUNTS[f"{kind} {'done' if code == 0 else 'refused'}"] += 1


@calm(350)
@given(arguments=st.lists(good | good | words.map(lambda word: [word]), max_size=6), prompt=st.just("a panda") | words)
def test_arguments_of_generate(arguments: list[list[str]], prompt: str, here: Path) -> None:
    code, out, err = run("generate", "--plan", prompt, *(word for some in arguments for word in some))
    judge("generate", code, out, err, (prompt, *arguments))
    assert not list(here.iterdir()), "a plan writes nothing"


FREE = ("models", "show", "plan", "decode", "interpolate", "convert", "calibrate", "train", "bench", "download")


@pytest.mark.slow
@calm(350)
@given(command=st.sampled_from(FREE), arguments=st.lists(st.one_of(nasty, texts), max_size=4))
def test_arguments_of_other_commands(command: str, arguments: list[str], here: Path) -> None:
    if command in ("bench", "calibrate", "download"):  # a model that is there would be run or fetched
        arguments = ["none such", *arguments]
    code, out, err = run(command, *arguments)
    judge("other commands", code, out, err, (command, *arguments))


@calm(100)
@given(arguments=st.lists(words, max_size=4))
def test_no_command(arguments: list[str], here: Path) -> None:
    code, out, err = run(*arguments)
    judge("no command", code, out, err, arguments)


plain = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
names = st.one_of(st.sampled_from(["steps", "size", "plan", "lora", "quiet", "model"]), texts)


@calm(150)
@given(values=st.dictionaries(names, plain, max_size=3))
def test_defaults_in_a_file(values: dict[str, Any], here: Path) -> None:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "kandinsky" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in values.items())
    path.write_text(text, encoding="utf-8")
    code, out, err = run("plan", "nano-t2v", "--device", "cpu")
    judge("defaults", code, out, err, values)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    nasty,
    st.text(max_size=20),
    st.lists(texts, max_size=2),
)
rows = st.dictionaries(st.one_of(st.sampled_from(COLUMNS), texts), cells, max_size=4)
lines = st.one_of(
    texts,
    nasty,
    rows.map(lambda row: json.dumps({**row, "prompt": "a dot"})),
    st.dictionaries(st.sampled_from(["prompt", "output", "seed", "size"]), cells, max_size=3).map(json.dumps),
    rows.map(json.dumps),
    st.integers(1, 60_000).map(lambda deep: "[" * deep),
    st.lists(texts, max_size=4).map(",".join),
)


@calm(400)
@given(
    entries=st.lists(lines, max_size=5),
    ending=st.sampled_from([".txt", ".csv", ".jsonl", ".json", ""]),
    head=st.sampled_from(["", "prompt,seed,output\n", "["]),
)
@pytest.mark.slow
def test_prompt_files(entries: list[str], ending: str, head: str, here: Path) -> None:
    text = head + "\n".join(entries)
    file = Path(f"p{ending}")
    file.write_bytes(text.encode(errors="surrogatepass"))
    loading = Loading(catalogue.source_of("nano-t2v"), RunOptions(device="cpu"))
    try:
        found = read(file) if ending else parse(text)
        items, refused = plan_items(found, Request("nano-t2v", steps=1, seconds=0.0, seed=1), loading)
        left, settled = part_finished(items, loading)
    except KandinskyError:
        COUNTS["prompt files refused"] += 1
        return
    for outcome in (*refused, *settled):
        assert outcome.details is None, (text, outcome.details)
    for item in left:
        assert Path(os.path.realpath(item.target)).is_relative_to(here), text
    with Summary(Path("out.jsonl"), left) as summary:
        for outcome in (*refused, *settled):
            summary.add(outcome)
    kept = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(kept) == len(found)
    COUNTS["rows accepted"] += len(left)
    COUNTS["rows refused"] += len(refused) + len(settled)


@calm(100)
@given(entries=st.lists(lines, max_size=4))
def test_prompts_from_stdin(entries: list[str], here: Path) -> None:
    data = "\n".join(entries).encode(errors="surrogatepass")
    code, out, err = run("generate", "--prompts", "-", "--plan", "--device", "cpu", stdin=data)
    judge("stdin", code, out, err, data)
