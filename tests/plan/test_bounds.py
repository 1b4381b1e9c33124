"""What no machine has is refused at once; files are listed once; a plan needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.runtime.budget import parse_memory

LITE = "kandinsky5-lite-t2v-sft-5s"


@pytest.mark.parametrize(
    "words",
    [
        ("plan", LITE, "--gpus", "18446744073709551616"),
        ("plan", LITE, "--gpus", str(10**4000)),
        ("plan", LITE, "--gpus", "-1"),
        ("plan", LITE, "--parallel", f"ulysses={10**30}"),
        ("plan", LITE, "--parallel", "data=65536,ulysses=65536"),
        ("plan", LITE, "--memory", "99999999999999999999999GB"),
        ("plan", LITE, "--memory", "9" * 400 + "GB"),
        ("plan", LITE, "--memory", "0.00001MB"),
        ("plan", LITE, "--memory", "0"),
        ("plan", LITE, "--memory", "-5GB"),
        ("plan", LITE, "--memory", "nan"),
        ("plan", LITE, "--memory", "1e9GB"),
        ("plan", LITE, "--memory", "١٢GB"),
        ("generate", "x", "--count", "1000000000"),
        ("generate", "x", "--count", "10001", "--plan"),
        ("generate", "x", "--count", "0"),
        ("bench", "--repeats", "1000000000000"),
        ("calibrate", "nano-t2v", "--seeds", "1000000000000"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_absurd_numbers_are_refused_in_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("12GB", 12 * 10**9), ("12", 12 * 10**9), (" 11.5 GiB ", int(11.5 * 2**30)), ("800m", 8 * 10**8),
     ("100000GB", 10**14), ("0.1", 10**8)],
)  # fmt: skip
def test_amounts_of_memory(text: str, bytes_: int) -> None:
    assert parse_memory(text) == bytes_


def test_amounts_of_other_types_are_refused() -> None:
    for wrong in (True, float("inf"), [12], b"12GB", "100001GB", 24):
        with pytest.raises(RequestError, match="memory"):
            kandinsky.plan(LITE, memory=wrong)  # type: ignore[arg-type]
    assert kandinsky.plan(LITE, memory="24").timed_on == "RTX 4090"


@pytest.mark.parametrize("model", sorted(catalogue.cards()))
def test_files_are_listed_once(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("KANDINSKY_WEIGHTS", raising=False)
    plan = kandinsky.plan(model, memory="80GB")
    listed: list[tuple[str, str]] = []
    for line in plan.missing:
        repo, _, names = line.partition(": ")
        listed += [(repo, name) for name in names.partition(" (gated")[0].removesuffix(" …").split(", ")]
    assert len(set(listed)) == len(listed)
    for repo, name in listed:
        folders = [other for where, other in listed if where == repo and other.endswith("/") and other != name]
        assert not any(name.startswith(folder) for folder in folders), (repo, name)


def test_two_families_that_had_one_file_twice() -> None:
    for model, name in (("kandinsky3.0", "flan_ul2_encoder/"), ("kandinsky-video-1.0", "weights/kandinsky_video.pt")):
        assert sum(name in line for line in kandinsky.plan(model, memory="80GB").missing) == 1


def test_a_plan_imports_no_torch() -> None:
    """All but that of sound, whose spectrogram has columns that torch counts."""
    code = (
        "import sys, kandinsky\nfrom kandinsky import catalogue\n"
        "for model, card in catalogue.cards().items():\n"
        "    if card.sound is None: kandinsky.plan(model, memory='80GB', gpus=2 if card.sampling.guidance > 1 else 1)\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_and_bench_take_the_options_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    from kandinsky.cli import bench, plan
    from kandinsky.engine.options import PlanOptions, RunOptions

    for command, flags, kind in ((plan, plan.PLANNED, PlanOptions), (bench, bench.RUN, RunOptions)):
        assert set(flags.only or ()) == {field.name for field in flags.fields()} and flags.kind is kind
        name = command.__name__.rpartition(".")[2]
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        for field in flags.fields():
            assert field.metadata["flags"][0] in text
    assert main(["plan", LITE, "--attention", "magic"]) != 0
    assert main(["plan", "kandinsky3.0", "--tiling", "official"]) == 2
    assert "is never tiled" in capsys.readouterr().err
