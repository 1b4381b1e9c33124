"""Sound to pictures and back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.errors import RequestError
from kandinsky.media import audio
from kandinsky.media import spectrogram as spectrograms
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.model.values import Audio

OFFICIAL = SpectrogramParams()
SMALL = SpectrogramParams(
    sample_rate=8000, window_duration_ms=40, padded_duration_ms=80, num_frequencies=96, max_frequency=3600
)


def chord(params: SpectrogramParams, seconds: float = 1.0) -> torch.Tensor:
    """Three tones that set in one after the other and fade, [1, S] in units of PCM."""
    t = torch.arange(int(seconds * params.sample_rate)) / params.sample_rate
    tones = [(300.0, 0.0), (750.0, 0.3), (2100.0, 0.55)]
    waves = [torch.sin(2 * math.pi * f * t) * torch.exp(-3 * (t - s).clamp_min(0)) * (t >= s) for f, s in tones]
    return (8000 * sum(waves))[None]


@pytest.mark.parametrize(("params", "limit"), [(OFFICIAL, 0.12), (SMALL, 0.14)])
def test_a_round_trip_keeps_the_magnitudes(params: SpectrogramParams, limit: float) -> None:
    """Spectral convergence of sound → picture → sound against the sound's own magnitudes; noise is far off."""
    wave = chord(params)
    wanted = spectrograms.magnitudes(wave, params)
    image, largest = spectrograms.image_of_mel(spectrograms.mel_of_waveform(wave, params), params)
    back = spectrograms.magnitudes_of_mel(spectrograms.mel_of_image(image, params, max_value=largest), params)
    made = spectrograms.griffin_lim(back, params, generator=torch.Generator().manual_seed(1))
    reached = spectrograms.spectral_convergence(made, wanted, params)
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(2))
    assert reached < limit, reached
    assert spectrograms.spectral_convergence(noise, wanted, params) > 2 * limit
    assert spectrograms.spectral_convergence(3 * wave, wanted, params) < 1e-5


