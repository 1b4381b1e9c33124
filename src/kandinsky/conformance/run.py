"""Finds cases, hands each to its component's runner, and compares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kandinsky.conformance import images, kandinsky4, kandinsky5, nabla, sound, unets
from kandinsky.conformance.cases import Case, NotBuilt, Result, Status, ToleranceRule, compare, find
from kandinsky.conformance.manifests import check_manifest
from kandinsky.errors import KandinskyError

RUNNERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "kandinsky3.sample": unets.run_sample_kandinsky3,
    "kandinsky3.unet": unets.run_unet,
    "kandinsky4.dit": kandinsky4.run_dit,
    "kandinsky4.sample": kandinsky4.run_sample,
    "kandinsky4.scheduler": kandinsky4.run_scheduler,
    "kandinsky4.text_embedder": kandinsky4.run_text_embedder,
    "kandinsky4.v2a_frame_transform": sound.run_frame_transform,
    "kandinsky4.v2a_sample": sound.run_sample,
    "kandinsky4.v2a_scheduler": sound.run_scheduler,
    "kandinsky4.v2a_spectrogram": sound.run_spectrogram,
    "kandinsky4.v2a_unet": sound.run_unet,
    "kandinsky4.v2a_video_preprocess": sound.run_video_preprocess,
    "kandinsky4.vae": kandinsky4.run_vae,
    "kandinsky5.dit": kandinsky5.run_dit,
    "kandinsky5.fractal": nabla.run_fractal,
    "kandinsky5.lora": kandinsky5.run_lora,
    "kandinsky5.magcache_schedule": kandinsky5.run_magcache_schedule,
    "kandinsky5.nabla_mask": nabla.run_nabla_mask,
    "kandinsky5.normalize_first_frame": images.run_normalize_first_frame,
    "kandinsky5.preprocess_image": images.run_preprocess_image,
    "kandinsky5.sample": kandinsky5.run_sample,
    "kandinsky5.timesteps": kandinsky5.run_timesteps,
    "kandinsky5.vae": kandinsky5.run_vae,
    "kandinsky_video1.interpolate": unets.run_interpolate,
    "kandinsky_video1.interpolate_v11": unets.run_interpolate_1_1,
    "kandinsky_video1.interpolation_unet": unets.run_interpolation,
    "kandinsky_video1.interpolation_unet_v11": unets.run_interpolation_1_1,
    "kandinsky_video1.movq": unets.run_movq,
    "kandinsky_video1.sample": unets.run_sample,
    "kandinsky_video1.sample_v11": unets.run_sample_1_1,
    "kandinsky_video1.text_condition": unets.run_text_condition,
    "kandinsky_video1.unet": unets.run_keyframes,
    "kandinsky_video1.unet_v11": unets.run_keyframes_1_1,
    "kandinsky_video1.video_movq": unets.run_movq,
}

TOLERANCES: dict[str, ToleranceRule] = {"kandinsky4.v2a_spectrogram": sound.spectrogram_tolerance}


def check(paths: Iterable[Path]) -> Iterator[Result]:
    """Run all cases at or below ``paths``, each once, in order.

    Raises: RequestError, before the first case runs, for a path without cases.
    """
    found = list(dict.fromkeys(entry for path in paths for entry in find(path)))
    return (_check_one(entry) for entry in found)


def _check_one(entry: Path) -> Result:
    start = time.perf_counter()
    result = check_manifest(entry, str(entry)) if entry.is_file() else _check_case(entry)
    return replace(result, seconds=time.perf_counter() - start)


def _check_case(folder: Path) -> Result:
    def failed(component: str, reason: str) -> Result:
        return Result(Status.FAIL, component, str(folder), float("inf"), float("inf"), reason=reason)

    try:
        case = Case.read(folder)
    except KandinskyError as error:
        return failed("unknown", str(error))
    runner = RUNNERS.get(case.component)
    if runner is None:
        return Result(Status.SKIP, case.component, str(folder), reason="this component is not built yet")
    try:
        with torch.inference_mode():
            expected = case.required_outputs()
            fields = compare(
                runner(case),
                expected,
                rtol=case.rtol,
                atol=case.atol,
                mean_abs=case.mean_abs,
                rule=TOLERANCES.get(case.component),
            )
    except NotBuilt as error:
        return Result(Status.SKIP, case.component, str(folder), reason=str(error))
    except KandinskyError as error:
        return failed(case.component, str(error))
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        # a case that breaks a runner is a failed case, and the others still run
        return failed(case.component, f"{type(error).__name__}: {error}")
    return Result(component=case.component, path=str(folder), **fields)
