"""`upscale` over HTTP, by the client and by assistants' tools: a real server process with Nano makes results larger."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.client import ApiError, AsyncClient, Client, Job
from kandinsky.engine.request import resolve
from kandinsky.jobs.order import Order, batch_key, work_of
from kandinsky.media import recipe as recipes
from kandinsky.serve.mcp_tools import Generate, Tools
from serve.conftest import Server

SMALL: dict[str, Any] = {"model": "nano-t2v", "seconds": 0.5, "steps": 3, "seed": 5}
PROMPT = "a panda on a blue background"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = ("nano-t2v", "nano-i2v", "nano-v2a", "nano-live")
    with Server(tmp_path_factory.mktemp("larger"), models=models) as made:
        yield made.wait_ready()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def small(client: Client) -> Job:
    return client.wait(client.create(PROMPT, **SMALL))


def frames_of(client: Client, job: Job, folder: Path) -> np.ndarray:
    file = folder / f"{job.id}.mp4"
    client.save(job, file)
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_clip_is_made_larger(client: Client, tmp_path: Path) -> None:
    queued = client.create(PROMPT, **SMALL, upscale=2, upscale_strength=0.9)
    assert queued.data["size"] == "192x192" and queued.data["request"]["upscale"] == 2
    steps: list[int] = []
    done = client.wait(queued, on_event=lambda event: steps.append(event.data.get("steps", 0)))
    assert done.status == "completed" and (done.data["size"], done.data["frames"]) == ("192x192", 5)
    assert max(steps) > 3  # those of the second stage are counted too
    shown = frames_of(client, done, tmp_path)
    told: dict[str, Any] = {
        "seconds": 0.5,
        "steps": 3,
        "seed": 5,
        "upscale": 2,
        "upscale_strength": 0.9,
        "progress": False,
    }
    own = kandinsky.load("nano-t2v", device="cpu")(PROMPT, **told)
    assert shown.shape == own.frames.shape == (5, 192, 192, 3)
    assert np.abs(shown.astype(int) - own.frames).mean() < 3  # up to the file's compression
    recipe = recipes.read(tmp_path / f"{done.id}.mp4")
    assert (recipe["upscale"], recipe["upscale_strength"]) == ("192x192", 0.9)
    again = client.create(**done.settings)  # what was asked for, once more
    assert again.data["size"] == "192x192"
    client.cancel(again)


def test_a_result_a_still_and_an_extension_are_made_larger(client: Client, small: Job, tmp_path: Path) -> None:
    for model in ("nano-t2v", "nano-i2v"):
        larger = client.wait(client.create(PROMPT, model=model, video=small, upscale="144x192", steps=3))
        assert larger.status == "completed", larger.data["error"]
        assert frames_of(client, larger, tmp_path).shape == (5, 192, 144, 3), model
    edited = client.edit(small, PROMPT, upscale=1.5, steps=3)  # by the other door
    assert edited.data["size"] == "144x144" and edited.data["frames"] == 5
    (still,) = client.images(PROMPT, upscale=2, steps=3)
    assert Image.open(io.BytesIO(still)).size == (192, 192)
    longer = client.wait(client.extend(small, PROMPT, seconds=0.5, steps=3, upscale=2))
    assert longer.status == "completed" and longer.data["size"] == "192x192" and longer.data["frames"] > 5
    assert client.wait(edited).status == "completed"


@pytest.mark.slow
def test_a_worker_that_dies_in_the_second_stage_begins_again(server: Server, client: Client) -> None:
    job = client.create(PROMPT, **{**SMALL, "steps": 8}, upscale=3, upscale_strength=0.9)
    for event in client.events(job):
        if event.kind == "step" and event.data["step"] > 8:
            psutil.Process(server.worker_pids()[0]).kill()
            break
    done = client.wait(job)
    assert done.status == "completed" and done.data["size"] == "288x288", done.data
    server.wait_ready()


def test_what_cannot_be_is_one_clear_line(client: Client) -> None:
    def refused(**values: Any) -> str:
        with pytest.raises(ApiError) as error:
            client.create(PROMPT, **{**SMALL, **values})
        assert "\n" not in str(error.value)
        return f"{error.value.param}: {error.value}"

    assert refused(upscale="big").startswith("upscale:") and "WIDTHxHEIGHT" in refused(upscale="big")
    assert "above 1, up to 8" in refused(upscale=9)
    assert "multiples of 8" in refused(upscale="190x190")
    assert refused(upscale_strength=0.5).startswith("upscale_strength:")
    assert "above 0, up to 1" in refused(upscale=2, upscale_strength=1.5)
    assert "cannot make its result larger" in refused(upscale=2, model="nano-live")
    assert "times the work" in refused(upscale="1920x1080", upscale_strength=1.0)
    assert "true" in refused(upscale=True)
    offered = {one.id: one.data["upscales"] for one in client.models()}
    assert offered == {"nano-t2v": True, "nano-i2v": True, "nano-v2a": False, "nano-live": False}


def test_work_and_batches_count_the_second_stage() -> None:
    card = catalogue.source_of("nano-t2v").card
    asked = kandinsky.Request("nano-t2v", PROMPT, seed=1)
    plain, large = (resolve(one, card) for one in (asked, asked.with_values(upscale=2)))
    assert large.upscale is not None
    share = large.upscale.share(large.steps, large.shift, is_flow=True)
    assert work_of(large) == pytest.approx(work_of(plain) * (1 + 9 * share))  # nine tiles
    order = Order(request={"model": "nano-t2v"}, form="mp4")
    together = dataclasses.replace(card, clip=dataclasses.replace(card.clip, clips_together=4))
    keys = [batch_key(dataclasses.replace(job, card=together), order) for job in (plain, large)]
    assert keys[0] and not keys[1]


def test_an_assistant_makes_it_larger(server: Server, small: Job) -> None:
    class Door:
        @asynccontextmanager
        async def client(self, request: Any) -> Any:
            async with AsyncClient(server.url) as made:
                yield made

        def file(self, given: str) -> Any:
            return given

        async def place(self, request: Any, client: AsyncClient, job: Job) -> dict[str, str]:
            return {}

    async def run(**values: Any) -> dict[str, Any]:
        tools = Tools(Door())
        async with tools.door.client(None) as client:
            (told,) = await tools.generate(None, client, Generate.model_validate({"model": "nano-t2v", **values}))
            job = await client.wait(told["job"])
            return {"size": job.data["size"], "frames": job.data["frames"], "status": job.status}

    made = {"size": "192x192", "frames": 5, "status": "completed"}
    assert asyncio.run(run(prompt=PROMPT, seconds=0.5, steps=3, upscale=2)) == made
    # a clip is not continued then
    assert asyncio.run(run(prompt=PROMPT, video=small.id, steps=3, upscale="192x192", upscale_strength=0.5)) == made
