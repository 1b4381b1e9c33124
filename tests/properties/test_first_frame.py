"""What keeps and treats the first frames of a clip made from an image."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.schedule import flow_times
from kandinsky.engine.stages import with_frames
from kandinsky.families.parts.condition_channels import condition_channels
from kandinsky.model.denoiser import VIDEO, Known


def clip(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(batch, frames, 4, 6, 4, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.5, 2.0, frames)[:, None, None, None] + 0.3


@given(st.integers(1, 4))
@settings(max_examples=4)
def test_short_clips_come_back_as_they_are(frames: int) -> None:
    """Officially one frame fails and two to four become NaN."""
    x = clip(frames)
    assert normalize_first_frame(x) is x


@given(st.integers(5, 31), st.booleans())
@settings(max_examples=30)
def test_only_the_first_four_move_and_not_far(frames: int, clamp: bool) -> None:
    x = clip(frames)
    y = normalize_first_frame(x, clamp=clamp)
    assert torch.equal(y[:, 4:], x[:, 4:]) and torch.isfinite(y).all()
    before, after = x[:, :4], y[:, :4]
    if not clamp:
        moved_mean = after.mean((2, 3, 4)) - before.mean((2, 3, 4))
        moved_std = after.std((2, 3, 4)) - before.std((2, 3, 4))
        assert moved_mean.min() >= -0.05 - 1e-4 and moved_mean.max() <= 0.1 + 1e-4
        assert moved_std.min() >= -0.1 - 1e-4 and moved_std.max() <= 0.25 + 1e-4
    else:
        reference = x[:, 4 : 4 + min(5, frames - 1)]
        assert after.min() >= reference.min() and after.max() <= reference.max()


def test_each_clip_of_a_batch_is_treated_alone() -> None:
    a, b = clip(9, seed=1), 3 * clip(9, seed=2) + 1
    both = normalize_first_frame(torch.cat([a, b]))
    assert torch.equal(both[:1], normalize_first_frame(a)) and torch.equal(both[1:], normalize_first_frame(b))


def begins_with(image: torch.Tensor, frames: int) -> Known:
    return with_frames(Known(), VIDEO, image, 0, frames)


def test_the_state_holds_the_image_at_every_step() -> None:
    noise, image = clip(3, batch=2, seed=3), clip(1, batch=2, seed=4)
    known = begins_with(image, 3)
    channels = condition_channels(noise, known, "zeros")
    assert channels is not None
    assert channels.shape == (2, 3, 4, 6, 5)
    assert channels[..., :-1].abs().max() == 0
    assert channels[:, 0, ..., -1].min() == 1 and channels[:, 1:, ..., -1].max() == 0
    seen = []

    def denoiser(x: dict[str, torch.Tensor], t: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(torch.equal(x[VIDEO][:, :1], image))
        return {VIDEO: torch.ones_like(x[VIDEO])}

    result = sample(denoiser, {VIDEO: noise}, flow_times(3, 5.0), pin=lambda x, t: known.pin(x))[VIDEO]
    assert seen == [True] * 3
    assert torch.equal(result[:, :1], image)
    torch.testing.assert_close(result[:, 1:], noise[:, 1:] - 1)


def test_any_frames_may_be_known() -> None:
    noise, end, middle = clip(5, seed=3), clip(1, seed=4), clip(2, seed=5)
    known = with_frames(with_frames(Known(), VIDEO, end, 4, 5), VIDEO, middle, 1, 5)
    pinned = known.pin({VIDEO: noise})[VIDEO]
    assert torch.equal(pinned[:, 4:], end) and torch.equal(pinned[:, 1:3], middle)
    assert torch.equal(pinned[:, [0, 3]], noise[:, [0, 3]])
    channels = condition_channels(noise, known, "zeros")
    assert channels is not None and channels[0, :, 0, 0, -1].tolist() == [0, 1, 1, 0, 1]


def test_coordinates_stay_beside_the_mask() -> None:
    noise, image = clip(2), clip(1)
    without = condition_channels(noise, Known(), "coordinates")
    marked = condition_channels(noise, begins_with(image, 2), "coordinates")
    assert without is not None and marked is not None
    assert torch.equal(marked[..., :-1], without[..., :-1]) and without[..., -1].max() == 0
    assert marked[:, 0, ..., -1].min() == 1


def test_editing_channels_are_the_source_and_ones() -> None:
    noise, image = clip(1, seed=1), clip(1, seed=2)
    known = Known(extra={"source": image})
    channels = condition_channels(noise, known, "zeros")
    assert channels is not None and known.pin({VIDEO: noise})[VIDEO] is noise
    assert torch.equal(channels[..., :-1], image) and channels[..., -1].min() == 1
    assert condition_channels(noise, Known(), "zeros") is None


def test_pinning_leaves_the_given_state_alone() -> None:
    x, image = clip(3), clip(1, seed=9)
    before = x.clone()
    pinned = begins_with(image.double(), 3).pin({VIDEO: x})[VIDEO]
    assert torch.equal(x, before) and pinned.dtype is x.dtype
    assert torch.equal(pinned[:, 1:], x[:, 1:]) and torch.equal(pinned[:, :1], image)
