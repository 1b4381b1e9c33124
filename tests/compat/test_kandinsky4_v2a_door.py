"""The documents' way from a film to a film with sound, word for word, on tiny weights."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils as dynamic
from PIL import Image

from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.kandinsky4_v2a import stages
from kandinsky.families.kandinsky4_v2a.clip_embeddings import ClipEmbeddings
from kandinsky.media import mux
from kandinsky.media.audio import loudness, read_audio
from kandinsky4_video2audio.utils import create_video, load_video, read_video
from kandinsky4_video2audio.video2audio_pipe import Video2AudioPipeline
from tiny import sound

FILM = Path(__file__).parents[3] / "shared" / "media" / "kandinsky4_v2a_input.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout, with the encoder's repository inside."""
    made = sound.write_official(tmp_path_factory.mktemp("door") / "kandinsky-4-v2a")
    sound.write_encoder(made / "encoder")
    return made


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def states() -> ClipEmbeddings:
    generator = torch.Generator().manual_seed(1)
    return ClipEmbeddings(*(torch.randn(1, n, sound.WIDTH, generator=generator) for n in (5, 7, 5, 7)))


def test_official_signatures() -> None:
    names = list(inspect.signature(Video2AudioPipeline).parameters)
    assert names[:3] == ["path_to_model", "torch_dtype", "device"]
    call = inspect.signature(Video2AudioPipeline.__call__).parameters
    defaults = {"images": inspect.Parameter.empty, "prompt": inspect.Parameter.empty, "negative_prompt": None,
                "height": 512, "duration_sec": 10, "num_inference_steps": 50, "guidance_scale": 8, "generator": None,
                "latents": None, "output_type": "pil"}  # fmt: skip
    assert {name: call[name].default for name in list(call)[1:11]} == defaults
    load = inspect.signature(load_video).parameters
    assert (list(load), load["num_frames"].default, load["max_duration_sec"].default) == (
        ["video", "fps", "num_frames", "max_duration_sec"],
        38,
        12,
    )
    assert list(inspect.signature(create_video).parameters) == [
        "spectogram", "video", "target_dBFS", "save_path", "display_video", "device",
    ]  # fmt: skip


