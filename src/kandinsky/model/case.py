"""Golden cases: what a conformance runner is handed and gives back. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    # runs the component of a case; gives the outputs by name
    Runner = Callable[[Any], Mapping[str, Tensor]]
