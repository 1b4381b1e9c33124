"""The security list: each line is a test. Files, network, bombs, work, keys, output, logs, shutdown."""

import io
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.jobs.records import State
from kandinsky.serve import fetching
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.keys import Buckets, Keys, Owner, digest
from kandinsky.serve.settings import ServeSettings, is_loopback
from serve.conftest import TINY, Server
from tiny import command_line

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
KEYS = f"""
[alice]
key = "{ALICE}"
priority = 2

[bob]
sha256 = "{digest(BOB).hex()}"
running = 2
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys, and without workers: nothing is ever done."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys.toml").write_text(KEYS)
    options = ("--keys", str(folder / "keys.toml"), "--workers", "0", "--queue", "12", "--upload", "5MB")
    with Server(folder, *options, models=("nano-t2v", "nano-i2v", "nano-v2a")) as made:
        yield made


def as_(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def png(width: int = 96, height: int = 96) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def huge_png() -> bytes:
    """A few kilobytes that claim to be 50 000 x 50 000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    )


# -- 1: paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a\0b.png", "con.png", "x" * 300 + ".png"])
def test_a_clients_file_name_is_never_used(locked: Server, name: str) -> None:
    before = {path for path in locked.folder.rglob("*") if path.is_file() and "jobs.sqlite3" not in path.name}
    body = {"prompt": "x", "model": "nano-i2v", **{k: str(v) for k, v in TINY.items()}}
    answer = locked.client.post(
        "/v1/videos", data=body, files={"image": (name, png(), "image/png")}, headers=as_(ALICE)
    )
    assert answer.status_code == 200, answer.text
    job = answer.json()
    made = {path for path in locked.folder.rglob("*") if path.is_file() and "jobs.sqlite3" not in path.name} - before
    assert made <= {locked.folder / "jobs" / "files" / job["id"] / "input-image.png", locked.folder / "server.log"}
    assert (locked.folder / "jobs" / "files" / job["id"]).stat().st_mode & 0o077 == 0
    locked.client.delete(f"/v1/videos/{job['id']}", headers=as_(ALICE))


@pytest.mark.parametrize("field", ["image", "input_reference"])
@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
        "https://example.org/x.png",
        {"image_url": "http://169.254.169.254/"},
        {"path": "/etc/passwd"},
        {"id": "../x"},
    ],
)
def test_neither_local_paths_nor_urls_are_read(locked: Server, field: str, value: Any) -> None:
    body = {"prompt": "x", "model": "nano-i2v", field: value}
    answer = locked.client.post("/v1/videos", json=body, headers=as_(ALICE))
    assert answer.status_code in (400, 404) and "passwd" not in answer.text.replace(str(value), "")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/..%2f..%2fjobs.sqlite3/content",
        "/v1/videos/%2e%2e/content",
        "/../etc/passwd",
        "/v1/videos/job_x/content",
        "/v1/videos/job_0%00/preview",
    ],
)
def test_nothing_outside_a_job_is_served(locked: Server, path: str) -> None:
    raw = socket.create_connection(("127.0.0.1", int(locked.url.rpartition(":")[2])))
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ALICE}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = b"".join(iter(lambda: raw.recv(65536), b""))
    raw.close()
    assert answer.split(b" ")[1] in (b"400", b"404"), answer[:200]


