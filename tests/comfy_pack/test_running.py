"""What the nodes do, as plain functions: with Nano, and with tiny models of the other families."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import kandinsky
from comfy_pack import pack
from comfy_pack.fakes import Host, Interrupted
from kandinsky import catalogue as cards
from kandinsky.engine.interpolation import Raise
from kandinsky.engine.options import RunOptions
from kandinsky.errors import Cancelled, RequestError, WeightsError
from kandinsky.media.recipe import from_text, to_text
from kandinsky.model.values import Audio, Video
from kandinsky.train import branch
from kandinsky.weights.elsewhere import completed, with_transformer
from kandinsky.weights.locate import missing_parts
from tiny import catalogue as tiny
from tiny import family

CPU = RunOptions(device="cpu")
LITE = "kandinsky5-lite-t2v-sft-5s"


@pytest.fixture(scope="module", autouse=True)
def comfyui() -> Iterator[ModuleType]:
    with pack.in_comfyui() as module:
        yield module


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_cards(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY_CARDS", str(small / "cards"))
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(small / "unets" / "weights"))
    return small


def made_of(name: str, host: Host, **options: Any) -> tuple[Any, Any]:
    """A chosen model, and a place for loaded ones."""
    models = pack.part("models")
    return models.choose(name, host, CPU.changed(**options)), models.Kept(host)


def image(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


# -- Nano --------------------------------------------------------------------------------------------------------------


def test_conditions_are_chained_and_sent() -> None:
    nodes, remote = pack.part("nodes"), pack.part("remote")
    chosen, _ = made_of("nano-t2v", Host())
    frames = np.random.default_rng(0).integers(0, 255, (25, 96, 96, 3), dtype=np.uint8)
    images = torch.from_numpy(frames).float() / 255
    clip = SimpleNamespace(get_components=lambda: SimpleNamespace(images=images, frame_rate=12, audio=None))
    first = nodes.KandinskyKnownFrames.execute(at="0", video=clip, cut="-9:").args[0]
    both = nodes.KandinskyKnownFrames.execute(at="end", images=images[:1], conditions=first).args[0]
    values = {"conditions": both, "seconds": 2.0}
    job = pack.part("running").asked(chosen, "a panda", values)
    assert [(one.at.start, one.at.stop) for one in job.conditions] == [(0, 3), (6, 7)]
    mask = torch.zeros(25, 48, 48)
    mask[:, 24:] = 1
    (source,) = nodes.KandinskySourceClip.execute(
        video=clip, span="4:9", strength=-1.0, mask=mask, mask_grow=2, place="", source_prompt=" "
    ).args[0]
    assert source.strength is None and source.grow == 2 and source.mask.shape == (25, 96, 96, 3)
    (known,) = pack.part("running").asked(chosen, "a panda", {"conditions": (source,)}).conditions
    assert known.kept.keep_THW[2, :5].all() and not known.kept.keep_THW[2, 7:].any()
    sent = [remote._sent(one, 12.0) for one in (*both, source)]
    assert sent[0]["frames"][4:8] == b"ftyp" and sent[1]["frames"].startswith(b"\x89PNG")
    assert sent[2]["mask"][4:8] == b"ftyp" and sent[2]["span"] == "4:9" and "cut" not in sent[2]
    with pytest.raises(Exception, match="either `video` or `images`"):
        nodes.KandinskySourceClip.execute(strength=0.5)


def quiet(nodes: ModuleType) -> None:
    """Have nodes talk to no ComfyUI."""
    nodes.HOST.progress = lambda done, total, preview: None
    nodes.HOST.lend = lambda size, release: None
    nodes.HOST.stop = lambda: None
    nodes.HOST.is_interrupted = lambda: False


def test_conditions_that_a_model_does_not_take_are_refused_as_the_library_does() -> None:
    nodes, running = pack.part("nodes"), pack.part("running")
    frames = np.zeros((25, 192, 192, 3), np.uint8)
    chosen, _ = made_of("nano2-t2v", Host())
    still = torch.from_numpy(frames[:1]).float()
    known = nodes.KandinskyKnownFrames.execute(at="end", images=still).args[0]
    with pytest.raises(RequestError, match=r"goes on from a first frame.*use `nano-t2v`"):
        running.asked(chosen, "a panda", {"conditions": known})
    first = nodes.KandinskyKnownFrames.execute(at="0", images=still).args[0]
    assert running.asked(chosen, "a panda", {"conditions": first}).conditions


def test_prompts_by_time_are_those_of_the_library() -> None:
    nodes = pack.part("nodes")
    quiet(nodes)
    (model,) = nodes.KandinskyLoad.execute("nano-t2v", device="cpu").args
    first = nodes.KandinskyPromptAt.execute(prompt=" a cat ", at=0.5).args[0]
    both = nodes.KandinskyPromptAt.execute(prompt="a red heart", at=1.0, until=1.3, prompt_at=first).args[0]
    values: dict[str, Any] = {"seconds": 2.0, "steps": 2, "seed": 7}
    video, images, latent, seed = nodes.KandinskyGenerate.execute(
        model, "a panda", prompt_at=both, fade=0.25, loop=False, overlap=-1.0, **values
    ).args
    alone = kandinsky.load("nano-t2v", device="cpu")(
        "a panda", prompt_at=[("a cat", 0.5), ("a red heart", 1.0, 1.3)], fade=0.25, progress=False, **values
    )
    assert np.array_equal(pack.part("tensors").frames_of(images), alone.frames) and seed == 7
    assert video.recipe["prompt_at"] == alone.recipe["prompt_at"]
    assert latent is None
    with pytest.raises(Exception, match="no single latent holds this clip"):
        nodes.KandinskyDecode.execute(model, latent)
    with pytest.raises(Exception, match="says nothing"):
        nodes.KandinskyPromptAt.execute(prompt=" ", at=0.5)


def test_a_clip_is_made_larger_at_once_and_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, tensors = pack.part("nodes"), pack.part("tensors")
    quiet(nodes)
    (model,) = nodes.KandinskyLoad.execute("nano-t2v", device="cpu").args
    own = kandinsky.load("nano-t2v", device="cpu")
    values: dict[str, Any] = {"seconds": 0.5, "steps": 3, "seed": 7}
    told: list[tuple[int, int]] = []
    nodes.HOST.progress = lambda done, total, preview: told.append((done, total))
    _, images, latent, _ = nodes.KandinskyGenerate.execute(model, "a panda", upscale="1.5", **values).args
    large = own("a panda", upscale=1.5, progress=False, **values)
    assert np.array_equal(tensors.frames_of(images), large.frames) and images.shape == (5, 144, 144, 3)
    assert latent is None and told == sorted(told) and told[-1][0] == told[-1][1] > 3  # steps of both stages
    # a clip from elsewhere, or images at the model's rate
    small = own("a panda", progress=False, **values)
    given: dict[str, Any] = {"prompt": "a panda", "steps": 3, "seed": 9, "upscale_strength": 0.5}
    video, images, seed = nodes.KandinskyUpscale.execute(
        model, video=pack.part("host").video_of(small), upscale="144x192", **given
    ).args
    again = own("a panda", video=small, steps=3, seed=9, upscale="144x192", upscale_strength=0.5, progress=False)
    assert np.array_equal(tensors.frames_of(images), again.frames) and images.shape == (5, 192, 144, 3) and seed == 9
    assert video.recipe["upscale"] == "144x192"
    images = nodes.KandinskyUpscale.execute(model, images=tensors.image_of(small.frames), upscale=" ", **given).args[1]
    assert images.shape == (5, 192, 192, 3)
    # what memory would not hold is refused before anything runs
    monkeypatch.setattr(pack.part("running"), "host_memory", lambda: (10**6, 10**9))
    with pytest.raises(Exception, match=r"s of 192x192 are 0\.0 GB, which ComfyUI holds"):
        nodes.KandinskyGenerate.execute(model, "a panda", upscale="2", **values)


def test_branches_are_files_of_comfyui_and_names_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, remote = pack.part("nodes"), pack.part("remote")
    quiet(nodes)
    files = {kind: written_branch(tmp_path / kind, kind) for kind in ("control", "reference")}
    folders = {"controlnet": [tmp_path / "control"], "ipadapter": [tmp_path / "reference"]}
    monkeypatch.setattr(nodes.HOST, "folders", lambda kind: folders.get(kind, []))
    names = {kind: file.name for kind, file in files.items()}
    listed = next(one for one in nodes.KandinskyControl.define_schema().inputs if one.id == "branch")
    assert listed.told["options"] == ["default", *sorted(names.values())]
    images = torch.from_numpy(np.stack([image(96, 96, 1)] * 13)).float() / 255
    followed = nodes.KandinskyControl.execute(images=images, branch=names["control"], strength=0.5, steps="0:0.6").args[
        0
    ]
    both = nodes.KandinskyReference.execute(image=images[:1], branch=names["reference"], conditions=followed).args[0]
    (model,) = nodes.KandinskyLoad.execute("nano-t2v", device="cpu").args
    values: dict[str, Any] = {"seconds": 1.0, "steps": 2, "seed": 7}
    plain = nodes.KandinskyGenerate.execute(model, "a panda", **values).args[1]
    made = nodes.KandinskyGenerate.execute(model, "a panda", conditions=both, **values)
    alone = kandinsky.load("nano-t2v", device="cpu")("a panda", conditions=list(both), progress=False, **values)
    assert np.array_equal(pack.part("tensors").frames_of(made.args[1]), alone.frames)
    assert not torch.equal(made.args[1], plain)  # the branches were there
    # over HTTP: what they are told as files, themselves by name
    control, reference = (remote._sent(one, 12.0) for one in both)
    assert control["control"][4:8] == b"ftyp" and control["branch"] == "control" and control["steps"] == "0:0.6"
    assert reference["reference"].startswith(b"\x89PNG") and reference["branch"] == "reference"
    there = nodes.KandinskyReference.execute(image=images[:1], branch="default", branch_there=" subject ").args[0]
    assert remote._sent(there[0])["branch"] == "subject"
    with pytest.raises(Exception, match="is not in ComfyUI's folder"):
        nodes.KandinskyControl.execute(images=images, branch="../other.safetensors")
    with pytest.raises(Exception, match="from 0 to 4"):
        nodes.KandinskyControl.execute(images=images, strength=9.0)
    stamp = nodes.KandinskyControl.fingerprint_inputs(branch=names["control"], strength=1.0)
    assert stamp == files["control"].stat().st_mtime_ns and nodes.KandinskyControl.fingerprint_inputs() is None


def written_branch(folder: Path, kind: Any) -> Path:
    """A branch beside Nano, with random weights."""
    settings = branch.BranchSettings(kind=kind, blocks=1, width=16, head_dim=8, dtype="float32")
    card = cards.find("nano-t2v")
    module = branch.built(settings, card)
    family.randomise(module, seed=5, scale=0.3)
    weights = {f"branch.{name}": tensor for name, tensor in module.state_dict().items()}
    made = branch.write(weights, settings, card, folder)
    return made.rename(folder / f"{kind}.safetensors")


def test_frames_are_those_of_the_library_with_a_preview_each_step() -> None:
    host = Host()
    chosen, kept = made_of("nano-t2v", host)
    running = pack.part("running")
    made = running.generated(chosen, "a panda", {"seconds": 0.5, "steps": 3, "seed": 7}, kept)
    alone = kandinsky.load("nano-t2v", device="cpu")("a panda", seconds=0.5, steps=3, seed=7, progress=False)
    assert np.array_equal(made.video.frames, alone.frames) and made.video.seed == 7
    assert made.video.recipe == alone.recipe
    steps = [(done, total) for done, total, preview in host.told if preview is not None]
    assert steps == [(1, 3), (2, 3), (3, 3)] and host.told[2][2].size == (252, 252)
    assert host.told[-1][:2] == (len(alone.frames), len(alone.frames))  # decoding
    again = running.decoded(chosen, made.latents_BTHWC, made.video.recipe, kept)
    assert np.array_equal(again.frames, alone.frames) and again.recipe == alone.recipe
    with pytest.raises(RequestError, match="48"):
        running.decoded(chosen, made.latents_BTHWC[..., :16], None, kept)


def test_an_interrupt_ends_the_run_within_a_step() -> None:
    host = Host(stop_after=2)
    chosen, kept = made_of("nano-t2v", host)
    with pytest.raises(Interrupted):
        pack.part("running").generated(chosen, "a panda", {"seconds": 0, "steps": 25, "seed": 7}, kept)
    assert len(host.told) == 2
    host.stop_after = None  # the model can be used again
    assert len(pack.part("running").generated(chosen, "a panda", {"seconds": 0, "steps": 2}, kept).video) == 1


def test_an_interrupt_is_seen_while_a_step_runs() -> None:
    host, cancelled = Host(stop_after=0), []
    pipe = SimpleNamespace(cancel=lambda: cancelled.append(True))
    watched = pack.part("running").watched
    with pytest.raises(Interrupted), watched(pipe, host):
        for _ in range(1000):  # a long step
            if cancelled:
                raise Cancelled("cancelled in a step")
            time.sleep(0.01)


def test_sound_goes_with_the_clip() -> None:
    chosen, kept = made_of("nano-v2a", Host())
    clip = Video(np.zeros((25, 48, 48, 3), np.uint8), 12.0)
    made = pack.part("running").sounded(chosen, clip, "drum", {"steps": 2, "seed": 3}, kept)
    alone = kandinsky.load("nano-v2a", device="cpu")("drum", video=clip, steps=2, seed=3, progress=False)
    heard = pack.part("running").with_sound(made)
    assert made.audio == heard.audio == alone.audio and heard.recipe == made.recipe
    host = pack.part("host")
    own = Video(clip.frames, 12.0, recipe={"model": "nano-t2v", "seed": 1})
    assert host.clip_of(host.video_of(own)).recipe == own.recipe
    for function in ("generated", "expanded"):
        with pytest.raises(RequestError, match="sound"):
            getattr(pack.part("running"), function)(chosen, "drum", {}, kept)
    chosen, kept = made_of("nano-t2v", Host())
    with pytest.raises(RequestError, match="nano-v2a"):
        pack.part("running").sounded(chosen, clip, "drum", {}, kept)


def test_a_plan_says_what_the_command_says() -> None:
    chosen, _ = made_of("nano-t2v", Host())
    text = pack.part("running").planned(chosen, {"seconds": 1.0, "steps": 4})
    assert text.startswith("model      nano-t2v\nclip       96x96, 1 s, 13 frames") and "for 8 passes" in text
    assert "10.8 GB" in pack.part("running").planned(chosen, {}, memory="12GB")  # nine tenths of it


# -- tiny models -------------------------------------------------------------------------------------------------------


def test_images_are_edited_and_repainted(tiny_cards: Path) -> None:
    running = pack.part("running")
    chosen, kept = made_of("tiny-i2i", Host())
    values = {"image": image(), "steps": 2, "seed": 1}
    made = running.generated(chosen, "winter", values, kept)
    alone = kandinsky.load("tiny-i2i", device="cpu")("winter", image=image(), steps=2, seed=1, progress=False)
    assert np.array_equal(made.video.frames, alone.frames)


def test_prompts_are_written_out(tiny_cards: Path) -> None:
    chosen, kept = made_of("tiny-t2v", Host())
    text = pack.part("running").expanded(chosen, "a cat", {"seed": 1}, kept)
    assert isinstance(text, str) and text.strip()
    chosen, kept = made_of("nano-t2v", Host())
    with pytest.raises(RequestError, match="cannot expand"):
        pack.part("running").expanded(chosen, "a cat", {"seed": 1}, kept)


@pytest.mark.slow
def test_a_clip_gains_frames_and_keeps_its_sound(tiny_cards: Path) -> None:
    chosen, kept = made_of("kandinsky-video-1.1", Host())
    sound = Audio(np.zeros((8000, 1), np.int16), 16000)
    clip = Video(np.stack([image(seed=i) for i in range(3)]), 6.0, audio=sound)
    made = pack.part("running").interpolated(chosen, clip, Raise(2, steps=1), kept)
    assert made.fps == 12 and len(made) == 6 and made.audio == sound
    with pytest.raises(RequestError, match="no interpolation network"):
        other, kept = made_of("nano-t2v", Host())
        pack.part("running").interpolated(other, clip, Raise(), kept)


def test_loras_are_switched_without_loading_again(tiny_cards: Path) -> None:
    running, host = pack.part("running"), Host({"loras": tiny_cards})
    chosen, kept = made_of("tiny-t2v", host)
    file = pack.part("models").file_in("loras", "lora.safetensors", host)
    values = {"seconds": 0.2, "steps": 2, "seed": 1}

    def frames(model: Any) -> np.ndarray:
        made: np.ndarray = running.generated(model, "a cat", values, kept).video.frames
        return made

    plain = frames(chosen)
    styled = frames(chosen.with_lora(file, 0.8))
    alone = kandinsky.load("tiny-t2v", device="cpu", lora=f"{file}:0.8")("a cat", **values, progress=False)
    assert np.array_equal(styled, alone.frames) and not np.array_equal(styled, plain)
    assert np.array_equal(frames(chosen), plain)
    assert len(kept.keys) == len(host.lent) == 1
    with pytest.raises(RequestError, match="not in ComfyUI's folder"):
        pack.part("models").file_in("loras", "../lora.safetensors", host)


# -- models ------------------------------------------------------------------------------------------------------------


def test_missing_files_are_answered_with_the_download_command() -> None:
    models = pack.part("models")
    with pytest.raises(WeightsError, match=f"kandinsky download {LITE}"), models.explained():
        models.choose(LITE, Host())
    node = pack.part("nodes").KandinskyLoad
    assert f"kandinsky download {LITE}" in node.validate_inputs(LITE)
    assert node.validate_inputs("nano-t2v") is True
    assert "nano-t2v" in node.validate_inputs("nano-t2w")


def test_code_of_others_runs_only_if_who_started_comfyui_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pack.part("models")
    with pytest.raises(RequestError, match="KANDINSKY_TRUST_REMOTE_CODE=1"), models.explained():
        models.choose("kandinsky4-v2a", Host())
    monkeypatch.setenv(models.TRUST, "1")
    with pytest.raises(WeightsError, match="kandinsky download"), models.explained():
        models.choose("kandinsky4-v2a", Host())


def test_weights_are_found_in_comfyuis_folders(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("kandinsky", "diffusion_models", "text_encoders", "vae")}
    card = cards.find(LITE)
    written(folders["diffusion_models"] / "mine" / "kandinsky5lite_t2v_sft_5s.safetensors")  # sorted by the user
    qwen, clip = card.text.parts
    for name in qwen.files:
        written(folders["text_encoders"] / "Qwen2.5-VL-7B-Instruct" / name)
    for name in clip.files:
        written(folders["kandinsky"] / "text_encoder2" / name)  # as officially
    for name in card.vae.parts[0].files:
        written(folders["vae"] / "HunyuanVideo" / name)  # as in its repository
    found = pack.part("models").source_of(LITE, Host(folders))
    assert not missing_parts(found.card) and found.name == LITE
    assert missing_parts(pack.part("models").source_of(LITE, Host()).card)
    assert completed(cards.source_of("nano-t2v"), lambda name: [tmp_path]).card == cards.find("nano-t2v")


def written(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b'{"weight_map": {"a": "model-00001-of-00005.safetensors"}}' if path.name.endswith("index.json") else b"x"
    )


def test_a_file_of_any_name_is_read_as_the_models_transformer(tiny_cards: Path, tmp_path: Path) -> None:
    own = tmp_path / "diffusion_models"
    own.mkdir()
    source = next((tiny_cards / "t2v" / "weights" / "model").glob("*.safetensors"))
    (own / "renamed_by_somebody.safetensors").write_bytes(source.read_bytes())
    (own / "other.safetensors").write_bytes(next((tiny_cards / "t2i" / "weights" / "model").iterdir()).read_bytes())
    host = Host({"diffusion_models": own})
    models, running = pack.part("models"), pack.part("running")
    kept, values = models.Kept(host), {"seconds": 0.2, "steps": 1, "seed": 1}
    chosen = models.choose("tiny-t2v", host, CPU, "renamed_by_somebody.safetensors")
    made = running.generated(chosen, "a cat", values, kept).video
    plain = running.generated(models.choose("tiny-t2v", host, CPU), "a cat", values, kept).video
    assert np.array_equal(made.frames, plain.frames) and made.recipe["transformer"].endswith("somebody.safetensors")
    with pytest.raises(WeightsError):
        running.generated(models.choose("tiny-t2v", host, CPU, "other.safetensors"), "a cat", values, kept)
    with pytest.raises(WeightsError, match="is not there"):
        with_transformer(cards.source_of("tiny-t2v"), tmp_path / "gone.safetensors")


def test_folders_of_models_are_offered(tiny_cards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    card = (tiny_cards / "cards" / "tiny-t2i.toml").read_text(encoding="utf-8")
    (tmp_path / "mine" / "card.toml").write_text(card.replace('base = "', 'base = "'), encoding="utf-8")
    host, models = Host({"kandinsky": tmp_path}), pack.part("models")
    names = models.model_names(host)
    assert names[0] == "nano2-t2v" and names[-1] == "mine/" and LITE in names
    assert models.choose("mine/", host).source.card.task == "text-to-image"
    with pytest.raises(RequestError, match="not in ComfyUI's folders"):
        models.choose("../", host)


def test_few_models_stay_loaded_and_comfyui_can_free_them(tiny_cards: Path) -> None:
    host, models = Host(), pack.part("models")
    kept, running = models.Kept(host), pack.part("running")
    values = {"steps": 1, "seed": 1}
    ids = ["tiny-t2v", "tiny-t2i", "nano-t2v", "tiny-t2v-nabla"]
    for name in ids:
        chosen = models.choose(name, host, CPU)
        job = running.asked(chosen, "a cat", values)
        with kept.pipe(chosen, job) as pipe:
            assert pipe.name == name and not torch.is_inference_mode_enabled()
    assert [key.split("'")[1] for key in kept.keys] == ids[-models.MOST_KEPT :]
    size, release = host.lent[-1]
    release()
    assert size > 0 and len(kept.keys) == models.MOST_KEPT - 1 and len(host.room) == 4
    assert len(host.ended) == 2  # the first, for want of room, and the one that was freed


def test_a_larger_clip_gets_a_placement_of_its_own() -> None:
    host = Host()
    chosen, kept = made_of("nano-t2v", host)
    for seconds, loads in ((0, 1), (2, 2), (1, 2)):
        job = pack.part("running").asked(chosen, "a cat", {"seconds": seconds})
        with kept.pipe(chosen, job):
            assert len(host.lent) == loads


# -- ComfyUI's values --------------------------------------------------------------------------------------------------


def test_every_level_survives_comfyuis_floats() -> None:
    tensors = pack.part("tensors")
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    given = tensors.image_of(frames)
    assert np.array_equal(tensors.frames_of(given), frames)
    assert np.array_equal((given.numpy() * 255).clip(0, 255).astype(np.uint8), frames)  # as ComfyUI saves images
    samples = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)[:, None]
    sound = tensors.sound_of(tensors.audio_of(Audio(samples, 8000)))
    assert sound == Audio(samples, 8000) and tensors.sound_of(None) is None
    latents = torch.randn(1, 2, 3, 4, 5)
    assert torch.equal(tensors.latents_of(tensors.latent_of(latents)), latents)
    assert tensors.latents_of(torch.zeros(1, 4, 8, 8)).shape == (1, 1, 8, 8, 4)


def test_masks_take_the_size_of_their_image() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    made = pack.part("tensors").mask_of(mask, 30, 40)
    assert made.shape == (30, 40) and not made[:, :19].any() and made[:, 21:].all()


def test_what_is_no_image_is_refused() -> None:
    tensors = pack.part("tensors")
    with pytest.raises(RequestError, match="2 were given"):
        tensors.one_frame(torch.zeros(2, 8, 8, 3), "image")
    with pytest.raises(RequestError, match="shape"):
        tensors.frames_of(torch.zeros(8, 8, 3))
    with pytest.raises(RequestError, match="shape"):
        tensors.latents_of(torch.zeros(8, 8))


def test_nodes_pass_a_model_on_and_make_standard_values() -> None:
    nodes = pack.part("nodes")
    nodes.HOST.progress = lambda done, total, preview: None
    nodes.HOST.lend = lambda size, release: None
    nodes.HOST.stop = lambda: None
    (model,) = nodes.KandinskyLoad.execute("nano-t2v", offload="default", dtype="float32").args
    assert model.options.dtype == "float32" and model.options.device == "cpu"
    made = nodes.KandinskyGenerate.execute(model, "a panda", seconds=0.0, steps=2, seed=7, size="", guidance=-1.0)
    video, images, latent, seed = made.args
    assert images.shape == (1, 96, 96, 3) and images.dtype == torch.float32 and seed == 7
    assert latent["samples"].shape == (1, 48, 1, 12, 12)
    video.save_to("x.mp4", metadata={"prompt": {}})
    recipe = from_text(to_text(video.saved["x.mp4"]["comment"]))
    assert recipe is not None and recipe["seed"] == 7 and recipe["model"] == "nano-t2v"
    clip, again = nodes.KandinskyDecode.execute(model, latent).args
    assert torch.equal(again, images) and clip.get_components().frame_rate == 12
    text = nodes.KandinskyPlan.execute(model, steps=4)
    assert text.ui["text"] == text.args and "nano-t2v" in text.args[0]
    (animated,) = nodes.KandinskyLoad.execute("nano-i2v").args
    moves = nodes.KandinskyGenerate.execute(animated, "", image=images, seconds=0.4, steps=1, seed=1)
    assert len(moves.args[1]) > 1
    with pytest.raises(RequestError, match="steps"):
        nodes.KandinskyGenerate.execute(model, "a panda", steps=5000)
