"""The packages that Parquet files are read and written with, imported late; no torch."""

from __future__ import annotations

from types import ModuleType

from kandinsky.errors import BackendError


def arrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        BackendError: They are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BackendError(
            "data sets need the package `pyarrow`", hint="pip install 'kandinsky-video[data]'"
        ) from error
    return pyarrow, pyarrow.parquet
