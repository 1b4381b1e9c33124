"""What the pages say is so: models, commands, links."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from kandinsky import catalogue
from kandinsky.cli.main import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
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
    program = typer.main.get_command(build())
    for line in commands(page.read_text(encoding="utf-8")):
        words = [word for word in shlex.split(line, comments=True) if not word.startswith("$")]
        if fault := misunderstood(program, words[1:]):
            pytest.fail(f"{line}: {fault}")


def test_a_wrong_command_is_found() -> None:
    program = typer.main.get_command(build())
    assert misunderstood(program, ["generate", "x", "--nope"]) and misunderstood(program, ["data", "nono"])
    assert misunderstood(program, ["gen", "x"]) and not misunderstood(program, ["generate", "x", "--steps", "3"])


def misunderstood(command: Any, words: list[str]) -> str:
    """What the program would answer to these words, empty where it would run them."""
    while subcommands := getattr(command, "commands", {}):
        if words[:1] in ([], ["--help"], ["--version"]):
            return ""
        if words[0] not in subcommands:
            return f"no command `{words[0]}`"
        command, words = subcommands[words[0]], words[1:]
    try:
        command.make_context("page", [word for word in words if word != "--help"])
    except USAGE_ERROR as error:
        return "" if type(error).__name__ == "MissingParameter" else error.message  # pages may leave things out
    return ""
