"""Recorded numbers of the official implementations, through the conformance command's own code.

Without the whole reference beside the checkout, the part of it in `tests/golden` proves the parity of every family.
"""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.conformance.run import runners
from kandinsky.families.kandinsky4 import conformance as kandinsky4
from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder, CogVideoXParams
from kandinsky.golden.cases import Case, find
from kandinsky.model.values import TextEmbeddings
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state
from parity.golden_cases import CASES, HAS_REFERENCE, REFERENCE, SUBSET, component, copy, family, named, title

SUBSET_BYTES = 3_000_000
LONG = ("kandinsky_video1/sample_v11", "kandinsky_video1/sample")


def verdict(folder: Path) -> tuple[Status, str]:
    (result,) = check([folder])
    return result.status, result.line()


@pytest.mark.parametrize("folder", CASES, ids=title)
def test_case_passes(folder: Path) -> None:
    status, line = verdict(folder)
    assert status is Status.PASS, line


def test_every_family_is_proven_and_with_the_reference_every_component() -> None:
    proven = {component(folder) for folder in CASES}
    assert {family(folder) for folder in CASES} | {"kandinsky4_v2a"} == {
        one.name for one in catalogue.families() if one.cases is not None
    }
    assert any(name.startswith("kandinsky4.v2a_") for name in proven)
    assert proven == set(runners()) if HAS_REFERENCE else proven < set(runners())


def test_the_part_in_the_repository_is_small() -> None:
    assert sum(file.stat().st_size for file in SUBSET.rglob("*") if file.is_file()) <= SUBSET_BYTES


@pytest.mark.skipif(not HAS_REFERENCE, reason="the reference folder is not beside this checkout")
def test_the_part_in_the_repository_is_a_copy() -> None:
    for folder in find(SUBSET):
        recorded = REFERENCE / family(folder) / "golden" / folder.name
        names = [file.name for file in folder.iterdir()]
        same, *_ = filecmp.cmpfiles(folder, recorded, names, shallow=False)
        assert sorted(same) == sorted(names) == sorted(file.name for file in recorded.iterdir())


