"""The official Kandinsky 5.0 door: ``get_T2V_pipeline`` and the pipeline it returns.

Arguments, defaults and results are the official ones; work is done by ``kandinsky.pipelines``. What the official code
offers and this version does not do yet is refused, or said in a warning where it is on by default.
Source: kandinskylab/kandinsky-5@6e2a805, kandinsky/utils.py, get_T2V_pipeline; kandinsky/t2v_pipeline.py.
"""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky import cards
from kandinsky.cards import Card
from kandinsky.compat.official_call import at_path, devices_of, one_target, progress_bar
from kandinsky.errors import BackendError, RequestError
from kandinsky.pipelines import official_config
from kandinsky.types import Request

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from kandinsky.pipelines.generation import GenerationPipeline

# What the call loads without ``conf_path``.
BUILT_IN_MODEL = "kandinsky5-lite-t2v-sft-5s"
ENGINES = {"auto": "auto", "sdpa": "sdpa"}
LATER_ENGINES = ("flash_attention_2", "flash_attention_3", "sage")
SEED_LIMIT = 2**32 - 1


def get_T2V_pipeline(  # noqa: N802 - the official name
    device_map: str | torch.device | dict[str, str | torch.device],
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
    """The official factory for Kandinsky 5.0 text to video.

    Args:    device_map: one device, or devices for `dit`, `vae` and `text_embedder`; never changed.
             cache_dir: folder with the official `model/`, `vae/`, `text_encoder/`, `text_encoder2/`. Nothing is
             fetched: what is missing is named.   *_path: a file or folder to use instead.
             conf_path: an official YAML file; then ``cache_dir`` and the paths are not used.
             offload: hold each network on its device only while it runs.
             text_token_padding: pad the text to its full length under a mask; False pads nothing. Same result.
             attention_engine: `auto` or `sdpa`.   resolution: argument of the first release, then the second one in
             order; by name here, and 512 when given.
    Raises:  RequestError for a value or key that is not known; BackendError for a device, or for what is not built yet
             (magcache, quantized_qwen, other engines, 10-second models); WeightsError naming a missing file.
    """
    if isinstance(cache_dir, int):
        raise RequestError(f"cache_dir is `{cache_dir}`: give `resolution` by name, as `resolution={cache_dir}`")
    if resolution not in (None, 512):
        raise RequestError(f"resolution `{resolution}` is not available: use 512, or a `conf_path` of another class")
    if attention_engine not in ENGINES:
        if attention_engine not in LATER_ENGINES:
            known = ", ".join(f"`{name}`" for name in (*ENGINES, *LATER_ENGINES))
            raise RequestError(f"attention_engine `{attention_engine}` is unknown: use one of {known}")
        raise BackendError(f"attention_engine `{attention_engine}` is not built yet: use `auto` or `sdpa`")
    for name, value in (("magcache", magcache), ("quantized_qwen", quantized_qwen)):
        if value:
            raise BackendError(f"`{name}=True` is not built yet: leave it out")
    places = devices_of(device_map)
    if conf_path is not None:
        card, root = official_config.read(Path(conf_path)), None
    else:
        card, root = cards.find(BUILT_IN_MODEL), Path(cache_dir)
        card = _with_paths(card, dit=dit_path, qwen=text_encoder_path, clip=text_encoder2_path, vae=vae_path)
    return Kandinsky5T2VPipeline(
        _official_card(card, text_token_padding),
        root,
        places,
        offload="module" if offload else "none",
        attention=ENGINES[attention_engine],
        name=str(conf_path) if conf_path is not None else card.id,
    )


class Kandinsky5T2VPipeline:
    """What ``get_T2V_pipeline`` returns: callable with the official arguments.

    ``pipeline`` is this library's own; ``seed`` is the seed last used.
    """

    def __init__(
        self, card: Card, root: Path | None, places: Mapping[str, Any], *, offload: str, attention: str, name: str
    ) -> None:
        from kandinsky.pipelines import loading

        devices = loading.places_for(places)
        self.pipeline: GenerationPipeline = loading.build(
            card,
            root=root,
            places=devices,
            offload=offload,
            attention=attention,
            name=name,
            # The official generator lives on the device, which decides what a seed means.
            noise_device=devices["dit"],
        )
        self.seed: int | None = None
        self._has_warned = False

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
    ) -> torch.Tensor | list[Image.Image]:
        """Make one clip.

        Args:    time_length: seconds; 0 makes an image.   seed: drawn from 0 … 2³²−2 when not given, see ``seed``.
                 num_steps, guidance_weight: None = the configuration's.   scheduler_scale: shift of the schedule.
                 expand_prompts: not built yet; a warning says so once, and the text is used as it is.
                 save_path: a file, or a list of one.   progress: a bar on stderr.
        Returns: uint8 [1, 3, F, H, W] on the autoencoder's device; for ``time_length=0`` a list of one PIL image.
        Raises:  RequestError for an illegal size, length or path, before anything is loaded.
        """
        import torch
        from PIL import Image

        target = one_target(save_path)
        if expand_prompts and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "prompt expansion is not built yet: the text is used as it is; expand_prompts=False says so quietly",
                UserWarning,
                stacklevel=2,
            )
        resolved = self.pipeline.resolve(
            Request(
                model=self.pipeline.card.id,
                prompt=text,
                negative_prompt=negative_caption,
                seconds=time_length,
                width=width,
                height=height,
                steps=num_steps,
                guidance=guidance_weight,
                shift=scheduler_scale,
                seed=secrets.randbelow(SEED_LIMIT) if seed is None else seed,
            )
        )
        if target is not None:
            from kandinsky.media.video import check_target

            check_target(target)
        with progress_bar(progress) as on_step:
            video = self.pipeline.run(resolved, on_step=on_step)
        self.seed = video.seed
        is_image = video.frames.shape[0] == 1
        if target is not None:
            video.save(target)
        if is_image:
            return [Image.fromarray(video.frames[0])]
        frames_TCHW = torch.from_numpy(video.frames).permute(3, 0, 1, 2)
        return frames_TCHW.unsqueeze(0).contiguous().to(self.pipeline.placement.device("vae"))


def _with_paths(card: Card, *, dit: str | None, qwen: str | None, clip: str | None, vae: str | None) -> Card:
    """The card with the given paths in the place of its own files."""
    return dataclasses.replace(
        card,
        dit=at_path(card.dit, dit),
        text=at_path(at_path(card.text, qwen, "qwen"), clip, "clip"),
        vae=at_path(card.vae, vae),
    )


def _official_card(card: Card, text_token_padding: bool) -> Card:
    """Texts padded as asked, clips decoded in the official tiles, and any length the positions allow."""
    params = card.text.params | {"padding": "full" if text_token_padding else "trimmed"}
    return dataclasses.replace(
        card,
        text=dataclasses.replace(card.text, params=params),
        vae=dataclasses.replace(card.vae, params=card.vae.params | {"tiling": "official"}),
        clip=dataclasses.replace(card.clip, max_seconds=float(official_config.MAX_SECONDS)),
    )
