"""Metrics of clips against values by hand, through networks whose answers are known or whose weights are drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kandinsky.errors import RequestError, WeightsError
from kandinsky.evaluate import results
from kandinsky.evaluate.clip_files import ClipFile, all_in, found, planned
from kandinsky.evaluate.extractors import EXTRACTORS, I3D_FRAMES, Musiq, Raft, Tools, find_tools
from kandinsky.evaluate.measuring import Measured, figure_of, measure, needed
from kandinsky.evaluate.metrics import METRICS, OFFICIAL_ONLY, Sample, chosen, colourfulness
from kandinsky.evaluate.prompts import Prompt
from kandinsky.evaluate.suites import SUITES
from kandinsky.evaluate.vbench import DIMENSIONS
from kandinsky.model.values import Video

DRAWN = np.random.default_rng(0)


def clip(frames: int = 6, side: int = 32, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def written(folder: Path, names: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in names.items():
        Video(frames, fps=8).save(folder / f"{name}.mp4")
    return folder


def value(name: str, sample: Sample, **tools: Any) -> float | None:
    return METRICS[name].measure(sample, Tools(tools))


# -- without weights ---------------------------------------------------------------------------------------------------


def test_every_dimension_of_vbench_is_measured_here_or_told_apart() -> None:
    mine = {name for name, one in METRICS.items() if one.is_vbench}
    assert mine | set(OFFICIAL_ONLY) == set(DIMENSIONS) and not mine & set(OFFICIAL_ONLY)
    assert {name for suite in SUITES.values() for name in suite.metrics} <= {*METRICS, "fvd", "kvd"}


def test_colourfulness_by_hand() -> None:
    """Half red, half green: rg is ±255, yb is 127.5; deviations 255 and 0, means 0 and 127.5."""
    frame = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    frame[0, 0, :, 0] = frame[0, 1, :, 1] = 255
    assert colourfulness(frame) == pytest.approx(255 + 0.3 * 127.5)
    assert colourfulness(np.full((2, 4, 4, 3), 90, dtype=np.uint8)) == 0


def test_flickering_is_of_static_clips_where_flow_is_known() -> None:
    frames = np.zeros((16, 8, 8, 3), dtype=np.uint8)
    frames[1::2] = 51
    sample = Sample(frames, 8.0)
    assert value("temporal flickering", sample) == pytest.approx(0.8)
    assert value("temporal flickering", sample, raft=Fixed(0.0)) == pytest.approx(0.8)
    assert value("temporal flickering", sample, raft=Fixed(5.0)) is None
    assert value("motion amount", sample) == pytest.approx(51)


class Fixed:
    """Flow of a fixed length everywhere."""

    def __init__(self, length: float) -> None:
        self.length, self.pairs = length, 0

    def flow(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        self.pairs += 1
        return np.full((*one.shape[:2], 2), self.length / np.sqrt(2))


def test_dynamic_degree_samples_eight_frames_a_second() -> None:
    """The bound of frames of 64 pixels is 6 * 64 / 256 = 1.5; 24 frames at 24 a second are 8, and 7 pairs."""
    sample = Sample(clip(24, 64), 24.0)
    fast, slow = Fixed(1.6), Fixed(1.4)
    assert value("dynamic degree", sample, raft=fast) == 1.0 and fast.pairs == 7
    assert value("dynamic degree", sample, raft=slow) == 0.0


class Known:
    """CLIP that tells what it is told to; texts are along the first axis."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows
        self.asked: list[str] = []

    def images(self, frames: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows[: len(frames)])

    def texts(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.asarray([[2.0, 0.0]] * len(texts))


def test_clip_metrics_by_hand() -> None:
    clip_b = Known([[3.0, 4.0], [1.0, 0.0]])
    sample = Sample(clip(2), 8.0, "a fox", {"appearance_style": {"style": "in oil"}})
    assert value("clip similarity", sample, **{"clip-b32": clip_b}) == pytest.approx((0.6 + 1.0) / 2)
    assert value("appearance style", sample, **{"clip-b32": clip_b}) == pytest.approx(0.8)
    assert clip_b.asked == ["a fox", "in oil"]
    assert value("appearance style", Sample(clip(2), 8.0, "a fox"), **{"clip-b32": clip_b}) is None
    assert value("background consistency", sample, **{"clip-b32": clip_b}) == pytest.approx(0.6)
    assert value("subject consistency", sample, **{"dino-b16": Known([[1.0, 0.0], [-1.0, 0.0]])}) == 0
    with pytest.raises(RequestError, match="zero or not finite"):
        value("clip similarity", sample, **{"clip-b32": Known([[0.0, 0.0], [1.0, 0.0]])})


def test_the_interval_resamples_prompts() -> None:
    made = figure_of([1.0, 1.0, 0.0, None], ["a", "a", "b", "c"])
    assert made is not None and made.value == pytest.approx(2 / 3) and (made.clips, made.prompts) == (3, 2)
    assert (made.low, made.high) == (0.0, 1.0)
    weighted = figure_of([1.0, 0.0], ["a", "a"], [3.0, 1.0])
    assert weighted is not None and weighted.value == 0.75 and weighted.low is None
    assert figure_of([None], ["a"]) is None
    # a resample weighs its clips as the value does
    uneven = figure_of([1.0, 1.0, 0.0], ["a", "a", "b"], [6.0, 3.0, 1.0])
    assert uneven is not None and uneven.value == pytest.approx(0.9) and (uneven.low, uneven.high) == (0.0, 1.0)
    many = figure_of([1.0, *[0.0] * 99], [str(i) for i in range(100)], [99.0, *[1.0] * 99])
    assert many is not None and many.value == 0.5 and many.low == 0.0 and many.high is not None and many.high > 0.7
    with pytest.raises(RequestError, match=r"prompt `b`: value nan of weight 1\.0 is no finite number"):
        figure_of([1.0, float("nan")], ["a", "b"])


def test_kept_values_are_of_the_prompt_they_were_measured_with(tmp_path: Path) -> None:
    path = written(tmp_path / "clips", {"0001": clip(3)}) / "0001.mp4"
    clip_b = Known([[3.0, 4.0]] * 3)
    tools, names = Tools({"clip-b32": clip_b}), ["clip similarity", "appearance style", "motion amount"]

    def asked(text: str, style: str) -> list[str]:
        clip_b.asked = []
        one = Prompt("0001", text, 1, "0001", facts={"appearance_style": style})
        measure([ClipFile(path, one)], names, tools, kept=tmp_path / "kept.jsonl")
        return clip_b.asked

    assert asked("a fox", "in oil") == ["a fox", "in oil"]
    assert asked("a fox", "in oil") == []
    assert asked("a bear", "in oil") == ["a bear"]
    assert asked("a bear", "in ink") == ["in ink"]


def test_a_value_that_is_no_number_makes_its_metric_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "clips", {"0001": clip(3), "0002": clip(3, seed=1)})
    broken = dataclasses.replace(METRICS["flicker"], measure=lambda _sample, _tools: float("nan"))
    monkeypatch.setitem(METRICS, "flicker", broken)  # type: ignore[arg-type]
    made = measure(all_in(folder), ["flicker", "motion amount"], Tools({}), kept=tmp_path / "kept.jsonl")
    assert set(made.figures) == {"motion amount"} and all("flicker" not in row for row in made.values)
    assert made.unavailable == {"flicker": "`0001.mp4`: its value is nan, not a finite number"}
    assert "NaN" not in (tmp_path / "kept.jsonl").read_text()


