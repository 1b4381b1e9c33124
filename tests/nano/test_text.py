"""The small text network and its encoder, at tiny size from random weights, and how they learn."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.nano.text import ROLES, NanoTextNetwork, NanoTextParams
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano.concepts import load_concepts, plain
from kandinsky.lab.nano.text_encoder import Examples, Settings, fit, initialise, losses
from kandinsky.lab.nano.text_teachers import Forms, Space, Vocabulary, centred
from kandinsky.lab.nano.text_words import Sources, make_tokenizer, with_whole_words
from kandinsky.lab.nano.word_judge import Judgements, WordJudge
from kandinsky.text.protocol import TextEncoder
from kandinsky.weights.write import write_state


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    listed = load_concepts()
    texts = {lang: [c.label(lang).lower() for c in listed] for lang in ("en", "ru")}
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    make_tokenizer(Sources(texts, {"en": [], "ru": []}, {"en": ["hello"], "ru": ["привет"]}), 1200).save(str(path))
    return path


@pytest.fixture(scope="module")
def tiny(tokenizer_file) -> NanoTextEncoder:
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    params = NanoTextParams(vocab_size=tokenizer.get_vocab_size(), width=32, ff_width=64, layers=2, meaning_dim=256)
    return NanoTextEncoder(NanoTextNetwork(params), tokenizer)


def test_shapes_and_protocol(tiny):
    assert isinstance(tiny, TextEncoder)
    states = tiny.encode(["a panda on a blue background", "панда"])
    assert states.tokens_BLC.shape == (2, len(ROLES) + 1, 256)
    assert states.pooled_BC.shape == (2, 256)
    assert states.mask_BL is None
    assert states.tokens_BLC.dtype == torch.float32
    assert not states.tokens_BLC.requires_grad


def test_a_prompt_does_not_depend_on_its_neighbours(tiny):
    alone = tiny.encode(["a fox"])
    among = tiny.encode(["a fox", "a very long prompt about a robot that waves on a light blue background at the top"])
    torch.testing.assert_close(alone.tokens_BLC[0], among.tokens_BLC[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.pooled_BC[0], among.pooled_BC[0], atol=1e-5, rtol=1e-5)


def test_case_yo_and_spaces_do_not_matter(tiny):
    one = tiny.encode(["Ёж  на зелёном фоне "])
    two = tiny.encode(["еж на зеленом фоне"])
    assert torch.equal(one.tokens_BLC, two.tokens_BLC)


def test_the_empty_prompt_is_one_state_of_its_own(tiny):
    empty, spaces, fox = (tiny.encode([text]) for text in ("", "  \n", "fox"))
    assert torch.equal(empty.tokens_BLC, spaces.tokens_BLC)
    for i, role in enumerate(ROLES):
        assert torch.equal(empty.tokens_BLC[0, i], tiny.network.memories[role].tokens_VC[-1])
        assert not torch.equal(empty.tokens_BLC[0, i], fox.tokens_BLC[0, i])
    assert torch.equal(empty.tokens_BLC, tiny.encode([""], still=True).tokens_BLC)


def test_still_changes_one_state(tiny):
    clip, still = tiny.encode(["fox"]), tiny.encode(["fox"], still=True)
    assert torch.equal(clip.tokens_BLC[:, :-1], still.tokens_BLC[:, :-1])
    assert not torch.equal(clip.tokens_BLC[:, -1], still.tokens_BLC[:, -1])


@pytest.mark.parametrize("text", ["🐼", "熊猫 ∮ ﷽", "a" * 5000, "\x00", "é́́", "…!?"])
def test_anything_that_can_be_typed_gives_finite_states(tiny, text):
    states = tiny.encode([text])
    assert states.tokens_BLC.isfinite().all()
    assert states.pooled_BC.isfinite().all()


@pytest.mark.parametrize("prompts", [[], "a panda"])
def test_what_is_no_list_of_prompts_is_refused(tiny, prompts):
    with pytest.raises(RequestError, match="at least one"):
        tiny.encode(prompts)


def test_files_give_the_same_states_and_bad_ones_are_named(tiny, tokenizer_file, tmp_path):
    p = tiny.network.params
    changed = {"vocab_size": p.vocab_size, "width": p.width, "ff_width": p.ff_width, "layers": p.layers}
    weights = write_state(tiny.network.state_dict(), tmp_path / "text.safetensors", layout="official")
    again = NanoTextEncoder.from_files(weights, tokenizer_file, changed)
    for name, tensor in tiny.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    torch.testing.assert_close(tiny.encode(["fox"]).tokens_BLC, again.encode(["fox"]).tokens_BLC)
    with pytest.raises(WeightsError, match=r"none\.json"):
        NanoTextEncoder.from_files(weights, tmp_path / "none.json", changed)
    with pytest.raises(WeightsError, match="tokens"):
        NanoTextEncoder.from_files(weights, tokenizer_file, {**changed, "width": 64})
    with pytest.raises(RequestError, match="depth"):
        NanoTextEncoder.from_files(weights, tokenizer_file, {**changed, "depth": 3})


def test_slots_are_the_same_in_every_network_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = NanoTextNetwork(NanoTextParams(vocab_size=10))
    torch.manual_seed(2)
    two = NanoTextNetwork(NanoTextParams(vocab_size=10))
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.tokens.weight, two.tokens.weight)
    assert abs(one.memories["concept"].tokens_VC.std() - 1) < 0.02


def test_default_size_stays_within_its_budget():
    with torch.device("meta"):
        network = NanoTextNetwork(NanoTextParams())
    assert sum(t.numel() for t in network.state_dict().values()) < 4_000_000
    assert network.params.concepts == len(load_concepts())


@pytest.mark.slow
def test_a_few_steps_teach_concepts_and_roles(tokenizer_file):
    """The real objective on three concepts: losses fall and captions are told apart."""
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    listed = load_concepts()[:3]
    keys = list(
        dict.fromkeys(
            (lang, text.lower().replace("ё", "е"))
            for c in listed
            for lang in ("en", "ru")
            for text in (c.label(lang), *c.tags(lang).train)
        )
    )
    meanings = torch.nn.functional.normalize(torch.randn(len(keys), 256), dim=1)
    vocabulary = Vocabulary({k: i for i, k in enumerate(keys)}, meanings, keys)
    rows = {lang: {text: i for i, (_, text) in enumerate(k for k in keys if k[0] == lang)} for lang in ("en", "ru")}
    vectors = {lang: centred(meanings[[vocabulary.index[lang, t] for t in rows[lang]]]) for lang in rows}
    judgements = Judgements(WordJudge(listed, [Space(vectors, rows)]), keys)
    params = NanoTextParams(vocab_size=tokenizer.get_vocab_size(), width=64, ff_width=64, layers=1, concepts=3)
    encoder = NanoTextEncoder(NanoTextNetwork(params), tokenizer)
    draw = Examples(listed, vocabulary, judgements, random.Random(0), near_share=0.8)
    sample = [draw.known_caption() for _ in range(64)]
    guessed = [e for e in (draw.unknown() for _ in range(20)) if e.judged is not None]
    assert 10 < len(guessed) < 20
    assert all(e.concept is None and float(e.judged.sum()) == pytest.approx(1, abs=2e-3) for e in guessed)
    settings = Settings(packages="", word_steps=5, caption_steps=70, batch=32, lr=1e-2)
    with torch.no_grad():
        before, judged_before = losses(encoder, sample, settings)[0], losses(encoder, guessed, settings)[1]["judged"]
    fit(encoder, draw, settings, None)
    with torch.no_grad():
        after, judged_after = losses(encoder, sample, settings)[0], losses(encoder, guessed, settings)[1]["judged"]
    assert after < 0.7 * before
    assert judged_after < 0.7 * judged_before
    ids, mask, _ = encoder.tokenize([f"{c.en} on a blue background" for c in listed])
    assert encoder.network.read(ids, mask).logits["concept"].argmax(dim=1).tolist() == [0, 1, 2]

    # a pace of the tokens' rows is theirs alone
    before = {name: p.detach().clone() for name, p in encoder.network.named_parameters()}
    fit(encoder, draw, replace(settings, rows_pace=0.0, word_steps=0, caption_steps=2), None)
    still = [name for name, p in encoder.network.named_parameters() if torch.equal(p, before[name])]
    assert still == ["tokens.weight"]


def test_a_training_goes_on_from_weights_and_gets_more_words(tokenizer_file, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    more = with_whole_words(tokenizer, ["hullabaloo", "ёж", "hello"])
    assert more.encode("a hullabaloo").tokens == [*tokenizer.encode("a").tokens, "▁hullabaloo"]
    assert more.encode("ёж").tokens[1:] == ["▁еж"]
    fewer_rows, rows = tokenizer.get_vocab_size(), more.get_vocab_size()
    assert fewer_rows < rows

    sizes = {"width": 32, "ff_width": 32, "layers": 1, "concepts": 3}
    torch.manual_seed(0)
    old = NanoTextNetwork(NanoTextParams(vocab_size=fewer_rows, **sizes))
    start = write_state(old.state_dict(), tmp_path / "text.safetensors")
    listed = load_concepts()[:3]
    keys = [(lang, plain(t)) for c in listed for lang in ("en", "ru") for t in (c.label(lang), *c.tags(lang).train)]
    keys = list(dict.fromkeys(keys))
    meanings = torch.nn.functional.normalize(torch.randn(len(keys), 256), dim=1)
    vocabulary = Vocabulary({k: i for i, k in enumerate(keys)}, meanings, keys)
    pieces = torch.randn(rows, 256)

    network = NanoTextNetwork(NanoTextParams(vocab_size=rows, **sizes))
    initialise(network, listed, vocabulary, pieces, Settings(packages="", start=str(start), sharpness=7.0))
    state = network.state_dict()
    assert float(state.pop("sharpness")) == 7.0
    assert torch.equal(state["tokens.weight"][:fewer_rows], old.tokens.weight)
    torch.testing.assert_close(state.pop("tokens.weight")[fewer_rows:], pieces[fewer_rows:, -32:] * 32**0.5 * 0.7)
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in state.items())

    wider = NanoTextNetwork(NanoTextParams(vocab_size=rows, **sizes | {"ff_width": 48}))
    with pytest.raises(WeightsError, match="feed_forward"):
        initialise(wider, listed, vocabulary, pieces, Settings(packages="", start=str(start)))


def test_words_in_their_dictionary_form():
    pytest.importorskip("pymorphy3", reason="pymorphy3 is needed for training nano's text encoder only")
    form = Forms()
    assert [form("ru", t) for t in ("собаки", "морда медведя")] == ["собака", "морда медведь"]
    assert [form("en", t) for t in ("bears", "grass", "gas", "two cats")] == ["bear", "grass", "gas", "two cat"]
