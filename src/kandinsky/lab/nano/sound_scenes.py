"""Scenes for the ear: things that fall, bounce, collide and appear, and exactly when they touch.

A scene is simulated in closed form, from one contact to the next, so its event times are true to the last digit and
not to the nearest frame. Everything is decided by a generator of random numbers: the same one, the same scene.

Legend: T frames, N sprites, P side of a sprite and S of a frame in pixels. Places and sizes are shares of the frame's
side, x to the right and y downwards; times are seconds, speeds sides a second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano.emoji import FPS, FRAMES, Clips, composite
from kandinsky.lab.nano.emoji import Scene as Setting

SPRITE = 32
SMALLEST, LARGEST = 0.07, 0.24  # radius of a thing
FIRST_EVENT, LAST_EVENT = 0.12, 1.9  # an event needs a frame before it and one after
GAP = 0.2  # two events are never nearer than this: 100 ms apart they could not be told from one
FEWEST, MOST = 1, 4
FAINTEST = 0.08
FULL_SPEED = 2.2  # an impact as fast as this is as loud as one gets
SHAPES = ("disc", "ring", "square", "diamond", "triangle", "star")
HELD_SHAPES = ("star",)
HELD_EVERY = 8  # every so-manieth emoji is never trained on

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is heard. kind: of ``KINDS``.   radius: of what sounds.   strength: 0 … 1."""

    time: float
    kind: str
    radius: float
    strength: float


@dataclass(frozen=True, slots=True)
class Thing:
    """A sprite on its way. centres_T2: x, y of each frame.   shown_T: whether it is there."""

    sprite: int
    radius: float
    centres_T2: np.ndarray
    shown_T: np.ndarray


@dataclass(frozen=True, slots=True)
class Scene:
    """What is seen and what is heard of it.

    floor: height of a darker stripe below; 0 = none.   clip: frames uint8 [T, 128, 128, 4] of an emoji that moves by
    itself, in the place of things; it rustles as it moves.   word: a sound that was asked for by name, or "".
    """

    rgb: tuple[int, int, int]
    things: tuple[Thing, ...] = ()
    events: tuple[Event, ...] = ()
    floor: float = 0.0
    clip_THWC: np.ndarray | None = None
    word: str = ""


@dataclass(slots=True)
class Body:
    """A disc in motion."""

    x: float
    y: float
    vx: float
    vy: float
    radius: float

    def moved(self, dt: float, gravity: float) -> tuple[float, float]:
        return self.x + self.vx * dt, self.y + self.vy * dt + 0.5 * gravity * dt * dt

    def move(self, dt: float, gravity: float) -> None:
        self.x, self.y = self.moved(dt, gravity)
        self.vy += gravity * dt


def simulate(
    bodies: list[Body], *, gravity: float, bounce: float, box: Box, times: Sequence[float]
) -> tuple[np.ndarray, list[Event]]:
    """Move bodies from contact to contact.

    Args:    bodies: discs inside the box that do not touch; changed on the way.   bounce: share of the speed that the
             walls give back; among themselves bodies lose nothing.   times: rising; the run ends with the last.
    Returns: centres [bodies, T, 2] at the times, and the contacts.
    """
    centres = np.empty((len(bodies), len(times), 2), np.float32)
    events: list[Event] = []
    now, frame = 0.0, 0
    while True:
        dt, touch = _next_contact(bodies, gravity, box)
        while frame < len(times) and times[frame] < now + dt:
            for number, body in enumerate(bodies):
                centres[number, frame] = body.moved(times[frame] - now, gravity)
            frame += 1
        if frame == len(times) or touch is None:
            return centres, events
        for body in bodies:
            body.move(dt, gravity)
        now += dt
        kind, radius, speed = touch(bounce)
        events.append(Event(now, kind, radius, min(1.0, speed / FULL_SPEED)))


Touch = Callable[[float], tuple[str, float, float]]  # bounce → kind, radius and speed of the contact


