"""Training the second Nano's text network on captions of random scenes.

    python -m kandinsky.lab.nano2.train_text --out runs/nano2/text --steps 4000
    python -m kandinsky.lab.nano2.train_text --out runs/nano2/text --beside-rules     # a trained one and the rules

It starts from the shipped text network, and captions come from ``describe``: what a caption says is to be read, what
it leaves open is to be read as not said. A share of the captions names a single subject by a synonym that training may
use.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.catalogue import find
from kandinsky.families.nano.reader import Understood
from kandinsky.families.nano.scene_text import SUBJECTS, SceneReading, SceneTextNetwork
from kandinsky.families.nano.scene_words import ROLES, Said, said_of, unsaid
from kandinsky.families.nano.scenes import Scene, Subject
from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano.concepts import LANGUAGES, Language
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.describe import describe
from kandinsky.lab.nano2.measures import fixed_prompts, measure_words
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.word_list import read
from kandinsky.runtime.devices import mixed_precision

READ = tuple(role for role in ROLES if role != "kind")
"""What a text can say; whether a clip or an image is wanted is asked for otherwise."""


NEWCOMERS = -8.0
"""Bias of concepts the shipped network does not know, to begin with: all texts lie rather near to a label's meaning."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what it says."""

    text: str
    said: Said


def draw_example(number: int, *, synonyms: float = 0.3, seed: int = 0) -> Example:
    """The example of a number, the same on every machine; of all numbers, none has a held-out synonym."""
    rng = np.random.default_rng((seed, number))
    words = random.Random(f"{seed} {number}")
    lang: Language = LANGUAGES[number % len(LANGUAGES)]
    scene = draw_scene(rng, concepts=len(catalogue()))
    entry = catalogue()[scene.subjects[0].concept or 0]
    names = None
    tags = entry.tags(lang).train
    if scene.arrangement == "one" and tags and words.random() < synonyms:
        names = [", ".join(words.sample(tags, min(len(tags), words.choice((1, 1, 2, 3)))))]
    caption = describe(scene, lang=lang, rng=words, names=names)
    return Example(caption.text, unsaid(said_of(scene, still=False), caption.left_open))


