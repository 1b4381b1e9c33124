"""Whether tests repeat what they prove as often as they can: more kills, more steps, every combination of processes.

Each statement is proved either way. `make test-thorough` asks for all of it.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
THOROUGH = os.environ.get("KANDINSKY_TEST_THOROUGH") == "1"


def of(few: T, all_: T) -> T:
    """What a test takes: ``few`` usually, ``all_`` in a thorough run."""
    return all_ if THOROUGH else few
