"""Drafts: a scene drawn from its subjects' portraits, as the denoiser is given it to begin with.

What is drawn is exact where the codes of the portraits are; what they lose is the network's work. A draft is the mean
of what the noise hides: ``best_guess``. Where a clip's first frame is given, the draft says how things move from there
on, and the frame what they look like: ``beside_frame``.

Legend: B clips, T latent frames, F frames, H W rows and columns of the latent, C channels, S subjects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.cut_out import cut_out, extent_of, is_told_to_move, kept_inside
from kandinsky.families.nano.geometry import Packed, condition_channels
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.portraits import FRAMES, GRID, PortraitDecoder
from kandinsky.families.nano.scenes import BACKDROPS, HORIZON, MOST_SUBJECTS, Backdrop
from kandinsky.model.values import TextEmbeddings

SPREAD = 0.1
"""Variance of what a draft leaves to the network, of clean latents of variance 1."""
AGREES = 0.35
"""Share of the error of a blank background that a draft's first frame may have beside a given one."""
DIFFERS = 0.19
"""What is a subject and not the background around it, of [-1, 1] in any channel."""

MEETS = (0.01, 0.03)
"""Squared difference, of [-1, 1], up to which two pictures are one a frame later, and from which on they are others."""


def background(colours_23: Tensor, backdrop: Backdrop, side: int) -> Tensor:
    """A background alone: [3, side, side] of two colours in [0, 1], of which a plain one shows the first."""
    one, other = colours_23[:, :, None, None]
    at = (torch.arange(side, device=colours_23.device) + 0.5) / side
    match backdrop:
        case "gradient":
            share = at.view(1, side, 1).expand(1, side, side)
        case "halves":
            share = (at > 0.5).float().view(1, 1, side).expand(1, side, side)
        case "ground":
            share = (at > HORIZON).float().view(1, side, 1).expand(1, side, side)
        case _:
            share = torch.zeros(1, side, side, device=colours_23.device)
    return torch.lerp(one, other, share)


