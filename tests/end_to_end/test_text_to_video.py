"""The whole path with the real classes at tiny size: tokenizers, Qwen2.5-VL, CLIP, transformer, autoencoder, file."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import kandinsky
from kandinsky import catalogue
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.stages import to_bytes
from kandinsky.errors import BackendError, Cancelled, OutOfMemory, RequestError, WeightsError
from kandinsky.media.video import read_video
from kandinsky.model.values import Request
from tiny import family

CLIP = {"seconds": 0.2, "size": "64x64", "steps": 2, "seed": 7, "shift": 5.0}
STILL = CLIP | {"seconds": 0}
PROMPT = "a cat runs"


def small(pipe: GenerationPipeline) -> GenerationPipeline:
    """Allow sizes below the official ones, which take a processor seconds."""
    pipe.card = dataclasses.replace(
        pipe.card, clip=dataclasses.replace(pipe.card.clip, sizes=("64x64", "96x64"), default_size="64x64")
    )
    return pipe


def load(folder: Path, **options) -> GenerationPipeline:
    return small(kandinsky.load(folder, **({"device": "cpu"} | options)))


@pytest.fixture(scope="module")
def pipe(official: Path) -> GenerationPipeline:
    return load(official)


@pytest.fixture(scope="module")
def video(pipe: GenerationPipeline) -> kandinsky.Video:
    return pipe(PROMPT, **CLIP)


def resolved(pipe: GenerationPipeline, prompt: str = PROMPT, **changes):
    values = {"seconds": 0, "width": 64, "height": 64, "steps": 2, "seed": 7} | changes
    return pipe.resolve(Request(model=pipe.card.id, prompt=prompt, **values))


def latents(pipe: GenerationPipeline, *batch, on_step=None) -> torch.Tensor:
    text, negative = pipe.encode(batch)
    return pipe.sample(pipe.noise(batch), text, negative, batch[0], on_step=on_step)


def test_prompt_to_file(video: kandinsky.Video, tmp_path: Path) -> None:
    assert video.frames.shape == (5, 64, 64, 3) and video.frames.dtype == np.uint8
    assert video.frames.std() > 5, "random weights still give a picture with contrast"
    path = video.save(tmp_path / "cat.mp4")
    again = read_video(path)
    assert again.frames.shape == video.frames.shape and again.fps == video.fps == 24
    # noise loses its colours to 4:2:0 and keeps its grey
    grey, written = (clip.frames.mean(axis=-1).ravel() for clip in (video, again))
    assert np.corrcoef(grey, written)[0, 1] > 0.9
    assert again.recipe["prompt"] == PROMPT and again.recipe["seed"] == 7


def test_recipe_makes_the_same_frames_again(pipe: GenerationPipeline, official: Path, video: kandinsky.Video) -> None:
    recipe = video.recipe
    assert recipe["model"] == str(official) and recipe["dtype"] == "float32" and recipe["device"] == "cpu"
    again = load(recipe["model"], device=recipe["device"], dtype=recipe["dtype"])(
        recipe["prompt"],
        negative_prompt=recipe["negative_prompt"],
        size=f"{recipe['width']}x{recipe['height']}",
        **{key: recipe[key] for key in ("seconds", "steps", "guidance", "shift", "seed")},
    )
    assert np.array_equal(again.frames, video.frames)


def test_both_layouts_give_equal_latents(pipe: GenerationPipeline, diffusers_folder: Path) -> None:
    other = load(diffusers_folder)
    job = resolved(pipe, seconds=0.2, steps=3, guidance=5.0, shift=5.0)
    theirs = dataclasses.replace(job, card=other.card)
    assert torch.equal(latents(pipe, job), latents(other, theirs))


def test_offload_changes_nothing_and_frees_each_network(official: Path, video: kandinsky.Video) -> None:
    offloaded = load(official, offload="module")
    built: list[str] = []
    for name, build in list(offloaded.placement._builders.items()):

        def noted(name=name, build=build):
            assert not offloaded.placement._built, "one network at a time"
            built.append(name)
            return build()

        offloaded.placement._builders[name] = noted
    assert np.array_equal(offloaded(PROMPT, **CLIP).frames, video.frames)
    assert built == ["text", "dit", "vae"], "the text is encoded before the transformer is read"
    assert not offloaded.placement._built


def test_callback_sees_every_step_and_changes_nothing(pipe: GenerationPipeline) -> None:
    job = resolved(pipe, steps=3)
    seen: list[tuple[int, int]] = []

    def on_step(step: int, total: int, preview: torch.Tensor) -> None:
        assert preview.shape == (1, *job.latent.as_tuple()) and torch.isfinite(preview).all()
        seen.append((step, total))

    assert torch.equal(latents(pipe, job, on_step=on_step), latents(pipe, job))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_callback_can_cancel(pipe: GenerationPipeline) -> None:
    with pytest.raises(Cancelled, match="after step 1 of 2"):
        pipe(PROMPT, **STILL, on_step=lambda step, total, preview: False)


def test_a_batch_equals_single_runs(pipe: GenerationPipeline) -> None:
    jobs = [resolved(pipe, "a cat"), resolved(pipe, "a very long dog in the snow", seed=8)]
    together = latents(pipe, *jobs)
    for one, alone in zip(together, (latents(pipe, job) for job in jobs), strict=True):
        torch.testing.assert_close(one, alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)
    videos = pipe.run_batch(jobs)
    assert [v.seed for v in videos] == [7, 8] and videos[1].recipe["prompt"] == jobs[1].prompt


def test_a_batch_of_different_sizes_is_refused(pipe: GenerationPipeline) -> None:
    with pytest.raises(RequestError, match="prompt, negative prompt, seed and image only"):
        pipe.run_batch([resolved(pipe), resolved(pipe, width=96)])


def test_seed_is_drawn_and_told(pipe: GenerationPipeline) -> None:
    a, b = (pipe(PROMPT, **(STILL | {"seed": None})) for _ in range(2))
    assert a.seed != b.seed and a.recipe["seed"] == a.seed
    assert np.array_equal(pipe(PROMPT, **(STILL | {"seed": a.seed})).frames, a.frames)


def test_guidance_is_the_official_combination(pipe: GenerationPipeline) -> None:
    """One Euler step by hand: conditional v_c, unconditional v_u, v_u + w·(v_c − v_u)."""
    job = resolved(pipe, steps=1, guidance=3.0)
    text, negative = pipe.encode([job])
    noise = pipe.noise([job])
    with torch.no_grad(), pipe.placement.hold("dit") as dit:
        x = torch.cat([noise, torch.zeros(*noise.shape[:-1], family.CHANNELS + 1)], dim=-1)
        v_c, v_u = (dit(x, torch.tensor([1000.0]), t, rope_scale=(1.0, 2.0, 2.0)) for t in (text, negative))
    expected = noise - (v_u + 3.0 * (v_c - v_u))
    torch.testing.assert_close(latents(pipe, job), expected, rtol=0, atol=0)


def test_guidance_one_runs_one_pass(pipe: GenerationPipeline) -> None:
    job = resolved(pipe, steps=2, guidance=1.0 + 5e-7)
    text, negative = pipe.encode([job])
    assert negative is None
    calls = []
    with pipe.placement.hold("dit") as dit:
        handle = dit.register_forward_hook(lambda *_: calls.append(1))
        pipe.sample(pipe.noise([job]), text, None, job)
        handle.remove()
    assert len(calls) == 2


def test_the_negative_prompt_counts(pipe: GenerationPipeline) -> None:
    plain, other = resolved(pipe), resolved(pipe, negative_prompt="dogs")
    assert plain.negative_prompt.startswith("Static, 2D cartoon")
    assert not torch.allclose(latents(pipe, plain), latents(pipe, other), atol=1e-3)


def test_noise_is_one_official_draw(pipe: GenerationPipeline) -> None:
    job = resolved(pipe, seconds=0.2)
    expected = torch.randn(2, 8, 8, family.CHANNELS, generator=torch.Generator().manual_seed(7), dtype=torch.bfloat16)
    assert torch.equal(pipe.noise([job])[0], expected.float())


def test_bytes_are_cut_not_rounded() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    assert to_bytes(pixels).tolist() == [0, 0, 127, 254, 255, 255]
    assert to_bytes(pixels, rounds=True).tolist() == [0, 0, 128, 255, 255, 255]


def test_bfloat16_stays_near(pipe: GenerationPipeline, official: Path) -> None:
    rough = load(official, dtype="bfloat16")
    job = resolved(pipe, guidance=1.0)
    exact, near = latents(pipe, job), latents(rough, dataclasses.replace(job, card=rough.card))
    assert near.dtype is torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.std()


def test_weights_of_a_catalogue_model_are_found_in_a_folder(official: Path, tmp_path: Path) -> None:
    card = catalogue.find("kandinsky5-lite-t2v-sft-5s")
    with pytest.raises(WeightsError, match=r"kandinsky5lite_t2v_sft_5s\.safetensors"):
        kandinsky.load(card.id, weights=official / "weights", device="cpu")
    weights = tmp_path / "weights"
    shutil.copytree(official / "weights", weights)
    (weights / "model" / family.CHECKPOINT).rename(weights / card.dit.parts[0].local)
    for folder in (weights, tmp_path):
        # recognised by its file name, and refused because this file is not that model
        with pytest.raises(WeightsError, match=r"`.*` (in|belongs|is missing)"):
            kandinsky.load(folder, device="cpu")


def edited(official: Path, target: Path, edit) -> Path:
    shutil.copytree(official / "weights", target / "weights")
    (target / "config.yaml").write_text(yaml.safe_dump(family.official_config()), encoding="utf-8")
    path = target / "weights" / "model" / family.CHECKPOINT
    save_file(edit(load_file(path)), path)
    return target


def test_yaml_paths_may_be_relative_to_the_folder(official: Path, tmp_path: Path, video: kandinsky.Video) -> None:
    moved = edited(official, tmp_path / "moved", dict)
    assert np.array_equal(load(moved)(PROMPT, **CLIP).frames, video.frames)
    by_file = kandinsky.load(moved / "config.yaml", device="cpu")
    assert by_file.name == str(moved / "config.yaml")


CARD = """
id = "tiny"
family = "kandinsky5"
task = "text-to-video"
title = "Tiny"
licence = "MIT"
parameters = 1
source = "tests"
[dit]
kind = "kandinsky5.dit"
params = {dit}
parts = [{{ repo = "./weights", files = ["model/{checkpoint}"] }}]
[text]
kind = "qwen-clip"
parts = [
    {{ repo = "./weights", name = "qwen", files = ["text_encoder/"] }},
    {{ repo = "./weights", name = "clip", files = ["text_encoder2/"] }},
]
[vae]
kind = "hunyuan"
params = {{ tiling = "{tiling}" }}
parts = [{{ repo = "./weights", files = ["vae/"] }}]
[sampling]
steps = 2
guidance = 5.0
shift = 5.0
rope_scale = [1.0, 2.0, 2.0]
noise = "bfloat16"
condition = "{condition}"
negative_prompt = "{negative}"
[clip]
fps = 24
seconds = 0.2
min_seconds = 0
max_seconds = 1
sizes = ["64x64"]
default_size = "64x64"
channels = 4
"""


def write_card(folder: Path, negative: str, tiling: str = "none", condition: str = "zeros") -> None:
    dit = ", ".join(f"{key} = {str(value).lower()}" for key, value in family.DIT_PARAMS.items())
    text = CARD.format(
        dit="{ " + dit + " }",
        checkpoint=family.CHECKPOINT,
        tiling=tiling,
        condition=condition,
        negative=negative,
    )
    (folder / "card.toml").write_text(text, encoding="utf-8")


def test_a_card_in_a_folder_is_enough(official: Path, tmp_path: Path, video: kandinsky.Video) -> None:
    folder = edited(official, tmp_path / "own", dict)
    write_card(folder, video.recipe["negative_prompt"])
    own = kandinsky.load(folder, device="cpu")
    assert np.array_equal(own(PROMPT, seed=7).frames, video.frames), "all settings of the other runs are its defaults"


@pytest.mark.parametrize(("key", "value"), [("tiling", "bricks"), ("condition", "sparks")])
def test_a_card_with_an_unknown_value_is_refused(official: Path, tmp_path: Path, key: str, value: str) -> None:
    folder = edited(official, tmp_path / "own", dict)
    write_card(folder, "", **{key: value})
    with pytest.raises(RequestError, match=f"`{value}`"):
        kandinsky.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "out_layer.out_layer.bias"}, "`out_layer.out_layer.bias` is mi"),
        (lambda s: s | {"odd": torch.zeros(1)}, "`odd` belongs to no part"),
        (lambda s: s | {"out_layer.out_layer.bias": torch.zeros(3)}, r"`out_layer.out_layer.bias` in .* shape \[3\]"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_a_wrong_file_is_refused_before_loading(official: Path, tmp_path: Path, edit, message: str) -> None:
    folder = edited(official, tmp_path / "wrong", edit)
    with pytest.raises(WeightsError, match=message):
        kandinsky.load(folder, device="cpu")


def test_a_truncated_file_is_refused_before_loading(official: Path, tmp_path: Path) -> None:
    for name in (
        "model/" + family.CHECKPOINT,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder2/model.safetensors",
    ):
        folder = edited(official, tmp_path / name.replace("/", "-"), dict)
        path = folder / "weights" / name
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(WeightsError, match="is cut off within tensor `"):
            kandinsky.load(folder, device="cpu")


def test_a_missing_file_is_named(official: Path, tmp_path: Path) -> None:
    folder = edited(official, tmp_path / "gone", dict)
    shutil.rmtree(folder / "weights" / "vae")
    with pytest.raises(WeightsError, match=r"`vae/` of .* is not on this machine"):
        kandinsky.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nano-t2w", "unknown model `nano-t2w`"),
        ("./nowhere", "model folder `./nowhere` is not there"),
        ("somebody/else", "unknown model `somebody/else`"),
    ],
)
def test_names_of_nothing(model: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        kandinsky.load(model, device="cpu")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no model: looked for `card.toml`, `model_index.json`"):
        kandinsky.load(tmp_path, device="cpu")


@pytest.mark.parametrize("suffix", ["", "-Diffusers"])
@pytest.mark.parametrize("owner", ["kandinskylab", "ai-forever"])
def test_hub_names_find_their_card(owner: str, suffix: str) -> None:
    from kandinsky import catalogue

    source = catalogue.source_of(f"{owner}/Kandinsky-5.0-T2V-Lite-nocfg-5s{suffix}")
    assert source.card.id == "kandinsky5-lite-t2v-nocfg-5s"
    assert (source.card.dit.parts[0].files == ("transformer/",)) == bool(suffix)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(official: Path) -> None:
    for device in ("cuda", "cuda:3", torch.device("cuda"), {"dit": "cuda", "vae": "cpu", "text": "cpu"}):
        with pytest.raises(BackendError, match=r"device `cuda.*` was asked for"):
            kandinsky.load("./not/even/looked/for", device=device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "all"}, "offload `all` is not available"),
        ({"dtype": "int8"}, "dtype `int8` is unknown"),
        ({"device": "tpu"}, "device `tpu` is unknown"),
        ({"device": {"unet": "cpu"}}, "device given for `unet`"),
        ({"attention": "magic"}, "attention `magic` is not available"),
    ],
)
def test_wrong_options(official: Path, options: dict, message: str) -> None:
    with pytest.raises((RequestError, BackendError), match=message):
        kandinsky.load(official, **({"device": "cpu"} | options))


def test_bad_requests_load_nothing(official: Path) -> None:
    fresh = load(official)
    for bad in ({"size": "500x500"}, {"seconds": 9999}, {"steps": 0}, {"size": "64x64", "width": 64}):
        with pytest.raises(RequestError):
            fresh(PROMPT, **bad)
    with pytest.raises(RequestError, match="empty"):
        fresh("  ")
    assert not fresh.placement._built


def test_out_of_memory_names_the_placement(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load(official)

    def exhausted(*_args, **_kwargs):
        torch.empty(2**60)  # the processor's allocator refuses by itself

    with fresh.placement.hold("dit") as dit:
        monkeypatch.setattr(dit, "forward", exhausted)
    with pytest.raises(OutOfMemory, match=r'ran out in `dit`: try `offload="module"`'):
        fresh(PROMPT, **STILL)


def test_other_errors_keep_their_name(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load(official)

    def broken(*_args, **_kwargs):
        raise RuntimeError("shape mismatch")

    with fresh.placement.hold("dit") as dit:
        monkeypatch.setattr(dit, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        fresh(PROMPT, **STILL)


def test_global_state_is_left_alone(pipe: GenerationPipeline, official: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    pipe(PROMPT, **STILL)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[1:]
    assert "diffusers" in sys.modules
