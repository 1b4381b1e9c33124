"""How the whole suite runs: which tests share a process, and what the collection of garbage passes over."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# Files whose tests start groups of processes and wait for them, or end them: one after the other, never two at once.
OF_PROCESSES = (
    "train/test_scale_processes.py",
    "parallel/test_ends.py",
    "parallel/test_schemes.py",
    "parallel/test_official_launch.py",
    "parallel/test_many_prompts.py",
    "batch/test_ray.py",
    "cli/test_cli_generate.py",
    "cli/test_cli_processes.py",
    "weights_locate/test_hub_download.py",
    "weights_locate/test_lora_download.py",
    "serve/test_api.py",
    "serve/test_client.py",
    "serve/test_kills.py",
    "serve/test_openai_clients.py",
    "serve/test_schema.py",
    "serve/test_security.py",
    "serve/test_serve_pages.py",
)


# Defaults that somebody set for the command line on this machine are none of the tests'.
os.environ["XDG_CONFIG_HOME"] = os.devnull
# Nor are the jobs that somebody's commands and servers keep.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="kandinsky-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)


def starts_processes(node: str) -> bool:
    return node.partition("::")[0].endswith(OF_PROCESSES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest group comes first, so that no process of `pytest -n` ends long before the other."""
    items.sort(key=lambda item: not starts_processes(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A file's tests stay together, in one process with its fixtures; those that start groups are as one file."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "processes" if starts_processes(nodeid) else super()._split_scope(nodeid)

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
