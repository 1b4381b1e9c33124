"""Nano's eye: shapes, words, and what it must notice."""

from __future__ import annotations

import pytest
import torch

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.clip_embeddings import ClipEncoder
from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser, beside
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.families.nano.clip_encoder import NanoClipEncoder, NanoClipEncoderParams

PARAMS = NanoClipEncoderParams(
    encoder_dim=16, side=16, widths=(8, 8), places=4, moments=2, words=("drum|барабан", "bell")
)


def encoder() -> NanoClipEncoder:
    torch.manual_seed(0)
    return NanoClipEncoder(PARAMS).eval().requires_grad_(False)


def test_films_of_any_size_become_states_of_one_width() -> None:
    net = encoder()
    assert isinstance(net, ClipEncoder)
    for size in ((16, 16), (96, 96), (30, 71)):
        frames = torch.randint(0, 256, (5, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert net.encode_frames(frames, torch.arange(5) / 12).shape == (1, 5, 16)


def test_size_and_shape_of_a_film_change_little_but_a_moved_thing_changes_its_moment() -> None:
    net = encoder()
    small = torch.full((9, 32, 32, 3), 200, dtype=torch.uint8)
    small[:, 8:16, 8:16] = 20
    large = small.repeat_interleave(3, 1).repeat_interleave(3, 2)
    times = torch.arange(9) / 12
    states = net.encode_frames(small, times)
    assert torch.allclose(states, net.encode_frames(large, times), atol=0.05)
    jumped = small.clone()
    jumped[8:] = small[8:].roll(10, 1)
    change = (net.encode_frames(jumped, times) - states).abs().mean(-1)[0]
    assert change[7] > 0.01 and change[8] > 0.01  # the change is seen from both sides
    assert change[:4].max() == 0  # and not beyond what two looks at the neighbours reach


def test_words_are_found_in_both_languages_and_others_say_nothing() -> None:
    net = encoder()
    states = net.encode_prompts(["a Drum, please", "барабан", "", "thunder", "bell drum bell"])
    assert states.shape == (5, 2, 16)
    assert torch.equal(states[0], states[1]) and torch.equal(states[2], states[3])
    assert not torch.equal(states[0], states[2])
    assert net.numbers("bell drum bell") == [2, 1]


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown clip encoder parameter `widht`"):
        NanoClipEncoderParams.from_dict({"widht": 3})


def test_columns_are_shown_the_frames_that_are_seen_when_they_sound() -> None:
    states = torch.arange(4.0)[None, :, None].expand(1, 4, 2)
    shown = beside(states, 3, 8)
    assert shown.shape == (1, 3, 8, 2)
    assert shown[0, 0, :, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert torch.equal(shown[:, 0], shown[:, 2])


def test_a_network_with_spare_channels_sees_them_and_one_without_is_untouched() -> None:
    values = {
        "out_channels": 4,
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
        "encoder_dim": 6,
    }
    x, text, frames = torch.randn(1, 1, 4, 6, 4), torch.randn(1, 2, 6), torch.randn(1, 5, 6)
    later = frames.roll(2, 1)
    for channels, heard in ((4, False), (7, True)):
        torch.manual_seed(0)
        net = V2AUNet(V2AParams.from_dict(values | {"in_channels": channels})).eval().requires_grad_(False)
        one, other = (SoundDenoiser(net, text, states)(x, torch.tensor(0.5)) for states in (frames, later))
        assert one.shape == x.shape
        assert torch.equal(one, other) is not heard  # untrained attention to the frames changes nothing
