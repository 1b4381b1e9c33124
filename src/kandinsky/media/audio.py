"""Sound as samples: loudness, joining, and files of sound alone (wav, flac).

Legend: S samples, C channels; int16 PCM. NumPy and PyAV are loaded when they are used.
Source of the loudness rules: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/riffusion/util/audio_util.py, and
what pydub makes of it: levels are measured on whole numbers, and a gain cuts fractions off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.video import beside, check_writable
from kandinsky.model.values import Audio

if TYPE_CHECKING:
    import numpy as np

FULL_SCALE = 32768
PREPARED_DBFS, HEADROOM_DB = -12.0, 0.1
# ending → container, codec
SOUND_FILES = {".wav": ("wav", "pcm_s16le"), ".flac": ("flac", "flac")}


def pcm(waveform_SC: np.ndarray) -> np.ndarray:
    """Samples of any scale as int16, the loudest at full scale. Silence stays silence."""
    import numpy as np

    largest = np.abs(waveform_SC).max() if waveform_SC.size else 0.0
    if not largest > 0:
        return np.zeros(waveform_SC.shape, np.int16)
    return (waveform_SC * (32767 / largest)).astype(np.int16)


def loudness(samples_SC: np.ndarray) -> float:
    """Level in dB of full scale, −inf for silence. Quirk: of the root mean square's whole part, as pydub has it."""
    import numpy as np

    if not samples_SC.size:
        return -math.inf
    rms = int(math.sqrt(float(np.mean(samples_SC.astype(np.float64) ** 2))))
    return 20 * math.log10(rms / FULL_SCALE) if rms else -math.inf


def amplify(samples_SC: np.ndarray, gain_db: float) -> np.ndarray:
    """Louder or quieter, kept within int16. Quirk: fractions are cut downwards."""
    import numpy as np

    louder = np.clip(samples_SC.astype(np.float64) * 10 ** (gain_db / 20), -FULL_SCALE, FULL_SCALE - 1)
    return np.floor(louder).astype(np.int16)


def to_loudness(samples_SC: np.ndarray, dbfs: float) -> np.ndarray:
    """Brought to a level; silence has none and stays as it is."""
    level = loudness(samples_SC)
    return samples_SC if math.isinf(level) else amplify(samples_SC, dbfs - level)


def to_peak(samples_SC: np.ndarray, headroom_db: float = HEADROOM_DB) -> np.ndarray:
    """The loudest sample brought so far below full scale."""
    import numpy as np

    peak = int(np.abs(samples_SC.astype(np.int32)).max()) if samples_SC.size else 0
    if not peak:
        return samples_SC
    return amplify(samples_SC, 20 * math.log10(FULL_SCALE * 10 ** (-headroom_db / 20) / peak))


def prepare(samples_SC: np.ndarray) -> np.ndarray:
    """The official "filters": to −12 dB, then the peak to just below full scale."""
    return to_peak(to_loudness(samples_SC, PREPARED_DBFS))


def leveled(waveform_SC: np.ndarray, dbfs: float | None) -> np.ndarray:
    """A waveform as int16: at its own scale, what is too loud cut off; or, of any scale, brought to a level in dB."""
    import numpy as np

    if dbfs is None:
        return np.clip(np.rint(waveform_SC), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return to_loudness(prepare(pcm(waveform_SC)), dbfs)


def fit_length(samples_SC: np.ndarray, samples: int) -> np.ndarray:
    """Exactly so many samples: cut at the end, or silence added there."""
    import numpy as np

    return np.pad(samples_SC[:samples], ((0, max(0, samples - len(samples_SC))), (0, 0)))


def join(pieces: list[np.ndarray], starts: list[int]) -> np.ndarray:
    """Pieces of sound that overlap, as one: where two meet, one fades out while the other fades in, at equal power.

    Args:   pieces: float samples [S, C].   starts: the first sample of each; a piece begins within the one before.
    Raises: RequestError where a gap would be left.
    """
    import numpy as np

    whole = pieces[0]
    for piece, start in zip(pieces[1:], starts[1:], strict=True):
        overlap = len(whole) - start
        if not 0 <= overlap <= min(len(piece), len(whole)):
            raise RequestError(f"pieces of sound do not meet: one ends at sample {len(whole)}, the next begins {start}")
        # two pieces have nothing to do with each other's phase: their powers add, so squares of the weights sum to 1
        angle = (np.arange(overlap) + 0.5) / max(overlap, 1) * (math.pi / 2)
        met = whole[start:] * np.cos(angle)[:, None] + piece[:overlap] * np.sin(angle)[:, None]
        whole = np.concatenate((whole[:start], met, piece[overlap:]))
    return whole


def write_audio(audio: Audio, target: str | Path, *, recipe: dict[str, Any] | None = None) -> Path:
    """Write sound alone, `.wav` or `.flac`, without loss; returns the path.

    Raises: RequestError for another ending or a place that cannot be written; nothing half-written stays.
    """
    import av

    from kandinsky.media import recipe as recipes

    path = check_audio_target(target)
    form, codec = SOUND_FILES[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part, av.open(str(part), "w", format=form) as container:
        if recipe:
            container.metadata["comment"] = recipes.to_text(recipe)
        stream: Any = container.add_stream(codec, rate=audio.rate, layout=audio.layout)
        for frame in frames_of(audio, packed=True, size=4096):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def check_audio_target(target: str | Path) -> Path:
    """Refuse a file of sound that cannot be written, before anything heavy is loaded. Raises: RequestError."""
    path = Path(target)
    if path.suffix.lower() not in SOUND_FILES:
        raise RequestError(f"sound `{path}` has the ending `{path.suffix}`: use {' or '.join(SOUND_FILES)}")
    return check_writable(path)


def read_audio(path: str | Path) -> Audio:
    """The first track of sound in a file, as int16. Raises: RequestError for a file without one."""
    import av
    import numpy as np

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise RequestError(f"`{path}` has no sound")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="s16", layout=stream.layout, rate=stream.rate)
            frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
            frames += resampler.resample(None)
            channels, rate = len(stream.layout.channels), stream.rate
    except (OSError, av.FFmpegError) as error:
        raise RequestError(f"`{path}` cannot be read as sound: {error}") from error
    samples = [frame.to_ndarray().reshape(-1, channels) for frame in frames]
    return Audio(np.concatenate(samples) if samples else np.zeros((0, channels), np.int16), rate)


def frames_of(audio: Audio, *, packed: bool, size: int, begin: int = 0) -> Iterator[Any]:
    """The sound as PyAV frames of ``size`` samples, numbered from ``begin``.

    packed: as int16, channels side by side; else planes of float32 in [-1, 1].
    """
    import av
    import numpy as np

    for start in range(0, len(audio.samples_SC), size):
        piece = audio.samples_SC[start : start + size]
        if packed:
            frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="s16", layout=audio.layout)
        else:
            planes = np.ascontiguousarray(piece.T.astype(np.float32) / FULL_SCALE)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=audio.layout)
        frame.sample_rate = audio.rate
        frame.pts, frame.time_base = begin + start, Fraction(1, audio.rate)
        yield frame
