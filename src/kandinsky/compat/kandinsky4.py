"""The official Kandinsky 4.0 interface: the T2V Flash call of the 4.0 documentation and the pipeline it returns.

Arguments, defaults and results are the official ones; the work is done by ``kandinsky.engine``.
Source: ai-forever/Kandinsky-4@7506103, kandinsky/utils.py, get_T2V_pipeline; kandinsky/t2v_pipeline.py.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kandinsky import catalogue
from kandinsky.compat.official_call import at_path, devices_of, in_company, progress_bar
from kandinsky.errors import RequestError
from kandinsky.model.card import Card
from kandinsky.model.values import Request
from kandinsky.weights.untrusted import first_line, reading

if TYPE_CHECKING:
    import torch
    from PIL import Image


MODEL = "kandinsky4-t2v-flash"
RESOLUTION = 512
SEED_LIMIT = 2**63 - 1
# positions of the tables of angles on the time axis: 128 latent frames
MAX_SECONDS = 127 * 4 // 8
# official YAML: keys of each table; `tokens_lenght` is their spelling
CONF = {
    "": {"vae", "text_embedder", "dit", "resolution"},
    "vae": {"checkpoint_path"},
    "text_embedder": {"emb_size", "tokens_lenght", "params"},
    "dit": {"scheduler", "checkpoint_path", "params"},
}


def get_t2v_flash_pipeline(
    device_map: str | torch.device | dict[str, str | torch.device],
    resolution: int = RESOLUTION,
    cache_dir: str = "./weights/",
    dit_path: str | None = None,
    text_encoder_path: str | None = None,
    tokenizer_path: str | None = None,
    vae_path: str | None = None,
    scheduler_path: str | None = None,
    conf_path: str | None = None,
) -> Kandinsky4T2VPipeline:
    """The official factory of Kandinsky 4.0, there called ``get_T2V_pipeline``.

    Args:
        device_map: One device, or devices for `dit`, `vae` and `text_embedder`; never changed.
        resolution: 512.
        cache_dir: Folder with the official files: `kandinsky4_distil_512.pt`, `vae/`, `text_encoder/`, `tokenizer/`. If
            there is no such folder, the places `kandinsky download` fills are searched. Nothing is downloaded: missing
            files are named.
        dit_path: File to use instead.
        text_encoder_path: Folder to use instead.
        tokenizer_path: Folder to use instead.
        vae_path: File or folder to use instead.
        scheduler_path: File or folder to use instead.
        conf_path: An official YAML file; then the paths are not used.

    Returns:
        The pipeline, callable with the official arguments.

    Raises:
        RequestError: A value or key is not known.
        BackendError: A device is not available.
        WeightsError: A file is missing; the message names it.
    """
    if resolution != RESOLUTION:
        raise RequestError(f"resolution `{resolution}` is not available: use {RESOLUTION}, the only one released")
    places = devices_of(device_map)
    card = catalogue.find(MODEL)
    if conf_path is None:
        card = _with_paths(card, dit_path, text_encoder_path, tokenizer_path, vae_path)
        card = _scheduled(card, scheduler_path)
    else:
        card = read_conf(Path(conf_path))
    root = Path(cache_dir).expanduser()
    return Kandinsky4T2VPipeline(card, root if root.is_dir() else None, places, name=conf_path or card.id)


def read_conf(path: Path) -> Card:
    """The shipped card with the values and paths of an official YAML file.

    Args:
        path: The file.

    Returns:
        The card.

    Raises:
        RequestError: The file does not exist or is not such YAML, or one of its keys is not known.
        WeightsError: A value in it is of another kind than in the official files.
    """
    try:
        values = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"conf_path `{path}` cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise RequestError(f"conf_path `{path}` is not valid YAML: {first_line(error)}") from error
    with reading(path, "is not an official Kandinsky 4 file"):
        return _card_of(values, path)


def _card_of(values: Any, path: Path) -> Card:
    for name, known in CONF.items():
        table = values if not name else values.get(name)
        if not isinstance(table, dict):
            raise RequestError(f"conf_path `{path}` has no table `{name}`: give an official Kandinsky 4 file")
        if unknown := sorted(set(table) - known, key=str):
            raise RequestError(f"conf_path `{path}`: unknown key `{unknown[0]}`: use one of {', '.join(sorted(known))}")
    if values.get("resolution", RESOLUTION) != RESOLUTION:
        raise RequestError(f"resolution `{values['resolution']}` is not available: use {RESOLUTION}")
    card, text, dit = catalogue.find(MODEL), values["text_embedder"], values["dit"]
    files = text.get("params") or {}
    card = _with_paths(
        card,
        dit.get("checkpoint_path"),
        files.get("checkpoint_path"),
        files.get("tokenizer_path"),
        values["vae"].get("checkpoint_path"),
    )
    length = int(text.get("tokens_lenght", card.text.params["max_length"]))
    return dataclasses.replace(
        _scheduled(card, dit.get("scheduler")),
        dit=dataclasses.replace(card.dit, params=card.dit.params | (dit.get("params") or {})),
        text=dataclasses.replace(card.text, params=card.text.params | {"max_length": length}),
    )


class Kandinsky4T2VPipeline:
    """What the factory returns: callable with the official arguments.

    Attributes:
        pipeline: This library's own pipeline.
        seed: The seed last used.
    """

    def __init__(self, card: Card, root: Path | None, places: Mapping[str, Any], *, name: str) -> None:
        from kandinsky.engine.build import build
        from kandinsky.engine.options import RunOptions
        from kandinsky.engine.pipeline import GenerationPipeline

        card = dataclasses.replace(card, clip=dataclasses.replace(card.clip, max_seconds=float(MAX_SECONDS), overlap=0))
        # as officially, each process that a launcher started takes its part
        places, parallel = in_company(places)
        self.pipeline = GenerationPipeline(
            build(card, RunOptions(device=places, parallel=parallel), root=root, name=name)
        )
        self.seed: int | None = None

    def __call__(
        self,
        text: str,
        save_path: str = "./test.mp4",
        bs: int = 1,
        time_length: int = 12,
        width: int = 512,
        height: int = 512,
        seed: int | None = None,
        return_frames: bool = False,
    ) -> list[Image.Image] | None:
        """Generate one clip.

        Args:
            text: The prompt.
            save_path: Where a clip is written, unless its frames are returned; images are not written.
            bs: 1.
            time_length: Seconds; 0 makes an image.
            width: Width in pixels.
            height: Height in pixels.
            seed: Drawn if omitted, see ``seed``.
            return_frames: Return the frames instead of writing them.

        Returns:
            For ``time_length=0`` a list of one PIL image; with ``return_frames`` all frames; else None. None on all
            processes but the first if a launcher started several.

        Raises:
            RequestError: A size, length, batch or path is not allowed; nothing was loaded.
        """
        if bs != 1:
            raise RequestError(f"bs `{bs}` is not available: the official call makes one clip, use 1")
        resolved = self.pipeline.resolve(
            Request(
                model=self.pipeline.card.id,
                prompt=text,
                seconds=time_length,
                width=width,
                height=height,
                seed=secrets.randbelow(SEED_LIMIT) if seed is None else seed,
            )
        )
        is_written = not return_frames and resolved.shape.frames > 1
        if is_written:
            from kandinsky.media.video import check_target

            check_target(Path(save_path))
        with progress_bar(self.pipeline.team.is_first) as on_step:
            video = self.pipeline.run(resolved, on_step=on_step)
        self.seed = video.seed
        if not self.pipeline.team.is_first:
            return None
        if is_written:
            video.save(save_path)
            return None
        return video.images


def _with_paths(card: Card, dit: str | None, text: str | None, tokenizer: str | None, vae: str | None) -> Card:
    """The card with the given paths in place of its own files."""
    return dataclasses.replace(
        card,
        dit=at_path(card.dit, dit),
        text=at_path(at_path(card.text, text, "t5"), tokenizer, "tokenizer"),
        vae=at_path(card.vae, vae),
    )


def _scheduled(card: Card, path: str | None) -> Card:
    """The card with the shift of a `scheduler_config.json`.

    Raises:
        RequestError: The file describes another schedule.
    """
    if path is None:
        return card
    from kandinsky.diffusion.cogvideox import CogVideoXSchedule

    file = Path(path).expanduser()
    file = file / "scheduler_config.json" if file.is_dir() else file
    try:
        schedule = CogVideoXSchedule.from_config(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise RequestError(f"scheduler `{file}` cannot be read: {error.strerror}") from error
    except RequestError:  # describes another schedule
        raise
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"scheduler `{file}` is not a valid JSON table") from error
    shift = schedule.snr_shift
    if schedule != CogVideoXSchedule(snr_shift=shift):
        raise RequestError(f"scheduler `{file}` has other betas than CogVideoX-5b: only those are built")
    return dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, shift=shift))
