"""A folder of drawn videos whose truth is known: cuts, fades, and every kind of fault that curation looks for.

``python -m tiny.raw_videos FOLDER [SEED]`` draws it, curates it, and prints what was found.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

import kandinsky
from kandinsky.curate.run import Curated, curate

W, H, FPS = 96, 64, 12
RULES = """
[filters]
readable = "undecodable == 0"
duration = "duration >= 0.8"
duplicate = "not duplicate"
black = "black < 0.5"
frozen = "frozen < 0.5"
letterbox = "letterbox < 0.05"
overlay = "overlay < 0.02 and watermark < 0.2"
blur = "blur < 0.5"
"""


@dataclass
class Truth:
    """What is true of the drawn videos: frames of cuts and middles of fades by file, and files by fault."""

    cuts: dict[str, list[int]] = field(default_factory=dict)
    fades: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, kind: str, name: str) -> None:
        self.faults.setdefault(kind, []).append(name)


def scene(seed: int, frames: int, *, pan: float = 1.5, size: tuple[int, int] = (W, H)) -> np.ndarray:
    """Shapes that move each on its own over a ground that pans: [T, H, W, 3], uint8."""
    rng = np.random.default_rng(seed)
    low = rng.integers(40, 216, (6, 24, 3), dtype=np.uint8)
    ground = Image.fromarray(low).resize((W * 4, H), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(24):  # texture that pans along
        x, y, r = rng.integers(0, W * 4), rng.integers(0, H), rng.integers(2, 6)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    shapes = [
        (rng.uniform(0, (W, H)), rng.uniform(-2.5, 2.5, 2), rng.integers(4, 14), rng.integers(0, 256, 3).tolist())
        for _ in range(5)
    ]
    out = []
    for at in range(frames):
        image = ground.crop((round(pan * at) % (3 * W), 0, round(pan * at) % (3 * W) + W, H))
        draw = ImageDraw.Draw(image)
        for place, speed, r, colour in shapes:
            x, y = np.abs((place + speed * at) % (2 * W, 2 * H) - (W, H))  # there and back
            draw.rectangle((x - r, y - r, x + r, y + r), fill=tuple(colour))
        out.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC) if size != (W, H) else image))
    return np.stack(out)


def labelled(frames: np.ndarray, text: str, place: tuple[int, int]) -> np.ndarray:
    """Frames with white words in a black outline."""
    out = []
    for frame in frames:
        image = Image.fromarray(frame)
        ImageDraw.Draw(image).text(place, text, fill="white", stroke_width=1, stroke_fill="black")
        out.append(np.asarray(image))
    return np.stack(out)


def draw(folder: Path, seed: int = 0) -> Truth:
    """Draw 42 files."""
    folder.mkdir(parents=True)
    truth = Truth()

    def shown(number: int, frames: int, **more: Any) -> np.ndarray:
        return scene(seed + number, frames, **more)

    def save(name: str, frames: np.ndarray, caption: str = "shapes move") -> Path:
        path = folder / name
        kandinsky.Video(np.ascontiguousarray(frames), fps=float(FPS), seed=0).save(path)
        path.with_suffix(".txt").write_text(caption)
        truth.cuts.setdefault(name, [])
        truth.fades.setdefault(name, [])
        return path

    for k in range(8):  # hard cuts, at slow and fast motion
        lengths = [10 + (3 * k + 5 * n) % 11 for n in range(3)]
        save(f"cuts-{k}.mp4", np.concatenate([shown(10 * k + n, m, pan=k / 2) for n, m in enumerate(lengths)]))
        truth.cuts[f"cuts-{k}.mp4"] = np.cumsum(lengths)[:-1].tolist()
    for k in range(3):  # through black
        one, other = shown(200 + k, 24).astype(float), shown(210 + k, 24).astype(float)
        ramp = np.linspace(1, 0, 9)[:, None, None, None]
        one[-9:] *= ramp
        other[:9] *= ramp[::-1]
        save(f"fade-{k}.mp4", np.concatenate([one, other]).astype(np.uint8))
        truth.fades[f"fade-{k}.mp4"] = [24.0]
    for k in range(2):  # one frame of lightning is no cut
        frames = shown(220 + k, 30)
        frames[14 : 15 + k] = 255 - (255 - frames[14 : 15 + k]) // 6
        save(f"flash-{k}.mp4", frames)
    clean = [save(f"clean-{k}.mp4", shown(300 + k, 24 + 3 * k, pan=1 + k)) for k in range(6)]
    for k in range(3):
        frames = shown(320 + k, 30)
        if k < 2:
            frames[:, : 8 + k] = frames[:, -8 - k :] = 0
        else:
            frames[:, :, :14] = frames[:, :, -14:] = 0
        save(f"letterbox-{k}.mp4", frames)
        truth.fault("letterbox", f"letterbox-{k}.mp4")
    for k, words in enumerate(("SUBSCRIBE NOW", "hello there", "a long subtitle")):
        save(f"overlay-{k}.mp4", labelled(shown(330 + k, 30, pan=3), words, (8, 46 - 8 * k)))
        truth.fault("overlay", f"overlay-{k}.mp4")
    for k, place in enumerate(((70, 2), (3, 50))):
        save(f"watermark-{k}.mp4", labelled(shown(340 + k, 30, pan=3), "TV1", place))
        truth.fault("overlay", f"watermark-{k}.mp4")
    for k in range(3):
        moving = shown(350 + k, 10)
        frozen = np.concatenate([moving, np.repeat(moving[-1:], 26, 0)])
        save(f"frozen-{k}.mp4", frozen if k else frozen[9:])
        truth.fault("frozen", f"frozen-{k}.mp4")
    for k in range(2):
        parts = [shown(360 + k, 14), np.zeros((14, H, W, 3), np.uint8), shown(370 + k, 14)]
        save(f"black-{k}.mp4", np.concatenate(parts))
        truth.cuts[f"black-{k}.mp4"] = [14, 28]
        truth.fault("black", f"black-{k}.mp4")
    for k in range(2):
        small = [Image.fromarray(one).resize((10, 7), Image.Resampling.BOX) for one in shown(380 + k, 30)]
        blurred = [np.asarray(one.resize((W, H), Image.Resampling.BICUBIC)) for one in small]
        save(f"blurred-{k}.mp4", np.stack(blurred))
        truth.fault("blur", f"blurred-{k}.mp4")
    save("double-0.mp4", shown(300, 24, pan=1, size=(72, 48)))  # smaller
    save("double-1.webm", shown(301, 27, pan=2))  # of another codec
    shutil.copy(clean[2], folder / "double-2.mp4")
    truth.cuts["double-2.mp4"], truth.fades["double-2.mp4"] = [], []
    for k in range(3):
        truth.fault("duplicate", f"double-{k}.{'webm' if k == 1 else 'mp4'}")
    (folder / "corrupt-0.mp4").write_bytes(np.random.default_rng(1).bytes(4000))
    (folder / "corrupt-1.mp4").write_bytes(clean[3].read_bytes()[:900])
    (folder / "corrupt-2.mp4").write_bytes(b"")
    for k in range(3):
        truth.fault("corrupt", f"corrupt-{k}.mp4")
    shutil.copy(clean[4], folder / "odd-0.webm")
    save("odd.mp4", shown(390, 25)).rename(folder / "odd-1.avi")
    for old, new in (("clean-4.mp4", "odd-0.webm"), ("odd.mp4", "odd-1.avi")):
        truth.cuts[new], truth.fades[new] = truth.cuts[old], truth.fades[old]
        truth.fault("wrong container", new)
    del truth.cuts["odd.mp4"], truth.fades["odd.mp4"]
    truth.fault("duplicate", "odd-0.webm")
    return truth


@dataclass(frozen=True)
class Score:
    """Of one kind of thing: how many there are, how many were found, how many were found that are not."""

    truth: int
    found: int
    false: int

    @property
    def f1(self) -> float:
        return 2 * self.found / max(1, self.truth + self.found + self.false)


def run(folder: Path, **more: Any) -> Curated:
    """Curate its `raw` by its `rules.toml` into its `set`."""
    return curate(folder / "raw", folder / "set", rules=folder / "rules.toml", **more)


def rows(folder: Path, name: str = "scenes") -> list[dict[str, Any]]:
    """Rows of a table of its `set`."""
    return list(pq.read_table(folder / "set" / f"{name}.parquet").to_pylist())


def score(truth: Truth, raw: list[dict[str, Any]], scenes: list[dict[str, Any]]) -> dict[str, Score]:
    """Compare the two tables with the truth; a cut counts within one frame, a fade within three."""
    out = {}
    for kind, known, reach in (("cut", truth.cuts, 1), ("fade", truth.fades, 3)):
        hits = false = 0
        for name, places in known.items():
            mine = sorted((s for s in scenes if s["source"] == name), key=lambda s: s["start_frame"])
            found = [
                (a["end_frame"] + b["start_frame"]) / 2 for a, b in itertools.pairwise(mine) if b["begins_with"] == kind
            ]
            good = sum(any(abs(at - place) <= reach for at in found) for place in places)
            hits, false = hits + good, false + len(found) - good
        out[f"hard {kind}" if kind == "cut" else kind] = Score(sum(map(len, known.values())), hits, false)
    for kind, names in truth.faults.items():
        if kind == "corrupt":
            found = {r["obs_path"] for r in raw if r["status"] == "failed"}
        elif kind == "wrong container":
            found = {r["obs_path"] for r in raw if (r["fault"] or "").startswith("wrong container")}
        else:
            found = {s["source"] for s in scenes if kind in s["dropped_by"]}
        if kind == "duplicate":  # which of two equal files is kept is a matter of their names
            twins = {"clean-2.mp4": "double-2.mp4", "clean-4.mp4": "odd-0.webm", "clean-1.mp4": "double-1.webm"}
            found = {twins.get(name, name) for name in found}
        out[kind] = Score(len(names), len(found & set(names)), len(found - set(names)))
    return out


def main(folder: Path, seed: int = 0) -> None:
    """Draw, curate and print what was found."""
    truth = draw(folder / "raw", seed)
    (folder / "rules.toml").write_text(RULES)
    made, raw, scenes = run(folder), rows(folder, "raw"), rows(folder)
    print(f"{made.files} files, {made.scenes} scenes, {made.kept} kept")
    print("| planted | there | found | recall | false alarms | F1 |\n|---|---|---|---|---|---|")
    for kind, one in score(truth, raw, scenes).items():
        print(f"| {kind} | {one.truth} | {one.found} | {one.found / one.truth:.0%} | {one.false} | {one.f1:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
