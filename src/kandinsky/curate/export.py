"""What a training reads: clips in a folder with ``metadata.jsonl``, or WebDataset shards.

A clip is cut out of its file without re-encoding where a key frame stands at both of its ends, and encoded anew
otherwise. Its sound is left out. A file is written beside its place and renamed, and one that is there is not
written again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kandinsky.curate.ingest import example_of
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, digest, reason
from kandinsky.errors import KandinskyError
from kandinsky.files import remove, replacing
from kandinsky.media import container
from kandinsky.media.mux import InputVideo, decode_times, frames_of_windows, probe

Format = Literal["folder", "shards"]
CLIPS, METADATA = "clips", "metadata.jsonl"
ENDING = ".mp4"
_COPIED = ("h264", "hevc", "av1", "mpeg4")  # codecs that players expect in .mp4
# what of a scene stands beside its caption
_TOLD = (
    *("id", "raw_id", "width", "height", "duration", "fps"),
    *("dynamicity", "aesthetic_score", "bucket", "bucket_seconds"),
)


def stage(folder: Path) -> Stage:
    """The stage that writes the clips of scenes into a folder."""
    gives = {"clip_bytes": "int64", "how": "string", "clip_fault": "string"}
    needs = ("key", "raw_key", "file", "offset", "bytes", "start_frame", "end_frame")
    return Stage("export", "1", needs, gives, lambda batch: [_clip(row, folder) for row in batch])


def _clip(row: Row, folder: Path) -> Row:
    target = folder / f"{row['key']}{ENDING}"
    try:
        with example_of({**row, "key": row["raw_key"]}).decoded() as path:
            how = cut_out(probe(path), row["start_frame"], row["end_frame"], target)
    except KandinskyError as error:
        check_lasting(error)
        return {"clip_bytes": None, "how": None, "clip_fault": reason(error)}
    return {"clip_bytes": target.stat().st_size, "how": how, "clip_fault": None}


def cut_out(video: InputVideo, start: int, end: int, target: Path) -> Literal["copied", "encoded"]:
    """Write frames from ``start`` to before ``end`` of a video to an `.mp4` file.

    Returns:
        Whether packets were copied or frames encoded.

    Raises:
        RequestError: The video cannot be read, or the file not written.
    """
    with replacing(target) as part:
        if not video.is_animation and video.codec in _COPIED and _copy(video, start, end, part, target):
            return "copied"
        remove(part)
        times_s = [video.times_s[n] - video.times_s[start] for n in range(start, end)]
        last = video.times_s[end] if end < len(video.times_s) else video.seconds
        is_even = all(abs(time - n / video.fps) < 0.002 for n, time in enumerate(times_s))
        frames = (window[0] for window in frames_of_windows(video, [[n] for n in range(start, end)]))
        with container.writing(part, target) as made:
            container.encode(
                frames,
                made,
                ENDING,
                video.fps,
                sample_aspect=video.sample_aspect,
                times_s=None if is_even else [*times_s, last - video.times_s[start]],
            )
    return "encoded"


def _copy(video: InputVideo, start: int, end: int, part: Path, target: Path) -> bool:
    """Copy packets, if those between two key frames are just these frames. Whether that was done."""
    with container.reading(video.path) as source:
        stream = container.best_video(source, video.path)
        first, behind = video.timestamps[start], video.timestamps[end] if end < len(video.timestamps) else None
        packets: list[Any] = []
        for packet in source.demux(stream):
            if not packet.size:
                continue
            if packets or packet.pts == first:
                if packet.pts == behind or (not packets and not packet.is_keyframe):
                    if packets and not packet.is_keyframe:
                        return False
                    break
                packets.append(packet)
        wanted = set(video.timestamps[start:end])
        if len(packets) != len(wanted) or {packet.pts for packet in packets} != wanted:
            return False
        with container.writing(part, target) as made:
            copy = made.add_stream_from_template(stream, opaque=True)
            stamps = decode_times([(packet.pts, packet.dts) for packet in packets])
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.pts, packet.dts, packet.stream = pts - first, dts - first, copy
                made.mux(packet)
    try:
        return len(probe(part).times_s) == end - start
    except KandinskyError:
        return False


def described(scene: Row) -> dict[str, Any]:
    """A scene's line of ``metadata.jsonl``, but for its file name."""
    line: dict[str, Any] = {}
    for caption in scene["captions"] or ():
        name = "_".join(filter(None, ("caption", caption["language"], caption["length"])))
        line.setdefault(name, []).append(caption["text"])
    line = {name: texts[0] if len(texts) == 1 else texts for name, texts in line.items()}
    told = {name: scene[name] for name in _TOLD if scene.get(name) is not None}
    return line | {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}


def write_folder(scenes: Sequence[Row], output: Path) -> bool:
    """Write ``metadata.jsonl``; clips that no line names are removed, and shards too. Whether anything changed."""
    for shard in output.glob("shard-*.tar"):
        remove(shard)
    lines = [{"file_name": f"{CLIPS}/{scene['id']}{ENDING}", **described(scene)} for scene in scenes]
    _sweep(output / CLIPS, scenes)
    return _write(output / METADATA, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode())


def write_shards(scenes: Sequence[Row], output: Path, clips: Path, shard_mb: int) -> bool:
    """Write `shard-000000.tar` and on; those that hold the same already are left alone. Whether anything changed."""
    remove(output / METADATA)
    remove(output / CLIPS)
    groups: list[list[Row]] = []
    filled = 0
    for scene in scenes:
        if not groups or filled + scene["clip_bytes"] > shard_mb << 20:
            groups.append([])
            filled = 0
        groups[-1].append(scene)
        filled += scene["clip_bytes"]
    is_changed = False
    names = []
    for number, group in enumerate(groups):
        name = f"shard-{number:06d}.tar"
        names.append(name)
        texts = {scene["id"]: json.dumps(described(scene), ensure_ascii=False).encode() for scene in group}
        seen = digest([[scene["id"], scene["clip_lineage"], texts[scene["id"]].decode()] for scene in group])
        mark = clips.with_name("shards") / f"{number:06d}"
        if (output / name).is_file() and mark.is_file() and mark.read_text() == seen:
            continue
        is_changed = True
        remove(mark)
        with replacing(output / name) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for scene in group:
                _add(tar, f"{scene['id']}{ENDING}", (clips / f"{scene['id']}{ENDING}").read_bytes())
                _add(tar, f"{scene['id']}.json", texts[scene["id"]])
        with replacing(mark) as part:
            part.write_text(seen)
    for shard in output.glob("shard-*.tar"):
        if shard.name not in names:
            remove(shard)
            is_changed = True
    _sweep(clips, scenes)
    return is_changed


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _sweep(folder: Path, scenes: Sequence[Mapping[str, Any]]) -> None:
    """Remove clips that are in no row."""
    wanted = {f"{scene['id']}{ENDING}" for scene in scenes}
    for file in folder.glob(f"*{ENDING}") if folder.is_dir() else ():
        if file.name not in wanted:
            remove(file)


def _write(path: Path, data: bytes) -> bool:
    if path.is_file() and path.read_bytes() == data:
        return False
    with replacing(path) as part:
        part.write_bytes(data)
    return True


def rows_to_cut(scenes: Sequence[Row]) -> Rows:
    """Rows as ``stage`` reads them."""
    return [{**scene, "key": scene["id"], "lineage": scene["clip_lineage"]} for scene in scenes]
