import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny.fixtures import *  # noqa: F403

OFFICIAL = Path(__file__).parents[2] / "official"


@pytest.fixture
def script() -> Callable[[str], dict[str, Any]]:
    """The names of a script of `official/`, without running it."""
    return lambda name: runpy.run_path(str(OFFICIAL / name))
