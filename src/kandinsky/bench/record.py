"""The figures of this processor as one file, for `docs/benchmarks`: `python -m kandinsky.bench.record FOLDER`.

About ten minutes of processor time of one thread. ``bench.page`` makes the page of all such files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kandinsky.bench.items import Item, Run, apart, measured
from kandinsky.runtime import threads

_BENCH = ("-m", "kandinsky", "bench")
LITE = "kandinsky5-lite-t2v-sft-5s"
SMALL_TEXT = (
    "dit.in_text_dim=64", "dit.in_text_dim2=64", "text.qwen_layers=1", "text.clip_layers=1", "text.vocabulary=500",
)  # fmt: skip


def changes(*texts: str) -> tuple[str, ...]:
    """`--set` for each hyper-parameter."""
    return tuple(word for text in texts for word in ("--set", text))


def dit(width: int, frames: int, dtype: str, repeats: int) -> Item:
    """Kandinsky 5's transformer of two visual blocks, at a width and 1,024 tokens a frame, beside Diffusers'."""
    seconds = "0" if frames == 1 else f"{4 * (frames - 1) / 24:g}"
    sizes = (f"dit.model_dim={width}", f"dit.ff_dim={4 * width}", "dit.num_visual_blocks=2", "dit.num_text_blocks=1")
    words = (
        *_BENCH, LITE, "--random-weights", "--against", "diffusers", "--stages", "dit", "--device", "cpu",
        "--dtype", dtype, "--size", "512x512", "--seconds", seconds, "--steps", "1", "--repeats", str(repeats),
        *changes(*sizes, "dit.time_dim=64", *SMALL_TEXT), "--json",
    )  # fmt: skip
    return Item(f"Kandinsky 5, width {width}, {frames * 1024:,} tokens, {dtype}", words, 1800.0)


def dit_of_4(width: int, dtype: str, repeats: int) -> Item:
    """Kandinsky 4's transformer of two blocks at a width and 1,024 tokens, alone: Diffusers has none."""
    sizes = (f"dit.model_dim={width}", f"dit.ff_dim={4 * width}", "dit.num_blocks=2", "text.num_layers=1")
    words = (
        *_BENCH, "kandinsky4-t2v-flash", "--random-weights", "--stages", "dit", "--device", "cpu", "--dtype", dtype,
        "--size", "512x512", "--seconds", "0", "--steps", "1", "--repeats", str(repeats), *changes(*sizes), "--json",
    )  # fmt: skip
    return Item(f"Kandinsky 4, width {width}, 1,024 tokens, {dtype}", words, 1800.0)


def items(repeats: int = 5, *, bfloat16: bool = True) -> list[Item]:
    """What is measured on a processor, most wanted first.

    Args:
        repeats: Rounds of each, after one to warm up.
        bfloat16: Whether the processor has instructions for it; without, a round takes an hour.
    """
    unet = (
        "dit.model_channels=64", "dit.init_channels=32", "dit.time_embed_dim=256", "dit.context_dim=256",
        "dit.groups=16", "dit.head_dim=32", "vae.ch=32", "text.width=256", "text.num_layers=1",
    )  # fmt: skip
    shipped = (*_BENCH, "nano-t2v", "--device", "cpu", "--repeats", str(repeats), "--json")
    found = [
        Item("Nano, a clip, float32", (*shipped, "--dtype", "float32"), 1800.0),
        Item("Nano, a clip, bfloat16", (*shipped, "--dtype", "bfloat16", "--stages", "dit,vae"), 1800.0),
        dit(128, 1, "bfloat16", repeats),
        dit(512, 1, "bfloat16", repeats),
        dit(512, 4, "bfloat16", repeats),
        dit(128, 1, "float32", repeats),
        dit(512, 1, "float32", repeats),
        dit(1792, 1, "bfloat16", repeats),
        Item(
            "Kandinsky 3, U-Net and MoVQ, width 64 to 512, 256x256, float32",
            (*_BENCH, "--model=kandinsky3.0", "--random-weights", "--against", "diffusers", "--stages", "dit,vae",
             "--device", "cpu", "--dtype", "float32", "--size", "256x256", "--steps", "2", "--repeats", str(repeats),
             *changes(*unet), "--json"),
            1800.0,
        ),
        dit_of_4(512, "bfloat16", repeats),
        dit_of_4(512, "float32", repeats),
        dit(512, 4, "float32", repeats),
        dit(128, 4, "bfloat16", repeats),
        dit(128, 12, "bfloat16", repeats),
        dit(1792, 1, "float32", repeats),
        dit(512, 12, "bfloat16", repeats),
        dit(1792, 4, "bfloat16", repeats),
    ]  # fmt: skip
    return [item for item in found if bfloat16 or "bfloat16" not in item.name]


def facts(device: str = "cpu") -> dict[str, Any]:
    """The machine, and the rate of its matrix products in each type."""
    from kandinsky.bench.machine import machine, rates

    return {"machine": machine(device), "rates": rates(device)}


def written(
    items: Sequence[Item], folder: Path, facts: Callable[[], dict[str, Any]], *, budget_s: float, run: Run
) -> int:
    """Measure into the file of this machine in a folder, and print its name; see ``measured``.

    Returns:
        The exit code.
    """
    from kandinsky.bench.machine import file_of

    path = measured(
        items,
        lambda machine: file_of(machine, folder),
        facts,
        budget_s=budget_s,
        run=run,
        say=lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201 - a command
    )
    sys.stdout.write(f"{path}\n")
    return 0


def main(arguments: Sequence[str] | None = None, *, run: Run = apart) -> int:
    """Run one command line; ``run`` as for ``measured``."""
    threads.prepare()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of result files, as docs/benchmarks")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds of each, after one warm-up")
    parser.add_argument("--seconds", type=float, default=3600.0, help="longest time for everything")
    given = parser.parse_args(arguments)
    from kandinsky.runtime.devices import multiplies_bfloat16

    chosen = items(given.repeats, bfloat16=multiplies_bfloat16("cpu"))
    return written(chosen, given.folder, facts, budget_s=given.seconds, run=run)


if __name__ == "__main__":
    sys.exit(main())
