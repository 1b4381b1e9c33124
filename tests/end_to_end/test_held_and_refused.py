"""What a run holds and frees, which windows it samples, and what is refused before anything is loaded."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky import Frames, Video, catalogue
from kandinsky.engine import stages, timeline
from kandinsky.engine.parallel import check_fits
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.parallel.layout import Layout
from kandinsky.runtime.placement import Placement

PROMPT = "a cat in a red hat"
CAUSAL = (
    '[sampling]\nsteps = 1\nguidance = 1.0\nmag_ratios = []\nattention = { type = "causal", frames = 2, reach = 1 }\n'
)


@pytest.fixture
def causal(no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "causal.toml").write_text(f'id = "causal"\nbase = "nano-t2v"\n{CAUSAL}[roll]\n')
    monkeypatch.setenv("KANDINSKY_CARDS", str(tmp_path))
    return "causal"


@pytest.fixture(scope="module")
def i2v(folder_of: Callable[[str, str], Path]) -> GenerationPipeline:
    """Makes at most 17 frames at once."""
    pipe = kandinsky.load(folder_of("i2v", "official"), device="cpu")
    clip = dataclasses.replace(
        pipe.card.clip, sizes=("64x64",), default_size="64x64", max_seconds=17 / 24, overlap=None
    )
    classes = {name: dataclasses.replace(c, area=64 * 64, multiple=16) for name, c in pipe.card.classes.items()}
    pipe.card = dataclasses.replace(pipe.card, clip=clip, classes=classes)
    return pipe


def pattern(frames: int) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64] / 20
    waves = [np.stack([np.sin(x + t / 4), np.cos(y - t / 5), np.sin(x * y)], -1) for t in range(frames)]
    return (127.5 + 120 * np.stack(waves)).astype(np.uint8)


# -- refused before anything is loaded --------------------------------------------------------------------------------


def test_a_prompt_of_the_first_groups_is_not_mixed_with_the_next() -> None:
    card = catalogue.find("nano-t2v")
    with pytest.raises(RequestError, match="`a cat` at 0 s holds for less than 5 frames, which are made together"):
        resolve(Request("nano-t2v", "a cat", seconds=2, prompt_at=[("a dog", 0.15)]), card)
    job = resolve(Request("nano-t2v", "a cat", seconds=2, prompt_at=[("a dog", 0.42)]), card)
    assert job.long is not None
    shares = [job.long.prompts_of(window, job.fps, 4) for window in job.long.windows]
    assert shares[0] == {"a cat": 1.0} and all(one == {"a dog": pytest.approx(1.0)} for one in shares[1:])


def test_autoregressive_models_refuse_caches_and_processes(causal: str) -> None:
    card = catalogue.find(causal)
    for cache in ("taylor", "first-block"):
        with pytest.raises(RequestError, match="takes no step cache, since its steps are few"):
            resolve(Request(causal, PROMPT, cache=cache), card)
        with pytest.raises(RequestError, match="takes no step cache"):
            kandinsky.load(causal, cache=cache, device="cpu")
    job = resolve(Request(causal, PROMPT), card)
    for layout in (Layout(cfg=2), Layout(ulysses=2), Layout(data=2)):
        with pytest.raises(RequestError, match="makes its clips along time, by one process: leave `parallel=…` out"):
            check_fits(layout, job, AttentionSpec.from_dict(card.sampling.attention), 2)
    with pytest.raises(RequestError, match="by one process"):
        catalogue.plan(causal, parallel="ulysses=2")


@pytest.mark.parametrize("axis", ["ring", "ulysses"])
def test_a_branch_and_shared_tokens_are_refused_together(axis: str) -> None:
    from kandinsky.engine.parallel import demand_of
    from kandinsky.runtime.parallel.layout import settle

    card = catalogue.find("nano-t2v")
    job = resolve(Request("nano-t2v", PROMPT), card)
    told = dataclasses.replace(_condition(), kind="control")
    job = dataclasses.replace(job, conditions=(told,))
    with pytest.raises(RequestError, match="a control branch sees all tokens of a clip"):
        settle(f"{axis}=2", 2, demand_of(job, AttentionSpec()))
    settle("cfg=2", 2, demand_of(job, AttentionSpec()))


def _condition() -> Any:
    from kandinsky.model.condition import Condition
    from kandinsky.weights.branch_files import BranchFile

    file = BranchFile(Path("x"), "control", "edges", "", "kandinsky5.dit", "nano-t2v", {}, {})
    return Condition("control", None, branch=file)  # type: ignore[arg-type]


def test_replaying_by_another_model_is_refused() -> None:
    lora = {"name": "a", "sha256": "1" * 64, "scale": 0.5, "source": "a.safetensors"}
    own = {"dtype": "float32", "attention": "causal:frames=2", "lora": [lora], "quantize": {"dit": "int8"}}
    timeline.check_alike(own, own)
    for changes, words in (
        ({"dtype": "bfloat16"}, 'compute type `bfloat16`.*load it with `dtype="bfloat16"`'),
        ({"attention": None}, "attention `none`.*load it without `attention=…`"),
        ({"lora": []}, r"LoRAs none, and the model is loaded with \['a:0.5'\]"),
        ({"lora": [{**lora, "scale": 1.0}]}, r"LoRAs \['a:1'\]"),
        ({"lora": [{**lora, "sha256": "2" * 64}]}, "load it with the same"),
        ({"quantize": {}}, "without `quantize=…`"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            timeline.check_alike({**own, **changes}, own)
        assert "\n" not in str(caught.value)


def test_replaying_with_other_kernels_is_told(caplog: pytest.LogCaptureFixture) -> None:
    one, other = ({"dtype": "float32", "versions": {"kernels": word}} for word in ("own 2", "torch"))
    timeline.check_alike(one, one)
    timeline.check_alike(one, {"dtype": "float32", "versions": {}})
    assert not caplog.messages
    timeline.check_alike(one, other)
    assert "kernels `own 2`, and here they are `torch`" in caplog.text and "KANDINSKY_NATIVE" in caplog.text
    caplog.clear()
    timeline.check_alike({**one, "kandinsky": "0.3.1"}, {**one, "versions": {"kernels": "own 3"}})
    assert "here they are `own 3`" in caplog.text and "those are of Kandinsky 0.3.1" in caplog.text
    assert "KANDINSKY_NATIVE" not in caplog.text


# -- held and sampled -------------------------------------------------------------------------------------------------


def test_a_stream_holds_one_network_at_a_time(causal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []
    seen: set[tuple[str, ...]] = set()
    hold = Placement.hold

    @contextmanager
    def watched(self: Placement, name: str) -> Iterator[Any]:
        with hold(self, name) as net:
            held.append(name)
            seen.add(tuple(held))
            try:
                yield net
            finally:
                held.remove(name)

    prompts = [("a cat", 0), ("a dog", 0.5)]
    kept = np.concatenate(
        [one.frames for one in kandinsky.load(causal, device="cpu").stream(prompts, seconds=1, seed=1)]
    )
    monkeypatch.setattr(Placement, "hold", watched)
    pipe = kandinsky.load(causal, device="cpu", offload="module", text_cache=False)
    moved = np.concatenate([one.frames for one in pipe.stream(prompts, seconds=1, seed=1)])
    assert seen == {("text",), ("dit",), ("vae",)} and np.array_equal(moved, kept)


def test_only_the_first_window_is_matched_to_the_look_of_the_rest(
    i2v: GenerationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = dataclasses.replace(i2v.card.sampling, normalize_first_frame=True)
    monkeypatch.setattr(i2v.context, "card", dataclasses.replace(i2v.card, sampling=sampling))
    calls: list[int] = []

    def counted(latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        return latents

    monkeypatch.setattr(stages, "normalize_first_frame", counted)
    options: dict[str, Any] = {"seconds": 41 / 24, "steps": 1, "seed": 1, "progress": False, "overlap": "4"}
    i2v(PROMPT, image=pattern(1)[0], **options)
    assert calls == [1]


def test_a_window_that_is_wholly_known_is_not_sampled(i2v: GenerationPipeline) -> None:
    known = pattern(41)
    steps: list[int] = []
    options: dict[str, Any] = {"seconds": 41 / 24, "steps": 1, "seed": 1, "progress": False, "overlap": "4"}
    given = Frames(Video(known[17:41], 24.0), at=17)
    made = i2v(
        PROMPT, image=known[0], conditions=[given], on_step=lambda step, *_: steps.append(step), **options
    )  # fmt: skip
    assert len(made) == 41 and steps == [1]  # the first of several windows
    job = i2v.resolve(Request(i2v.card.id, PROMPT, image=known[0], conditions=[given], seconds=41 / 24, overlap="4"))
    assert job.long is not None and len(job.long.windows) > 1