OTHER_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("kandinsky3/sample_flash", {"times": [979, 729, 479, 230]}),
    ("kandinsky3/sample_base", {"eta": 0.0}),
    ("kandinsky3/sample_base", {"percentile": 0.9}),
    ("kandinsky3/sample_base", {"steps": 11}),
    ("kandinsky3/sample_base", {"latent_shape": [1, 4, 8, 8]}),
    ("kandinsky4/dit_groups", {"num_groups": [1, 1, 1]}),
    ("kandinsky4/dit_groups", {"num_groups": [1, 4, 1]}),
    ("kandinsky4/dit_groups", {"scale_factor": [1.0, 1.0, 1.0]}),
    ("kandinsky4/sample_fp32", {"seed": 6555}),
    ("kandinsky4/sample_bf16_rounding", {"noise_rounding": "none"}),
    ("kandinsky4/sample_bf16_rounding", {"visual_cu_seqlens": [0, 1, 2]}),
    ("kandinsky4/sample_bf16_rounding", {"text_cu_seqlens": [0, 4]}),
    ("kandinsky4/scheduler_4step", {"num_inference_steps": 5}),
    ("kandinsky4/text_embedder_t5", {"token_lengths": [7, 15]}),
    ("kandinsky4/text_embedder_t5", {"max_length": 17}),
    ("kandinsky4/vae_video", {"num_latent_frames_batch_size": 1}),
    ("kandinsky4/v2a_frame_transform_wide", {"scaled_shape": [3, 2, 224, 398]}),
    ("kandinsky4/v2a_frame_transform_wide", {"subset": "output_subset = output[:, :, 2::7, 2::5]"}),
    ("kandinsky4/v2a_frame_transform_wide", {"subset": "other = output[:, :, 3::7, 2::5]"}),
    ("kandinsky4/v2a_load_video_fractional_fps", {"total_frames": 58}),
    ("kandinsky4/v2a_sample_tiny", {"guidance_scale": 3.5}),
    ("kandinsky4/v2a_scheduler_pndm", {"num_inference_steps": 9}),
    ("kandinsky4/v2a_spectrogram_small_stereo", {"power": 0.3}),
    ("kandinsky4/v2a_spectrogram_small_stereo", {"dBFS_target": -31.0}),
    ("kandinsky5/dit_t2v_dense", {"attention_mask": None}),
    ("kandinsky5/dit_t2v_nabla", {"sparse": {"type": "nabla", "P": 0.6, "wT": 3, "wH": 1, "wW": 1}}),
    ("kandinsky5/fractal", {"shape": [2, 24, 16]}),
    ("kandinsky5/fractal", {"pixel_size": 4}),
    ("kandinsky5/lora_diffusers_prefix", {"metadata": {"trigger": "another"}}),
    ("kandinsky5/lora_diffusers_prefix", {"adapter_config": {"r": 3, "lora_alpha": 6}}),
    ("kandinsky5/lora_diffusers_prefix", {"adapter_config": {"r": 3, "lora_alpha": 3, "target_modules": ["to_query"]}}),
    ("kandinsky5/lora_diffusers_prefix", {"visual_rope_pos": "input", "scale_factor": [1.0, 1.0, 2.0]}),
    ("kandinsky5/nabla_mask", {"P": 0.8}),
    ("kandinsky5/normalize_first_frame", {"reference_frames": 2}),
    ("kandinsky5/normalize_first_frame", {"clump_values": True}),
    ("kandinsky5/sample_magcache_cfg", {"guidance_weight": 1.0}),
    ("kandinsky5/sample_t2v_nabla", {"guidance_weight": 3.1}),
    ("kandinsky5/sample_t2v_nabla", {"attention": {"type": "flash"}}),
    ("kandinsky5/vae_tiled_time", {"opt_tiling": False}),
    ("kandinsky5/vae_tiled_space", {"stride": [8, 8, 32]}),
    ("kandinsky_video1/sample", {"guidance_scale": 5.5}),
    ("kandinsky_video1/sample", {"percentile": None}),
    ("kandinsky_video1/sample", {"steps": 9}),
    ("kandinsky_video1/sample_v11", {"noise_augmentation": 200}),
    ("kandinsky_video1/interpolate_v11", {"skip_frames": 1}),
    ("kandinsky_video1/interpolate_v11", {"perturbation_time": 25}),
    ("kandinsky_video1/interpolate_v11", {"use_temporal_mask": False}),
]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        pytest.param(*entry, marks=pytest.mark.slow) if entry[0].startswith(LONG) else entry
        for entry in OTHER_CALLS
        if named(entry[0])
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_another_call_fails(name: str, call: dict[str, Any], tmp_path: Path) -> None:
    """So arguments count: none is ignored."""
    source = named(name)
    assert source is not None
    status, line = verdict(copy(source, tmp_path / "case", call=call))
    assert status is Status.FAIL, line


def test_settings_of_one_magcache_entry_replace_the_common_ones(tmp_path: Path) -> None:
    source = named("kandinsky5/magcache_schedule")
    assert source is not None
    values = json.loads((source / "case.json").read_text())
    first = values["call"]["cases"][0]
    for key, other in (("threshold", 0.3), ("K", 5), ("retention_ratio", 0.5)):
        changed = {"cases": [first | {key: other}, *values["call"]["cases"][1:]]}
        status, line = verdict(copy(source, tmp_path / f"wrong {key}", call=changed))
        assert status is Status.FAIL and f"(skip.{first['name']}" in line
        # the same settings for every entry, in the place of the common ones
        own = [entry | {key: values["config"][key]} for entry in values["call"]["cases"]]
        status, line = verdict(copy(source, tmp_path / f"own {key}", call={"cases": own}, config={key: other}))
        assert status is Status.PASS, line


