"""The parts of a server on a cluster, without one: settings, shares, the remote store, outdated attempts."""

from pathlib import Path
from typing import Any

import pytest

from kandinsky.engine.options import RunOptions
from kandinsky.errors import BackendError, RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.ray_connection import Resources
from kandinsky.jobs.records import Claim, NewJob, State
from kandinsky.jobs.remote_store import CARRIED, Desk, RemoteStore, check_shared, mark
from kandinsky.jobs.sqlite_store import SqliteStore, new_id, open_store
from kandinsky.jobs.store import StoreGone
from kandinsky.jobs.worker import Worker, WorkerSettings
from kandinsky.serve.cluster import Cluster, Share
from kandinsky.serve.keys import Keys
from kandinsky.serve.settings import ServeSettings

CPUS = Resources(2, 12, 0, (4, 8))
GPUS = Resources(2, 64, 8, (32, 32))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min_workers": 2}, "`min_workers=…` is for workers on a cluster"),
        ({"worker_cpus": 2.0}, "`worker_cpus=…` is for workers on a cluster"),
        ({"longest_job": 60.0}, "`longest_job=…` is for workers on a cluster"),
        ({"ray": "ray://head:10001"}, "ray start --address HOST:6379 --num-cpus 0"),
        ({"ray": "auto", "workers": 0}, "use 1 or more"),
        ({"ray": "auto", "workers": 2, "min_workers": 3}, "use 3 or more"),
        ({"ray": "auto", "options": RunOptions(parallel="auto")}, "name a layout"),
        ({"ray": "auto", "options": RunOptions(parallel="cfg=2,whirl=2")}, "`whirl=2`"),
        ({"ray": "auto", "options": RunOptions(device="cuda:1")}, "use `auto`, `cpu` or `cuda`"),
    ],
)
def test_settings_that_do_not_suit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        ServeSettings(**given).check(Keys.read(None))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "size", "share"),
    [
        ({}, GPUS, Share(0, 1, 8)),
        ({"options": RunOptions(parallel="cfg=2,ulysses=2")}, GPUS, Share(0, 1, 2)),
        ({"workers": 3}, GPUS, Share(0, 1, 3)),
        ({"options": RunOptions(device="cpu")}, GPUS, Share(4, 0, 16)),
        ({"options": RunOptions(device="cuda"), "workers": 5}, CPUS, Share(0, 1, 5)),
        ({}, CPUS, Share(4, 0, 3)),
        ({"workers": 12}, CPUS, Share(1, 0, 12)),
        ({"worker_cpus": 0.5, "workers": 2}, CPUS, Share(0.5, 0, 2)),
    ],
)
def test_the_share_of_a_worker(given: dict[str, Any], size: Resources, share: Share) -> None:
    assert Share.of(ServeSettings(ray="auto", **given), size) == share


def test_a_cluster_without_what_a_worker_needs() -> None:
    with pytest.raises(BackendError, match="needs 16 GPUs, and the ray cluster has 8"):
        Share.of(ServeSettings(ray="auto", min_workers=0, options=RunOptions(parallel="ulysses=16")), GPUS)
    with pytest.raises(BackendError, match="no CPU to work with"):
        Share.of(ServeSettings(ray="auto"), Resources(1, 0, 0, ()))


def shape(share: Share, **given: Any) -> dict[str, Any]:
    made = object.__new__(Cluster)
    made.settings, made.share = ServeSettings(ray="auto", **given), share
    return made._shape()


