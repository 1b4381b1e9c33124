"""The HTTP surface, against a real server process."""

import base64
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from kandinsky.media.mux import probe
from kandinsky.media.video import read_video
from serve.conftest import QUICK, TINY, Server
from tiny import command_line


def png(colour: str = "orange", size: tuple[int, int] = (96, 96)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and answer.headers["x-request-id"]
    return error


def events_of(server: Server, path: str, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
    found, kind, number = [], "", ""
    with server.client.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                number = value
            elif name == "data":
                found.append((number, kind, json.loads(value)))
                number = ""
    return found


def test_a_clip_is_the_commands_own_byte_for_byte(server: Server, finished: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "x.mp4"
    command = [
        sys.executable,
        "-m",
        "kandinsky",
        "generate",
        "a panda waves",
        "-m",
        "nano-t2v",
        "--seconds",
        "1",
        "--steps",
        "2",
        "--seed",
        "7",
        "-o",
        str(target),
        "-q",
    ]
    command_line.run(command).check_returncode()
    answer = server.client.get(f"/v1/videos/{finished['id']}/content")
    assert answer.content == target.read_bytes() and answer.headers["content-type"] == "video/mp4"
    assert finished["recipe"]["seed"] == 7 == finished["seed"] and finished["progress"] == 100
    assert finished["size"] == "96x96" and finished["seconds"] == f"{13 / 12:g}" and finished["frames"] == 13


def test_variants_and_ranges(server: Server, finished: dict[str, Any]) -> None:
    url = f"/v1/videos/{finished['id']}/content"
    whole = server.client.get(url, headers={"Accept": "application/binary"})
    assert whole.status_code == 200 and whole.headers["accept-ranges"] == "bytes"
    assert "inline" in whole.headers["content-disposition"]
    part = server.client.get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == whole.content[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    assert server.client.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
    for variant, kind in (("thumbnail", "image/webp"), ("spritesheet", "image/jpeg"), ("video", "video/mp4")):
        assert variant in finished["variants"]
        answer = server.client.get(url, params={"variant": variant})
        assert answer.headers["content-type"] == kind and answer.content
    assert error_of(server.client.get(url, params={"variant": "nonsense"}))["param"] == "variant"
    missing = server.client.get(url, params={"variant": "audio"})
    assert missing.status_code == 404 and error_of(missing)["type"] == "not_found_error"
    assert "attachment" in server.client.get(url, params={"download": True}).headers["content-disposition"]


def test_events_of_a_job_from_its_beginning_and_after_a_cut(server: Server) -> None:
    job = server.create(seconds=1, steps=12)
    assert job["queue"]["place"] >= 1 if job["status"] == "queued" else job["status"] == "in_progress"
    told = events_of(server, f"/v1/videos/{job['id']}/events")
    kinds = [kind for _, kind, _ in told]
    numbers = [int(number) for number, _, _ in told if number]
    assert numbers == sorted(numbers) and kinds[-1] == "completed"
    for kind in ("queued", "started", "phase", "step", "preview", "decoding"):
        assert kind in kinds
    assert kinds.index("preview") < kinds.index("completed")
    assert told[-1][2]["object"]["status"] == "completed" and told[-1][2]["job"] == job["id"]
    preview = next(data for _, kind, data in told if kind == "preview")
    assert preview["url"].startswith(f"/v1/jobs/{job['id']}/preview")
    middle = numbers[len(numbers) // 2]
    again = events_of(server, f"/v1/videos/{job['id']}/events", **{"Last-Event-ID": str(middle)})
    assert [int(number) for number, _, _ in again] == [number for number in numbers if number > middle]
    assert server.client.get(f"/v1/videos/{job['id']}/preview").status_code == 404  # it is gone with the end
    bad = server.client.get("/v1/events", headers={"Last-Event-ID": "x"})
    assert bad.status_code == 400 and error_of(bad)["param"] == "Last-Event-ID"


def test_a_preview_is_seen_before_the_end(server: Server) -> None:
    job = server.create(seconds=1, steps=40)
    with server.client.stream("GET", f"/v1/videos/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line == "event: preview":
                break
    shown = httpx.get(f"{server.url}/v1/videos/{job['id']}/preview")
    assert shown.headers["content-type"] == "image/webp" and shown.headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(shown.content)).size[0] > 32
    assert server.get(job["id"])["status"] == "in_progress"
    server.client.post(f"/v1/videos/{job['id']}/cancel")
    assert server.wait(job["id"])["status"] == "cancelled"


def test_deleting_cancels_what_is_not_finished(server: Server) -> None:
    job = server.create(seconds=1, steps=150)
    server.wait(job["id"], "in_progress")
    answer = server.client.delete(f"/v1/videos/{job['id']}").json()
    assert answer == {"id": job["id"], "object": "video.deleted", "deleted": True}
    ended = server.wait(job["id"])
    assert ended["status"] == "cancelled" and ended["step"] < 150 and ended["progress"] == 0
    content = server.client.get(f"/v1/videos/{job['id']}/content")
    assert content.status_code == 404 and error_of(content)["code"] == "not_ready"
    assert server.client.delete(f"/v1/videos/{job['id']}").json()["deleted"]
    gone = server.client.get(f"/v1/videos/{job['id']}")
    assert gone.status_code == 404 and error_of(gone)["code"] == "not_found"
    assert server.client.delete(f"/v1/videos/{job['id']}").status_code == 404


def test_an_image_as_file_data_url_and_result(server: Server, finished: dict[str, Any]) -> None:
    data = {"prompt": "a panda waves", "model": "nano-i2v", "seconds": "0.5", "steps": "1", "seed": "3"}
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    file = server.client.post("/v1/videos", data=data, files={"input_reference": ("../../x.png", png(), "image/png")})
    part = server.client.post("/v1/videos", data={**data, "input_reference[image_url]": url})
    plain = server.client.post("/v1/videos", json={**data, "input_reference": {"image_url": url}})
    made = [server.wait(answer.json()["id"]) for answer in (file, part, plain)]
    assert [job["status"] for job in made] == ["completed"] * 3, made
    contents = {server.client.get(f"/v1/videos/{job['id']}/content").content for job in made}
    assert len(contents) == 1
    given = server.client.get(f"/v1/videos/{made[0]['id']}/content", params={"variant": "input"})
    assert given.headers["content-type"] == "image/png"
    of_job = server.client.post("/v1/videos", json={**data, "image": {"id": finished["id"]}})
    assert server.wait(of_job.json()["id"])["status"] == "completed"


def test_without_a_model_the_first_that_fits_is_taken(server: Server) -> None:
    answer = server.client.post(
        "/v1/videos",
        data={"prompt": "a cat", **{k: str(v) for k, v in TINY.items()}},
        files={"image": ("x.png", png(), "image/png")},
    )
    assert answer.json()["model"] == "nano-i2v" and server.create()["model"] == "nano-t2v"
    server.client.post("/v1/jobs/cancel", params={"which": "all"})


def test_remix_takes_everything_but_the_prompt(server: Server, finished: dict[str, Any]) -> None:
    answer = server.client.post(f"/v1/videos/{finished['id']}/remix", json={"prompt": "a red heart"})
    job = server.wait(answer.json()["id"])
    assert job["remixed_from_video_id"] == finished["id"] and job["prompt"] == "a red heart"
    assert job["seed"] == 7 and job["frames"] == 13 and job["steps"] == 2 and job["status"] == "completed"
    empty = server.client.post(f"/v1/videos/{finished['id']}/remix", json={})
    assert empty.status_code == 400 and error_of(empty)["param"] == "prompt"
    assert server.client.post("/v1/videos/job_x/remix", json={"prompt": "x"}).status_code == 404


def test_extending_a_clip_and_hearing_it(server: Server, finished: dict[str, Any], tmp_path: Path) -> None:
    content = server.client.get(f"/v1/videos/{finished['id']}/content").content
    longer = server.client.post(
        "/v1/videos/extensions",
        data={"prompt": "a panda waves", "seconds": "1", "steps": "1"},
        files={"video": ("x.mp4", content, "video/mp4")},
    )
    heard = server.client.post("/v1/audio", json={"prompt": "a drum", "steps": 2, "video": {"id": finished["id"]}})
    both = server.create(sound=True)
    made = server.wait(longer.json()["id"])
    assert made["status"] == "completed" and made["model"] == "nano-t2v" and made["frames"] == 25, made
    sound = server.wait(heard.json()["id"])
    assert sound["status"] == "completed" and sound["object"] == "audio", sound
    for job, variant in ((sound, "video"), (server.wait(both["id"]), "video")):
        path = tmp_path / f"{job['id']}.mp4"
        path.write_bytes(server.client.get(f"/v1/videos/{job['id']}/content", params={"variant": variant}).content)
        assert probe(path).has_audio
    alone = server.client.get(f"/v1/videos/{sound['id']}/content", params={"variant": "audio"})
    assert alone.headers["content-type"] == "audio/wav" and alone.content.startswith(b"RIFF")


def test_edits_change_a_clip(server: Server, finished: dict[str, Any]) -> None:
    answer = server.client.post("/v1/videos/edits", data={"prompt": "x"}, files={"video": ("x.mp4", b"x")})
    assert answer.status_code == 400 and error_of(answer)["code"] == "invalid_file"
    retake = {"prompt": "a panda waves", "video": {"id": finished["id"]}, "span": "5:9", "steps": 2}
    joined = {"conditions": [f"{finished['id']}[-5:]@0", {"frames": finished["id"], "at": "end", "cut": "0:4"}]}
    edited = server.client.post("/v1/videos/edits", json=retake).json()
    made = [server.wait(one["id"]) for one in (edited, server.create(**joined, seconds=1))]
    assert [job["status"] for job in made] == ["completed"] * 2, made
    recipes = [job["recipe"]["conditions"] for job in made]
    assert recipes[0][0]["span"] == "5:9" and [one["at"] for one in recipes[1]] == [0, "end"]
    assert all(one["file"] is None for one in (*recipes[0], *recipes[1]))


def test_images_are_answered_when_they_are_made(server: Server) -> None:
    body = {"prompt": "a red heart", "n": 2, "seed": 5, "steps": 2, "size": "96x96"}
    answer = server.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    images = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in made["data"]]
    assert [one["seed"] for one in made["data"]] == [5, 6] and made["size"] == "96x96" and images[0].format == "PNG"
    assert np.asarray(images[0]).tolist() != np.asarray(images[1]).tolist()
    by_url = server.client.post(
        "/v1/images/generations", json={**body, "n": 1, "response_format": "url", "output_format": "webp"}
    )
    link = by_url.json()["data"][0]["url"]
    fetched = server.client.get(link)
    assert link.startswith(server.url) and fetched.headers["content-type"] == "image/webp"
    same = np.asarray(Image.open(io.BytesIO(fetched.content)).convert("RGB")).astype(int) - np.asarray(images[0])
    assert np.abs(same).mean() < 6
    assert server.client.post("/v1/images/edits", json={"prompt": "x"}).status_code == 400


def test_images_as_a_stream_of_events(server: Server) -> None:
    body = {"prompt": "a red heart", "steps": 16, "stream": True, "partial_images": 2}
    with server.client.stream("POST", "/v1/images/generations", json=body) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    kinds = [one["type"] for one in told]
    assert kinds[-1] == "image_generation.completed" and kinds.count("image_generation.partial_image") in (1, 2)
    assert told[0]["partial_image_index"] == 0 and base64.b64decode(told[-1]["b64_json"]).startswith(b"\x89PNG")


def test_an_image_that_nobody_waits_for_is_not_made(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "x", "steps": 190}, timeout=1.0)
    end = time.monotonic() + 60
    while True:
        (job,) = server.client.get("/v1/jobs", params={"kind": "image", "limit": 1}).json()["data"]
        if job["status"] == "cancelled":
            break
        assert time.monotonic() < end, job
        time.sleep(0.1)


def test_lists_have_pages(server: Server) -> None:
    ids = [server.create(priority=-9)["id"] for _ in range(5)]
    first = server.client.get("/v1/videos", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == [ids[4], ids[3]] and first["has_more"]
    assert (first["first_id"], first["last_id"]) == (ids[4], ids[3]) and first["object"] == "list"
    second = server.client.get("/v1/videos", params={"limit": 2, "after": first["last_id"]}).json()
    assert [job["id"] for job in second["data"]] == [ids[2], ids[1]]
    up = server.client.get("/v1/videos", params={"limit": 1, "order": "asc"}).json()["data"][0]
    assert up["created_at"] <= first["data"][0]["created_at"]
    for bad, param in (
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"after": "job_x"}, "after"),
        ({"order": "up"}, "order"),
    ):
        answer = server.client.get("/v1/videos", params=bad)
        assert answer.status_code == 400 and error_of(answer)["param"] == param
    jobs = server.client.post("/v1/jobs/cancel", params={"which": "all"}).json()["data"]
    assert {job["id"] for job in jobs} <= set(ids)


def test_models_say_what_they_accept(server: Server) -> None:
    found = server.client.get("/v1/models").json()
    assert found["object"] == "list" and [one["id"] for one in found["data"]] == ["nano-t2v", "nano-i2v", "nano-v2a"]
    t2v, i2v, v2a = found["data"]
    assert t2v["object"] == "model" and t2v["stills"] and t2v["extends"] and t2v["image"] == "none"
    assert i2v["extends"] and i2v["image"] == "required" and v2a["makes"] == "sound" and v2a["video"]
    assert t2v["accepts"]["steps"] == "1 to 1000; default 25" and t2v["sizes"] == ["96x96"]
    assert "offload" not in t2v["accepts"] and t2v["sounds_with"] == "nano-v2a"
    assert server.client.get("/v1/models/nano-t2v").json()["id"] == "nano-t2v"
    assert server.client.get("/v1/models/other").status_code == 404
    loading = server.client.post("/v1/models/nano-t2v/load").json()
    assert server.wait(loading["id"])["status"] == "completed"
    assert server.client.get("/v1/models/nano-t2v").json()["loaded"]


def test_an_idempotency_key_makes_one_job(server: Server) -> None:
    body = {"prompt": "a panda", **TINY}
    headers = {"Idempotency-Key": "once-1"}
    first, again = (server.client.post("/v1/videos", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]
    other = server.client.post("/v1/videos", json={**body, "steps": 2}, headers=headers)
    assert other.status_code == 422 and error_of(other)["code"] == "idempotency_key_reused"
    assert server.client.post("/v1/videos", json=body, headers={"Idempotency-Key": "x" * 300}).status_code == 400


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": "x", "stepz": 3}, "stepz", "did you mean `steps`"),
        ({"prompt": "x", "steps": 0}, "steps", ""),
        ({"prompt": "x", "steps": 5000}, "steps", "1 to 1000"),
        ({"prompt": "x", "steps": "many"}, "steps", ""),
        ({"prompt": "x", "size": "100x100"}, "size", "use `96x96`"),
        ({"prompt": "x", "size": "big"}, "size", ""),
        ({"prompt": "x", "seconds": 9000}, "seconds", "0 to 3600"),
        ({"prompt": "x", "seconds": 3000}, "steps", "times the work"),
        ({"prompt": "x", "seconds": 0}, "seconds", "/v1/images"),
        ({"prompt": "x", "seconds": "1e999"}, "seconds", ""),
        ({"prompt": "x", "seed": -1}, "seed", ""),
        ({"prompt": "x", "steps": 1000}, "steps", "times the work"),
        ({"prompt": "x", "guidance": 1000}, "guidance", "out of range"),
        ({"prompt": "x" * 4001}, "prompt", ""),
        ({"prompt": "x", "lora": ["../x"]}, "lora", ""),
        ({"prompt": "x", "lora": ["none"]}, None, "this server has none"),
        ({"prompt": "x", "video": "x.mp4"}, "video", "fetches nothing by URL"),
        ({"prompt": "x", "span": "0:4"}, "span", "none was given"),
        ({"prompt": "x", "conditions": ["x.mp4@0"]}, "conditions", "there is no file"),
        ({"prompt": "x", "fps": "low"}, None, "makes no keyframes"),
        ({"prompt": "x", "cache": "nonsense"}, None, ""),
        ({"prompt": "x", "attention": "nonsense"}, None, ""),
        ({"prompt": "x", "states": "/etc/passwd"}, "states", "unknown field"),
        ({"prompt": "x", "device": "cuda"}, "device", "unknown field"),
        ({"prompt": "x", "format": "png"}, "format", ""),
        ({"prompt": "x", "model": "nano-v2a"}, "model", "/v1/audio"),
        ({"prompt": "x", "model": "nano-i2v"}, None, "from an image"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    server: Server, body: dict[str, Any], param: str, words: str
) -> None:
    answer = server.client.post("/v1/videos", json=body)
    error = error_of(answer)
    assert answer.status_code == 400 and error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert words in error["message"] and (param is None or error["param"] == param), error


def test_bodies_that_are_none(server: Server) -> None:
    def post(content: bytes, kind: str = "application/json") -> httpx.Response:
        return server.client.post("/v1/videos", content=content, headers={"content-type": kind})

    for content in (b"{", b"[]", b'{"prompt": NaN}', b"\xff", b'{"a":' * 2000, b'{"prompt": {"a": [[[[[[[1]]]]]]]}}'):
        answer = post(content)
        assert answer.status_code == 400 and error_of(answer)["code"] in ("invalid_json", "unknown_parameter")
    assert error_of(post(b"x", "text/plain"))["code"] == "bad_content_type"
    assert post(b"x", "multipart/form-data").status_code == 400
    assert server.client.post("/v1/videos", json={"prompt": "x", "model": "gpt"}).status_code == 404
    nowhere = server.client.get("/v1/nothing")
    assert nowhere.status_code == 404 and "openapi" in error_of(nowhere)["message"]
    wrong = server.client.put("/v1/videos")
    assert wrong.status_code == 405 and error_of(wrong)["message"] and "GET" in wrong.headers["allow"]


def test_diffusers_words_mean_the_same(server: Server) -> None:
    job = server.create(steps=None, seconds=None, num_inference_steps=1, guidance_scale=1, num_frames=5)
    assert job["steps"] == 1 and job["frames"] == 5 and job["request"]["guidance"] == 1.0


def test_a_recipe_is_read_from_a_file(server: Server, finished: dict[str, Any]) -> None:
    content = server.client.get(f"/v1/videos/{finished['id']}/content").content
    answer = server.client.post("/v1/recipe", files={"file": ("anything", content)})
    assert answer.json()["recipe"] == finished["recipe"]
    other = server.client.post("/v1/recipe", files={"file": ("x.png", png())})
    assert other.status_code == 400 and error_of(other)["param"] == "file"
    assert server.client.post("/v1/recipe", data={"x": "y"}).status_code == 400


def test_health_ready_and_figures(server: Server, finished: dict[str, Any]) -> None:
    assert server.client.get("/health").json()["status"] == "ok"
    assert server.client.get("/ready").json()["status"] == "ready"
    time.sleep(0.5)
    figures = server.client.get("/metrics").text
    assert 'kandinsky_jobs_ended_total{model="nano-t2v",outcome="completed",task="video"}' in figures
    for name in (
        "kandinsky_jobs{",
        "kandinsky_job_run_seconds",
        "kandinsky_step_seconds",
        "kandinsky_worker_up 1.0",
        "kandinsky_http_request_seconds",
        "kandinsky_build_info",
        "kandinsky_device_memory_bytes",
    ):
        assert name in figures
    assert finished["id"] not in figures and "panda" not in figures
    schema = server.client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1") and "/v1/videos/{job_id}/content" in schema["paths"]
    fields = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"prompt", "steps", "guidance", "seed", "cache", "lora", "attention", "input_reference"} <= set(
        fields["properties"]
    )


def test_the_http_process_has_no_torch(server: Server) -> None:
    import psutil

    assert server.process is not None
    mapped = {Path(one.path).name for one in psutil.Process(server.process.pid).memory_maps()}
    assert not any("torch" in name for name in mapped)
    (worker,) = server.worker_pids()
    assert any("torch" in Path(one.path).name for one in psutil.Process(worker).memory_maps())


def test_what_the_command_line_sees(server: Server, finished: dict[str, Any]) -> None:
    def jobs(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kandinsky", "jobs", *words, "--store", str(server.folder / "jobs")]
        return command_line.run(command, text=True)

    listed = jobs("list", "--json", "-n", "500")
    assert finished["id"] in {job["id"] for job in json.loads(listed.stdout)}
    shown = jobs("show", finished["id"][:20], "--json")
    assert json.loads(shown.stdout)["state"] == "completed" and "result.mp4" in shown.stdout
    assert "there is no such job" in jobs("show", "job_nothing").stderr
    waiting = server.create(seconds=1, steps=100)
    assert jobs("cancel", waiting["id"]).returncode == 0
    assert server.wait(waiting["id"])["status"] == "cancelled"
    assert jobs("cancel", waiting["id"]).returncode == 2
    assert jobs("retry", waiting["id"]).returncode == 0
    assert server.get(waiting["id"])["status"] in ("queued", "in_progress")
    server.client.delete(f"/v1/videos/{waiting['id']}")


def test_the_largest_frame_rate_of_reading_is_the_clips(
    server: Server, finished: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(server.client.get(f"/v1/videos/{finished['id']}/content").content)
    assert read_video(path).fps == finished["fps"] and QUICK
