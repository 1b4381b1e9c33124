"""The official Kandinsky 5.0 interface: ``get_{T2V,I2V,T2I,I2I}_pipeline`` and the pipelines they return.

Arguments, defaults and results are the official ones; the work is done by ``kandinsky.engine``. What the official code
offers and this version does not support is refused.
Source: kandinskylab/kandinsky-5@6e2a805, kandinsky/utils.py; kandinsky/{t2v,i2v,t2i,i2i}_pipeline.py.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kandinsky import catalogue
from kandinsky.compat import official_files
from kandinsky.compat.official_adapters import OfficialAdapters
from kandinsky.compat.official_call import at_path, devices_of, in_company, one_target, progress_bar
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.model.card import Card
from kandinsky.model.values import Request, Video

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from kandinsky.engine.pipeline import GenerationPipeline

    Device: TypeAlias = str | torch.device
    DeviceMap: TypeAlias = Device | dict[str, Device]

# What the factories load without ``conf_path``. The official one for I2V looks for a file that does not exist.
BUILT_IN = {
    "text-to-video": "kandinsky5-lite-t2v-sft-5s",
    "image-to-video": "kandinsky5-lite-i2v-5s",
    "text-to-image": "kandinsky5-lite-t2i",
    "image-editing": "kandinsky5-lite-i2i",
}
ENGINES = ("auto", "flash_attention_2", "flash_attention_3", "sage", "sdpa")
SEED_LIMIT = 2**32 - 1


def get_T2V_pipeline(  # noqa: N802 - the official name
    device_map: DeviceMap,
    cache_dir: str = "./weights/",
    dit_path: str | None = None,
    text_encoder_path: str | None = None,
    text_encoder2_path: str | None = None,
    vae_path: str | None = None,
    conf_path: str | None = None,
    offload: bool = False,
    magcache: bool = False,
    quantized_qwen: bool = False,
    text_token_padding: bool = True,
    attention_engine: str = "auto",
    *,
    resolution: int | None = None,
) -> Kandinsky5T2VPipeline:
    """The official factory for text to video.

    Args:
        device_map: One device, or devices for `dit`, `vae` and `text_embedder`; never changed.
        cache_dir: Folder with the official `model/`, `vae/`, `text_encoder/`, `text_encoder2/`. Nothing is downloaded:
            missing files are named.
        dit_path: File to use instead.
        text_encoder_path: Folder to use instead.
        text_encoder2_path: Folder to use instead.
        vae_path: File or folder to use instead.
        conf_path: An official YAML file, or the name of one; then ``cache_dir`` and the paths are not used.
        offload: Hold each network on its device only while it runs.
        magcache: Skip passes, by the configuration's calibration.
        quantized_qwen: Qwen's weights in 4 bits, or 8 without CUDA.
        text_token_padding: Pad the text to its full length under a mask; False does not pad. Same result.
        attention_engine: `auto`, `sdpa`, `flash_attention_2`, `flash_attention_3` or `sage`.
        resolution: Second argument of the first release; only by name here, and 512.

    Returns:
        The pipeline, callable with the official arguments.

    Raises:
        RequestError: A value or key is not known.
        BackendError: A device or kernel is not available.
        WeightsError: A file is missing; the message names it.
    """
    if isinstance(cache_dir, int):
        raise RequestError(f"cache_dir is `{cache_dir}`: give `resolution` by name, as `resolution={cache_dir}`")
    if resolution not in (None, 512):
        raise RequestError(f"resolution `{resolution}` is not available: use 512, or a `conf_path` of another class")
    files = _Files(cache_dir, dit_path, text_encoder_path, text_encoder2_path, vae_path, conf_path)
    options = _Options(offload, magcache, quantized_qwen, text_token_padding, attention_engine)
    return Kandinsky5T2VPipeline(_open("text-to-video", device_map, files, options))


def get_I2V_pipeline(  # noqa: N802 - the official name
    device_map: DeviceMap,
    cache_dir: str = "./weights/",
    dit_path: str | None = None,
    text_encoder_path: str | None = None,
    text_encoder2_path: str | None = None,
    vae_path: str | None = None,
    conf_path: str | None = None,
    offload: bool = False,
    magcache: bool = False,
    quantized_qwen: bool = False,
    text_token_padding: bool = True,
    attention_engine: str = "auto",
) -> Kandinsky5I2VPipeline:
    """The official factory for image to video; see ``get_T2V_pipeline``."""
    files = _Files(cache_dir, dit_path, text_encoder_path, text_encoder2_path, vae_path, conf_path)
    options = _Options(offload, magcache, quantized_qwen, text_token_padding, attention_engine)
    return Kandinsky5I2VPipeline(_open("image-to-video", device_map, files, options))


def get_T2I_pipeline(  # noqa: N802 - the official name
    device_map: DeviceMap,
    resolution: int = 1024,
    cache_dir: str = "./weights/",
    dit_path: str | None = None,
    text_encoder_path: str | None = None,
    text_encoder2_path: str | None = None,
    vae_path: str | None = None,
    conf_path: str | None = None,
    offload: bool = False,
    magcache: bool = False,
    quantized_qwen: bool = False,
    text_token_padding: bool = True,
    attention_engine: str = "auto",
) -> Kandinsky5T2IPipeline:
    """The official factory for text to image; see ``get_T2V_pipeline``. ``resolution`` is 1024."""
    _check_image_resolution(resolution)
    files = _Files(cache_dir, dit_path, text_encoder_path, text_encoder2_path, vae_path, conf_path)
    options = _Options(offload, magcache, quantized_qwen, text_token_padding, attention_engine)
    return Kandinsky5T2IPipeline(_open("text-to-image", device_map, files, options))


def get_I2I_pipeline(  # noqa: N802 - the official name
    device_map: DeviceMap,
    resolution: int = 1024,
    cache_dir: str = "./weights/",
    dit_path: str | None = None,
    text_encoder_path: str | None = None,
    text_encoder2_path: str | None = None,
    vae_path: str | None = None,
    conf_path: str | None = None,
    offload: bool = False,
    magcache: bool = False,
    quantized_qwen: bool = False,
    text_token_padding: bool = True,
    attention_engine: str = "auto",
) -> Kandinsky5I2IPipeline:
    """The official factory for image editing; see ``get_T2V_pipeline``. ``resolution`` is 1024."""
    _check_image_resolution(resolution)
    files = _Files(cache_dir, dit_path, text_encoder_path, text_encoder2_path, vae_path, conf_path)
    options = _Options(offload, magcache, quantized_qwen, text_token_padding, attention_engine)
    return Kandinsky5I2IPipeline(_open("image-editing", device_map, files, options))


class _OfficialPipeline:
    """What the factories return.

    If a launcher started several processes, they work together, and calls return None on all but the first.

    Attributes:
        pipeline: This library's own pipeline.
        seed: The seed last used.
    """

    def __init__(self, pipeline: GenerationPipeline) -> None:
        self.pipeline = pipeline
        self.seed: int | None = None

    def _make(
        self,
        text: str,
        *,
        seed: int | None,
        expand_prompts: bool,
        save_path: str | Sequence[str] | None,
        progress: bool,
        **values: Any,
    ) -> Video:
        """Generate one result, and write it to ``save_path`` if given; ``values`` are fields of ``Request``."""
        target = one_target(save_path)
        seed = secrets.randbelow(SEED_LIMIT) if seed is None else seed
        request = Request(model=self.pipeline.card.id, prompt=text, seed=seed, expand=expand_prompts, **values)
        resolved = self.pipeline.resolve(request)
        if target is not None:
            from kandinsky.media.video import check_target

            check_target(target)
        is_first = self.pipeline.team.is_first
        with progress_bar(progress and is_first) as on_step:
            video = self.pipeline.run(resolved, on_step=on_step)
        self.seed = video.seed
        if target is not None and is_first:
            video.save(target)
        return video

    def _in_official_form(self, video: Video) -> torch.Tensor | list[Image.Image]:
        """uint8 [1, 3, F, H, W] on the autoencoder's device; a still as a list of one PIL image."""
        import torch

        if len(video.frames) == 1:
            return video.images
        frames_TCHW = torch.from_numpy(video.frames).permute(3, 0, 1, 2)
        return frames_TCHW.unsqueeze(0).contiguous().to(self.pipeline.placement.device("vae"))


