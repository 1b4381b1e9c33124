"""Training of nano-v2a: its objectives learn, resume bit-equal, and leave what the pipeline reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.families.nano.autoencoder import NanoAutoencoder, NanoAutoencoderParams
from kandinsky.families.nano.clip_encoder import NanoClipEncoder, NanoClipEncoderParams
from kandinsky.lab.nano.emoji import FRAMES
from kandinsky.lab.nano.sound_data import pitch
from kandinsky.lab.nano.sound_scenes import Event, Scene
from kandinsky.lab.nano.train_sound import (
    PictureSettings,
    SoundAutoencoderObjective,
    SoundObjective,
    event_targets,
    read_pictures,
    reading_loss,
)
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.train import loop
from kandinsky.train.objective import One, Rng
from kandinsky.train.recipe import run_recipe
from kandinsky.weights.read import load_into
from tiny.training import CLIP, PICTURES
from tiny.training import SOUND_UNET as UNET
from tiny.training import SOUND_VAE as VAE

SETTINGS = loop.LoopSettings(steps=2, lr=3e-3, warmup=2, bf16=False, log_every=1)


def autoencoder() -> NanoAutoencoder:
    torch.manual_seed(0)
    return NanoAutoencoder(NanoAutoencoderParams.from_dict(VAE))


def objective(drop: float = 0.3) -> SoundObjective:
    net = autoencoder()
    torch.manual_seed(1)
    clip, unet = NanoClipEncoderParams.from_dict(CLIP), V2AParams.from_dict(UNET)
    return SoundObjective(None, read_pictures(PICTURES), net, unet, clip, batch=3, drop=drop)


def test_pictures_show_absolute_loudness_and_silence_is_white() -> None:
    settings = read_pictures(PICTURES)
    tone = np.sin(2 * np.pi * 1000 * np.arange(settings.samples) / 16000).astype(np.float32)
    pictures = settings.pictures(np.stack([0 * tone, 100 * tone, 2000 * tone]))
    assert pictures.shape == (3, 1, 16, 216, 3)
    assert (pictures[0] == 1).all()
    quiet, loud = (float((1 - pictures[n]).amax()) for n in (1, 2))
    assert loud / quiet == pytest.approx(20**0.25, rel=0.03)


def test_targets_name_the_nearest_frame_and_what_happened_there() -> None:
    scene = Scene((0, 0, 0), events=(Event(0.52, "collide", 0.1, 0.7),))
    targets = event_targets([scene, Scene((0, 0, 0))], FRAMES)
    assert targets.shape[:2] == (2, FRAMES) and not targets[1].any()
    assert torch.nonzero(targets[0, :, 0])[:, 0].tolist() == [6]
    assert targets[0, 6, :4].tolist() == pytest.approx([1, 0.24, 0.7, np.log2(pitch(0.1) / 440)], abs=1e-5)
    perfect = targets.clone()
    perfect[..., 0] = torch.where(targets[..., 0] > 0, 20.0, -20.0)
    perfect[..., 4:] *= 20
    both, first, none = torch.ones(2), torch.tensor([1.0, 0.0]), torch.zeros(2)
    assert reading_loss(perfect, targets, both) < 1e-4 < reading_loss(perfect.roll(1, 1), targets, both)
    assert reading_loss(perfect.roll(1, 1), targets, first) > 1 > reading_loss(perfect.roll(1, 1), targets, none) == 0


def test_a_step_trains_eye_and_network_and_the_autoencoder_stays() -> None:
    one = objective(drop=0)
    batch = one.batch(0, Rng(0, 0).generator(0))
    assert batch.frames_BTCHW.shape == (3, FRAMES, 3, 16, 16) and batch.clean_BTHWC.shape == (3, 1, 2, 27, 4)
    loss = one.loss(batch, Rng(0, 0).generator(1))
    loss.value.backward()
    assert {"loss_velocity", "loss_early", "loss_reading"} == set(loss.figures)
    by_time = sum(at.error for at in loss.timed) / len(loss.timed)
    assert by_time == pytest.approx(loss.figures["loss_velocity"], rel=1e-5)
    for name in ("clip.patches.weight", "clip.words.weight", "unet.conv_in.weight", "reading.weight"):
        gradient = one.network.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
    assert all(p.grad is None for p in one.autoencoder.parameters())
    again = one.loss(batch, Rng(0, 0).generator(1))
    assert torch.equal(loss.value.detach(), again.value.detach())


def test_training_resumes_bit_equal(tmp_path: Path) -> None:
    whole = loop.run(One(objective()), SETTINGS, tmp_path / "whole")["network"]
    stopped = objective()

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 1:
            raise KeyboardInterrupt

    quick = dataclasses.replace(SETTINGS, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        loop.run(One(stopped), quick, tmp_path / "stopped", on_log=stop)
    resumed = loop.run(One(objective()), quick, tmp_path / "stopped")["network"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_autoencoder_starts_at_pca_and_gets_better() -> None:
    settings: PictureSettings = read_pictures(PICTURES)
    one = SoundAutoencoderObjective(None, settings, NanoAutoencoderParams.from_dict(VAE), batch=4, pca_clips=12)
    assert 0.5 < one.explained < 1
    batch = one.batch(0, Rng(0, 0).generator(0))
    optimiser = torch.optim.Adam([p for p in one.network.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(8):
        loss = one.loss(batch, Rng(0, 0).generator(1)).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_recipes_leave_files_that_load_strictly(tmp_path: Path) -> None:
    shared = {"cache": None, "pictures": PICTURES, "loop": {"steps": 1, "lr": 1e-3, "bf16": False}}
    first = {"kind": "nano-sound-autoencoder", "network": VAE, "data": {"batch": 2, "pca_clips": 4}, **shared}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    weights = run_recipe(tmp_path / "first.yaml", out=tmp_path / "vae")
    second = {
        "kind": "nano-sound", "autoencoder": {"weights": str(weights), "params": VAE}, "network": UNET, "clip": CLIP,
        "objective": {"batch": 2}, **shared,
    }  # fmt: skip
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(second))
    run_recipe(tmp_path / "second.yaml", out=tmp_path / "net")
    load_into(autoencoder(), weights)
    load_into(V2AUNet(V2AParams.from_dict(UNET)), tmp_path / "net" / "unet.safetensors")
    load_into(NanoClipEncoder(NanoClipEncoderParams.from_dict(CLIP)), tmp_path / "net" / "clip.safetensors")


def test_an_unknown_picture_setting_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown picture setting `column`"):
        read_pictures({"column": 3, "spectrogram": {}})
    with pytest.raises(RequestError, match="unknown spectrogram parameter"):
        read_pictures({"columns": 3, "max_value": 1.0, "spectrogram": {"bands": 3}})
    assert SpectrogramParams.from_dict({}).num_frequencies == 512
