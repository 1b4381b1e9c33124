"""The conformance command on cases made here: verdicts, lines, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from kandinsky.cli.conformance import conformance
from kandinsky.conformance import Status, check
from kandinsky.diffusion.schedule import flow_times
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.values import TextStates
from kandinsky.weights.write import write_state

CONFIG = dict(in_visual_dim=3, out_visual_dim=3, in_text_dim=5, in_text_dim2=7, time_dim=8, model_dim=24, ff_dim=16)
CONFIG |= dict(num_text_blocks=1, num_visual_blocks=1, axes_dims=[4, 4, 4], patch_size=[1, 2, 2])


def write_case(folder: Path, component: str, call: dict, inputs: dict, outputs: dict, config: dict | None = None):
    folder.mkdir(parents=True)
    case = {"component": component, "config": config or {}, "call": call, "dtype": "float32"}
    case["tolerance"] = {"rtol": 1e-6, "atol": 1e-6}
    (folder / "case.json").write_text(json.dumps(case))
    write_state(inputs, folder / "inputs.safetensors")
    write_state(outputs, folder / "outputs.safetensors")
    return folder


def timesteps(folder: Path, off_by: float = 0.0) -> Path:
    call = {"cases": [{"num_steps": 3, "scheduler_scale": 2.5}]}
    return write_case(folder, "kandinsky5.timesteps", call, {}, {"timesteps.n3.s2.5": flow_times(3, 2.5) + off_by})


def transformer(folder: Path) -> Path:
    torch.manual_seed(0)
    net = DiffusionTransformer3D(DiTParams.from_dict(CONFIG))
    inputs = {
        "x": torch.randn(2, 4, 2, 3),
        "time": torch.tensor([500.0]),
        "text_embed": torch.randn(1, 4, 5),
        "pooled_text_embed": torch.randn(1, 7),
    }
    with torch.no_grad():
        text = TextStates(inputs["text_embed"], inputs["pooled_text_embed"])
        velocity = net(inputs["x"][None], inputs["time"], text)[0]
    write_case(folder, "kandinsky5.dit", {}, inputs, {"output": velocity}, CONFIG)
    write_state(net.state_dict(), folder / "weights.safetensors")
    return folder


def run(*args: str):
    app = typer.Typer()
    app.command()(conformance)
    return CliRunner().invoke(app, list(args))


def test_a_wrong_number_fails_and_names_the_output(tmp_path):
    timesteps(tmp_path / "good")
    timesteps(tmp_path / "bad", off_by=1e-3)
    result = run(str(tmp_path))
    assert result.exit_code == 1
    bad, good, total = result.stdout.splitlines()
    assert bad.startswith("FAIL kandinsky5.timesteps ") and bad.endswith("(timesteps.n3.s2.5)")
    assert "max_abs=0.001" in bad
    assert good.startswith("PASS kandinsky5.timesteps ")
    assert total == "1 passed, 1 failed, 0 skipped, 2 in all"


def test_a_component_that_is_not_built_is_skipped_not_passed(tmp_path):
    write_case(tmp_path / "case", "kandinsky9.telepathy", {}, {}, {})
    result = run(str(tmp_path), "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["totals"] == {"pass": 0, "fail": 0, "skip": 1}
    assert answer["cases"][0]["reason"]


def test_an_unknown_call_argument_is_skipped(tmp_path):
    folder = timesteps(tmp_path / "case")
    values = json.loads((folder / "case.json").read_text())
    values |= {"component": "kandinsky5.sample", "call": {"unheard_of": 1}}
    (folder / "case.json").write_text(json.dumps(values))
    assert next(check([folder])).status is Status.SKIP


def test_a_case_without_outputs_fails(tmp_path):
    folder = timesteps(tmp_path / "case")
    write_state({}, folder / "outputs.safetensors")
    assert next(check([folder])).status is Status.FAIL


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "unexpected"])
def test_wrong_weights_fail_with_the_tensor_named(tmp_path, damage):
    folder = transformer(tmp_path / "case")
    assert next(check([folder])).status is Status.PASS
    state = dict(DiffusionTransformer3D(DiTParams.from_dict(CONFIG)).state_dict())
    name = "visual_embeddings.in_layer.bias"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = torch.zeros(3)
    elif damage == "unexpected":
        name = "visual_embeddings.extra"
        state[name] = torch.zeros(3)
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    write_state(state, folder / "weights.safetensors")
    result = next(check([folder]))
    assert result.status is Status.FAIL
    assert damage == "nan" or name in result.reason


def test_a_path_without_cases_is_one_clear_error(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RequestError, match=r"case\.json"):
            check([path])