@pytest.mark.parametrize("name", ["kandinsky3/sample_base", "kandinsky_video1/sample"])
def test_a_negative_prompt_takes_the_place_of_no_text(name: str, tmp_path: Path) -> None:
    """The official loops write "no text" as a context whose first token is the null embedding, and a mask of it."""
    if (source := named(name)) is None:
        return  # in a bare clone the other family's loop, which shares this code, is proven
    inputs = read_state(source / "inputs.safetensors")
    negative = torch.zeros_like(inputs["context"])
    negative[:, 0] = inputs["null_embedding"]
    mask = torch.zeros_like(inputs["context_mask"])
    mask[:, 0] = 1
    other = torch.randn(negative.shape[-2:], generator=torch.Generator().manual_seed(0)).expand_as(negative)
    for number, (extra, wanted) in enumerate(
        [
            ({"negative_context": negative, "negative_context_mask": mask}, Status.PASS),
            ({"negative_context": negative}, Status.FAIL),  # seen through the prompt's mask
            ({"negative_context": other, "negative_context_mask": mask}, Status.FAIL),
            ({"negative_context_mask": mask}, Status.FAIL),
        ]
    ):
        folder = copy(source, tmp_path / str(number))
        write_state(inputs | {k: v.contiguous() for k, v in extra.items()}, folder / "inputs.safetensors")
        status, line = verdict(folder)
        assert status is wanted, line


def test_a_loop_without_the_roundings_exceeds_the_mean(tmp_path: Path) -> None:
    source = named("kandinsky4/sample_bf16_rounding")
    assert source is not None
    folder = copy(source, tmp_path / "case")
    outputs = read_state(folder / "outputs.safetensors")
    outputs["latent"] = outputs["latent"] + 3e-4  # within the limit of single numbers
    write_state(outputs, folder / "outputs.safetensors")
    status, line = verdict(folder)
    assert status is Status.FAIL and "(latent: mean distance" in line


@torch.no_grad()
def test_clips_and_texts_of_a_pack_are_computed_apart(tmp_path: Path) -> None:
    """Two clips in one sampling loop, each with a text of its own length, get what each gets alone."""
    source = named("kandinsky4/sample_bf16_rounding")
    assert source is not None
    folder = copy(
        source, tmp_path / "pack", call={"visual_cu_seqlens": [0, 1, 2], "text_cu_seqlens": [0, 2, 5], "num_steps": 1}
    )
    inputs = read_state(source / "inputs.safetensors")
    write_state(inputs | {"noises": inputs["noises"][:2]}, folder / "inputs.safetensors")
    both = runners()["kandinsky4.sample"](Case.read(folder))
    case, alone = Case.read(folder), []
    net = kandinsky4.transformer(case, case.config.table("dit"))
    for frame, words in ((0, slice(0, 2)), (1, slice(2, 5))):
        text = case.inputs["text_embed"][words].bfloat16().float()
        states = TextEmbeddings(text[None], text.new_zeros(1, 0))
        alone.append(net(both["step0.model_input"][frame : frame + 1], torch.tensor([999]), states, frames=[1]))
    torch.testing.assert_close(both["step0.velocity"], torch.cat(alone), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "piece"), [(4, 1), (5, 3), (7, 4), (1, 2)])
def test_pieces_of_the_cogvideox_decoder_are_diffusers_own(frames: int, piece: int) -> None:
    torch.manual_seed(0)
    params = CogVideoXParams(latent_channels=4, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4)
    vae = CogVideoXAutoencoder(params, latent_piece=piece).eval()
    latents = torch.randn(1, frames, 2, 3, 4)
    vae.net.num_latent_frames_batch_size = piece
    theirs = vae.net.decode(latents.permute(0, 4, 1, 2, 3) / params.scaling_factor).sample
    torch.testing.assert_close(vae.decode(latents).permute(0, 4, 1, 2, 3), theirs)