def place(image_TCHW: Tensor, path_T5: Tensor, side: int) -> Tensor:
    """Premultiplied RGBA where the path puts it, [T, 4, side, side]; one image serves a path of many frames.

    An image that is made much smaller is halved first, or its pixels would be skipped.
    """
    if float(path_T5[:, 2].max()) * side < 0.6 * image_TCHW.shape[-1]:
        image_TCHW = F.avg_pool2d(image_TCHW, 2)
    x, y, size, angle, opacity = path_T5.unbind(-1)
    cos, sin = angle.cos() / size, angle.sin() / size
    dx, dy = 1 - 2 * x, 1 - 2 * y
    rows = torch.stack([cos, sin, cos * dx + sin * dy, -sin, cos, cos * dy - sin * dx], dim=-1)
    frames = len(path_T5)
    grid = F.affine_grid(rows.view(-1, 2, 3), [frames, 4, side, side], align_corners=False)
    image_TCHW = image_TCHW.expand(frames, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    return F.grid_sample(image_TCHW, grid, align_corners=False) * opacity.view(-1, 1, 1, 1)


def draw(
    portraits_SFCHW: Tensor, scene: Packed, side: int, frames: int | None = None, plate_CHW: Tensor | None = None
) -> Tensor:
    """A clip of subjects before their background, float32 [F, side, side, 3] in [-1, 1].

    Args:
        portraits_SFCHW: Premultiplied RGBA of each subject; one image serves all frames.
        scene: Where they stand.
        side: Of the clip.
        frames: How many, if not as many as there are images.
        plate_CHW: The background as a picture in [0, 1], if it is not that of the scene.
    """
    frames = portraits_SFCHW.shape[1] if frames is None else frames
    if plate_CHW is None:
        plate_CHW = background(scene.colours_23, BACKDROPS[scene.backdrop], side)
    canvas = plate_CHW.expand(frames, 3, side, side)
    for image, path in zip(portraits_SFCHW, scene.path_SF5[:, :frames], strict=True):
        layer = place(image, path, side)
        canvas = layer[:, :3] + canvas * (1 - layer[:, 3:])
    return canvas.clamp(0, 1).permute(0, 2, 3, 1).mul(2).sub(1)


def shown_at(frames: int, since: int) -> list[int]:
    """Which of a portrait's images a clip shows that begins so many frames after its scene: they go to and fro."""
    last = FRAMES - 1
    return [last - abs(max(n, 0) % (2 * last) - last) for n in range(since, since + frames)]


@torch.no_grad()
def drafted(
    portraits: PortraitDecoder,
    linear: LinearPatches,
    tokens_BLE: Tensor,
    packed_BG: Tensor,
    *,
    frames: int,
    rows: int,
    since: int = 0,
    before_BHWC: Tensor | None = None,
) -> Tensor:
    """Latents of the clips that scenes mean, float32 [B, T, H, W, C]; zeros where no scene is known.

    Args:
        portraits: Makes images of codes.
        linear: The encoder.
        tokens_BLE: Text states: the codes of three subjects first.
        packed_BG: See ``geometry.packed``.
        frames: Latent frames.
        rows: Of the latent, which has as many columns.
        since: For how many frames a scene has been shown before; see ``Pass.since``.
        before_BHWC: What was shown before a scene that begins within the clip, in [-1, 1]; the scene fades in over it.
    """
    B, places = len(tokens_BLE), GRID * GRID
    out = torch.zeros(B, frames, rows, rows, linear.params.latent_channels, device=tokens_BLE.device)
    shown = 1 + linear.params.temporal * (frames - 1)
    for b, scene in enumerate(Packed.of(row) for row in packed_BG.float()):
        if scene is not None:
            codes = tokens_BLE[b, : MOST_SUBJECTS * places].unflatten(0, (MOST_SUBJECTS, places))[: scene.subjects]
            at = shown_at(shown, since)
            clip = draw(portraits(codes, max(at) + 1, scene.tones)[:, at], scene, rows * linear.params.spatial)
            if before_BHWC is not None:
                share = (torch.arange(shown, device=clip.device) / max(1, -since)).clamp(0, 1)
                clip = torch.lerp(before_BHWC[b].clamp(-1, 1), clip, share[:, None, None, None])
            out[b] = linear.encode(clip[None])[0]
    return out


def beside_frame(
    linear: LinearPatches, draft_BTHWC: Tensor, drawn_B: Tensor, first_BHWC: Tensor, began_BHWC: Tensor | None = None
) -> Tensor:
    """Drafts of clips of which the first frame is given: what a draft lacks of it is added where little moves.

    What is lacking is kept as far as it is larger than what moves: by r / (r + m) at each place, r and m being squares
    of pixels. So a place that stands still looks as in the frame, and one that moves leaves no trace of it.

    Args:
        linear: The encoder.
        draft_BTHWC: See ``drafted``.
        drawn_B: Which of them are to be followed; of the others the frame stands still.
        first_BHWC: Latents of the first frames.
        began_BHWC: What was drafted of these, if that is not what the drafts begin with.
    """
    still = linear.held(first_BHWC)[:, None]
    energy = linear.moving.energy().to(still)
    lacking = still - linear.held(draft_BTHWC[:, 0] if began_BHWC is None else began_BHWC)[:, None]
    moved = draft_BTHWC[:, 1:] - still + lacking
    r, m = ((x.square() * energy).mean(-1, keepdim=True) for x in (lacking, moved))
    followed = draft_BTHWC[:, 1:] + lacking * (r / (r + m + 1e-6))
    later = torch.where(drawn_B.view(-1, 1, 1, 1, 1), followed, still)
    return torch.cat([first_BHWC[:, None].to(later), later], dim=1)


def best_guess(x_BTHWC: Tensor, time_B: Tensor, draft_BTHWC: Tensor, drawn_B: Tensor, known: Tensor) -> Tensor:
    """The best linear guess of a clean latent from a noisy one and its draft; known frames stay as they are.

    With x = (1 - t) · clean + t · noise and a clean latent of mean d and variance s² that is
    d + s² (1 - t) (x - (1 - t) d) / (s² (1 - t)² + t²): at t = 1 nothing is left of the noise, which a network would
    otherwise have to learn to overlook where what it is told is all there is. Without a draft d = 0 and s² = 1.

    Args:
        x_BTHWC: The noisy latent.
        time_B: In [0, 1].
        draft_BTHWC: See ``drafted``.
        drawn_B: Which clips have a draft.
        known: Where it is clean, bool [B, T, H, W, 1].
    """
    spread = torch.where(drawn_B, SPREAD, 1.0).to(x_BTHWC)
    clean = (1 - time_B).to(x_BTHWC)
    gain = (spread * clean / (spread * clean**2 + time_B.to(x_BTHWC) ** 2)).view(-1, 1, 1, 1, 1)
    draft = draft_BTHWC.to(x_BTHWC)
    guess = draft + gain * (x_BTHWC - clean.view(-1, 1, 1, 1, 1) * draft)
    return torch.where(known, x_BTHWC, guess)


@dataclass(frozen=True, slots=True)
class Told:
    """What the denoiser is told of clips beside their words, the same at every step.

    Args:
        condition_BTHWC: Condition channels, see ``geometry.condition_channels``, with the mask of what is known.
        draft_BTHWC: Drafts, zeros where there are none.
        drawn_B: Which clips have one.
        final_B: Which drafts need no correction: made of a given first frame alone, whose colours one would shift.
    """

    condition_BTHWC: Tensor
    draft_BTHWC: Tensor
    drawn_B: Tensor
    final_B: Tensor

    def guess(self, x_BTHWC: Tensor, time_B: Tensor) -> Tensor:
        """See ``best_guess``."""
        return best_guess(x_BTHWC, time_B, self.draft_BTHWC, self.drawn_B, self.condition_BTHWC[..., -1:] > 0)


@torch.no_grad()
def tell(
    portraits: PortraitDecoder,
    linear: LinearPatches,
    text: TextEmbeddings,
    packed_BG: Tensor,
    x_BTHWC: Tensor,
    known: Tensor | None = None,
    since: int = 0,
    began: Tensor | None = None,
) -> Told:
    """Draw what is known of clips.

    Args:
        portraits: Makes images of codes.
        linear: The encoder.
        text: States of the prompts.
        packed_BG: See ``geometry.packed``.
        x_BTHWC: The noisy latent, clean where it is known.
        known: Where that is, bool, of the latent's shape with one channel or one that broadcasts to it.
        since: See ``Pass``.
        began: See ``Pass``.
    """
    B, frames, rows, columns, channels = x_BTHWC.shape
    tokens = text.tokens_BLC.to(x_BTHWC.device)
    since *= linear.params.temporal
    told_BG = whole_BG = packed_BG
    wanted_BG = packed_BG = _later(told_BG, since)
    first, same = None, torch.zeros(B, dtype=torch.bool, device=packed_BG.device)
    if known is not None:
        known = known[..., :1].expand(B, frames, rows, columns, 1)
        if bool(known[:, 0].all()):
            first = x_BTHWC[:, 0].float()
    if first is None:
        began = None
    elif began is not None:  # all of a clip is drawn from the frame that was given, not from what was made of it
        began = began[:, 0].to(first).expand_as(first)
        whole_BG, _ = _as_seen(portraits, linear, tokens, told_BG, began, 0)
        packed_BG = _later(whole_BG, since)
    else:
        packed_BG, same = _as_seen(portraits, linear, tokens, packed_BG, first, since)
    drawn = packed_BG[:, 0] > 0
    final = ~drawn & (first is not None)
    draft = drafted(portraits, linear, tokens, packed_BG, frames=frames, rows=rows, since=since)
    if first is not None:
        given, begins, scenes_BG, gone = first, draft[:, 0].clone(), wanted_BG, 0
        if began is not None:
            given, scenes_BG, gone = began, told_BG, since
            begins = drafted(portraits, linear, tokens, whole_BG, frames=1, rows=rows)[:, 0]
        seen = linear.unpatchify(linear.still.decode(given)[:, None])[:, 0]
        for b in (~drawn).nonzero().flatten().tolist():
            clip = moved_cut_out(
                seen[b], Packed.of(scenes_BG[b].float()), 1 + linear.params.temporal * (frames - 1), since=gone
            )
            if clip is not None:
                (begins[b], *_), draft[b] = linear.encode(clip[None, :1])[0], linear.encode(clip[None, 1:])[0]
                drawn[b] = True
        beside = beside_frame(linear, draft, drawn, given, begins)
        # what goes on just as the words say takes no more of the frame than the frame, or its errors would add up
        beside[same, 1:] = draft[same, 1:]
        draft = torch.cat([first[:, None].to(beside), beside[:, 1:]], dim=1)
        if since < 0:  # what a later prompt of a clip names comes, whatever was seen before it
            new = _named(portraits, tokens, wanted_BG) & ~same
            fading = drafted(
                portraits, linear, tokens, wanted_BG, frames=frames, rows=rows, since=since, before_BHWC=seen
            )
            draft[new, 1:], packed_BG = fading[new, 1:], torch.where(new[:, None], wanted_BG, packed_BG)
            final = final & ~new
        drawn = torch.ones_like(drawn)
        end = _end(known) if known is not None else frames
        if 1 < end < frames:
            draft[:, end - 1] = _led_to(linear, draft[:, end - 1], x_BTHWC[:, end].float())
    condition = condition_channels(packed_BG, frames=frames, rows=rows, columns=columns, channels=channels)
    if known is not None:
        condition[..., -1:] = known.to(condition)
    return Told(condition, draft, drawn, final)


def _named(portraits: PortraitDecoder, tokens_BLE: Tensor, packed_BG: Tensor) -> Tensor:
    """Which scenes show something by themselves: the codes of "something" are a portrait of nothing."""
    shown = portraits(tokens_BLE[:, : GRID * GRID].expand(len(packed_BG), -1, -1), 1)[:, 0, 3]
    named: Tensor = (packed_BG[:, 0] > 0) & (shown.amax((1, 2)) > 0)
    return named


def _end(known_BTHW1: Tensor) -> int:
    """The first of the latent frames at the end of clips that are known."""
    whole = known_BTHW1.flatten(2).all(2).all(0).tolist()
    return max((n + 1 for n, is_known in enumerate(whole) if not is_known), default=0)


def _led_to(linear: LinearPatches, group_BHWC: Tensor, next_BHWC: Tensor) -> Tensor:
    """A latent frame that leads to the first picture of the one behind it.

    What comes back there by itself (``MEETS``) takes little by little what it still lacks; anything else fades to it,
    which shows both at once.
    """
    shown, goal = (linear.decode(one[:, None], begins=False) for one in (group_BHWC, next_BHWC))
    frames, goal = shown.shape[1], goal[:, :1]
    share = ((torch.arange(frames, device=shown.device) + 1) / (frames + 1)).view(-1, 1, 1, 1)
    lacking = goal - shown[:, -1:]
    near, far = MEETS
    fades = ((lacking.square().mean((1, 2, 3, 4)) - near) / (far - near)).clamp(0, 1).view(-1, 1, 1, 1, 1)
    video = shown + share * torch.lerp(lacking, goal - shown, fades)
    return linear.moving.encode(linear.patchify(video))[:, 0]


def _later(packed_BG: Tensor, since: int) -> Tensor:
    """Scenes as a part of a longer clip shows them, see ``Packed.later``."""
    if not since:
        return packed_BG
    scenes = [(row, Packed.of(row)) for row in packed_BG.float()]
    return torch.stack([row if one is None else one.later(since).row() for row, one in scenes])


def _as_seen(
    portraits: PortraitDecoder,
    linear: LinearPatches,
    tokens_BLE: Tensor,
    packed_BG: Tensor,
    first_BHWC: Tensor,
    since: int,
) -> tuple[Tensor, Tensor]:
    """Scenes as given first frames show them: where the words put them, or moved to what is seen; else none at all.

    A part of a longer clip goes on just as the words say if that agrees, with their background; one in which a prompt
    begins goes on in no other way.

    Returns:
        The scenes, like ``packed_BG``, and which of them are those of the words.
    """
    rows = first_BHWC.shape[1]
    given = linear.still.decode(first_BHWC).flatten(1, 2)
    blank = _around(given.unflatten(-1, (-1, 3)), rows)
    found, least = torch.zeros_like(packed_BG), AGREES * (given - blank).square().mean((1, 2))
    ways, same = [packed_BG] if since else [], torch.zeros(len(packed_BG), dtype=torch.bool, device=packed_BG.device)
    if since >= 0:
        said = _recoloured(packed_BG, (blank[:, 0, :3] + 1) / 2)
        ways += [said, _moved(portraits, linear, tokens_BLE, said, first_BHWC, since)]
    for scenes in ways:
        draft = drafted(portraits, linear, tokens_BLE, scenes, frames=1, rows=rows, since=since)[:, 0]
        error = (linear.still.decode(draft).flatten(1, 2) - given).square().mean((1, 2))
        better = (scenes[:, 0] > 0) & (error < least)
        found, least = torch.where(better[:, None], scenes, found), torch.where(better, error, least)
        if scenes is packed_BG:
            same, least = better, torch.where(better, 0, least)
    return found, same


def _recoloured(packed_BG: Tensor, colour_B3: Tensor) -> Tensor:
    """Scenes before one plain colour each."""
    out = packed_BG.float().clone()
    for row, colour, scene in zip(out, colour_B3, map(Packed.of, packed_BG.float()), strict=True):
        if scene is not None:
            row.copy_(Packed(scene.path_SF5, colour.expand(2, 3), 0, scene.tones).row())
    return out


def _around(pixels_BPN3: Tensor, rows: int) -> Tensor:
    """The colour at the border of frames given as patches, as all their pixels: [B, 1, N · 3]."""
    B, _, pixels, _ = pixels_BPN3.shape
    grid = pixels_BPN3.view(B, rows, -1, pixels, 3)
    edge = torch.cat([grid[:, 0], grid[:, -1], grid[:, :, 0], grid[:, :, -1]], dim=1).flatten(1, 2)
    return edge.median(1).values.repeat(1, pixels)[:, None]


def _moved(
    portraits: PortraitDecoder,
    linear: LinearPatches,
    tokens_BLE: Tensor,
    packed_BG: Tensor,
    first_BHWC: Tensor,
    since: int,
) -> Tensor:
    """Scenes of one subject, moved to where a given first frame differs from the colour at its border."""
    out, (at,) = packed_BG.clone(), shown_at(1, since)
    seen = linear.unpatchify(linear.still.decode(first_BHWC)[:, None])[:, 0]
    for b, scene in enumerate(Packed.of(row) for row in packed_BG):
        if scene is None or scene.subjects != 1:
            continue
        shown = extent_of((seen[b].clamp(-1, 1) - (2 * scene.colours_23[0] - 1)).abs().amax(-1) > DIFFERS)
        own = extent_of(portraits(tokens_BLE[b : b + 1, : GRID * GRID], at + 1)[0, at, 3] > 0.3)
        if shown is None or own is None:
            continue
        (middle, sides), (own_middle, own_sides) = shown, own
        size = (sides.prod() / own_sides.prod()).sqrt()
        path, began = scene.path_SF5.clone(), scene.path_SF5[0, 0].clone()
        path[..., :2] += middle - size * (own_middle - 0.5) - began[:2]
        path[..., 2] *= size / began[2]
        out[b] = kept_inside(Packed(path, scene.colours_23, 0, scene.tones), middle, sides).row()
    return out


def moved_cut_out(frame_HWC: Tensor, scene: Packed | None, frames: int, *, since: int = 0) -> Tensor | None:
    """A clip in which what stands before a ground in a frame moves as a scene's only subject does.

    Args:
        frame_HWC: In [-1, 1].
        scene: What was asked for.
        frames: How many.
        since: How many frames after that frame.

    Returns:
        Like ``draw``, and the given frame as it is drawn before them, [1 + frames, …]; None where no motion is asked
        for, or the frame shows no whole thing before a ground.
    """
    if scene is None or not is_told_to_move(scene) or (cut := cut_out(frame_HWC)) is None:
        return None
    moved = cut.moved(scene)
    later, side = moved.later(since), frame_HWC.shape[0]
    path = torch.cat([moved.path_SF5[:, :1], later.path_SF5[:, :frames]], dim=1)
    return draw(cut.image_CHW[None, None], replace(moved, path_SF5=path), side, 1 + frames, cut.plate_CHW)
