"""The store of jobs: every way through a job's life, several workers, crashes of any of them."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kandinsky.errors import RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.records import TRANSITIONS, Claim, Limits, NewJob, State
from kandinsky.jobs.sqlite_store import FILE, SqliteStore, default_folder, open_store
from kandinsky.jobs.store import NoRoom
from kandinsky.jobs.worker import Worker, WorkerSettings

LEASE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "jobs", clock=clock)
    yield made
    made.close()


def new(**values: Any) -> NewJob:
    return NewJob(**{"kind": "video", "model": "nano-t2v", "order": {"prompt": "a panda"}, "work": 2.0} | values)


def the_claim(store: SqliteStore, worker: str = "w") -> Claim:
    (claim,) = store.claim(worker, lease_s=LEASE_S)
    return claim


def kinds(store: SqliteStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events(0, job_id=job_id)]


def test_a_job_from_beginning_to_end(store: SqliteStore) -> None:
    job, is_new = store.add(new())
    assert is_new and job.state == State.QUEUED and job_files.ID.fullmatch(job.id)
    claim = the_claim(store)
    assert claim.job.state == State.RUNNING and claim.job.attempts == 1
    assert store.report(claim, "step", {"step": 1}, phase="sample", step=1, steps=4)
    found = store.get(job.id)
    assert found is not None and (found.phase, found.step, found.steps, found.progress) == ("sample", 1, 4, 22)
    assert store.complete(claim, {"file": "x.mp4"}, run_s=3.0, size=17) == State.COMPLETED
    found = store.get(job.id)
    assert found is not None and found.state == State.COMPLETED and found.result == {"file": "x.mp4"}
    assert found.progress == 100 and found.bytes == 17 == store.bytes_of("")
    assert kinds(store, job.id) == ["queued", "started", "step", "completed"]
    assert store.pace("nano-t2v") == 1.5 and store.pace("other") is None


def test_a_worker_that_died_right_after_a_result_leaves_no_latent(store: SqliteStore) -> None:
    job, _ = store.add(new())
    claim = the_claim(store, "a")
    job_files.windows_of(store.folder, job.id).mkdir(parents=True)
    folder = job_files.folder_of(store.folder, job.id)
    for name in ("a1-result.mp4", job_files.PREVIEW, job_files.latent_of(store.folder, job.id, 1).name):
        (folder / name).touch()
    store.complete(claim, {"file": "a1-result.mp4"}, run_s=1.0, size=0)
    assert store.bury("a") == [] and [path.name for path in folder.iterdir()] == ["a1-result.mp4"]


def test_priorities_then_arrival(store: SqliteStore) -> None:
    late, first, second = (store.add(new(priority=priority))[0] for priority in (-1, 5, 5))
    place = store.place(late.id)
    assert place is not None and place.place == 3 and place.wait_s is None
    assert [the_claim(store).job.id for _ in range(3)] == [first.id, second.id, late.id]
    assert store.claim("w", lease_s=1) == [] and store.place(late.id) is None


def test_estimates_come_from_experience(store: SqliteStore, clock: Clock) -> None:
    store.add(new())
    store.complete(the_claim(store), {}, run_s=4.0, size=0)  # two seconds a unit
    running, waiting, last = (store.add(new(work=work))[0] for work in (3.0, 5.0, 1.0))
    assert the_claim(store).job.id == running.id
    clock.now += 2
    place = store.place(last.id)
    assert place is not None and (place.place, place.wait_s, place.run_s) == (2, 4.0 + 10.0, 2.0)
    assert waiting.id != last.id


def test_estimates_count_the_steps_of_what_runs(store: SqliteStore, clock: Clock) -> None:
    """Without experience, and where a job takes longer than those before it."""
    store.add(new(work=2.0))
    claim, last = the_claim(store), store.add(new(work=4.0))[0]
    place = store.place(last.id)
    assert place is not None and place.wait_s is None
    clock.now += 18
    store.report(claim, "step", {}, phase="sample", step=5, steps=10)
    place = store.place(last.id)  # 18 s for nine tenths of a half: 40 s in all
    assert place is not None and place.wait_s == pytest.approx(22) and place.run_s == pytest.approx(80)
    store.complete(claim, {}, run_s=20.0, size=0)
    claim = the_claim(store)
    later = store.add(new(work=1.0))[0]
    clock.now += 90
    store.report(claim, "step", {}, phase="sample", step=5, steps=10)
    place = store.place(later.id)
    assert place is not None and place.wait_s == pytest.approx(110) and place.run_s == pytest.approx(10)


def test_batches_hold_only_jobs_of_one_key(store: SqliteStore) -> None:
    ids = [store.add(new(batch=batch))[0].id for batch in ("2 a", "2 b", "2 a", "2 a", "", "")]
    assert [claim.job.id for claim in store.claim("w", lease_s=1, at_once=8)] == [ids[0], ids[2]]
    assert [claim.job.id for claim in store.claim("w", lease_s=1, at_once=8)] == [ids[1]]
    assert [claim.job.id for claim in store.claim("w", lease_s=1)] == [ids[3]]
    assert len(store.claim("w", lease_s=1, at_once=8)) == 1


def test_a_worker_takes_only_its_models(store: SqliteStore) -> None:
    job = store.add(new(model="b"))[0]
    assert store.claim("w", lease_s=1, models=["a"]) == []
    assert store.claim("w", lease_s=1, models=["a", "b"])[0].job.id == job.id


def test_after_an_expired_lease_the_old_worker_is_not_heard(store: SqliteStore, clock: Clock) -> None:
    job = store.add(new())[0]
    old = the_claim(store, "old")
    clock.now += LEASE_S + 1
    assert store.expire() == [job.id] and store.expire() == []
    again = the_claim(store, "old")  # even under the same name
    assert again.attempt == 2
    assert not store.report(old, "step", {}) and store.complete(old, {"by": "old"}, run_s=1, size=0) is None
    assert not store.fail(old, {}) and not store.confirm_cancel(old) and not store.release(old)
    assert store.renew([old, again], lease_s=LEASE_S) == (set(), {job.id})
    assert store.complete(again, {"by": "new"}, run_s=1, size=0) == State.COMPLETED
    assert store.complete(again, {"by": "again"}, run_s=1, size=0) is None
    found = store.get(job.id)
    assert found is not None and found.result == {"by": "new"}
    assert kinds(store, job.id).count("completed") == 1


def test_a_job_that_kills_its_workers_is_given_up(store: SqliteStore, clock: Clock) -> None:
    job = store.add(new(max_attempts=3))[0]
    for _ in range(3):
        the_claim(store)
        clock.now += LEASE_S + 1
        store.expire()
    found = store.get(job.id)
    assert found is not None and found.state == State.FAILED and found.error is not None
    assert found.error["code"] == "worker_died" and "3 attempts" in found.error["message"]
    assert store.retry(job.id) is not None and the_claim(store).job.attempts == 1
    assert "failed" not in kinds(store, job.id)  # whoever follows it now does not stop at the old end


def test_a_dead_worker_is_buried_and_its_jobs_go_on(store: SqliteStore) -> None:
    mine, other = store.add(new())[0], store.add(new())[0]
    the_claim(store, "a")
    the_claim(store, "b")
    store.beat("a", pid=1, state="busy", facts={"device": "x"})
    assert [worker.name for worker in store.workers()] == ["a"]
    assert store.bury("a") == [mine.id] and store.workers() == []
    states = [found.state for job in (mine, other) if (found := store.get(job.id))]
    assert states == [State.QUEUED, State.RUNNING]


def test_a_worker_that_was_ended_on_purpose_costs_its_jobs_no_attempt(store: SqliteStore) -> None:
    mine, unwanted = store.add(new())[0], store.add(new())[0]
    the_claim(store, "a")
    the_claim(store, "a")
    store.cancel(unwanted.id)
    assert store.bury("a", on_purpose=True) == [mine.id, unwanted.id]
    found = [store.get(job.id) for job in (mine, unwanted)]
    assert [(one.state, one.attempts) for one in found if one] == [(State.QUEUED, 0), (State.CANCELLED, 1)]


def test_a_released_job_keeps_its_attempts(store: SqliteStore) -> None:
    store.add(new(max_attempts=1))
    for _ in range(5):
        assert store.release(the_claim(store))
    claim = the_claim(store)
    assert claim.job.attempts == 1 and claim.attempt == 6


def test_cancelling(store: SqliteStore) -> None:
    queued, running = store.add(new())[0], store.add(new(priority=1))[0]
    claim = the_claim(store)
    assert claim.job.id == running.id
    cancelled = store.cancel(queued.id)
    assert cancelled is not None and cancelled.state == State.CANCELLED
    asked = store.cancel(running.id)
    assert asked is not None and asked.state == State.RUNNING and asked.cancelling
    assert store.standing([claim]) == ({running.id}, set()) == store.renew([claim], lease_s=1)
    assert store.confirm_cancel(claim) and store.standing([claim]) == (set(), {running.id})
    assert store.cancel("job_" + "0" * 32) is None
    # a result that comes after the wish to cancel is not kept
    late = store.add(new())[0]
    claim = the_claim(store)
    store.cancel(late.id)
    assert store.complete(claim, {}, run_s=1, size=1) == State.CANCELLED


def test_a_worker_knows_that_its_job_began_again_elsewhere(store: SqliteStore, clock: Clock) -> None:
    store.add(new())
    worker = Worker(store, WorkerSettings(), name="old")
    outdated = the_claim(store, "old")
    clock.now += LEASE_S + 1
    store.expire()
    current = the_claim(store, "new")
    folder = job_files.folder_of(store.folder, current.job.id)
    folder.mkdir()
    latents = [job_files.latent_of(store.folder, current.job.id, attempt) for attempt in (1, 2)]
    for latent in latents:
        latent.write_bytes(b"x" * 9)
    for attempt in (1, 2):
        assert job_files.kept_latent(store.folder, current.job.id, upto=attempt) == latents[attempt - 1]
    worker._done(outdated, {}, 0.0, 1)
    assert list(folder.iterdir()) == latents[1:], "the outdated attempt takes its own away, and no other"
    latents[0].touch()
    worker._done(current, {}, 0.0, 1)
    assert not list(folder.iterdir())
    assert (store.get(current.job.id) or current.job).bytes == 0, "latents are not counted"


def test_a_job_that_is_tried_again_forgets_when_it_was_to_be_cancelled(store: SqliteStore, clock: Clock) -> None:
    job, _ = store.add(new())
    claim = the_claim(store)
    store.cancel(job.id)
    clock.now += 1
    store.confirm_cancel(claim)

    def ends() -> list[float]:
        return [event.data["after_s"] for event in store.events(0, job_id=job.id) if event.kind == "cancelled"]

    assert ends() == [1.0]
    store.retry(job.id)
    clock.now += 1000
    store.cancel(job.id)
    assert ends() == [0.0]


def test_files_of_jobs_without_a_result_count(store: SqliteStore) -> None:
    for end in ("cancelled", "failed"):
        job, _ = store.add(new(owner=end))
        folder = job_files.folder_of(store.folder, job.id)
        folder.mkdir()
        (folder / "input-video").write_bytes(b"x" * 1000)
        job_files.latent_of(store.folder, job.id, 1).write_bytes(b"x" * 100)
        (folder / "a1-video.mp4").write_bytes(b"x" * 5)  # its worker removes it
        claim = the_claim(store)
        if end == "failed":
            store.fail(claim, {"code": "failed", "message": "it failed"})
        else:
            store.cancel(job.id)
            store.confirm_cancel(claim)
        assert store.bytes_of(end) == 1100


def test_a_cancelled_job_of_a_dead_worker_does_not_begin_again(store: SqliteStore) -> None:
    job = store.add(new())[0]
    the_claim(store, "a")
    store.cancel(job.id)
    store.bury("a")
    found = store.get(job.id)
    assert found is not None and found.state == State.CANCELLED and store.claim("a", lease_s=1) == []


def test_idempotency_keys(store: SqliteStore) -> None:
    first, is_new = store.add(new(idempotency_key="k", body_hash="1", owner="a"))
    again, is_again = store.add(new(idempotency_key="k", body_hash="1", owner="a"))
    other, _ = store.add(new(idempotency_key="k", body_hash="1", owner="b"))
    assert is_new and not is_again and first.id == again.id != other.id
    with pytest.raises(RequestError, match="belongs to another request"):
        store.add(new(idempotency_key="k", body_hash="2", owner="a"))
    store.cancel(first.id)
    store.delete(first.id)
    assert store.add(new(idempotency_key="k", body_hash="2", owner="a"))[1]


def test_owners_see_their_own_jobs_only(store: SqliteStore) -> None:
    job = store.add(new(owner="a"))[0]
    assert store.get(job.id, owner="b") is None and store.get(job.id, owner="a") == store.get(job.id) == job
    assert store.cancel(job.id, owner="b") is None and not store.delete(job.id, owner="b")
    assert store.retry(job.id, owner="b") is None and store.list(owner="b").jobs == ()
    assert store.events(0, owner="b") == [] and len(store.events(0, owner="a")) == 1
    assert store.counts(owner="a")[State.QUEUED] == 1 and store.counts(owner="b")[State.QUEUED] == 0
    with pytest.raises(RequestError, match="`after`"):
        store.list(owner="b", after=job.id)


def test_pages(store: SqliteStore) -> None:
    ids = [store.add(new(kind=kind))[0].id for kind in ("video", "image", "video", "video", "video")]
    videos = [ids[i] for i in (4, 3, 2, 0)]
    page = store.list(kinds=["video"], limit=2)
    assert [job.id for job in page.jobs] == videos[:2] and page.more
    page = store.list(kinds=["video"], limit=2, after=videos[1])
    assert [job.id for job in page.jobs] == videos[2:] and not page.more
    page = store.list(limit=2, newest_first=False, states=[State.QUEUED])
    assert [job.id for job in page.jobs] == ids[:2] and page.more


def test_deleting_removes_the_files_even_after_a_crash_in_between(store: SqliteStore, clock: Clock) -> None:
    job = store.add(new())[0]
    folder = job_files.folder_of(store.folder, job.id)
    folder.mkdir()
    (folder / "a1-video.mp4").write_bytes(b"x")
    assert not store.delete(job.id)  # it is queued
    store.complete(the_claim(store), {}, run_s=1, size=1)
    with sqlite3.connect(store.folder / FILE) as other:  # a process that died after the transaction
        other.execute("INSERT INTO doomed VALUES (?)", (job.id,))
        other.execute("DELETE FROM jobs")
    other.close()
    store.prune()
    assert not folder.exists() and store.get(job.id) is None


def test_retention(store: SqliteStore, clock: Clock) -> None:
    old = store.add(new())[0]
    store.complete(the_claim(store), {}, run_s=1, size=1)
    clock.now += store.retention_s - 1
    queued = store.add(new())[0]
    assert store.prune() == []
    clock.now += 2
    assert store.prune() == [old.id] and store.get(queued.id) is not None
    store.cancel(queued.id)
    assert store.prune(finished_before=clock.now + 1) == [queued.id]
    assert kinds(store, old.id) == ["deleted"]  # which is told to those who show it


def test_event_numbers_grow_even_after_pruning(store: SqliteStore, clock: Clock) -> None:
    for _ in range(3):
        store.add(new())
        store.complete(the_claim(store), {}, run_s=1, size=0)
    clock.now += store.retention_s + 1
    store.prune()
    last = store.last_event()
    job = store.add(new())[0]
    assert [event.id for event in store.events(last, job_id=job.id)] == [last + 1]


def test_changes_are_seen_by_others(store: SqliteStore) -> None:
    store.has_changed()
    assert not store.has_changed()
    done = threading.Thread(target=lambda: (store.add(new()), store.close()))
    done.start()
    done.join()
    assert store.has_changed() and not store.has_changed()


def test_a_held_job_is_nobody_elses(store: SqliteStore, clock: Clock) -> None:
    job = store.add(new(holder="me", source="cli"))[0]
    assert job.state == State.QUEUED and store.claim("w", lease_s=1) == [] and store.place(job.id) is not None
    store.begin(job.id)
    clock.now += 50
    store.hold("me")
    clock.now += 50
    assert store.expire() == []
    store.settle(job.id, result={"path": "x.mp4"}, error=None, run_s=2.0)
    store.settle(job.id, result=None, error={"code": "x"}, run_s=None)  # too late
    found = store.get(job.id)
    assert found is not None and found.state == State.COMPLETED
    lost = store.add(new(holder="me", source="cli"))[0]
    clock.now += 61
    store.expire()
    found = store.get(lost.id)
    assert found is not None and found.state == State.FAILED and found.error is not None
    assert found.error["code"] == "interrupted"
    with pytest.raises(RequestError, match="prompt file"):
        store.retry(lost.id)


def test_many_threads_claim_each_job_once(store: SqliteStore) -> None:
    ids = {store.add(new())[0].id for _ in range(60)}
    taken: list[str] = []

    def work(name: str) -> None:
        while claims := store.claim(name, lease_s=60):
            taken.extend(claim.job.id for claim in claims)
            for claim in claims:
                assert store.complete(claim, {}, run_s=0.1, size=0) == State.COMPLETED
        store.close()

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_files_and_folders_are_private(store: SqliteStore) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "job_1", "../x", "job_" + "g" * 32, "job_" + "0" * 32 + "/.."])
def test_only_names_that_the_store_gives_become_paths(store: SqliteStore, name: str) -> None:
    with pytest.raises(RequestError, match="not the name of a job"):
        job_files.folder_of(store.folder, name)
    with pytest.raises(RequestError, match="job's file"):
        job_files.path_of(store.folder, "job_" + "0" * 32, "../x")


def test_links_are_not_followed(store: SqliteStore) -> None:
    job = store.add(new())[0]
    folder = job_files.folder_of(store.folder, job.id)
    folder.mkdir()
    (folder / "a1-video.mp4").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        job_files.open_file(store.folder, job.id, "a1-video.mp4")


def test_a_store_of_another_version_is_refused(store: SqliteStore) -> None:
    with sqlite3.connect(store.folder / FILE) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(RequestError, match="another version"):
        open_store(store.folder)


def test_where_jobs_are_kept_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "kandinsky" / "jobs" and not default_folder().exists()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be used"):
        open_store(tmp_path / "file")


class Life(RuleBasedStateMachine):
    """Any order of what clients, workers, crashes and time can do, beside a model that is a dictionary."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.number = getattr(Life, "number", 0) + 1
        Life.number = self.number
        self.store = SqliteStore(Life.root / str(self.number), clock=self.clock)
        self.states: dict[str, State] = {}
        self.ended: dict[str, int] = {}

    def moved(self, job_id: str, state: State) -> None:
        before = self.states[job_id]
        assert state in TRANSITIONS[before].values(), (before, state)
        self.states[job_id] = state

    def valid(self, claim: Claim) -> bool:
        found = self.store.get(claim.job.id)
        return found is not None and found.state == State.RUNNING and self.newest.get(claim.job.id) == claim.attempt

    newest: dict[str, int]

    @rule(target=jobs, attempts=st.integers(1, 2), priority=st.integers(-1, 1))
    def add(self, attempts: int, priority: int) -> str:
        job = self.store.add(new(max_attempts=attempts, priority=priority))[0]
        self.states[job.id] = State.QUEUED
        if not hasattr(self, "newest"):
            self.newest = {}
        return job.id

    @rule(target=claims, worker=st.sampled_from(["a", "b"]))
    def claim(self, worker: str) -> Any:
        found = self.store.claim(worker, lease_s=LEASE_S)
        assert bool(found) == (State.QUEUED in self.states.values())
        for claim in found:
            self.moved(claim.job.id, State.RUNNING)
            assert claim.attempt > self.newest.get(claim.job.id, 0)
            self.newest[claim.job.id] = claim.attempt
            return claim
        return None

    @rule(claim=claims, how=st.sampled_from(["complete", "fail", "confirm_cancel", "release", "report"]))
    def say(self, claim: Claim | None, how: str) -> None:
        if claim is None:
            return
        was_valid, before = self.valid(claim), self.store.get(claim.job.id)
        if how == "complete":
            done: Any = self.store.complete(claim, {"attempt": claim.attempt}, run_s=1.0, size=1)
        elif how == "fail":
            done = self.store.fail(claim, {"code": "x"})
        elif how == "report":
            done = self.store.report(claim, "step", {}, step=1, steps=2)
        else:
            done = getattr(self.store, how)(claim)
        assert bool(done) == was_valid
        if was_valid and how != "report":
            assert before is not None
            found = self.store.get(claim.job.id)
            assert found is not None
            if before.cancelling and how != "fail":
                assert found.state == State.CANCELLED
            self.moved(claim.job.id, found.state)

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        found = self.store.cancel(job)
        if job not in self.states:
            assert found is None
        elif self.states[job] == State.QUEUED:
            self.moved(job, State.CANCELLED)
        elif self.states[job] == State.RUNNING:
            assert found is not None and found.cancelling

    @rule(job=jobs)
    def retry(self, job: str) -> None:
        if job not in self.states:
            assert self.store.retry(job) is None
        elif self.states[job] in (State.FAILED, State.CANCELLED):
            assert self.store.retry(job) is not None
            self.moved(job, State.QUEUED)
        else:
            with pytest.raises(RequestError):
                self.store.retry(job)

    @rule(job=jobs)
    def delete(self, job: str) -> None:
        could = job in self.states and self.states[job].is_final
        assert self.store.delete(job) == could
        if could:
            del self.states[job]

    @rule(worker=st.sampled_from(["a", "b"]))
    def a_worker_dies(self, worker: str) -> None:
        self.lost(self.store.bury(worker))

    @rule(seconds=st.sampled_from([1.0, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.lost(self.store.expire())

    def lost(self, ids: list[str]) -> None:
        for job_id in ids:
            found = self.store.get(job_id)
            assert found is not None and found.state != State.RUNNING
            if found.state == State.FAILED:
                assert found.attempts >= found.max_attempts
                self.states[job_id] = State.FAILED
            else:
                self.moved(job_id, found.state)

    @rule()
    def the_server_dies(self) -> None:
        self.store.close()
        self.store = SqliteStore(self.store.folder, clock=self.clock)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "states"):
            page = self.store.list(limit=1000)
            assert {job.id: job.state for job in page.jobs} == self.states
            for job in page.jobs:
                assert (job.result is not None) == (job.state == State.COMPLETED)
                told = kinds(self.store, job.id)
                assert told.count("completed") == (job.state == State.COMPLETED) and told[0] == "queued"

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_order_of_events(tmp_path: Path) -> None:
    Life.root = tmp_path  # type: ignore[attr-defined]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck)),
    )


def test_a_connection_does_not_cross_a_fork(store: SqliteStore) -> None:
    store.add(new())
    child = os.fork()
    if child == 0:
        os._exit(0 if store.counts()[State.QUEUED] == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("limits", "limit"),
    [(Limits(waiting=1), "waiting"), (Limits(active=1), "active"), (Limits(storage=0), "storage")],
)
def test_a_limit_is_checked_with_the_storing(store: SqliteStore, limits: Limits, limit: str) -> None:
    if limit != "storage":
        store.check_room("a", limits)
        kept, _ = store.add(new(owner="a", idempotency_key="k"), limits)
        assert store.add(new(owner="a", idempotency_key="k"), limits) == (kept, False), "a repetition needs no room"
    for ask in (lambda: store.add(new(owner="a"), limits), lambda: store.check_room("a", limits)):
        with pytest.raises(NoRoom) as refused:
            ask()
        assert refused.value.limit == limit
    if limit != "waiting":
        store.add(new(owner="b"), Limits(active=1))


def test_two_at_once_do_not_share_the_last_place(store: SqliteStore) -> None:
    limits, together = Limits(waiting=4), threading.Barrier(8)
    refused: list[str] = []

    def ask() -> None:
        store.check_room("", limits)  # there is room as long as nobody has stored anything
        together.wait()
        try:
            store.add(new(), limits)
        except NoRoom as error:
            refused.append(error.limit)
        store.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.waiting() == 4 and refused == ["waiting"] * 4
