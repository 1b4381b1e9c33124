"""The official Kandinsky Video 1.1 door: one factory and the pipeline it returns.

Arguments, defaults and results are the official ones, and a seed beside them; scales of the first frame and of the
interpolation count from 0 here. Nothing is fetched: what is missing is named, with the command that fetches it.
Source: ai-forever/KandinskyVideo@914eac1, kandinsky_video/__init__.py, t2v_pipeline.py.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky import cards
from kandinsky.compat.official_call import progress_bar
from kandinsky.errors import RequestError
from kandinsky.pipelines import loading
from kandinsky.runtime.placement import place

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from kandinsky.pipelines.generation import GenerationPipeline

MODEL = "kandinsky-video-1.1"
# official names of the networks → ours
DEVICE_KEYS = {"unet": "dit", "interpolation_unet": "interpolation", "text_encoder": "text", "movq": "vae"}
LEVELS = 1000


def get_T2V_pipeline(  # noqa: N802 - an official name
    device_map: str | torch.device | Mapping[str, str | torch.device], cache_dir: str | None = None
) -> KandinskyVideoT2VPipeline:
    """All networks as one pipeline; each is read when its stage is reached.

    Args:   device_map: one device, or devices for `unet`, `interpolation_unet`, `text_encoder` and `movq`.
            cache_dir: a folder with the official files; without it, and where it is not there, the places
            `kandinsky download kandinsky-video-1.1` fills.
    Raises: RequestError for a key that is missing or too many; BackendError for a device; WeightsError naming a file.
    """
    if isinstance(device_map, Mapping):
        if wrong := sorted(set(device_map) ^ set(DEVICE_KEYS)):
            fault = "does not know" if wrong[0] in device_map else "lacks"
            known = ", ".join(f"`{name}`" for name in DEVICE_KEYS)
            raise RequestError(f"device_map {fault} `{wrong[0]}`: give {known}")
        places = {DEVICE_KEYS[key]: place(str(device)) for key, device in device_map.items()}
    else:
        places = loading.places_for(str(device_map))
    root = Path(cache_dir).expanduser() if cache_dir is not None else None
    dtype = "float16" if places["dit"].type == "cuda" else "float32"
    card = cards.find(MODEL)
    is_there = root is not None and root.is_dir()
    return KandinskyVideoT2VPipeline(loading.build(card, root=root if is_there else None, places=places, dtype=dtype))


class KandinskyVideoT2VPipeline:
    """What the factory returns: callable with the official arguments.

    ``pipeline`` is this library's own; ``seed`` is the seed last used.
    """

    def __init__(self, pipeline: GenerationPipeline) -> None:
        self.pipeline = pipeline
        self.seed: int | None = None

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        image: Any = None,
        width: int = 512,
        height: int = 512,
        fps: str = "low",
        motion: str = "normal",
        key_frame_guidance_scale: float = 5.0,
        guidance_weight_prompt: float = 5.0,
        guidance_weight_image: float = 2.0,
        interpolation_guidance_scale: float = 0.5,
        noise_augmentation: int = 20,
        seed: int | None = None,
    ) -> list[Image.Image]:
        """Make one clip.

        Args:    negative_prompt: what to keep away from; the official code takes it and does nothing with it.
                 image: the first frame.   fps: `low`, `medium` or `high`: 12, 45 or 177 frames.
                 motion: `low`, `medium` (also `normal`), `high` or `extreme`.
                 key_frame_guidance_scale: of a first frame made from the prompt.   guidance_weight_prompt,
                 guidance_weight_image: of prompt and first frame in the key frames.
                 noise_augmentation: level of noise in the first frame, 0 to 999.   seed: drawn when not given.
        Returns: the frames.
        Raises:  RequestError for an illegal size, name or number, before anything is loaded.
        """
        with progress_bar(True) as on_step:
            video = self._with(key_frame_guidance_scale, noise_augmentation)(
                prompt,
                image=image,
                width=width,
                height=height,
                fps=fps,
                motion=motion,
                guidance=guidance_weight_prompt,
                image_guidance=guidance_weight_image,
                interpolation_guidance=interpolation_guidance_scale + 1,
                negative_prompt=negative_prompt,
                seed=seed,
                on_step=on_step,
            )
        self.seed = video.seed
        return video.images

    def _with(self, guidance: float, noise_level: int) -> GenerationPipeline:
        """The pipeline with other values for the first frame; networks are shared."""
        if isinstance(noise_level, bool) or not isinstance(noise_level, int) or not 0 <= noise_level < LEVELS:
            raise RequestError(f"noise_augmentation `{noise_level}` is not a level: use 0 to {LEVELS - 1}")
        if guidance < 0:
            raise RequestError(f"key_frame_guidance_scale `{guidance}` is below 0: use 0 for none")
        keyframes = self.pipeline.card.keyframes
        assert keyframes is not None
        assert keyframes.first_frame is not None
        first = dataclasses.replace(keyframes.first_frame, guidance=guidance + 1, noise_level=noise_level)
        other = copy.copy(self.pipeline)
        other.card = dataclasses.replace(
            self.pipeline.card, keyframes=dataclasses.replace(keyframes, first_frame=first)
        )
        return other
