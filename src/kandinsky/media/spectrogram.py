"""Audio as mel spectrogram images, and back: waveform ↔ magnitudes ↔ mel bands ↔ image.

A column of the image is one time step (10 ms), a row one mel band, the highest on top; loud is dark.

Legend: C channels of audio, S samples, F bins of the Fourier transform, M mel bands, T time steps. Samples are in units
of 16-bit PCM (± 32768), as in the official code.
Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/riffusion/spectrogram_{converter,image_converter}.py,
util/image_util.py; torchaudio's Spectrogram, MelScale, InverseMelScale and GriffinLim, whose formulas these are.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.media.spectrogram_params import SpectrogramParams as SpectrogramParams

# magnitude of full scale by default; the official value
MAX_VALUE = 30e6
MOMENTUM = 0.99
TINY = 1e-16


@lru_cache(maxsize=4)
def mel_filters(params: SpectrogramParams) -> Tensor:
    """Triangular filters over the bins, [F, M] float32; corners are evenly spaced in mel = 2595·log10(1 + f/700)."""

    def mel(frequency: float) -> float:
        return 2595.0 * math.log10(1.0 + frequency / 700.0)

    bins = torch.linspace(0, params.sample_rate // 2, _fft(params)["n_fft"] // 2 + 1)
    corners_mel = torch.linspace(mel(params.min_frequency), mel(params.max_frequency), params.num_frequencies + 2)
    corners = 700.0 * (10.0 ** (corners_mel / 2595.0) - 1.0)
    widths = corners.diff()
    slopes = corners - bins[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp_min(0.0)


def mel_of_waveform(waveform_CS: Tensor, params: SpectrogramParams) -> Tensor:
    """Magnitudes in mel bands.

    Args:
        waveform_CS: Samples.
        params: Parameters of the spectrogram.

    Returns:
        [C, M, T] float32.

    Raises:
        RequestError: The audio is too short.
    """
    linear = magnitudes(waveform_CS, params)
    return mel_filters(params).to(waveform_CS.device).T @ linear


def magnitudes(waveform_CS: Tensor, params: SpectrogramParams) -> Tensor:
    """Magnitudes of the short-time Fourier transform.

    Args:
        waveform_CS: Samples.
        params: Parameters of the spectrogram.

    Returns:
        [C, F, T] float32, T = 1 + S // hop; 1 + (S − 1) // hop if the transform has an odd length.

    Raises:
        RequestError: The audio is too short.
    """
    need = _fft(params)["n_fft"] // 2 + 1
    if waveform_CS.shape[-1] < need:
        raise RequestError(
            f"sound of {waveform_CS.shape[-1]} samples is too short for a spectrogram: use {need} or more "
            f"({need / params.sample_rate:.2f} s)"
        )
    return _stft(waveform_CS.float(), params).abs()


def image_of_mel(mel_CMT: Tensor, params: SpectrogramParams, *, max_value: float | None = None) -> tuple[Tensor, float]:
    """Draw mel bands as an image: mono is grey; for stereo, green is left and blue is right. Silence is white.

    Args:
        mel_CMT: Mel bands.
        params: Parameters of the spectrogram.
        max_value: Magnitude of black, and of anything louder; None = the largest there is.

    Returns:
        The image [M, T, 3] uint8, and the magnitude of black.
    """
    largest = float(mel_CMT.max()) if max_value is None else max_value
    share = (mel_CMT / largest).clamp_max(1) if largest > 0 else torch.zeros_like(mel_CMT)
    planes = (255 - share**params.power_for_image * 255).to(torch.uint8)
    planes = planes.expand(3, -1, -1) if len(planes) == 1 else torch.cat((torch.zeros_like(planes[:1]), planes))
    return planes.flip(1).permute(1, 2, 0).contiguous(), largest


def mel_of_image(image_MTC: Tensor, params: SpectrogramParams, *, max_value: float = MAX_VALUE) -> Tensor:
    """Read mel bands from an image: red for mono, green and blue for stereo.

    Args:
        image_MTC: The image [M, T, 3] uint8.
        params: Parameters of the spectrogram.
        max_value: Magnitude of black.

    Returns:
        Mel bands [C, M, T] float32.
    """
    planes = image_MTC.flip(0).permute(2, 0, 1)
    planes = planes[1:3] if params.stereo else planes[:1]
    return ((255 - planes.float()) / 255) ** (1 / params.power_for_image) * max_value


def magnitudes_of_mel(mel_CMT: Tensor, params: SpectrogramParams) -> Tensor:
    """Solve for the smallest magnitudes [C, F, T] with these mel bands, clipped at zero.

    Source: torchaudio's least squares (driver "gels"); solved here through the bands' own 512 × 512 products, which is
    the same solution at a hundredth of the work.
    """
    filters, inverse = _inverse(params)
    solved = inverse.to(mel_CMT.device) @ mel_CMT.double()
    return (filters.to(mel_CMT.device).double() @ solved).float().relu()


def griffin_lim(
    magnitudes_CFT: Tensor,
    params: SpectrogramParams,
    *,
    angles_CFT: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find a waveform whose magnitudes approximate the given ones, by the fast Griffin-Lim algorithm.

    Quirk: the random start does not have magnitude 1, so the first inverse transform has other magnitudes.

    Args:
        magnitudes_CFT: Magnitudes of T windows.
        params: Parameters of the spectrogram.
        angles_CFT: Complex start; if omitted, drawn from ``generator``, real and imaginary parts in [0, 1).
        generator: For the random start.

    Returns:
        The waveform [C, hop·(T − 1)], with one more sample if the Fourier transform has an odd length.

    Raises:
        RequestError: There are too few windows for one transform.
    """
    n_fft, momentum = params.samples(params.padded_duration_ms), MOMENTUM / (1 + MOMENTUM)
    if params.hop * (magnitudes_CFT.shape[-1] - 1) + n_fft % 2 <= n_fft // 2:
        raise RequestError(
            f"a spectrogram of {magnitudes_CFT.shape[-1]} columns is too short to become sound: use "
            f"{(n_fft // 2) // params.hop + 2} or more"
        )
    if angles_CFT is None:
        drawn = torch.rand((*magnitudes_CFT.shape, 2), generator=generator, device=_device_of(generator))
        angles_CFT = torch.view_as_complex(drawn.to(magnitudes_CFT.device))
    before = torch.zeros_like(angles_CFT)
    for _ in range(params.num_griffin_lim_iters):
        rebuilt = _stft(_istft(magnitudes_CFT * angles_CFT, params), params)
        angles_CFT = rebuilt - before * momentum
        angles_CFT = angles_CFT / (angles_CFT.abs() + TINY)
        before = rebuilt
    return _istft(magnitudes_CFT * angles_CFT, params)


