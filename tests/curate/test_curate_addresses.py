"""Sources that name addresses: a server that fails, truncates, redirects and changes files; lists of all kinds."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kandinsky.cli.main import main
from kandinsky.curate import fetching
from kandinsky.curate.fetching import Fetcher
from kandinsky.curate.run import curate
from kandinsky.errors import RequestError
from kandinsky.model.values import Video
from kandinsky.train.data.sources import find
from tiny.raw_videos import rows, scene

PIECE = 700  # of a file, that a server that truncates sends


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path; what was asked is counted."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[Counter[str]] = Counter()
    ranges: ClassVar[list[str]] = []
    at_once: ClassVar[list[int]] = [0, 0]  # now, at most
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.lock:
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
        try:
            self.answer()
        finally:
            with self.lock:
                self.at_once[0] -= 1

    def answer(self) -> None:
        how, _, name = self.path.strip("/").partition("?")[0].partition("/")
        count = self.asked[self.path] = self.asked[self.path] + 1
        data = self.files.get(name, b"")
        if wanted := self.headers.get("Range"):
            self.ranges.append(wanted)
        match how:
            case "plain":
                self.send(200, data)
            case "slow":
                time.sleep(0.05)
                self.send(200, data)
            case "busy" if count < 3:
                self.send(503, b"later", Retry_After="0")
            case "busy" | "short" | "changes":
                tag = f'"{name} {count > 2}"' if how == "changes" else f'"{name}"'
                data = data if how != "changes" or count > 2 else data[::-1]
                begin, code = 0, 200
                if wanted and self.headers.get("If-Range") == tag:
                    begin, code = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                end = len(data) if how == "busy" or (how == "changes" and count > 2) else begin + PIECE
                extra = {"ETag": tag, "Content_Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
                self.send(code, data[begin:end], len(data) - begin, **extra)
            case "cut":  # always, and never from another place on
                self.send(200, data[:PIECE], len(data))
            case "moved":
                self.send(302, b"", Location=f"/plain/{name}")
            case "loop":
                self.send(302, b"", Location=self.path)
            case "away":
                self.send(302, b"", Location="file:///etc/passwd")
            case "page":
                self.send(200, b"<html>sign in</html>", Content_Type="text/html; charset=utf-8")
            case "typed":
                self.send(200, data, Content_Type="video/mp4")
            case "broken":
                self.wfile.write(b"no HTTP at all\r\n")
                self.close_connection = True
            case _:
                self.send(404, b"")

    def send(self, code: int, data: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = length is not None and length > len(data)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    for number in range(3):
        path = Video(scene(number, 12), fps=12.0, seed=0).save(tmp_path / f"made/{number}.mp4")
        Handler.files[path.name] = path.read_bytes()
    Handler.asked.clear()
    Handler.ranges.clear()
    Handler.at_once[:] = [0, 0]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Fetcher]:
    def make(**more: Any) -> Fetcher:
        return Fetcher(tmp_path / "cache", pause_s=0.001, **more)

    return make


def test_a_file_comes_whole_from_a_server_that_fails_truncates_and_redirects(
    server: str, fetch: Callable[..., Fetcher]
) -> None:
    whole = Handler.files["0.mp4"]
    assert len(whole) > 3 * PIECE
    for how in ("plain", "busy", "short", "moved", "typed", "changes"):
        url = f"{server}/{how}/0.mp4"
        found = fetch()([url])[url]
        assert isinstance(found, Path), found
        assert found.read_bytes() == whole and found.suffix == ".mp4", how
    assert Handler.asked["/busy/0.mp4"] == 3 and Handler.asked["/moved/0.mp4"] == 1
    # each attempt began where the one before ended; a changed file began anew
    assert Handler.ranges[: len(whole) // PIECE] == [f"bytes={n * PIECE}-" for n in range(1, len(whole) // PIECE + 1)]
    url = f"{server}/typed/0.mp4?name=x.bin&more=1#part"  # what the server says where names say nothing
    assert str(fetch()([url])[url]).endswith(".mp4")
    before = sum(Handler.asked.values())
    assert isinstance(fetch()([f"{server}/short/0.mp4"])[f"{server}/short/0.mp4"], Path)
    assert sum(Handler.asked.values()) == before  # nothing is fetched twice


LASTING = {
    "gone/0.mp4": "it answered 404",
    "loop/0.mp4": "it leads from address to address",
    "away/0.mp4": "name a file of this machine by its path",
    "page/0.mp4": "a web page came in the place of a file",
    "plain/0.mp4.zip": "it is no image or video",
    "plain/none.mp4": "the file is empty",
}
PASSING = {"cut/0.mp4": f"it ended after {PIECE} of", "broken/0.mp4": "cannot be fetched now"}


def test_what_is_no_file_is_named_and_remembered(server: str, fetch: Callable[..., Fetcher], tmp_path: Path) -> None:
    Handler.files["0.mp4.zip"] = b"PK"
    urls = {f"{server}/{path}": why for path, why in (LASTING | PASSING).items()}
    first = fetch()
    found = first(list(urls))
    for url, why in urls.items():
        assert isinstance(said := found[url], str) and why in said and "\n" not in said, said
    assert (first.asked, first.failed) == (len(urls), len(urls))
    asked = Handler.asked.copy()
    assert asked["/cut/0.mp4"] == asked["/broken/0.mp4"] == fetching.ATTEMPTS and asked["/gone/0.mp4"] == 1
    fetch()(list(urls))
    again = Handler.asked - asked
    assert set(again) == {"/cut/0.mp4", "/broken/0.mp4"}  # what may be otherwise by now is tried again
    fetch(retry=True)([f"{server}/gone/0.mp4"])
    assert Handler.asked["/gone/0.mp4"] == 2
    assert not list((tmp_path / "cache").glob("*.mp4"))


def test_a_file_that_is_too_large_is_not_fetched(server: str, fetch: Callable[..., Fetcher]) -> None:
    Handler.files["large.mp4"] = bytes((1 << 20) + 1)
    url = f"{server}/plain/large.mp4"
    assert "it is larger than 1 MB" in str(fetch(most_mb=1)([url])[url])
    assert isinstance(fetch(most_mb=2, retry=True)([url])[url], Path)


def test_few_connections_go_to_one_host(server: str, fetch: Callable[..., Fetcher]) -> None:
    urls = [f"{server}/slow/0.mp4?n={n}" for n in range(8)]
    assert all(isinstance(one, Path) for one in fetch()(urls).values())
    assert Handler.at_once[1] == fetching.OF_A_HOST


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "name a file of this machine by its path"),
        ("s3://bucket/a.mp4", "is no file of this machine: mount or copy"),
        ("http://me:secret@host/a.mp4", "name and password"),
        ("http:///a.mp4", "is no address"),
        ("http://host:port/a.mp4", "is no address"),
        ("http://ho st/a.mp4", "is no address"),
    ],
)
def test_addresses_that_are_not_fetched(url: str, why: str, fetch: Callable[..., Fetcher]) -> None:
    assert why in str(fetch()([url])[url])
    assert "secret" not in str(fetch()([url])[url]) and not (fetch().folder).exists()
    assert fetching.check("HTTP://xn--e1afmkfd.xn--p1ai/видео 1.mp4#x".replace(" ", "%20")).endswith("%201.mp4")


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet", "folder"])
def test_lists_of_every_kind_are_curated(server: str, tmp_path: Path, kind: str) -> None:
    urls = [f"{server}/plain/0.mp4", f"{server}/gone/1.mp4", f"{server}/short/2.mp4"]
    source = tmp_path / f"raw.{kind}"
    match kind:
        case "txt":
            source.write_text("# clips\n" + "\n".join([*urls, urls[0], "local.mp4"]) + "\n")
        case "csv":
            lines = [f'{url},"a clip, of {n}"' for n, url in enumerate(urls)]
            source.write_text("\n".join(["url,caption", *lines]))
        case "jsonl":
            source.write_text(
                "\n".join(json.dumps({"url": url, "caption": f"a clip, of {n}"}) for n, url in enumerate(urls))
            )
        case "parquet":
            pq.write_table(pa.table({"url": urls, "caption": [f"a clip, of {n}" for n in range(3)]}), source)
        case "folder":
            source = tmp_path / "raw"
            (source / "below").mkdir(parents=True)
            Video(scene(7, 12), fps=12.0, seed=0).save(source / "own.mp4")
            (source / "below/metadata.csv").write_text("\n".join(["url", *urls]))
    (tmp_path / "rules.toml").write_text('[filters]\nduration = "duration >= 0.3"\n')
    told: list[str] = []
    made = curate(source, tmp_path / "set", rules=tmp_path / "rules.toml", tell=told.append)
    files = {row["obs_path"]: row for row in rows(tmp_path, "raw")}
    assert set(files) == {*urls, *(["own.mp4"] if kind == "folder" else [])}
    assert [files[url]["status"] for url in urls] == ["done", "failed", "done"]
    assert "it answered 404" in files[urls[1]]["fault"] and told == ["1 of the 3 addresses gave no file"]
    assert made.kept == (3 if kind == "folder" else 2)
    if kind in ("csv", "jsonl", "parquet"):
        assert {row["prompt"] for row in rows(tmp_path)} == {"a clip, of 0", "a clip, of 2"}
    if kind == "txt":
        assert any("`local.mp4` is no address" in one.reason for one in made.faults)
    before = sum(Handler.asked.values())
    assert not curate(source, tmp_path / "set", rules=tmp_path / "rules.toml").is_new
    assert sum(Handler.asked.values()) == before


def test_a_killed_fetch_goes_on_and_a_cache_is_shared(server: str, tmp_path: Path) -> None:
    """What a killed run left: half a file, and a note of the state it was of."""
    url, whole = f"{server}/short/0.mp4", Handler.files["0.mp4"]
    place = fetching._Place(tmp_path / "cache", url)
    place.folder.mkdir()
    place.part.write_bytes(whole[: 2 * PIECE + 5])
    place.tell(validator='"0.mp4"')
    (tmp_path / "urls.txt").write_text(url + "\n")
    command = [
        "data",
        "curate",
        str(tmp_path / "urls.txt"),
        "-o",
        str(tmp_path / "set"),
        "--downloads",
        str(tmp_path / "cache"),
    ]
    assert main(command) == 0
    assert Handler.ranges[0] == f"bytes={2 * PIECE + 5}-" and place.there().read_bytes() == whole  # type: ignore[union-attr]
    asked = sum(Handler.asked.values())
    command[4] = str(tmp_path / "other")
    assert main(command) == 0 and sum(Handler.asked.values()) == asked


def test_where_nothing_is_left_the_source_is_refused(server: str, tmp_path: Path) -> None:
    for text, why in ((f"{server}/gone/0.mp4\n", "it answered 404"), ("file:///etc/passwd\n", "by its path")):
        source = tmp_path / "urls.txt"
        source.write_text(text)
        with pytest.raises(RequestError, match=why):
            curate(source, tmp_path / "set")
        with pytest.raises(RequestError, match="is an address, which `kandinsky data curate` fetches"):
            find(source, captions="optional")


def test_a_run_that_is_stopped_ends_its_fetches(server: str, fetch: Callable[..., Fetcher]) -> None:
    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(on_progress=stop)([f"{server}/slow/0.mp4?n={n}" for n in range(400)])
    assert sum(Handler.asked.values()) < 20