def test_the_deployment_follows_the_queue_and_lets_jobs_finish() -> None:
    made = shape(Share(0, 1, 4), min_workers=0, longest_job=900.0)
    assert made["max_ongoing_requests"] == 1 and made["graceful_shutdown_timeout_s"] == 900
    scaling = made["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["downscale_delay_s"]) == (0, 4, 900)
    assert scaling["target_ongoing_requests"] == 1 and "placement_group_bundles" not in made
    fixed = shape(Share(0.5, 0, 2), min_workers=2)
    assert fixed["num_replicas"] == 2 and "autoscaling_config" not in fixed


def test_a_worker_of_several_gpus_is_a_group_on_one_machine() -> None:
    made = shape(Share(0, 1, 2), options=RunOptions(parallel="cfg=2,ulysses=2"))
    assert made["placement_group_bundles"] == [{"GPU": 1}] * 4 and made["placement_group_strategy"] == "STRICT_PACK"
    assert made["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 1}


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return open_store(tmp_path / "jobs")


class Through(RemoteStore):
    """A remote store whose desk is in this process, or gone."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(None, store.folder)
        self.here = Desk(str(store.folder), store.retention_s)
        self.is_gone = False

    def _ask(self, call: str, *values: Any, **named: Any) -> Any:
        if self.is_gone:
            raise StoreGone("gone")
        return self.here.ask(call, values, named)


def test_a_remote_store_does_what_the_store_does(store: SqliteStore) -> None:
    remote = Through(store)
    for _ in range(4):
        store.add(NewJob(kind="video", model="nano-t2v", order={}))
    assert store.waiting() == 4 and store.waiting(["nano-t2v"]) == 4 and store.waiting(["other"]) == 0
    claims = [remote.claim("far", lease_s=30, models=("nano-t2v",))[0] for _ in range(4)]
    assert store.waiting() == 0 and remote.claim("far", lease_s=30) == []
    assert remote.report(claims[0], "step", {"step": 1}, phase="sample", step=1, steps=4)
    assert (store.get(claims[0].job.id) or claims[0].job).steps == 4
    store.cancel(claims[1].job.id)
    assert remote.standing(claims) == ({claims[1].job.id}, set()) == remote.renew(claims, lease_s=30)
    assert remote.complete(claims[0], {"file": "a"}, run_s=1.0, size=3) == State.COMPLETED
    assert remote.confirm_cancel(claims[1]) and remote.fail(claims[2], {"code": "x"}) and remote.release(claims[3])
    assert [(store.get(one.job.id) or one.job).state for one in claims] == [
        State.COMPLETED, State.CANCELLED, State.FAILED, State.QUEUED,
    ]  # fmt: skip
    remote.beat("far", pid=1, state="ready", facts={})
    assert [one.name for one in store.workers()] == ["far"]
    # one that was buried meanwhile is not heard any more
    (again,) = remote.claim("far", lease_s=30)
    assert store.bury("far") == [again.job.id] and remote.complete(again, {}, run_s=1.0, size=0) is None
    with pytest.raises(AssertionError):
        remote.here.ask("prune", (), {})
    assert all(hasattr(remote, call) for call in CARRIED)


def test_a_worker_whose_store_is_gone_stops_and_says_nothing(store: SqliteStore) -> None:
    remote = Through(store)
    job, _ = store.add(NewJob(kind="video", model="nano-t2v", order={}))
    worker = Worker(remote, WorkerSettings(), name="far")

    def lose(_: list[Claim]) -> None:
        remote.is_gone = True

    with pytest.raises(StoreGone):
        worker.turn(lose)
    assert (store.get(job.id) or job).state == State.RUNNING, "until its lease expires, or its worker is buried"
    assert store.bury("far") == [job.id] and store.waiting() == 1


def test_an_outdated_attempt_removes_nothing_of_a_later_one(store: SqliteStore) -> None:
    job_id = new_id()
    folder = job_files.folder_of(store.folder, job_id)
    folder.mkdir()
    names = ["a1-result.mp4", "a2-result.mp4", "a10-result.mp4", "latent-1.safetensors", "input-image.png"]
    for name in names:
        (folder / name).touch()
    job_files.remove_attempts(store.folder, job_id, upto=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[2:])


def test_the_folder_of_files_is_recognised(store: SqliteStore, tmp_path: Path) -> None:
    first = mark(store.folder)
    sign = mark(store.folder)
    check_shared(store.folder, sign, where="machine `b`")
    assert [path.name for path in (store.folder / "files").iterdir()] == [sign], "one sign, and no probe"
    for folder, name in ((store.folder, first), (tmp_path / "elsewhere", sign)):
        with pytest.raises(BackendError, match="machine `b` is not the server's folder: mount the same shared folder"):
            check_shared(folder, name, where="machine `b`")
