"""`kandinsky extract`: the difference of two models as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.streams import emit, say


def extract(
    base: Annotated[Path, typer.Argument(help="Weights before the training.")],
    tuned: Annotated[Path, typer.Argument(help="Weights after it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in the official layout, or a `.safetensors` file.")
    ],
    rank: Annotated[int, typer.Option("--rank", help="Rank of the LoRA.")] = 32,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 | bfloat16 | float16.")] = "bfloat16",
) -> None:
    """Extract a LoRA from two models: what training changed, at a low rank."""
    from kandinsky.files import check_writable
    from kandinsky.weights.soup import extract as extracted

    check_writable(output)
    written, kept = extracted(base, tuned, output, rank=rank, dtype=dtype)
    say(f"rank {rank} keeps {kept:.1%} of the difference")
    emit(written)
