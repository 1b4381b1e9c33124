"""Known frames and clips that are changed, over HTTP: what is kept of a request, and what is refused. No worker."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from kandinsky.client import Client, Job
from kandinsky.client.calls import parts_of
from kandinsky.errors import RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.order import Order
from kandinsky.jobs.records import JobRecord
from kandinsky.model.condition import Span
from kandinsky.model.given import Frames, Source
from kandinsky.model.values import Video
from kandinsky.serve.app import create_app
from kandinsky.serve.fields import VideoFields, request_body
from kandinsky.serve.routes import House
from kandinsky.serve.settings import ServeSettings

SECOND = {"prompt": "a panda waves", "model": "nano-t2v", "seconds": 1, "steps": 1}  # 13 frames


def png(width: int = 96, height: int = 96, colour: str = "white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 25 frames, which get brighter."""
    levels = np.arange(25, dtype=np.uint8) * 9
    frames = np.broadcast_to(levels[:, None, None, None], (25, 96, 96, 3)).copy()
    return Video(frames, fps=12.0, seed=0).save(tmp_path_factory.mktemp("clips") / "a.mp4")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    settings = ServeSettings(models=("nano-t2v", "nano-i2v", "nano-v2a"), store=str(folder / "jobs"), workers=0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture
def done(house: House, client: TestClient, clip: Path) -> str:
    """A finished job, whose result is the clip."""
    job_id: str = client.post("/v1/videos", json=SECOND).json()["id"]
    (claim,) = house.store.claim("w", lease_s=60.0)
    path = job_files.path_of(Path(house.store.folder), job_id, "a1-video.mp4")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(clip.read_bytes())
    house.store.complete(claim, {"file": path.name, "media_type": "video/mp4"}, run_s=0.1, size=8)
    return job_id


def asked(client: TestClient, call: str = "", files: dict[str, bytes] | None = None, **values: Any) -> dict[str, Any]:
    body = {**SECOND, **values}
    if files is None:
        answer = client.post(f"/v1/videos{call}", json=body)
    else:
        texts = {k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in body.items()}
        answer = client.post(f"/v1/videos{call}", data=texts, files={k: (k, v) for k, v in files.items()})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def refused(client: TestClient, *words: str, files: dict[str, bytes] | None = None, **values: Any) -> None:
    body = {**SECOND, **values}
    if files is None:
        answer = client.post("/v1/videos", json=body)
    else:
        texts = {k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in body.items()}
        answer = client.post("/v1/videos", data=texts, files={k: (k, v) for k, v in files.items()})
    told = answer.json()["error"]["message"]
    assert 400 <= answer.status_code < 500 and "\n" not in told, answer.text
    assert all(word in told for word in words), told
    assert "/files/" not in told and "input-" not in told, told


def resolved(house: House, made: dict[str, Any]) -> tuple[JobRecord, Any]:
    """The stored job, and what a worker makes of it."""
    job = house.store.get(made["id"])
    assert job is not None
    card = house.offers.find(job.model).card
    return job, Order.from_dict(job.order).resolved(card, Path(house.store.folder), job.id)


def test_a_list_names_uploads_jobs_and_data(client: TestClient, house: House, clip: Path, done: str) -> None:
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    made = asked(
        client, files={"first clip": clip.read_bytes(), "still": png()},
        seconds=2, conditions=[
            {"frames": "first clip", "at": 0, "cut": "-5:"}, {"frames": "still", "at": "0.75s"}, f"{done}[0:4]@end",
            {"frames": {"image_url": data}, "at": 13},
        ],
    )  # fmt: skip
    job, ready = resolved(house, made)
    assert [one.at for one in ready.conditions] == [Span(0, 2), Span(3, 4), Span(6, 7), Span(4, 5)]
    assert made["request"]["conditions"][0] == {"frames": "first clip", "cut": "-5:"}
    assert made["request"]["conditions"][2] == {"frames": done, "at": "end", "cut": "0:4"}
    folder = job_files.folder_of(Path(house.store.folder), job.id)
    assert sorted(path.name for path in folder.iterdir()) == ["input-1", "input-2.png", "input-3", "input-4.png"]


def test_a_clip_is_changed_where_a_mask_says(client: TestClient, house: House, clip: Path) -> None:
    half = np.zeros((25, 96, 96, 3), np.uint8)
    half[:, 48:] = 255
    masks = clip.with_name("masks.mp4")
    Video(half, fps=12.0, seed=0).save(masks)
    for mask in (png(), masks.read_bytes()):
        made = asked(client, files={"video": clip.read_bytes(), "mask": mask}, span="4:9", resample=1)
        _, ready = resolved(house, made)
        (source,) = ready.conditions
        assert source.kept.keep_THW[0].all() and not source.kept.keep_THW[2].all() and ready.resample == 1
    assert source.kept.keep_THW[2, :5].all() and not source.kept.keep_THW[2, 7:].any()
    listed = [{"source": "a", "mask": "b", "grow": 2, "span": "4:9"}]
    _, ready = resolved(house, asked(client, files={"a": clip.read_bytes(), "b": png()}, conditions=listed))
    assert ready.conditions[0].asked["grow"] == 2


def test_edits_and_last_images(client: TestClient, house: House, clip: Path, done: str) -> None:
    made = asked(client, "/edits", video={"id": done}, strength=0.6, prompt="a bear", seconds=None)
    job, ready = resolved(house, made)
    assert job.model == "nano-t2v" and ready.conditions[0].strength == 0.6 and made["frames"] == 25
    made = asked(client, files={"image": png(), "last_image": png(colour="red")})
    _, ready = resolved(house, made)
    assert [one.at for one in ready.conditions] == [Span(0, 1), Span(3, 4)]
    told = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert told["nano-i2v"]["knows"] == {"first frame": "native", "frames": "replacement", "source": "replacement"}
    assert told["nano-v2a"]["knows"] == {} and told["nano-t2v"]["extends"]
    assert "--" not in json.dumps(told["nano-t2v"]["accepts"])


def test_a_model_that_draws_from_words_names_the_one_that_takes_conditions(tmp_path: Path, clip: Path) -> None:
    models = ("nano2-t2v", "nano2-i2v", "nano-t2v")
    settings = ServeSettings(models=models, store=str(tmp_path / "jobs"), workers=0)
    film = {"film": clip.read_bytes()}
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        told = {one["id"]: one for one in made.get("/v1/models").json()["data"]}
        assert told["nano2-t2v"]["knows"] == {"first frame": "replacement"} and told["nano2-t2v"]["extends"]
        for one, other in (("nano2-t2v", "`nano-t2v`"), ("nano2-i2v", "`nano-i2v`")):
            for files, values in (
                ({"video": clip.read_bytes()}, {"strength": 0.5}),
                ({"video": clip.read_bytes(), "mask": png()}, {}),
                ({"image": png(), "last_image": png()}, {}),
                ({"control": clip.read_bytes()}, {}),
                (film, {"conditions": [{"frames": "film", "at": "end"}]}),
                (film, {"conditions": [{"frames": "film", "at": 0, "cut": "0:9"}]}),
                (film, {"conditions": [{"source": "film", "prompt": "a dog"}]}),
            ):
                refused(made, f"`{one}`", f"use {other}", model=one, files=files, **values)
        listed = [{"frames": "film", "at": 0, "cut": "-1:"}]
        assert asked(made, files=film, model="nano2-t2v", conditions=listed)["model"] == "nano2-t2v"
        unnamed = {"prompt": "a cat", "steps": "1", "strength": "0.5"}
        answer = made.post("/v1/videos", data=unnamed, files={"video": clip.read_bytes()})
        assert answer.json()["model"] == "nano-t2v", answer.text
        answer = made.post(
            "/v1/videos/extensions", data={"model": "nano2-t2v", "prompt": "a cat"}, files={"video": clip.read_bytes()}
        )
        assert answer.status_code == 200, answer.text
        job = made.app.state.house.store.get(answer.json()["id"])  # type: ignore[attr-defined]
        order = Order.from_dict(job.order)
        assert order.request["image"] and order.overlap == ""


def test_an_extension_adds_its_seconds_to_the_last_frames(client: TestClient, house: House, done: str) -> None:
    made = asked(
        client, "/extensions", video={"id": done}, conditions=[{"frames": {"id": done}, "cut": "0:1", "at": "end"}]
    )
    job, ready = resolved(house, made)
    assert job.order["overlap"] == "-0.750000s:" and ready.shape.frames == 13 + 8
    assert [one.at for one in ready.conditions] == [Span(0, 3), Span(5, 6)]
    again = client.post(f"/v1/videos/{made['id']}/remix", json={"prompt": "a cat", "seconds": 1.35}).json()
    job, ready = resolved(house, again)
    assert (
        job.order["before"] == "input-video" and ready.shape.frames == 17 + 4
    )  # less is known, as the longest clip leaves room
    assert len(ready.conditions) == 2 and again["request"]["conditions"][0]["frames"] == done
    longest = asked(client, "/extensions", video={"id": done}, seconds=2)  # no room for more than one known frame
    job, ready = resolved(house, longest)
    assert job.order["overlap"] == "-0.083333s:" and ready.shape.frames == 25


def test_a_remix_takes_other_conditions(client: TestClient, house: House, clip: Path, done: str) -> None:
    made = asked(client, files={"a": clip.read_bytes()}, conditions=[{"frames": "a", "cut": "0:5"}])
    kept = client.post(f"/v1/videos/{made['id']}/remix", json={"prompt": "a cat"}).json()
    other = {"prompt": "a cat", "conditions": [{"frames": {"id": done}, "cut": "0:1", "at": "end"}]}
    changed = client.post(f"/v1/videos/{made['id']}/remix", json=other).json()
    assert resolved(house, kept)[1].conditions[0].at == Span(0, 2)
    assert [one.at for one in resolved(house, changed)[1].conditions] == [Span(3, 4)]


def test_what_is_wrong_is_said(client: TestClient, house: House, clip: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    bytes_ = clip.read_bytes()
    refused(client, "there is no file", conditions=[{"frames": str(secret)}])
    refused(client, "there is no file", conditions=[f"{secret}@0"])
    refused(client, "fetches nothing by URL", conditions=[{"frames": f"file://{secret}"}])
    refused(client, "no finished job", conditions=[{"frames": {"id": "job_" + "0" * 32}}])
    refused(client, "give its file as `frames`, `source`", conditions=[{"at": 0}])
    refused(client, "`cu`", conditions=[{"frames": "a", "cu": "0:1"}], files={"a": bytes_})
    refused(client, "not JSON", conditions="[{", files={"a": bytes_})
    refused(client, "both to be known", conditions=[{"frames": "a", "cut": "0:5"}, {"frames": "a", "cut": "0:1"}],
            files={"a": bytes_})  # fmt: skip
    refused(client, "`a` has 25 frames", conditions=[{"frames": "a"}], files={"a": bytes_})
    refused(client, "`b` is not a file field", conditions=[{"frames": "a"}], files={"a": bytes_, "b": bytes_})
    refused(client, "the mask", "32x32", span="0:4", files={"video": bytes_, "mask": png(32, 32)})
    refused(client, "was not told how", files={"video": bytes_})
    refused(client, "`strength`", strength=0.5)
    refused(client, "resample", "20", resample=21)
    refused(client, "damaged", conditions=[{"frames": "a"}], files={"a": b"\0" * 400})
    moving = io.BytesIO()
    Image.new("RGB", (8, 8)).save(moving, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    refused(client, "animated", conditions=[{"frames": "a"}], files={"a": moving.getvalue()})
    many = [{"frames": "data:image/png;base64," + base64.b64encode(png(8, 8 + i)).decode()} for i in range(17)]
    refused(client, "at most 16", conditions=many)
    assert client.get("/v1/jobs", params={"status": "queued"}).json()["data"] == []


def test_the_client_sends_what_python_takes(clip: Path, tmp_path: Path) -> None:
    still = tmp_path / "end.png"
    still.write_bytes(png())
    job = Job("job_" + "1" * 32, "video", "nano-t2v", "completed", 100)
    told = parts_of({
        "prompt": "x", "last_image": still,
        "conditions": [
            Frames(clip, cut="-9:"), f"{clip}[0:4]@end", {"frames": job, "at": 12}, Source(job.id, strength=0.5),
        ],
    })  # fmt: skip
    sent = json.loads(told["data"]["conditions"])
    assert [one.get("frames") for one in sent] == ["conditions-1", "conditions-1", {"id": job.id}, None]
    assert sent[3] == {"source": {"id": job.id}, "strength": 0.5} and sent[1]["at"] == "end"
    assert (
        set(told["files"]) == {"last_image", "conditions-1"} and told["files"]["conditions-1"][1] == clip.read_bytes()
    )
    as_json = parts_of({"conditions": [{"frames": job}]})
    assert as_json == {"json": {"conditions": [{"frames": {"id": job.id}}]}}
    with pytest.raises(RequestError, match="is not a file"):
        parts_of({"conditions": [Frames("absent.mp4")]})
    with pytest.raises(RequestError, match="save it"):
        parts_of({"conditions": [Frames(np.zeros((8, 8, 3), np.uint8))]})
    assert "conditions" in (Client.create.__doc__ or "")


def test_openapi_shows_the_list() -> None:
    body = request_body(VideoFields, {"video": "A clip."})["requestBody"]["content"]
    listed = body["application/json"]["schema"]["properties"]["conditions"]["anyOf"][0]
    frames, source, control, reference, _ = listed["items"]["anyOf"]
    assert set(control["properties"]) == {"control", "cut", "signal", "is_map", "branch", "strength", "steps"}
    assert set(reference["properties"]) == {"reference", "branch", "strength", "steps"}
    assert set(frames["properties"]) == {"frames", "at", "cut"} and source["required"] == ["source"]
    assert body["multipart/form-data"]["schema"]["additionalProperties"]["format"] == "binary"
