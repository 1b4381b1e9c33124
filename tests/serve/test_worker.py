"""A worker runs jobs as the library would, stops at once, and leaves nothing half-done."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.engine.options import RunOptions
from kandinsky.jobs import job_files, results
from kandinsky.jobs import worker as workers
from kandinsky.jobs.loaded import Models
from kandinsky.jobs.order import INPUTS, Order, new_job
from kandinsky.jobs.records import JobRecord, State
from kandinsky.jobs.sqlite_store import SqliteStore, new_id, open_store
from kandinsky.jobs.worker import Worker, WorkerSettings
from kandinsky.media import recipe as recipes
from kandinsky.media.video import read_video

IMAGE, VIDEO = INPUTS["image"], INPUTS["video"]
QUICK = {"prompt": "a panda waves", "steps": 3, "seconds": 1}
LIMIT_S = 120
LOADED = Models(RunOptions())  # shared by all workers whose models need not be their own


class House:
    """A store, and a worker in a thread; ``anew`` = with no model in memory."""

    def __init__(self, store: SqliteStore, *, anew: bool = False, **settings: Any) -> None:
        self.store = store
        self.worker = Worker(store, WorkerSettings(**{"preview_s": 0.0} | settings), name="tested")
        if not anew:
            self.worker.models = LOADED
        self.thread = threading.Thread(target=self.worker.run)

    def __enter__(self) -> "House":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.thread.join()

    def add(self, *, form: str = "", files: dict[str, Any] | None = None, **values: Any) -> JobRecord:
        return add(self.store, form=form, files=files, **values)

    def wait(self, job_id: str, *states: State) -> JobRecord:
        states = states or tuple(state for state in State if state.is_final)
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            found = self.store.get(job_id)
            if found is not None and found.state in states:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{job_id} did not get to {states}")

    def until(self, job_id: str, kind: str, count: int = 1) -> None:
        end = time.monotonic() + LIMIT_S
        while sum(event.kind == kind for event in self.store.events(0, job_id=job_id)) < count:
            assert time.monotonic() < end
            time.sleep(0.01)


def add(
    store: SqliteStore,
    *,
    form: str = "",
    files: dict[str, Any] | None = None,
    order: dict[str, Any] | None = None,
    **values: Any,
) -> JobRecord:
    request = {"model": "nano-t2v", **QUICK, **values}
    card = catalogue.find(request["model"])
    job_id = new_id()
    folder = job_files.folder_of(store.folder, job_id)
    folder.mkdir()
    for name, image in (files or {}).items():
        image.save(folder / name)
    makes = card.does.makes
    form = form or {"sound": "mp4"}.get(makes, "png" if request["seconds"] == 0 else "mp4")
    one = Order(request=request, form=form, **order or {})
    return store.add(new_job(one, one.resolved(card, store.folder, job_id), job_id=job_id))[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = open_store(tmp_path / "jobs")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return kandinsky.load("nano-t2v")


def path_of(store: SqliteStore, job: JobRecord, name: str = "file") -> Path:
    assert job.result is not None
    return job_files.path_of(store.folder, job.id, job.result[name])


def test_a_clip_is_the_commands_own_byte_for_byte(store: SqliteStore, pipe: Any, tmp_path: Path) -> None:
    expected = pipe("a panda waves", steps=3, seconds=1, seed=7).save(tmp_path / "x.mp4")
    with House(store, anew=True) as house:
        job = house.wait(house.add(seed=7).id)
    assert job.state == State.COMPLETED and job.result is not None and job.progress == 100
    assert path_of(store, job).read_bytes() == expected.read_bytes()
    assert job.result["recipe"] == recipes.read(expected)
    with (
        Image.open(path_of(store, job, "thumbnail")) as thumbnail,
        Image.open(path_of(store, job, "spritesheet")) as sheet,
    ):
        assert thumbnail.size == (96, 96) and thumbnail.format == "WEBP" and sheet.format == "JPEG"
        assert sheet.size == (8 * 96, 2 * 96) and job.result["tiles"]["count"] == job.result["frames"] == 13
    told = [event.kind for event in store.events(0, job_id=job.id)]
    assert told[:3] == ["queued", "started", "loading"] and told[-1] == "completed"
    assert told.index("step") < told.index("preview") < told.index("decoding")
    steps = [event.data["step"] for event in store.events(0, job_id=job.id) if event.kind == "step"]
    assert steps == sorted(set(steps)) and steps[-1] == 3
    left = sorted(path.name for path in job_files.folder_of(store.folder, job.id).iterdir())
    assert left == ["a1-result.mp4", "a1-spritesheet.jpg", "a1-thumbnail.webp"]
    assert job.bytes == job_files.size_of(store.folder, job.id)


@pytest.mark.parametrize(("form", "seconds"), [("webp", 0), ("jpeg", 0), ("png", 0), ("gif", 0.5), ("webm", 0.5)])
def test_formats_carry_the_recipe(store: SqliteStore, form: str, seconds: float) -> None:
    with House(store) as house:
        job = house.wait(house.add(form=form, seconds=seconds, seed=1, steps=1).id)
    assert job.state == State.COMPLETED and job.result is not None
    path = path_of(store, job)
    assert path.suffix == f".{form}" and recipes.read(path) == job.result["recipe"]
    assert len(read_video(path)) == job.result["frames"]


def test_requests_without_a_seed_run_as_a_batch_and_the_others_alone(store: SqliteStore, pipe: Any) -> None:
    waiting = [add(store, seconds=0, prompt=f"a {what}") for what in ("panda", "cat", "dog")]
    exact = add(store, seconds=0, prompt="a fox", seed=3)
    with House(store) as house:
        made = [house.wait(job.id) for job in waiting]
        alone = house.wait(exact.id)
    assert [job.result and job.result["batch"] for job in made] == [3, 3, 3]
    assert alone.result is not None and alone.result["batch"] == 1
    for job in made:
        assert job.result is not None
        again = pipe(job.prompt, seconds=0, steps=3, seed=job.result["seed"])
        difference = read_video(path_of(store, job)).frames_THWC.astype(int) - again.frames_THWC
        assert np.abs(difference).max() <= 2  # within the contract of docs/determinism.md


def test_one_of_a_batch_is_cancelled_and_the_others_go_on(store: SqliteStore) -> None:
    jobs = [add(store, seconds=0, steps=12) for _ in range(3)]
    with House(store) as house:
        house.until(jobs[1].id, "step")
        store.cancel(jobs[1].id)
        states = [house.wait(job.id).state for job in jobs]
    assert states == [State.COMPLETED, State.CANCELLED, State.COMPLETED]
    folder = job_files.folder_of(store.folder, jobs[1].id)
    assert not list(folder.glob("a*"))


def test_cancelling_while_sampling_stops_within_a_step(store: SqliteStore) -> None:
    with House(store) as house:
        job = house.add(steps=500)
        house.until(job.id, "step", 2)
        begun = time.monotonic()
        store.cancel(job.id)
        ended = house.wait(job.id)
        taken = time.monotonic() - begun
        following = house.wait(house.add(seconds=0, steps=1).id)
    assert ended.state == State.CANCELLED and following.state == State.COMPLETED
    steps = [event.data for event in store.events(0, job_id=job.id) if event.kind == "step"]
    assert taken < 20 * max(step["step_s"] for step in steps) + 5  # 500 steps would be far beyond
    assert ended.step < 100


@pytest.mark.parametrize("while_", ["decode", "write"])
def test_cancelling_while_decoding_and_writing(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, while_: str
) -> None:
    """The wish comes at the first frame, or between the last and the end of the file."""
    seen = []
    write = results.write_video

    def slow(stream: Any, path: Path) -> Path:
        def pieces() -> Iterator[Any]:
            for number, piece in enumerate(stream.pieces):
                if (number == 0) == (while_ == "decode") and not seen:
                    seen.append(number)
                    store.cancel(job.id)
                    time.sleep(5 * workers.LOOK_S)
                yield piece

        import dataclasses

        return write(dataclasses.replace(stream, pieces=pieces()), path)

    monkeypatch.setattr(results, "write_video", slow)
    with House(store) as house:
        job = house.add()
        ended = house.wait(job.id)
    assert ended.state == State.CANCELLED and seen
    assert not list(job_files.folder_of(store.folder, job.id).glob("a*"))


def test_a_kept_latent_is_finished_without_sampling(store: SqliteStore, pipe: Any, tmp_path: Path) -> None:
    expected = pipe("a panda waves", steps=3, seconds=1, seed=7).save(tmp_path / "x.mp4")
    job = add(store, seed=7)
    latent = job_files.latent_of(store.folder, job.id, 1)
    pipe("a panda waves", steps=3, seconds=1, seed=7, keep_latent=latent)
    with House(store) as house:
        ended = house.wait(job.id)
        told = [event.kind for event in store.events(0, job_id=job.id)]
        assert "step" not in told and not latent.exists()
        assert path_of(store, ended).read_bytes() == expected.read_bytes()
        broken = add(store, seed=7)
        latent = job_files.latent_of(store.folder, broken.id, 1)
        latent.write_bytes(b"nonsense")
        ended = house.wait(broken.id)
    assert ended.state == State.COMPLETED and path_of(store, ended).read_bytes() == expected.read_bytes()


def test_a_stopped_worker_gives_its_job_back(store: SqliteStore) -> None:
    with House(store) as house:
        job = house.add(steps=500)
        house.until(job.id, "step")
    found = store.get(job.id)
    assert found is not None and found.state == State.QUEUED and found.attempts == 0
    assert [event.kind for event in store.events(0, job_id=job.id)][-1] == "queued"


def test_a_lost_lease_ends_the_work(store: SqliteStore) -> None:
    with House(store) as house:
        job = house.add(steps=20, seconds=0)
        house.until(job.id, "step")
        store.bury("tested")
        found = house.wait(job.id)
    assert found.state == State.COMPLETED and found.attempts == 2 and found.result is not None
    assert found.result["file"] == "a2-result.png"
    assert not list(job_files.folder_of(store.folder, job.id).glob("a1-*"))


def test_failures_are_told_and_the_worker_lives(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("/a/secret/path")

    with House(store) as house:
        with monkeypatch.context() as changed:
            changed.setattr(results, "write_clip", broken)
            failed = house.wait(house.add(seconds=0).id)
        after = house.wait(house.add(seconds=0).id)
        nowhere = house.wait(
            store.add(new_job_of(store, model="nano-t2v", changed_model="kandinsky5-lite-t2v-sft-5s"))[0].id
        )
    assert failed.error == {"code": "internal_error", "message": "the worker failed: ZeroDivisionError", "hint": ""}
    assert after.state == State.COMPLETED
    assert nowhere.error is not None and nowhere.error["code"] == "weights"


def new_job_of(store: SqliteStore, *, model: str, changed_model: str) -> Any:
    import dataclasses

    one = Order(request={"model": model, **QUICK}, form="mp4")
    job_id = new_id()
    new = new_job(one, one.resolved(catalogue.find(model), store.folder, job_id), job_id=job_id)
    return dataclasses.replace(new, model=changed_model)


def test_an_image_becomes_a_clip_and_no_path_is_told(store: SqliteStore) -> None:
    image = Image.new("RGB", (96, 96), "orange")
    with House(store) as house:
        job = house.wait(house.add(model="nano-i2v", files={IMAGE: image}, image=IMAGE, seed=1).id)
    assert job.state == State.COMPLETED and job.result is not None, job.error
    expected = kandinsky.load("nano-i2v")("a panda waves", image=image, steps=3, seconds=1, seed=1)
    assert (
        read_video(path_of(store, job)).frames_THWC == read_video(expected.save(store.folder / "y.mp4")).frames_THWC
    ).all()
    assert str(store.folder) not in path_of(store, job).read_bytes().decode("latin-1")
    assert job.result["recipe"]["image"]["file"] is None


def test_a_clip_gets_sound_and_sound_is_made_for_a_clip(store: SqliteStore, pipe: Any) -> None:
    with House(store) as house:
        both = house.wait(house.add(seed=1, order={"sound": "nano-v2a"}).id)
        assert both.state == State.COMPLETED and both.result is not None, both.error
        heard = read_video(path_of(store, both))
        assert both.result["recipe"]["sound"]["model"] == "nano-v2a"
        job_id = new_id()
        folder = job_files.folder_of(store.folder, job_id)
        folder.mkdir()
        pipe("a drum", steps=2, seconds=1, seed=1).save(folder / "x.mp4").rename(folder / VIDEO)
        one = Order(request={"model": "nano-v2a", "video": VIDEO, "steps": 2, "prompt": "a drum"}, form="mp4")
        new = new_job(one, one.resolved(catalogue.find("nano-v2a"), store.folder, job_id), job_id=job_id)
        sound = house.wait(store.add(new)[0].id)
    assert sound.state == State.COMPLETED and sound.result is not None, sound.error
    assert sound.kind == "audio" and len(heard) == 13
    assert path_of(store, sound, "audio").suffix == ".wav" and sound.result["recipe"]["video"]["file"] is None
    for path in (path_of(store, both), path_of(store, sound)):
        assert kandinsky_has_audio(path)


def kandinsky_has_audio(path: Path) -> bool:
    from kandinsky.media.mux import probe

    return probe(path).has_audio


def test_a_clip_is_continued(store: SqliteStore, pipe: Any) -> None:
    before = pipe("a panda waves", steps=3, seconds=1, seed=1)
    job_id = new_id()
    folder = job_files.folder_of(store.folder, job_id)
    folder.mkdir()
    before.save(folder / "x.mp4").rename(folder / VIDEO)
    before[-1:].image.save(folder / IMAGE)
    request = {"model": "nano-i2v", **QUICK, "image": IMAGE}
    one = Order(request=request, form="mp4", before=VIDEO)
    new = new_job(one, one.resolved(catalogue.find("nano-i2v"), store.folder, job_id), job_id=job_id)
    store.add(new)
    with House(store) as house:
        job = house.wait(job_id)
    assert job.state == State.COMPLETED and job.result is not None, job.error
    longer = read_video(path_of(store, job))
    assert len(longer) == 13 + 12 == job.result["frames"] and longer.fps == before.fps
    difference = longer.frames_THWC[:13].astype(int) - before.frames_THWC
    assert np.abs(difference).mean() < 8  # encoded twice
    assert longer.recipe["extended"] == {"frames": 13, "fps": 12.0}


def test_models_share_a_budget(store: SqliteStore) -> None:
    with House(store, anew=True, memory=100_000_000, warm=("nano-t2v",)) as house:
        house.wait(house.add(seconds=0, steps=1).id)
        assert house.worker.models.names == ("nano-t2v",)
        used = house.worker.models.bytes
        assert 50_000_000 < used < 200_000_000
        image = Image.new("RGB", (96, 96))
        house.wait(house.add(model="nano-i2v", files={IMAGE: image}, image=IMAGE, steps=1).id)
        assert house.worker.models.names == ("nano-i2v",)
        end = time.monotonic() + LIMIT_S
        while (facts := store.workers()[0].facts)["models"] != ["nano-i2v"]:  # it tells after the job has ended
            assert time.monotonic() < end
            time.sleep(0.01)
    assert facts["rss_bytes"] > 1e8