def test_the_store_is_readable_by_its_owner_alone(locked: Server) -> None:
    for path in (locked.folder / "jobs", *(locked.folder / "jobs").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


# -- 2: fetching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "100.64.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "ff02::1",
        "::ffff:10.0.0.1",
    ],
)
def test_addresses_that_are_not_public_are_not_connected_to(address: str) -> None:
    assert not fetching.is_public(address)
    with pytest.raises(ApiError, match="open network"):
        fetching.fetch("https://a.example/x", hosts=["a.example"], most=10, param="image", look=lambda _: [address])
    with pytest.raises(ApiError, match="open network"):  # one bad address among good ones is enough
        fetching.fetch(
            "https://a.example/x",
            hosts=["a.example"],
            most=10,
            param="image",
            look=lambda _: ["93.184.216.34", address],
        )


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/x",
        "https://a.example:8443/x",
        "https://u:p@a.example/x",
        "ftp://a.example",
        "https://b.example/x",
        "https://a.example.evil/x",
        "https://[::1]/x",
        "https://127.0.0.1/x",
        "https://a.example:99999/",
        "file:///etc/passwd",
        "https://",
    ],
)
def test_only_listed_hosts_are_fetched_from(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        fetching.fetch(url, hosts=["a.example"], most=10, param="image", look=lambda _: ["93.184.216.34"])
    assert caught.value.status == 400 and caught.value.code == "url_not_allowed"


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def connect(place: tuple[str, int], timeout: float) -> Any:
        asked.append(place)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetching.fetch(
            "https://a.example/x", hosts=["a.example"], most=10, param="image", look=lambda _: ["93.184.216.34"]
        )
    assert asked == [("93.184.216.34", 443)]


# -- 3: bombs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        huge_png(),
        b"",
        b"nonsense",
        png()[:60],
        b"GIF89a" + b"\0" * 50,
        b"%!PS-Adobe-3.0 EPSF\n",
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 500,
    ],
)
def test_images_that_are_none_or_too_large(locked: Server, content: bytes) -> None:
    body = {"prompt": "x", "model": "nano-i2v"}
    begun = time.monotonic()
    answer = locked.client.post("/v1/videos", data=body, files={"image": ("x.png", content)}, headers=as_(ALICE))
    assert answer.status_code == 400 and code_of(answer) == "invalid_file", answer.text
    assert time.monotonic() - begun < 60 and str(locked.folder) not in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"RIFF" + b"\0" * 100,
        b"\0\0\0\x18ftypmp42" + b"\xff" * 200,
        png(),
    ],
)
def test_videos_that_name_other_files_or_are_damaged(locked: Server, content: bytes) -> None:
    answer = locked.client.post(
        "/v1/audio", data={"prompt": "x"}, files={"video": ("x.mp4", content)}, headers=as_(ALICE)
    )
    assert answer.status_code == 400 and code_of(answer) == "invalid_file", answer.text


def test_a_video_that_is_too_long(locked: Server, tmp_path: Path) -> None:
    import numpy as np

    from kandinsky.model.values import Video

    frames = np.zeros((3100, 16, 16, 3), np.uint8)
    content = Video(frames, fps=60).save(tmp_path / "x.mp4").read_bytes()
    answer = locked.client.post(
        "/v1/audio", data={"prompt": "x"}, files={"video": ("x.mp4", content)}, headers=as_(ALICE)
    )
    assert answer.status_code == 400 and "too long" in answer.text


def test_an_upload_loses_its_metadata(locked: Server) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "secret place", 6
    Image.new("RGB", (96, 48), "red").save(out, "JPEG", exif=exif.tobytes())
    body = {"prompt": "x", "model": "nano-i2v"}
    job = locked.client.post(
        "/v1/videos", data=body, files={"image": ("x.jpg", out.getvalue())}, headers=as_(ALICE)
    ).json()
    kept = locked.client.get(f"/v1/videos/{job['id']}/content", params={"variant": "input"}, headers=as_(ALICE)).content
    assert b"secret" not in kept and Image.open(io.BytesIO(kept)).size == (48, 96)
    locked.client.delete(f"/v1/videos/{job['id']}", headers=as_(ALICE))


def test_the_decoder_is_confined() -> None:
    code = (
        "import resource, kandinsky.serve.decode as d; d.confine()\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "try:\n    bytearray(4 * 2**30)\nexcept MemoryError:\n    print('refused')\n"
        "print(open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(3 * 2**30), "60", "refused", "1"]


def test_bodies_that_are_too_large_are_cut_off(locked: Server) -> None:
    port = int(locked.url.rpartition(":")[2])
    for head in ("Content-Length: 900000000", "Transfer-Encoding: chunked"):
        raw = socket.create_connection(("127.0.0.1", port))
        raw.sendall(
            f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ALICE}\r\n"
            f"Content-Type: application/json\r\n{head}\r\n\r\n".encode()
        )
        sent = 0
        try:
            while sent < 40_000_000 and "chunked" in head:
                raw.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
                sent += 0x100000
        except OSError:
            pass  # the server hung up
        raw.settimeout(20)
        try:
            answer = raw.recv(65536)
        except ConnectionError:
            answer = b" 413 "
        raw.close()
        assert answer.split(b" ")[1] == b"413", answer[:100]
    large = locked.client.post("/v1/videos", json={"prompt": "x" * 6_000_000}, headers=as_(ALICE))
    assert large.status_code == 413 and code_of(large) == "too_large"


# -- 4: work -----------------------------------------------------------------------------------------------------------


