"""Audio as samples: loudness, joining, and audio files (wav, flac).

Legend: S samples, C channels; int16 PCM. NumPy and PyAV are loaded when they are used.
Source of the loudness rules: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/riffusion/util/audio_util.py, and
pydub's arithmetic: levels are measured on integers, and a gain rounds down.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.files import check_writable, replacing
from kandinsky.media import container
from kandinsky.model.values import Audio

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

FULL_SCALE = 32768
PREPARED_DBFS, HEADROOM_DB = -12.0, 0.1
# ending → codec
AUDIO_FILES = {".wav": "pcm_s16le", ".flac": "flac"}


def pcm(waveform_SC: np.ndarray) -> np.ndarray:
    """Samples of any scale as int16, normalised to full scale. Silence stays silence."""
    import numpy as np

    largest = np.abs(waveform_SC).max() if waveform_SC.size else 0.0
    if not largest > 0:
        return np.zeros(waveform_SC.shape, np.int16)
    return (waveform_SC * (32767 / largest)).astype(np.int16)


def loudness(samples_SC: np.ndarray) -> float:
    """Level in dBFS, −inf for silence. Quirk: the root mean square is rounded down, as in pydub."""
    import numpy as np

    if not samples_SC.size:
        return -math.inf
    rms = int(math.sqrt(float(np.mean(samples_SC.astype(np.float64) ** 2))))
    return 20 * math.log10(rms / FULL_SCALE) if rms else -math.inf


def amplify(samples_SC: np.ndarray, gain_db: float) -> np.ndarray:
    """Apply a gain, clipped to int16. Quirk: rounded down."""
    import numpy as np

    louder = np.clip(samples_SC.astype(np.float64) * 10 ** (gain_db / 20), -FULL_SCALE, FULL_SCALE - 1)
    return np.floor(louder).astype(np.int16)


def to_loudness(samples_SC: np.ndarray, dbfs: float) -> np.ndarray:
    """Normalise to a level in dBFS; silence stays silence."""
    level = loudness(samples_SC)
    return samples_SC if math.isinf(level) else amplify(samples_SC, dbfs - level)


def to_peak(samples_SC: np.ndarray, headroom_db: float = HEADROOM_DB) -> np.ndarray:
    """Normalise the peak to this far below full scale."""
    import numpy as np

    peak = int(np.abs(samples_SC.astype(np.int32)).max()) if samples_SC.size else 0
    if not peak:
        return samples_SC
    return amplify(samples_SC, 20 * math.log10(FULL_SCALE * 10 ** (-headroom_db / 20) / peak))


def prepare(samples_SC: np.ndarray) -> np.ndarray:
    """The official "filters": to −12 dB, then the peak to just below full scale."""
    return to_peak(to_loudness(samples_SC, PREPARED_DBFS))


def leveled(waveform_SC: np.ndarray, dbfs: float | None) -> np.ndarray:
    """A waveform as int16: at its own scale, clipped; or, given a level in dBFS, normalised to it."""
    import numpy as np

    if dbfs is None:
        out: np.ndarray = np.clip(np.rint(waveform_SC), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        return out
    return to_loudness(prepare(pcm(waveform_SC)), dbfs)


def fit_length(samples_SC: np.ndarray, samples: int) -> np.ndarray:
    """Cut or pad with silence to exactly this many samples."""
    import numpy as np

    return np.pad(samples_SC[:samples], ((0, max(0, samples - len(samples_SC))), (0, 0)))


def join(pieces: list[np.ndarray], starts: list[int]) -> np.ndarray:
    """Join overlapping pieces of audio with equal-power crossfades.

    Args:
        pieces: Float samples [S, C].
        starts: The first sample of each piece; a piece begins within the one before.

    Returns:
        Float samples [S, C].

    Raises:
        RequestError: There would be a gap.
    """
    import numpy as np

    whole = pieces[0]
    for piece, start in zip(pieces[1:], starts[1:], strict=True):
        overlap = len(whole) - start
        if not 0 <= overlap <= min(len(piece), len(whole)):
            raise RequestError(
                f"pieces of audio do not overlap: one ends at sample {len(whole)}, the next begins at {start}"
            )
        # the pieces' phases are unrelated, so their powers add: the squares of the weights sum to 1
        angle = (np.arange(overlap) + 0.5) / max(overlap, 1) * (math.pi / 2)
        met = whole[start:] * np.cos(angle)[:, None] + piece[:overlap] * np.sin(angle)[:, None]
        whole = np.concatenate((whole[:start], met, piece[overlap:]))
    return whole


def write_audio(audio: Audio, target: str | Path, *, recipe: dict[str, Any] | None = None) -> Path:
    """Write an audio file, `.wav` or `.flac`, losslessly.

    Args:
        audio: The samples.
        target: The file to write.
        recipe: Recipe to store in the file.

    Returns:
        The path written.

    Raises:
        RequestError: The file name has another ending, or the file cannot be written; no partial file is left behind.
    """
    from kandinsky.media import recipe as recipes

    path = check_audio_target(target)
    comment = recipes.to_text(recipe) if recipe else None
    with replacing(path) as part, container.writing(part, path, comment=comment) as made:
        stream: Any = made.add_stream(AUDIO_FILES[path.suffix.lower()], rate=audio.rate, layout=audio.layout)
        for frame in frames_of(audio, packed=True, size=4096):
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return path


def check_audio_target(target: str | Path) -> Path:
    """Refuse an audio file that cannot be written, before anything heavy is loaded.

    Returns:
        The target.

    Raises:
        RequestError: The file name has another ending, or the file cannot be written.
    """
    path = Path(target)
    if path.suffix.lower() not in AUDIO_FILES:
        raise RequestError(f"sound `{path}` has the ending `{path.suffix}`: use {' or '.join(AUDIO_FILES)}")
    return check_writable(path)


def read_audio(path: str | Path, *, rate: int | None = None, mono: bool = False) -> Audio:
    """Read the first audio track of a file; more than two channels are mixed down to stereo.

    Damaged packets are skipped, with a note in the log.

    Args:
        path: The file.
        rate: Samples a second; the track's own where None.
        mono: Whether to mix two channels down to one.

    Returns:
        The samples, as int16.

    Raises:
        RequestError: The file cannot be read, or has no readable audio track.
    """
    import av
    import numpy as np

    samples, lost = list[np.ndarray](), 0
    with container.reading(path, "audio") as file:
        stream = next((s for s in file.streams.audio if s.codec_context is not None), None)
        if stream is None:
            raise RequestError(f"`{path}` has no sound")
        layout = "mono" if mono or stream.layout.nb_channels == 1 else "stereo"
        rate = rate or stream.rate
        resampler = av.AudioResampler(format="s16", layout=layout, rate=rate)
        for packet in file.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                lost += 1
                continue
            for frame in decoded:
                samples += [out.to_ndarray() for out in resampler.resample(frame)]
        samples += [out.to_ndarray() for out in resampler.resample(None)]
    if lost:
        log.warning("`%s`: %d packets of sound are damaged and left out", path, lost)
    channels = 1 if layout == "mono" else 2
    if not samples:
        return Audio(np.zeros((0, channels), np.int16), rate)
    return Audio(np.concatenate([piece.reshape(-1, channels) for piece in samples]), rate)


def frames_of(audio: Audio, *, packed: bool, size: int, begin: int = 0) -> Iterator[Any]:
    """Convert audio to PyAV frames.

    Args:
        audio: The samples.
        packed: As interleaved int16; else as planes of float32 in [-1, 1].
        size: Samples per frame.
        begin: Time of the first one, in samples.

    Yields:
        Frames in order.
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
