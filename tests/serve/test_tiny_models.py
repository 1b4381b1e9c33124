"""What only some models can do, over HTTP with networks of tiny size: LoRAs by request, edits, masks, continuations."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from kandinsky.client import Client
from serve.conftest import TINY_MODELS, Server, tiny_server

T2V, I2V, I2I, INPAINT = TINY_MODELS
SHORT = {"seconds": 0.2, "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tiny_server(tmp_path_factory.mktemp("tiny")) as made:
        yield made.wait_ready()


def png(colour: str | Image.Image, size: tuple[int, int] = (64, 64)) -> bytes:
    image = Image.new("RGB", size, colour) if isinstance(colour, str) else colour
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def refused(answer: httpx.Response, words: str) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "unsupported" and words in error["message"], error


def test_loras_are_switched_by_request_and_nothing_is_loaded_again(server: Server) -> None:
    (offered,) = (one for one in server.client.get("/v1/models").json()["data"] if one["id"] == T2V)
    assert offered["loras"] == ["one", "other"]
    contents: dict[str, bytes] = {}
    loads = 0
    for name in ("", "one", "other", "one:0.5", "one", ""):
        job = server.create(model=T2V, **SHORT, **({"lora": [name]} if name else {}))
        done = server.wait(job["id"])
        assert done["status"] == "completed", done
        assert [one["name"] for one in done["recipe"].get("lora", ())] == ([name.partition(":")[0]] if name else [])
        told = server.client.get(f"/v1/videos/{job['id']}/events").text
        loads += told.count("event: loading")
        content = server.client.get(f"/v1/videos/{job['id']}/content").content
        assert contents.setdefault(name, content) == content  # the same again, whatever was on in between
    assert len(set(contents.values())) == 4 and loads == 1
    wrong = server.client.post("/v1/videos", json={"prompt": "x", "model": T2V, "lora": ["third"]})
    assert wrong.status_code == 400 and "`one`" in wrong.json()["error"]["message"]


def test_an_image_is_edited(server: Server) -> None:
    given = {"prompt": "make it blue", "model": I2I, "steps": "2", "seed": "3"}
    answer = server.client.post("/v1/images/edits", data=given, files={"image[]": ("x.png", png("orange"))})
    assert answer.status_code == 200, answer.text
    made = pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    other = server.client.post("/v1/images/edits", data=given, files={"image": ("x.png", png("navy"))})
    assert (pixels(base64.b64decode(other.json()["data"][0]["b64_json"])) != made).any()
    with Client(server.url) as client:  # the same bytes through the client, without waiting for the answer
        (job,) = client.create_images("make it blue", model=I2I, steps=2, seed=3, image=png("orange"))
        assert (pixels(client.content(client.wait(job))) == made).all()
    refused(
        server.client.post("/v1/images/edits", data={**given, "model": T2V}, files={"image": png("red")}), "no image"
    )


def test_a_part_of_an_image_is_repainted(server: Server) -> None:
    grey = Image.new("L", (64, 64), 0)
    grey.paste(255, (0, 0, 32, 64))
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))  # as OpenAI's clients mark what is repainted
    given = {"prompt": "a cat", "model": INPAINT, "steps": "2", "seed": "3"}
    made = []
    for mask in (grey, clear, grey.convert("RGBA")):  # the last one as paint programs write it
        files = {"image": ("x.png", png("orange")), "mask": ("m.png", png(mask))}
        answer = server.client.post("/v1/images/edits", data=given, files=files)
        assert answer.status_code == 200, answer.text
        made.append(pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert (made[0] == made[1]).all() and (made[0] == made[2]).all()
    (offered,) = (one for one in server.client.get("/v1/models").json()["data"] if one["id"] == INPAINT)
    assert offered["mask"] and offered["image"] == "required"
    lacking = server.client.post("/v1/images/edits", data=given, files={"image": png("red")})
    assert lacking.status_code == 400 and "mask" in lacking.json()["error"]["message"]
    files = {"image": png("red"), "mask": png("white")}
    refused(server.client.post("/v1/images/edits", data={**given, "model": I2I}, files=files), "takes no mask")


def test_what_a_model_cannot_do_with_a_clip_is_said(server: Server) -> None:
    def ask(call: str, **given: Any) -> httpx.Response:
        return server.client.post(
            f"/v1/videos/{call}", json={"prompt": "x", "video": {"id": "job_" + "0" * 32}, **given}
        )

    assert (
        ask("edits").status_code == ask("edits", model=T2V).status_code == 404
    )  # they could, but there is no such clip
    refused(ask("edits", model=I2I), "`/v1/images/generations`")
    refused(ask("extensions", model=I2I), "`/v1/images/generations`")
    assert ask("extensions", model=I2V).status_code == 404  # it could, but there is no such clip
    offered = {one["id"]: one["extends"] for one in server.client.get("/v1/models").json()["data"]}
    assert offered == {T2V: True, I2V: True, I2I: False, INPAINT: False}


@pytest.mark.slow
def test_shortest_clips_are_made_and_shorter_ones_refused(server: Server) -> None:
    (offered,) = (one for one in server.client.get("/v1/models").json()["data"] if one["id"] == T2V)
    shortest = offered["shortest"]
    assert server.create(model=T2V, seconds=shortest, steps=1)["frames"] == 5
    answer = server.client.post("/v1/videos", json={"prompt": "x", "model": T2V, "seconds": shortest - 0.02})
    assert answer.status_code == 400 and f"{shortest:g}" in answer.json()["error"]["message"]
    server.client.post("/v1/jobs/cancel", params={"which": "all"})
