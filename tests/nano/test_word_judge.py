"""The judge of words: left-out words lose their owners, figures come from exemplars, and what is learned is right."""

import gzip
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from kandinsky.lab.nano.concepts import Concept, Tags, any_akin, words
from kandinsky.lab.nano.text_teachers import Space, centred, plain_gloss, read_thesaurus, read_translations
from kandinsky.lab.nano.word_judge import (
    Acquaintance,
    Exemplars,
    Judgements,
    WordJudge,
    fit_ranker,
    leave_out,
    standing,
    together,
)

NAMES = ("cat", "boat", "king", "cloud", "drum", "lamp", "rose", "wolf")
SOUNDS = ("zu", "ka", "mo", "li", "pe", "ta", "no", "vi", "xo", "ba", "fe", "gu")


def world() -> tuple[list[Concept], Space]:
    """Eight concepts whose words stand around a direction of their own; no two words are spelt alike."""
    generator = torch.Generator().manual_seed(0)
    concepts, rows, index = [], [], {}
    for i, name in enumerate(NAMES):
        own = torch.randn(24, generator=generator)
        tags = [SOUNDS[j] + SOUNDS[(3 * j + i) % 12] + SOUNDS[i] for j in range(12)]
        for text in (name, *tags):
            index[text] = len(rows)
            rows.append(own + 0.5 * torch.randn(24, generator=generator))
        concepts.append(Concept(str(i), "", "", name, name, "singular", Tags(tuple(tags)), Tags(tuple(tags))))
    vectors = centred(torch.stack(rows))
    return concepts, Space({"en": vectors, "ru": vectors}, {"en": index, "ru": index})


def test_left_out_words_are_known_to_nobody_and_asked_of_their_owners() -> None:
    concepts, _ = world()
    known = [[c.en, *c.tags_en.train] for c in concepts]
    asked = set()
    for fold in range(4):
        kept, queries = leave_out(known, "en", fold)
        gone = {t for _, query in queries for t in query}
        asked |= gone
        assert not gone & {t for row in kept for t in row}
        for owner, query in queries:
            assert 1 <= len(query) <= 3
            assert set(query) <= set(known[owner])
            rest = [w for t in kept[owner][1:] for w in words(t)]
            assert not any_akin(rest, [w for t in query for w in words(t)])
        assert [row[0] for row in kept] == list(NAMES)
    assert asked == {t for row in known for t in row[1:]}


def test_names_are_trusted_most_and_known_by_their_forms() -> None:
    concepts, space = world()
    tags = [c.tags_en.train for c in concepts]
    named = [replace(c, tags_en=Tags(c.tags_en.train[:2]), tags_ru=Tags()) for c in concepts]
    concepts[1] = replace(concepts[1], tags_en=Tags((*tags[1], "cat", tags[0][5], tags[0][0])))
    concepts[3] = replace(concepts[3], en="cloud face")
    judge = WordJudge(concepts, [space_with(space, "cloud face")], named=named, form=lambda _, t: t.removesuffix("s"))

    def told(text: str) -> tuple[float, list[int]] | None:
        found = judge.told("en", text)
        return found and (found[0], found[1].nonzero()[:, 0].tolist())

    assert told("cats") == told("cat") == (0.9, [0])
    assert told("clouds") == (0.9, [3])
    assert told(tags[0][0] + "s") == (0.6, [0])
    assert told(tags[0][5]) == (0.3, [0, 1])
    assert told(tags[0][5] + "s") is None
    assert told("strange") is None


def space_with(space: Space, text: str) -> Space:
    """The space with one more text, of which nothing is known."""
    vectors = torch.cat([space.vectors["en"], torch.zeros(1, 24)])
    index = {**space.index["en"], text: len(vectors) - 1}
    return Space({"en": vectors, "ru": vectors}, {"en": index, "ru": index})


