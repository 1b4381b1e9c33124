"""Measures of a Nano of scenes: perfect of what was asked for, and of everything else they say what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scenes_for_tests import DrawnSources

from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.portraits import PortraitDecoder
from kandinsky.families.nano.scene_transformer import SceneTransformer
from kandinsky.families.nano.scene_words import SceneWords
from kandinsky.families.nano.scenes import RGB, Scene, plain_scene
from kandinsky.lab.nano.evaluate import evaluate, evaluated, table
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.judge import silence
from kandinsky.lab.nano2.measures import (
    GROUPS,
    MEASURES,
    OTHERS,
    PortraitImages,
    Reference,
    Session,
    caption_of,
    clip_figures,
    image_texts,
    measure_words,
    planned,
    scene_groups,
    tracked,
)
from kandinsky.lab.nano2.word_list import read
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec

BLUE, CAT = 5, 3


class OwnShades(DrawnSources):
    """As ``DrawnSources``, but no two concepts are alike: each bar has its own length."""

    def frames(self, concept: int | None, row: int | None = None, *, count: int = 25) -> torch.Tensor:
        image = super().frames(concept, row, count=count)
        image[:, :, 100:120, : 10 + (concept or 0) // 7] = 0.9
        return image


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(OwnShades(30), are_real=True)


def blue(concept: int = CAT, **changes: Any) -> Scene:
    return replace(plain_scene(concept, BLUE), **changes)


@pytest.mark.parametrize("kind", list(OTHERS))
def test_only_what_was_asked_for_is_as_told(reference: Reference, kind: str) -> None:
    scene = scene_groups(6)[kind][0]
    scene = replace(scene, subjects=tuple(replace(s, concept=(s.concept or 0) % 30) for s in scene.subjects))
    others = OTHERS[kind](scene)
    assert others[0] == scene and len(set(others)) == len(others) > 2
    clips = [reference.clip(one) for one in others]
    assert [reference.is_as_told(kind, clip, scene) for clip in clips] == [True] + [False] * (len(clips) - 1)


def test_a_concept_is_told_from_all_others(reference: Reference) -> None:
    scenes = [blue(2), blue(9), blue(23)]
    right = [reference.clip(scene) for scene in scenes]
    figures = clip_figures("plain", right, scenes, reference)
    assert figures["as_told"] == figures["colour"] == 1 and figures["candidates"] == 30
    assert figures["middle_off"] == figures["size_off"] == 0 and figures["flicker"] == pytest.approx(1)
    assert figures["psnr_db"] == 99 and figures["floor_db"] is None
    wrong = clip_figures("plain", right[::-1], scenes, reference)
    assert wrong["as_told"] == pytest.approx(1 / 3)
    red = clip_figures("plain", [reference.clip(replace(one, colours=(0, None))) for one in scenes], scenes, reference)
    assert red["colour"] == 0


def test_places_and_sizes_are_measured_in_shares_of_the_side(reference: Reference) -> None:
    scene = blue(0)
    subject = scene.subjects[0]
    moved = replace(scene, subjects=(replace(subject, x=0.6),))
    grown = replace(scene, subjects=(replace(subject, size=subject.size * 1.25),))
    for made, middle, size in ((moved, 0.1, 0.0), (grown, 0.0, 0.25)):
        figures = clip_figures("places", [reference.clip(made)], [scene], reference)
        assert figures["middle_off"] == pytest.approx(middle, abs=0.01)
        assert figures["size_off"] == pytest.approx(size, abs=0.03)
    assert np.isnan(tracked(np.full((3, 16, 16, 3), RGB[BLUE], np.uint8), RGB[BLUE])).all()


def test_captions_say_all_of_their_scenes() -> None:
    for kind, scenes in scene_groups(24).items():
        for number, scene in enumerate(scenes):
            found = read(caption_of(scene, number)).scene
            assert found is not None and found.colours == scene.colours, kind
            assert [one.concept for one in found.subjects] == [one.concept for one in scene.subjects], kind
            assert (found.motion, found.camera) == (scene.motion, scene.camera), kind


def test_words_of_beside_images() -> None:
    scenes = [blue(1), blue(2)]
    assert image_texts("no words", scenes) == ["", ""]
    own, other = image_texts("only the subject", scenes), image_texts("another subject", scenes)
    assert read(own[0]).scene != read(other[0]).scene and len(set(own)) == 2


def test_a_reader_is_judged_by_what_it_reads() -> None:
    rows = measure_words(read)
    assert all(0 <= row["right"] <= 1 for row in rows.values())
    assert rows["en captions"]["right"] > 0.99 and rows["ru unknown, refused"]["right"] == 1
    deaf = measure_words(lambda text: read("zzz"))
    assert deaf["en single synonyms"]["right"] == deaf["ru captions"]["right"] == 0
    assert deaf["en negation"]["right"] == 1


@pytest.mark.parametrize("task", ["text-to-video", "image-to-video"])
def test_a_session_makes_what_it_planned(reference: Reference, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    reference = Reference.of(OwnShades(574), are_real=False)
    monkeypatch.setattr(reference, "_plain", torch.zeros(2, 574, 7, 3, 24, 24))

    def make(texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]:
        asked.extend(texts)
        first = images or [np.full((192, 192, 3), 90, np.uint8)] * len(texts)
        return [np.repeat(image[None], 25, axis=0) for image in first]

    chosen = [GROUPS[task][0], GROUPS[task][1]]
    session = Session(make, reference, read, 2, 2, groups=chosen)
    result = MEASURES[task](session)
    assert list(result["groups"]) == chosen and len(asked) == planned(session, task)
    assert "| " + chosen[0] + " | " in table(result | {"seconds_a_clip": 1.0, "settings": {}})


def test_portraits_are_images() -> None:
    torch.manual_seed(0)
    decoder, words = PortraitDecoder(8), SceneWords(3, codes=8, pooled=4)
    for part in decoder.buffers():
        part.copy_(torch.randn(part.shape) / 20)
    words.memory.codes.copy_(torch.randn(words.memory.codes.shape))
    images = PortraitImages(decoder, words)
    assert len(images) == 3
    codes, _ = words.memory(torch.tensor([[2]]))
    assert torch.equal(images.frames(1, count=9), decoder(codes[0], 9)[0])


def test_models_of_scenes_have_groups_of_their_own() -> None:
    assert {"nano2-t2v", "nano2-i2v", "nano-v2a", "nano-world"} <= set(evaluated())
    with pytest.raises(RequestError, match="use `words that fit`"):
        evaluate("nano2-i2v", groups=["plain"])
    with pytest.raises(RequestError, match="kandinsky data nano"):
        evaluate("nano2-t2v", cache="nowhere", groups=["plain"])


def test_the_command_takes_a_folder_by_either_name(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--data", "--folder"):
        assert main(["evaluate", "nano2-t2v", option, "nowhere", "--group", "plain"]) != 0
        assert "run `kandinsky data nano` first" in capsys.readouterr().err


def test_a_silent_network_adds_nothing() -> None:
    params = DiTParams(
        in_visual_dim=64, out_visual_dim=64, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(8, 4, 4), patch_size=(1, 2, 2), visual_cond=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = SceneTransformer(params)
    for part in net.parameters():
        torch.nn.init.normal_(part, std=0.1)
    x, text = torch.randn(1, 2, 4, 4, params.input_channels), TextEmbeddings(torch.randn(1, 117, 8), torch.randn(1, 8))

    def added() -> float:
        with torch.no_grad():
            return float(net(x, torch.ones(1), text, attention=AttentionSpec(backend="math")).abs().max())

    assert added() > 0
    silence(net)
    assert added() == 0
