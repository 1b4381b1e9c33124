"""`kandinsky bench --against diffusers`: the same work there, in every compute type."""

from __future__ import annotations

from typing import Any

import pytest

from kandinsky import catalogue
from kandinsky.bench.random_weights import parse_changes
from kandinsky.bench.run import bench
from kandinsky.cli.main import main

pytest.importorskip("diffusers")

LITE = ("kandinsky5-lite-t2v-sft-5s", {"width": 512, "height": 512}, (
    "dit.model_dim=128", "dit.ff_dim=128", "dit.num_visual_blocks=1", "dit.num_text_blocks=1", "dit.time_dim=32",
    "dit.in_text_dim=64", "dit.in_text_dim2=64", "text.qwen_layers=1", "text.clip_layers=1", "text.vocabulary=500",
    "vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1",
))  # fmt: skip
UNET = ("kandinsky3.0", {"width": 128, "height": 128}, (
    "dit.dim_mult=1,1,2,2", "dit.model_channels=32", "dit.init_channels=16", "dit.time_embed_dim=64",
    "dit.context_dim=64", "dit.groups=8", "dit.head_dim=16", "vae.ch=32", "text.width=256", "text.num_layers=1",
))  # fmt: skip


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of Diffusers' own norms
@pytest.mark.parametrize(
    ("model", "size", "changes", "dtype", "stages"),
    [
        pytest.param(*LITE, "float32", ("dit", "vae"), id="kandinsky5-float32"),
        # its smallest picture takes minutes to decode where bfloat16 convolutions are emulated
        pytest.param(*LITE, "bfloat16", ("dit",), id="kandinsky5-bfloat16"),
        pytest.param(*UNET, "float32", ("dit", "vae"), id="kandinsky3-float32"),
        pytest.param(*UNET, "bfloat16", ("dit", "vae"), id="kandinsky3-bfloat16"),
    ],
)
@pytest.mark.slow
def test_both_sides_run(
    model: str, size: dict[str, Any], changes: tuple[str, ...], dtype: str, stages: tuple[str, ...]
) -> None:
    report = bench(
        model, stages=stages, repeats=1, device="cpu", dtype=dtype, random_weights=True,
        changes=parse_changes(changes), against="diffusers",
        request={"steps": 2, "seconds": 0, **size},
    )  # fmt: skip
    assert [stage.name for stage in report.stages[1:]] == list(stages)
    for stage in report.stages[1:]:
        assert stage.against is not None and stage.against.reason == "", stage
        assert len(stage.against.seconds) == 1 and stage.against.ratio > 0


def test_what_has_no_rival_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    small = "dit.in_text_dim=24 dit.time_dim=16 dit.model_dim=32 dit.ff_dim=48 dit.num_blocks=1 dit.axes_dims=4,6,6"
    words = [word for change in small.split() for word in ("--set", change)]
    options = ("--random-weights", "--stages", "dit", "--seconds", "0", "--repeats", "1", "--device", "cpu")
    assert main(["bench", "kandinsky4-t2v-flash", *options, *words, "--against", "diffusers"]) == 0
    assert "`diffusers` has nothing like `kandinsky4.dit`" in capsys.readouterr().out


def test_rivals_are_values_of_parts() -> None:
    for family in catalogue.families():
        for kind, part in family.parts.items():
            for library, rival in part.rivals.items():
                assert library == "diffusers" and callable(rival()), kind