class Kandinsky5T2VPipeline(OfficialAdapters, _OfficialPipeline):
    """Text to video, callable with the official arguments."""

    def __call__(
        self,
        text: str,
        time_length: int = 5,
        width: int = 768,
        height: int = 512,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance_weight: float | None = None,
        scheduler_scale: float = 10.0,
        negative_caption: str = official_config.VIDEO_NEGATIVE_PROMPT,
        expand_prompts: bool = True,
        save_path: str | Sequence[str] | None = None,
        progress: bool = True,
    ) -> torch.Tensor | list[Image.Image] | None:
        """Generate one clip.

        Args:
            text: The prompt.
            time_length: Seconds; 0 makes an image.
            width: Width in pixels.
            height: Height in pixels.
            seed: Drawn from 0 … 2³²−2 if omitted, see ``seed``.
            num_steps: Sampling steps; None = the configuration's.
            guidance_weight: Classifier-free guidance scale; None = the configuration's.
            scheduler_scale: Timestep shift.
            negative_caption: The negative prompt.
            expand_prompts: Have Qwen expand the prompt first.
            save_path: A file, or a list of one.
            progress: Show a progress bar on stderr.

        Returns:
            uint8 [1, 3, F, H, W] on the autoencoder's device; for ``time_length=0`` a list of one PIL image.

        Raises:
            RequestError: A size, length or path is not allowed; nothing was loaded.
        """
        video = self._make(
            text,
            seconds=time_length,
            width=width,
            height=height,
            seed=seed,
            steps=num_steps,
            guidance=guidance_weight,
            shift=scheduler_scale,
            negative_prompt=negative_caption,
            expand_prompts=expand_prompts,
            save_path=save_path,
            progress=progress,
        )
        return self._in_official_form(video) if self.pipeline.team.is_first else None