def test_tags_weigh_clips_as_the_figure_does() -> None:
    prompts = [Prompt(key, key, i, key, tags={"kind": "animal"}) for i, key in enumerate("ab")]
    rows = tuple({"subject consistency": value} for value in (1.0, 0.0))
    figure = figure_of([1.0, 0.0], ["a", "b"], [3.0, 1.0])
    assert figure is not None
    measured = Measured(rows, {"subject consistency": figure}, {}, (3.0, 1.0))
    files = [ClipFile(Path(f"{one.key}.mp4"), one) for one in prompts]
    assert results._by_tag(files, measured)["kind"]["animal"]["subject consistency"] == figure.value == 0.75


# -- networks of tiny size ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Networks with drawn weights, in the files that the loaders read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "fox", "bear", "<end>"])}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 6, "max_position_embeddings": 77, "eos_token_id": 5},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="<end>"
    ).save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder / "dino")
    torch.save({"weight": torch.arange(8.0)[None], "bias": torch.tensor([2.0])}, folder / "head.pth")
    torch.jit.script(Logits()).save(str(folder / "i3d.pt"))
    torch.jit.script(Both()).save(str(folder / "viclip.pt"))
    return {
        "clip-b32": str(folder / "clip"), "clip-l14": str(folder / "clip"), "dino-b16": str(folder / "dino"),
        "aesthetic": str(folder / "head.pth"), "i3d": str(folder / "i3d.pt"), "viclip": str(folder / "viclip.pt"),
    }  # fmt: skip


