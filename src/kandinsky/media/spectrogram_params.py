"""What a mel spectrogram is made with; ``media/spectrogram.py`` computes it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kandinsky.errors import RequestError
from kandinsky.model.params import Readable


@dataclass(frozen=True, slots=True)
class SpectrogramParams(Readable):
    """How audio becomes an image; official names and defaults.

    Attributes:
        stereo: Whether there are two channels.
        sample_rate: Samples per second.
        step_size_ms: Time step of a column.
        window_duration_ms: Length of the window.
        padded_duration_ms: Length of the Fourier transform; the window is centred in it.
        num_frequencies: Number of mel bands.
        min_frequency: Lower edge of the lowest band, in Hz.
        max_frequency: Upper edge of the highest band, in Hz.
        mel_scale_norm: Only the official value is supported.
        mel_scale_type: Only the official value is supported.
        max_mel_iters: Only the official value is supported.
        num_griffin_lim_iters: Iterations of the Griffin-Lim algorithm.
        power_for_image: Magnitudes are raised to this power before they become grey.
    """

    what = "spectrogram parameter"
    stereo: bool = False
    sample_rate: int = 44100
    step_size_ms: int = 10
    window_duration_ms: int = 100
    padded_duration_ms: int = 400
    num_frequencies: int = 512
    min_frequency: int = 0
    max_frequency: int = 10000
    mel_scale_norm: str | None = None
    mel_scale_type: str = "htk"
    max_mel_iters: int = 200
    num_griffin_lim_iters: int = 32
    power_for_image: float = 0.25

    def __post_init__(self) -> None:
        if self.mel_scale_norm is not None or self.mel_scale_type != "htk":
            raise RequestError(
                f"mel scale `{self.mel_scale_type}` with norm `{self.mel_scale_norm}` is not built: use `htk` without"
            )
        if not 0 < self.window_duration_ms <= self.padded_duration_ms or not self.step_size_ms > 0:
            raise RequestError("a spectrogram needs a step and a window above 0 ms, the window no longer than padded")
        if not 0 <= self.min_frequency < self.max_frequency:
            raise RequestError(f"frequencies from {self.min_frequency} to {self.max_frequency} Hz are none")

    def samples(self, ms: float) -> int:
        """Number of samples of a duration, truncated to an integer."""
        return int(ms / 1000.0 * self.sample_rate)

    @property
    def hop(self) -> int:
        return self.samples(self.step_size_ms)

    @property
    def channels(self) -> int:
        return 2 if self.stereo else 1

    def columns(self, seconds: float) -> int:
        """The smallest number of columns whose audio lasts that long: an image of T columns gives T − 1 steps."""
        return math.ceil(round(seconds * self.sample_rate / self.hop, 6)) + 1
