"""`kandinsky bench`: where the time of a generation goes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kandinsky import cards


def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="Catalogue id, see `kandinsky models`.")] = (
        cards.DEFAULT_MODEL
    ),
    runs: Annotated[int, typer.Option("--runs", min=1, help="Measured runs of each stage, after one to warm up.")] = 3,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length of the clip.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure each stage of a generation: median, spread, achieved rate, share of the matrix-product rate, memory."""
    from dataclasses import asdict

    from kandinsky.evaluate.bench import bench as measure

    report = measure(model, runs=runs, device=device, dtype=dtype, request={"seconds": seconds, "steps": steps})
    if as_json:
        stages = [asdict(stage) | {"rate": stage.rate} for stage in report.stages]
        print(json.dumps(asdict(report) | {"stages": stages}))
        return
    print(f"{report.model} on {report.device} in {report.dtype}, {report.runs} runs")
    print(f"{'stage':<20}{'median s':>10}{'spread s':>10}{'GFLOP/s':>10}{'of matmul':>11}")
    for stage in report.stages:
        rate = f"{stage.rate / 1e9:>10.1f}{stage.rate / report.matmul_rate:>11.0%}" if stage.flops else ""
        print(f"{stage.name:<20}{stage.median_s:>10.3f}{stage.spread_s:>10.3f}{rate}")
    print(f"matrix products reach {report.matmul_rate / 1e9:.1f} GFLOP/s")
    device_peak = f", {report.peak_device_bytes / 1e9:.2f} GB on the device" if report.peak_device_bytes else ""
    print(f"peak memory {report.peak_host_bytes / 1e9:.2f} GB on the host{device_peak}")
