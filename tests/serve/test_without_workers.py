"""An application in this process, without workers: what becomes of requests before, and after, anything is made."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kandinsky.jobs import job_files
from kandinsky.jobs.records import NewJob, State
from kandinsky.serve import events, uploads
from kandinsky.serve.app import create_app
from kandinsky.serve.routes import House
from kandinsky.serve.settings import ServeSettings

HELD: dict[str, Any] = {
    "kind": "video",
    "model": "nano-t2v",
    "order": {"prompt": "x"},
    "source": "cli",
    "holder": "a command",
}
STILL: dict[str, Any] = {"prompt": "a star", "steps": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "loras").mkdir()
    (folder / "loras" / "one.safetensors").touch()
    settings = ServeSettings(
        models=("nano-t2v", "nano-v2a"), store=str(folder / "jobs"), loras=str(folder / "loras"), workers=0, queue=3
    )
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        yield made


def test_a_remix_keeps_what_is_not_said_again(client: TestClient, house: House) -> None:
    asked = {"prompt": "x", "seconds": 0.5, "steps": 1, "lora": ["one:0.5"], "attention": "math", "sound": True}
    made = client.post("/v1/videos", json=asked)
    assert made.status_code == 200, made.text
    path = f"/v1/videos/{made.json()['id']}/remix"
    remixes: tuple[dict[str, Any], ...] = ({}, {"lora": []})
    same, other = (client.post(path, json={"prompt": "y", **more}).json()["id"] for more in remixes)
    orders = [dict((house.store.get(one) or pytest.fail("gone")).order) for one in (made.json()["id"], same, other)]
    assert orders[0]["lora"] == ["one:0.5"] and orders[0]["sound"] == "nano-v2a"
    for name in ("lora", "attention", "sound"):
        assert orders[1][name] == orders[0][name]
    assert orders[2]["lora"] == [] and orders[2]["attention"] == "math"


def _queued_image(client: TestClient, key: str, **more: Any) -> str:
    told = {"Idempotency-Key": key, "Prefer": "respond-async"}
    answer = client.post("/v1/images/generations", json={**STILL, **more}, headers=told)
    assert answer.status_code == 202, answer.text
    made: str = answer.json()["data"][0]["id"]
    return made


def _events(client: TestClient, key: str) -> list[dict[str, Any]]:
    body = {**STILL, "stream": True}
    answer = client.post("/v1/images/generations", json=body, headers={"Idempotency-Key": key})
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_a_repetition_after_the_end_tells_the_end(client: TestClient, house: House, end: str) -> None:
    job_id = _queued_image(client, f"of-{end}")
    if end == "cancelled":
        house.store.cancel(job_id)
    else:
        (claim,) = house.store.claim("w", lease_s=60.0)
        if end == "failed":
            house.store.fail(claim, {"code": "out_of_memory", "message": "too large"})
        else:
            path = job_files.path_of(Path(house.store.folder), job_id, "a1-image.png")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"an image")
            house.store.complete(claim, {"file": path.name, "width": 8, "height": 8}, run_s=0.1, size=8)
    (told,) = _events(client, f"of-{end}")
    if end == "completed":
        assert told["type"] == "image_generation.completed" and told["id"] == job_id
    else:
        assert told["type"] == "error" and told["error"]["code"] == ("cancelled", "out_of_memory")[end == "failed"]


def test_a_repetition_cancels_only_what_it_brought(client: TestClient, house: House) -> None:
    first = _queued_image(client, "many")
    answer = client.post("/v1/images/generations", json={**STILL, "n": 4}, headers={"Idempotency-Key": "many"})
    assert answer.status_code == 429
    assert [job.id for job in house.store.list(states=(State.QUEUED,)).jobs] == [first]


def test_a_key_of_images_is_checked_too(client: TestClient) -> None:
    for key in ("", "x" * 256):
        answer = client.post("/v1/images/generations", json=STILL, headers={"Idempotency-Key": key})
        assert answer.status_code == 400 and "Idempotency-Key" in answer.text


@pytest.mark.parametrize("number", [str(2**62 + 1), "9" * 30, "-1", "x"])
def test_numbers_of_events_are_bounded(client: TestClient, number: str) -> None:
    assert client.get("/v1/events", headers={"Last-Event-ID": number}).status_code == 400


def test_rows_of_prompt_files_take_no_room_in_the_queue(client: TestClient, house: House) -> None:
    held = [house.store.add(NewJob(**HELD))[0].id for _ in range(5)]
    assert client.get("/ready").json()["queued"] == 0
    assert client.post("/v1/videos", json={"prompt": "x", "seconds": 0.5}).status_code == 200
    told = house.store.events(0)
    assert {e.job for e in told} >= set(held)
    assert not {e.job for e in events._of_the_api(house, list(told), {})} & set(held)
    before = house.store.last_event()
    for one in held:
        house.store.cancel(one)
        house.store.delete(one)
    gone = list(house.store.events(before))
    assert [e.kind for e in gone] == ["deleted"] * 5 and not events._of_the_api(house, gone, {})


def test_the_events_of_a_job_begin_with_its_first(client: TestClient, house: House) -> None:
    client.post("/v1/videos", json={"prompt": "x", "seconds": 0.5})
    job = client.post("/v1/videos", json={"prompt": "y", "seconds": 0.5}).json()["id"]
    (first,) = house.store.events(0, job_id=job)
    client.post("/v1/videos", json={"prompt": "z", "seconds": 0.5})
    assert first.id > 1 and events._begin(house, job, 0) == first.id - 1
    assert events._begin(house, job, first.id) == house.store.last_event()


def test_a_job_that_ends_while_it_is_deleted_is_deleted(
    client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.post("/v1/videos", json={"prompt": "x", "seconds": 0.5}).json()["id"]
    (claim,) = house.store.claim("w", lease_s=60.0)
    delete = house.store.delete

    def late(job_id: str, **facts: Any) -> bool:
        is_deleted = delete(job_id, **facts)
        house.store.complete(claim, {}, run_s=0.1, size=0)
        return is_deleted

    monkeypatch.setattr(house.store, "delete", late)
    assert client.delete(f"/v1/videos/{job}").status_code == 200
    assert house.store.get(job) is None


def test_uploads_that_take_long_hold_nobody_else_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    release, reading = threading.Event(), threading.Semaphore(0)

    def slowly(*_: Any) -> dict[str, Any]:
        reading.release()
        assert release.wait(60)
        return {"error": "it is none"}

    monkeypatch.setattr(uploads, "_in_child", slowly)

    def send() -> int:
        return client.post("/v1/audio", data={"prompt": "x"}, files={"video": ("x.mp4", b"x")}).status_code

    with ThreadPoolExecutor(40) as senders:  # more than the threads that everything else runs on
        sent = [senders.submit(send) for _ in range(40)]
        assert reading.acquire(timeout=60)
        try:
            assert client.get("/v1/jobs").status_code == 200
        finally:
            was_held = not release.is_set()
            release.set()
        assert was_held and {one.result() for one in sent} == {400}


def test_the_free_space_of_the_jobs_files_counts(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    house: House = client.app.state.house  # type: ignore[attr-defined]
    real = shutil.disk_usage

    def usage(path: Path) -> Any:
        return real(path)._replace(free=1000) if path.name == "files" else real(path)

    monkeypatch.setattr("kandinsky.serve.intake.shutil.disk_usage", usage)
    answer = client.post("/v1/videos", json={"prompt": "x"})
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full"
    assert house.store.waiting() == 0


def test_a_remix_may_be_heard(client: TestClient, house: House) -> None:
    silent = client.post("/v1/videos", json={"prompt": "x", "seconds": 0.5, "steps": 1}).json()["id"]
    for sound, said in ((True, "nano-v2a"), (False, "")):
        remix = client.post(f"/v1/videos/{silent}/remix", json={"prompt": "y", "sound": sound})
        assert remix.status_code == 200, remix.text
        silent = remix.json()["id"]
        assert dict((house.store.get(silent) or pytest.fail("gone")).order)["sound"] == said
