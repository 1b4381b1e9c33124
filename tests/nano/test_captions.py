"""The list of concepts, its held-out synonyms, and the captions made of it."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from kandinsky.lab.nano import captions, concepts
from kandinsky.lab.nano.captions import CAMERAS, COLOURS, POSITIONS, SCALES, TRAIN_COLOURS, WHITE, caption, held_colours
from kandinsky.lab.nano.concepts import LANGUAGES, any_akin, load_concepts, plain, split_tags, words

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".cache" / "nano" / "packages"


def test_concepts_are_many_distinct_and_named_in_both_languages():
    listed = load_concepts()
    assert 340 <= len(listed) <= 400
    for key in ("hexcode", "file", "en", "ru"):
        assert len({getattr(c, key) for c in listed}) == len(listed), key
    assert all(re.search("[а-я]", c.ru.lower()) for c in listed)
    assert not any(tone in c.file for c in listed for tone in ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_held_tag_is_trained_nowhere_and_shares_no_stem_with_its_label(lang):
    listed = load_concepts()
    held = {t for c in listed for t in c.tags(lang).held}
    trained = {plain(t) for c in listed for t in c.tags(lang).train} | {plain(c.label(lang)) for c in listed}
    assert len(held) > 150
    assert not held & trained
    for c in listed:
        for tag in c.tags(lang).held:
            assert not any_akin(words(tag), words(c.label(lang))), (c.en, tag)
            assert not any_akin(words(tag), [w for t in c.tags(lang).train for w in words(t)]), (c.en, tag)


def test_tags_are_split_without_loss_and_the_same_each_time():
    labels, tags = ["dog", "boat"], [["pup", "doggy", "hound", "animal"], ["rowboat", "ship", "vessel", "animal"]]
    first = split_tags(labels, tags, "en")
    assert first == split_tags(labels, tags, "en")
    for row, split in zip(tags, first, strict=True):
        assert sorted(split.all) == sorted(row)
        assert split.held
    assert "doggy" not in first[0].held
    assert "rowboat" not in first[1].held


@pytest.mark.skipif(not PACKAGES.is_dir(), reason="needs the packages `kandinsky data nano` fetches")
def test_the_committed_list_is_what_the_packages_give():
    assert concepts.rebuild(PACKAGES) == list(load_concepts())
    assert all((PACKAGES / c.file).is_file() for c in load_concepts())


def test_colours_are_told_apart_by_the_nearest():
    rgb = np.array([c.rgb for c in COLOURS], dtype=float)
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1e9 * np.eye(len(rgb))
    assert 10 <= len(COLOURS) <= 12
    assert distance.min() > 60
    assert COLOURS[WHITE].rgb == (255, 255, 255)


def test_a_third_of_the_colours_is_held_out_and_every_colour_somewhere():
    listed = load_concepts()
    for c in listed:
        assert set(TRAIN_COLOURS(c)) | set(held_colours(c)) == set(range(len(COLOURS)))
        assert len(held_colours(c)) == round(len(COLOURS) / 3)
    assert {i for c in listed for i in held_colours(c)} == set(range(len(COLOURS)))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_caption_says_what_it_is_given_and_nothing_else(lang):
    rng = random.Random(0)
    names = [c.en if lang == "en" else c.ru for c in COLOURS]
    for _ in range(300):
        concept = rng.choice(load_concepts())
        colour = rng.choice([None, *range(len(COLOURS))])
        text = plain(caption(concept, colour, lang=lang, rng=rng))
        assert plain(concept.label(lang)) in text
        rest = text.replace(plain(concept.label(lang)), "").replace("gray", "grey")
        stem = (lambda name: plain(name)) if lang == "en" else (lambda name: plain(name)[:-2])
        said = [i for i, name in enumerate(names) if re.search(rf"\b{stem(name)}", rest)]
        if lang == "en" and colour == 4:
            said.remove(5)  # "light blue" contains "blue"
        assert said == ([] if colour is None else [colour]), text


@pytest.mark.parametrize("lang", LANGUAGES)
def test_extra_words_change_the_caption_and_every_one_is_known(lang):
    concept = load_concepts()[0]
    for key, options in (("position", POSITIONS), ("scale", SCALES), ("camera", CAMERAS)):
        texts = {
            o: {caption(concept, 5, lang=lang, rng=random.Random(i), **{key: o}) for i in range(80)} for o in options
        }
        for option, said in texts.items():
            others = set().union(*(t for o, t in texts.items() if o != option))
            assert not said & others, (key, option)


def test_russian_colours_stand_in_the_prepositional_case():
    assert captions.background(5, "ru") == "на синем фоне"
    assert captions.background(4, "ru") == "на голубом фоне"
    assert all(c.ru.endswith(("ом", "ем")) for c in COLOURS)
    assert captions.background(1, "en") == "on an orange background"


def test_tags_replace_the_label_and_are_never_held_ones():
    rng = random.Random(0)
    for concept in load_concepts():
        for lang in LANGUAGES:
            tags = concept.tags(lang)
            if not tags.train:
                continue
            text = plain(caption(concept, None, lang=lang, rng=rng, use_tags=1.0))
            assert any(plain(t) in text for t in tags.train)


def test_evaluation_prompts_use_held_colours_and_held_words():
    listed = load_concepts()
    prompts = captions.evaluation_prompts()
    assert prompts == captions.evaluation_prompts()
    assert len([p for p in prompts if p.kind == "label"]) == 2 * len(listed)
    for lang in LANGUAGES:
        assert len([p for p in prompts if p.kind == "synonym" and p.lang == lang]) > 100
    for p in prompts:
        concept = listed[p.concept_index]
        assert p.colour in held_colours(concept)
        named = p.text.removesuffix(captions.background(p.colour, p.lang)).strip().split(", ")
        if p.kind == "synonym":
            held = set(concept.tags(p.lang).held)
            assert set(named) <= held
            others = [c for c in listed if c is not concept and set(named) <= {plain(t) for t in c.tags(p.lang).all}]
            assert not others, "a synonym prompt must single its concept out"


def test_written_associations_add_words_but_nothing_held():
    """Whatever the file says: no word of a held tag, and nothing akin to a concept's own held tags, is trained."""
    listed = load_concepts()
    more = concepts.with_associations(listed, ROOT / "recipes" / "nano-words.json.xz")
    for lang in LANGUAGES:
        held = {w for c in listed for t in c.tags(lang).held for w in words(t)}
        for before, after in zip(listed, more, strict=True):
            new = set(after.tags(lang).train) - set(before.tags(lang).train)
            assert after.tags(lang).held == before.tags(lang).held
            assert not held & {w for t in new for w in words(t)}
            assert not any_akin(
                [w for t in new for w in words(t)], [w for t in before.tags(lang).held for w in words(t)]
            )
        grown = sum(len(c.tags(lang).train) for c in more) / sum(len(c.tags(lang).train) for c in listed)
        assert grown > 2


def test_a_held_tag_in_the_file_is_dropped(tmp_path):
    concept = next(c for c in load_concepts() if c.tags_en.held)
    path = tmp_path / "words.json"
    path.write_text(json.dumps({concept.hexcode: {"en": [concept.tags_en.held[0], "quite another word"]}}))
    (more,) = (c for c in concepts.with_associations(load_concepts(), path) if c.hexcode == concept.hexcode)
    assert more.tags_en.train == (*concept.tags_en.train, "quite another word")
