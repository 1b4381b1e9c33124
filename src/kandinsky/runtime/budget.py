"""Amounts of memory, and which placement stays within one. Imports no torch."""

from __future__ import annotations

import re

from kandinsky.errors import RequestError

OFFLOADS = ("none", "module", "block")
_UNITS = {"g": 10**9, "gb": 10**9, "gib": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20}
LEAST_MEMORY, MOST_MEMORY = 10**8, 10**14


def check_offload(name: str) -> None:
    """Refuse an unknown placement.

    Raises:
        RequestError: The name is not in ``OFFLOADS``.
    """
    if name not in OFFLOADS:
        raise RequestError(f"offload `{name}` is not available: use `none`, `module` or `block`")


def parse_memory(text: str) -> int:
    """Bytes of an amount of memory such as `12GB`, `12` or `11.5 GiB`; a bare number is in gigabytes.

    Raises:
        RequestError: The text is not an amount, or no device has that amount.
    """
    return parse_bytes(text, "memory", least=LEAST_MEMORY, most=MOST_MEMORY)


def parse_bytes(text: str, what: str, *, least: int = 1, most: int = 10**18) -> int:
    """Bytes of an amount such as `100MB`; a bare number is in gigabytes.

    Args:
        text: The amount.
        what: What it is of, for messages.
        least: The smallest allowed.
        most: The largest allowed.

    Returns:
        Bytes.

    Raises:
        RequestError: The text is not an amount, or it is out of range.
    """
    found = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(gb|gib|g|mb|mib|m)?\s*", str(text).lower())
    if found is None:
        raise RequestError(f"{what} `{text}` is not an amount: write it as `12GB` or `11.5GiB`")
    amount = int(float(found[1]) * _UNITS[found[2] or "gb"])
    if not least <= amount <= most:
        raise RequestError(f"{what} `{text}` is out of range: use {gigabytes(least)} to {most // 10**9:,} GB")
    return amount


def gigabytes(count: float) -> str:
    """Bytes as people read them: `0.04 GB`, `24.2 GB`."""
    value = count / 1e9
    return f"{value:.2f} GB" if value < 1 else f"{value:.1f} GB"
