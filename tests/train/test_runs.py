"""What happens to a training: signals, kills, full disks, broken checkpoints, second trainings, NaN."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.train import loop
from kandinsky.train.checkpoint import STATE, locked, name_of
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from tiny import training
from tiny.nursery import Lives

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


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))


def spoil(path: Path, how: str) -> None:
    """Damage a checkpoint."""
    (file,) = path.glob("*.safetensors")
    data, table = file.read_bytes(), (path / STATE).read_bytes()
    if how == "gone":
        shutil.rmtree(path)
        path.mkdir()
    elif how == "file":
        shutil.rmtree(path)
        path.write_bytes(b"x")
    elif how == "without its table":
        (path / STATE).unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "cut table":
        (path / STATE).write_bytes(table[: len(table) // 2])
    elif how == "without its tensors":
        file.unlink()
    elif how == "junk":
        file.write_bytes(random.Random(1).randbytes(len(data)))
    elif how == "pickle":
        file.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.".ljust(len(data)))
    elif how == "foreign":
        save_file({"weight": torch.zeros(3)}, file)
        values = json.loads(table)
        values["files"] = {file.name: file.stat().st_size}
        (path / STATE).write_text(json.dumps(values))
    elif how == "another format":
        (path / STATE).write_text(json.dumps({**json.loads(table), "format": 3}))
    elif how == "infinite":
        start = 8 + int.from_bytes(data[:8], "little")
        file.write_bytes(data[:start] + b"\xff" * (len(data) - start))
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    "contents",
    ["gone", "file", "without its table", "empty", "cut", "cut table", "without its tensors", "junk", "pickle",
     "foreign", "another format", "infinite"],
)  # fmt: skip
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, contents: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(line(), settings(), tmp_path / "whole")
    out = tmp_path / "run"
    run(line(), settings(), out)
    assert checkpoints(out) == [STEPS - 1, STEPS]
    spoil(out / name_of(STEPS), contents)
    caplog.clear()
    assert same(run(line(), settings(), out), whole)
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert name_of(STEPS) in said and said.endswith(f"using `{name_of(STEPS - 1)}`") and "\n" not in said
    assert steps_of(out) == list(range(1, STEPS + 1)) and not Path("hacked").exists()
    assert checkpoints(out) == [STEPS - 1, STEPS]
    for step in checkpoints(out):
        spoil(out / name_of(step), contents)
    with pytest.raises(RequestError, match="begin anew"):
        run(line(), settings(), out)
    assert same(run(line(), settings(), out, resume=False), whole)


def test_the_last_checkpoints_are_kept_and_those_of_some_steps(tmp_path: Path) -> None:
    run(line(), settings(steps=9, keep=3, keep_every=4), tmp_path)
    assert checkpoints(tmp_path) == [4, 7, 8, 9]
    spoil(tmp_path / name_of(9), "cut")
    spoil(tmp_path / name_of(8), "cut")
    run(line(), settings(steps=8, keep=1), tmp_path)
    assert checkpoints(tmp_path) == [8]  # that of step 9 could not be read, and is of no use


def test_a_checkpoint_of_an_older_version_is_named(tmp_path: Path) -> None:
    torch.save({"format": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(RequestError, match="older version"):
        run(line(), settings(), tmp_path)
    run(line(), settings(), tmp_path, resume=False)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_checkpoint_is_read_by_the_reader_of_torch(tmp_path: Path) -> None:
    made = line(width=7)
    run(made, settings(ema=0.5), tmp_path)
    state = {"weights.network.weight": torch.zeros(1, 7), "optimiser.network.bias.exp_avg": torch.ones(1)}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(tmp_path / name_of(STEPS))), no_dist=True)
    assert torch.equal(state["weights.network.weight"], made.network.weight)
    assert float(state["optimiser.network.bias.exp_avg"]) not in (0.0, 1.0)


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
    before = contents_of(tmp_path / name_of(STEPS))
    recipe = change.pop("recipe", {"data.batch": 4})
    width = change.pop("width", 4)
    with pytest.raises(RequestError) as refused:
        run(line(width=width), settings(**change), tmp_path, recipe=recipe)
    assert named in str(refused.value) and contents_of(tmp_path / name_of(STEPS)) == before


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_folder_takes_one_training(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RequestError, match="another run"):
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
    assert checkpoints(tmp_path)[-1] == 3
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
    assert checkpoints(tmp_path)[-1] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    # a job in the background ignores interrupts, and so would what it runs
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    request.addfinalizer(lambda: signal.signal(number, before))
    whole = run(line(), settings(), tmp_path / "whole")
    made = line()
    made.visit = lambda step: os.kill(os.getpid(), number) if step == 2 else None
    with pytest.raises(KeyboardInterrupt):
        run(made, settings(checkpoint_minutes=60), tmp_path / "run")
    assert signal.getsignal(number) is handler
    assert checkpoints(tmp_path / "run")[-1] == 3
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
    assert checkpoints(tmp_path)[-1] == 2
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name]
    run(line(width=4000), settings(steps=4), tmp_path)


@pytest.mark.slow
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
    script = tmp_path / "command.py"
    script.write_text(
        "import torch, torch._dynamo, kandinsky.lab.nano.train\n"
        "from kandinsky.cli.main import main\n"
        "from tiny.nursery import raise_lives\n"
        "torch.optim.AdamW([torch.zeros(1)], fused=True)\n"  # imports what it needs
        "raise_lives(lambda words: main(['train', *words]))\n"
    )
    rng = random.Random(4)
    with Lives(script) as lives:
        for _ in range(3):
            job, seen = lives.begin([str(recipe)]), _last_step(recipe.parent)
            until = seen + rng.randrange(1, 30)
            while not job.is_over and _last_step(recipe.parent) < until:
                time.sleep(0.002)
            assert job.kill()
        for words in ([str(recipe)], [str(whole), "--out", str(tmp_path / "whole")]):
            assert lives.begin(words).end() == 0
    assert same(load_file(recipe.parent / "dit.safetensors"), load_file(tmp_path / "whole" / "dit.safetensors"))
    assert steps_of(recipe.parent) == list(range(1, steps + 1))
    assert not [path for path in recipe.parent.iterdir() if ".part-" in path.name]


def _last_step(out: Path) -> int:
    try:
        return max(steps_of(out), default=0)
    except (FileNotFoundError, ValueError):
        return 0