def test_limits_of_queue_and_key(locked: Server) -> None:
    def ask(key: str) -> httpx.Response:
        return locked.client.post("/v1/videos", json={"prompt": "x", **TINY}, headers=as_(key))

    made = [ask(BOB) for _ in range(3)]
    assert [answer.status_code for answer in made] == [200, 200, 429] and code_of(made[2]) == "too_many_jobs"
    assert 1 <= int(made[2].headers["retry-after"]) <= 120 and made[2].json()["error"]["type"] == "rate_limit_error"
    answers = [ask(ALICE) for _ in range(12)]
    assert {answer.status_code for answer in answers} == {200, 429} and code_of(answers[-1]) == "queue_full"
    for key in (ALICE, BOB):
        locked.client.post("/v1/jobs/cancel", params={"which": "all"}, headers=as_(key))
    assert ask(BOB).status_code == 200
    high = locked.client.post("/v1/videos", json={"prompt": "x", **TINY, "priority": 9}, headers=as_(ALICE))
    assert high.json()["priority"] == 2  # the key's
    too_much = locked.client.post("/v1/videos", json={"prompt": "x", "steps": 1000}, headers=as_(ALICE))
    assert too_much.status_code == 400 and code_of(too_much) == "too_much_work"
    locked.client.post("/v1/jobs/cancel", params={"which": "all"}, headers=as_(ALICE))
    locked.client.post("/v1/jobs/cancel", params={"which": "all"}, headers=as_(BOB))


def test_a_full_disk_and_full_storage(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(f'[a]\nkey = "{ALICE}"\nstorage = "100MB"\nper_minute = 2\n')
    options = ("--keys", str(tmp_path / "keys.toml"), "--workers", "0")
    with Server(tmp_path, *options, models=("nano-t2v",)) as server:
        import sqlite3

        def ask() -> httpx.Response:
            return server.client.post("/v1/videos", json={"prompt": "x"}, headers=as_(ALICE))

        job = ask().json()
        with sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite3") as at:
            at.execute("UPDATE jobs SET bytes=200000000, state='completed' WHERE id=?", (job["id"],))
        at.close()
        full = ask()
        assert full.status_code == 403 and code_of(full) == "storage_full"
        often = ask()
        assert often.status_code == 429 and code_of(often) == "rate_limit_exceeded"
        assert 1 <= int(often.headers["retry-after"]) <= 120
    (tmp_path / "other").mkdir()
    with Server(tmp_path / "other", "--workers", "0", "--disk", "90000GB", models=("nano-t2v",)) as server:
        answer = server.client.post("/v1/videos", json={"prompt": "x"})
        assert answer.status_code == 507 and code_of(answer) == "disk_full"


# -- 5: keys -----------------------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_key(locked: Server) -> None:
    schema = locked.client.get("/openapi.json").json()
    is_open = {
        ("/health", "get"),
        ("/ready", "get"),
        ("/metrics", "get"),
        ("/v1/session", "post"),
        ("/v1/session", "delete"),
    }
    for path, methods in schema["paths"].items():
        for method in methods:
            if (path, method) in is_open:
                continue
            url = path.replace("{job_id}", "job_" + "0" * 32).replace("{model}", "nano-t2v")
            for headers in (
                {},
                as_("wrong-key-0123456789"),
                {"Authorization": "Bearer"},
                {"Authorization": f"Basic {ALICE}"},
            ):
                answer = locked.client.request(method, url, headers=headers)
                assert answer.status_code == 401, (path, method, answer.text)
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.client.get("/health").status_code == 200 and locked.client.get("/ready").status_code == 503


def test_keys_see_their_own_jobs_only(locked: Server) -> None:
    job = locked.client.post("/v1/videos", json={"prompt": "x", **TINY}, headers=as_(ALICE)).json()
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/content"),
        ("GET", "/events"),
        ("GET", "/preview"),
        ("POST", "/cancel"),
    ):
        answer = locked.client.request(method, f"/v1/videos/{job['id']}{path}", headers=as_(BOB))
        assert answer.status_code == 404, (method, path)  # as one that does not exist
    remix = locked.client.post(f"/v1/videos/{job['id']}/remix", json={"prompt": "y"}, headers=as_(BOB))
    assert remix.status_code == 404
    used = locked.client.post("/v1/audio", json={"video": {"id": job["id"]}}, headers=as_(BOB))
    assert used.status_code == 404
    assert job["id"] not in locked.client.get("/v1/videos", headers=as_(BOB)).text
    found = locked.client.get(f"/v1/videos/{job['id']}", headers=as_(ALICE)).json()
    assert found["status"] == "queued"
    locked.client.delete(f"/v1/videos/{job['id']}", headers=as_(ALICE))


