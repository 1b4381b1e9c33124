"""How the whole suite runs: which tests share a process, and what the collection of garbage passes over."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

from processor_seconds import cases

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# Tests that start processes and wait for them, or end them: those of a group one after the other, in one process of
# `pytest -n`, so that they share a server and never more than one group of processes is at work beside one server.
GROUPS = {
    "processes": (
        "train/test_scale_processes.py",
        "train/test_recipe_processes.py",
        "parallel/test_ends.py",
        "parallel/test_schemes.py",
        "parallel/test_many_prompts.py",
        "batch/test_ray.py",
        "curate/test_curate_ray.py",
        "cli/test_cli_generate.py",
        "cli/test_cli_processes.py",
        "weights_locate/test_hub_download.py",
        "weights_locate/test_lora_download.py",
    ),
    "servers": ("/serve/", "comfy_pack/test_remote.py"),
}


# The same examples each time; no test measures wall time.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


# Defaults that somebody set for the command line on this machine are none of the tests'.
os.environ["XDG_CONFIG_HOME"] = os.devnull
# Servers of tests make no requests of other tests.
os.environ["XDG_RUNTIME_DIR"] = os.devnull
# Nor are the jobs that somebody's commands and servers keep.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="kandinsky-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)


# Processes inherit what is ignored: jobs in the background ignore one of these, those of `nohup` the other, and the
# tests that send them would wait for ever.
for ignored in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL)


def group_of(node: str) -> str | None:
    """The group of a test; None = it starts no processes."""
    path = node.partition("::")[0]
    return next((name for name, parts in GROUPS.items() if any(part in path for part in parts)), None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What was measured to take long is slow; the longest groups come first, so that all processes end together."""
    long = cases()
    for item in items:
        if item.nodeid in long:
            item.add_marker(pytest.mark.slow)
    order = [*GROUPS, None]
    items.sort(key=lambda item: order.index(group_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A file's tests stay together, in one process with its fixtures; those of a group are as one file."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid) or super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # else files of many tests come first
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="module")
def settled() -> Iterator[None]:
    """What lives when a file begins, all modules above all, is passed over when a pipeline collects garbage.

    A collection that looks through torch, transformers and diffusers takes half a second, and there are hundreds.
    """
    gc.collect()
    gc.freeze()
    yield
