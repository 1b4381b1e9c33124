"""The package is a house with stairs that lead one way, and its rooms hold what their names say."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kandinsky

SOURCE = Path(kandinsky.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
README = SOURCE.parents[1] / "README.md"
# The order of the rooms, from the bottom up, as the README lists them.
ORDER = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
RANK = {name: rank for rank, name in enumerate(ORDER)}
# A finished value knows how to save itself: `video.save("x.mp4")` is a fixed name of the design.
EXCEPTIONS = {("model", "media")}
# Rooms that speak for particular families; everybody else asks the catalogue for values.
MAY_NAME_FAMILIES = {"families", "catalogue", "compat", "lab"}
# Device names belong to the rooms that place things; compat keeps official defaults.
MAY_NAME_DEVICES = {"runtime", "engine", "bench", "cli", "train", "compat", "lab", "conformance"}
NETWORKS = {"dit", "unet", "layers", "hunyuan", "flux", "cogvideox", "movq", "layered", "autoencoder", "text"}
DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?")


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def parsed(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a module."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Rooms a module imports, wherever in the file, except for type checkers only; with the line."""
    return tuple(_imports(parsed(path), path))


def _imports(nodes: tuple[ast.AST, ...], path: Path) -> Iterator[tuple[str, int]]:
    skipped = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in nodes:
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "kandinsky" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "kandinsky" and len(parts) > 1 and parts[1] in RANK:
                yield parts[1], node.lineno


def test_every_room_has_its_place() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms == set(RANK) and len(ORDER) == len(RANK) > 10


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here not in RANK:
        return
    for there, line in imports(path):
        if (here, there) not in EXCEPTIONS:
            assert RANK[there] <= RANK[here], f"{path}:{line}: `{here}` imports `{there}`, which stands above it"


def test_only_the_catalogue_names_families() -> None:
    for path in MODULES:
        if room(path) not in MAY_NAME_FAMILIES:
            assert "families" not in {there for there, _ in imports(path)}, path


NAMES = re.compile(r"kandinsky_?video|kandinsky[345]|cogvideox|hunyuan|movq|qwen|nano", re.IGNORECASE)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(p) in {"engine", "runtime", "bench"}], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_engine_runtime_and_bench_name_no_family(path: Path) -> None:
    """Neither in code nor in strings that are not docstrings or advice for people."""
    nodes = parsed(path)
    documented = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            assert not NAMES.fullmatch(node.value.split(".")[0]), f"{path}:{node.lineno}: `{node.value}`"
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert not NAMES.search(name), f"{path}:{node.lineno}: `{name}`"


def test_rooms_of_one_floor_have_no_circles() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        if (here := room(path)) in RANK:
            graph[here] |= {there for there, _ in imports(path) if there != here and (here, there) not in EXCEPTIONS}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports go round in a circle: {' → '.join(error.args[1])}")


def test_nothing_imports_the_official_doors() -> None:
    lazily = {"__init__"}  # the public name of get_T2V_pipeline
    for path in MODULES:
        if room(path) not in {"compat"} | lazily:
            assert "compat" not in {there for there, _ in imports(path)}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_device_names_stay_where_things_are_placed(path: Path) -> None:
    if room(path) in MAY_NAME_DEVICES:
        return
    nodes = parsed(path)
    # comparing with a name asks what there is; anything else would choose
    asked = {id(leaf) for node in nodes if isinstance(node, ast.Compare) for leaf in ast.walk(node)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and DEVICE.fullmatch(node.value):
            is_reading = room(path) == "weights" and node.value == "cpu"  # files are read into main memory
            assert is_reading or id(node) in asked, f"{path}:{node.lineno}: the device `{node.value}` is named here"


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if room(p) == "families" and p.stem in NETWORKS],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_networks_are_plain(path: Path) -> None:
    """No downloads, no files, no gradient switches, no compilation: those are for the outside."""
    nodes = parsed(path)
    allowed = {"dataclass", "property", "staticmethod", "classmethod", "runtime_checkable", "overload"}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                name = call.id if isinstance(call, ast.Name) else ast.unparse(call)
                assert name in allowed, f"{path}:{decorator.lineno}: decorator `{name}`"
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            top = (module or "").split(".")[0]
            assert top not in {"huggingface_hub", "requests", "urllib", "subprocess"}, f"{path}:{node.lineno}: {top}"


def test_no_file_is_named_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert not [path for path in MODULES if path.stem in vague]


def test_readme_shows_the_first_video_early_and_links_exist() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines, 1) if line.startswith("kandinsky generate"))
    assert first <= 40
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(lines))
    assert links and not [link for link in links if not (README.parent / link).exists()]
