"""Prompt expansion: what the language model is asked, to the letter, and an answer that a seed repeats."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5 import expansion
from kandinsky.runtime.randomness import seeded
from tiny import family
from tiny.tokenizers import qwen_tokenizer

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5" / "prompts.json"
OFFICIAL = {"text-to-video": "t2v", "image-to-video": "i2v", "text-to-image": "t2i", "image-editing": "i2i"}


@pytest.mark.parametrize("task", OFFICIAL)
def test_questions_are_the_official_ones(task: str) -> None:
    if not REFERENCE.is_file():
        pytest.skip("the reference folder is not here")
    official = json.loads(REFERENCE.read_text(encoding="utf-8"))["expansion"][OFFICIAL[task]]
    (turn,) = expansion.messages("a {brace} \\1 cat", task)
    assert turn["content"] == [{"type": "text", "text": official.replace("{prompt}", "a {brace} \\1 cat")}]


@pytest.mark.parametrize(
    ("task", "kinds", "size"),
    [
        ("text-to-video", ["text"], None),
        ("text-to-image", ["text"], None),
        ("image-to-video", ["image", "text"], (80, 50)),
        ("image-editing", ["text", "image"], (20, 12)),
    ],
)
def test_where_the_image_stands(task: str, kinds: list[str], size: tuple[int, int] | None) -> None:
    (turn,) = expansion.messages("a cat", task, Image.new("RGB", (80, 50)))
    assert turn["role"] == "user" and [part["type"] for part in turn["content"]] == kinds
    assert [part["image"].size for part in turn["content"] if part["type"] == "image"] == ([size] if size else [])


def test_a_seed_repeats_the_answer_and_no_global_generator_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family.qwen(), qwen_tokenizer()
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    monkeypatch.setattr(expansion, "MAX_NEW_TOKENS", 24)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def ask(seed: int) -> str:
        return expansion.expand(model, tokenizer, "a cat", task="text-to-video", seed=seed)

    first = ask(7)
    torch.rand(3)
    assert ask(7) == first
    assert ask(8) != first
    torch.manual_seed(5)
    assert ask(7) == first
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_the_answer_is_that_of_the_official_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed, chat template, generate, cut the question off, decode: written out without this library."""
    model, tokenizer = family.qwen(), qwen_tokenizer()
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + expansion.questions()["text-to-image"].replace("{prompt}", "a cat")
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=256)
    wanted = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    assert 0 < answer.shape[1] - ids.shape[1] <= 256
    assert expansion.expand(model, tokenizer, "a cat", task="text-to-image", seed=11) == wanted


def test_a_silent_model_leaves_the_prompt(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(family.qwen(), "generate", lambda input_ids, **_: input_ids)
    expanded = expansion.expand(family.qwen(), qwen_tokenizer(), "a cat", task="text-to-video", seed=1)
    assert expanded == "a cat" and "wrote nothing" in caplog.text


def test_without_a_chat_template() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(WeightsError, match="no chat template lies beside the text encoder"):
        expansion.expand(family.qwen(), tokenizer, "a cat", task="text-to-video", seed=1)


def test_seeded_restores_after_an_error() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(3, torch.device("cpu")):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("task", ["image-to-video", "image-editing"])
def test_the_model_sees_the_image(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many image tokens as the processor makes patches of it, in the place the task gives it."""
    model, tokenizer, processor = family.qwen(), qwen_tokenizer(), family.image_processor()
    monkeypatch.setattr(expansion, "MAX_NEW_TOKENS", 8)
    given: list[dict[str, torch.Tensor]] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: given.append(inputs) or generate(**inputs))
    image = Image.effect_noise((448, 336), 80).convert("RGB")
    written = expansion.expand(model, tokenizer, "a cat", task=task, seed=1, image=image, image_processor=processor)
    (inputs,) = given
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    patches = int(inputs["image_grid_thw"].prod())
    assert written and int((inputs["input_ids"] == pad).sum()) * processor.merge_size**2 == patches
    assert inputs["pixel_values"].shape[0] == patches
    ids = inputs["input_ids"][0].tolist()
    assert ("a cat" in tokenizer.decode(ids[: ids.index(pad)])) == (task == "image-editing")
    with pytest.raises(WeightsError, match=r"`preprocessor_config.json` does not lie beside it"):
        expansion.expand(model, tokenizer, "a cat", task=task, seed=1, image=image)
    with pytest.raises(RequestError, match="must not contain"):
        expansion.expand(model, tokenizer, "<|image_pad|>", task=task, seed=1, image=image, image_processor=processor)
