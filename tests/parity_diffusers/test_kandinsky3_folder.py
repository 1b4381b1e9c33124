"""Kandinsky 3 in the Diffusers layout: a folder that Diffusers wrote, by our pipeline and by theirs, and back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.diffusion.cogvideox import Renoise
from kandinsky.diffusion.cosine import CosineSchedule
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.kandinsky3 import folder as kandinsky3_folder
from kandinsky.families.parts.movq import MovqParams
from kandinsky.model.values import Request
from kandinsky.text.t5 import read_t5_tokenizer
from kandinsky.weights.keymaps import keymap_for
from kandinsky.weights.read import read_state
from tiny import unets as tiny
from tiny.family import randomise
from tiny.kandinsky4 import spiece

PROMPT, STEPS, SCALE = "a cat in a red hat", 5, 3.0
UNET_CONFIG = {
    "in_channels": 4,
    "time_embedding_dim": 32,
    "groups": 4,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "block_out_channels": (16, 16, 32, 32),
    "cross_attention_dim": tiny.CONTEXT,
    "encoder_hid_dim": tiny.HIDDEN,
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Kandinsky3Pipeline:
    words = tmp_path_factory.mktemp("words")
    (words / "spiece.model").write_bytes(spiece())
    tokenizer = read_t5_tokenizer(words)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )
    unet = randomise(Kandinsky3UNet(**UNET_CONFIG))
    with torch.no_grad():  # large answers would make the guided loop chaotic, and any rounding grow
        unet.conv_out.weight.mul_(0.2)
    sizes = dataclasses.asdict(MovqParams.from_dict(tiny.MOVQ))
    config = {k: v for k, v in kandinsky3_folder.movq_config(sizes).items() if not k.startswith("_")}
    movq = randomise(VQModel(**config, num_vq_embeddings=3))
    pipe = Kandinsky3Pipeline(
        tokenizer=fast,
        text_encoder=tiny.t5().eval(),
        unet=unet.eval(),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        movq=movq.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(theirs: Kandinsky3Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("theirs") / "tiny-kandinsky-3"
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> GenerationPipeline:
    return kandinsky.load(folder, device="cpu", text_cache=False)


def draws(shape: torch.Size, count: int) -> torch.Tensor:
    """What their loop draws from a generator of seed 7, as ours takes it."""
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randn(shape, generator=generator).permute(0, 2, 3, 1)[:, None] for _ in range(count)])


@pytest.mark.parametrize("negative", [None, "snow", "a big blue snow cat in a hat in a red hat"])
def test_a_prompt_by_both_pipelines(theirs: Kandinsky3Pipeline, ours: GenerationPipeline, negative: str | None) -> None:
    """Words to pixels: tokens, text states, projection, guidance, scheduler, autoencoder."""

    def their(kind: str) -> torch.Tensor:
        made = theirs(
            PROMPT,
            negative_prompt=negative,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=64,
            width=128,
            generator=torch.Generator().manual_seed(7),
            output_type=kind,
        )
        return made.images

    expected = their("latent")
    request = Request(
        ours.card.id, PROMPT, negative_prompt=negative, width=128, height=64, steps=STEPS, guidance=SCALE + 1, seed=7
    )
    resolved = ours.resolve(request)
    text, against = ours.encode([resolved])
    noise = draws(expected.shape, STEPS)
    latents = ours.sample(noise[0], text, against, resolved, fresh_NBTHWC=noise[1:])
    torch.testing.assert_close(latents[:, 0].permute(0, 3, 1, 2), expected, rtol=1e-3, atol=1e-4)
    pixels = (torch.as_tensor(their("np")) * 255).numpy()
    assert np.abs(ours.decode(latents)[0] - pixels).max() <= 1.01  # ours cuts to whole numbers


def test_what_the_folder_says_is_the_default(ours: GenerationPipeline, folder: Path) -> None:
    resolved = ours.resolve(Request(ours.card.id, PROMPT, seed=1))
    assert (resolved.steps, resolved.guidance, resolved.sampling.sampler) == (25, 4.0, "kandinsky3-ddpm")
    assert ours.card.id == folder.name
    image = ours(PROMPT, size="64x64", steps=2, seed=3)
    assert image.frames.shape == (1, 64, 64, 3)


def test_the_autoencoder(theirs: Kandinsky3Pipeline, ours: GenerationPipeline) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels, latents = (
        torch.rand(2, 3, 32, 64, generator=generator) * 2 - 1,
        torch.randn(2, 4, 8, 4, generator=generator),
    )
    with torch.no_grad(), ours.placement.hold("vae") as vae:
        coded = vae.encode(pixels.permute(0, 2, 3, 1)[:, None])[:, 0].permute(0, 3, 1, 2)
        made = vae.decode(latents.permute(0, 2, 3, 1)[:, None])[:, 0].permute(0, 3, 1, 2)
        torch.testing.assert_close(coded, theirs.movq.encode(pixels).latents, rtol=1e-4, atol=1e-5)
        expected = theirs.movq.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_four_distilled_steps(theirs: Kandinsky3Pipeline, ours: GenerationPipeline) -> None:
    """3.1 Flash through their network in the official words, and ours in the library's loop."""
    resolved = ours.resolve(Request(ours.card.id, PROMPT, width=64, height=64, guidance=1.0, seed=1))
    text, _ = ours.encode([resolved])
    hidden, _, mask, _ = theirs.encode_prompt(PROMPT, False, device="cpu", _cut_context=True)
    noise = draws(torch.Size((1, 4, 8, 8)), 5)
    flat = [one[:, 0].permute(0, 3, 1, 2) for one in noise]
    schedule, x0 = CosineSchedule(), flat[0]
    shares = schedule.alphas_cumprod
    for time, fresh in zip((979, 729, 479, 229), flat[1:], strict=True):
        x = shares[time].sqrt() * x0 + (1 - shares[time]).sqrt() * fresh
        with torch.no_grad():
            predicted = theirs.unet(x, time, encoder_hidden_states=hidden, encoder_attention_mask=mask).sample
        x0 = (x - (1 - shares[time]).sqrt() * predicted) / shares[time].sqrt()
    rules = sampler("kandinsky3-flash")
    times = rules.times(4, 1.0)
    assert isinstance(rules.step(times, 1.0, noise[2:]), Renoise)
    flash = dataclasses.replace(
        resolved, steps=4, sampling=dataclasses.replace(resolved.sampling, sampler="kandinsky3-flash")
    )
    made = ours.sample(rules.start(noise[:2], times), text, None, flash, fresh_NBTHWC=noise[2:])
    torch.testing.assert_close(made[:, 0].permute(0, 3, 1, 2), x0, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("part", "kind"), [("unet", "kandinsky3.unet"), ("movq", "movq")])