def test_a_known_word_is_judged_as_if_it_were_left_out() -> None:
    concepts, space = world()
    known = [[c.en, *c.tags_en.train] for c in concepts]
    plain_known = [list(row) for row in known]
    plain_known[0].remove("cat")
    plain_known[0].insert(0, known[0][1])
    known[2].append("cat")
    without = [[t for t in row if t != "cat"] for row in known]
    figures = Acquaintance([space], {"en": known, "ru": plain_known}).figures("en", ["cat"])
    other = Acquaintance([space], {"en": without, "ru": plain_known}).figures("en", ["cat"])
    torch.testing.assert_close(figures[..., -1], other[..., -1], atol=2e-2, rtol=0)  # only the owners' mean differs
    label_and_mean = [0, 4]
    torch.testing.assert_close(figures[:, 3:, label_and_mean], other[:, 3:, label_and_mean])
    assert float(figures[0, 0, 0]) < 0  # it is its own label, and not compared with it


def test_a_word_akin_to_the_label_or_shared_by_many_is_never_asked_for() -> None:
    known = [["cat", "catlike", "common"], ["boat", "common"], ["king", "common"], ["drum", "common", "beater"]]
    asked = {t for fold in range(4) for _, query in leave_out(known, "en", fold)[1] for t in query}
    assert asked == {"beater"}


def test_the_judge_gives_words_back_and_says_how_surely() -> None:
    concepts, space = world()
    judge = WordJudge(concepts, [space_with(space, "qqq")])
    assert judge.accuracy["en"] > 0.8
    listed = [(i, t) for i, c in enumerate(concepts) for t in (c.en, *c.tags_en.train)]
    asked = torch.stack([together(judge.figures("en", [t])) for _, t in listed])
    right = judge.judge("en", asked).argmax(dim=1) == torch.tensor([i for i, _ in listed])
    assert right.float().mean() > 0.9  # known words, judged as if they were not
    known, strange = (together(judge.figures("en", [text])) for text in ("boat", "qqq"))
    shares = judge.judge("en", torch.stack([known, strange])).softmax(dim=1)
    assert int(shares[0].argmax()) == 1
    torch.testing.assert_close(shares[1], torch.full((8,), 1 / 8))


def test_judgements_are_those_of_the_judge_and_groups_speak_of_one_thing() -> None:
    concepts, space = world()
    texts = [("en", t) for c in concepts for t in (c.en, *c.tags_en.train)]
    owners = {t: i for i, c in enumerate(concepts) for t in (c.en, *c.tags_en.train)}
    # four of twelve words are known to nobody
    fewer = [replace(c, tags_en=Tags(c.tags_en.train[4:]), tags_ru=Tags(c.tags_ru.train[4:])) for c in concepts]
    judge = WordJudge(fewer, [space])
    judgements = Judgements(judge, texts, groups=5, likely=6)
    assert [j.texts for j in judgements.singles] == [(t,) for _, t in texts]
    sure = [float(j.shares[owners[j.texts[0]]]) for j in judgements.singles]
    labels = {c.en for c in concepts}
    assert all(share > 0.85 for share, (_, text) in zip(sure, texts, strict=True) if text in labels)
    known = [(j, told) for j in judgements.singles if (told := judge.told("en", j.texts[0]))]
    assert len(known) == 8 * 9
    for judged, (trust, owned) in known[:20]:
        figures = together(judge.figures("en", judged.texts))
        expected = (1 - trust) * judge.judge("en", figures[None]).softmax(dim=1)[0] + trust * owned
        torch.testing.assert_close(judged.shares.float(), expected, atol=1e-2, rtol=0)
    for judged in (judgements.singles[3], judgements.groups[0], judgements.groups[-1]):
        figures = together(judge.figures("en", judged.texts))
        expected = judge.judge("en", figures[None]).softmax(dim=1)[0]
        torch.testing.assert_close(judged.shares.float(), expected, atol=1e-2, rtol=0)
    same = [len({owners[t] for t in j.texts}) == 1 for j in judgements.groups]
    assert all(1 < len(j.texts) <= 3 for j in judgements.groups)
    assert sum(same) > 0.9 * len(same)
    rng = random.Random(0)
    drawn = [int(judgements.draw(rng).shares.argmax()) for _ in range(400)]
    assert all(30 < drawn.count(c) < 75 for c in range(8))  # every concept as often


