"""Sound for films, from end to end with the true classes at tiny size; code of others runs only where it may."""

import dataclasses
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kandinsky
from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import VideoToAudioPipeline
from kandinsky.engine.request import resolve
from kandinsky.errors import BackendError, Cancelled, RequestError, WeightsError
from kandinsky.families.kandinsky4_v2a import stages
from kandinsky.families.kandinsky4_v2a.clip_embeddings import (
    ClipEmbeddings,
    ClipEncoder,
    read_embeddings,
    write_embeddings,
)
from kandinsky.families.kandinsky4_v2a.cogvlm2 import CogVlm2Encoder
from kandinsky.families.parts.flux import FluxAutoencoder
from kandinsky.media import mux
from kandinsky.media import recipe as recipes
from kandinsky.media.audio import loudness, read_audio
from kandinsky.model.card import sound_of
from kandinsky.model.values import Request, Video
from tiny import sound


@pytest.fixture
def pipe(model: Path) -> VideoToAudioPipeline:
    made = kandinsky.load(model, device="cpu", trust_remote_code=True)
    assert isinstance(made, VideoToAudioPipeline)
    return made


def in_memory(path: Path) -> Video:
    film = mux.probe(path)
    return Video(mux.frames_at(film, range(len(film.times_s))), fps=film.fps, seed=0)


def test_remote_code_does_not_run_unasked(model: Path, film: Path) -> None:
    with pytest.raises(RequestError, match="not run unasked: add `trust_remote_code=True`"):
        kandinsky.load(model, device="cpu")
    assert not (model / "ran").exists()
    trusting = kandinsky.load(model, device="cpu", trust_remote_code=True)
    assert not (model / "ran").exists(), "loading looks at headers only"
    trusting("rain", video=film, steps=1)
    assert (model / "ran").exists()


def test_a_film_gets_sound(pipe: VideoToAudioPipeline, film: Path, tmp_path: Path) -> None:
    told = []
    made = pipe("rain", video=film, seed=7, on_step=lambda step, total, x: told.append((step, total, tuple(x.shape))))
    assert told == [(i, 3, (1, 1, 4, 13, 4)) for i in (1, 2, 3)], "two steps of PLMS are three passes"
    assert (made.audio.rate, made.audio.samples_SC.shape, made.seed) == (8000, (16000, 1), 7)
    assert loudness(made.audio.samples_SC) == pytest.approx(-30, abs=0.1)
    before = film.read_bytes()
    written = made.save(tmp_path / "out.mp4")
    out = mux.probe(written)
    assert out.has_audio and out.times_s == mux.probe(film).times_s and film.read_bytes() == before
    told_recipe = recipes.read(written)
    assert told_recipe == made.recipe and told_recipe["video"] == {"file": str(film)}
    assert "--video" in recipes.command(told_recipe)
    alone = made.save(tmp_path / "out.flac")
    assert np.array_equal(read_audio(alone).samples_SC, made.audio.samples_SC) and recipes.read(alone) == made.recipe


def test_the_seed_the_film_and_the_words_decide(pipe: VideoToAudioPipeline, film: Path, tmp_path: Path) -> None:
    base = pipe("rain", video=film, seed=7).audio.samples_SC
    assert np.array_equal(pipe("rain", video=film, seed=7).audio.samples_SC, base)
    other = sound.film(tmp_path / "other.mp4", seed=2)
    for made in (
        pipe("rain", video=film, seed=8),
        pipe("rain", video=other, seed=7),
        pipe("a dog", video=film, seed=7),
        pipe("rain", video=film, seed=7, negative_prompt="noise"),
        pipe("rain", video=film, seed=7, guidance=1.0),
    ):
        assert not np.array_equal(made.audio.samples_SC, base)


def test_a_clip_in_memory_is_the_same_film(pipe: VideoToAudioPipeline, film: Path, tmp_path: Path) -> None:
    clip = dataclasses.replace(in_memory(film), recipe={"kandinsky": "x", "model": "m", "prompt": "p", "fps": 8})
    made = pipe("rain", video=clip, seed=7)
    assert np.array_equal(made.audio.samples_SC, pipe("rain", video=film, seed=7).audio.samples_SC)
    assert made.recipe["video"]["recipe"]["model"] == "m"
    written = made.save(tmp_path / "clip.mp4")
    with_sound = mux.probe(written)
    assert with_sound.has_audio and with_sound.seconds == pytest.approx(2)
    recipe = recipes.read(written)
    assert recipe["model"] == "m" and recipe["sound"]["seed"] == 7
    with pytest.raises(RequestError, match="is a file"):
        pipe("rain", video=film, steps=1).with_picture()