def test_the_cookie_of_the_page(locked: Server) -> None:
    with httpx.Client(base_url=locked.url) as browser:
        assert browser.post("/v1/session", json={"key": "wrong-key-0123456789"}).status_code == 401
        answer = browser.post("/v1/session", json={"key": ALICE})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and ALICE not in cookie
        assert browser.get("/v1/videos").status_code == 200
        value = browser.cookies["kandinsky_session"]
        name, until, signature = value.split(".")
        for forged in (f"{name}.{int(until) + 1}.{signature}", f"{b'bob'.hex()}.{until}.{signature}", "x", "", "é"):
            other = httpx.get(f"{locked.url}/v1/videos", headers={"Cookie": f"kandinsky_session={forged}".encode()})
            assert other.status_code == 401
        browser.delete("/v1/session")
        assert browser.get("/v1/videos").status_code == 401


def test_cookies_expire_and_end_with_their_key() -> None:
    keys = Keys({digest(ALICE): Owner("alice")}, secret=b"s" * 32)
    assert keys.owner_of_cookie(keys.cookie(Owner("alice"))) == Owner("alice")
    assert keys.owner_of_cookie(keys.cookie(Owner("alice"), now=time.time() - 40 * 86400)) is None
    assert Keys({digest(BOB): Owner("bob")}, secret=b"s" * 32).owner_of_cookie(keys.cookie(Owner("alice"))) is None


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append((a, b)), real(a, b))[1])
    keys = Keys({digest(key): Owner(key[:3]) for key in (ALICE, BOB, "carol-0123456789ab")}, secret=b"s")
    assert keys.owner_of(ALICE) == Owner("ali") and len(compared) == 3
    assert all(len(a) == len(b) == 32 for a, b in compared)
    assert keys.owner_of("") is None and keys.owner_of(None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("short\n", "16 characters"),
        ('[a]\nkey = "short"', "16 characters"),
        ('[a]\nkeys = "x"', "did you mean `key`"),
        ('a = "b"', "not a table"),
        ('[a]\nsha256 = "zz"', "64 hexadecimal"),
        (f'[a]\nkey = "{ALICE}"\nrunning = 0', "from 1 on"),
        (f'[a]\nkey = "{ALICE}"\nstorage = "much"', "not an amount"),
        ("[a\n", "not TOML"),
    ],
)
def test_key_files_with_mistakes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(RequestError, match=words) as caught:
        Keys.read(str(tmp_path / "keys"))
    assert ALICE not in str(caught.value)


def test_keys_of_files_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_text(f"# mine\n{ALICE}\n\n{BOB}\n")
    keys = Keys.read(str(tmp_path / "plain"))
    alice, bob = keys.owner_of(ALICE), keys.owner_of(BOB)
    assert alice and bob and alice.name != bob.name and "alice" not in alice.name and not Keys.read(None)
    monkeypatch.setenv("KANDINSKY_API_KEY", "env-0123456789abcdef")
    assert Keys.read(None).owner_of("env-0123456789abcdef") == Owner("default")
    with pytest.raises(RequestError, match="cannot be read"):
        Keys.read(str(tmp_path / "absent"))


def test_a_bucket_fills_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    buckets, owner = Buckets(), Owner("a", per_minute=2)
    assert [buckets.take(owner) for _ in range(3)] == [0, 0, 30]
    now[0] += 31
    assert buckets.take(owner) == 0 and buckets.take(owner) > 0 and buckets.take(Owner("b")) == 0


