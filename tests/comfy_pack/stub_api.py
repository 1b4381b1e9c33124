"""A stand-in for ComfyUI's modules that the pack imports, strict about what ComfyUI 0.3.75 accepts.

It is enough to build schemas and to call nodes; ``test_comfyui_server.py`` runs the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

COMMON = {"id", "display_name", "optional", "tooltip", "lazy", "extra_dict"}
WIDGET = {"default", "socketless", "force_input", *COMMON}
NUMBER = {"min", "max", "step", "display_mode", *WIDGET}
ALLOWED = {
    "INT": {*NUMBER, "control_after_generate"},
    "FLOAT": {*NUMBER, "round"},
    "BOOLEAN": {*WIDGET, "label_on", "label_off"},
    "STRING": {*WIDGET, "multiline", "placeholder", "dynamic_prompts"},
    "COMBO": {*WIDGET, "options", "control_after_generate", "upload", "image_folder", "remote"} - {"force_input"},
}
OUTPUT = {"id", "display_name", "tooltip", "is_output_list"}


@dataclass
class Socket:
    """An input or an output; ``told`` holds what was said of it."""

    io_type: str
    id: str
    told: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return self.told.get(name)

    @property
    def is_widget(self) -> bool:
        return self.io_type in ALLOWED and not self.told.get("force_input")


def kind(io_type: str) -> Any:
    """The two classes of a type of socket."""

    def make(allowed: set[str]) -> Any:
        def socket(id: str, **told: Any) -> Socket:
            assert not (unknown := set(told) - allowed), f"{io_type} {id}: {unknown}"
            return Socket(io_type, id, told)

        return staticmethod(socket)

    members = {"Input": make(ALLOWED.get(io_type, COMMON)), "Output": make(OUTPUT), "io_type": io_type}
    return type(io_type, (), members)


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Socket] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False


class ComfyNode:
    hidden = SimpleNamespace(unique_id="1")


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyExtension: ...


@dataclass
class VideoComponents:
    images: Any
    frame_rate: Any
    audio: Any = None
    metadata: Any = None


class VideoFromComponents:
    def __init__(self, components: VideoComponents) -> None:
        self.components, self.saved = components, dict[str, Any]()

    def get_components(self) -> VideoComponents:
        return self.components

    def save_to(self, path: Any, format: Any = "auto", codec: Any = "auto", metadata: Any = None) -> None:
        self.saved[str(path)] = metadata


def modules() -> dict[str, ModuleType]:
    """The modules of ComfyUI, by name; each test gets its own."""
    types = {
        "Boolean": "BOOLEAN", "Int": "INT", "Float": "FLOAT", "String": "STRING", "Combo": "COMBO", "Image": "IMAGE",
        "Mask": "MASK", "Latent": "LATENT", "Audio": "AUDIO", "Video": "VIDEO",
    }  # fmt: skip
    io = SimpleNamespace(**{name: kind(io_type) for name, io_type in types.items()})
    io.Custom, io.Schema, io.ComfyNode, io.NodeOutput = kind, Schema, ComfyNode, NodeOutput
    io.Hidden = SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")
    latest = ModuleType("comfy_api.latest")
    vars(latest).update(
        io=io,
        ComfyExtension=ComfyExtension,
        InputImpl=SimpleNamespace(VideoFromComponents=VideoFromComponents),
        Types=SimpleNamespace(VideoComponents=VideoComponents),
    )
    api = ModuleType("comfy_api")
    vars(api).update(latest=latest, __path__=[])
    paths = ModuleType("folder_paths")
    known: dict[str, tuple[list[str], set[str]]] = {}
    vars(paths).update(
        models_dir="/nowhere/models",
        folder_names_and_paths=known,
        get_folder_paths=lambda name: list(known[name][0]),
        add_model_folder_path=lambda name, path: known.setdefault(name, ([path], set())),
    )
    management = ModuleType("comfy.model_management")
    vars(management).update(get_torch_device=lambda: torch.device("cpu"), processing_interrupted=lambda: False)
    comfy = ModuleType("comfy")
    vars(comfy).update(model_management=management, __path__=[])
    server = ModuleType("server")
    instance = SimpleNamespace(sent=[])
    instance.send_progress_text = lambda text, node: instance.sent.append((node, text))
    vars(server).update(PromptServer=SimpleNamespace(instance=instance))
    made = (api, latest, paths, comfy, management, server)
    return {module.__name__: module for module in made}
