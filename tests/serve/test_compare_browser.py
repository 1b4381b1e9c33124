"""A whole side-by-side study in Chromium, driven by playwright-core: made, answered by two people, reported.

The flow is in `browser/compare.mjs`. It needs what `test_page_browser.py` needs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kandinsky.cli.main import main
from kandinsky.evaluate.studies import DAMAGED
from kandinsky.evaluate.study_store import StudyStore
from kandinsky.evaluate.votes import Vote, json_lines
from kandinsky.jobs.sqlite_store import open_store
from serve.conftest import BROWSER, Server, browser
from serve.test_comparisons import write_sets
from serve.test_page_browser import KEY

LIMIT_S = 180

pytestmark = pytest.mark.slow


def with_checks(server: Server, sets: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A study with an attention check, at which one annotator looked and another did not."""
    given = [f"{name}={sets / name}" for name in ("ours", "theirs")]
    main(["evaluate", "compare", *given, "--checks", "1", "--name", "Checked", "--store", str(server.folder / "jobs")])
    made = capsys.readouterr().out.strip()
    study = StudyStore(open_store(str(server.folder / "jobs")).folder).get(made)
    assert study is not None
    answers = (("keen", "left"), ("tired", "right"))
    votes = [Vote(study.checks[0], "ours", DAMAGED, who, "motion", choice) for who, choice in answers]
    votes += [Vote(study.prompts[0], "ours", "theirs", who, "motion", "left") for who, _ in answers]
    lines = {"content-type": "application/x-ndjson"}
    server.client.post(f"/v1/comparisons/{made}/votes", content=json_lines(votes), headers=lines).raise_for_status()
    return made


def test_a_study_from_its_beginning_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chromium = browser()
    root = write_sets(tmp_path / "sets")
    (tmp_path / "locked").mkdir()
    options = ("--workers", "0", "--studies", str(root))
    with (
        Server(tmp_path, *options, models=("nano-t2v",)) as open_one,
        Server(tmp_path / "locked", *options, models=("nano-t2v",), KANDINSKY_API_KEY=KEY) as locked,
    ):
        checked = with_checks(open_one, root, capsys)
        command = ["node", "compare.mjs", chromium, open_one.url, locked.url, KEY, checked]
        done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["ok"], told["problem"]
