"""The official call with a configuration of 10-second kind: block-sparse attention, and the engines beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from kandinsky import get_T2V_pipeline
from kandinsky.errors import BackendError, RequestError
from tiny import family

NABLA = {"type": "nabla", "causal": False, "local": False, "glob": False, "window": 3, "P": 0.5, "wT": 1, "wH": 1}
NABLA |= {"wW": 1, "add_sta": True, "method": "topcdf"}
CALL = {"time_length": 0, "width": 512, "height": 512, "seed": 5, "num_steps": 1, "guidance_weight": 1.0}


def config(official: Path, target: Path, **changes: object) -> str:
    values = family.official_config(str(official / "weights"), attention=NABLA | changes)
    target.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(target)


@pytest.mark.slow
def test_ten_second_configurations_run(official: Path, tmp_path: Path) -> None:
    conf = config(official, tmp_path / "sparse.yaml")
    pipe = get_T2V_pipeline("cpu", conf_path=conf)
    frames = np.asarray(pipe("a cat", expand_prompts=False, **CALL)[0]).astype(int)
    # an engine is for dense attention, officially too
    same = get_T2V_pipeline("cpu", conf_path=conf, attention_engine="sdpa")
    assert same.pipeline.context.attention == "auto"
    dense = get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"))
    assert np.abs(frames - np.asarray(dense("a cat", expand_prompts=False, **CALL)[0])).max() > 1
    kept = pipe.pipeline("a cat", seconds=0, size="512x512", steps=1, seed=5, guidance=1.0).recipe["kept_blocks"]
    assert 0 < kept < 0.9
    with pytest.raises(BackendError, match="FlashAttention 2 is not installed"):
        get_T2V_pipeline("cpu", conf_path=conf, attention_engine="flash_attention_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"method": "random"}, "`method` = `random`"), ({"P": 9}, "P `9` must be"), ({"wQ": 3}, "unknown attention key")],
)
def test_keys_that_mean_nothing_are_refused(
    official: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        get_T2V_pipeline("cpu", conf_path=config(official, tmp_path / "sparse.yaml", **changes))