def _next_contact(bodies: list[Body], gravity: float, box: Box) -> tuple[float, Touch | None]:
    """Seconds to the next contact, and what happens there."""
    left, top, right, bottom = box
    best, touch = math.inf, None
    for body in bodies:
        r = body.radius
        walls = [(((left + r) if body.vx < 0 else (right - r)) - body.x) / body.vx if body.vx else math.inf]
        if gravity:
            walls.append((-body.vy + math.sqrt(max(0.0, body.vy**2 + 2 * gravity * (bottom - r - body.y)))) / gravity)
            if body.vy < 0 and (room := body.vy**2 - 2 * gravity * (body.y - r - top)) > 0:
                walls.append((-body.vy - math.sqrt(room)) / gravity)
        elif body.vy:
            walls.append((((top + r) if body.vy < 0 else (bottom - r)) - body.y) / body.vy)
        for number, dt in enumerate(walls):
            if 1e-9 < dt < best:
                best, touch = dt, _wall(body, sideways=number == 0)
    for i, one in enumerate(bodies):
        for other in bodies[i + 1 :]:
            dt = _meeting(one, other)
            if 1e-9 < dt < best:
                best, touch = dt, _collision(one, other)
    return best, touch


def _wall(body: Body, *, sideways: bool) -> Touch:
    def touch(bounce: float) -> tuple[str, float, float]:
        speed = abs(body.vx if sideways else body.vy)
        if sideways:
            body.vx *= -bounce
        else:
            body.vy *= -bounce
        return "bounce", body.radius, speed

    return touch


def _collision(one: Body, other: Body) -> Touch:
    def touch(bounce: float) -> tuple[str, float, float]:
        nx, ny = other.x - one.x, other.y - one.y
        away = math.hypot(nx, ny)
        nx, ny = nx / away, ny / away
        speed = (one.vx - other.vx) * nx + (one.vy - other.vy) * ny
        mass, mass2 = one.radius**2, other.radius**2
        push = 2 * speed / (mass + mass2)
        one.vx, one.vy = one.vx - push * mass2 * nx, one.vy - push * mass2 * ny
        other.vx, other.vy = other.vx + push * mass * nx, other.vy + push * mass * ny
        return "collide", (one.radius + other.radius) / 2, abs(speed)

    return touch


def _meeting(one: Body, other: Body) -> float:
    """Seconds until two discs touch. Both fall alike, so their distance changes evenly."""
    px, py, vx, vy = other.x - one.x, other.y - one.y, other.vx - one.vx, other.vy - one.vy
    nearing = px * vx + py * vy
    speed2 = vx * vx + vy * vy
    root = nearing**2 - speed2 * (px * px + py * py - (one.radius + other.radius) ** 2)
    return (-nearing - math.sqrt(root)) / speed2 if nearing < 0 < root else math.inf


TIMES = tuple(frame / FPS for frame in range(FRAMES))


def _radius(rng: np.random.Generator, largest: float = LARGEST) -> float:
    """Even in its logarithm, as pitch is heard."""
    return float(np.exp(rng.uniform(np.log(SMALLEST), np.log(largest))))


def _dropped(rng: np.random.Generator) -> tuple[list[Body], float, float]:
    """One thing falls and bounces on the floor."""
    r = _radius(rng)
    body = Body(rng.uniform(r, 1 - r), rng.uniform(r, 0.6), rng.uniform(-0.3, 0.3), rng.uniform(-1, 1), r)
    return [body], rng.uniform(2, 8), rng.uniform(0.6, 0.95)


def _wandering(rng: np.random.Generator) -> tuple[list[Body], float, float]:
    """One thing goes straight from wall to wall."""
    r, speed, angle = _radius(rng), rng.uniform(0.35, 1.6), rng.uniform(0, 2 * np.pi)
    vx, vy = speed * math.cos(angle), speed * math.sin(angle)
    return [Body(rng.uniform(r, 1 - r), rng.uniform(r, 1 - r), vx, vy, r)], 0.0, rng.uniform(0.8, 1)