@pytest.mark.parametrize("seconds", [0.3, 4.5])
def test_short_and_long_films(pipe: VideoToAudioPipeline, seconds: float, tmp_path: Path) -> None:
    film = sound.film(tmp_path / "film.mp4", seconds=seconds, fps=20)
    made = pipe("rain", video=film, seed=1)
    assert made.audio.seconds == pytest.approx(seconds, abs=1e-3)
    assert made.recipe["windows"] == (3 if seconds > 4 else 1)
    with av.open(str(made.save(tmp_path / "out.mp4"))) as container:
        lasts = {s.type: float(s.duration * s.time_base) for s in container.streams}
    assert lasts["audio"] == pytest.approx(lasts["video"], abs=1024 / 8000)


def test_part_of_a_film(pipe: VideoToAudioPipeline, film: Path, tmp_path: Path) -> None:
    made = pipe("rain", video=film, seconds=1.25, seed=1)
    assert made.audio.seconds == 1.25
    assert mux.probe(made.save(tmp_path / "out.mp4")).seconds == mux.probe(film).seconds, "silence follows"


def test_many_windows_in_one_pass_sound_as_they_do_alone(pipe: VideoToAudioPipeline, tmp_path: Path) -> None:
    films = [sound.film(tmp_path / f"{i}.mp4", seconds=s, seed=i) for i, s in enumerate((2.0, 4.5, 2.0, 1.0))]
    batch = [pipe.resolve(Request("", "rain", video=film, seed=i)) for i, film in enumerate(films)]
    states = stages.encode(pipe.context, batch)
    together = pipe.drive(stages.sample(pipe.context, batch, states, at_once=4), None)
    for latents, one, known in zip(together, batch, states, strict=True):
        (alone,) = pipe.drive(stages.sample(pipe.context, [one], [known]), None)
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-3)
    assert [len(latents) for latents in together] == [1, 3, 1, 1]
    assert [made.audio.seconds for made in pipe.run_batch(batch, at_once=4)] == pytest.approx([2, 4.5, 2, 1])


def test_placements_do_not_change_a_bit(model: Path, film: Path) -> None:
    made = [
        kandinsky.load(model, device="cpu", offload=offload, trust_remote_code=True)("rain", video=film, seed=3)
        for offload in ("none", "module", "block")
    ]
    for one in made[1:]:
        assert np.array_equal(one.audio.samples_SC, made[0].audio.samples_SC)


def test_states_from_a_file_need_no_encoder(
    pipe: VideoToAudioPipeline, model: Path, film: Path, tmp_path: Path
) -> None:
    request = pipe.resolve(Request("", "rain", video=film, seed=7))
    (states,) = stages.encode(pipe.context, [request])
    file = write_embeddings(states, tmp_path / "states.safetensors")
    assert set(load_file(file)) == {"image_embeds", "prompt_embeds", "negative_image_embeds", "negative_prompt_embeds"}
    bare = kandinsky.load(model, device="cpu", only={"dit", "vae"})
    made = bare("rain", video=film, seed=7, states=file)
    assert np.array_equal(made.audio.samples_SC, pipe.run(request).audio.samples_SC)
    assert made.recipe["states"] == str(file)
    squeezed = {name: tensor[0] for name, tensor in load_file(file).items()}
    save_file(squeezed, tmp_path / "official.safetensors")
    assert torch.equal(read_embeddings(tmp_path / "official.safetensors").frames_NTE, states.frames_NTE)


