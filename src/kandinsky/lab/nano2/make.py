"""The second Nano's files from nothing: ``python -m kandinsky.lab.nano2.make --data DATA --run RUN --out FOLDER``.

Fetches and decodes the images, then runs the commands of the stages, each in a process of its own, ``--jobs`` of them
side by side, and writes the files of the model. Whatever is there already is kept, and a stage that was broken off goes
on where it was, so the command can be given again until it is done. What a stage says stands in ``RUN/NAME.log``.

Its modules are read whenever a stage begins: a run of hours wants a copy of the code that nobody edits.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kandinsky.errors import BackendError
from kandinsky.lab.nano import emoji
from kandinsky.lab.nano2.catalogue import SOURCE_SIDE
from kandinsky.lab.nano2.package import package
from kandinsky.lab.nano2.train import COOLDOWN, DONE, STEPS
from kandinsky.lab.nano2.trained import Trained
from kandinsky.train import interrupts

log = logging.getLogger(__name__)
LOOK_S = 0.5
"""How often the processes are looked at."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A command of a run.

    Args:
        name: Of the stage.
        command: What follows ``python -m``.
        result: The file that is there once it is done, and not before.
        needs: Names of the stages that must be done first.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    needs: tuple[str, ...] = ()


def stages(data: Path, run: Path, *, threads: int = 1) -> tuple[Stage, ...]:
    """Those of the release, the longest first where several can begin."""
    lab, exact, made = "kandinsky.lab.nano2", run / "decoder-exact", run / "decoder"
    images = ("--data", str(data))
    train = (*images, "--threads", str(threads))
    cooldown = ("--steps", str(STEPS), "--cooldown", str(COOLDOWN))
    learned = exact / "vae.safetensors"
    return (
        Stage("linear", (f"{lab}.linear", *train, "--run", str(run)), run / "linear.safetensors"),
        Stage("portraits", (f"{lab}.portraits", *train, "--run", str(run)), run / "portraits.pt"),
        Stage(
            "denoiser",
            (f"{lab}.train", *train, "--out", str(run / "denoiser"), *cooldown),
            run / "denoiser" / DONE,
            ("linear", "portraits"),
        ),
        Stage("decoder-exact", (f"{lab}.decoder", *train, "--out", str(exact)), exact / "figures.json", ("linear",)),
        Stage(
            "decoder",
            (f"{lab}.decoder", *train, "--out", str(made), "--start", str(learned), "--made"),
            made / "figures.json",
            ("decoder-exact", "portraits"),
        ),
        # last, since a training that finds the tones there draws scenes in them
        Stage(
            "tones",
            (f"{lab}.tones", *images, "--run", str(run)),
            run / "tones.safetensors",
            ("denoiser", "decoder"),
        ),
    )


def carry_out(plan: Sequence[Stage], logs: Path, *, jobs: int) -> dict[str, float]:
    """Run the commands of all stages that are not done, each as soon as those that it needs are.

    Args:
        plan: The stages, in the order in which those that can begin do.
        logs: Folder for what they say, ``NAME.log``.
        jobs: How many side by side.

    Returns:
        The seconds of each stage that ran.

    Raises:
        BackendError: A command failed; those beside it were asked to end.
        KeyboardInterrupt: This process was asked to end, and so were they.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    seconds: dict[str, float] = {}
    with interrupts.held() as is_asked_to_stop:
        try:
            while True:
                for name, (process, began) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    stage = next(one for one in plan if one.name == name)
                    if code or not stage.result.exists():
                        raise BackendError(f"stage `{name}` ended with code {code}: see {logs / name}.log")
                    seconds[name] = time.monotonic() - began
                    log.info("%s: done in %.1f min", name, seconds[name] / 60)
                if is_asked_to_stop():
                    raise KeyboardInterrupt
                done = {stage.name for stage in plan if stage.name not in running and stage.result.exists()}
                if len(done) == len(plan):
                    return seconds
                for stage in plan:
                    ready = stage.name not in done | running.keys() and done.issuperset(stage.needs)
                    if ready and len(running) < jobs:
                        log.info("%s: begins", stage.name)
                        with (logs / f"{stage.name}.log").open("ab") as said:
                            process = subprocess.Popen(
                                [sys.executable, "-m", *stage.command],
                                stdout=said,
                                stderr=subprocess.STDOUT,
                                start_new_session=True,  # Ctrl-C comes to this process, and from here to each once
                            )
                        running[stage.name] = (process, time.monotonic())
                time.sleep(LOOK_S)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()


def make(data: Path, run: Path, out: Path, *, jobs: int = 1, threads: int = 1) -> dict[str, int]:
    """Make the files; see the module.

    Args:
        data: Folder for the images.
        run: Folder for what is trained.
        out: Folder for the files of the model.
        jobs: Stages side by side.
        threads: Of each.

    Returns:
        Sizes of the files in bytes by name.

    Raises:
        BackendError: A stage failed.
        KeyboardInterrupt: The process was asked to end, and what there is of the stages in work is written.
    """
    emoji.fetch(data)
    emoji.decode(data, side=SOURCE_SIDE)
    carry_out(stages(data, run, threads=threads), run, jobs=jobs)
    return package(Trained(run), out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="stages side by side (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="of each (default 1)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of the stages: those side by side would spin
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    try:
        made = make(options.data, options.run, options.out, jobs=options.jobs, threads=options.threads)
    except BackendError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoints")
    sys.stdout.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
