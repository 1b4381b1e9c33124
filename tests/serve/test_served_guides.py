"""Prompts by time, loops, overlaps and branches over HTTP, and who decodes what is uploaded."""

import asyncio
import inspect
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from kandinsky import Control, Frames, Reference, catalogue
from kandinsky.client import AsyncClient, Client, calls
from kandinsky.client.calls import parts_of
from kandinsky.errors import RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.order import Order
from kandinsky.jobs.results import without_paths
from kandinsky.model.values import Video
from kandinsky.serve import uploads
from kandinsky.serve.app import create_app
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.fields import ImageFields, VideoFields, request_body
from kandinsky.serve.mcp_tools import Generate
from kandinsky.serve.offers import Offers
from kandinsky.serve.routes import House
from kandinsky.serve.settings import ServeSettings
from kandinsky.weights.branch_files import BranchFile
from serve.conftest import Server

SECOND = {"prompt": "a panda waves", "model": "nano-t2v", "seconds": 1, "steps": 1}  # 13 frames


def png(width: int = 96, height: int = 96, colour: str = "white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def write_branch(path: Path, kind: str, *, network: str = "") -> None:
    """A file whose header says that it holds a branch, beside Nano by default."""
    card = catalogue.find("nano-t2v")
    told = BranchFile(path, kind, "edges" if kind == "control" else "", "" if kind == "control" else "vae",
                      network or card.dit.kind, card.id, {}, {})  # fmt: skip
    save_file({"branch.x": np.zeros(1, np.float32)}, path, metadata=told.header())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 25 frames."""
    levels = np.arange(25, dtype=np.uint8) * 9
    frames = np.broadcast_to(levels[:, None, None, None], (25, 96, 96, 3)).copy()
    return Video(frames, fps=12.0, seed=0).save(tmp_path_factory.mktemp("clips") / "a.mp4")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "branches").mkdir()
    write_branch(folder / "branches" / "edges.safetensors", "control")
    write_branch(folder / "branches" / "subject.safetensors", "reference")
    write_branch(folder / "branches" / "other.safetensors", "control", network="kandinsky4")
    (folder / "branches" / "broken.safetensors").write_bytes(b"nothing")
    settings = ServeSettings(
        models=("nano-t2v", "nano-i2v", "nano-v2a"), store=str(folder / "jobs"), workers=0, effort=40,
        branches=str(folder / "branches"),
    )  # fmt: skip
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as made:
        yield made


def post(client: TestClient, call: str = "", files: dict[str, bytes] | None = None, **values: Any) -> Any:
    body = {name: value for name, value in {**SECOND, **values}.items() if value is not None}
    if files is None:
        return client.post(f"/v1/videos{call}", json=body)
    texts = {k: json.dumps(v) if isinstance(v, list) else str(v) for k, v in body.items()}
    return client.post(f"/v1/videos{call}", data=texts, files={k: (k, v) for k, v in files.items()})


def made(client: TestClient, house: House, call: str = "", **more: Any) -> tuple[dict[str, Any], Any]:
    """What is answered, and what a worker makes of it."""
    answer = post(client, call, **more)
    assert answer.status_code == 200, answer.text
    job = house.store.get(answer.json()["id"])
    assert job is not None
    asked = Order.from_dict(job.order).asked(Path(house.store.folder), job.id, branches=house.settings.branch_folder)
    from kandinsky.engine.request import resolve

    return answer.json(), resolve(asked, house.offers.find(job.model).card)


def refused(client: TestClient, *words: str, param: str = "", call: str = "", **more: Any) -> None:
    answer = post(client, call, **more)
    error = answer.json()["error"]
    assert answer.status_code == 400 and "\n" not in error["message"], answer.text
    assert all(word in error["message"] for word in words), error
    assert "/branches/" not in error["message"] and "input-" not in error["message"], error
    assert not param or error["param"] == param, error


# -- time --------------------------------------------------------------------------------------------------------------


def test_prompts_by_time_in_every_form(client: TestClient, house: House) -> None:
    forms: tuple[Any, ...] = ([["a cat", 1], ["a dog", "2s", 3]], ["1s a cat", "2s:3s a dog"],
                  [{"prompt": "a cat", "at": 1}, {"prompt": "a dog", "at": "24", "until": 3}])  # fmt: skip
    for form in forms:
        shown, job = made(client, house, seconds=4, prompt_at=form, fade=0.5, overlap="0.5s", loop=True)
        line = [(round(begin, 2), prompt) for begin, prompt in job.long.script.changes]
        assert line == [(0, "a panda waves"), (1, "a cat"), (2, "a dog"), (3, "a panda waves")]
        assert job.long.loop and job.long.overlap == 0.5 and job.long.script.fade == 0.5
        assert [one["prompt"] for one in shown["request"]["prompt_at"]] == ["a cat", "a dog"]
    answer = client.post("/v1/videos", data={**SECOND, "seconds": "4", "prompt_at[]": ["1s a cat", "2s a dog"]})
    assert answer.status_code == 200 and len(answer.json()["request"]["prompt_at"]) == 2
    again = client.post(f"/v1/videos/{answer.json()['id']}/remix", json={"prompt": "a fox"}).json()
    assert len(again["request"]["prompt_at"]) == 2
    _, job = made(client, house, files={"image": png()}, seconds=4, prompt_at=[["a cat", 2]], overlap="6")
    assert job.long.script.prompts == ("a panda waves", "a cat") and job.long.overlap == 0.5


def test_what_is_wrong_with_time_is_said(client: TestClient) -> None:
    refused(client, "outside of a clip", prompt_at=[["a cat", 9]], seconds=4)
    refused(client, "no place in time", param="prompt_at", prompt_at=["a cat"])
    refused(client, "says nothing", param="prompt_at", prompt_at=[["", 1]])
    refused(client, "is no prompt with its time", param="prompt_at", prompt_at=[[1]])
    refused(client, "4000 characters", param="prompt_at", prompt_at=[["a" * 4001, 1]])
    refused(client, "64", param="prompt_at", prompt_at=[["a cat", i] for i in range(65)])
    refused(client, "not JSON", param="prompt_at", files={"image": png()}, prompt_at="[[")
    refused(client, "both asked for", prompt_at=[["a cat", 1], ["a dog", 1]], seconds=4)
    refused(client, "no time", param="overlap", overlap="soon", seconds=4)
    refused(client, "`overlap` is of clips made in windows", param="overlap", overlap=1)
    refused(client, "`fade` is between prompts", param="fade", fade=1, seconds=4)
    refused(client, "too short to loop", loop=True, seconds=0.35)
    refused(client, "times the work", param="steps", seconds=600, steps=25)
    sound = {"model": "nano-v2a", "video": "data:video/mp4;base64,AAAA"}
    assert client.post("/v1/audio", json={**sound, "loop": True}).json()["error"]["code"] == "unknown_parameter"
    still = client.post("/v1/images/generations", json={"prompt": "x", "prompt_at": [["a cat", 1]]})
    assert still.json()["error"]["code"] == "unknown_parameter"


def test_windows_count_as_work_and_run_alone(client: TestClient, house: House) -> None:
    short, _ = made(client, house, seconds=2)
    long, job = made(client, house, seconds=8)
    records = [house.store.get(one["id"]) for one in (short, long)]
    assert all(records)
    frames = sum(window.frames for window in job.long.windows)
    assert records[1].work / records[0].work == pytest.approx(frames / 7)  # type: ignore[union-attr]
    assert records[1].batch == ""  # type: ignore[union-attr]


def test_an_extension_may_be_long(client: TestClient, house: House, clip: Path) -> None:
    files = {"video": clip.read_bytes()}
    shown, job = made(client, house, "/extensions", files=files, seconds=6, prompt_at=[["a cat", 3]])
    record = house.store.get(shown["id"])
    assert record is not None and record.order["overlap"] == "-0.750000s:" and job.long is not None
    assert job.seconds == pytest.approx(6 + 8 / 12)
    refused(client, "`loop`", param="loop", call="/extensions", files=files, loop=True, seconds=6)


# -- branches ----------------------------------------------------------------------------------------------------------


def test_models_name_their_branches(client: TestClient) -> None:
    told = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert (
        told["nano-t2v"]["branches"] == {"control": ["edges"], "reference": ["subject"]}
        and told["nano-v2a"]["branches"] == {}
    )
    assert told["nano-t2v"]["longest"] == 3600 and told["nano-t2v"]["overlap"] > 0 and told["nano-v2a"]["overlap"] == 0
    assert "control" in told["nano-t2v"]["accepts"] and "--" not in json.dumps(told["nano-t2v"]["accepts"])


def test_controls_and_references_are_uploads(client: TestClient, house: House, clip: Path) -> None:
    files = {"control": clip.read_bytes(), "reference": png(64, 64, "red")}
    more: dict[str, Any] = {"control_strength": 0.5, "control_steps": "0:0.6", "reference_strength": 2}
    shown, job = made(client, house, files=files, branch=["edges", "subject"], **more)
    control, reference = job.conditions
    assert (control.strength, control.shares, control.signal) == (0.5, (0.0, 0.6), "edges") and reference.strength == 2
    assert control.branch.path.stem == "edges" and reference.branch.path.stem == "subject"
    assert shown["request"]["branch"] == ["edges", "subject"] and shown["request"]["control_strength"] == 0.5
    listed = [{"control": "a", "branch": "edges", "is_map": True}, {"reference": "b", "branch": "subject"}]
    shown, job = made(client, house, files={"a": png(), "b": png()}, conditions=listed)
    assert [one.kind for one in job.conditions] == ["control", "reference"] and job.conditions[0].signal == ""
    assert shown["request"]["conditions"][0] == {"control": "a", "branch": "edges", "is_map": True}
    again = client.post(f"/v1/videos/{shown['id']}/remix", json={"prompt": "a cat"})
    assert again.status_code == 200 and again.json()["request"]["conditions"][1]["branch"] == "subject"
    told = without_paths({"conditions": [{"control": True, "branch": "/a/b/edges.safetensors", "file": "/x"}]}, {})
    assert told["conditions"] == [{"control": True, "branch": "edges", "file": None}]


def test_a_model_with_branches_of_its_own_needs_no_name(client: TestClient, house: House) -> None:
    for kind, given in (("control", png()), ("reference", png(64, 64, "red"))):
        shown, job = made(client, house, files={kind: given})
        (one,) = job.conditions
        assert one.kind == kind and one.branch.is_own and one.branch.path.stem == kind
        assert "branch" not in shown["request"]


def test_what_is_wrong_with_branches_is_said(client: TestClient, monkeypatch) -> None:
    monkeypatch.setattr(Offers, "has_own_branch", lambda *_: False)  # a model that has none
    still = {"control": png()}
    refused(client, "there is no branch `third`", "`edges`", param="branch", files=still, branch=["third"])
    assert post(client, files=still, branch=["../x"]).status_code == 400
    refused(client, "name one as `branch`: `edges`", param="branch", files=still)
    refused(client, "none of its own", files={"b": png()}, conditions=[{"reference": "b"}])
    refused(client, "was trained beside", files=still, branch=["other"])
    refused(client, "name one as `branch`: `edges`", files=still, branch=["subject"])
    refused(client, "`control_strength`", param="control_strength", control_strength=0.5)
    for name in ("no", "/etc/hostname", "../branches/edges", "edges.safetensors"):
        inside = post(client, files={"a": png()}, conditions=[{"control": "a", "branch": name}])
        said = f"there is no branch `{name}` here: there are `broken`, `edges`, `other`, `subject`"  # no word of a file
        assert inside.status_code == 400 and said in inside.json()["error"]["message"], inside.text
        assert post(client, files=still, branch=[name]).status_code == 400
    assert post(client, conditions=[{"control": "/etc/hostname", "branch": "edges"}]).status_code == 400


# -- who decodes -------------------------------------------------------------------------------------------------------


def test_nothing_is_decoded_in_the_server(
    client: TestClient, house: House, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("an upload is decoded in the process of the server")

    bytes_, still = clip.read_bytes(), png()
    monkeypatch.setattr(Image, "open", never)
    monkeypatch.setattr(av, "open", never)
    asked: list[tuple[str, dict[str, bytes], dict[str, Any]]] = [
        ("", {"image": still, "a": bytes_}, {"conditions": [{"frames": "a", "cut": "-5:", "at": "end"}]}),
        ("/edits", {"video": bytes_, "mask": still}, {"span": "4:9", "seconds": None}),
        ("", {"control": bytes_}, {"branch": ["edges"]}),
    ]
    for call, files, values in asked:
        answer = post(client, call, files=files, **values)
        assert answer.status_code == 200, (call, answer.text)
    again = client.post(f"/v1/videos/{answer.json()['id']}/remix", json={"prompt": "a cat"})
    assert again.status_code == 200, again.text
    heard = client.post("/v1/audio", data={"prompt": "drum", "steps": "1"}, files={"video": ("a", bytes_)})
    assert heard.status_code == 200, heard.text
    refused(client, "marks nothing", files={"video": bytes_, "mask": png(colour="black")}, seconds=None)


def test_a_process_that_ends_early_is_told(client: TestClient, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "DEADLINE_S", 0.01)
        refused(client, "takes more than", files={"image": png()})
    with pytest.raises(ApiError) as failed:
        uploads.confined("kandinsky.serve.no_module")
    assert failed.value.status == 500 and failed.value.code == "internal_error"


def test_what_decodes_runs_no_code_of_its_folder_and_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("KANDINSKY_API_KEY", "secret")
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(tmp_path))
    run, given = subprocess.run, {}

    def started(command: list[str], **more: Any) -> Any:
        given.update(more["env"])
        return run(command, **more)

    monkeypatch.setattr(subprocess, "run", started)
    with pytest.raises(ApiError):
        uploads.confined("kandinsky.serve.resolving", given=b"{}")
    assert not (tmp_path / "ran").exists()
    assert given["KANDINSKY_WEIGHTS"] == str(tmp_path) and "secret" not in given.values()


# -- clients -----------------------------------------------------------------------------------------------------------


def test_the_clients_say_what_python_says(clip: Path, tmp_path: Path) -> None:
    still = tmp_path / "robot.png"
    still.write_bytes(png())
    call = calls.create(
        [("a panda", 0), ("a cat", 4), ("a dog", "8s", 9)], seconds=12, loop=True, prompt_at=["2s a fox"]
    )
    body = call.arguments()["json"]
    assert body["prompt"] == "a panda" and body["loop"] is True
    assert [one["prompt"] for one in body["prompt_at"]] == ["a cat", "a dog", "a fox"]
    with pytest.raises(RequestError, match="first of several"):
        calls.create([("a panda", 1)])
    told = parts_of({"control": clip, "reference": still, "branch": "edges", "prompt_at": [("a cat", 1)]})
    assert set(told["files"]) == {"control", "reference"} and told["data"]["branch"] == "edges"
    assert json.loads(told["data"]["prompt_at"]) == [{"prompt": "a cat", "at": 1}]
    told = parts_of(
        {"conditions": [Control(clip, branch="edges", strength=0.5), Reference(still), Frames(still, at="end")]}
    )
    sent = json.loads(told["data"]["conditions"])
    assert sent[0] == {"control": "conditions-1", "branch": "edges", "strength": 0.5}
    assert sent[1] == {"reference": "conditions-2"} and sent[2]["frames"] == "conditions-2"
    with pytest.raises(RequestError, match="name of one of the server's"):
        parts_of({"branch": Path("edges.safetensors")})


def test_one_description_serves_both_clients() -> None:
    for name in ("create", "edit", "extend", "sound", "remix", "images", "create_images", "get", "list", "content"):
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert one.__doc__ == other.__doc__ and inspect.signature(one) == inspect.signature(other)
        assert asyncio.iscoroutinefunction(other) and not asyncio.iscoroutinefunction(one)


def test_assistants_have_the_same_fields() -> None:
    names = {"prompt_at", "fade", "overlap", "loop", "control", "control_strength", "control_steps", "reference",
             "reference_strength", "branch"}  # fmt: skip
    assert names <= set(Generate.model_fields)
    given = Generate.model_validate({"prompt": "x", "prompt_at": [{"prompt": "a cat", "at": 1}], "overlap": "0.5s"})
    assert given.model_dump(exclude_none=True)["prompt_at"] == [{"prompt": "a cat", "at": 1.0}]
    body = request_body(VideoFields, {})["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert names - {"control", "reference"} <= set(body) and "prefixItems" in json.dumps(body["prompt_at"])
    assert not names & set(ImageFields.model_fields)


# -- with a worker -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_follows_them(tmp_path: Path, clip: Path) -> None:
    from kandinsky.train import branch
    from kandinsky.train.branch import BranchSettings

    card = catalogue.find("nano-t2v")
    how = BranchSettings(kind="reference", blocks=2, width=16, head_dim=8, dtype="float32")
    weights = {f"branch.{name}": tensor for name, tensor in branch.built(how, card).state_dict().items()}
    file = Path(branch.write(weights, how, card, tmp_path / "made"))
    (tmp_path / "branches").mkdir()
    file.rename(tmp_path / "branches" / "subject.safetensors")
    options = ("--branches", str(tmp_path / "branches"))
    with Server(tmp_path, *options, models=("nano-t2v",)) as server, Client(server.url) as client:
        server.wait_ready()
        long = client.create([("a panda", 0), ("a cat", 1.5)], seconds=3, steps=1, seed=5, loop=True)
        shown = client.create("an emoji", reference=png(), branch="subject", seconds=0.5, steps=1, seed=5)
        done = [client.wait(one) for one in (long, shown)]
        assert [one.status for one in done] == ["completed"] * 2 and done[0].data["frames"] == 37
        assert done[0].recipe["loop"] and [one["prompt"] for one in done[0].recipe["prompt_at"]] == ["a cat"]
        (told,) = done[1].recipe["conditions"]
        assert told["branch"] == "subject" and told["reference"] and "/" not in json.dumps(told)
        assert client.create(**done[0].settings).data["request"]["prompt_at"]
        assert not job_files.windows_of(tmp_path / "jobs", done[0].id).exists()
