"""The official YAML files of Kandinsky 5.0: the card of each, their text, and ``conf_path`` as a name.

`python -m kandinsky.compat.official_files FOLDER` writes all of them from the cards, under the names of the first
release (`config_5s_sft.yaml`) and under the current ones (`k5_lite_t2v_5s_sft_sd.yaml`). They equal the official files
in all but one value: the official no-CFG files for 10 s name the SFT checkpoint; here they name the hub's no-CFG file,
as the card does.
Source: kandinskylab/kandinsky-5@6e2a805, configs/*.yaml; ai-forever/Kandinsky-5@873617b, configs/*.yaml.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kandinsky import catalogue
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.model.card import Card, FileSet

log = logging.getLogger(__name__)
WEIGHTS = "./weights"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """What one official YAML file says.

    Attributes:
        card: Catalogue id.
        size_class: The size class of the card that it is for; None if the card has only one.
        shift: Its `metrics.scheduler_scale`, which most files omit; the card's value applies then.
        has_chunk: Whether `model.attention` has the key `chunk`, which no official code reads.
    """

    card: str
    size_class: str | None = None
    shift: int | None = None
    has_chunk: bool = False


_LITE_T2V = [(seconds, kind) for seconds in (5, 10) for kind in ("sft", "pretrain", "nocfg", "distil")]
FILES: dict[str, OfficialFile] = {
    # the first release
    **{
        f"config_{seconds}s_{kind}": OfficialFile(
            f"kandinsky5-lite-t2v-{kind}-{seconds}s", shift=5 if seconds == 10 else None
        )
        for seconds, kind in _LITE_T2V
    },
    # the current ones
    **{
        f"k5_lite_t2v_{seconds}s_{kind}_sd": OfficialFile(
            f"kandinsky5-lite-t2v-{kind}-{seconds}s", shift={10: 10, 5: 5 if kind == "distil" else None}[seconds]
        )
        for seconds, kind in _LITE_T2V
    },
    **{
        f"k5_pro_t2v_{seconds}s_sft_{size}": OfficialFile(f"kandinsky5-pro-t2v-sft-{seconds}s", size, has_chunk=True)
        for seconds in (5, 10)
        for size in ("sd", "hd")
    },
    "k5_pro_i2v_5s_sft_sd": OfficialFile("kandinsky5-pro-i2v-5s", "sd", shift=10, has_chunk=True),
    "k5_pro_i2v_5s_sft_hd": OfficialFile("kandinsky5-pro-i2v-5s", "hd", shift=5, has_chunk=True),
    "k5_lite_i2v_5s_sft_sd": OfficialFile("kandinsky5-lite-i2v-5s", shift=10),
    "k5_lite_t2i_sft_hd": OfficialFile("kandinsky5-lite-t2i"),
    "k5_lite_i2i_sft_hd": OfficialFile("kandinsky5-lite-i2i"),
}


def name_of(conf_path: str | Path) -> str | None:
    """The official file that the last part of a path or a bare name stands for; None if there is none."""
    path = Path(conf_path)
    name = path.stem if path.suffix in SUFFIXES else path.name
    return name if name in FILES else None


def read(conf_path: str | Path, *, task: str) -> tuple[Card, Path | None]:
    """Find the model behind a ``conf_path``: a YAML file, or the name of an official file if there is no such file.

    Args:
        conf_path: A file; or `config_5s_sft`, also with a folder in front and with its suffix.
        task: What the model is to be for, a key of ``official_config.CALLS``.

    Returns:
        The card, and the folder its weights lie in; None if the card itself, the variable ``KANDINSKY_WEIGHTS`` or the
        Hugging Face cache says where.

    Raises:
        RequestError: The name is neither, the file is not such YAML, or the model is for another task.
    """
    path = Path(conf_path).expanduser()
    name = name_of(path)
    if path.is_file():
        card = official_config.read(path, cards=catalogue.CARDS, task=task)
        # The official call has one shift for all; if a file has none, its card knows the recommended one.
        if name is not None and not _states_shift(path):
            card = dataclasses.replace(
                card, sampling=dataclasses.replace(card.sampling, shift=card_of(name).sampling.shift)
            )
        return card, None
    if name is None:
        near = difflib.get_close_matches(path.stem, FILES, n=1)
        raise RequestError(
            f"conf_path `{conf_path}` is not there, and no official configuration has that name: give a YAML file, or "
            + (f"did you mean `{near[0]}`?" if near else "a name such as `config_5s_sft` or `k5_lite_t2v_5s_sft_sd`")
        )
    card = card_of(name)
    if card.task != task:
        raise RequestError(f"conf_path `{conf_path}` is for {card.task}: this pipeline is for {task}")
    if str(conf_path) != name:
        log.warning("`%s` is not here: the values are those of `%s`", conf_path, card.id)
    folder = Path(WEIGHTS)
    return card, folder if folder.is_dir() else None


def card_of(name: str) -> Card:
    """The card of an official file, for the file's size class alone and with the shift the file states."""
    file = FILES[name]
    card = catalogue.find(file.card)
    if file.size_class is not None:
        sizes = tuple(size for size in card.clip.sizes if card.class_for(*_sides(size)) == file.size_class)
        entry = card.classes[file.size_class]
        defaults = (card.clip.default_size, *official_config.CALLS[card.task].default_size.values())
        card = dataclasses.replace(
            card,
            sampling=card.sampling_for(*_sides(sizes[0])),
            classes={file.size_class: dataclasses.replace(entry, min_pixels=0, sampling={})},
            clip=dataclasses.replace(
                card.clip, sizes=sizes, default_size=next(size for size in defaults if size in sizes)
            ),
        )
    if file.shift is not None:
        card = dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, shift=float(file.shift)))
    return card


