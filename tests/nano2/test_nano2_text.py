"""The second Nano's text network: what captions say, what they leave open, and what the first one knew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kandinsky.families.nano.scene_text import SUBJECTS, SceneReading, SceneTextNetwork
from kandinsky.families.nano.scene_words import ROLES
from kandinsky.families.nano.text import NanoTextParams
from kandinsky.lab.nano.concepts import words
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.train_text import READ, begin, beside_rules, draw_example, judge_texts, loss_of

SMALL = NanoTextParams(vocab_size=50, width=32, heads=2, ff_width=32, layers=1, meaning_dim=16, concepts=574)

SAID_OTHERWISE = {"small", "little", "tiny", "big", "large", "huge", "red", "blue", "green", "up", "down", "and", "the"}


def test_choices_leave_out_who_is_not_there() -> None:
    subjects = torch.zeros(1, SUBJECTS, 6)
    for number, row in enumerate((3, 5, 5)):  # the last row says "not there"
        subjects[0, number, row] = 9
    roles = {"motion": torch.tensor([[0.0, 0.0, 4.0]])}
    reading = SceneReading(subjects, roles, torch.zeros(1, SUBJECTS, 4))
    assert reading.chosen(0) == ((3,), {"motion": 2})
    subjects[0, 0, 5] = 20
    assert reading.chosen(0)[0] == (0,)  # nobody is there: the subject is not said


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = SceneTextNetwork(SMALL, {role: ROLES[role] for role in READ}).eval()
    ids, mask = torch.randint(0, 50, (1, 7)), torch.ones(1, 7, dtype=torch.bool)
    longer = torch.cat([ids, torch.full((1, 3), 9)], 1), torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], 1)
    with torch.no_grad():
        short, padded = network(ids, mask), network(*longer)
    assert torch.allclose(short.subjects_BSV, padded.subjects_BSV, atol=1e-5)
    assert torch.allclose(short.roles["motion"], padded.roles["motion"], atol=1e-5)


def test_examples_are_fixed_and_have_no_held_out_synonym() -> None:
    assert draw_example(7) == draw_example(7) != draw_example(9)
    for number in range(0, 600, 2):  # the even ones are English
        example = draw_example(number)
        if len(example.said.subjects) == 1 and example.said.subjects[0] and len(example.text) > 3:
            concept = catalogue()[example.said.subjects[0] - 1]
            own = {w for tag in concept.tags_en.held for w in words(tag)} - set(words(concept.en)) - SAID_OTHERWISE
            assert not own & set(words(example.text)), example.text


def test_a_few_steps_learn_what_captions_say() -> None:
    torch.manual_seed(0)
    texts = begin()
    optimiser = torch.optim.AdamW(texts.network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        examples = [draw_example(n) for n in range(24)]
        loss, _ = loss_of(texts.read([e.text for e in examples]), examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_it_begins_with_what_the_first_network_knew() -> None:
    figures = judge_texts(begin(), count=1)
    assert figures["en single synonyms"] == pytest.approx(0.41, abs=0.06)  # 0.49 among the first concepts alone


@pytest.mark.slow
def test_a_network_is_compared_with_the_rules(tmp_path: Path) -> None:
    """By the same rows; it names nothing that it does not know, and reads something into every text."""
    save_file({name: p.contiguous() for name, p in begin().network.state_dict().items()}, tmp_path / "text.safetensors")
    result = beside_rules(tmp_path)
    network, rules = result["network"], result["rules"]
    assert list(network) == list(rules) and rules["en captions"]["right"] > 0.99
    assert network["en single synonyms"]["right"] == pytest.approx(0.41, abs=0.08)
    assert network["en unknown, refused"]["right"] < 0.5 < rules["en unknown, refused"]["right"]
    assert 0 <= result["fixed prompts"] <= 1 and (tmp_path / "beside_rules.json").exists()
