"""`kandinsky bench` measures every model of the catalogue, or says what to do where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from kandinsky import catalogue
from kandinsky.bench.random_weights import parse_changes
from kandinsky.bench.run import bench
from kandinsky.bench.works import brought
from kandinsky.cli.main import main
from kandinsky.errors import BackendError, RequestError

UNET = (
    "dit.model_channels=32", "dit.init_channels=16", "dit.time_embed_dim=32", "dit.context_dim=32", "dit.groups=8",
    "dit.head_dim=16", "dit.dim_mult=1,1,1,1", "dit.num_blocks=2,2,2,2",
)  # fmt: skip
# hyper-parameters that make a network of each kind small
SMALL: dict[str, tuple[str, ...]] = {
    "kandinsky3.unet": UNET,
    "kandinsky_video1.keyframes-1.0": UNET,
    "kandinsky_video1.keyframes-1.1": UNET,
    "kandinsky4.dit": (
        "dit.in_text_dim=24", "dit.time_dim=16", "dit.model_dim=32", "dit.ff_dim=48", "dit.num_blocks=1",
        "dit.axes_dims=4,6,6",
    ),
    "kandinsky4.v2a-unet": (
        "dit.block_out_channels=32,32,32,32", "dit.layers_per_block=1", "dit.encoder_dim=32",
        "dit.cross_attention_dim=32",
    ),
    "kandinsky5.dit": (
        "dit.model_dim=128", "dit.ff_dim=128", "dit.num_visual_blocks=1", "dit.num_text_blocks=1", "dit.time_dim=32",
        "dit.in_text_dim=64", "dit.in_text_dim2=64",
    ),
    "t5-projected": ("text.width=32", "text.num_layers=1"),
    "t5": ("text.num_layers=1",),
    "qwen-clip": ("text.qwen_layers=1", "text.clip_layers=1", "text.vocabulary=500"),
    "movq": ("vae.ch=32", "vae.num_res_blocks=1"),
    "cogvideox": ("vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1"),
    "hunyuan": ("vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1"),
    "flux": ("vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1"),
    "stable-diffusion": ("vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1"),
}  # fmt: skip
REFUSED = {("kandinsky4-v2a", "text"): "program code", ("kandinsky-video-1.1", "dit"): "goes on from a picture"}
SHIPPED = sorted(card.id for card in catalogue.all_cards() if card.id.startswith("nano"))


def one_of_each() -> list[str]:
    """A model for each kind of task, networks and what they make."""
    found: dict[object, str] = {}
    for card in sorted(catalogue.all_cards(), key=lambda card: card.id):
        kinds = tuple(card.component(part).kind for part in ("dit", "text", "vae"))
        if card.id not in SHIPPED:
            found.setdefault((card.does.makes, card.does.image, card.does.mask, *kinds), card.id)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", one_of_each())
def test_every_kind_of_model_is_measured_with_random_weights(model: str) -> None:
    card = catalogue.find(model)
    changes = parse_changes([
        change for part in ("dit", "text", "vae") for change in SMALL.get(card.component(part).kind, ())
    ])  # fmt: skip
    least = 1.0 if card.does.video else 0 if card.clip.min_seconds == 0 else None
    report = bench(
        model, repeats=1, device="cpu", dtype="float32", random_weights=True, changes=changes,
        request={"steps": 1, **({} if least is None else {"seconds": least})},
    )  # fmt: skip
    measured = [name for name in ("text", "dit", "vae") if (model, name) not in REFUSED]
    assert [stage.name for stage in report.stages] == ["load", *measured]
    assert all(stage.median_s > 0 for stage in report.stages)


@pytest.mark.parametrize("model", SHIPPED)
def test_every_model_of_the_package_is_measured_as_it_is(model: str) -> None:
    report = bench(model, repeats=1, device="cpu", request={"steps": 1})
    assert [stage.name for stage in report.stages] == ["load", "text", "dit", "vae", "write"]


def test_what_cannot_be_made_up_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    for (model, stage), words in REFUSED.items():
        assert main(["bench", model, "--random-weights", "--device", "cpu", "--stages", stage]) != 0
        told = capsys.readouterr().err
        assert words in told and f"measure `{','.join(one for one in ('text', 'dit', 'vae') if one != stage)}`" in told
    with pytest.raises(BackendError, match="with its files, without random weights"):
        bench("nano2-t2v", repeats=1, device="cpu", random_weights=True, stages=["dit"])


@pytest.mark.parametrize(
    ("model", "request_", "expected"),
    [("nano-t2v", {}, set()), ("nano-i2v", {}, {"image"}), ("kandinsky3.0-inpaint", {}, {"image", "mask"}),
     ("nano-v2a", {"seconds": 1.5}, {"video"})],
)  # fmt: skip
def test_what_a_request_has_to_bring_is_made_up(model: str, request_: dict[str, Any], expected: set[str]) -> None:
    found = brought(catalogue.find(model), request_)
    assert set(found) == expected
    if "video" in found:
        assert found["video"].seconds == pytest.approx(1.5)


def test_a_size_of_one_side_is_refused() -> None:
    with pytest.raises(RequestError, match="both sides"):
        brought(catalogue.find("nano-i2v"), {"width": 96})
