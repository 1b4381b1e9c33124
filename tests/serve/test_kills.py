"""`kill -9` of workers and servers under a queue of jobs: nothing lost, half-written or done twice."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from kandinsky.jobs import job_files
from kandinsky.media import recipe as recipes
from serve.conftest import LIMIT_S, Server

JOBS = 6


def settled(folder: Path) -> list[str]:
    """The files of a completed job, once its worker, or the server of a killed one, has removed what led to them."""
    end = time.monotonic() + LIMIT_S
    while any(job_files.LATENT.fullmatch(one.name) for one in folder.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    return sorted(one.name for one in folder.iterdir())


def survive(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill at random instants while jobs are made; returns figures."""
    dice = random.Random(seed)
    ready_s: list[float] = []
    made: list[str] = []
    server = Server(folder, "--attempts", "20", models=("nano-t2v",)).start().wait_ready()
    keys: dict[str, str] = {}
    done = 0
    try:
        while done < kills:
            while len(made) < JOBS + 2 * done:  # the queue never runs dry
                key = f"job-{len(made)}"
                still = {"seconds": 1 if len(made) % 2 else 0.5, "steps": dice.choice([1, 3, 8])}
                try:
                    answer = server.client.post(
                        "/v1/videos",
                        json={"prompt": "a panda", "seed": len(made), **still},
                        headers={"Idempotency-Key": key},
                    )
                except httpx.TransportError:
                    break
                assert answer.status_code == 200, answer.text
                keys[key] = answer.json()["id"]
                made.append(keys[key])
            time.sleep(dice.uniform(0.05, 4.0))
            if done % 2 == 0:
                for pid in server.worker_pids():
                    os.kill(pid, signal.SIGKILL)
            else:
                server.kill()
                assert server.process is not None and server.process.stdout is not None
                server.process.stdout.close()
                server.log.close()
                begun = time.monotonic()
                server.start().wait_ready()
                ready_s.append(time.monotonic() - begun)
            done += 1
        for number, job_id in enumerate(made):
            job = server.wait(job_id)
            assert job["status"] == "completed", job
            content = server.client.get(f"/v1/videos/{job_id}/content").content
            path = folder / "checked.mp4"
            path.write_bytes(content)
            assert recipes.read(path)["seed"] == number == job["seed"]
            assert job["bytes"] >= len(content)
            told = [
                line
                for line in server.client.get(f"/v1/videos/{job_id}/events").text.splitlines()
                if line == "event: completed"
            ]
            assert len(told) == 1  # done once
            files = settled(folder / "jobs" / "files" / job_id)
            assert len(files) == 3 and len({name.partition("-")[0] for name in files}) == 1, files
        listed = server.client.get("/v1/videos", params={"limit": 100}).json()["data"]
        assert sorted(job["id"] for job in listed) == sorted(made)
        again = server.client.post("/v1/videos", json={"prompt": "x"}, headers={"Idempotency-Key": "job-0"})
        assert again.status_code == 422  # keys survive, too
        assert len(server.worker_pids()) == 1
    finally:
        server.client.close()
        server.stop()
    return {"kills": kills, "jobs": len(made), "ready_s": ready_s}


@pytest.mark.slow
def test_four_kills(tmp_path: Path) -> None:
    survive(tmp_path, 4, seed=1)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("KANDINSKY_TEST_LONG"), reason="takes many minutes: set KANDINSKY_TEST_LONG")
def test_thirty_kills(tmp_path: Path) -> None:
    print(survive(tmp_path, 30, seed=2))
