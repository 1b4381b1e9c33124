"""Load on a real server beside a plain loop: many clients ask for stills, another process looks at two addresses.

`python -m kandinsky.bench.serve --requests 200 --clients 32` prints throughput, latencies, memory, and what was lost;
`--cancels 30` also how soon clips end that are cancelled at random instants, and each run how soon the server ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kandinsky import catalogue
from kandinsky.runtime.speed import at_hand

LOOK_S = 0.02
STAGES, SHORT_S = ("started", "encode", "started", "decode"), 0.2  # when clips are cancelled
_LOOK = """
import json, select, sys, time
import httpx
paths = dict(zip(sys.argv[3::2], sys.argv[4::2]))
taken, failed = {name: [] for name in paths}, []
with httpx.Client(base_url=sys.argv[1], timeout=60) as at:
    print("ready", flush=True)
    until = time.monotonic() + 3600
    while time.monotonic() < until:
        for name, path in paths.items():
            begun = time.monotonic()
            if at.get(path).status_code != 200:
                failed.append(path)
            taken[name].append(time.monotonic() - begun)
        if select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
            break
print(json.dumps({"taken": taken, "failed": failed}))
"""
_LOOP = """
import json, sys, time
import kandinsky
model, steps, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipe = kandinsky.load(model)
pipe("a panda", seconds=0, steps=1, progress=False)
begun = time.monotonic()
for number in range(count):
    pipe(f"a panda {number}", seconds=0, steps=steps, progress=False).save(sys.argv[4])