def test_states_that_do_not_fit_are_refused(model: Path, film: Path, tmp_path: Path) -> None:
    bare = kandinsky.load(model, device="cpu", only={"dit", "vae"})
    wide, two = torch.zeros(1, 4, 9), torch.zeros(2, 6, sound.WIDTH)
    cases = {
        "of 2 windows": sound.states_file(tmp_path / "a.safetensors", windows=2),
        "lack `negative_image_embeds`": sound.states_file(tmp_path / "b.safetensors", black_1TE=None),
        "`prompt_embeds` holds 2": sound.states_file(tmp_path / "i.safetensors", text_1LE=two),
        "is empty": sound.states_file(tmp_path / "j.safetensors", text_1LE=torch.zeros(1, 0, sound.WIDTH)),
        "do not fit together": sound.states_file(tmp_path / "c.safetensors", frames_NTE=wide),
        "states are 9 wide": write_embeddings(
            ClipEmbeddings(*(wide.clone() for _ in range(4))), tmp_path / "d.safetensors"
        ),
    }
    save_file({"image_embeds": wide}, tmp_path / "e.safetensors")
    save_file({"image_embeds": wide, "prompt_embeds": wide.clone(), "more": wide.clone()}, tmp_path / "f.safetensors")
    cases |= {"lack `prompt_embeds`": tmp_path / "e.safetensors", "hold `more`": tmp_path / "f.safetensors"}
    for words, file in cases.items():
        with pytest.raises(RequestError, match=words):
            bare("rain", video=film, states=file)
    nan = sound.states_file(tmp_path / "h.safetensors", text_1LE=torch.full((1, 6, sound.WIDTH), math.nan))
    with pytest.raises(WeightsError, match=r"`prompt_embeds` in .* NaN"):
        bare("rain", video=film, states=nan)
    (tmp_path / "g.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="states cannot be read"):
        bare("rain", video=film, states=tmp_path / "g.safetensors")


def test_the_encoder_stops_before_its_last_layer(pipe: VideoToAudioPipeline, model: Path) -> None:
    """The same states as the official way, by which all layers run and those of the last but one are kept."""
    frames = torch.randint(0, 255, (4, 20, 30, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    with pipe.placement.hold("text") as encoder:
        assert isinstance(encoder, CogVlm2Encoder) and isinstance(encoder, ClipEncoder)
        made, words = encoder.encode_frames(frames, torch.arange(4.0)), encoder.encode_prompts(["a cat", "rain"])
        theirs, tokenizer = encoder.model, encoder.tokenizer
    given = theirs.build_conversation_input_ids(
        tokenizer, query="", images=[frames.permute(3, 0, 1, 2)], history=[], template_version="base"
    )
    kinds = given["token_type_ids"][None]
    images = [[given["images"][0].to(torch.bfloat16)]]
    states = theirs(given["input_ids"][None], kinds, None, images=images, output_hidden_states=True)[-2]
    assert torch.equal(made[0], states[kinds == 1].reshape(4, -1, sound.WIDTH).mean(dim=1))
    assert words.shape == (2, 6, sound.WIDTH) and (words[1, -1] == 0).all() and words[0, 0].abs().sum() > 0
    long = stages.encode(pipe.context, [pipe.resolve(Request("", "a cat " * 50, video=Video(frames.numpy(), 4, 0)))])[
        0
    ].text_1LE
    assert long.shape == (1, 6, sound.WIDTH) and long.abs().sum(-1).all(), "cut"


def test_foreign_code_that_fails_is_one_line(model: Path, film: Path, tmp_path: Path) -> None:
    """A copy whose class cannot be imported, and one whose class fails when it is called."""
    for name, old, new, words in (
        ("a", "import torch\n", "import torch\nimport a_package_that_is_not_there\n", "a_package_that_is_not_there"),
        ("b", "seen = PLACES", 'raise ValueError("no pytorchvideo\\nhere")\n        seen = PLACES', "no pytorchvideo"),
    ):
        copy = sound.write(tmp_path / name)
        code = copy / "encoder" / "films.py"
        code.write_text(code.read_text().replace(old, new))
        with pytest.raises(BackendError, match=words) as error:
            kandinsky.load(copy, device="cpu", trust_remote_code=True)("rain", video=film)
        assert "\n" not in str(error.value) and "states=…" in error.value.hint


def test_broken_weights_are_named(film: Path, tmp_path: Path, model: Path) -> None:
    copy = sound.write(tmp_path / "copy")
    file = copy / "encoder" / "model.safetensors"
    state = load_file(file)
    state.pop("model.see.bias")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.see\.bias"):
        kandinsky.load(copy, device="cpu", trust_remote_code=True)("rain", video=film)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match="cut off"):
        kandinsky.load(copy, device="cpu", trust_remote_code=True)
    (copy / "encoder" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        stages.encode(
            kandinsky.load(copy, device="cpu", only={"text"}, trust_remote_code=True).context,
            [kandinsky.load(model, device="cpu", only=set()).resolve(Request("", "rain", video=film))],
        )


def test_cancelled_by_a_callback(pipe: VideoToAudioPipeline, film: Path) -> None:
    with pytest.raises(Cancelled, match="after step 2 of 3"):
        pipe("rain", video=film, on_step=lambda step, total, x: step < 2)


def test_the_official_folder_is_a_model(tmp_path: Path, film: Path, model: Path) -> None:
    folder = sound.write_official(tmp_path / "kandinsky-4-v2a")
    card = catalogue.source_of(folder).card
    assert card.sound == catalogue.find("kandinsky4-v2a").sound
    assert card.text.parts[0].repo == "THUDM/cogvlm2-video-llama3-chat" and card.clip.spatial == 8
    scheduler = folder / "scheduler" / "scheduler_config.json"
    text = scheduler.read_text()
    for old, new, words in (
        ("PNDMScheduler", "LMSScheduler", "names a `LMSScheduler`"),
        ("0.012", "0.02", "other levels"),
        ('"epsilon"', '"v_prediction"', "v_prediction"),
    ):
        scheduler.write_text(text.replace(old, new))
        with pytest.raises(RequestError, match=words):
            kandinsky.load(folder, device="cpu", only={"dit"})
    scheduler.write_text(text.replace("PNDMScheduler", "DDIMScheduler"))
    assert kandinsky.load(folder, device="cpu", only={"dit"}).card.sampling.sampler == "ddim"


def test_other_samplers_of_the_card(model: Path, film: Path) -> None:
    """Whatever the table has: the loop is one."""
    base = catalogue.source_of(model).card
    heard = set()
    for name in ("pndm", "ddim", "flow"):
        card = dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, sampler=name))
        pipe = VideoToAudioPipeline(build(card, RunOptions(device="cpu", trust_remote_code=True)))
        heard.add(pipe("rain", video=film, seed=3).audio.samples_SC.tobytes())
    assert len(heard) == 3


def test_stable_diffusions_autoencoder_is_diffusers(pipe: VideoToAudioPipeline, model: Path) -> None:
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(model / "vae")
    latents = torch.randn(1, 1, 4, 13, 4, generator=torch.Generator().manual_seed(1))
    with pipe.placement.hold("vae") as vae, torch.no_grad():
        assert isinstance(vae, FluxAutoencoder)
        mine = vae.decode(latents)
        expected = theirs.decode(latents[:, 0].movedim(-1, 1) / 0.18215).sample
    torch.testing.assert_close(mine[:, 0].movedim(-1, 1), expected)
    picture = stages.decode(pipe.context, latents)
    assert picture.dtype is torch.uint8 and picture.shape == (1, 32, 104, 3)
    wanted = ((expected / 2 + 0.5).clamp(0, 1) * 255).round()
    assert torch.equal(picture[0].float(), wanted[0].movedim(0, -1))


def test_loudness_may_be_what_the_pictures_mean(pipe: VideoToAudioPipeline, film: Path) -> None:
    one = pipe.resolve(Request("", "rain", video=film, seed=1))
    white, grey = (torch.full((1, 32, 104, 3), shade, dtype=torch.uint8) for shade in (255, 128))
    assert loudness(stages.listen(grey, one).samples_SC) == pytest.approx(-30, abs=0.2)
    rules = dataclasses.replace(sound_of(one.card), dbfs=None, max_value=1e6)
    one = dataclasses.replace(one, card=dataclasses.replace(one.card, sound=rules))
    quiet, loud = stages.listen(grey, one), stages.listen(grey - 64, one)
    assert -60 < loudness(quiet.samples_SC) < loudness(loud.samples_SC) - 10
    assert not stages.listen(white, one).samples_SC.any(), "silence is a legal answer"


def test_other_classes_than_the_encoders_are_not_taken(tmp_path: Path, film: Path, model: Path) -> None:
    """A folder whose class has no layers to stop at."""
    copy = sound.write(tmp_path / "copy")
    code = copy / "encoder" / "films.py"
    code.write_text(code.read_text().replace("return states\n", "return states\n        return None\n"))
    code.write_text(code.read_text().replace("for layer in self.model.layers:", "for layer in self.model.layers[:1]:"))
    with pytest.raises(BackendError, match="never came to its last layer"):
        kandinsky.load(copy, device="cpu", trust_remote_code=True)("rain", video=film)


def test_a_clip_that_claims_to_last_for_ever_is_refused() -> None:
    card = catalogue.find("nano-v2a")
    film = Video(np.zeros((2, 8, 8, 3), np.uint8), fps=1e-9, seed=0)
    with pytest.raises(RequestError, match=r"claims to last 2e.09 s"):
        resolve(Request("nano-v2a", video=film), card)