@pytest.mark.skipif(not FILM.is_file(), reason="the shared clip is not beside this checkout")
def test_the_documents_lines(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_TRUST_REMOTE_CODE", "1")
    device = "cpu"
    pipe = Video2AudioPipeline(str(folder), torch_dtype=torch.float16, device=device)
    video, _, fps = read_video(str(FILM))  # officially torchvision's, which is no more

    prompt = "clean. clear. good quality."
    negative_prompt = "hissing noise. drumming rythm. saying. poor quality."
    video_input, video_complete, duration_sec = load_video(video, fps["video_fps"], num_frames=96, max_duration_sec=1)
    assert (video_input.shape, len(video_complete), duration_sec) == (torch.Size([3, 96, 384, 672]), 8, 1)
    out = pipe(
        video_input,
        prompt,
        negative_prompt=negative_prompt,
        duration_sec=duration_sec,
        num_inference_steps=2,  # not in the documents: 50
    )[0]
    assert isinstance(out, Image.Image) and out.size == (96, 512) and out.mode == "RGB"
    save_path = str(tmp_path / "outputs" / "1.mp4")
    create_video(out, video_complete, display_video=False, save_path=save_path, device=device)
    film = mux.probe(save_path)
    assert film.has_audio and film.seconds == pytest.approx(1) and len(film.times_s) == 8
    audio = read_audio(save_path)
    assert audio.rate == 44100 and loudness(audio.samples_SC) == pytest.approx(-30, abs=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["modules", "outputs"], "nothing in the current folder"


def test_noise_and_guidance_are_the_callers(folder: Path, states: ClipEmbeddings) -> None:
    pipe = Video2AudioPipeline(folder, torch.float32, "cpu")
    images = torch.zeros(3, 4, 8, 8, dtype=torch.uint8)

    def made(**options):
        options = {"duration_sec": 1, "height": 64, "num_inference_steps": 1, "output_type": "pt"} | options
        return pipe(images, "rain", states=states, **options)

    base = made(generator=torch.Generator().manual_seed(3))
    assert base.shape == (1, 3, 64, 96) and 0 <= base.min() <= base.max() <= 1
    assert torch.equal(made(generator=[torch.Generator().manual_seed(3)]), base)
    noise = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(made(latents=noise), base)
    assert not torch.equal(made(latents=noise, guidance_scale=1), base)
    array = made(latents=noise, output_type="np")
    assert array.shape == (1, 64, 96, 3) and np.array_equal(array[0, :, :, 0], base[0, 0].numpy())
    raw = made(latents=noise, output_type="latent")
    torch.testing.assert_close((raw / 2 + 0.5).clamp(0, 1), base)
    assert np.array_equal(np.array(made(latents=noise, output_type="pil")[0]), (array[0] * 255).round())
    assert made(latents=noise[..., :8], duration_sec=0.9).shape[-1] == 64, "fractions of seconds are heeded"


def test_a_guided_step_is_diffusers(folder: Path, states: ClipEmbeddings) -> None:
    """Guidance and PLMS as in the official loop, with Diffusers' scheduler."""
    from diffusers import PNDMScheduler

    from kandinsky.families.kandinsky4_v2a.layers import Conditions

    pipe = Video2AudioPipeline(folder, torch.float32, "cpu")
    x = noise = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(3))
    scheduler = PNDMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(3)
    with pipe.pipeline.placement.hold("dit") as net, torch.no_grad():
        for level in scheduler.timesteps:
            sides = [Conditions(states.negative_1LE, states.black_1TE), Conditions(states.text_1LE, states.frames_NTE)]
            bare, full = (net(x.movedim(1, -1), level[None], side).movedim(-1, 1) for side in sides)
            x = scheduler.step(bare + 8 * (full - bare), level, x).prev_sample
    draws = noise.unsqueeze(2).movedim(1, -1)[None]
    mine = pipe.pipeline.drive(stages.denoise(pipe.pipeline.context, draws, states, steps=3, guidance=8.0), None)[
        :, 0
    ].movedim(-1, 1)
    torch.testing.assert_close(mine, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_type": "jpg"}, "output_type `jpg` is unknown"),
        ({"duration_sec": 0}, "spectrogram of 0x512"),
        ({"height": 100}, "height that is a multiple of 8"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents have shape"),
        ({}, "not run unasked"),
    ],
)
def test_calls_that_cannot_be(folder: Path, options: dict, words: str) -> None:
    pipe = Video2AudioPipeline(folder, device="cpu")
    with pytest.raises(RequestError, match=words):
        pipe(torch.zeros(3, 4, 8, 8), "rain", **({"duration_sec": 1} | options))


def test_pipelines_and_films_that_cannot_be(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RequestError, match="not there"):
        Video2AudioPipeline("./nowhere", device="cpu")
    with pytest.raises(WeightsError, match=r"ai-forever/kandinsky-4-v2a"):
        Video2AudioPipeline("ai-forever/kandinsky-4-v2a", device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="cuda"):
            Video2AudioPipeline(folder)
    with pytest.raises(RequestError, match="too short"):
        load_video(torch.zeros(7, 4, 4, 3, dtype=torch.uint8), 8)
    with pytest.raises(RequestError, match=r"ending `\.avi`"):
        create_video(Image.new("RGB", (96, 512)), torch.zeros(8, 4, 4, 3), save_path=tmp_path / "x.avi", device="cpu")


def test_silence_and_short_pictures(tmp_path: Path) -> None:
    """A white picture is silence, which the official code divides by; sound lasts as long as the film."""
    frames = torch.zeros(16, 16, 16, 3, dtype=torch.uint8)
    create_video(Image.new("RGB", (192, 64), "white"), frames, save_path=tmp_path / "x.webm", device="cpu")
    film = mux.probe(tmp_path / "x.webm")
    assert film.seconds == pytest.approx(2, abs=0.01) and not read_audio(tmp_path / "x.webm").samples_SC.any()
