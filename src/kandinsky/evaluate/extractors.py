"""Networks that metrics look through: what each is, where its weights come from, and how a file of them is read.

None of these weights is part of this package, and nothing here downloads: weights are a file that was named, or lie in
the cache of the Hugging Face Hub already. What is missing says where it comes from and under which licence.

Legend: T frames; H W rows and columns; D features; N texts; L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kandinsky.errors import BackendError, KandinskyError, RequestError, WeightsError
from kandinsky.files import local_path

if TYPE_CHECKING:
    import torch

BATCH = 16  # frames at a time
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAFT_ROUNDS, RAFT_GRID = 20, 8
MUSIQ_SIDE = 512
VICLIP_FRAMES = 8
I3D_FRAMES, I3D_SIDE = 16, 224


class ImageText(Protocol):
    """Features of frames and of texts in one space."""

    def images(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Features [T, D] of uint8 frames."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Features [N, D] of texts."""
        ...


class Flow(Protocol):
    """Optical flow."""

    def flow(self, one_HWC: np.ndarray, other_HWC: np.ndarray) -> np.ndarray:
        """Flow [H, W, 2] in pixels from one uint8 frame to another."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Extractor:
    """One network.

    Attributes:
        name: Key, as in `--extractor NAME=PATH`.
        title: What it is.
        given: What the file or folder is that a user names.
        hub: Its repository on the Hugging Face Hub; None if it has to be named.
        origin: Where the weights come from.
        licence: Of the weights, as their authors state it.
        package: What has to be installed besides this package; None for nothing.
        load: Reads the weights onto a device.
    """

    name: str
    title: str
    given: str
    hub: str | None
    origin: str
    licence: str
    package: str | None
    load: Callable[[str, str], Any]

    def missing(self, why: str) -> str:
        """Why it cannot be used, where its weights come from, and under which licence; one line."""
        how = f"`hf download {self.hub}`, or " if self.hub else ""
        return (
            f"{self.title}: {why}: {how}give {self.given} as extractor `{self.name}=PATH`; from {self.origin}, licence "
            f"{self.licence}"
        )


@dataclass(frozen=True, slots=True)
class Tools:
    """The networks at hand, and why others are not.

    Attributes:
        loaded: Networks by name of their extractor.
        weights: Where each came from.
        missing: Why each of the others is not at hand.
    """

    loaded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find_tools(names: Sequence[str], weights: Mapping[str, str], *, device: str | None = None) -> Tools:
    """Load the networks whose weights are there.

    Args:
        names: Extractors that metrics need.
        weights: Files by extractor, as the user named them.
        device: Where they run; default: the best available.

    Returns:
        The networks, and a line for each that is not there.

    Raises:
        RequestError: An extractor is unknown.
        WeightsError: A file that was named cannot be read.
    """
    from kandinsky.runtime.devices import choose_device

    for name in weights:
        if name not in EXTRACTORS:
            raise RequestError(f"extractor `{name}` does not exist: use {', '.join(f'`{one}`' for one in EXTRACTORS)}")
    chosen = choose_device(device)
    loaded, origins, missing = dict[str, Any](), dict[str, str](), dict[str, str]()
    for name in dict.fromkeys(names):
        one = EXTRACTORS[name]
        given = weights.get(name)
        if given is not None and not local_path(given, "weights").exists():
            raise WeightsError(f"weights `{given}` of {one.title} do not exist: name {one.given}")
        source = given or one.hub
        if source is None:
            missing[name] = one.missing("no weights")
            continue
        try:
            loaded[name] = one.load(source, chosen)
        except ImportError as error:
            missing[name] = one.missing(f"the package `{one.package or error.name}` is not installed")
        except BackendError as error:
            missing[name] = one.missing(str(error))
        except Exception as error:  # whatever a library says about files that are none of its own
            if given is not None:
                told = error if isinstance(error, KandinskyError) else f"{type(error).__name__}: {error}"
                raise WeightsError(f"weights `{given}` are not those of {one.title}: {told}") from error
            missing[name] = one.missing("no weights on this machine")
        else:
            origins[name] = source
    return Tools(loaded, origins, missing)


# -- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """CLIP by Transformers, frames resized and cropped as its authors do."""

    model: Any
    tokenizer: Any
    device: str

    def images(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Features [T, D] of uint8 frames."""
        side = self.model.config.vision_config.image_size

        def features(x_TCHW: torch.Tensor) -> torch.Tensor:
            pooled = self.model.vision_model(pixel_values=x_TCHW).pooler_output
            return self.model.visual_projection(pooled)  # type: ignore[no-any-return]

        return _mapped(
            frames_THWC, features, self.device, side=side, mode="bicubic", crop=True, mean=CLIP_MEAN, std=CLIP_STD
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Features [N, D] of texts; what lies beyond the longest text of the model (77 tokens) is cut off."""
        import torch

        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            states = self.model.text_model(**{key: value.to(self.device) for key, value in tokens.items()})
            found = self.model.text_projection(states.pooler_output)
        return np.asarray(found.float().cpu().numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Dino:
    """DINO by Transformers: the class token of whole frames."""

    model: Any
    device: str

    def images(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Features [T, D] of uint8 frames."""

        def features(x_TCHW: torch.Tensor) -> torch.Tensor:
            made = self.model(pixel_values=x_TCHW, interpolate_pos_encoding=True)
            return made.last_hidden_state[:, 0]  # type: ignore[no-any-return]

        side = self.model.config.image_size
        return _mapped(
            frames_THWC, features, self.device, side=side, mode="bilinear", crop=False, mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Raft:
    """RAFT of Torchvision, 20 rounds; frames are padded to its grid at right and bottom."""

    model: Any
    device: str

    def flow(self, one_HWC: np.ndarray, other_HWC: np.ndarray) -> np.ndarray:
        """Flow [H, W, 2] in pixels."""
        import torch
        from torch.nn.functional import pad

        height, width = one_HWC.shape[:2]
        grid = (0, -width % RAFT_GRID, 0, -height % RAFT_GRID)
        pair = [
            pad(_tensor(one[None], self.device) / 127.5 - 1.0, grid, mode="replicate") for one in (one_HWC, other_HWC)
        ]
        with torch.inference_mode():
            found = self.model(*pair, num_flow_updates=RAFT_ROUNDS)[-1][0, :, :height, :width]
        return np.asarray(found.permute(1, 2, 0).float().cpu().numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """LAION's aesthetic head: one linear layer on CLIP ViT-L/14."""

    weight_D: np.ndarray
    bias: float

    def scores(self, features_TD: np.ndarray) -> np.ndarray:
        """Scores [T], about 1 to 10, of features with length 1."""
        if features_TD.shape[1] != len(self.weight_D):
            raise RequestError(
                f"features of {features_TD.shape[1]} columns do not fit an aesthetic head of {len(self.weight_D)}: it "
                "belongs to CLIP ViT-L/14"
            )
        return np.asarray(features_TD @ self.weight_D + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Musiq:
    """MUSIQ by pyiqa; frames whose longer side is above 512 are made smaller."""

    model: Callable[[Any], Any]
    device: str

    def scores(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Scores [T], 0 to 100."""
        import torch
        from torch.nn.functional import interpolate

        found = []
        for frame in frames_THWC:
            x_1CHW = _tensor(frame[None], self.device) / 255.0
            longer = max(x_1CHW.shape[2:])
            if longer > MUSIQ_SIDE:
                size = [round(side * MUSIQ_SIDE / longer) for side in x_1CHW.shape[2:]]
                x_1CHW = interpolate(x_1CHW, size=size, mode="bilinear", align_corners=False)
            with torch.inference_mode():
                found.append(float(self.model(x_1CHW)))
        return np.asarray(found)


@dataclass(frozen=True, slots=True, eq=False)
class I3d:
    """I3D as TorchScript, in the form that StyleGAN-V's evaluation published: logits of Kinetics-400."""

    model: Any
    device: str

    def clip(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Features [D] of the first 16 frames at 224 x 224, from -1 to 1.

        Raises:
            RequestError: There are fewer frames.
        """
        import torch
        from torch.nn.functional import interpolate

        if len(frames_THWC) < I3D_FRAMES:
            raise RequestError(f"a clip of {len(frames_THWC)} frames: FVD looks at {I3D_FRAMES}")
        x_TCHW = interpolate(
            _tensor(frames_THWC[:I3D_FRAMES], self.device), size=(I3D_SIDE, I3D_SIDE), mode="bilinear",
            align_corners=False,
        )  # fmt: skip
        x_1CTHW = (x_TCHW / 127.5 - 1.0).permute(1, 0, 2, 3)[None]
        with torch.inference_mode():
            made = self.model(x_1CTHW, rescale=False, resize=False, return_features=True)
        return np.asarray(made[0].float().cpu().numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Lpips:
    """LPIPS (Zhang et al. 2018) by its authors' package, in the features of AlexNet."""

    model: Callable[[Any, Any], Any]
    device: str

    def distance(self, frames_THWC: np.ndarray, others_THWC: np.ndarray) -> float:
        """Mean over frames of the distance of uint8 frames; 0 for equal ones."""
        import torch

        total = 0.0
        for begin in range(0, len(frames_THWC), BATCH):
            one, other = (_tensor(x[begin : begin + BATCH], self.device) for x in (frames_THWC, others_THWC))
            with torch.inference_mode():
                total += float(self.model(one / 127.5 - 1.0, other / 127.5 - 1.0).float().sum())
        return total / len(frames_THWC)


@dataclass(frozen=True, slots=True, eq=False)
class ViClip:
    """ViCLIP as TorchScript with `encode_vision` [1, 8, 3, 224, 224] and `encode_text` [1, 77]."""

    model: Any
    device: str

    def clip(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Features [D] of eight frames, evenly spread."""
        import torch

        places = np.linspace(0, len(frames_THWC) - 1, VICLIP_FRAMES).round().astype(int)

        def same(x_TCHW: torch.Tensor) -> torch.Tensor:
            return x_TCHW.flatten(1)

        flat = _mapped(
            frames_THWC[places], same, self.device, side=224, mode="bicubic", crop=True, mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )  # fmt: skip
        x_1TCHW = torch.from_numpy(flat).to(self.device).reshape(1, VICLIP_FRAMES, 3, 224, 224)
        with torch.inference_mode():
            return np.asarray(self.model.encode_vision(x_1TCHW)[0].float().cpu().numpy())

    def text(self, tokens_1L: Any) -> np.ndarray:
        """Features [D] of a tokenised text."""
        import torch

        with torch.inference_mode():
            return np.asarray(self.model.encode_text(tokens_1L.to(self.device))[0].float().cpu().numpy())


# -- loading ----------------------------------------------------------------------------------------------------------


def _clip(source: str, device: str) -> Clip:
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from kandinsky.text.pretrained import read_model, read_tokenizer

    folder, places = _folder(source), "embeddings.position_ids"
    left_over = (f"text_model.{places}", f"vision_model.{places}")  # counted up, in files of older versions
    model = read_model(CLIPModel, folder, torch.float32, types=("clip",), may_be_left_over=left_over)
    return Clip(_ready(model, device), read_tokenizer(AutoTokenizer, folder), device)


def _dino(source: str, device: str) -> Dino:
    import torch
    from transformers import ViTModel

    from kandinsky.text.pretrained import read_model

    model = read_model(
        ViTModel, _folder(source), torch.float32, types=("vit",), may_be_left_over=("pooler.",), add_pooling_layer=False
    )
    return Dino(_ready(model, device), device)


def _folder(source: str) -> Path:
    """A folder as it is named, or that of a repository in the hub's cache."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, local_files_only=True))


def _raft(source: str, device: str) -> Raft:
    from torchvision.models.optical_flow import raft_large

    model = raft_large(weights=None)
    model.load_state_dict(_state(source, device))
    return Raft(_ready(model, device), device)


def _aesthetic(source: str, device: str) -> Linear:
    state = _state(source, device)
    if sorted(state) != ["bias", "weight"]:
        raise WeightsError(f"it holds {', '.join(sorted(state)[:4])}, not `weight` and `bias`")
    weight, bias = (np.asarray(state[name].float().cpu().numpy(), dtype=np.float64) for name in ("weight", "bias"))
    return Linear(weight.reshape(-1), float(bias.reshape(-1)[0]))


def _musiq(source: str, device: str) -> Musiq:
    import pyiqa

    model = pyiqa.create_metric("musiq-spaq", device=device, pretrained_model_path=source)
    return Musiq(model, device)


def _lpips(source: str, device: str) -> Lpips:
    import lpips

    # the package holds the linear layers; it would download AlexNet, so that one is read from the file
    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = _state(source, device)
    named = {name: f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
    if lacking := [key for key in named.values() if key not in state]:
        raise WeightsError(f"it holds no `{lacking[0]}`")
    model.net.load_state_dict({name: state[key] for name, key in named.items()})
    return Lpips(_ready(model, device), device)


def _script(source: str, device: str) -> Any:
    import torch

    return torch.jit.load(source, map_location=device).eval()


def _ready(model: Any, device: str) -> Any:
    return model.to(device).eval().requires_grad_(False)


def _state(source: str, device: str) -> Mapping[str, Any]:
    """Tensors of a file; nothing in it is executed."""
    if Path(source).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(source)
    import torch

    found: Mapping[str, Any] = torch.load(source, map_location=device, weights_only=True)
    return found


def _tensor(frames_THWC: np.ndarray, device: str) -> torch.Tensor:
    """Frames as float32 [T, C, H, W], 0 to 255."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(device).permute(0, 3, 1, 2).float()


def _mapped(
    frames_THWC: np.ndarray, features: Callable[[Any], Any], device: str, *, side: int, mode: str, crop: bool,
    mean: Sequence[float], std: Sequence[float],
) -> np.ndarray:  # fmt: skip
    """Features of frames whose shorter side becomes ``side``, without antialiasing, as VBench resizes tensors."""
    import torch
    from torch.nn.functional import interpolate

    centre, spread = (torch.tensor(one, device=device)[None, :, None, None] for one in (mean, std))
    found = []
    for begin in range(0, len(frames_THWC), BATCH):
        x_TCHW = _tensor(frames_THWC[begin : begin + BATCH], device)
        height, width = x_TCHW.shape[2:]
        scale = side / min(height, width)
        size = [max(side, round(height * scale)), max(side, round(width * scale))]
        x_TCHW = interpolate(x_TCHW, size=size, mode=mode, align_corners=False).clamp(0, 255)
        if crop:
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            x_TCHW = x_TCHW[:, :, top : top + side, left : left + side]
        with torch.inference_mode():
            found.append(features((x_TCHW / 255.0 - centre) / spread).float().cpu().numpy())
    return np.concatenate(found)


def _all() -> Iterator[Extractor]:
    yield Extractor(
        "clip-b32", "CLIP ViT-B/32", "its folder", "openai/clip-vit-base-patch32", "OpenAI", "MIT", "transformers",
        _clip,
    )  # fmt: skip
    yield Extractor(
        "clip-l14", "CLIP ViT-L/14", "its folder", "openai/clip-vit-large-patch14", "OpenAI", "MIT", "transformers",
        _clip,
    )  # fmt: skip
    yield Extractor(
        "dino-b16", "DINO ViT-B/16", "its folder", "facebook/dino-vitb16", "Meta", "Apache-2.0", "transformers", _dino
    )
    yield Extractor(
        "raft", "RAFT large", "Torchvision's file `raft_large_C_T_SKHT_V2-….pth`", None,
        "download.pytorch.org/models", "BSD-3-Clause, trained on data with terms of their own", "torchvision", _raft,
    )  # fmt: skip
    yield Extractor(
        "aesthetic", "LAION's aesthetic head", "the file `sa_0_4_vit_l_14_linear.pth`", None,
        "the repository LAION-AI/aesthetic-predictor", "MIT", None, _aesthetic,
    )  # fmt: skip
    yield Extractor(
        "musiq", "MUSIQ-SPAQ", "the file `musiq_spaq_ckpt-….pth`", None,
        "the Hub's repository chaofengc/IQA-PyTorch-Weights", "CC BY-NC-SA 4.0", "pyiqa", _musiq,
    )  # fmt: skip
    yield Extractor(
        "i3d", "I3D", "the file `i3d_torchscript.pt`", None, "StyleGAN-V's evaluation, from DeepMind's kinetics-i3d",
        "Apache-2.0", None, lambda source, device: I3d(_script(source, device), device),
    )  # fmt: skip
    yield Extractor(
        "lpips", "LPIPS", "Torchvision's file `alexnet-owt-….pth`", None, "download.pytorch.org/models",
        "BSD-3-Clause, and BSD-2-Clause for the package's layers", "lpips", _lpips,
    )  # fmt: skip
    yield Extractor(
        "viclip", "ViCLIP", "a TorchScript file with `encode_vision` and `encode_text`", None,
        "OpenGVLab's ViCLIP, scripted by you", "that of its model page", None,
        lambda source, device: ViClip(_script(source, device), device),
    )  # fmt: skip


EXTRACTORS: Mapping[str, Extractor] = {one.name: one for one in _all()}
