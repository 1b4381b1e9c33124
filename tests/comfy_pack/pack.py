"""The pack as ComfyUI imports it: by its path, as a package of any name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_pack import stub_api

PACK = Path(__file__).parents[2] / "comfyui"
NAME = "kandinsky_pack_under_test"


def imported() -> ModuleType:
    """The pack, imported anew from its folder."""
    forget()
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget() -> None:
    for name in _of_pack():
        del sys.modules[name]


@contextmanager
def in_comfyui(**folders: Path) -> Iterator[ModuleType]:
    """The pack within a stand-in for ComfyUI; ``folders`` are ComfyUI's model folders by kind."""
    modules = stub_api.modules()
    before = {name: sys.modules[name] for name in (*modules, *_of_pack()) if name in sys.modules}
    known: dict[str, Any] = vars(modules["folder_paths"])["folder_names_and_paths"]
    known.update({kind: ([str(folder)], set()) for kind, folder in folders.items()})
    sys.modules.update(modules)
    try:
        yield imported()
    finally:
        forget()
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _of_pack() -> list[str]:
    return [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]


def part(name: str) -> ModuleType:
    """A module of the imported pack."""
    return importlib.import_module(f"{NAME}.{name}")


def schemas() -> Mapping[str, stub_api.Schema]:
    """Schemas of all nodes of the imported pack, by id."""
    nodes = vars(part("nodes"))
    classes = [value for name, value in nodes.items() if name in part("names").NODES]
    made = [cls.define_schema() for cls in classes]
    return {schema.node_id: schema for schema in made}


def part_names() -> list[str]:
    """Ids of all nodes, without ComfyUI."""
    spec = importlib.util.spec_from_file_location("kandinsky_pack_names", PACK / "names.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.NODES)
