"""The video-to-audio U-Net against recorded numbers, Diffusers' own U-Net, and what it must not depend on."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from kandinsky.conformance import Status, check
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser
from kandinsky.families.kandinsky4_v2a.layers import Conditions, sinusoid
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.runtime.blocks import BlockSwap
from tiny.family import randomise
from tiny.sound import UNET

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky4"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")
SMALL = {key: value for key, value in UNET.items() if key != "encoder_dim"}


def net(**changes) -> V2AUNet:
    return randomise(V2AUNet(V2AParams.from_dict(SMALL | {"encoder_dim": 10} | changes))).requires_grad_(False)


def states(seed: int = 0, frames: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 5, 10, generator=generator), torch.randn(1, frames, 10, generator=generator)


def picture(height: int = 8, width: int = 10) -> torch.Tensor:
    return torch.randn(1, height, width, 4, generator=torch.Generator().manual_seed(9))


@needs_reference
def test_manifest_matches_on_the_meta_device() -> None:
    file = REFERENCE / "manifests" / "kandinsky-4-v2a_unet.json"
    (result,) = check([file])
    assert result.status is Status.PASS, result.line()
    with torch.device("meta"):
        full = V2AUNet()
    assert sum(p.numel() for p in full.parameters()) == json.loads(file.read_text())["parameters"]


@pytest.mark.parametrize("size", [(8, 10), (7, 5), (8, 11)])
def test_without_frames_it_is_the_stable_diffusion_unet(size: tuple[int, int]) -> None:
    ours = net(encoder_dim=12)
    theirs = UNet2DConditionModel(**SMALL, sample_size=8)
    with torch.no_grad():
        for layer in ours.modules():
            if hasattr(layer, "video_out"):  # as in an untrained network
                layer.video_out.weight.zero_()
                layer.video_out.bias.zero_()
            if hasattr(layer, "text_projection"):
                layer.text_projection.weight.copy_(torch.eye(12))
                layer.text_projection.bias.zero_()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "processor" not in k})
    x, text = picture(*size), torch.randn(1, 5, 12)
    mine = ours(x, torch.tensor([321]), Conditions(text, torch.randn(1, 3, 12)))
    with torch.no_grad():
        expected = theirs(x.movedim(-1, 1), 321, text).sample.movedim(1, -1)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_text_frames_their_order_and_the_level_all_count() -> None:
    unet, x = net(), picture()
    text, frames = states()
    base = unet(x, torch.tensor([500]), Conditions(text, frames))
    for other in (
        unet(x, torch.tensor([501]), Conditions(text, frames)),
        unet(x, torch.tensor([500]), Conditions(text + 1, frames)),
        unet(x, torch.tensor([500]), Conditions(text, frames.flip(1))),
    ):
        assert (other - base).abs().max() > 1e-4


def test_conditions_are_heard_once_a_run() -> None:
    unet = net()
    calls = []
    for layer in unet.modules():
        if hasattr(layer, "text_projection"):
            layer.text_projection.register_forward_hook(lambda *_: calls.append(1))
    denoiser = SoundDenoiser(unet, *states())
    first = denoiser(picture()[:, None], torch.tensor(0.5))
    layers = len(calls)
    assert layers == 4
    assert torch.equal(denoiser(picture()[:, None], torch.tensor(0.5)), first) and len(calls) == layers


def test_a_batch_is_its_samples() -> None:
    unet, (text, frames), (text2, frames2) = net(), states(1), states(2)
    x = torch.cat((picture(), picture() + 1))
    both = unet(x, torch.tensor([7, 7]), Conditions(torch.cat((text, text2)), torch.cat((frames, frames2))))
    alone = unet(x[1:], torch.tensor([7]), Conditions(text2, frames2))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_blocks_may_be_moved_one_by_one() -> None:
    expected = SoundDenoiser(net().to(torch.bfloat16).float(), *states())(picture()[:, None], torch.tensor(0.3))
    waiting = net().to(torch.bfloat16)
    swap = BlockSwap(waiting, torch.device("cpu"), dtype=torch.float32)
    swap.enter()
    assert torch.equal(SoundDenoiser(waiting, *states())(picture()[:, None], torch.tensor(0.3)), expected)
    swap.leave()
    assert swap.moves.brought == 4


def test_sinusoids_end_where_their_shift_says() -> None:
    one = sinusoid(torch.tensor([1.0]), 8, shift=1)
    torch.testing.assert_close(one[0, 3], torch.tensor(1e-4).sin())
    assert torch.equal(sinusoid(torch.tensor([2.0]), 8, cos_first=True).roll(4, -1), sinusoid(torch.tensor([2.0]), 8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "`act_fn` = `gelu`"),
        ({"down_block_types": ["DownBlock2D"]}, "names 1 levels"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "AttnUpBlock2D"),
        ({"attention_head_dim": 3}, "3 heads"),
        ({"width": 3}, "unknown U-Net parameter `width`"),
    ],
)
def test_other_networks_are_refused(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        V2AParams.from_dict(SMALL | change)
