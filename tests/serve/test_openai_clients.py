"""The unmodified `openai` SDK and LiteLLM against a real server: every call, error classes, retries."""

import asyncio
import base64
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve.conftest import Server

openai = pytest.importorskip("openai", reason="the OpenAI SDK is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the SDK calls its own videos deprecated
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
EXTRA = {"steps": 1}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def video(client: Any) -> Any:
    made = client.videos.create_and_poll(
        prompt="панда машет", model="nano-t2v", seconds="1", size="96x96", extra_body={"seed": 7, "steps": 2}
    )
    assert made.status == "completed", made
    return made


def png(colour: str = "orange") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (96, 96), colour).save(out, "PNG")
    return out.getvalue()


def test_create_and_poll(client: Any, video: Any) -> None:
    assert video.object == "video" and video.progress == 100 and video.prompt == "панда машет"
    assert video.size == "96x96" and isinstance(video.created_at, int) and video.completed_at >= video.created_at
    assert video.error is None and video.seed == 7 and video.expires_at > video.created_at


def test_create_then_retrieve_with_the_poll_header(client: Any) -> None:
    made = client.videos.with_raw_response.create(prompt="a cat", seconds="1", extra_body=EXTRA)
    assert int(made.headers["openai-poll-after-ms"]) >= 250
    job = made.parse()
    assert job.status == "queued" and job.model == "nano-t2v"
    seen = []
    while (found := client.videos.retrieve(job.id)).status in ("queued", "in_progress"):
        seen.append(found.progress)
        time.sleep(0.05)
    assert found.status == "completed" and seen == sorted(seen)
    assert client.videos.poll(job.id).status == "completed"


def test_extra_body_of_every_kind(client: Any) -> None:
    job = client.videos.create(
        prompt="a dog",
        seconds="1",
        extra_body={
            "steps": 1,
            "seed": 3,
            "guidance": 1.5,
            "negative_prompt": "кот",
            "expand": False,
            "priority": 2,
            "shift": None,
        },
    )
    assert job.request["guidance"] == 1.5 and job.request["negative_prompt"] == "кот" and job.priority == 2
    assert job.request["seed"] == 3
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="a dog", extra_body={"lora": {"name": "x"}})
    assert caught.value.param == "lora"
    with pytest.raises(openai.BadRequestError, match="this server has none"):
        client.videos.create(prompt="a dog", extra_body={"lora": ["x:0.5"]})
    client.videos.delete(job.id)


def test_an_image_in_each_way_that_works(client: Any) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    extra = {"steps": 1, "seed": 1}
    file = client.videos.create(
        prompt="a panda", model="nano-i2v", seconds="1", input_reference=("x.png", png()), extra_body=extra
    )
    part = client.videos.create(
        prompt="a panda", model="nano-i2v", seconds="1", extra_body={**extra, "input_reference": {"image_url": url}}
    )
    plain = client.post(
        "/videos",
        cast_to=object,
        body={"prompt": "a panda", "model": "nano-i2v", "seconds": "1", "input_reference": {"image_url": url}, **extra},
    )
    ids = [file.id, part.id, plain["id"]]
    made = [client.videos.poll(job_id) for job_id in ids]
    assert [one.status for one in made] == ["completed"] * 3
    assert len({client.videos.download_content(job_id).read() for job_id in ids}) == 1


def test_lists_page_by_themselves(client: Any, server: Server) -> None:
    ids = [
        client.videos.create(prompt=f"a cat {i}", seconds="1", extra_body={**EXTRA, "priority": -5}).id
        for i in range(5)
    ]
    page = client.videos.list(limit=2)
    pages = [page, page := page.get_next_page(), page.get_next_page()]
    assert [one.id for page in pages for one in page.data][:5] == ids[::-1]
    found = []
    for one in client.videos.list(limit=2, order="asc"):
        found.append(one.id)
    assert found[-5:] == ids and len(found) == len(set(found))
    server.client.post("/v1/jobs/cancel", params={"which": "all"})


def test_download_of_all_variants(client: Any, video: Any, tmp_path: Path) -> None:
    client.videos.download_content(video.id).write_to_file(tmp_path / "x.mp4")
    assert (tmp_path / "x.mp4").read_bytes()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="video").read() == (tmp_path / "x.mp4").read_bytes()
    thumbnail = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
    sheet = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").read()))
    assert thumbnail.format == "WEBP" and sheet.format == "JPEG" and sheet.width > thumbnail.width


def test_deleting_while_it_runs_ends_the_poll_of_another_thread(client: Any) -> None:
    job = client.videos.create(prompt="a fox", seconds="1", extra_body={"steps": 190})
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(client.videos.poll(job.id, poll_interval_ms=50)))
    waiting.start()
    while client.videos.retrieve(job.id).step < 1:
        time.sleep(0.05)
    answer = client.videos.delete(job.id)
    assert answer.deleted and answer.id == job.id and answer.object == "video.deleted"
    waiting.join(60)
    assert ended and ended[0].status == "cancelled"
    assert client.videos.delete(job.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)


