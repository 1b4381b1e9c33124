"""What the pages say is so: models, commands, links."""

import importlib.util
import itertools
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from kandinsky import catalogue
from kandinsky.cli.main import root_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE: Any = runpy.run_path(str(ROOT / "docs" / "site.py"))
PAGES = [ROOT / path for path in SITE["pages"]() if path.suffix == ".md" and path.name != "CHANGELOG.md"]
USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]  # of the click that typer brings along
BRACES = re.compile(r"\{([^{}]*)\}")


def spread(pattern: str) -> list[str]:
    """`a-{b,c}` → `a-b`, `a-c`, as a shell does."""
    parts = BRACES.split(pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def commands(page: str) -> list[str]:
    """Lines of code that call the program, and code within lines; without what is left out by `…`."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}(kandinsky .*)$", page, flags=re.M)
    lines += re.findall(r"`(kandinsky [^`]+)`", page)
    return [line.strip() for line in lines if line.strip().startswith("kandinsky ") and "…" not in line]


def test_the_readme_names_every_model_and_no_other() -> None:
    table = README.split("## The models")[1].split("```")[0]
    named = [name for cell in re.findall(r"`([^`]+)`", table) for name in spread(cell)]
    assert sorted(named) == sorted(catalogue.cards())


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_understood(page: Path) -> None:
    """Every command and option that a page shows is one the program has; nothing is run."""
    program = root_command()
    for line in commands(page.read_text(encoding="utf-8")):
        whole = itertools.takewhile(lambda word: word not in {"|", ">", "&&"}, shlex.split(line, comments=True))
        words = [word for word in whole if not word.startswith("$")]
        if fault := misunderstood(program, words[1:]):
            pytest.fail(f"{line}: {fault}")


def navigation(entries: list[Any]) -> list[str]:
    """Pages of the site's navigation, in order."""
    values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for value in values for page in (navigation(value) if isinstance(value, list) else [value])]


def site_settings() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Reads `!ENV` as mkdocs does, without the environment."""

    Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])
    settings: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    return settings


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    pages = [path.as_posix() for path in SITE["pages"]() if path.suffix == ".md"]
    assert sorted(navigation(site_settings()["nav"])) == sorted(pages)
    assert site_settings()["strict"] is True


def test_the_api_reference_names_every_public_module_of_its_rooms() -> None:
    """Except conformance runners, which only the conformance command calls."""
    for page in sorted((ROOT / "docs" / "reference" / "api").glob("*.md")):
        named = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.M)
        assert not [name for name in named if importlib.util.find_spec(name) is None], page.name
        if (room := ROOT / "src" / "kandinsky" / page.stem).is_dir():
            modules = {path.relative_to(ROOT / "src").with_suffix("") for path in room.rglob("*.py")}
            public = {path for path in modules if path.name not in ("__init__", "conformance")}
            assert set(named) == {".".join(path.parts) for path in public}, page.name


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
    reason="the extra `docs` is not installed",
)
def test_the_site_builds_without_a_dead_link(tmp_path: Path) -> None:
    SITE["build"](tmp_path)
    page = (tmp_path / "site" / "docs" / "reference" / "api" / "diffusion" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "index.html").is_file() and "kandinsky.diffusion.sample.sample" in page


def test_a_wrong_command_is_found() -> None:
    program = root_command()
    assert misunderstood(program, ["generate", "x", "--nope"]) and misunderstood(program, ["data", "nono"])
    assert misunderstood(program, ["gen", "x"]) and not misunderstood(program, ["generate", "x", "--steps", "3"])


def misunderstood(command: Any, words: list[str]) -> str:
    """What the program would answer to these words, empty where it would run them."""
    while subcommands := getattr(command, "commands", {}):
        words = command.with_suite(words) if hasattr(command, "with_suite") else words
        if not words or words[0] in {"--help", *(name for option in command.params for name in option.opts)}:
            return ""
        if words[0] not in subcommands:
            return f"no command `{words[0]}`"
        command, words = subcommands[words[0]], words[1:]
    try:
        # the program is one for all tests of a process, and a command keeps the help option of its first context
        command.make_context("page", [word for word in words if word != "--help"], help_option_names=["-h", "--help"])
    except USAGE_ERROR as error:
        return "" if type(error).__name__ == "MissingParameter" else error.message  # pages may leave things out
    return ""