def _meeting_pair(rng: np.random.Generator) -> tuple[list[Body], float, float]:
    """Two things on courses that cross, or one that lies still and is hit."""
    r, r2 = _radius(rng, 0.18), _radius(rng, 0.18)
    angle, when = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
    place, towards = rng.uniform(0.35, 0.65, 2), np.array([np.cos(angle), np.sin(angle)])
    speeds = rng.uniform(0.2, 1.2), rng.choice([0.0, rng.uniform(0.1, 1.0)])
    drift = rng.uniform(-0.15, 0.15, 2) * (speeds[1] > 0)
    bodies = []
    for sign, radius, speed in ((-1, r, speeds[0]), (1, r2, speeds[1])):
        velocity = -sign * speed * towards + drift
        (x, y), (vx, vy) = place + sign * radius * towards - velocity * when, velocity
        bodies.append(Body(float(x), float(y), float(vx), float(vy), radius))
    return bodies, 0.0, rng.uniform(0.8, 1)


MOTIONS = (_dropped, _wandering, _meeting_pair)
KINDS = ("bounce", "collide", "appear")


@dataclass(frozen=True, slots=True)
class Sprites:
    """Pictures of things, premultiplied RGBA uint8 [N, P, P, 4], and clips of emoji that move by themselves."""

    rgba_NPPC: np.ndarray
    clips: Clips | None = None
    rows: tuple[int, ...] = ()


def sprites(cache: Path | None, *, held: bool) -> Sprites:
    """Drawn shapes in the palette's colours, and the cached emoji where there is a cache.

    Args: held: those that are never trained on, or the others.
    """
    names = [name for name in SHAPES if (name in HELD_SHAPES) == held]
    pictures = [_shape(name, colour.rgb) for name in names for colour in COLOURS]
    if cache is None:
        return Sprites(np.stack(pictures))
    clips = Clips(cache)
    rows = tuple(row for row in range(len(clips)) if (row % HELD_EVERY == 0) == held)
    emoji = [_cropped(np.asarray(clips.rgba_NTHWC[row, 0])) for row in rows]
    return Sprites(np.stack([*pictures, *(picture for picture in emoji if picture is not None)]), clips, rows)


