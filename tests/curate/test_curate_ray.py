"""A cluster of two workers in this machine: files that crash or hang it, and a killed worker, lose nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

ray: Any = pytest.importorskip("ray", reason="ray is not installed: the extra `ray` brings it")

import kandinsky  # noqa: E402
from curate.poison import Poisoned  # noqa: E402
from kandinsky.cli.main import main  # noqa: E402
from kandinsky.curate import engines  # noqa: E402
from kandinsky.curate import run as curation  # noqa: E402
from kandinsky.curate.run import curate  # noqa: E402
from kandinsky.errors import RequestError  # noqa: E402
from tiny.raw_videos import scene  # noqa: E402
from tiny.ray_cluster import two_workers  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # ray leaves the closing of its log files and sockets to the interpreter
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]
RULES = """
[filters]
duration = "duration >= 0.5"
duplicate = "not duplicate"
busy = "dynamicity >= percentile(dynamicity, 20)"
"""
BAD = ("crash.mp4", "hang.mp4")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with two_workers():
        yield


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Nine files: two with cuts, two equal, one broken, and those that ``Poisoned`` knows."""
    (tmp_path / "raw").mkdir()
    for number, name in enumerate(("a", "b", "crash", "d", "e", "hang", "slow", "z")):
        frames = scene(number, 12) if number % 3 else np.concatenate([scene(number, 10), scene(40 + number, 10)])
        kandinsky.Video(scene(1, 12) if name == "z" else frames, fps=12.0, seed=0).save(tmp_path / f"raw/{name}.mp4")
    (tmp_path / "raw" / "broken.mp4").write_bytes(b"\0" * 500)
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / f"{name}.parquet").to_pylist())


def told_alike(folder: Path) -> tuple[list[Any], list[Any]]:
    """Both tables without files that only some runs survive, and without when and where a file was worked on."""
    raw = [
        {name: value for name, value in row.items() if name not in ("process_start", "process_node")}
        for row in table(folder, "raw")
        if row["obs_path"] not in BAD
    ]
    return raw, [row for row in table(folder, "scenes") if row["source"] not in BAD]


def kill_when_it_begins(trace: Path, name: str) -> None:
    for _ in range(600):
        lines = trace.read_text().split("\n") if trace.exists() else []
        begun = [line for line in lines if line.startswith(name)]
        if begun:
            os.kill(int(begun[0].split()[1]), signal.SIGKILL)
            return
        time.sleep(0.1)


def test_poisoned_files_and_a_killed_worker_lose_nothing(
    cluster: None, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = videos / "rules.toml"
    told: list[str] = []
    killer = threading.Thread(target=kill_when_it_begins, args=(videos / "trace.txt", "slow.mp4"), daemon=True)
    with monkeypatch.context() as patch:
        patch.setattr(curation, "FileWork", Poisoned)
        patch.setattr(engines, "ATTEMPTS", 2)  # a worker takes seconds to begin anew
        killer.start()
        made = curate(
            videos / "raw", videos / "many", rules=rules, ray="local", workers=2, patience_s=4.0, tell=told.append
        )
    killer.join()
    begun = Counter(line.split()[0] for line in (videos / "trace.txt").read_text().splitlines())
    assert begun == {"a.mp4": 1, "b.mp4": 1, "broken.mp4": 1, "crash.mp4": 2, "d.mp4": 1, "e.mp4": 1, "hang.mp4": 2,
                     "slow.mp4": 2, "z.mp4": 1}  # fmt: skip
    raw = {row["obs_path"]: row for row in table(videos / "many", "raw")}
    assert {name for name, row in raw.items() if row["status"] == "failed"} == {*BAD, "broken.mp4"}
    assert raw["crash.mp4"]["fault"] == "its worker crashed 2 times: the decoder, or no memory was left"
    assert raw["hang.mp4"]["fault"] == "its worker crashed, or stood still for 4 seconds, 2 times"
    assert sum("died while it made" in line for line in told) == 5

    for name in BAD:  # one process would not survive them: it finds something else that it cannot use
        (videos / "raw" / name).rename(videos / name)
        (videos / "raw" / name).write_bytes(b"\0" * 500)
    alone = curate(videos / "raw", videos / "one", rules=rules)
    for name in BAD:
        (videos / name).rename(videos / "raw" / name)
    assert told_alike(videos / "many") == told_alike(videos / "one")
    assert [row["obs_path"] for row in table(videos / "many", "raw")] == [
        row["obs_path"] for row in table(videos / "one", "raw")
    ]
    assert made.dropped == alone.dropped == {"duplicate": 1, "busy": made.dropped["busy"]}
    for name in ("decoding", "signals", "dynamics", "export"):
        assert made.throughput["stages"][name]["video_s_per_s"] > 0, name
    assert (made.throughput["workers"], alone.throughput["workers"]) == (2, 1)
    summary = json.loads((videos / "many" / "curate.json").read_text())
    assert summary["throughput"] == made.throughput
    assert "Throughput" in (videos / "many" / "curate.html").read_text()

    # what killed its workers is not tried again, in one process neither
    again = curate(videos / "raw", videos / "many", rules=rules)
    assert not again.is_new and again.kept == made.kept and again.throughput == made.throughput
    (videos / "raw" / "new.mp4").write_bytes((videos / "raw" / "b.mp4").read_bytes())
    capsys.readouterr()
    given = ["data", "curate", str(videos / "raw"), "-o", str(videos / "many"), "--rules", str(rules)]
    assert main([*given, "--ray", "local", "--workers", "2"]) == 0
    said = capsys.readouterr().err
    # of those that killed their workers no stage knows anything
    assert "probe: 1 new, 7 known" in said and "decoding alone: " in said and "workers: 2, each with CPUs: 1" in said
    with pytest.raises(RequestError, match="`3` workers do not fit the ray cluster"):
        curate(videos / "raw", videos / "many", rules=rules, ray="local", workers=3)


def test_workers_need_a_cluster(videos: Path) -> None:
    with pytest.raises(RequestError, match="`workers` is for a Ray cluster"):
        curate(videos / "raw", videos / "one", workers=2)
    assert main(["data", "curate", str(videos / "raw"), "-o", str(videos / "one"), "--workers", "2"]) == 2
