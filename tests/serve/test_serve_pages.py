"""The examples of `docs/guides/api.md`, run in order against a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky.media.video import read_video
from serve.conftest import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "api.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.S | re.M)


def run(server: Server, words: list[str], text: str, folder: Path) -> None:
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [*words, text.replace(ADDRESS, server.url)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_curl(server: Server, tmp_path: Path) -> None:
    run(server, ["bash", "-euc"], "".join(blocks("bash")).replace("curl -s", "curl -sf"), tmp_path)
    assert len(read_video(tmp_path / "panda.mp4")) == 13 and (tmp_path / "panda.webp").read_bytes().startswith(b"RIFF")
    assert all((tmp_path / f"{name}.json").read_text().startswith('{"id"') for name in ("moving", "long"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_python(server: Server, tmp_path: Path, number: int) -> None:
    pages = blocks("python")
    assert len(pages) == 4  # that of live sessions is run by `test_live.py`
    run(server, [sys.executable, "-c"], pages[number], tmp_path)
    if number != 1:  # LiteLLM writes no file
        assert len(read_video(tmp_path / "panda.mp4")) == 13


def test_every_call_of_the_page_is_one_of_the_server(server: Server) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    known = {re.sub(r"\{\w+\}", "ID", path) for path in paths} | {"/openapi.json"}
    table = PAGE.split("## The calls")[1].split("## Events")[0]
    named = set(re.findall(r"(?<=[ `])(/(?:v1/)?[a-zA-Z/_.]+)(?=[`,])", table)) - {"/edits", "/mcp"}
    assert named and named <= known, named - known
    fields = paths["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    listed = PAGE.split("Fields of a clip: ")[1].split("They mean")[0]
    assert set(re.findall(r"`(\w+)`", listed)) - {"mp4", "webm", "gif", "webp"} <= set(fields)
    undocumented = set(fields) - set(re.findall(r"`(\w+)`", PAGE)) - {"user", "safety_identifier"}
    assert not undocumented
