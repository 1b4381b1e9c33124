"""Which cases take long, measured: `PYTHONPATH=tests python -m pytest -p processor_seconds -n 3`, on quiet cores.

Adds the cases that took ``LONG_S`` processor seconds or more to `tests/long_cases.txt`. ``conftest.py`` counts these as
slow, so that `make test` leaves them to `make test-all`; what proves parity, the frozen numbers, the house's contracts
and the fuzzers are never listed.
"""

from __future__ import annotations

import resource
from collections.abc import Generator
from pathlib import Path

import pytest

LONG_S = 2.0
LIST = Path(__file__).with_name("long_cases.txt")
NEVER = ("tests/parity/", "tests/frozen/", "tests/contracts/", "fuzz")


def cases() -> set[str]:
    """The cases that are listed."""
    return set(LIST.read_text(encoding="utf-8").splitlines())


def used() -> float:
    """Processor seconds of this process and of those that it waited for."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    begun = used()
    result = yield
    if used() - begun >= LONG_S and not any(word in item.nodeid for word in NEVER):
        with LIST.open("a", encoding="utf-8") as file:  # processes of `pytest -n` add to one file, a line at a time
            file.write(f"{item.nodeid}\n")
    return result