def test_remix_edit_and_extend(client: Any, video: Any) -> None:
    remix = client.videos.remix(video.id, prompt="a red heart")
    assert remix.remixed_from_video_id == video.id and client.videos.poll(remix.id).status == "completed"
    content = client.videos.download_content(video.id).read()
    longer = client.videos.extend(prompt="a panda", seconds="1", video=("x.mp4", content), extra_body=EXTRA)
    done = client.videos.poll(longer.id)
    assert done.status == "completed" and done.frames == 25
    with pytest.raises(openai.BadRequestError, match="strength"):
        client.videos.edit(prompt="a cat", video=("x.mp4", content))
    edited = client.videos.edit(prompt="a cat", video=("x.mp4", content), extra_body={"steps": 1, "strength": 0.9})
    assert client.videos.poll(edited.id).status == "completed"


def test_images(client: Any) -> None:
    made = client.images.generate(
        prompt="a red heart",
        model="nano-t2v",
        n=2,
        size="96x96",
        quality="auto",
        user="me",
        output_format="webp",
        extra_body={"steps": 1},
    )
    images = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in made.data]
    assert [one.size for one in images] == [(96, 96)] * 2 and images[0].format == "WEBP" and made.size == "96x96"
    link = client.images.generate(prompt="a red heart", response_format="url", extra_body={"steps": 1}).data[0].url
    assert link.startswith(str(client.base_url).removesuffix("/v1/"))
    with pytest.raises(openai.BadRequestError) as caught:  # no model here takes an image and makes one
        client.images.edit(image=[("a.png", png())], prompt="a cat")
    assert caught.value.code in ("unsupported", "invalid_value")
    events = list(client.images.generate(prompt="a heart", stream=True, partial_images=2, extra_body={"steps": 20}))
    assert events[-1].type == "image_generation.completed" and base64.b64decode(events[-1].b64_json)
    assert events[0].type == "image_generation.partial_image" and events[0].partial_image_index == 0


def test_models(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["nano-t2v", "nano-i2v", "nano-v2a"]
    assert client.models.retrieve("nano-i2v").task == "image-to-video"


def test_error_classes_and_retries(server: Server, client: Any, video: Any) -> None:
    """400, 404 and 422 are raised at once; a 429 is tried twice more."""
    sent: list[str] = []
    httpx_module: Any = (
        __import__("httpx2") if hasattr(openai, "DefaultHttpxClient") and _is_2() else __import__("httpx")
    )
    hooks = {"request": [lambda request: sent.append(request.headers["x-stainless-retry-count"])]}
    counted = openai.OpenAI(base_url=client.base_url, api_key="x", http_client=httpx_module.Client(event_hooks=hooks))
    cases: list[tuple[Any, Any]] = [
        (openai.BadRequestError, lambda: counted.videos.create(prompt="", extra_body=EXTRA)),
        (openai.BadRequestError, lambda: counted.videos.create(prompt="x", seconds="99")),
        (openai.NotFoundError, lambda: counted.videos.create(prompt="x", model="other")),
        (openai.NotFoundError, lambda: counted.videos.retrieve("video_unknown")),
        (openai.NotFoundError, lambda: counted.videos.download_content("job_" + "0" * 32)),
        (openai.BadRequestError, lambda: counted.videos.list(limit=1000)),
    ]
    for kind, call in cases:
        sent.clear()
        with pytest.raises(kind) as caught:
            call()
        assert sent == ["0"] and caught.value.request_id and caught.value.body["message"]
        assert caught.value.type in ("invalid_request_error", "not_found_error")
    headers = {"Idempotency-Key": f"sdk-{time.time()}"}
    one, two = (counted.videos.create(prompt="x", extra_body=EXTRA, extra_headers=headers) for _ in range(2))
    assert one.id == two.id
    with pytest.raises(openai.UnprocessableEntityError):
        counted.videos.create(prompt="y", extra_body=EXTRA, extra_headers=headers)
    counted.close()


def _is_2() -> bool:
    return int(openai.__version__.split(".")[0]) >= 3


def test_the_asynchronous_client(server: Server) -> None:
    async def run() -> tuple[Any, bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            made = await client.videos.create_and_poll(prompt="a star", seconds="1", extra_body=EXTRA)
            return made, (await client.videos.download_content(made.id)).read()

    made, content = asyncio.run(run())
    assert made.status == "completed" and content[4:8] == b"ftyp"


def test_timeouts(server: Server) -> None:
    hasty = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=0.5, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        hasty.images.generate(prompt="x", extra_body={"steps": 150})
    hasty.close()


@pytest.mark.skipif(not os.environ.get("KANDINSKY_TEST_OLD_OPENAI"), reason="needs a folder with `openai` 2.54.0")
def test_the_older_sdk_passes_the_same_tests() -> None:
    """`pip install --target FOLDER openai==2.54.0`, and the folder in KANDINSKY_TEST_OLD_OPENAI."""
    import subprocess
    import sys

    folder = os.environ["KANDINSKY_TEST_OLD_OPENAI"]
    env = {name: value for name, value in os.environ.items() if name != "KANDINSKY_TEST_OLD_OPENAI"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__, "-k", "not the_older and not litellm"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_litellm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed")
    place = {"api_base": f"{server.url}/v1", "api_key": "x"}
    for provider in ("openai", "hosted_vllm"):
        made = litellm.video_generation(
            model=f"{provider}/nano-t2v", prompt="a panda", seconds="1", size="96x96", **place
        )
        assert made.status in ("queued", "in_progress")
        while (found := litellm.video_status(video_id=made.id, **place)).status in ("queued", "in_progress"):
            time.sleep(0.2)
        assert found.status == "completed"
        assert litellm.video_content(video_id=made.id, **place)[4:8] == b"ftyp"
        assert litellm.video_list(custom_llm_provider="openai", **place)
