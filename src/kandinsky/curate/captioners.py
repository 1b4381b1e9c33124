"""Captions of scenes by a video language model on this machine, checked for the faults such models are known for.

Of each scene a caption is written in every language and length that is asked for. One that has a known fault (see
``captioning.flags``) is written again, with other random numbers, and the one with the fewest faults is kept; then the
model is shown the scene beside its caption and asked whether all of it is seen (`not_confirmed` where it says no).

| captioner | how it runs | licence of its weights |
|---|---|---|
| `qwen2.5-vl` | transformers' own class, from a local folder | Apache-2.0 (7B), Qwen Research (3B), Qwen (72B) |
| `cogvlm2-video` | program code in its folder, which `trust_remote_code` lets run | CogVLM2 |

Legend: T H W C frames, rows, columns, colours.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from kandinsky.curate.captioning import cleaned, flags
from kandinsky.curate.measures import View
from kandinsky.curate.stages import Row, Stage, check_lasting, digest, reason
from kandinsky.curate.tables import CAPTION
from kandinsky.curate.watch import beat
from kandinsky.errors import BackendError, RequestError, needs
from kandinsky.files import local_path
from kandinsky.printing import escaped

if TYPE_CHECKING:
    import torch

QWEN, COGVLM = "qwen2.5-vl", "cogvlm2-video"
CAPTIONERS = (QWEN, COGVLM)
NOT_CONFIRMED = "not_confirmed"
LONGEST = {"short": 96, "long": 384}  # tokens
QUESTIONS: Mapping[tuple[str, str], str] = {
    ("en", "short"): "Describe this video in one sentence.",
    ("en", "long"): (
        "Describe this video in detail: what is seen, how it moves, the surroundings, the light, the style, and how "
        "the camera moves. Do not guess what is not shown."
    ),
    ("ru", "short"): "Опиши это видео одним предложением на русском языке.",
    ("ru", "long"): (
        "Подробно опиши это видео на русском языке: что показано, как оно движется, что вокруг, какой свет и стиль, "
        "как движется камера. Не додумывай того, чего не видно."
    ),
}
_CHECK = 'A caption of this video says: "{}" Is everything in it seen in the video? Answer Yes or No.'
_VIDEO_PAD = "<|video_pad|>"
# what the program code of CogVLM2-Video imports
_COGVLM_NEEDS = ("torchvision", "pytorchvideo", "einops", "decord")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is written.

    Attributes:
        captioner: One of ``CAPTIONERS``; empty for none.
        folder: Of the model.
        languages: `en`, `ru`.
        lengths: `short`, `long`.
        frames: Of a scene that the model sees.
        attempts: For a caption, at most.
        trust_remote_code: Whether program code in the folder may run.
    """

    captioner: str = ""
    folder: str = ""
    languages: tuple[str, ...] = ("en",)
    lengths: tuple[str, ...] = ("short", "long")
    frames: int = 8
    attempts: int = 2
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no setting.

        Raises:
            RequestError: A value is unknown or out of its range.
        """
        if self.captioner not in ("", *CAPTIONERS):
            raise RequestError(f"captioner `{escaped(self.captioner)}`: use one of {', '.join(CAPTIONERS)}")
        if self.captioner and not self.folder:
            raise RequestError("`captions.folder` is missing: name the folder of the captioner's model")
        for name, known in (("languages", ("en", "ru")), ("lengths", tuple(LONGEST))):
            given = getattr(self, name)
            if not given or not all(isinstance(one, str) and one in known for one in given):
                raise RequestError(f"`captions.{name}` must be some of {', '.join(known)}")
        for name, most in (("frames", 64), ("attempts", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise RequestError(f"`captions.{name}` must be a whole number from 1 to {most}")

    @property
    def is_on(self) -> bool:
        """Whether captions are written."""
        return bool(self.captioner)


class Writer(Protocol):
    """A model that looks at frames and answers."""

    def answer(self, frames_THWC: np.ndarray, fps: float, question: str, *, tokens: int, seed: int) -> str:
        """The answer to a question; seed 0 takes the likeliest words, others draw."""
        ...

    def agrees(self, frames_THWC: np.ndarray, fps: float, question: str) -> bool:
        """Whether `Yes` is a likelier answer than `No`."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """Captions of a scene, and their known faults."""

    captions: list[dict[str, str]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


def stage(settings: Settings) -> Stage:
    """The stage that has captions written.

    Raises:
        BackendError: The captioner is not installed.
        RequestError: There is no such folder.
    """
    folder = local_path(settings.folder, "captions.folder")
    if not folder.is_dir():
        raise RequestError(f"`captions.folder` `{escaped(settings.folder)}` is not there: name the model's folder")
    check(settings)
    columns = {"written": CAPTION, "written_flags": "list<string>", "fault": "string"}
    given = asdict(settings) | {"folder": _identity(folder)}

    def run(view: View | None) -> Row:
        nothing: Row = {"written": None, "written_flags": None, "fault": None}
        if view is None:
            return nothing
        try:
            made = written(view, _writer(settings), settings)
        except Exception as error:  # a network of somebody else's: only this scene has no caption
            check_lasting(error)
            return nothing | {"fault": f"{settings.captioner}: {reason(error)}"}
        return {"written": made.captions, "written_flags": made.flags, "fault": None}

    return Stage(
        "captions", "1", ("view",), columns, lambda batch: [run(row["view"]) for row in batch], given,
        is_of_scenes=True,
    )  # fmt: skip


def check(settings: Settings) -> None:
    """Raises: BackendError if the captioner is not installed."""
    if settings.captioner == QWEN:
        with needs("transformers", f"captioner `{QWEN}`"):
            import transformers  # noqa: F401
        return
    missing = [name for name in _COGVLM_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"captioner `{COGVLM}` is not installed: its program code needs {', '.join(missing)}",
            hint=f"pip install {' '.join(missing)} in an environment with transformers 4.43 or older, or use `{QWEN}`",
        )
    if not settings.trust_remote_code:
        raise BackendError(
            f"captioner `{COGVLM}` runs program code that lies in its folder, which is not allowed",
            hint="read the code, and set `captions.trust_remote_code = true`",
        )


def written(view: View, writer: Writer, settings: Settings) -> Written:
    """Captions of a scene in all languages and lengths, with the faults that are left."""
    places = np.unique(np.linspace(0, len(view.frames_THWC) - 1, settings.frames).round().astype(int))
    frames = view.frames_THWC[places]
    span = float(view.times_s[places[-1]] - view.times_s[places[0]])
    fps = (len(places) - 1) / span if span > 0 else 1.0
    made = Written()
    for language in settings.languages:
        for length in settings.lengths:
            text, found = _written(frames, fps, writer, settings, language, length)
            if not text:
                continue
            if not writer.agrees(frames, fps, _CHECK.format(text)):
                found = [*found, NOT_CONFIRMED]
            made.captions.append({"text": text, "language": language, "length": length})
            made.flags.extend(one for one in found if one not in made.flags)
            beat()
    return made


def _written(
    frames: np.ndarray, fps: float, writer: Writer, settings: Settings, language: str, length: str
) -> tuple[str, list[str]]:
    """The caption with the fewest known faults, and these."""
    question, best = QUESTIONS[language, length], ("", ["too_short"])
    for seed in range(settings.attempts):
        text = cleaned(writer.answer(frames, fps, question, tokens=LONGEST[length], seed=seed))
        found = flags(text, language) if text else ["too_short"]
        if not best[0] or len(found) < len(best[1]):
            best = text, found
        beat()
        if text and not found:
            break
    return best


_writers: dict[Settings, Writer] = {}


def _writer(settings: Settings) -> Writer:
    """The model, read once in a process."""
    if settings not in _writers:
        _writers.clear()
        folder = local_path(settings.folder, "captions.folder")
        _writers[settings] = Qwen.read(folder) if settings.captioner == QWEN else _CogVlm(folder)
    return _writers[settings]


def _identity(folder: Path) -> str:
    """What tells one model from another without reading its weights: its settings, and the sizes of its files."""
    files = sorted((one.name, one.stat().st_size) for one in folder.iterdir() if one.is_file())
    config = folder / "config.json"
    return digest(files, config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "")


class Qwen:
    """Qwen2.5-VL, shown frames as a video.

    Args:
        model: ``Qwen2_5_VLForConditionalGeneration``.
        tokenizer: Its own, with the chat template.
        processor: Its image processor, for sizes and colours.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @classmethod
    def read(cls, folder: Path) -> Qwen:
        """Read the model of a local folder; nothing is downloaded or executed.

        Raises:
            WeightsError: A file is missing or does not fit.
        """
        import torch
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

        from kandinsky.errors import WeightsError
        from kandinsky.runtime.devices import choose_device, choose_dtype
        from kandinsky.text.pretrained import check_vocabulary, read_model, read_tokenizer

        tokenizer, processor = (read_tokenizer(one, folder) for one in (AutoTokenizer, Qwen2VLImageProcessorPil))
        if not getattr(tokenizer, "chat_template", None):
            raise WeightsError(f"`{escaped(folder)}` has no chat template: fetch it again")
        device = choose_device()
        model: Any = read_model(
            Qwen2_5_VLForConditionalGeneration,
            folder,
            getattr(torch, choose_dtype(None, device)),
            types=("qwen2_5_vl",),
        )
        check_vocabulary(tokenizer.get_vocab(), model.get_input_embeddings().num_embeddings, folder)
        return cls(model.to(device).eval(), tokenizer, processor)

    def answer(self, frames_THWC: np.ndarray, fps: float, question: str, *, tokens: int, seed: int) -> str:
        """See ``Writer``."""
        import torch

        from kandinsky.runtime.randomness import seeded

        inputs = self.inputs(frames_THWC, fps, question)
        how: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.8} if seed else {"do_sample": False}
        with seeded(seed, self.model.device), torch.no_grad():
            made = self.model.generate(**inputs, max_new_tokens=tokens, repetition_penalty=1.05, **how)
        own = made[:, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.batch_decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])

    def agrees(self, frames_THWC: np.ndarray, fps: float, question: str) -> bool:
        """See ``Writer``."""
        import torch

        with torch.no_grad():
            logits = self.model(**self.inputs(frames_THWC, fps, question)).logits[0, -1]
        yes, no = (self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
        return bool(logits[yes] > logits[no])

    def inputs(self, frames_THWC: np.ndarray, fps: float, question: str) -> dict[str, torch.Tensor]:
        """What the model is given: the conversation as numbers, and the video in its place.

        Raises:
            RequestError: The question holds the mark of the video.
        """
        import torch

        if _VIDEO_PAD in question:
            raise RequestError(f"a question must not contain `{_VIDEO_PAD}`: it stands for the video")
        content = [{"type": "video", "video": "frames"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        pixels, grid = patches(frames_THWC, self.processor)
        count = math.prod(grid) // self.processor.merge_size**2
        given = dict(self.tokenizer([text.replace(_VIDEO_PAD, _VIDEO_PAD * count)], return_tensors="pt"))
        is_video = given["input_ids"] == self.tokenizer.convert_tokens_to_ids(_VIDEO_PAD)
        if int(is_video.sum()) != count:
            raise RequestError("the chat template of the captioner has no place for a video: fetch its folder again")
        given |= {
            "pixel_values_videos": torch.from_numpy(pixels).to(self.model.dtype),
            "video_grid_thw": torch.tensor([grid]),
            "second_per_grid_ts": torch.tensor([self.processor.temporal_patch_size / fps]),
            "mm_token_type_ids": 2 * is_video.int(),
        }
        return {name: value.to(self.model.device) for name, value in given.items()}


def patches(frames_THWC: np.ndarray, processor: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Frames as the vision network of Qwen2.5-VL reads them.

    Source: transformers, Qwen2VLVideoProcessor, which needs torchvision; sizes and colours are the image processor's.

    Returns:
        float32, [patches, colours · frames · rows · columns of one]; and how many patches there are along time, rows,
        columns. An odd number of frames ends with the last one twice.
    """
    side, merge, along = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    T, H, W, _ = frames_THWC.shape
    height, width = _fitting(H, W, side * merge, processor)
    resized = [
        np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        for one in frames_THWC
    ]
    resized += [resized[-1]] * (-T % along)
    mean, spread = (np.asarray(one, np.float32) for one in (processor.image_mean, processor.image_std))
    x = ((np.stack(resized) / np.float32(255) - mean) / spread).transpose(0, 3, 1, 2)
    grid = (len(x) // along, height // side, width // side)
    x = x.reshape(grid[0], along, 3, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
    return x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid


def _fitting(height: int, width: int, step: int, processor: Any) -> tuple[int, int]:
    """The size with sides that are multiples of ``step``, and as many pixels as the processor allows."""
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    rows, columns = (max(step, round(one / step) * step) for one in (height, width))
    if rows * columns > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(step, math.floor(one / scale / step) * step) for one in (height, width))
    elif rows * columns < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(one * scale / step) * step for one in (height, width))
    return rows, columns


class _CogVlm:
    """CogVLM2-Video, by the program code in its folder; only under `trust_remote_code`."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from kandinsky.runtime.devices import choose_device, choose_dtype
        from kandinsky.text.pretrained import from_folder

        self.device = choose_device()
        self.dtype = getattr(torch, choose_dtype(None, self.device))
        self.tokenizer = from_folder(AutoTokenizer, folder, trust_remote_code=True)
        model = from_folder(AutoModelForCausalLM, folder, trust_remote_code=True, torch_dtype=self.dtype)
        self.model = model.to(self.device).eval()

    def _inputs(self, frames_THWC: np.ndarray, question: str) -> dict[str, Any]:
        import torch

        video = torch.from_numpy(np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2)))
        made = self.model.build_conversation_input_ids(
            tokenizer=self.tokenizer, query=question, images=[video], history=[], template_version="chat"
        )
        given = {name: made[name][None].to(self.device) for name in ("input_ids", "token_type_ids", "attention_mask")}
        return given | {"images": [[made["images"][0].to(self.device, self.dtype)]]}

    def answer(self, frames_THWC: np.ndarray, fps: float, question: str, *, tokens: int, seed: int) -> str:
        """See ``Writer``."""
        import torch

        from kandinsky.runtime.randomness import seeded

        inputs = self._inputs(frames_THWC, question)
        how: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if seed else {"do_sample": False}
        with seeded(seed, torch.device(self.device)), torch.no_grad():
            made = self.model.generate(**inputs, max_new_tokens=tokens, **how)
        return str(self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def agrees(self, frames_THWC: np.ndarray, fps: float, question: str) -> bool:
        """See ``Writer``."""
        return self.answer(frames_THWC, fps, question, tokens=4, seed=0).strip().lower().startswith("yes")
