"""Writes what the pack repeats of its nodes' schemas: `python tests/comfy_pack/render.py`, also by `make docs`.

From the nodes come the English words of menus; from these and ``russian.json`` the Russian ones; from both the tables
of the help pages. From the workflows as a program sends them (`example_workflows/api`) come those that the page opens.
A test compares the files with what this writes.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from comfy_pack import pack
from comfy_pack.stub_api import Schema, Socket

RUSSIAN = Path(__file__).with_name("russian.json")
TABLES = {
    "en": ("## Inputs", "| input | label | meaning |", "## Outputs"),
    "ru": ("## Входы", "| вход | подпись | смысл |", "## Выходы"),
}
WIDE, HIGH, ROW, STEP = 360, 90, 24, 60  # pixels of a node in a workflow, and between them
Words = dict[str, Any]
# Nodes of ComfyUI itself that the examples use: inputs (widgets with a type in capitals), outputs.
CORE: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "SaveVideo": (
        [("video", "VIDEO"), ("filename_prefix", "STRING"), ("format", "COMBO"), ("codec", "COMBO")],
        [],
    ),
    "SaveImage": ([("images", "IMAGE"), ("filename_prefix", "STRING")], []),
    "SaveAudio": ([("audio", "AUDIO"), ("filename_prefix", "STRING")], []),
    "LoadImage": ([("image", "COMBO"), ("upload", "IMAGEUPLOAD")], [("IMAGE", "IMAGE"), ("MASK", "MASK")]),
}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGEUPLOAD"}
DEFAULTS = {"upload": "image"}


def files() -> dict[Path, str]:
    """Everything that is written, by path."""
    with pack.in_comfyui():
        schemas = dict(pack.schemas())
    words = {"en": english(schemas)}
    words["ru"] = russian(words["en"])
    made = {pack.PACK / "locales" / language / "nodeDefs.json": _json(told) for language, told in words.items()}
    for source in sorted((pack.PACK / "example_workflows" / "api").glob("*.json")):
        graph = json.loads(source.read_text(encoding="utf-8"))
        made[pack.PACK / "example_workflows" / source.name] = _json(drawn(source.stem, graph, schemas))
    for language, told in words.items():
        for node in schemas:
            page = page_of(node, language)
            made[page] = with_tables(page, told[node], language)
    return made


def page_of(node: str, language: str) -> Path:
    folder = pack.PACK / "web" / "docs"
    return folder / f"{node}.md" if language == "en" else folder / node / f"{language}.md"


def english(schemas: Mapping[str, Schema]) -> Words:
    """The words of menus as the nodes say them."""
    return {
        node: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {one.id: _named(one) for one in schema.inputs},
            "outputs": {str(i): {"name": _title(one)} for i, one in enumerate(schema.outputs)},
        }
        for node, schema in schemas.items()
    }


def russian(words: Words) -> Words:
    """The same in Russian. Raises: KeyError for a word that has no translation."""
    told = json.loads(RUSSIAN.read_text(encoding="utf-8"))

    def entry(node: str, name: str) -> Words:
        label, *about = told["nodes"][node].get("inputs", {}).get(name) or told["inputs"][name]
        return {"name": label, "tooltip": about[0]}

    return {
        node: {
            "display_name": told["nodes"][node]["title"],
            "description": told["nodes"][node]["about"],
            "inputs": {name: entry(node, name) for name in said["inputs"]},
            "outputs": {i: {"name": told["outputs"][one["name"]]} for i, one in said["outputs"].items()},
        }
        for node, said in words.items()
    }


def with_tables(page: Path, told: Words, language: str) -> str:
    """A help page: what was written by hand, up to its tables, and these."""
    inputs, head, outputs = TABLES[language]
    text = (
        page.read_text(encoding="utf-8") if page.is_file() else f"# {told['display_name']}\n\n{told['description']}\n"
    )
    text = text.split(f"\n{inputs}\n")[0].rstrip()
    rows = [f"| `{name}` | {one['name']} | {one['tooltip']} |" for name, one in told["inputs"].items()]
    made = ", ".join(one["name"] for one in told["outputs"].values())
    return "\n".join((text, "", inputs, "", head, "|---|---|---|", *rows, "", outputs, "", f"{made}.", ""))


def drawn(name: str, graph: Mapping[str, Any], schemas: Mapping[str, Schema]) -> Words:
    """A workflow with places and sizes, as the page keeps it, of one as a program sends it."""
    depth: dict[str, int] = {}
    for key in _in_order(graph):
        depth[key] = 1 + max((depth[source] for source, _ in _wires(graph[key])), default=-1)
    links: list[list[Any]] = []
    nodes, height = [], dict.fromkeys(range(len(graph)), 0)
    for order, key in enumerate(_in_order(graph)):
        node = _node(key, graph[key], schemas, links)
        node |= {"order": order, "pos": [depth[key] * (WIDE + STEP), height[depth[key]]]}
        height[depth[key]] += node["size"][1] + STEP
        nodes.append(node)
    for number, source, slot, *_ in links:
        output = next(node for node in nodes if node["id"] == source)["outputs"][slot]
        output["links"] = [*(output["links"] or []), number]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"kandinsky/{name}")),
        "revision": 0,
        "last_node_id": max(map(int, graph)),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def sockets(kind: str, schemas: Mapping[str, Schema]) -> tuple[list[tuple[str, str, bool]], list[tuple[str, str]]]:
    """Inputs of a node (name, type, whether it is a widget) and its outputs (name, type)."""
    if kind in CORE:
        inputs, outputs = CORE[kind]
        return [(name, io_type, io_type in WIDGETS) for name, io_type in inputs], outputs
    schema = schemas[kind]
    return (
        [(one.id, one.io_type, one.is_widget) for one in schema.inputs],
        [(_title(one), one.io_type) for one in schema.outputs],
    )


def _node(key: str, entry: Mapping[str, Any], schemas: Mapping[str, Schema], links: list[list[Any]]) -> Words:
    kind, given = entry["class_type"], entry["inputs"]
    known, made = sockets(kind, schemas)
    inputs: list[Words] = []
    values: list[Any] = []
    for name, io_type, is_widget in known:
        value = given.get(name, _default(kind, name, schemas))
        is_wire = isinstance(value, list)
        if is_wire or not is_widget:
            socket: Words = {"name": name, "type": io_type, "link": None}
            if is_widget:
                socket["widget"] = {"name": name}
            if is_wire:
                socket["link"] = len(links) + 1
                links.append([len(links) + 1, int(value[0]), value[1], int(key), len(inputs), io_type])
            inputs.append(socket)
        if is_widget:
            values.append("" if is_wire else value)
            if name == "seed":  # what the page does with it after a run
                values.append("fixed")
    outputs = [{"name": name, "type": io_type, "links": None} for name, io_type in made]
    rows = len(values) + max(len(inputs), len(outputs))
    return {
        "id": int(key),
        "type": kind,
        "pos": [0, 0],
        "size": [WIDE, HIGH + ROW * rows],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }


def _default(kind: str, name: str, schemas: Mapping[str, Schema]) -> Any:
    if kind in CORE:
        return DEFAULTS.get(name)
    (found,) = (one for one in schemas[kind].inputs if one.id == name)
    return found.told.get("default")


def _wires(entry: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(value[0], value[1]) for value in entry["inputs"].values() if isinstance(value, list)]


def _in_order(graph: Mapping[str, Any]) -> Iterator[str]:
    """Nodes after those that they are wired to, which have smaller numbers in the examples."""
    yield from sorted(graph, key=int)


def _title(one: Socket) -> str:
    return str(one.told.get("display_name") or one.id)


def _named(one: Socket) -> Words:
    return {"name": _title(one), "tooltip": str(one.told["tooltip"])}


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(pack.PACK.parent))
