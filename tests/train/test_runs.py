"""What happens to a training: signals, kills, full disks, broken checkpoints, second trainings, NaN."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import kandinsky
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.train import loop
from kandinsky.train.checkpoint import NAME, PREVIOUS, locked
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from tiny import training

STEPS = 6


class Line(Objective):
    """A line through noisy points; ``breaks`` makes the loss of that step NaN."""

    def __init__(self, width: int = 4, breaks: int | None = None) -> None:
        self.network = nn.Linear(width, 1)
        self.breaks = breaks
        self.visit: Callable[[int], None] = lambda step: None

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Tensor:
        self.visit(step)
        rows = [torch.randn(self.network.in_features, generator=rng.example(n)) for n in portion.of(range(4))]
        return torch.stack(rows)

    def loss(self, update: str, batch: Tensor, rng: Rng) -> Loss:
        loss = (self.network(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
        return Loss(loss * float("nan") if rng.step == self.breaks else loss, weight=len(batch))


def line(seed: int = 0, **more: Any) -> Line:
    with loop.seeded(seed):
        return Line(**more)


def settings(**more: Any) -> loop.LoopSettings:
    values = {"steps": STEPS, "lr": 0.01, "warmup": 1, "bf16": False, "log_every": 1, "checkpoint_minutes": 0}
    return loop.LoopSettings.from_dict({**values, **more})


def run(*given: Any, **more: Any) -> dict[str, Tensor]:
    return loop.run(*given, **more)["network"]


def steps_of(out: Path) -> list[int]:
    return [json.loads(one)["step"] for one in (out / "log.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_two_runs_are_bit_equal_and_the_callers_numbers_go_on(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = run(line(), settings(), tmp_path / "a")
    assert torch.equal(torch.randn(3), expected)
    assert same(first, run(line(), settings(), tmp_path / "b"))
    assert not same(first, run(line(seed=1), settings(seed=1), tmp_path / "c"))


@pytest.mark.parametrize("contents", ["empty", "cut", "junk", "pickle", "foreign", "infinite", "folder"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, contents: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(line(), settings(), tmp_path / "whole")
    out = tmp_path / "run"
    run(line(), settings(), out)
    path = out / NAME
    data = path.read_bytes()
    if contents == "empty":
        path.write_bytes(b"")
    elif contents == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif contents == "junk":
        path.write_bytes(random.Random(1).randbytes(3000))
    elif contents == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    elif contents == "foreign":
        torch.save({"weight": torch.zeros(3)}, path)
    elif contents == "infinite":
        state = torch.load(path, weights_only=True)
        state["weights"]["network.weight"][0, 0] = float("nan")
        torch.save(state, path)
    else:
        path.unlink()
        path.mkdir()
    if contents == "folder":
        with pytest.raises(RequestError, match="cannot be written"):  # of the next one
            run(line(), settings(), out)
        return
    caplog.clear()
    assert same(run(line(), settings(), out), whole)
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert NAME in said and PREVIOUS in said and f"step {STEPS - 1}" in said and "\n" not in said
    assert steps_of(out) == list(range(1, STEPS + 1))
    for name in (NAME, PREVIOUS):
        (out / name).write_bytes(b"")
    with pytest.raises(RequestError, match="begin anew"):
        run(line(), settings(), out)
    assert same(run(line(), settings(), out, resume=False), whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 3}, "`seed` was `0` and is `3`"),
        ({"lr": 0.02}, "`lr` was `0.01` and is `0.02`"),
        ({"weight_decay": 0.5}, "`weight_decay`"),
        ({"recipe": {"data.batch": 8}}, "`data.batch` was `4` and is `8`"),
        ({"recipe": {}}, "`data.batch` was `4` and is `None`"),
        ({"width": 5}, "another network"),
        ({"steps": 2}, "has taken 6 steps"),
    ],
)
def test_a_changed_recipe_is_not_resumed(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run(line(), settings(), tmp_path, recipe={"data.batch": 4})
    before = (tmp_path / NAME).read_bytes()
    recipe = change.pop("recipe", {"data.batch": 4})
    width = change.pop("width", 4)
    with pytest.raises(RequestError) as refused:
        run(line(width=width), settings(**change), tmp_path, recipe=recipe)
    assert named in str(refused.value) and (tmp_path / NAME).read_bytes() == before


def test_one_folder_takes_one_training(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RequestError, match="another training"):
        run(line(), settings(), tmp_path)
    run(line(), settings(), tmp_path)


def test_no_step_stands_in_the_log_twice(tmp_path: Path) -> None:
    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(line(), settings(checkpoint_minutes=60), tmp_path, on_log=stop)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')
    run(line(), settings(), tmp_path)
    assert steps_of(tmp_path) == list(range(1, STEPS + 1))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KandinskyError, match=r"loss of step 4 is nan; the checkpoint of step 3 is kept"):
        run(line(breaks=3), settings(), tmp_path)
    assert torch.load(tmp_path / NAME, weights_only=True)["step"] == 3
    assert same(run(line(), settings(), tmp_path), run(line(), settings(), tmp_path / "whole"))


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    made = line()

    def spoil(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                made.network.bias.fill_(1e30)  # its loss overflows

    made.visit = spoil
    with pytest.raises(KandinskyError, match="the checkpoint of step 3 is kept"):
        run(made, settings(), tmp_path)
    assert torch.load(tmp_path / NAME, weights_only=True)["step"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    whole = run(line(), settings(), tmp_path / "whole")
    made = line()
    made.visit = lambda step: os.kill(os.getpid(), number) if step == 2 else None
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(made, settings(checkpoint_minutes=60), tmp_path / "run")
    assert signal.getsignal(number) is handler
    assert torch.load(tmp_path / "run" / NAME, weights_only=True)["step"] == 3
    assert same(run(line(), settings(), tmp_path / "run"), whole)


def test_a_disk_that_is_full_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run(line(width=4000), settings(steps=2), tmp_path)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RequestError, match="cannot be written") as refused:
            run(line(width=4000), settings(steps=4), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(refused.value)
    assert torch.load(tmp_path / NAME, weights_only=True)["step"] == 2
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name]
    run(line(width=4000), settings(steps=4), tmp_path)


def test_a_run_killed_at_any_instant_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """`kill -9` at random instants, the first before anything was written, until the run comes to its end."""
    steps = 150
    recipe = training.denoiser(tmp_path / "killed", steps)
    text = recipe.read_text().replace("bf16: false", "bf16: false\n  checkpoint_minutes: 0")
    recipe.write_text(text)
    whole = tmp_path / "whole.yaml"
    (tmp_path / "whole").mkdir()
    for name in ("latents.npy", "latents.json"):
        (tmp_path / "whole" / name).write_bytes((recipe.parent / name).read_bytes())
    whole.write_text(text)
    env = os.environ | {"PYTHONPATH": str(Path(kandinsky.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def start(path: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kandinsky", "train", str(path), *options]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    rng, kills = random.Random(4), 0
    for _ in range(3):
        job, seen = start(recipe), _last_step(recipe.parent)
        until = seen + rng.randrange(1, 30)
        while job.poll() is None and _last_step(recipe.parent) < until:
            time.sleep(0.002)
        kills += job.poll() is None
        job.kill()
        job.communicate()
    assert kills == 3
    for job in (start(recipe), start(whole, "--out", str(tmp_path / "whole"))):
        _, err = job.communicate()
        assert job.returncode == 0, err
    assert same(load_file(recipe.parent / "dit.safetensors"), load_file(tmp_path / "whole" / "dit.safetensors"))
    assert steps_of(recipe.parent) == list(range(1, steps + 1))
    assert not [path for path in recipe.parent.iterdir() if ".part-" in path.name]


def _last_step(out: Path) -> int:
    try:
        return max(steps_of(out), default=0)
    except (FileNotFoundError, ValueError):
        return 0
