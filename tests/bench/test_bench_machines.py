"""Figures of one machine as a file: the commands, their time, the file, the page that is made of such files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kandinsky.bench import gpu, items, page, record
from kandinsky.bench.items import Item, Outcome
from kandinsky.bench.machine import class_of
from kandinsky.cli.main import root_command
from kandinsky.errors import RequestError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"
MACHINE = {
    "processor": "Intel(R) Xeon(R) Processor @ 2.60GHz", "cores": 2, "threads": 1, "waiting": "passive", "load": 1.0,
    "vectors": "AVX512", "versions": {"torch": "2.13.0"},
}  # fmt: skip
STAGE = {"name": "dit", "median_s": 1.0, "spread_s": 0.1, "flops": 10**9, "share": 0.5, "peak_bytes": 10**9}


def facts() -> dict[str, Any]:
    return {"machine": MACHINE, "rates": {"float32": 7e10}}


def python(code: str, limit_s: float = 60.0) -> Item:
    return Item("x", ("-c", code), limit_s)


def test_each_command_has_its_time_and_costs_the_others_nothing(tmp_path: Path) -> None:
    wanted = [
        python("print('{\"stages\": []}')"),
        python("import sys; sys.exit('no such device')"),
        python("import time; time.sleep(600)", 0.3),
        python("print('12 passed')"),
    ]
    said: list[str] = []
    path = items.measured(wanted, lambda machine: tmp_path / "a" / "x.json", facts, budget_s=100, say=said.append)
    found = page.read(path)["items"]
    assert [one["state"] for one in found] == ["done", "failed", "too long", "done"]
    assert "no such device" in found[1]["reason"] and found[3]["report"] == {"said": "12 passed"}
    assert len(said) == 4 and found[0]["command"].startswith("python -c")


def test_what_finds_no_time_is_left_out_and_said(tmp_path: Path) -> None:
    given: list[float] = []

    def run(item: Item, limit_s: float) -> Outcome:
        given.append(limit_s)
        return Outcome("done", {})

    two = [dataclasses.replace(python(""), limit_s=5.0), dataclasses.replace(python(""), limit_s=1e9)]
    items.measured(two, lambda machine: tmp_path / "x.json", facts, budget_s=50, run=run)
    assert given[0] == 5.0 and 0 < given[1] <= 50
    path = items.measured(two, lambda machine: tmp_path / "x.json", facts, budget_s=0, run=run)
    assert [one["state"] for one in page.read(path)["items"]] == ["left out"] * 2 and len(given) == 2


@pytest.mark.parametrize("wanted", [record.items(), gpu.items(), gpu.items("cpu", tiny=True)])
def test_every_command_is_one_of_the_program(wanted: list[Item]) -> None:
    command = root_command().commands["bench"]
    assert len({item.name for item in wanted}) == len(wanted)
    for item in wanted:
        if item.words[:2] == ("-m", "kandinsky"):
            assert item.words[2] == "bench" and "--json" in item.words and "--json" not in item.command
            with command.make_context("bench", list(item.words[3:]), help_option_names=["-h", "--help"]) as context:
                assert context.params["as_json"] is True


def test_ten_minutes_hold_what_is_most_wanted() -> None:
    wanted = gpu.items()
    assert sum(item.limit_s for item in wanted[:6]) <= gpu.BUDGET_S
    names = " ".join(item.name for item in wanted)
    for part in ("CUDA", "5 s", "10 s", "Image", "Flash", "Decoding", "module", "block"):
        assert part in names


REHEARSAL = """
import io, json, sys, contextlib
sys.modules["av"] = sys.modules["diffusers"] = None  # neither is installed
from pathlib import Path
from kandinsky.bench import gpu, items
from kandinsky.cli.main import main
gpu.TESTS = Path("nowhere")
def here(item, limit_s):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(item.words[2:])
    return items.told(code, out.getvalue(), err.getvalue(), 0.0)
sys.exit(gpu.main([sys.argv[1], "--device", "cpu", "--tiny", *sys.argv[2:]], run=here))
"""


@pytest.mark.slow
def test_a_rehearsal_on_cpu_writes_the_file_without_pyav_and_diffusers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    result = page.read(path)
    states = {one["name"]: one["state"] for one in result["items"]}
    reasons = {one["name"]: one["reason"] for one in result["items"] if one["state"] != "done"}
    # autoencoders are built from Diffusers' layers
    assert set(reasons) == {name for name in states if name.startswith("Decoding")} and len(reasons) == 3, reasons
    assert all("`diffusers`" in reason for reason in reasons.values())
    assert len(states) == len(gpu.items()) - 1  # all but the tests that need CUDA
    commands = {one["name"]: one["command"] for one in result["items"]}
    assert "blocks=compiled" in commands["Image Lite, blocks compiled"]
    assert "guidance=together" in commands["Nano, a clip, both passes together"]
    assert result["machine"]["processor"] and result["rates"]["float32"] > 1e8
    assert path.stem == class_of(result["machine"])
    assert "image lite" in page.page({"x": result}).lower() and page.plot(result).count("<rect") > 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "intel-xeon-avx512-1-thread"),
        ({"processor": "AMD EPYC", "vectors": "AVX2", "threads": 2}, "amd-epyc-avx2-2-threads"),
        ({"accelerator": "NVIDIA H200"}, "nvidia-h200"),
    ],
)
def test_a_class_of_machines_is_a_file_name(change: dict[str, Any], expected: str) -> None:
    assert class_of(MACHINE | change) == expected


def result(**stage: Any) -> dict[str, Any]:
    item = {"name": "Lite", "command": "kandinsky bench x", "state": "done", "reason": "", "seconds": 1.0}
    failed = {**item, "name": "Other", "state": "too long", "reason": "ended after 9 s", "report": {}}
    return {
        "format": 1, "made": "2026-01-02", **facts(), "machine_after": {"load": 2.0},
        "items": [{**item, "report": {"stages": [STAGE | stage]}}, failed],
    }  # fmt: skip


def test_a_page_shows_every_figure() -> None:
    rival = {"name": "diffusers", "seconds": [2.0, 3.0, 1.5], "ratio": 0.5, "peak_bytes": 1, "reason": ""}
    text = page.page({"a": result(against=rival)})
    assert "| Lite: dit | 1.000 | 0.100 | 50% | 1.00 | 2.000 | 0.50 |" in text
    assert "load 1.0 to 2.0" in text and "![" in text and "](a.svg)" in text
    assert "Other – too long: ended after 9 s" in text
    image = page.plot(result(against=rival))
    assert image.startswith("<svg") and ">50%<" in image and ">0.50<" in image
    nothing = page.page({"a": result(against={**rival, "seconds": [], "reason": "has nothing <like> it"})})
    assert "has nothing &lt;like&gt; it |  |" in nothing


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "items": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RequestError, match=r"cannot be read|no result file"):
        page.write(tmp_path)


def test_the_page_is_that_of_the_committed_files(tmp_path: Path) -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert files, "there is a result file of at least one machine"
    for path in files:
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        assert path.stem == class_of(json.loads(path.read_text(encoding="utf-8"))["machine"])
    for made in page.write(tmp_path):
        assert (FOLDER / made.name).read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "make docs"
