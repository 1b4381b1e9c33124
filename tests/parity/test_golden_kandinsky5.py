"""Recorded numbers of the official Kandinsky 5, through the conformance command's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from kandinsky.conformance import Status, check
from kandinsky.conformance.cases import find

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5"
NEEDED = (
    "dit_t2v_dense",
    "dit_i2v_visual_cond",
    "dit_i2i_channel",
    "sample_t2v_cfg",
    "sample_t2v_nocfg",
    "sample_i2i_channel",
    "timesteps",
    "vae_plain",
    "vae_single_image",
    "vae_tiled_time",
    "vae_tiled_space",
    "vae_tiled_both",
)

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")


@pytest.mark.parametrize("name", NEEDED)
def test_case_passes(name):
    (result,) = check([REFERENCE / "golden" / name])
    assert result.status is Status.PASS, result.line()


def test_what_is_not_built_is_skipped_with_a_reason():
    for result in check([REFERENCE / "golden"]):
        if Path(result.path).name not in NEEDED:
            assert result.status is not Status.FAIL, result.line()
        if "nabla" in result.path:
            assert result.status is Status.SKIP and result.reason


@pytest.mark.parametrize("name", ["lite_t2v", "hunyuan_vae", "lite_i2v", "pro_t2v"])
def test_manifest_matches_on_the_meta_device(name):
    (result,) = check([REFERENCE / "manifests" / f"{name}.json"])
    assert result.status is Status.PASS, result.line()


def test_cases_are_found_below_any_folder():
    assert find(REFERENCE / "golden" / "timesteps") == [REFERENCE / "golden" / "timesteps"]
    assert set(find(REFERENCE.parent)) > set(find(REFERENCE))
