"""A name of a class says one thing: within the layers of requests and runs no two classes share one."""

import ast
from collections import defaultdict
from pathlib import Path

import kandinsky

# words of the field that two things have: a source clip and the source of a model; a sampler's step and its event
TWICE = {"Source", "Step"}


def test_no_two_classes_of_requests_and_runs_share_a_name() -> None:
    found = defaultdict(list)
    for layer in ("engine", "model", "diffusion"):
        for path in (Path(kandinsky.__file__).parent / layer).glob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path.name)
    assert {name: files for name, files in found.items() if len(files) > 1 and name not in TWICE} == {}
