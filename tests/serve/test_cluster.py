"""A real server with two workers on a Ray cluster: both work, one is killed in the middle, one job is cancelled."""

import json
import os
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="ray is not installed: the extra `ray` brings it")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: the extra `ray` brings it")

from kandinsky.media import recipe as recipes
from serve.conftest import LIMIT_S, Server

pytestmark = pytest.mark.slow
# a busy machine: Ray's own processes get time to start, and its workers as much of the processor as everybody
PATIENT = {"RAY_agent_register_timeout_ms": "240000", "RAY_worker_niceness": "0"}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # with which two servers share a cluster
STARTS = 3
FOLDER = "jobs"


class OnCluster(Server):
    """A server with its workers on a cluster of this machine."""

    def start(self) -> Server:
        for left in reversed(range(STARTS)):
            try:
                return super().start()
            except AssertionError as error:  # a busy machine: Ray gives its own processes 30 s
                self.stop()
                if not left or "timed out during startup" not in str(error):
                    raise
        raise AssertionError

    def rows(self) -> dict[str, dict[str, Any]]:
        """What the store says of the jobs that run, or ran."""
        with sqlite3.connect(self.folder / FOLDER / "jobs.sqlite3") as at:
            at.row_factory = sqlite3.Row
            found = at.execute("SELECT id, state, worker, attempts, begun FROM jobs").fetchall()
        return {row["id"]: dict(row) for row in found}

    def events(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Everything that was told of a finished job."""
        lines = self.client.get(f"/v1/videos/{job_id}/events").text.splitlines()
        kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        values = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return list(zip(kinds, values, strict=True))

    def until_step(self, job_id: str) -> None:
        """Wait until a job is in the middle of sampling."""
        end = time.monotonic() + LIMIT_S
        while (job := self.get(job_id))["progress"] < 1 or job["status"] == "queued":
            assert time.monotonic() < end and job["status"] in ("queued", "in_progress"), job
            time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    options = ("--ray", "local", "--workers", "2", "--min-workers", "2", "--worker-cpus", "0.5", "--drain", "0")
    with OnCluster(tmp_path_factory.mktemp("cluster"), *options, models=("nano-t2v",), **PATIENT, **TOKEN) as made:
        assert made.client.get("/health").status_code == 200
        made.wait_ready()
        yield made


def test_both_workers_work_and_make_the_same(cluster: OnCluster) -> None:
    made = [cluster.create(seed=3, seconds=0.5, steps=2)["id"] for _ in range(4)]
    assert all(cluster.wait(one)["status"] == "completed" for one in made)
    rows = cluster.rows()
    assert len({rows[one]["worker"] for one in made}) == 2
    clips = {cluster.client.get(f"/v1/videos/{one}/content").content for one in made}
    assert len(clips) == 1, "the same bytes, whoever makes it"
    told = [kind for kind, _ in cluster.events(made[0])]
    assert told[:2] == ["queued", "started"] and told[-1] == "completed" and "step" in told


def test_a_job_whose_worker_is_killed_runs_again_and_is_done_once(cluster: OnCluster) -> None:
    job_id = cluster.create(seed=5, seconds=1, steps=20)["id"]
    cluster.until_step(job_id)
    first = cluster.rows()[job_id]["worker"]
    os.kill(int(first.split("-")[-2]), signal.SIGKILL)
    begun = time.monotonic()
    while cluster.rows()[job_id]["worker"] == first:
        assert time.monotonic() - begun < LIMIT_S
        time.sleep(0.01)
    print(f"again after {time.monotonic() - begun:.2f} s")
    job, row = cluster.wait(job_id), cluster.rows()[job_id]
    assert job["status"] == "completed" and job["seed"] == 5
    assert row["attempts"] == row["begun"] == 2 and row["worker"] != first
    told = [kind for kind, _ in cluster.events(job_id)]
    assert told.count("completed") == 1 and told.count("started") == 2
    files = [path.name for path in (cluster.folder / FOLDER / "files" / job_id).iterdir()]
    assert {name.partition("-")[0] for name in files} == {"a2"}, files
    content = cluster.client.get(f"/v1/videos/{job_id}/content").content
    path = cluster.folder / "again.mp4"
    path.write_bytes(content)
    assert recipes.read(path)["seed"] == 5
    restarts = [line for line in cluster.client.get("/metrics").text.splitlines() if "restarts_total" in line]
    assert float(restarts[-1].split()[1]) >= 1


def test_a_cancelled_job_stops_within_a_step(cluster: OnCluster) -> None:
    job_id = cluster.create(seed=6, seconds=2, steps=60)["id"]
    cluster.until_step(job_id)
    cluster.client.delete(f"/v1/videos/{job_id}").raise_for_status()
    assert cluster.wait(job_id)["status"] == "cancelled"
    told = cluster.events(job_id)
    steps = [data for kind, data in told if kind == "step"]
    kind, end = told[-1]
    print(f"cancelled after {end['after_s']} s, steps of {steps[-1]['step_s']} s")
    assert kind == "cancelled" and end["while"] == "sample" and end["step"] < 60
    # the worker goes on with the next, and nothing of the cancelled one is left
    assert cluster.wait(cluster.create(seed=7)["id"])["status"] == "completed"
    assert not list((cluster.folder / FOLDER / "files" / job_id).glob("a*"))


def test_workers_come_with_jobs_and_go_without(cluster: OnCluster, tmp_path: Path) -> None:
    """A second server on the same cluster, which keeps no worker."""
    assert cluster.process is not None
    titles = [one.cmdline() for one in psutil.Process(cluster.process.pid).children(recursive=True)]
    address = next(word.partition("=")[2] for words in titles for word in words if word.startswith("--gcs-address="))
    options = ("--ray", address, "--min-workers", "0", "--workers", "1", "--worker-cpus", "0.5", "--longest-job", "2")
    with OnCluster(tmp_path, *options, models=("nano-t2v",), **PATIENT, **TOKEN) as server:
        server.wait_ready()
        assert server.client.get("/ready").json()["workers"] == 0, "nobody is needed to accept jobs"
        job_id = server.create(seed=3, steps=2)["id"]
        assert server.wait(job_id)["status"] == "completed"
        begun, pid = time.monotonic(), int(server.rows()[job_id]["worker"].split("-")[-2])
        assert psutil.pid_exists(pid)
        while server.client.get("/ready").json()["workers"] or psutil.pid_exists(pid):
            assert time.monotonic() - begun < LIMIT_S
            time.sleep(0.1)
        print(f"gone {time.monotonic() - begun:.1f} s after its job")
        assert server.client.get("/ready").status_code == 200


def test_a_worker_of_two_processes(tmp_path: Path) -> None:
    options = ("--ray", "local", "--workers", "1", "--worker-cpus", "0.5", "--parallel", "cfg=2", "--drain", "0")
    with OnCluster(tmp_path, *options, models=("nano-t2v",), **PATIENT) as server:
        server.wait_ready()
        job = server.wait(server.create(seed=3, seconds=0.5, steps=3)["id"])
        assert job["status"] == "completed", job
        cancelled = server.create(seed=4, seconds=1, steps=60)["id"]
        server.until_step(cancelled)
        titles = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
        assert any(title.startswith("ray::Member.follow") for title in titles), "the second process takes part"
        server.client.delete(f"/v1/videos/{cancelled}").raise_for_status()
        assert server.wait(cancelled)["status"] == "cancelled"
        assert server.wait(server.create(seed=5, steps=2)["id"])["status"] == "completed"
