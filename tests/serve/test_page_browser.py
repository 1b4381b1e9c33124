"""The web page in a real browser: Chromium, driven by playwright-core, against a real server with Nano.

The flows are in `browser/flows.mjs`. They need Debian's package `chromium`, Node.js, and
`npm install --prefix tests/serve/browser`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from serve.conftest import BROWSER, Server, browser, tiny_server

FLOWS = re.findall(r"^  async (\w+)\(browser\) {$", (BROWSER / "flows.mjs").read_text(encoding="utf-8"), re.MULTILINE)
KEY = "a-key-for-the-page-only"
LIMIT_S = 1200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What became of each flow; one browser runs them all."""
    chromium = browser()
    with (
        Server(tmp_path_factory.mktemp("page"), "--warm-up") as open_one,
        Server(
            tmp_path_factory.mktemp("locked"), "--workers", "0", models=("nano-t2v",), KANDINSKY_API_KEY=KEY
        ) as locked,
        tiny_server(tmp_path_factory.mktemp("tiny")) as tiny,
    ):
        open_one.wait_ready()
        tiny.wait_ready()
        command = ["node", "flows.mjs", chromium, open_one.url, locked.url, KEY, tiny.url]
        done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr[-3000:]
        yield {one["flow"]: one for one in map(json.loads, done.stdout.splitlines())}


def test_there_are_flows() -> None:
    assert {"generate", "survives", "cancel", "reuse", "image", "grid", "accessible", "phone", "key", "able"} <= set(
        FLOWS
    )


@pytest.mark.parametrize("flow", FLOWS)
def test_flow(told: dict[str, Any], flow: str) -> None:
    assert told[flow]["ok"], told[flow]["problem"]
