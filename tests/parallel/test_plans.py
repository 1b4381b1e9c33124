"""`kandinsky plan --gpus N --parallel …`: which layout, and what each process holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.options import RunOptions
from kandinsky.engine.plan import loses_by_processes
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.runtime import devices
from kandinsky.runtime.parallel.layout import Layout

FLASH, PRO, VIDEO = "kandinsky4-t2v-flash", "kandinsky5-pro-t2v-sft-5s", "kandinsky-video-1.1"


def test_the_layout_is_chosen_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", FLASH, "--gpus", "8", "--memory", "80GB"]) == 0
    text = capsys.readouterr().out
    assert "processes  8, `--parallel ulysses=8`: 48 heads over 8" in text
    assert "11.5 GB on each process but the first" in text
    assert main(["plan", "-m", PRO, "--gpus", "8", "--memory", "80GB", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["processes"], facts["layout"]) == (8, "cfg=2,ulysses=4")


def test_what_each_process_holds() -> None:
    def plan(parallel: str | None, gpus: int | None = None, memory: str = "80GB") -> kandinsky.Plan:
        return kandinsky.plan(FLASH, parallel=parallel, gpus=gpus, memory=memory)

    alone = plan(None)
    assert alone.processes == 1 and alone.layout == "1" and alone.other_bytes == 0
    tokens, width, shards = plan(None, 4), plan("tp=4"), plan("fsdp=4")
    assert tokens.components["dit"].weights == alone.components["dit"].weights
    assert tokens.components["dit"].work == alone.components["dit"].work // 4
    # all but embeddings and the last layer is cut
    assert 0.25 < width.components["dit"].weights / alone.components["dit"].weights < 0.26
    assert shards.layout == "ulysses=4,fsdp=4"
    # a quarter, and two of 42 blocks whole
    assert 0.29 < shards.components["dit"].weights / alone.components["dit"].weights < 0.30
    assert all(one.components["text"] == alone.components["text"] for one in (tokens, width, shards))
    assert shards.other_bytes < width.other_bytes < tokens.other_bytes < tokens.peak_device_bytes
    assert tokens.times["dit"] == pytest.approx(alone.times["dit"] / 4)
    assert tokens.times["vae"] == alone.times["vae"], "the autoencoder of Kandinsky 4 is not shared"
    # on a processor they lie side by side, and share its cores
    cpu = kandinsky.plan(FLASH, device="cpu", gpus=2, offload="none")
    single = kandinsky.plan(FLASH, device="cpu", offload="none")
    assert cpu.seconds == single.seconds
    dit = cpu.components["dit"]
    assert cpu.peak_host_bytes - single.peak_host_bytes == pytest.approx(dit.weights + dit.work, rel=0.2)


def test_what_does_not_fit_is_advised_or_refused() -> None:
    assert (
        kandinsky.plan(PRO, gpus=8, memory="45GB", offload="none").advice == 'try `parallel="cfg=2,ulysses=4,fsdp=4"`'
    )
    assert "more processes" in kandinsky.plan(PRO, gpus=2, memory="10GB", offload="none").advice
    assert kandinsky.plan(VIDEO, gpus=2, memory="80GB").layout == "cfg=2"
    for options, words in (
        ({"parallel": "tp=5"}, "must divide 48 heads"),
        ({"parallel": "cfg=2"}, "guidance is off"),
        ({"parallel": "tp=4", "gpus": 8}, "8 processes were started"),
        ({"parallel": "tp=4", "offload": "block"}, "offload `block` needs them whole"),
        ({"gpus": 0}, "from 1 to 65536, not `0`"),
        ({"gpus": 2**64}, "from 1 to 65536"),
        ({"gpus": 65_537}, "from 1 to 65536, not `65537`"),
        ({"gpus": True}, "whole number"),
        ({"gpus": 2.5}, "whole number"),
        ({"parallel": f"ulysses={2**70}"}, "from 1 to 65,536"),
        ({"parallel": "ulysses=" + "9" * 5000}, "from 1 to 65,536"),
        ({"parallel": "data=65536,ring=65536"}, "use 1 to 65,536"),
    ):
        with pytest.raises(RequestError, match=words):
            kandinsky.plan(FLASH, memory="80GB", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "options", "layout", "loses"),
    [
        ({"steps": 25}, {}, Layout(cfg=2), True),
        ({"steps": 25}, {}, Layout(), False),
        ({"steps": 200, "seconds": 4}, {}, Layout(cfg=2), False),
        ({"steps": 25}, {"device": {"dit": "cuda:0"}}, Layout(cfg=2), False),
    ],
)
def test_processes_that_cost_more_than_they_save_are_told(
    values: dict[str, float], options: dict[str, Any], layout: Layout, loses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "processor_count", lambda: 2)
    job = resolve(Request("nano-t2v", "a panda", seed=1, **values), catalogue.find("nano-t2v"))
    said = loses_by_processes(job, RunOptions(**options), layout)
    assert bool(said) is loses
    assert not loses or ("2 processes save about" in said and "one process is sooner" in said)