class Kandinsky5I2VPipeline(OfficialAdapters, _OfficialPipeline):
    """Image to video, callable with the official arguments."""

    def __call__(
        self,
        text: str,
        image: str | Image.Image,
        time_length: int = 5,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance_weight: float | None = None,
        scheduler_scale: float = 10.0,
        negative_caption: str = official_config.VIDEO_NEGATIVE_PROMPT,
        expand_prompts: bool = True,
        save_path: str | Sequence[str] | None = None,
        progress: bool = True,
    ) -> torch.Tensor | list[Image.Image] | None:
        """Generate one clip that begins with ``image``, a path or a PIL image, whose shape decides the size.

        Other arguments, result and errors are those of ``Kandinsky5T2VPipeline``. A seed makes results reproducible,
        which it does not in the official code.
        """
        video = self._make(
            text,
            image=image,
            seconds=time_length,
            seed=seed,
            steps=num_steps,
            guidance=guidance_weight,
            shift=scheduler_scale,
            negative_prompt=negative_caption,
            expand_prompts=expand_prompts,
            save_path=save_path,
            progress=progress,
        )
        return self._in_official_form(video) if self.pipeline.team.is_first else None


class Kandinsky5T2IPipeline(_OfficialPipeline):
    """Text to image, callable with the official arguments."""

    def __call__(
        self,
        text: str,
        width: int = 1024,
        height: int = 1024,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance_weight: float | None = None,
        scheduler_scale: float = 3.0,
        negative_caption: str = "",
        expand_prompts: bool = True,
        save_path: str | Sequence[str] | None = None,
        progress: bool = True,
    ) -> list[Image.Image] | None:
        """Generate one image: a list of one PIL image. Arguments and errors as in ``Kandinsky5T2VPipeline``."""
        video = self._make(
            text,
            width=width,
            height=height,
            seed=seed,
            steps=num_steps,
            guidance=guidance_weight,
            shift=scheduler_scale,
            negative_prompt=negative_caption,
            expand_prompts=expand_prompts,
            save_path=save_path,
            progress=progress,
        )
        return video.images if self.pipeline.team.is_first else None


