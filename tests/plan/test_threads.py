"""How many threads compute and how they wait: control groups, launchers, choices of the user, workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky.runtime import threads

ROOT, JOB = "sys/fs/cgroup", "cpu,cpuacct/job"


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {f"{ROOT}/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {f"{ROOT}/cpu.max": "max 100000\n"}, None),
        # the tightest of the group and those above it
        ("0::/a/b\n", {f"{ROOT}/a/b/cpu.max": "400000 100000", f"{ROOT}/a/cpu.max": "200000 100000"}, 2.0),
        # within a container, the path is that of the host
        ("0::/docker/0123\n", {f"{ROOT}/cpu.max": "300000 100000"}, 3.0),
        ("0::/../../x\n", {f"{ROOT}/cpu.max": "50000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/job\n3:memory:/\n",
            {
                f"{ROOT}/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                f"{ROOT}/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ("1:cpu:/\n", {f"{ROOT}/cpu/cpu.cfs_quota_us": "-1", f"{ROOT}/cpu/cpu.cfs_period_us": "100000"}, None),
        ("2:cpuset:/x\n", {f"{ROOT}/cpuset/x/cpu.max": "100000 100000"}, None),
        ("nonsense\n", {f"{ROOT}/cpu.max": "nonsense"}, None),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], expected: float | None) -> None:
    assert threads.quota(tree(tmp_path, groups, files)) == expected


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert threads.quota(tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (2.9, 2), (0.3, 1), (64.0, 8)])
def test_cores(monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int) -> None:
    monkeypatch.setattr(threads, "_allowed", lambda: 8)
    monkeypatch.setattr(threads, "quota", lambda: limit)
    assert threads.cores() == expected


PREPARE = """
import json, os, sys
from kandinsky.runtime import threads
threads._allowed = lambda: 8
threads.quota = lambda: json.loads(sys.argv[1])
threads.prepare()
names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
print(json.dumps([[os.environ.get(name) for name in names], threads.of_workers(2), "torch" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("limit", "given", "expected", "of_two"),
    [
        (None, {}, [None, "PASSIVE", "0"], {"OMP_NUM_THREADS": "4"}),
        (3.5, {}, ["3", "PASSIVE", "0"], {"OMP_NUM_THREADS": "1"}),
        (None, {"LOCAL_WORLD_SIZE": "4"}, ["2", "PASSIVE", "0"], {"OMP_NUM_THREADS": "4"}),
        (None, {"LOCAL_WORLD_SIZE": "64"}, ["1", "PASSIVE", "0"], {"OMP_NUM_THREADS": "4"}),
        # what the user chose stays
        (3.5, {"OMP_NUM_THREADS": "6"}, ["6", "PASSIVE", "0"], {}),
        (None, {"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE", None], {"OMP_NUM_THREADS": "4"}),
        (None, {"GOMP_SPINCOUNT": "1000"}, [None, None, "1000"], {"OMP_NUM_THREADS": "4"}),
    ],
)
def test_what_a_process_prepares(limit: float | None, given: dict[str, str], expected: list, of_two: dict) -> None:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "LOCAL_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(limit)], env=own | given, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [expected, of_two, False]


def test_the_command_line_prepares_before_torch_is_loaded() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    code = (
        "import os, sys; from kandinsky.cli.main import main; assert main(['--version']) == 0; "
        "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "PASSIVE 0"


def test_nothing_is_changed_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", sys))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    threads.prepare()
    assert dict(os.environ) == before