def test_figures_fall_with_distance_and_hubs_count_less() -> None:
    base = F.normalize(torch.randn(3000, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    base[9] = F.normalize(base[3] + 0.2 * base[9], dim=0)
    index = {str(i): i for i in range(len(base))}

    def compare(vectors: torch.Tensor, known: list[list[str]]) -> torch.Tensor:
        return Exemplars(Space({"en": vectors}, {"en": index}), "en", known).compare("en", ["9"])

    figures = compare(base, [["3", "4"], ["5"], ["6", "7", "8"]])
    assert figures.shape == (1, 3, 5)
    assert int(figures[0, :, 1].argmax()) == 0
    crowd = base.clone()
    crowd[20:] = F.normalize(base[3] + 0.05 * base[20:], dim=1)  # everything gathers around exemplar 3
    assert compare(crowd, [["3"], ["5"]])[0, 0, 0] < figures[0, 0, 0] - 0.02


def test_the_regression_of_owners_knows_its_exemplars_and_says_nothing_of_strangers() -> None:
    concepts, space = world()
    known = [[c.en, *c.tags_en.train] for c in concepts]
    figures = Acquaintance([space], {"en": known, "ru": known}).figures("en", [c.en for c in concepts])
    assert figures.shape == (8, 8, 11)
    assert figures[..., -1].argmax(dim=1).tolist() == list(range(8))


def test_standing_counts_those_before_and_equals_share_a_place() -> None:
    figures = torch.tensor([0.5, 0.9, 0.1, 0.9])[None, :, None]
    own, behind, place = standing(figures).unbind(dim=-1)
    torch.testing.assert_close(own, figures[..., 0])
    torch.testing.assert_close(behind[0], torch.tensor([-0.4, 0.0, -0.8, 0.0]))
    torch.testing.assert_close(place[0], -torch.log1p(torch.tensor([2.0, 0.0, 3.0, 0.0])))


def test_a_ranker_finds_the_figure_that_tells() -> None:
    generator = torch.Generator().manual_seed(0)
    figures = torch.randn(400, 5, 3, generator=generator)
    owners = figures[:, :, 1].argmax(dim=1)
    ranker = fit_ranker(figures[:300], owners[:300])
    again = fit_ranker(figures[:300], owners[:300])
    assert (ranker(figures[300:]).argmax(dim=1) == owners[300:]).float().mean() > 0.9
    torch.testing.assert_close(ranker(figures), again(figures), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wiki", "plain"),
    [
        ("{{зоол.|ru}} [[животное]] рода [[лама|лам]]", "животное рода лам"),
        ("[[лодка]] {{пример|{{выдел|Лодка}} плывёт.}}", "лодка"),
        ("{{помета|{{сленг}}}} [[деньги]]<ref>x</ref>", "деньгиx"),
    ],
)
def test_a_gloss_loses_its_wiki_marks(wiki: str, plain: str) -> None:
    assert plain_gloss(wiki) == plain


def test_a_dictionary_is_read_backwards(tmp_path: Path) -> None:
    articles = (
        "oar\n   [ɘ:]\n   1. _n.\n      1) весло; to pull a good oar хорошо грести\n      2) гребец\n",
        "row\n   грести, вёсла\n",
    )
    path = tmp_path / "dictionary.gz"
    path.write_bytes(gzip.compress("".join(articles).encode()))
    found = read_translations(path)
    assert found["весло"] == {"oar": pytest.approx(1 / 1.3)}
    assert found["гребец"]["oar"] < found["весло"]["oar"]
    assert set(found["грести"]) == {"row"}
    assert set(found["весла"]) == {"row"}


def test_a_thesaurus_becomes_a_gloss_of_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "thesaurus.dat"
    lines = ("UTF-8", "Ёж|2", "(синоним)|ежик|зверек", "(сходный термин)|игла", "лук|1", "(сходный термин)|овощ")
    path.write_text("\n".join(lines), "utf-8-sig")
    assert read_thesaurus(path) == {"еж": ["еж: ежик, зверек"]}
