"""The files of the web page: whole, complete in both languages, from nowhere else, and over documented calls alone."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kandinsky
from kandinsky.serve.app import create_app, guarded
from kandinsky.serve.settings import ServeSettings

PAGE = Path(kandinsky.__file__).parent / "serve" / "page"
OWN = sorted(path for path in PAGE.rglob("*") if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts)
MODULES = [path for path in OWN if path.suffix == ".js"]
FORMS = {"en": {"one", "other"}, "ru": {"one", "few", "many", "other"}}
TABLES = {name: json.loads((PAGE / "languages" / f"{name}.json").read_text(encoding="utf-8")) for name in FORMS}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = str(tmp_path_factory.mktemp("jobs"))
    return create_app(ServeSettings(models=("nano-t2v",), store=store, workers=0))


@pytest.fixture(scope="module")
def client(app: Any) -> TestClient:
    return TestClient(guarded(app), base_url="http://127.0.0.1")


def plain_keys(language: str) -> dict[str, set[str]]:
    """Keys without their plural forms, and the forms."""
    found: dict[str, set[str]] = {}
    for key in TABLES[language]:
        base, _, form = key.rpartition(".")
        is_form = form in FORMS["ru"] and f"{base}.other" in TABLES[language]
        found.setdefault(base if is_form else key, set()).update({form} if is_form else ())
    return found


def test_vendored_files_are_those_of_their_packages() -> None:
    listed = tomllib.loads((PAGE / "vendor" / "THIRD_PARTY.toml").read_text())
    for name, entry in listed.items():
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["version"] and entry["licence"]
        assert all((PAGE / "vendor" / licence).stat().st_size > 500 for licence in entry["licence_files"])
    licences = {licence for entry in listed.values() for licence in entry["licence_files"]}
    assert {path.name for path in (PAGE / "vendor").iterdir()} == {*listed, *licences, "THIRD_PARTY.toml"}


def test_both_languages_say_everything() -> None:
    english, russian = plain_keys("en"), plain_keys("ru")
    assert english.keys() == russian.keys()
    for language, keys in (("en", english), ("ru", russian)):
        assert all(not forms or forms == FORMS[language] for forms in keys.values()), language
        assert all(text.strip() for text in TABLES[language].values())
    holes = {key: set(re.findall(r"{\w+}", text)) for key, text in TABLES["en"].items()}
    for key, text in TABLES["ru"].items():
        if key in holes:
            base = key.removesuffix(".one")
            assert set(re.findall(r"{\w+}", text)) == holes[key] or base != key, key
    same = {key for key, text in TABLES["ru"].items() if TABLES["en"].get(key) == text}
    assert same <= {"setting.lora", "axis.guidance"}


def test_every_text_of_the_page_is_in_the_dictionaries() -> None:
    known = plain_keys("en")
    source = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    assert set(re.findall(r"\bt\(\s*\"([\w.]+)\"", source)) <= known.keys()
    for start in set(re.findall(r"\bt\(`([\w.]+)\$\{", source)):
        assert any(key.startswith(start) for key in known), start
    starts = tuple(re.findall(r"[`\"]([a-z]+\.)\$\{", source))
    unused = [key for key in known if f'"{key}"' not in source and not key.startswith(starts)]
    assert unused == []


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_inline() -> None:
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        addresses = [one for one in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in one]
        assert addresses == [], path.name
        assert not re.search(r"\beval\(|new Function|innerHTML|dangerouslySet|document\.write", text), path.name
        assert not re.search(r"(src|href)=\"//", text), path.name
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)
    for path in MODULES:
        assert not re.search(r"\sstyle=\"", path.read_text(encoding="utf-8")), path.name


def test_imports_lead_to_files_of_the_page() -> None:
    for path in MODULES:
        for name in re.findall(r"from \"([^\"]+)\"", path.read_text(encoding="utf-8")):
            assert name.startswith("./") and (path.parent / name).is_file(), f"{path.name}: {name}"


def test_only_documented_calls_are_used(app: Any) -> None:
    documented = {re.sub(r"{\w+}", "{}", path) for path in app.openapi()["paths"]}
    used = set()
    for path in MODULES:
        for found in re.findall(r"[\"`](/(?:v1/|ready|health|metrics)[^\"`]*)[\"`]", path.read_text(encoding="utf-8")):
            if path.name != "api.js":
                pytest.fail(f"{path.name} names {found}: calls belong into api.js")
            used.add(re.sub(r"\$\{named\(\w+\)\}", "{}", found).partition("?")[0].partition("${")[0])
    assert len(used) > 10 and used <= documented


def test_the_page_is_served_with_its_types_and_policy(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "unsafe" not in policy and "script-src 'self'" in policy
    for name in re.findall(r"(?:src|href)=\"(page/[^\"]+)\"", answer.text):
        assert client.get(f"/{name}").status_code == 200, name
    module = client.get("/page/app.js")
    assert module.headers["content-type"].startswith("text/javascript")
    again = client.get("/page/app.js", headers={"if-none-match": module.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "vendor/../../keys.py", "/etc/passwd", "no.js", ""])
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and "error" in answer.json()


def test_the_page_is_no_part_of_the_schema(app: Any) -> None:
    assert not [path for path in app.openapi()["paths"] if path == "/" or path.startswith("/page")]


def test_images_can_be_asked_for_without_waiting(client: TestClient) -> None:
    body = {"prompt": "a star", "n": 2, "steps": 1, "seed": 5}
    answer = client.post("/v1/images/generations", json=body, headers={"prefer": "respond-async"})
    jobs = answer.json()["data"]
    assert answer.status_code == 202 and answer.headers["preference-applied"] == "respond-async"
    assert [(job["object"], job["status"], job["seed"]) for job in jobs] == [
        ("image", "queued", 5),
        ("image", "queued", 6),
    ]
    cancelled = client.post("/v1/jobs/cancel", params={"which": "all"}).json()["data"]
    assert {job["id"] for job in cancelled} == {job["id"] for job in jobs}