def test_listening_beyond_this_machine_needs_a_key(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "kandinsky",
        "serve",
        "nano-t2v",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--store",
        str(tmp_path),
    ]
    done = command_line.run(command, text=True)
    assert done.returncode == 2 and "no key is set" in done.stderr and "--keys" in done.stderr
    assert ServeSettings(host="0.0.0.0", open_to_all=True).check(Keys({})) is None
    assert ServeSettings(host="0.0.0.0").check(Keys({digest(ALICE): Owner("a")})) is None
    for host, is_local in (
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("example.org", False),
    ):
        assert is_loopback(host) == is_local


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]"])
def test_foreign_hosts_are_refused_on_loopback(locked: Server, host: str) -> None:
    answer = locked.client.get("/health", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert code_of(answer) == "bad_host"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_pages_elsewhere_cannot_use_the_server(locked: Server, origin: str) -> None:
    for method, path in (("POST", "/v1/videos"), ("GET", "/v1/videos"), ("DELETE", "/v1/videos/x")):
        answer = locked.client.request(method, path, headers={"Origin": origin, **as_(ALICE)})
        assert answer.status_code == 403 and code_of(answer) == "bad_origin"
        assert "access-control-allow-origin" not in answer.headers
    fetched = locked.client.post("/v1/videos", headers={"Sec-Fetch-Site": "cross-site", **as_(ALICE)})
    assert fetched.status_code == 403
    own = locked.client.get("/v1/videos", headers={"Origin": locked.url, **as_(ALICE)})
    assert own.status_code == 200


def test_listed_origins_may_use_it(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "0", "--origins", "https://a.example", models=("nano-t2v",)) as server:
        origin = {"Origin": "https://a.example"}
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        answer = server.client.options("/v1/videos", headers=asked)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["access-control-allow-headers"] == "authorization"
        listed = server.client.get("/v1/models", headers=origin)
        assert (
            listed.headers["access-control-allow-origin"] == "https://a.example" and "Origin" in listed.headers["vary"]
        )
        assert server.client.get("/v1/models", headers={"Origin": "https://b.example"}).status_code == 403


def test_ids_cannot_be_guessed(locked: Server) -> None:
    ids = [
        locked.client.post("/v1/videos", json={"prompt": "x", **TINY}, headers=as_(ALICE)).json()["id"]
        for _ in range(3)
    ]
    assert len(set(ids)) == 3 and all(len(one) == len("job_") + 32 for one in ids)
    locked.client.post("/v1/jobs/cancel", headers=as_(ALICE))


# -- 6: output ---------------------------------------------------------------------------------------------------------


def test_headers_of_every_answer(locked: Server) -> None:
    for path in ("/health", "/v1/models", "/nothing", "/v1/videos"):
        headers = locked.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert len(headers["x-request-id"]) == 16 and "server" not in headers


def test_texts_come_back_as_they_are_and_as_json(locked: Server) -> None:
    prompt = '<script>alert("x")</script>\u202e\n"; DROP TABLE jobs; --'
    job = locked.client.post("/v1/videos", json={"prompt": prompt, **TINY}, headers=as_(ALICE))
    assert job.json()["prompt"] == prompt and job.headers["content-type"] == "application/json"
    wrong = locked.client.post("/v1/videos", json={"prompt": "x", "<b>\n": 1}, headers=as_(ALICE))
    assert "\n" not in wrong.json()["error"]["message"]
    locked.client.post("/v1/jobs/cancel", headers=as_(ALICE))


# -- 7: models and logs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["/etc", "./x", "../x", "~/x", "ai-forever/kandinsky", "kandinsky5-lite-t2v-sft-5s", "\0"]
)
def test_no_model_but_those_of_the_server(locked: Server, model: str) -> None:
    answer = locked.client.post("/v1/videos", json={"prompt": "x", "model": model}, headers=as_(ALICE))
    assert answer.status_code == 404 and code_of(answer) == "model_not_found"


@pytest.mark.parametrize("lora", ["../x", "/etc/passwd", "a/b", "x\0", "..", ".hidden", "x:nan"])
def test_loras_are_names_in_one_folder(tmp_path: Path, lora: str) -> None:
    from kandinsky.jobs.loaded import find_lora, lora_names

    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "good.safetensors").touch()
    (tmp_path / "loras" / ".hidden.safetensors").touch()
    (tmp_path / "x.safetensors").touch()
    assert (
        lora_names(tmp_path / "loras") == ["good"] and find_lora(tmp_path / "loras", "good").name == "good.safetensors"
    )
    with pytest.raises(RequestError):
        find_lora(tmp_path / "loras", lora)
    (tmp_path / "loras" / "link.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(RequestError, match="symbolic link"):
        find_lora(tmp_path / "loras", "link")


def test_no_key_and_no_prompt_in_the_log(locked: Server) -> None:
    secret = "a-very-special-prompt"
    locked.client.post("/v1/videos?token=abc-secret-query", json={"prompt": secret, **TINY}, headers=as_(ALICE))
    locked.client.get("/v1/videos", headers={"X-API-Key": BOB})
    log = (locked.folder / "server.log").read_text()
    assert "POST /v1/videos 200" in log
    for word in (ALICE, BOB, secret, "abc-secret-query", digest(ALICE).hex()):
        assert word not in log
    locked.client.post("/v1/jobs/cancel", headers=as_(ALICE))


# -- 8: the end --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_end_of_the_server_leaves_jobs_in_the_queue(tmp_path: Path) -> None:
    from kandinsky.jobs.sqlite_store import open_store

    with Server(tmp_path, "--drain", "0", models=("nano-t2v",)) as server:
        running = server.create(seconds=1, steps=190)
        waiting = server.create()
        server.wait(running["id"], "in_progress")
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 60
    store = open_store(tmp_path / "jobs")
    states = {job.id: (job.state, job.attempts) for job in store.list().jobs}
    assert states == {running["id"]: (State.QUEUED, 0), waiting["id"]: (State.QUEUED, 0)}
    store.close()