class Kandinsky5I2IPipeline(_OfficialPipeline):
    """Image editing, callable with the official arguments."""

    def __call__(
        self,
        text: str,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance_weight: float | None = None,
        scheduler_scale: float = 3.0,
        negative_caption: str = "",
        expand_prompts: bool = True,
        save_path: str | Sequence[str] | None = None,
        progress: bool = True,
        image: str | Image.Image | None = None,
    ) -> list[Image.Image] | None:
        """Edit ``image``, a path or a PIL image: a list of one PIL image. Without an image it is text to image.

        Other arguments and errors are those of ``Kandinsky5T2VPipeline``.

        Args:
            width: Width in pixels, only together with ``height``; by default the supported size nearest in shape to the
                image.
            height: Height in pixels, likewise.
        """
        video = self._make(
            text,
            image=image,
            width=width,
            height=height,
            seed=seed,
            steps=num_steps,
            guidance=guidance_weight,
            shift=scheduler_scale,
            negative_prompt=negative_caption,
            expand_prompts=expand_prompts,
            save_path=save_path,
            progress=progress,
        )
        return video.images if self.pipeline.team.is_first else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    """Where a factory's weights lie: ``conf_path`` alone, or a folder and replacements for its files."""

    cache_dir: str
    dit: str | None
    qwen: str | None
    clip: str | None
    vae: str | None
    conf_path: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    offload: bool
    magcache: bool
    quantized_qwen: bool
    text_token_padding: bool
    attention_engine: str


def _open(task: str, device_map: DeviceMap, files: _Files, options: _Options) -> GenerationPipeline:
    """The pipeline behind a factory; see ``get_T2V_pipeline``."""
    if options.attention_engine not in ENGINES:
        known = ", ".join(f"`{name}`" for name in ENGINES)
        raise RequestError(f"attention_engine `{options.attention_engine}` is unknown: use one of {known}")
    places, parallel = in_company(devices_of(device_map))
    if files.conf_path is not None:
        (card, root), name = official_files.read(files.conf_path, task=task), str(files.conf_path)
    else:
        card, root = catalogue.find(BUILT_IN[task]), Path(files.cache_dir)
        card = _with_paths(card, dit=files.dit, qwen=files.qwen, clip=files.clip, vae=files.vae)
        name = card.id

    from kandinsky.diffusion.caching import MagCache
    from kandinsky.engine.build import build, places_for
    from kandinsky.engine.options import RunOptions
    from kandinsky.engine.pipeline import GenerationPipeline
    from kandinsky.ops.attention import AttentionSpec, require

    devices = places_for(RunOptions(device=places))
    engine = options.attention_engine
    if AttentionSpec.from_dict(card.sampling.attention).type == "nabla" and engine != "auto":
        # as officially, an engine must be installed, and does dense attention only
        require(engine, devices["dit"].type)
        engine = "auto"
    asked = RunOptions(
        device=places,
        offload="module" if options.offload else "none",
        attention=engine,
        cache=MagCache() if options.magcache else None,
        quantize={"text": "nf4" if devices["text"].type == "cuda" else "int8"} if options.quantized_qwen else None,
        parallel=parallel,
    )
    # The official generator lives on the device, which decides what a seed means.
    card = _official_card(card, options.text_token_padding)
    return GenerationPipeline(build(card, asked, root=root, name=name, noise_device=devices["dit"]))


def _check_image_resolution(resolution: int) -> None:
    if resolution != 1024:
        raise RequestError(f"resolution `{resolution}` is not available for images: use 1024")


def _with_paths(card: Card, *, dit: str | None, qwen: str | None, clip: str | None, vae: str | None) -> Card:
    """The card with the given paths in place of its own files."""
    return dataclasses.replace(
        card,
        dit=at_path(card.dit, dit),
        text=at_path(at_path(card.text, qwen, "qwen"), clip, "clip"),
        vae=at_path(card.vae, vae),
    )


def _official_card(card: Card, text_token_padding: bool) -> Card:
    """The card with prompts padded as asked, clips decoded in the official tiles, and any length positions allow."""
    params = card.text.params | {"padding": "full" if text_token_padding else "trimmed"}
    card = dataclasses.replace(card, text=dataclasses.replace(card.text, params=params))
    if card.clip.max_seconds == 0:  # one image: nothing to tile in time
        return card
    return dataclasses.replace(
        card,
        vae=dataclasses.replace(card.vae, params=card.vae.params | {"tiling": "official"}),
        clip=dataclasses.replace(card.clip, max_seconds=float(official_config.MAX_SECONDS), overlap=0),
    )