print(json.dumps((time.monotonic() - begun) / count))
"""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident(pid: int) -> float:
    """Megabytes of main memory that a process takes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Load:
    """One run against a server.

    Args:
        url: Its address.
        steps: Steps of each still.
        prefix: Text of the prompts.
    """

    def __init__(self, url: str, *, steps: int, prefix: str = "a panda") -> None:
        import httpx

        self._httpx = httpx
        self.url, self.steps, self.prefix = url, steps, prefix
        self.request_s: list[float] = []
        self.look_s: dict[str, list[float]] = {}
        self.failures: list[str] = []

    def run(self, requests: int, clients: int, seeds: bool) -> float:
        """Send requests and wait for all.

        Args:
            requests: How many.
            clients: From how many clients at once.
            seeds: Whether each names a seed, so that none becomes part of a batch.

        Returns:
            Seconds until the last was answered.
        """
        numbers = iter(range(requests))
        lock = threading.Lock()
        with self._httpx.Client(base_url=self.url, timeout=60) as at:
            job = at.post("/v1/videos", json={"prompt": "a panda", "seconds": 0.5, "steps": 1}).json()["id"]
        looked = ("/health", "/health", "/v1/videos/{id}", f"/v1/videos/{job}")
        command = [sys.executable, "-c", _LOOK, self.url, str(LOOK_S), *looked]
        looking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert looking.stdout is not None
        looking.stdout.readline()

        def work() -> None:
            with self._httpx.Client(base_url=self.url, timeout=600) as at:
                while True:
                    with lock:
                        number = next(numbers, None)
                    if number is None:
                        return
                    body: dict[str, Any] = {"prompt": f"{self.prefix} {number}", "steps": self.steps}
                    if seeds:
                        body["seed"] = number
                    begun = time.monotonic()
                    answer = at.post("/v1/images/generations", json=body)
                    self.request_s.append(time.monotonic() - begun)
                    if answer.status_code != 200 or not answer.json()["data"][0]["b64_json"]:
                        self.failures.append(answer.text[:200])

        threads = [threading.Thread(target=work) for _ in range(clients)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - begun
        told, _ = looking.communicate("over\n", timeout=120)
        found = json.loads(told)
        self.look_s, self.failures = found["taken"], [*self.failures, *found["failed"]]
        return taken


def cancelled(url: str, model: str, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Cancel clips at random instants of their life.

    Args:
        url: Address of the server, which is idle.
        model: Its model.
        count: How many.
        seed: Of the instants.

    Returns:
        By what was being done: how many, and median and largest seconds from the call to the event `cancelled`, in
        seconds and in steps of the model; the seconds of a step.
    """
    from kandinsky.client import Client

    dice, steps_s, ended = random.Random(seed), list[float](), dict[str, list[float]]()
    with Client(url) as client, Client(url) as other:
        client.wait(client.create("a panda", model=model, steps=1, seed=1))
        begun = time.monotonic()
        client.wait(client.create("a panda", model=model, seed=1))
        whole_s = time.monotonic() - begun
        for number in range(count):
            job = client.create("a panda", model=model, seed=number)
            stage = STAGES[number % len(STAGES)]  # most of a life is sampling: the short stages are waited for
            after_s = dice.uniform(0, whole_s if stage == "started" else SHORT_S)
            asked: list[float] = []

            def ask(job: Any = job, after_s: float = after_s, asked: list[float] = asked) -> None:
                time.sleep(after_s)
                asked.append(time.monotonic())
                other.cancel(job)

            asking = threading.Thread(target=ask)
            for event in client.events(job):
                if stage in (event.kind, event.data.get("phase")) and asking.ident is None:
                    asking.start()
                if event.kind == "step" and event.data["step"] > 1:
                    steps_s.append(event.data["step_s"])
                if event.kind == "cancelled":
                    ended.setdefault(str(event.data["while"]), []).append(time.monotonic() - asked[0])
            asking.join()
    step_s = statistics.median(steps_s)
    told: dict[str, Any] = {"step_s": round(step_s, 4), "longest_step_s": round(max(steps_s), 4)}
    told["completed_before"] = count - sum(map(len, ended.values()))
    for phase, values in sorted(ended.items()):
        told[phase] = {
            "count": len(values),
            "p50_s": round(statistics.median(values), 3),
            "largest_s": round(max(values), 3),
            "largest_steps": round(max(values) / step_s, 2),
        }
    return told


def plain_loop(model: str, steps: int, count: int, folder: Path) -> float:
    """Seconds that a still takes in a loop of `pipe(...)`, in a process of its own."""
    command = [sys.executable, "-c", _LOOP, model, str(steps), str(count), str(folder / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def served(model: str, folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A warm server of a model, with jobs and log in a folder, until the block ends: its address and process number."""
    import httpx

    command = [sys.executable, "-m", "kandinsky", "serve", model, "--port", "0", "--warm-up", "--quiet"]
    command += ["--store", str(folder / "jobs"), *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            with httpx.Client(base_url=url, timeout=60) as at:
                while at.get("/ready").status_code != 200:
                    time.sleep(0.05)
            yield url, server.pid
        finally:
            server.terminate()
            server.wait()


def measure(arguments: argparse.Namespace, tell: Callable[[str], object]) -> dict[str, Any]:
    """Run the benchmark; returns its figures."""
    import httpx

    model = arguments.model
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loop_s = plain_loop(model, arguments.steps, arguments.loop, folder)
        tell(f"plain loop: {1 / loop_s:.2f} stills a second")
        begun = time.monotonic()
        with served(model, folder, "--queue", "100000", "--batch", str(arguments.batch)) as (url, pid):
            ready_s = time.monotonic() - begun
            with httpx.Client(base_url=url, timeout=60) as at:
                at.post("/v1/images/generations", json={"prompt": "a panda", "steps": 1}, timeout=600)
                idle = figures(at, pid)
                rounds: list[dict[str, Any]] = []
                end = time.monotonic() + arguments.minutes * 60
                while not rounds or time.monotonic() < end:
                    load = Load(url, steps=arguments.steps)
                    taken = load.run(arguments.requests, arguments.clients, arguments.seeds)
                    rounds.append(summary(load, taken, arguments.requests, loop_s) | figures(at, pid))
                    tell(json.dumps(rounds[-1]))
            cancels = cancelled(url, model, arguments.cancels) if arguments.cancels else {}
            begun = time.monotonic()
        stop_s = time.monotonic() - begun
    return {
        "stop_s": round(stop_s, 2),
        "cancels": cancels,
        "processor": at_hand("cpu", "float32")[0].name,
        "ready_s": round(ready_s, 2),
        "loop_s": round(loop_s, 4),
        "idle": idle,
        "rounds": rounds,
    }


def figures(at: Any, pid: int) -> dict[str, float]:
    """Memory of the HTTP process and of the worker, in megabytes."""
    found = {"http_mb": round(resident(pid), 1)}
    for line in at.get("/metrics").text.splitlines():
        if line.startswith('kandinsky_device_memory_bytes{kind="host"}'):
            found["worker_mb"] = round(float(line.split()[-1]) / 1e6, 1)
    return found


def summary(load: Load, taken: float, requests: int, loop_s: float) -> dict[str, Any]:
    """The figures of one run."""
    told: dict[str, Any] = {
        "requests": requests,
        "lost": requests - len(load.request_s) + len(load.failures),
        "stills_per_s": round(requests / taken, 3),
        "of_plain_loop": round(requests / taken * loop_s, 3),
        "request_p50_s": round(statistics.median(load.request_s), 2),
        "request_p99_s": round(percentile(load.request_s, 0.99), 2),
    }
    for name, values in load.look_s.items():
        told[f"{name} p50_ms"] = round(statistics.median(values) * 1000, 2)
        told[f"{name} p99_ms"] = round(percentile(values, 0.99) * 1000, 2)
    return told


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.bench.serve", description=__doc__)
    parser.add_argument("--model", default=catalogue.DEFAULT_MODEL)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--loop", type=int, default=40, help="stills of the plain loop")
    parser.add_argument("--batch", type=int, default=8, help="as of `kandinsky serve`")
    parser.add_argument("--seeds", action="store_true", help="every request names a seed, and so runs alone")
    parser.add_argument("--cancels", type=int, default=0, help="clips that are cancelled at random instants")
    parser.add_argument("--minutes", type=float, default=0.0, help="repeat for so long")
    arguments = parser.parse_args(words)
    found = measure(arguments, lambda line: sys.stderr.write(f"{line}\n"))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if any(one["lost"] for one in found["rounds"]) else 0


if __name__ == "__main__":
    sys.exit(main())
