"""``kandinsky evaluate ID``: the model's own measures, by its task and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

# What each evaluation is called with: the loaded pipeline, and options.
EVALUATED = ("nano-t2v",)


def evaluate(
    model: str,
    *,
    cache: Path | str = ".cache/nano",
    prompts: int | None = None,
    batch: int = 16,
    seed: int = 0,
    dtype: str | None = None,
    sheet: Path | str | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a model on prompts it was never trained with.

    Args:   cache: where ``kandinsky data nano`` put the real clips.   prompts: number a group; None = all.
            dtype: compute type, as ``load`` takes it; the autoencoder is measured in float32 whatever it is.
            sheet: write a contact sheet of clips from all groups there.
    Returns: ``groups`` (figures by group), ``autoencoder``, ``seconds_a_clip`` (in batches), ``seconds_cold`` (one
            clip through the command line, start-up included), ``settings``.
    Raises: RequestError for a model that has no evaluation, or where the real clips are missing.
    """
    if model not in EVALUATED:
        raise RequestError(f"there is no evaluation for `{model}`: use {', '.join(f'`{name}`' for name in EVALUATED)}")
    import numpy as np
    import torch

    from kandinsky.data.concepts import load_concepts
    from kandinsky.data.nano import Clips
    from kandinsky.evaluate import nano
    from kandinsky.pipelines.loading import load
    from kandinsky.pipelines.request import parse_size
    from kandinsky.types import Request

    pipe = load(model, dtype=dtype)
    width, height = parse_size(pipe.card.clip.default_size)
    judge = nano.NanoJudge(Clips(Path(cache)), load_concepts(), side=height)
    shown: list[np.ndarray] = []

    def generate(texts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        requests = [Request(model, text, seed=one) for text, one in zip(texts, seeds, strict=True)]
        videos = pipe.run_batch([pipe.resolve(request) for request in requests])
        shown.append(videos[0].frames_THWC)
        return np.stack([video.frames_THWC for video in videos])

    groups, seconds = nano.judge_groups(
        judge, generate, nano.choose_prompts(prompts), batch=batch, seed=seed, on_batch=on_batch
    )
    with load(model, dtype="float32").placement.hold("vae") as vae:
        autoencoder = nano.judge_autoencoder(Path(cache), vae, side=height)
    if sheet:
        _sheet(shown, Path(sheet))
    sampling = pipe.card.sampling
    return {
        "model": model,
        "groups": {name: asdict(figures) for name, figures in groups.items()},
        "autoencoder": autoencoder,
        "seconds_a_clip": seconds,
        "seconds_cold": cold_start(model),
        "settings": {
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "shift": sampling.shift,
            "seed": seed,
            "dtype": pipe.precision.name,
            "threads": torch.get_num_threads(),
            "size": f"{width}x{height}",
        },
    }


def _sheet(clips: list[np.ndarray], target: Path, *, rows: int = 12, frames: int = 6) -> None:
    """Up to two columns of ``rows`` clips, evenly taken from all, each as ``frames`` frames."""
    from PIL import Image

    from kandinsky.media.sheet import GAP_PX, contact_sheet

    step = max(1, len(clips) // (2 * rows))
    strips = [contact_sheet(clip, columns=frames) for clip in clips[::step][: 2 * rows]]
    width, height = strips[0].width + GAP_PX, strips[0].height + GAP_PX
    whole = Image.new("RGB", (2 * width, -(-len(strips) // 2) * height), "white")
    for number, strip in enumerate(strips):
        whole.paste(strip, (number % 2 * width, number // 2 * height))
    whole.quantize(256).save(target, optimize=True)


def cold_start(model: str) -> float:
    """Seconds from starting the command to having a clip on disk, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kandinsky", "generate", "a panda waves on a blue background", "-m", model]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--seed", "1", "-o", str(Path(folder) / "clip.mp4"), "--quiet"],
            capture_output=True,
            text=True,
            env=os.environ.copy(),
        )
        if done.returncode:
            raise RequestError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return time.monotonic() - began


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table, for the terminal and the model card."""
    lines = [
        "| prompts | number | candidates | retrieval@1 | @5 | background colour | motion against real |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, f in result["groups"].items():
        lines.append(
            f"| {name} | {f['prompts']} | {f['candidates']} | {f['retrieval_1']:.1%} | {f['retrieval_5']:.1%} "
            f"| {f['colour']:.1%} | {f['motion_ratio']:.2f} |"
        )
    a = result["autoencoder"]
    lines += [
        "",
        f"autoencoder on {a['clips']:.0f} clips never trained on: {a['psnr_db']:.1f} dB "
        f"(worst {a['psnr_worst_db']:.1f}), block edges {a['block_edges_decoded']:.2f} "
        f"(real clips {a['block_edges_real']:.2f})",
        f"seconds a clip: {result['seconds_a_clip']:.2f} in batches, {result['seconds_cold']:.1f} from the command "
        "line, start-up included",
        f"settings: {json.dumps(result['settings'])}",
    ]
    return "\n".join(lines)