def test_names_there_and_back(folder: Path, part: str, kind: str) -> None:
    state = read_state(folder / part)
    keymap = keymap_for(catalogue.part(kind), state)
    own = {name for name in state if not name.startswith(keymap.elsewhere)}
    assert {keymap.to_official(keymap.to_ours(name)) for name in own} == own
    tensors = {keymap.to_ours(name): tensor for name, tensor in keymap.own(state).items()}
    again = keymap.as_file(tensors)
    assert all(torch.equal(again[name], state[name]) for name in own)


def test_to_the_official_files_and_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    official, again = tmp_path / "weights", tmp_path / "again"
    assert main(["convert", str(folder), str(official)]) == 0
    assert sorted(path.name for path in official.iterdir()) == ["flan_ul2_encoder", "kandinsky3.pt", "movq.pt"]
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "kandinsky3.0.toml").write_text(tiny.card("kandinsky3.0"), encoding="utf-8")
    monkeypatch.setenv("KANDINSKY_CARDS", str(cards))
    pipe = kandinsky.load("kandinsky3.0", weights=official, device="cpu", text_cache=False)
    assert pipe(PROMPT, size="64x64", steps=2, seed=3).frames.shape == (1, 64, 64, 3)
    assert main(["convert", str(official), str(again), "--to", "diffusers", "-m", "kandinsky3.0"]) == 0
    for part in ("unet", "movq"):
        before, after = read_state(folder / part), read_state(again / part)
        before.pop("quantize.embedding.weight", None)
        after.pop("quantize.embedding.weight", None)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    made = Kandinsky3Pipeline.from_pretrained(again, tokenizer=None)
    assert isinstance(made.scheduler, DDPMScheduler)
    # a folder is not written over
    capsys.readouterr()
    assert main(["convert", str(folder), str(official)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_learned_state_for_no_text_is_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = tiny.write(tmp_path / "all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANDINSKY_CARDS", str(written / "cards"))
        target = tmp_path / "folder"
        assert main(["convert", str(written / "weights"), str(target), "--to", "diffusers", "-m", "kandinsky3.0"]) == 0
    assert "without a negative prompt its images will differ" in caplog.text
    pipe = kandinsky.load(target, device="cpu", text_cache=False)
    with pipe.placement.hold("dit") as net:
        assert torch.equal(net.null_embedding, tiny.unet("kandinsky3.pt").null_embedding)


def changed(folder: Path, target: Path, file: str, change: Callable[[dict], None]) -> Path:
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    change(values)
    (target / file).write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("file", "key", "value", "error", "said"),
    [
        ("unet/config.json", "block_out_channels", [16, 24], WeightsError, "not multiples of the first"),
        ("unet/config.json", "block_out_channels", [16, 16], WeightsError, "2 levels"),
        ("unet/config.json", "groups", None, WeightsError, "gives groups as `None`"),
        ("unet/config.json", "time_embedding_dim", 64, WeightsError, r"tensor `\w+.*` in `.*unet` has shape"),
        ("movq/config.json", "norm_type", "group", WeightsError, "norm_type `group` is no MoVQ"),
        ("model_index.json", "_class_name", "Kandinsky3Img2ImgPipeline", BackendError, "`Kandinsky3Pipeline`"),
    ],
)
def test_a_folder_that_is_wrong(
    folder: Path, tmp_path: Path, file: str, key: str, value: object, error: type[Exception], said: str
) -> None:
    wrong = changed(folder, tmp_path / "wrong", file, lambda values: values.update({key: value}))
    with pytest.raises(error, match=said):
        kandinsky.load(wrong, device="cpu", text_cache=False)


def test_a_scheduler_that_is_not_known_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = changed(
        folder,
        tmp_path / "other",
        "scheduler/scheduler_config.json",
        lambda values: values.update({"prediction_type": "v_prediction"}),
    )
    assert catalogue.source_of(other).card.sampling.sampler == "kandinsky3"
    assert "scheduler of" in caplog.text


def test_the_repository_is_known() -> None:
    card = catalogue.source_of("kandinsky-community/kandinsky-3").card
    assert card.id == "kandinsky3.0"
    assert card.dit.parts[0].files == ("unet/",)
    assert catalogue.source_of("ai-forever/Kandinsky3.1").card.id == "kandinsky3.0"
    with pytest.raises(RequestError):
        kandinsky.load("kandinsky-community/kandinsky-4000", device="cpu")