def spectral_convergence(waveform_CS: Tensor, wanted_CFT: Tensor, params: SpectrogramParams) -> float:
    """Relative error ‖c·|transform of the waveform| − wanted‖ / ‖wanted‖ for the best scale c: 0 is perfect."""
    made = magnitudes(waveform_CS, params)[..., : wanted_CFT.shape[-1]]
    wanted = wanted_CFT[..., : made.shape[-1]]
    scale = (made * wanted).sum() / made.square().sum().clamp_min(TINY)
    return float((scale * made - wanted).norm() / wanted.norm().clamp_min(TINY))


def _fft(params: SpectrogramParams) -> dict[str, int]:
    n_fft, window = params.samples(params.padded_duration_ms), params.samples(params.window_duration_ms)
    return {"n_fft": n_fft, "hop_length": params.hop, "win_length": window}


def _window(params: SpectrogramParams, device: torch.device) -> Tensor:
    return torch.hann_window(params.samples(params.window_duration_ms), device=device)


def _stft(waveform_CS: Tensor, params: SpectrogramParams) -> Tensor:
    window = _window(params, waveform_CS.device)
    return torch.stft(waveform_CS, **_fft(params), window=window, return_complex=True)  # type: ignore[arg-type]


def _istft(transform_CFT: Tensor, params: SpectrogramParams) -> Tensor:
    """Inverse transform without a length, as in the official code: an odd transform one sample short loses a window."""
    window = _window(params, transform_CFT.device)
    return torch.istft(transform_CFT, **_fft(params), window=window)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _inverse(params: SpectrogramParams) -> tuple[Tensor, Tensor]:
    filters = mel_filters(params)
    products = filters.double().T @ filters.double()
    return filters, torch.linalg.pinv(products, hermitian=True)


def _device_of(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device
