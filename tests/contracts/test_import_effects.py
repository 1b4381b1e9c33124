"""Importing changes nothing, the command line starts at once, and the public names are those that were promised."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kandinsky
from kandinsky.cli import reference

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "transformers", "diffusers", "av", "PIL", "huggingface_hub", "rich")
PUBLIC = {
    "Audio",
    "BackendError",
    "Cancelled",
    "Control",
    "Frames",
    "KandinskyError",
    "LatentShape",
    "NotFinite",
    "OutOfMemory",
    "Play",
    "Reference",
    "Request",
    "RequestError",
    "Soundtrack",
    "Source",
    "TextEmbeddings",
    "Video",
    "VideoShape",
    "VideoStream",
    "WeightsError",
    "__version__",
    "get_I2I_pipeline",
    "get_I2V_pipeline",
    "get_T2I_pipeline",
    "get_T2V_pipeline",
    "load",
    "plan",
    "progress",
}
NEEDS = {"kandinsky.ops.triton_kernel": "triton"}  # what cannot be imported without a package that no processor needs
MODULES = sorted(
    name
    for path in (ROOT / "src" / "kandinsky").rglob("*.py")
    if path.name != "__main__.py"
    for name in [".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")]
    if name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None
)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_public_names() -> None:
    assert set(kandinsky.__all__) == PUBLIC
    assert set(dir(kandinsky)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(kandinsky, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        kandinsky.lod  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, json, kandinsky; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(python(code).stdout)
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["models"], ["plan", "--json"], ["--version"]]
)
def test_commands_that_answer_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom kandinsky.cli.main import main\ncode = main(sys.argv[1:])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.splitlines()[-1]
    if arguments[0] == "plan" and "'torch'" in loaded:
        # only a torch that could have a GPU has to be asked
        from importlib import metadata

        assert "+cpu" not in metadata.version("torch")
    else:
        assert loaded == "[]"


@pytest.mark.slow
def test_imports_leave_the_world_as_it_was() -> None:
    """Every module of the package, one after another, in one fresh process."""
    code = """
import io, json, os, sys, contextlib, importlib, logging, random, warnings
import torch, numpy as np
def world():
    return {
        "environment": dict(os.environ),
        "grad": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "sdp": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()],
        "torch seed": torch.initial_seed(),
        "random": hash(random.getstate()),
        "numpy": np.random.get_state()[1][:4].tolist(),
        "log level": logging.getLogger().level,
        "log handlers": len(logging.getLogger().handlers),
        "folder": os.getcwd(),
    }
# other packages may set up their own things; ours must not
for name in ("transformers", "diffusers", "huggingface_hub", "av", "PIL.Image", "yaml", "rich.progress", "typer"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
before = world()
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    for name in sys.argv[1:]:
        importlib.import_module(name)
after = world()
changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
print(json.dumps({"changed": repr(changed), "said": out.getvalue()}))
"""
    done = python(code, *MODULES)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"changed": "{}", "said": ""}


@pytest.mark.parametrize(
    ("code", "others"),
    [
        ("import kandinsky", set()),
        (
            "from kandinsky.cli.main import main; main(['--help'])",
            {"typer", "typing_extensions", "annotated_doc", "shellingham"},
        ),
    ],
)
def test_a_start_imports_nothing_that_it_does_not_need(code: str, others: set[str]) -> None:
    begin = "import json, sys; before = set(sys.modules)\n"
    end = "\nprint(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})), file=sys.stderr)"
    done = python(begin + code + end)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stderr)) - set(sys.stdlib_module_names) - {"kandinsky"} <= others


def test_help_in_the_documentation_is_the_programs_own() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == reference.text(), "run `make docs`"


def test_no_registry_address_and_no_path_of_a_machine() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: the list of files is not known")
    banned = (
        "pypi" + ".org",
        "files.python" + "hosted",
        "registry." + "npmjs",
        "index" + "-url",
        os.sep + "work" + os.sep,
    )
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in banned if word in text], name


def test_a_first_clip_imports_no_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from kandinsky.cli.main import main; assert main(sys.argv[1:]) == 0; "
        "print({'torch._dynamo', 'sympy', 'transformers', 'diffusers'} & set(sys.modules))"
    )
    target = tmp_path / "x.png"
    done = python(code, *("generate", "a panda", "--seconds", "0", "--steps", "1", "-o", str(target)))
    assert target.exists() and done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
