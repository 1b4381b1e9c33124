"""The judge of words: left-out words lose their owners, figures come from exemplars, and what is learned is right."""

import gzip
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from kandinsky.data.concepts import Concept, Tags, any_akin, words
from kandinsky.train.text_teachers import Space, centred, plain_gloss, read_translations
from kandinsky.train.word_judge import Judgements, WordJudge, compare, conditional_logit, leave_out

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


def test_a_word_akin_to_the_label_or_shared_by_many_is_never_asked_for() -> None:
    known = [["cat", "catlike", "common"], ["boat", "common"], ["king", "common"], ["drum", "common", "beater"]]
    asked = {t for fold in range(4) for _, query in leave_out(known, "en", fold)[1] for t in query}
    assert asked == {"beater"}


def test_the_judge_gives_words_back_and_says_how_surely() -> None:
    concepts, space = world()
    judge = WordJudge(concepts, [space])
    assert judge.accuracy["en"] > 0.8
    unknown = torch.cat([space.vectors["en"], torch.zeros(1, 24)])
    index = {**space.index["en"], "qqq": len(unknown) - 1}
    judge.spaces = [Space({"en": unknown, "ru": unknown}, {"en": index, "ru": index})]
    logits = judge.judge("en", judge.figures("en", ["boat"]))
    assert int(logits.argmax()) == 1
    lost = judge.judge("en", judge.figures("en", ["qqq"])).softmax(dim=0)
    torch.testing.assert_close(lost, torch.full((8,), 1 / 8))


def test_judgements_are_those_of_the_judge_and_only_of_what_was_prepared() -> None:
    concepts, space = world()
    judge = WordJudge(concepts, [space])
    texts = [("en", t) for t in (*NAMES, *concepts[2].tags_en.train)]
    judgements = Judgements(judge, texts)
    pair = [concepts[2].tags_en.train[0], "king"]
    shares = judgements.of("en", pair)
    assert shares is not None
    expected = judge.judge("en", judge.figures("en", pair)).softmax(dim=0)
    torch.testing.assert_close(shares, expected, atol=5e-3, rtol=0)
    assert judgements.of("en", ["king", concepts[0].tags_en.train[0]]) is None
    assert judgements.of("ru", ["king"]) is None


def test_figures_fall_with_distance_and_hubs_count_less() -> None:
    base = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    index = {str(i): i for i in range(40)}
    space = Space({"en": base}, {"en": index})
    figures = compare(space, "en", ["3"], "en", [["3", "4"], ["5"], ["6", "7", "8"]])
    assert figures.shape == (1, 3, 5)
    assert int(figures[0, :, 1].argmax()) == 0
    crowd = base.clone()
    crowd[20:] = F.normalize(base[3] + 0.05 * base[20:], dim=1)  # everything gathers around exemplar 3
    crowded = compare(Space({"en": crowd}, {"en": index}), "en", ["3"], "en", [["3"], ["5"]])
    assert crowded[0, 0, 0] < figures[0, 0, 0]


def test_conditional_logit_finds_the_figure_that_tells() -> None:
    generator = torch.Generator().manual_seed(0)
    figures = torch.randn(200, 5, 3, generator=generator)
    owners = figures[:, :, 1].argmax(dim=1)
    weights = conditional_logit(figures, owners)
    assert weights.weight.abs().argmax() == 1
    assert (weights.logits(figures).argmax(dim=1) == owners).float().mean() > 0.95


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
