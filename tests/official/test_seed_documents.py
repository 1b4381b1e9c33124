"""Every piece of code and every command line of the five documents, as typed, with tiny weights."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from seed_documents import ENTRIES, FILES, Entry
from snippets_page import PAGE, row
from tiny_workspace import Workspace

ROOT = Path(__file__).parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
RUN = [entry for entry in ENTRIES if entry.is_run]
ROWS = PAGE.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("official"))


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=[pytest.mark.slow] if "distributed" in e.text else [], id=e.id) for e in RUN],
)
def test_it_runs_as_typed(entry: Entry, workspace: Workspace) -> None:
    outcome = workspace.run(entry)
    assert outcome.code == 0, outcome.printed
    assert {name: outcome.asked.get(name) for name in entry.asks} == entry.asks
    assert set(entry.made) <= set(outcome.files)
    assert row(entry, outcome) in ROWS, "run `make official`"


def test_the_page_has_a_row_for_each_and_no_other() -> None:
    rows = [line for line in ROWS if line.startswith("|") and not line.startswith(("|---", "| section"))]
    assert len(rows) == len(ENTRIES)
    assert [line.split("|")[1].strip() for line in rows] == [entry.name for entry in ENTRIES]
    for entry in ENTRIES:
        if not entry.is_run:
            assert row(entry, None) in rows


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the documents are not beside this checkout")
def test_nothing_of_the_documents_is_left_out() -> None:
    for path in sorted(SEEDS.glob("*.txt")):
        document = FILES[path.name[:3]]
        entries = [entry for entry in ENTRIES if entry.document == document]
        text = path.read_text(encoding="utf-8")
        blocks = [block for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M) if block.strip()]
        code = [block for block in blocks if not block.startswith("@")]  # how to cite
        assert sorted(block.strip() for block in code) == sorted(entry.text.strip() for entry in entries), document


def test_install_line_of_the_documents() -> None:
    """What the files name is there: the project itself, its extras, and the constraints."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = sorted((ROOT / "official").glob("*/requirements.txt"))
    assert [path.parent.name for path in files][:2] == ["kandinsky-4", "kandinsky-5"]
    for path in files:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        constraints, project = (shlex.split(line)[1] for line in lines[:2])
        assert (path.parent / constraints).resolve() == ROOT / "constraints.txt"
        where, _, extra = project.partition("[")
        assert (path.parent / where).resolve() == ROOT and extra.removesuffix("]") in extras


def test_nothing_in_the_library_imports_the_folder() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) official\b", path.read_text(encoding="utf-8"), flags=re.M), path


def test_download_models_knows_the_official_names(capsys: pytest.CaptureFixture[str], script: Callable) -> None:
    main = script("kandinsky-5/download_models.py")
    chosen = main["chosen"]
    first = chosen(None)
    assert len(first) == 8 and set(first) == {
        f"kandinsky5-lite-t2v-{kind}-{s}s" for kind in ("sft", "pretrain", "nocfg", "distil") for s in (5, 10)
    }
    everything = chosen("all")
    assert "kandinsky5-pro-t2v-sft-10s" in everything and "kandinsky5-lite-i2i" in everything
    assert not [name for name in everything if "pretrain" in name or "nocfg" in name]
    asked = "kandinskylab/Kandinsky-5.0-T2I-Lite, ai-forever/Kandinsky-5.0-T2V-Lite-nocfg-10s"
    assert chosen(asked) == ["kandinsky5-lite-t2i", "kandinsky5-lite-t2v-nocfg-10s"]
    with pytest.raises(SystemExit):
        main["main"](["--models", "kandinskylab/Kandinsky-6"])
    assert "model `kandinskylab/Kandinsky-6` is unknown: use `all` or one of kandinskylab/" in capsys.readouterr().err


def test_official_options_and_defaults(script: Callable) -> None:
    defaults = vars(script("kandinsky-5/test.py")["options"]().parse_args([]))
    official = {
        "config": "./configs/k5_lite_t2v_5s_sft_sd.yaml",
        "prompt": "The bear plays balalaika.",
        "image": "./assets/test_image.jpg",
        "width": 768,
        "height": 512,
        "video_duration": 5,
        "expand_prompt": 1,
        "sample_steps": None,
        "guidance_weight": None,
        "output_filename": None,
        "seed": 1137,
        "offload": False,
        "magcache": False,
        "qwen_quantization": False,
        "attention_engine": "auto",
        "hf_token": None,
    }
    assert defaults.items() >= official.items()
    assert set(defaults) - set(official) == {"local_rank", "negative_prompt", "scheduler_scale"}
    folder = ROOT / "official" / "kandinsky-5"
    assert (folder / defaults["config"]).is_file() and (folder / defaults["image"]).is_file()
