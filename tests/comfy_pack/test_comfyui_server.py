"""The pack in a real ComfyUI 0.3.75: every example with Nano is run, watched, interrupted and compared."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from comfy_pack import pack
from comfy_pack.comfyui_program import FOLDER, PYTHON, Program, running
from kandinsky.cli.main import main
from kandinsky.media import recipe
from kandinsky.media.video import read_video
from serve.conftest import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.environ.get(FOLDER) and os.environ.get(PYTHON)),
        reason=f"{FOLDER} and {PYTHON} name no ComfyUI and no Python with its packages",
    ),
]
API = pack.PACK / "example_workflows" / "api"
NANO = sorted(path.stem for path in API.glob("nano-*.json"))
FEW = {"seconds": 0.4, "steps": 3}  # the examples' own take a processor half a minute each


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models", "user"):
        (folder / name).mkdir()
    assert main(["comfyui", "install", str(folder)]) == 0
    with running(folder, log=folder / "comfyui.log") as program:
        yield program


def example(name: str) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def changed(graph: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    """A workflow with other values at all nodes of a kind."""
    for entry in graph.values():
        if entry["class_type"] == kind:
            entry["inputs"] |= values
    return graph


def test_comfyui_reads_the_nodes_their_words_and_examples(comfyui: Program) -> None:
    known = comfyui.get("/object_info")
    assert {name for name in known if name.startswith("Kandinsky")} == set(pack.part_names())
    assert known["KandinskyGenerate"]["display_name"] == "Kandinsky Generate"
    words = comfyui.get("/i18n")
    assert "модель" in words["ru"]["nodeDefs"]["KandinskyLoad"]["display_name"]
    templates = comfyui.get("/workflow_templates")["kandinsky"]
    assert set(NANO) <= set(templates) and len(templates) == len(list(API.glob("*.json")))
    said = (comfyui.base / "comfyui.log").read_text(errors="replace")
    assert "IMPORT FAILED" not in said


@pytest.mark.parametrize("name", NANO)
def test_every_example_with_nano_runs(name: str, comfyui: Program, tmp_path: Path) -> None:
    graph = example(name)
    if name == "nano-remote":
        with Server(tmp_path, models=("nano-t2v",)) as server:
            made = comfyui.run(changed(graph, "KandinskyRemote", server=server.url))
            (job,) = server.client.get("/v1/videos").json()["data"]
            assert job["seed"] == 7 and job["status"] == "completed" and made.progress and made.previews
    else:
        made = comfyui.run(graph)
    assert (made.status, made.end, made.error) == (200, "execution_success", "")
    saving = [node for node, entry in graph.items() if entry["class_type"].startswith("Save")]
    files = [path for node in saving for path in comfyui.files(made, node)]
    assert all(path.stat().st_size > 0 for path in files) and bool(files) == (name != "nano-plan")
    sampled = [
        entry
        for entry in graph.values()
        if entry["class_type"] in ("KandinskyGenerate", "KandinskySound", "KandinskyUpscale")
    ]
    assert len(made.previews) >= 20 * len(sampled)  # one each step
    if name == "nano-plan":
        assert made.texts[0].startswith("model      nano-t2v") and made.outputs["2"]["text"] == made.texts
    for path in files:
        if path.suffix == ".mp4":
            told = recipe.read(path)
            assert str(told["model"]).startswith("nano-") and len(read_video(path)) > 1
            with av.open(str(path)) as container:
                assert bool(container.streams.audio) == (name == "nano-sound")


def test_the_same_seed_makes_the_command_lines_frames(comfyui: Program, tmp_path: Path) -> None:
    graph = example("nano-text-to-video")
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 1], "filename_prefix": "equal"}}
    first = comfyui.run(changed(graph, "KandinskyGenerate", **FEW, seed=11))
    prompt = graph["2"]["inputs"]["prompt"]
    words = ["generate", prompt, "--seconds", "0.4", "--steps", "3", "--seed", "11", "-o", str(tmp_path / "f_%03d.png")]
    assert main(words) == 0
    ours = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("f_*.png"))]
    theirs = [np.asarray(Image.open(path)) for path in comfyui.files(first, "3")]
    assert len(ours) == len(theirs) > 1 and all(map(np.array_equal, ours, theirs))
    again = comfyui.run(graph)
    assert again.end == "execution_success" and "2" not in again.executed  # nothing has changed
    other = comfyui.run(changed(graph, "KandinskyGenerate", seed=12))
    assert "2" in other.executed and "1" not in other.executed
    different = [np.asarray(Image.open(path)) for path in comfyui.files(other, "3")]
    assert not all(map(np.array_equal, theirs, different))


def test_an_interrupt_takes_effect_within_a_step(comfyui: Program) -> None:
    graph = changed(example("nano-text-to-video"), "KandinskyGenerate", seed=99, steps=200)
    made = comfyui.run(graph, interrupt_at=3)
    assert made.end == "execution_interrupted"
    assert made.progress[-1][1] <= 5  # the one that ran, and one whose message was on its way
    after = comfyui.run(changed(graph, "KandinskyGenerate", **FEW))
    assert after.end == "execution_success"


def test_freed_memory_is_taken_again(comfyui: Program) -> None:
    comfyui.post("/free", {"unload_models": True, "free_memory": True})
    made = comfyui.run(changed(example("nano-text-to-video"), "KandinskyGenerate", **FEW, seed=21))
    assert made.end == "execution_success"


def test_missing_weights_are_refused_before_the_run(comfyui: Program) -> None:
    made = comfyui.run(example("kandinsky5-text-to-video"))
    (error,) = made.answer["node_errors"]["1"]["errors"]
    assert made.status == 400 and "kandinsky download kandinsky5-lite-t2v-sft-5s" in error["details"]


def test_what_a_model_refuses_is_said_on_its_node(comfyui: Program) -> None:
    made = comfyui.run(changed(example("nano-text-to-video"), "KandinskyGenerate", steps=5000, seed=5))
    assert made.end == "execution_error" and "steps" in made.error