def _shape(name: str, rgb: tuple[int, int, int]) -> np.ndarray:
    side = 8 * SPRITE  # drawn large and made small: smooth edges
    mask = Image.new("L", (side, side))
    draw, m = ImageDraw.Draw(mask), side - 1
    if name in ("disc", "ring"):
        draw.ellipse((0, 0, m, m), fill=255)
        if name == "ring":
            draw.ellipse((m * 0.25, m * 0.25, m * 0.75, m * 0.75), fill=0)
    elif name == "square":
        draw.rectangle((0, 0, m, m), fill=255)
    else:
        corners, inner = {"diamond": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[name]
        turns = [(math.sin(2 * math.pi * k / corners), -math.cos(2 * math.pi * k / corners)) for k in range(corners)]
        points = np.array([(x * s, y * s) for (x, y), s in zip(turns, [1.0, inner] * corners, strict=False)])
        low, high = points.min(0), points.max(0)
        draw.polygon([tuple(point) for point in ((points - low) / (high - low) * m).tolist()], fill=255)
    alpha = np.asarray(mask.resize((SPRITE, SPRITE), Image.Resampling.BOX))[..., None]
    return np.concatenate((np.round(alpha / 255.0 * np.array(rgb)).astype(np.uint8), alpha), -1)


def _cropped(rgba_HWC: np.ndarray) -> np.ndarray | None:
    """The picture cut to what is not transparent, so that it touches where it seems to; None where it is a thin one."""
    ys, xs = np.nonzero(rgba_HWC[..., 3] > 40)
    if not len(ys):
        return None
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    width, height = box[2] - box[0], box[3] - box[1]
    if not 0.7 < width / height < 1.4:
        return None
    return np.asarray(Image.fromarray(rgba_HWC, "RGBa").resize((SPRITE, SPRITE), Image.Resampling.BOX, box=box))


# Shares of the scenes: contacts, things that appear, nothing that is heard, emoji that move by themselves.
SHARES = {"contact": 0.62, "appear": 0.2, "silent": 0.06, "rustle": 0.12}


def draw_scene(rng: np.random.Generator, sprites: Sprites, kind: str | None = None) -> Scene:
    """A scene of a kind, or of one drawn by ``SHARES``. Without clips, rustling is left out."""
    shares = {name: share for name, share in SHARES.items() if name != "rustle" or sprites.clips is not None}
    if kind is None:
        kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
    if rng.random() < 0.5:
        rgb = COLOURS[rng.integers(len(COLOURS))].rgb
    else:
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        rgb = (red, green, blue)
    if kind == "rustle":
        assert sprites.clips is not None
        row = sprites.rows[rng.integers(len(sprites.rows))]
        return Scene(rgb, clip_THWC=np.asarray(sprites.clips.rgba_NTHWC[row]))
    floor = float(rng.uniform(0.04, 0.15)) if rng.random() < 0.4 else 0.0
    if kind == "appear":
        things, events = _appearing(rng, sprites)
    else:
        things, events = _contacts(rng, sprites, floor, silent=kind == "silent")
    if rng.random() < 0.15 and (bystander := _bystander(rng, sprites, things)):
        things = [bystander, *things]
    return Scene(rgb, tuple(things), tuple(events), floor)


def _contacts(
    rng: np.random.Generator, sprites: Sprites, floor: float, *, silent: bool
) -> tuple[list[Thing], list[Event]]:
    """Things in motion whose contacts can be told apart; without any, where it shall be silent."""
    box = (0.0, 0.0, 1.0, 1.0 - floor)
    while True:
        bodies, gravity, bounce = MOTIONS[rng.integers(len(MOTIONS))](rng)
        if silent:
            still = 0.0 if rng.random() < 0.3 else 0.25  # many stand still, the others are slow
            bodies, gravity = [replace(body, vx=body.vx * still, vy=body.vy * still) for body in bodies], 0.0
        if any(not _inside(body, box) for body in bodies) or _overlap(bodies):
            continue
        radii = [body.radius for body in bodies]
        centres, events = simulate(bodies, gravity=gravity, bounce=bounce, box=box, times=TIMES)
        if (not events) if silent else told_apart(events):
            break
    shown = np.ones(FRAMES, bool)
    chosen = rng.integers(len(sprites.rgba_NPPC), size=len(radii))
    return [Thing(int(n), r, c, shown) for n, r, c in zip(chosen, radii, centres, strict=True)], events


def told_apart(events: Sequence[Event]) -> bool:
    """Whether there are events, not too many, loud and far enough from one another and from the ends of the clip."""
    times = [event.time for event in events]
    return (
        FEWEST <= len(events) <= MOST
        and times[0] >= FIRST_EVENT
        and times[-1] <= LAST_EVENT
        and all(event.strength >= FAINTEST for event in events)
        and all(later - earlier >= GAP for earlier, later in itertools.pairwise(times))
    )


def _inside(body: Body, box: Box) -> bool:
    r = body.radius
    return box[0] + r <= body.x <= box[2] - r and box[1] + r <= body.y <= box[3] - r


def _overlap(bodies: Sequence[Body]) -> bool:
    return len(bodies) == 2 and math.dist((bodies[0].x, bodies[0].y), (bodies[1].x, bodies[1].y)) < sum(
        body.radius for body in bodies
    )


def _appearing(rng: np.random.Generator, sprites: Sprites) -> tuple[list[Thing], list[Event]]:
    """Things that are there all at once, and gone again without a sound; each time they appear, they sound."""
    least = math.ceil(GAP * FPS)
    count = int(rng.integers(FEWEST, MOST + 1))
    first, last = math.ceil(FIRST_EVENT * FPS), int(LAST_EVENT * FPS)
    while True:
        frames = np.sort(rng.choice(np.arange(first, last + 1), count, replace=False))
        if (np.diff(frames) >= least).all():
            break
    things, events = [], []
    radius, sprite = _radius(rng), int(rng.integers(len(sprites.rgba_NPPC)))
    for number, frame in enumerate(frames):
        if rng.random() < 0.5:  # another thing, or the same again
            radius, sprite = _radius(rng), int(rng.integers(len(sprites.rgba_NPPC)))
        until = frames[number + 1] if number + 1 < count else FRAMES
        stays = int(rng.integers(min(2, until - frame), until - frame + 1))
        shown = np.zeros(FRAMES, bool)
        shown[frame : frame + stays] = True
        place = rng.uniform(radius, 1 - radius, 2).astype(np.float32)
        things.append(Thing(sprite, radius, np.broadcast_to(place, (FRAMES, 2)), shown))
        events.append(Event(float(frame) / FPS, "appear", radius, float(rng.uniform(0.5, 1))))
    return things, events


def _bystander(rng: np.random.Generator, sprites: Sprites, things: Sequence[Thing]) -> Thing | None:
    """A thing that only stands there, out of the others' way; None where there is no room."""
    for _ in range(10):
        radius = _radius(rng, 0.12)
        place = rng.uniform(radius, 1 - radius, 2).astype(np.float32)
        away = [np.linalg.norm(thing.centres_T2 - place, axis=-1).min() - thing.radius for thing in things]
        if all(distance > radius * 1.3 for distance in away):
            sprite = int(rng.integers(len(sprites.rgba_NPPC)))
            return Thing(sprite, radius, np.broadcast_to(place, (FRAMES, 2)), np.ones(FRAMES, bool))
    return None


def render(scenes: Sequence[Scene], sprites: Sprites, *, side: int) -> np.ndarray:
    """Frames of scenes, uint8 [B, T, S, S, 3]."""
    out = np.empty((len(scenes), FRAMES, side, side, 3), np.uint8)
    drawn = [number for number, scene in enumerate(scenes) if scene.clip_THWC is None]
    if drawn:
        out[drawn] = _draw([scenes[number] for number in drawn], sprites, side)
    for number, scene in enumerate(scenes):
        if scene.clip_THWC is not None:
            out[number] = composite(scene.clip_THWC, Setting(scene.rgb), side=side)
    return out


def _draw(scenes: Sequence[Scene], sprites: Sprites, side: int) -> np.ndarray:
    canvas = torch.tensor([scene.rgb for scene in scenes], dtype=torch.float32)[:, None, None, None]
    canvas = canvas.expand(-1, FRAMES, side, side, 3).clone()
    rows = (torch.arange(side) + 0.5) / side
    floors = torch.tensor([scene.floor for scene in scenes])
    canvas *= torch.where(rows >= 1 - floors[:, None], 0.6, 1.0)[:, None, :, None, None]
    for layer in range(max(len(scene.things) for scene in scenes)):
        having = [number for number, scene in enumerate(scenes) if layer < len(scene.things)]
        things = [scenes[number].things[layer] for number in having]
        pictures = torch.from_numpy(sprites.rgba_NPPC[[thing.sprite for thing in things]]).float()
        centres = torch.from_numpy(np.stack([thing.centres_T2 for thing in things]))
        radii = torch.tensor([thing.radius for thing in things])
        shown = torch.from_numpy(np.stack([thing.shown_T for thing in things]))
        placed = _place(pictures, centres, radii, side) * shown[..., None, None, None]
        canvas[having] = placed[..., :3] + canvas[having] * (1 - placed[..., 3:] / 255)
    return canvas.clamp_(0, 255).round_().to(torch.uint8).numpy()


def _place(pictures_BPPC: Tensor, centres_BT2: Tensor, radii_B: Tensor, side: int) -> Tensor:
    """Each sprite at its places, [B, T, S, S, 4]: two small matrix products, one for its columns and one for its rows.

    A pixel takes from the sprite what a triangle around it covers: between the sprite's pixels when it is enlarged,
    over several of them when it is made smaller.
    """
    P = pictures_BPPC.shape[1]
    pixels = (torch.arange(side) + 0.5) / side
    size = 2 * radii_B[:, None, None, None]
    at = (pixels - centres_BT2[..., None] + size / 2) / size * P - 0.5  # [B, T, 2, S] in the sprite's pixels
    width = (P / (size * side)).clamp_min(1)[..., None]
    weights = (1 - (at[..., None] - torch.arange(P)).abs() / width).clamp_min(0) / width  # [B, T, 2, S, P]
    columns = torch.einsum("btjq,bpqc->btpjc", weights[:, :, 0], pictures_BPPC)
    return torch.einsum("btip,btpjc->btijc", weights[:, :, 1], columns)