def test_the_transform_of_a_tone_peaks_in_its_band() -> None:
    wave = chord(SMALL)[:, : SMALL.sample_rate // 5]  # 300 Hz alone
    mel = spectrograms.mel_of_waveform(wave, SMALL)
    band = int(mel[0].mean(-1).argmax())
    filters = spectrograms.mel_filters(SMALL)
    bins = torch.linspace(0, SMALL.sample_rate // 2, len(filters))
    assert abs(float(bins[filters[:, band].argmax()]) - 300) < 30
    image, _ = spectrograms.image_of_mel(mel, SMALL)
    assert int(image[..., 0].float().mean(1).argmin()) == SMALL.num_frequencies - 1 - band, "dark and low"


def test_bands_of_a_picture_come_back_through_the_filters() -> None:
    places = torch.linspace(0, 9, len(spectrograms.mel_filters(SMALL)))
    linear = (1.5 + (places[:, None] + torch.arange(4)).sin())[None]  # smooth: the least squares stay above zero
    mel = spectrograms.mel_filters(SMALL).T @ linear
    back = spectrograms.magnitudes_of_mel(mel, SMALL)
    torch.testing.assert_close(spectrograms.mel_filters(SMALL).T @ back, mel, rtol=0.05, atol=0.02)


def test_stereo_keeps_its_sides_apart() -> None:
    params = SpectrogramParams(
        stereo=True, sample_rate=8000, padded_duration_ms=100, num_frequencies=32, max_frequency=3000
    )
    left, right = chord(params), chord(params).flip(-1)
    mel = spectrograms.mel_of_waveform(torch.cat((left, right)), params)
    image, largest = spectrograms.image_of_mel(mel, params)
    back = spectrograms.mel_of_image(image, params, max_value=largest)
    torch.testing.assert_close(back, mel, rtol=0.05, atol=0.02 * largest)
    assert not torch.allclose(back[0], back[1])


def test_silence_and_short_sound() -> None:
    silent = torch.zeros(1, 8000)
    image, largest = spectrograms.image_of_mel(spectrograms.mel_of_waveform(silent, SMALL), SMALL)
    assert largest == 0 and int(image.min()) == 255
    back = spectrograms.magnitudes_of_mel(spectrograms.mel_of_image(image, SMALL), SMALL)
    wave = spectrograms.griffin_lim(back, SMALL, generator=torch.Generator().manual_seed(1))
    assert not audio.prepare(audio.pcm(wave.T.numpy())).any()
    with pytest.raises(RequestError, match="too short"):
        spectrograms.mel_of_waveform(torch.zeros(1, 100), SMALL)


@pytest.mark.parametrize(("rate", "padded_ms", "window_ms"), [(22050, 100, 100), (22050, 100, 60), (11025, 81, 40)])
def test_transforms_of_an_odd_length(rate: int, padded_ms: int, window_ms: int) -> None:
    """As long as an inverse transform without a length makes it, so that no window is lost on the way back."""
    params = SpectrogramParams(
        sample_rate=rate, window_duration_ms=window_ms, padded_duration_ms=padded_ms, num_frequencies=64,
        max_frequency=5000, num_griffin_lim_iters=8,
    )  # fmt: skip
    assert params.samples(padded_ms) % 2 == 1
    wanted = spectrograms.magnitudes(chord(params), params)
    made = spectrograms.griffin_lim(wanted, params, generator=torch.Generator().manual_seed(1))
    assert made.shape == (1, params.hop * (wanted.shape[-1] - 1) + 1)
    assert spectrograms.magnitudes(made, params).shape == wanted.shape
    assert spectrograms.spectral_convergence(made, wanted, params) < 0.3


def test_too_few_columns_become_no_sound() -> None:
    for params in (SMALL, SpectrogramParams(sample_rate=22050, padded_duration_ms=100)):
        bins = len(spectrograms.mel_filters(params))
        least = next(n for n in range(1, 99) if params.hop * (n - 1) > params.samples(params.padded_duration_ms) // 2)
        assert spectrograms.griffin_lim(torch.ones(1, bins, least), params).isfinite().all()
        with pytest.raises(RequestError, match=f"use {least} or more"):
            spectrograms.griffin_lim(torch.ones(1, bins, least - 1), params)


def test_columns_last_as_long_as_asked() -> None:
    for seconds in (0.2, 1.0, 1.003, 12.0):
        columns = OFFICIAL.columns(seconds)
        assert (columns - 1) * OFFICIAL.hop >= seconds * OFFICIAL.sample_rate > (columns - 2) * OFFICIAL.hop
    assert OFFICIAL.columns(12.0) == 1201


def test_loudness_rules() -> None:
    sine = (20000 * np.sin(np.arange(4000) / 20)).astype(np.int16)[:, None]
    assert audio.loudness(audio.to_loudness(sine, -30)) == pytest.approx(-30, abs=0.05)
    assert int(np.abs(audio.prepare(sine).astype(int)).max()) == pytest.approx(32768 * 10 ** (-0.1 / 20), abs=2)
    assert math.isinf(audio.loudness(np.zeros((4, 1), np.int16)))
    assert audio.amplify(sine, 20).max() == 32767 and audio.amplify(sine, 20).min() == -32768
    assert audio.fit_length(sine, 5000).shape == (5000, 1) and audio.fit_length(sine, 30).shape == (30, 1)


def test_joined_pieces_fade_at_equal_power() -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((6000, 1)) for _ in range(3)]
    whole = audio.join(pieces, [0, 4000, 8000])
    assert len(whole) == 14000
    assert np.array_equal(whole[:4000], pieces[0][:4000]) and np.array_equal(whole[10000:], pieces[2][2000:])
    assert whole[4000:6000].std() == pytest.approx(1.0, abs=0.05)
    with pytest.raises(RequestError, match="do not overlap"):
        audio.join(pieces, [0, 7000, 9000])


@pytest.mark.parametrize("ending", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_files_are_lossless(ending: str, channels: int, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-30000, 30000, (10007, channels)).astype(np.int16)
    sound = Audio(samples, 44100)
    back = audio.read_audio(sound.save(tmp_path / f"new/a{ending}"))
    assert np.array_equal(back.samples_SC, samples) and back.rate == 44100
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"a{ending}"]


def test_bad_sound_files(tmp_path: Path) -> None:
    sound = Audio(np.zeros((10, 1), np.int16), 8000)
    with pytest.raises(RequestError, match=r"use \.wav or \.flac"):
        sound.save(tmp_path / "a.mp3")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="cannot be written"):
        sound.save(tmp_path / "file" / "a.wav")
    with pytest.raises(RequestError, match=r"audio .* cannot be read"):
        audio.read_audio(tmp_path / "file")


@pytest.mark.parametrize("change", [{"mel_scale_type": "slaney"}, {"window_duration_ms": 500}, {"max_frequency": 0}])
def test_other_spectrograms_are_refused(change: dict) -> None:
    with pytest.raises(RequestError):
        SpectrogramParams.from_dict(change)
