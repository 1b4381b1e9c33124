"""Nothing moved: results, recipes and words are those that were written down by ``record.py``."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest

from frozen import measure, record, texts
from tiny import catalogue

LONG = ("groups", "video 1.0", "video 1.1", "k5 t2v nabla", "k5 i2v", "k3.1 flash", "k3 inpainting")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return catalogue.write(tmp_path_factory.mktemp("frozen") / "tiny")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "part", [pytest.param(one, marks=pytest.mark.slow) if one in LONG else one for one in measure.PARTS]
)
def test_every_number_is_the_one_written_down(part: str, folder: Path) -> None:
    frozen, processor = record.read(), measure.processor()
    found = measure.part(part, folder)
    if processor not in frozen["hashes"]:
        print(f"`{processor}` is not among {', '.join(frozen['hashes'])}: summaries are compared")
    wrong = record.moved(found.arrays, frozen, processor)
    wrong += [
        f"{name}: the recipe is {told}, and was {frozen['recipes'].get(name)}"
        for name, told in found.recipes.items()
        if told != frozen["recipes"].get(name)
    ]
    assert not wrong, "\n".join([f"{len(wrong)} entries moved:", *wrong])


def test_nothing_that_was_written_down_is_left_out() -> None:
    """A case that is dropped is dropped from the file too."""
    frozen = record.read()
    for names in frozen["hashes"].values():
        titles = {name.rpartition(": ")[0] for name in names}
        expected = {f"{name}, {way}" for name, model in measure.MODELS.items() for way in model.ways}
        expected |= {f"two processes, {title}" for title in measure.GROUPS}
        assert {title for title in titles if not title.startswith("train ")} == expected == set(frozen["recipes"])
    assert set(next(iter(frozen["hashes"].values())).values()) == set(frozen["summaries"])


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, dict[str, list[str]]]:
    return texts.said(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", ["help", "plans", "refused on the command line", "refused in Python"])
def test_every_word_is_the_one_written_down(section: str, said: dict[str, dict[str, list[str]]]) -> None:
    frozen = json.loads(record.TEXTS.read_text(encoding="utf-8"))[section]
    assert said[section].keys() == frozen.keys()
    wrong = [
        "\n".join(difflib.unified_diff(frozen[name], lines, "written down", name, lineterm="", n=0))
        for name, lines in said[section].items()
        if lines != frozen[name]
    ]
    assert not wrong, "\n".join([f"{len(wrong)} texts moved:", *wrong])


def test_a_result_that_moves_is_told() -> None:
    """The comparison sees one number among thousands by its hash, and a large change by the summary alone."""
    name, summary = "k3, plain: latent", {}
    frozen = record.read()
    shape = frozen["summaries"][next(iter(frozen["hashes"].values()))[name]]["shape"]
    import numpy as np

    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    digest, summary = measure.digest(array), measure.summary(array)
    known = {"hashes": {"here": {name: digest}}, "summaries": {digest: summary}}
    assert record.moved({name: array}, known, "here") == record.moved({name: array}, known, "elsewhere") == []
    array[0, 1, 1, 1] = np.nextafter(array[0, 1, 1, 1], 9)
    assert len(record.moved({name: array}, known, "here")) == 1
    assert record.moved({name: array}, known, "elsewhere") == []
    assert len(record.moved({name: array * 1.1}, known, "elsewhere")) == 1
    assert len(record.moved({name: array[:, :-1]}, known, "elsewhere")) == 1
    assert len(record.moved({"another": array}, known, "here")) == 1