class Logits(torch.nn.Module):
    """What I3D's script takes and gives, without its layers."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), x.amax(dim=(1, 2, 3, 4)), x[:, 0].mean(dim=(1, 2, 3))], dim=1)


class Both(torch.nn.Module):
    """What a scripted ViCLIP takes and gives."""

    @torch.jit.export
    def encode_vision(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 3, 4))

    @torch.jit.export
    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()[:, :3] + 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_drawn_networks_are_read_and_their_metrics_follow_the_formulas(weights: dict[str, str], tmp_path: Path) -> None:
    tools = find_tools(list(weights), weights, device="cpu")
    assert tools.missing == {} and tools.weights == weights
    frames = clip(5, 40)
    clip_b, dino = tools.loaded["clip-b32"], tools.loaded["dino-b16"]
    features, text = clip_b.images(frames), clip_b.texts(["a fox", "a bear"])
    assert features.shape == (5, 8) and text.shape == (2, 8) and dino.images(frames[:, :, :32]).shape == (5, 16)
    sample = Sample(frames, 8.0, "a fox")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = (unit @ text[0] / np.linalg.norm(text[0])).mean()
    assert METRICS["clip similarity"].measure(sample, tools) == pytest.approx(similarity, abs=1e-5)
    aesthetic = (unit @ np.arange(8.0) + 2.0).mean() / 10
    assert METRICS["aesthetic quality"].measure(sample, tools) == pytest.approx(aesthetic, abs=1e-5)
    known = [METRICS[name].measure(sample, tools) for name in ("subject consistency", "overall consistency")]
    assert all(one is not None and -1 <= one <= 1 for one in known)
    # the same text is cut, not refused
    assert clip_b.texts(["fox " * 200]).shape == (1, 8)


def test_musiq_and_raft_see_frames_as_their_authors_prepare_them() -> None:
    seen: list[Any] = []

    def musiq(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.mean() * 100

    frames = np.full((2, 256, 1024, 3), 51, dtype=np.uint8)
    assert value("imaging quality", Sample(frames, 8.0), musiq=Musiq(musiq, "cpu")) == pytest.approx(0.2)
    assert seen[0].shape == (1, 3, 128, 512)

    class Model:
        def __call__(self, one: torch.Tensor, other: torch.Tensor, num_flow_updates: int) -> list[torch.Tensor]:
            assert one.shape[2:] == (40, 56) and num_flow_updates == 20 and float(one.min()) >= -1
            return [torch.zeros(1, 2, 40, 56), torch.ones(1, 2, 40, 56)]

    flow = Raft(Model(), "cpu").flow(clip(1, 50)[0][:33], clip(1, 50)[0][:33])
    assert flow.shape == (33, 50, 2) and (flow == 1).all()


def test_what_is_missing_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tools = find_tools(list(EXTRACTORS), {}, device="cpu")
    assert tools.loaded == {} and set(tools.missing) == set(EXTRACTORS)
    for name, line in tools.missing.items():
        assert f"`{name}=PATH`" in line and EXTRACTORS[name].licence in line and "\n" not in line
    assert "hf download openai/clip-vit-base-patch32" in tools.missing["clip-b32"]


def test_weights_that_are_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_bytes(b"not a network")
    for name in ("i3d", "aesthetic", "clip-b32"):
        with pytest.raises(WeightsError, match="are not those of"):
            find_tools([name], {name: str(tmp_path / "no.pt")}, device="cpu")
    with pytest.raises(WeightsError, match="do not exist"):
        find_tools(["i3d"], {"i3d": str(tmp_path / "gone.pt")}, device="cpu")
    with pytest.raises(RequestError, match="extractor `clip` does not exist"):
        find_tools(["i3d"], {"clip": "x"}, device="cpu")
    with pytest.raises(RequestError, match="metric `beauty` does not exist"):
        chosen(["beauty"])


# -- whole sets --------------------------------------------------------------------------------------------------------


def test_values_are_kept_and_a_changed_clip_is_measured_again(tmp_path: Path) -> None:
    written(tmp_path / "clips", {"0001": clip(4, seed=1), "0002": clip(4, seed=2)})
    files = found([Prompt("0001", "a", 1, "0001"), Prompt("0002", "b", 2, "0002")], tmp_path)
    kept = tmp_path / "measures.jsonl"
    names = ["motion amount", "colour drift", "subject consistency", "psnr", "fvd"]
    first = measure(files, names, Tools(), kept=kept)
    assert set(first.figures) == {"motion amount", "colour drift"} and first.figures["motion amount"].clips == 2
    assert (
        "compares with references" in first.unavailable["psnr"] and "DINO" in first.unavailable["subject consistency"]
    )
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    wrong = [{**line, "value": 7.0} if line["metric"] == "motion amount" else line for line in lines]
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in wrong) + '{"cut off')
    assert measure(files, names, Tools(), kept=kept).figures["motion amount"].value == 7.0
    written(tmp_path / "clips", {"0001": clip(5, seed=3)})
    again = measure(files, names, Tools(), kept=kept)
    assert again.values[1]["motion amount"] == 7.0 and again.values[0]["motion amount"] > 7.0


def test_references_give_psnr_ssim_and_distances(tmp_path: Path, weights: dict[str, str]) -> None:
    frames = {f"{i}": clip(I3D_FRAMES, 32, seed=i) for i in range(3)}
    one, other = written(tmp_path / "one", frames), written(tmp_path / "other", frames)
    names = ["psnr", "ssim", "fvd", "kvd"]
    tools = find_tools(needed(names, has_references=True), weights, device="cpu")
    made = measure(all_in(one), names, tools, references=other)
    assert made.unavailable == {} and made.figures["psnr"].value == 99.0 and made.figures["ssim"].value == 1.0
    assert made.figures["fvd"].value == pytest.approx(0, abs=1e-9) and made.figures["kvd"].value < 1e-6
    short = written(tmp_path / "short", {name: rows[:4] for name, rows in frames.items()})
    assert "`0.mp4`: a clip of 4 frames" in measure(all_in(short), ["fvd"], tools, references=other).unavailable["fvd"]
    with pytest.raises(RequestError, match="cannot be compared"):
        measure(all_in(short), ["psnr"], tools, references=other)
    (other / "1.mp4").unlink()
    with pytest.raises(RequestError, match=r"references .* lack `1`"):
        measure(all_in(one), names, tools, references=other)


def test_dimensions_are_measured_where_the_benchmark_asks_for_them(tmp_path: Path) -> None:
    written(tmp_path, {"a-0": clip(3), "b-0": clip(3)})
    files = [
        ClipFile(tmp_path / "a-0.mp4", Prompt("a", "a", 1, "a", dimensions=("temporal flickering",))),
        ClipFile(tmp_path / "b-0.mp4", Prompt("b", "b", 2, "b", dimensions=("color",))),
    ]
    made = measure(files, ["temporal flickering", "motion amount"], Tools())
    assert made.figures["temporal flickering"].clips == 1 and made.figures["motion amount"].clips == 2


def test_clips_are_planned_and_found_by_name(tmp_path: Path) -> None:
    prompts = [Prompt("a", "a", 1, "a", clips=2), Prompt("b", "b", 2, "b")]
    files = planned(prompts, tmp_path, 7)
    assert [(one.path.name, one.seed) for one in files] == [("a-0.mp4", 7), ("a-1.mp4", 8), ("b.mp4", 9)]
    written(tmp_path, {"a-0": clip(2)})
    with pytest.raises(RequestError, match=r"lack `a-1.mp4` and 1 more"):
        found(prompts, tmp_path)
    for folder, said in ((tmp_path / "gone", "cannot be read"), (tmp_path / "empty", "hold no clip")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(RequestError, match=said):
            all_in(folder)
