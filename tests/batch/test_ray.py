"""A cluster of two workers in this machine: one prompt fails, one worker is killed, nothing is lost or done twice."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray: Any = pytest.importorskip("ray", reason="ray is not installed: the extra `ray` brings it")

import kandinsky  # noqa: E402
from batch.prompts import STILL, Watched  # noqa: E402
from kandinsky import catalogue  # noqa: E402
from kandinsky.engine.options import RunOptions  # noqa: E402
from kandinsky.errors import BackendError, RequestError  # noqa: E402
from kandinsky.jobs import batch, ray_crew  # noqa: E402
from kandinsky.jobs.batch import Loading, Outcome, part_finished, plan_items, settle  # noqa: E402
from kandinsky.jobs.prompt_files import Row  # noqa: E402
from kandinsky.jobs.ray_connection import connected  # noqa: E402
from kandinsky.jobs.ray_runner import RayRunner  # noqa: E402
from kandinsky.media.video import read_video  # noqa: E402
from kandinsky.model.values import Request  # noqa: E402
from tiny.ray_cluster import two_workers  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # ray leaves the closing of its log files and sockets to the interpreter
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with two_workers():
        yield


@pytest.fixture
def one_item() -> list[batch.Item]:
    base = Request(model="nano-t2v", prompt="", seed=3, **STILL)  # type: ignore[arg-type]
    return plan_items([Row(1, {"prompt": "a dot"})], base, Loading(catalogue.source_of("nano-t2v")))[0]


def test_a_failing_prompt_and_a_killed_worker(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace").mkdir()
    loading = Watched(catalogue.source_of("nano-t2v"), trace=tmp_path / "trace")
    prompts = ["a dot", "it fails", "this kills 1", "a cat", "that kills 2", "a fox"]
    rows = [Row(i + 1, {"prompt": prompt}) for i, prompt in enumerate(prompts)]
    base = Request(model="nano-t2v", prompt="", seed=3, **STILL)  # type: ignore[arg-type]
    items, _ = plan_items(rows, base, loading)
    told: list[str] = []
    runner = RayRunner(loading, "local", workers=2, tell=told.append)
    yielded = [settle(*entry) for entry in runner.run(items)]

    made: dict[str, Outcome] = {outcome.prompt: outcome for outcome in yielded}
    assert len(yielded) == len(made) == len(prompts), "each once"
    done = ["a dot", "this kills 1", "a cat", "a fox"]
    assert {name for name, one in made.items() if one.status == "done"} == set(done)
    assert sorted(path.name for path in Path().glob("*.png")) == sorted(f"{p.replace(' ', '-')}-3.png" for p in done)
    assert made["it fails"].error == "ArithmeticError: this one fails" and made["it fails"].attempts == 1
    assert "its ray worker died" in (made["that kills 2"].error or ""), "given up after the second worker"
    assert {name: (one.attempts, loading.times(name)) for name, one in made.items()} == {
        "a dot": (1, 1), "it fails": (1, 1), "this kills 1": (2, 2), "a cat": (1, 1), "that kills 2": (2, 2),
        "a fox": (1, 1),
    }  # fmt: skip
    assert len({one.worker for one in made.values() if one.worker}) >= 2
    assert "ray cluster of 1 machine, 2 CPUs, 0 GPUs; workers: 2, each with CPUs: 1" in told
    assert sum("died while it made" in line for line in told) == 3

    left, before = part_finished(items, loading)
    assert {item.job.prompt for item in left} == {"it fails", "that kills 2"} and len(before) == 4
    # the same frames as in this process
    video = Loading(loading.source, RunOptions(device="cpu")).load().run(items[0].job)
    distance = np.abs(video.frames.astype(int) - read_video("a-dot-3.png").frames)
    assert distance.max() <= 1

    with pytest.raises(RequestError, match="`3` workers do not fit the ray cluster"):
        list(RayRunner(loading, workers=3).run(items))
    with pytest.raises(BackendError, match="has no GPU"):
        list(RayRunner(loading, gpus=True).run(items))


def test_no_cluster_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(BackendError, match="no ray cluster answers at `auto`"):
        list(RayRunner(Loading(catalogue.source_of("nano-t2v"))).run([None]))  # type: ignore[list-item]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere.invalid:1"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try for many minutes; it is not asked."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = address.format(port=probe.getsockname()[1])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("asked"))
    with pytest.raises(BackendError, match=f"no ray cluster answers at `{address}`"), connected(ray, address):
        pass


def test_a_worker_that_takes_long_to_come_back_is_waited_for(
    one_item: list[batch.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray refuses calls to an actor at once while it starts it again."""
    ready = ray_crew.Ready("here", kandinsky.__version__)
    answers: list[Any] = [ready, *[ray.exceptions.ActorUnavailableError("it is restarting", None)] * 8, ready, "made"]
    # the item's own call dies first
    answers.insert(1, ray.exceptions.ActorUnavailableError("gone", None))

    class Call:
        def remote(self, *_: object) -> int:
            return len(answers)

    class Actor:
        start = work = Call()

    class Cluster:
        exceptions = ray.exceptions

        def wait(self, calls: list[int], **_: object) -> tuple[list[int], list[int]]:
            return calls[:1], calls[1:]

        def get(self, _: int) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    waits: list[float] = []
    monkeypatch.setattr(ray_crew.time, "sleep", waits.append)
    runner = RayRunner(Loading(catalogue.source_of("nano-t2v")), "local")
    places = [ray_crew.Place(1, Actor())]
    assert [entry[1:] for entry in runner._hand_out(Cluster(), places, one_item)] == [("made", 2)]
    assert len(waits) == 8 and answers == []