def values_of(name: str) -> dict[str, Any]:
    """The contents of an official file, from its card."""
    file, card = FILES[name], card_of(name)
    makes_images = card.clip.max_seconds == 0
    texts = {part.name: part for part in card.text.parts}
    # the image files leave both widths to the constructor's defaults
    dit = {k: v for k, v in card.dit.params.items() if not (makes_images and k.startswith("in_text_dim"))}
    attention: dict[str, Any] = {"type": "nabla" if card.sampling.attention["type"] == "nabla" else "flash"}
    attention |= {"chunk": False} if file.has_chunk else {}
    attention |= {"causal": False, "local": False, "glob": False, "window": 3}
    if attention["type"] == "nabla":
        attention |= {key: card.sampling.attention[key] for key in ("P", "wT", "wH", "wW")}
        attention |= {"add_sta": True, "method": "topcdf"}
    values: dict[str, Any] = {
        "metrics": ({} if file.shift is None else {"scheduler_scale": file.shift})
        | {
            "scale_factor": list(card.sampling.rope_scale),
            "resolution": next(r for r, sizes in official_config.SIZES.items() if set(sizes) == set(card.clip.sizes)),
        },
        "model": {
            "checkpoint_path": _path(card.dit.parts[0]),
            "num_steps": card.sampling.steps,
            "guidance_weight": card.sampling.guidance,
            "dit_params": dit,
            "attention": attention,
            "vae": {"checkpoint_path": _path(card.vae.parts[0]), "name": card.vae.kind},
            "text_embedder": {
                "qwen": {
                    "emb_size": card.dit.params["in_text_dim"],
                    "checkpoint_path": _path(texts["qwen"]),
                    "max_length": card.text.params["qwen_max_length"],
                },
                "clip": {
                    "checkpoint_path": _path(texts["clip"]),
                    "emb_size": card.dit.params["in_text_dim2"],
                    "max_length": card.text.params["clip_max_length"],
                },
            },
        },
    }
    if card.sampling.mag_ratios:
        values["magcache"] = {"mag_ratios": list(card.sampling.mag_ratios)}
    return values


def text_of(name: str) -> str:
    """An official file as text, with a line that says what it is."""
    title = catalogue.find(FILES[name].card).title
    head = f"# {title}. Written from its card by `python -m kandinsky.compat.official_files`.\n"
    return head + yaml.safe_dump(values_of(name), sort_keys=False, default_flow_style=None, width=118)


def write(folder: Path) -> list[Path]:
    """Write all official files into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.yaml" for name in FILES]
    for path in paths:
        path.write_text(text_of(path.stem), encoding="utf-8")
    return paths


def repositories() -> dict[str, str]:
    """The official Hugging Face repositories of Kandinsky 5.0 and the catalogue ids of their models."""
    families = {catalogue.find(file.card).family.name for file in FILES.values()}
    return {card.dit.parts[0].repo: card.id for card in catalogue.all_cards() if card.family.name in families}


def _path(part: FileSet) -> str:
    return f"{WEIGHTS}/{part.local}"


def _sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height


def _states_shift(path: Path) -> bool:
    """Whether a file that has already been read, and so is well formed, has `metrics.scheduler_scale`."""
    return "scheduler_scale" in yaml.safe_load(path.read_text(encoding="utf-8"))["metrics"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m kandinsky.compat.official_files FOLDER")
    sys.stdout.writelines(f"{path}\n" for path in write(Path(sys.argv[1])))


def download_line(config: str) -> str:
    """The command that fetches the weights of a configuration, from the folder of the official scripts.

    Args:
        config: Name or path of an official YAML file.
    """
    name = Path(config).stem
    if (file := FILES.get(name)) is None:
        return "python download_models.py --models all"
    if name.startswith("config_"):
        return "python download_models.py"
    repository = next(repo for repo, card in repositories().items() if card == file.card)
    return f"python download_models.py --models {repository}"
