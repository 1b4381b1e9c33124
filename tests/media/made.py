"""Small videos of every kind, made for tests with the encoders that PyAV brings."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from kandinsky.model.values import Audio


def frames(count: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth moving colours, white in the upper left corner."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, 3)
    t, y, x = np.meshgrid(*(np.arange(n) for n in (count, height, width)), indexing="ij")
    waves = [np.sin((x + 2 * t) / 9 + phase[0]), np.cos((y - t) / 7 + phase[1]), np.sin((x + y + t) / 8 + phase[2])]
    made = np.stack([(110 + 90 * wave).astype(np.uint8) for wave in waves], axis=-1)
    made[:, : height // 4, : width // 4] = 255
    return made


def video(
    path: Path,
    codec: str = "libx264",
    *,
    shown: np.ndarray | None = None,
    times_ms: list[int] | None = None,
    rate: int = 24,
    options: dict[str, str] | None = None,
    pix_fmt: str | None = None,
    aspect: Fraction | None = None,
    format: str | None = None,
    default: int | None = None,
    more: np.ndarray | None = None,
    sound: str | None = None,
) -> Path:
    """One video, in a codec and with times of choice.

    Args:
        more: Frames of a second video track.
        default: Which track is marked as the default one.
        sound: Codec of a second of sound.
    """
    shown = frames() if shown is None else shown
    formats = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "gif": "rgb8", "png": "rgba", "apng": "rgba"}
    with av.open(str(path), "w", format=format) as made:
        streams = []
        for pixels in (shown, more):
            if pixels is None:
                continue
            stream = made.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = pix_fmt or formats.get(codec, "yuv420p")
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append((stream, pixels))
        if default is not None:
            for number, (stream, _) in enumerate(streams):
                stream.disposition = int(number == default)
        track = made.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for stream, pixels in streams:
            for number, one in enumerate(pixels):
                frame = av.VideoFrame.from_ndarray(one, format="rgba" if one.shape[-1] == 4 else "rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
                made.mux(stream.encode(frame))
            made.mux(stream.encode(None))
        if track is not None:
            wave = (np.sin(np.arange(48000) / 20) * 9000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler(format=track.format.name, layout="stereo", rate=48000, frame_size=960)
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                made.mux(track.encode(piece))
            made.mux(track.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d), each -1, 0 or 1, into an .mp4's track header."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    a, b, c, d = (value * 0x10000 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def packets(path: Path, stream: int = 0) -> list[bytes]:
    with av.open(f"file:{path}") as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[stream]) if packet.size]


def stamps(path: Path) -> list[tuple[int | None, int | None]]:
    with av.open(f"file:{path}") as container:
        return [(p.pts, p.dts) for p in container.demux(container.streams.video[0]) if p.size]


def tone(seconds: float = 1.0) -> Audio:
    wave = (9000 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 44100)) / 44100)).astype(np.int16)
    return Audio(wave[:, None], 44100)
