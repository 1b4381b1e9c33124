"""A whole side-by-side study in Chromium, driven by playwright-core: made, answered by two people, reported.

The flow is in `browser/compare.mjs`. It needs what `test_page_browser.py` needs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from serve.conftest import BROWSER, Server, browser
from serve.test_comparisons import write_sets
from serve.test_page_browser import KEY

LIMIT_S = 180

pytestmark = pytest.mark.slow


def test_a_study_from_its_beginning_to_its_report(tmp_path: Path) -> None:
    chromium = browser()
    root = write_sets(tmp_path / "sets")
    (tmp_path / "locked").mkdir()
    options = ("--workers", "0", "--studies", str(root))
    with (
        Server(tmp_path, *options, models=("nano-t2v",)) as open_one,
        Server(tmp_path / "locked", *options, models=("nano-t2v",), KANDINSKY_API_KEY=KEY) as locked,
    ):
        command = ["node", "compare.mjs", chromium, open_one.url, locked.url, KEY]
        done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["ok"], told["problem"]
