"""``kandinsky.get_T2V_pipeline``: one name, two official functions, told apart by what only one of them has.

Kandinsky 4.0 and 5.0 both name their factory this way. The decision, in this order:
1. ``conf_path``: its contents; 5.0 files have a table `model`, 4.0 files a table `dit`. A name without a file is 5.0's;
2. an argument that only one family has;
3. what is given as ``dit_path`` (5.0's are `.safetensors`), or lies in ``cache_dir`` (5.0 has `model/` there);
4. otherwise it is the call of the 4.0 documentation, whose 5.0 counterpart always gives ``conf_path``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kandinsky import catalogue
from kandinsky.compat import kandinsky4, kandinsky5
from kandinsky.errors import RequestError

if TYPE_CHECKING:
    import torch

    from kandinsky.compat.kandinsky4 import Kandinsky4T2VPipeline
    from kandinsky.compat.kandinsky5 import Kandinsky5T2VPipeline


def get_T2V_pipeline(  # noqa: N802 - the official name
    device_map: str | torch.device | dict[str, str | torch.device],
    cache_dir: str | int = "./weights/",
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
    tokenizer_path: str | None = None,
    scheduler_path: str | None = None,
) -> Kandinsky4T2VPipeline | Kandinsky5T2VPipeline:
    """The official factory for text to video: Kandinsky 5.0 with ``conf_path``, 4.0 T2V Flash without.

    Positions are those of 5.0; a number in second place, as in 4.0, is read as ``resolution``. See
    ``kandinsky4.get_t2v_flash_pipeline`` and ``kandinsky5.get_T2V_pipeline`` for the arguments of each.

    Args:
        device_map: Of both.
        cache_dir: Of both.
        dit_path: Of both.
        text_encoder_path: Of both.
        text_encoder2_path: Only of 5.0.
        vae_path: Of both.
        conf_path: Of both.
        offload: Only of 5.0.
        magcache: Only of 5.0.
        quantized_qwen: Only of 5.0.
        text_token_padding: Only of 5.0.
        attention_engine: Only of 5.0.
        resolution: Of both.
        tokenizer_path: Only of 4.0.
        scheduler_path: Only of 4.0.

    Returns:
        The pipeline, callable with the official arguments.

    Raises:
        RequestError: Arguments of both families are mixed, or a value is not supported.
        WeightsError: A file is missing; the message names it.
        BackendError: A device or kernel is not available.
    """
    ours_4 = {"tokenizer_path": tokenizer_path, "scheduler_path": scheduler_path}
    ours_5 = {
        "text_encoder2_path": text_encoder2_path,
        "offload": offload or None,
        "magcache": magcache or None,
        "quantized_qwen": quantized_qwen or None,
        "text_token_padding": None if text_token_padding else False,
        "attention_engine": None if attention_engine == "auto" else attention_engine,
    }
    given_4 = [name for name, value in ours_4.items() if value is not None]
    given_5 = [name for name, value in ours_5.items() if value is not None]
    if given_4 and given_5:
        raise RequestError(f"`{given_4[0]}` is of Kandinsky 4 and `{given_5[0]}` of Kandinsky 5: give one family's")
    if conf_path is not None:
        family = _family_of_conf(Path(conf_path))
        if wrong := {4: given_5, 5: given_4}[family]:
            raise RequestError(f"`{wrong[0]}` is not an argument of Kandinsky {family}, whose file `{conf_path}` is")
    elif given_4 or given_5:
        family = 4 if given_4 else 5
    else:
        family = _family_of_files(cache_dir, dit_path)
    if family == 4:
        folder = "./weights/" if isinstance(cache_dir, int) else cache_dir
        size = cache_dir if isinstance(cache_dir, int) else resolution
        return kandinsky4.get_t2v_flash_pipeline(
            device_map,
            kandinsky4.RESOLUTION if size is None else size,
            folder,
            dit_path,
            text_encoder_path,
            tokenizer_path,
            vae_path,
            scheduler_path,
            conf_path,
        )
    return kandinsky5.get_T2V_pipeline(
        device_map,
        cache_dir,  # type: ignore[arg-type]  # refuses a number with its own words
        dit_path,
        text_encoder_path,
        text_encoder2_path,
        vae_path,
        conf_path,
        offload,
        magcache,
        quantized_qwen,
        text_token_padding,
        attention_engine,
        resolution=resolution,
    )


def _family_of_conf(path: Path) -> int:
    try:
        values = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return 5  # its reader reports what is wrong
    return 4 if isinstance(values, dict) and "dit" in values and "model" not in values else 5


def _family_of_files(cache_dir: str | int, dit_path: str | None) -> int:
    """The family by the file of the transformer, else by the folder's contents: 5.0 keeps its models in `model/`."""
    if dit_path is not None:
        return 5 if Path(dit_path).suffix == ".safetensors" else 4
    if isinstance(cache_dir, int):
        return 4
    folder = Path(cache_dir).expanduser()
    has_4 = (folder / catalogue.find(kandinsky4.MODEL).dit.parts[0].local).is_file()
    return 5 if (folder / "model").is_dir() and not has_4 else 4
