"""What ComfyUI and the registry read of the pack: schemas, words, help pages, examples, and stand-ins."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kandinsky
from comfy_pack import pack, render, stub_api
from kandinsky import catalogue
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import parse_size, resolve
from kandinsky.model.values import Request

EXAMPLES = sorted((pack.PACK / "example_workflows" / "api").glob("*.json"))
# Fields that no node shows, and why.
NOT_SHOWN = {
    "weights": "files are looked for in ComfyUI's folders",
    "lora": "a node of its own",
    "only": "follows from the node",
    "parallel": "ComfyUI is one process",
    "trust_remote_code": "a workflow may be somebody else's",
    "model": "a node of its own",
    "width": "part of size",
    "height": "part of size",
    "backends": "a workflow is not of one machine",
    "states": "a path in a workflow, which may be somebody else's",
    **dict.fromkeys(
        ("control", "control_strength", "control_steps", "reference", "reference_strength"), "nodes of their own"
    ),
}


@pytest.fixture(scope="module")
def comfyui() -> Iterator[ModuleType]:
    with pack.in_comfyui() as module:
        yield module


@pytest.fixture(scope="module")
def schemas(comfyui: ModuleType) -> dict[str, stub_api.Schema]:
    return dict(pack.schemas())


def test_every_node_is_registered_under_its_lasting_name(comfyui: ModuleType) -> None:
    import asyncio

    async def nodes() -> list[Any]:
        return list(await (await comfyui.comfy_entrypoint()).get_node_list())

    made = [node.define_schema() for node in asyncio.run(nodes())]
    assert [one.node_id for one in made] == list(pack.part("names").NODES)
    assert not hasattr(comfyui, "NODE_CLASS_MAPPINGS")  # else ComfyUI looks at these alone


def test_ids_of_inputs_and_outputs_do_not_collide(schemas: dict[str, stub_api.Schema]) -> None:
    for schema in schemas.values():
        ids = [one.id for one in (*schema.inputs, *schema.outputs)]
        assert len(ids) == len(set(ids)), schema.node_id
        assert schema.description and all(one.told.get("tooltip") for one in schema.inputs)


def test_sockets_of_our_own_are_models_and_conditions(schemas: dict[str, stub_api.Schema]) -> None:
    standard = {"IMAGE", "VIDEO", "AUDIO", "LATENT", "MASK", *stub_api.ALLOWED}
    used = {one.io_type for schema in schemas.values() for one in (*schema.inputs, *schema.outputs)}
    assert used - standard == {"KANDINSKY_MODEL", "KANDINSKY_CONDITIONS", "KANDINSKY_PROMPTS"}


def test_options_are_those_of_the_library(schemas: dict[str, stub_api.Schema]) -> None:
    shown = {one.id for schema in schemas.values() for one in schema.inputs}
    declared = {field.name for kind in (RunOptions, Request) for field in dataclasses.fields(kind)}
    assert declared - shown == set(NOT_SHOWN) - {"lora", "model"}
    offload = next(one for one in schemas["KandinskyLoad"].inputs if one.id == "offload")
    assert offload.options == ["default", "none", "module", "block"]


def test_what_is_left_alone_is_left_to_the_model(schemas: dict[str, stub_api.Schema]) -> None:
    given = pack.part("inputs").given
    for node in ("KandinskyGenerate", "KandinskyEdit", "KandinskyPlan"):
        widgets = {one.id: one.told.get("default") for one in schemas[node].inputs if one.optional}
        assert set(given(widgets)) <= {"seed", "expand", "loop"}
    assert given({"seconds": 0.0, "steps": -1, "size": " ", "fps": "default", "expand": False}) == {
        "seconds": 0.0,
        "expand": False,
    }


def test_what_is_written_from_the_nodes_is_up_to_date() -> None:
    for path, text in render.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python tests/comfy_pack/render.py`"


def test_both_languages_have_every_word() -> None:
    english, russian = (
        json.loads((pack.PACK / "locales" / name / "nodeDefs.json").read_text(encoding="utf-8"))
        for name in ("en", "ru")
    )

    def shape(value: Any) -> Any:
        return {key: shape(one) for key, one in value.items()} if isinstance(value, dict) else bool(value)

    assert shape(english) == shape(russian)
    cyrillic = re.compile("[а-яё]", re.IGNORECASE)
    for node in russian.values():
        assert cyrillic.search(node["description"])
        assert all(cyrillic.search(one["tooltip"]) for one in node["inputs"].values())
    told = json.loads(render.RUSSIAN.read_text(encoding="utf-8"))
    used = {name for node in english.values() for name in node["inputs"]}
    assert set(told["inputs"]) | {n for one in told["nodes"].values() for n in one.get("inputs", ())} == used
    assert set(told["outputs"]) == {one["name"] for node in english.values() for one in node["outputs"].values()}


def test_every_node_has_help_in_both_languages(schemas: dict[str, stub_api.Schema]) -> None:
    for node in schemas:
        for language, folder in (("en", "Kandinsky"), ("ru", "Kandinsky")):
            page = render.page_of(node, language).read_text(encoding="utf-8")
            assert page.startswith(f"# {folder}") and len(page.split("\n## ")[0]) > 150, (node, language)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_nodes(path: Path, schemas: dict[str, stub_api.Schema]) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    for entry in graph.values():
        inputs, _ = render.sockets(entry["class_type"], schemas)
        types = {name: io_type for name, io_type, _ in inputs}
        assert set(entry["inputs"]) <= set(types)
        if entry["class_type"] in schemas:
            needed = {one.id for one in schemas[entry["class_type"]].inputs if not one.optional}
            assert needed <= set(entry["inputs"])
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                source, slot = value
                _, made = render.sockets(graph[source]["class_type"], schemas)
                assert made[slot][1] == types[name], (name, value)
    drawn = json.loads((path.parents[1] / path.name).read_text(encoding="utf-8"))
    assert {str(node["id"]): node["type"] for node in drawn["nodes"]} == {k: v["class_type"] for k, v in graph.items()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_ask_for_what_models_can(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    asked = [entry for entry in graph.values() if entry["class_type"] in ("KandinskyGenerate", "KandinskyEdit")]
    for entry in asked:
        values = {name: value for name, value in entry["inputs"].items() if not isinstance(value, list)}
        card = catalogue.find(model_of(graph, entry))
        if size := values.pop("size", None):
            values["width"], values["height"] = parse_size(size)
        later = prompts_of(graph, entry)
        job = resolve(Request(card.id, **{**values, "mask_grow": None, "prompt_at": later}), card, needs_image=False)
        takes = card.does.image != "none" and "image" in entry["inputs"]
        assert job.seed == values["seed"] and (takes or "image" not in entry["inputs"])


def prompts_of(graph: dict[str, Any], entry: dict[str, Any]) -> list[tuple[str, float]]:
    """The prompts by time that a node is given, through the chain of nodes that say them."""
    wire = entry["inputs"].get("prompt_at")
    if wire is None:
        return []
    inputs = graph[wire[0]]["inputs"]
    return [*prompts_of(graph, graph[wire[0]]), (inputs["prompt"], inputs["at"])]


def model_of(graph: dict[str, Any], entry: dict[str, Any]) -> str:
    """The model a node runs, through nodes that pass it on."""
    given = entry["inputs"]["model"]
    return model_of(graph, graph[given[0]]) if isinstance(given, list) else str(given)


def test_there_is_an_example_of_every_task() -> None:
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in EXAMPLES]
    used = {catalogue.find(model_of(graph, one)).task for graph in graphs for one in graph.values() if
            one["class_type"].startswith("Kandinsky") and "model" in one["inputs"]}  # fmt: skip
    assert used == {card.task for card in catalogue.all_cards()}
    nodes = {one["class_type"] for graph in graphs for one in graph.values()}
    assert set(pack.part_names()) <= nodes


# those that the registry reads, as its specification lists them
SYSTEMS = ("OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS")
GPUS = ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "NPU :: Huawei Ascend", "Apple Metal")
CLASSIFIERS = {f"Operating System :: {one}" for one in SYSTEMS} | {f"Environment :: GPU :: {one}" for one in GPUS}


def test_the_registry_accepts_it() -> None:
    told = tomllib.loads((pack.PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = told["project"], told["tool"]["comfy"]
    name = project["name"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name) and len(name) < 100 and "comfyui" not in name
    assert project["version"] == kandinsky.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == {"text": "Apache-2.0"} and project["description"]  # a plain string is refused
    assert set(project["classifiers"]) <= CLASSIFIERS
    assert set(comfy) <= {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes"}
    owner = re.fullmatch(r"https://github\.com/([^/]+)/[^/]+", project["urls"]["Repository"])
    assert owner and comfy["PublisherId"] == owner[1] and re.fullmatch(r"[a-z0-9][a-z0-9-]*", owner[1])
    assert comfy["DisplayName"] and re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert any(one.startswith("kandinsky-video") for one in project["dependencies"])
    sources = "".join(path.read_text(encoding="utf-8") for path in pack.PACK.glob("*.py"))
    assert not re.search(r"\b(eval|exec)\(|subprocess|os\.system", sources)


def test_what_is_installed_holds_every_file_of_the_pack() -> None:
    told = tomllib.loads((pack.PACK.parent / "pyproject.toml").read_text(encoding="utf-8"))
    listed = told["tool"]["setuptools"]["data-files"]
    root = pack.PACK.parent
    shipped = {path for patterns in listed.values() for pattern in patterns for path in root.glob(pattern)}
    there = {path for path in pack.PACK.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert shipped == there
    for folder, patterns in listed.items():
        assert folder == Path("share/kandinsky", patterns[0]).parent.as_posix()


def test_only_one_module_speaks_to_comfyui_at_run_time() -> None:
    for path in pack.PACK.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        roots = {name.partition(".")[0] for name in names}
        spoken = roots & {"comfy", "comfy_api", "folder_paths", "server", "nodes"}
        assert spoken <= {"host": {"comfy", "comfy_api", "folder_paths", "server"}}.get(path.stem, {"comfy_api"})
        if path.stem not in ("host", "inputs", "nodes"):
            assert not spoken, path
        assert "cuda" not in path.read_text(encoding="utf-8"), path  # a device is ComfyUI's, or chosen


class Blocked:
    """Makes packages look as if they were not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize(("lacking", "advice"), [("kandinsky", "pip install kandinsky-video"), ("comfy_api", "update")])
def test_without_the_rest_the_nodes_say_what_is_missing(
    lacking: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in stub_api.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.partition(".")[0] == lacking]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked(lacking), *sys.meta_path])
    try:
        made = pack.imported()
        classes, titles = made.NODE_CLASS_MAPPINGS, made.NODE_DISPLAY_NAME_MAPPINGS
        assert list(classes) == list(titles) == list(pack.part("names").NODES)
        node = classes["KandinskyGenerate"]
        assert node.INPUT_TYPES() == {"required": {}} and advice in node.DESCRIPTION
        with pytest.raises(RuntimeError, match=advice):
            getattr(node(), node.FUNCTION)(model=None, prompt="x")
    finally:
        pack.forget()


def test_another_version_of_the_library_is_named() -> None:
    with pack.in_comfyui():
        missing = importlib.import_module(f"{pack.NAME}.missing")
        error = ImportError("cannot import name 'gone' from 'kandinsky.engine'", name="kandinsky.engine")
        assert "differ in version" in missing.explained(error)
        assert "ZeroDivisionError" in missing.explained(ZeroDivisionError("x"))