def loss_of(reading: SceneReading, examples: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of every subject and every role."""
    last = reading.subjects_BSV.shape[-1] - 1
    rows = [list(e.said.subjects) + [last] * (SUBJECTS - len(e.said.subjects)) for e in examples]
    subjects = F.cross_entropy(reading.subjects_BSV.flatten(0, 1), torch.tensor(rows).flatten(), label_smoothing=0.05)
    loss, figures = subjects, {"subjects": float(subjects.detach())}
    for role, logits in reading.roles.items():
        part = F.cross_entropy(logits, torch.tensor([e.said.words[role] for e in examples]))
        loss = loss + 0.3 * part
        figures[role] = float(part.detach())
    return loss, figures


class SceneTexts:
    """The network with its tokenizer."""

    def __init__(self, network: SceneTextNetwork, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        tokenizer.enable_truncation(network.params.max_tokens)
        tokenizer.enable_padding()

    def read(self, texts: Sequence[str]) -> SceneReading:
        """Read texts; an empty one is read as a lone padding token."""
        encodings = self.tokenizer.encode_batch([text if text.strip() else "." for text in texts])
        ids = torch.tensor([e.ids for e in encodings])
        out: SceneReading = self.network(ids, torch.tensor([e.attention_mask for e in encodings]).bool())
        return out


def begin() -> SceneTexts:
    """A network that knows what the shipped one knows."""
    card = find("nano-t2v")
    with resources.as_file(resources.files("kandinsky") / "assets" / "nano-t2v") as folder:
        params = dict(card.text.params)
        shipped = NanoTextEncoder.from_files(folder / "text.safetensors", folder / "tokenizer.json.xz", params)
    first: NanoTextNetwork = shipped.network
    sizes = NanoTextParams.from_dict(params | {"concepts": len(catalogue())})
    network = SceneTextNetwork(sizes, {role: ROLES[role] for role in READ})
    network.start_from(first.state_dict(), range(first.params.concepts))
    texts = SceneTexts(network, shipped.tokenizer)
    with torch.no_grad():  # new concepts begin at the meanings of their labels
        for number in range(first.params.concepts, len(catalogue())):
            entry = catalogue()[number]
            meaning = texts.read([entry.en, entry.ru]).meaning_BSM[:, 0]
            network.prototypes_VPM[number] = meaning.repeat(sizes.prototypes // 2 + 1, 1)[: sizes.prototypes]
            network.concept_bias_V[number] = NEWCOMERS
    return texts


@torch.no_grad()
def judge_texts(texts: SceneTexts, *, count: int = 400, seed: int = 99) -> dict[str, float]:
    """Shares read rightly: captions never trained on, role by role and as a whole, and single held-out synonyms."""
    examples = [draw_example(n, synonyms=0.0, seed=seed) for n in range(count)]
    figures = dict.fromkeys(("whole", "subjects", *READ), 0.0)
    for at in range(0, count, 100):
        part = examples[at : at + 100]
        reading = texts.read([e.text for e in part])
        for row, example in enumerate(part):
            subjects, roles = reading.chosen(row)
            right = {role: roles[role] == example.said.words[role] for role in READ}
            right["subjects"] = subjects == example.said.subjects
            for name, value in right.items():
                figures[name] += value / count
            figures["whole"] += all(right.values()) / count
    for lang in LANGUAGES:
        pairs = [(tag, i + 1) for i, entry in enumerate(catalogue()) for tag in entry.tags(lang).held]
        found = 0
        for at in range(0, len(pairs), 128):
            reading = texts.read([tag for tag, _ in pairs[at : at + 128]])
            best = reading.subjects_BSV[:, 0, 1:-1].argmax(-1) + 1
            found += int((best == torch.tensor([i for _, i in pairs[at : at + 128]])).sum())
        figures[f"{lang} single synonyms"] = found / len(pairs)
    return figures


def train_texts(out: Path, *, steps: int, batch: int = 96, lr: float = 1e-3, keep: float = 1.0) -> dict[str, float]:
    """Train and write ``text.safetensors``, ``log.jsonl`` and ``figures.json``.

    Args:
        keep: Weight of what the shipped network makes of single synonyms that training may use: their meanings stay.
    """
    texts, teacher = begin(), begin()
    out.mkdir(parents=True, exist_ok=True)
    network = texts.network.train()
    slow = [p for name, p in network.named_parameters() if name.startswith(("tokens", "blocks", "lexicon", "meaning"))]
    ids = {id(p) for p in slow}
    fast = [p for p in network.parameters() if id(p) not in ids]
    groups = [{"params": slow, "lr": lr / 3}, {"params": fast, "lr": lr}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [lr / 3, lr], total_steps=steps, pct_start=0.05)
    tags = [(tag, lang) for lang in LANGUAGES for entry in catalogue() for tag in entry.tags(lang).train]
    began = time.monotonic()
    with (out / "log.jsonl").open("a") as journal:
        for step in range(steps):
            examples = [draw_example(step * batch + n) for n in range(batch)]
            with mixed_precision(network.look.weight.device.type):
                loss, figures = loss_of(texts.read([e.text for e in examples]), examples)
                rng = random.Random(step)
                some = [tag for tag, _ in rng.sample(tags, min(len(tags), batch // 2))]
                with torch.no_grad():
                    wanted = teacher.read(some).meaning_BSM[:, 0]
                apart = (1 - (texts.read(some).meaning_BSM[:, 0] * wanted).sum(-1)).mean()
            optimiser.zero_grad(set_to_none=True)
            (loss + keep * apart).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % 50 == 0 or step == steps - 1:
                line = {"step": step, "seconds": time.monotonic() - began, "loss": float(loss.detach())}
                line |= figures | {"kept": float(apart.detach())}
                journal.write(json.dumps({key: round(value, 4) for key, value in line.items()}) + "\n")
                journal.flush()
    network.eval()
    save_file({name: p.contiguous() for name, p in network.state_dict().items()}, out / "text.safetensors")
    result = judge_texts(texts)
    (out / "figures.json").write_text(json.dumps(result, indent=1))
    return result


def beside_rules(out: Path) -> dict[str, Any]:
    """A trained network and the rules on the same texts; also written into ``beside_rules.json``.

    Returns:
        Of each the rows of ``measures.measure_words``, and the share of the 48 fixed prompts with the same subjects.
    """
    texts = begin()
    texts.network.load_state_dict(load_file(out / "text.safetensors"))
    texts.network.eval()

    @torch.no_grad()
    def understood(text: str) -> Understood:
        """As far as subjects go; the network has no way to name what it does not know."""
        subjects, _ = texts.read([text]).chosen(0)
        scene = Scene(tuple(Subject(None if row == 0 else row - 1) for row in subjects))
        return Understood(None if subjects == (0,) else scene, (), ())

    def subjects(read: Callable[[str], Understood], text: str) -> list[int | None]:
        scene = read(text).scene
        return [] if scene is None else [one.concept for one in scene.subjects]

    prompts = [prompt["text"] for prompt in fixed_prompts()]
    same = [subjects(understood, text) == subjects(read, text) for text in prompts]
    result = {"network": measure_words(understood), "rules": measure_words(read), "fixed prompts": float(np.mean(same))}
    result["fixed prompts apart"] = [text for text, alike in zip(prompts, same, strict=True) if not alike]
    (out / "beside_rules.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside-rules", action="store_true", help="compare what was trained with the reader by rules")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    logging.info(
        "%s", beside_rules(options.out) if options.beside_rules else train_texts(options.out, steps=options.steps)
    )


if __name__ == "__main__":
    main()
