"""Tokenizers made here that split the official templates into exactly as many tokens as the real ones do."""

import json
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, Qwen2Tokenizer

from kandinsky.families.kandinsky5.templates import TEMPLATES

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Words without a token of their own; splitting these, all four prefixes count what they count with the real vocabulary.
SPLIT = {" promt": (" prom", "t"), " scren": (" sc", "ren"), " postprocessing": (" post", "processing")}

# What Qwen2.5-VL's own template makes of turns of text, images and videos, without its other branches.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE whose merges are learned from the templates' own words."""
    bare = Qwen2Tokenizer()
    splitter = bare.backend_tokenizer.pre_tokenizer
    pieces: list[str] = []
    for template in TEMPLATES.values():
        for turn in re.split(r"<\|\w+\|>", template.text.replace("{}", "")):
            for word, _ in splitter.pre_tokenize_str(turn):
                plain = decoders.ByteLevel().decode([word])
                pieces += SPLIT.get(plain, (plain,))
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.train_from_iterator(
        pieces,
        trainers.BpeTrainer(
            vocab_size=5000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1
        ),
    )
    vocab, merges = _vocab_and_merges(learner)
    vocab |= {token: len(vocab) + i for i, token in enumerate(QWEN_SPECIAL)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=list(QWEN_SPECIAL[1:]))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's class with the byte alphabet alone: a token a letter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _vocab_and_merges(learner: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
