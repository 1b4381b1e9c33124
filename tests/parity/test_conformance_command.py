"""The conformance command on cases made here: verdicts, lines, exit codes, and cases that are broken or hostile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kandinsky.cli.conformance import conformance
from kandinsky.conformance import Status, check
from kandinsky.diffusion.schedule import flow_times
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.golden.cases import find
from kandinsky.golden.tolerances import Tolerance, read_tolerances
from kandinsky.golden.tracking import CaseError, Settings
from kandinsky.model.values import TextEmbeddings
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state
from parity.golden_cases import SUBSET, component, copy

CONFIG: dict[str, Any] = dict(in_visual_dim=3, out_visual_dim=3, in_text_dim=5, in_text_dim2=7, time_dim=8)
CONFIG |= dict(
    model_dim=24, ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=[4, 4, 4], patch_size=[1, 2, 2]
)
LINE = re.compile(r"(PASS|FAIL) (\S+) (.+) max_abs=(\S+) max_rel=(\S+) \((.+)\)")
# the smallest case of every component in the repository
BY_SIZE = sorted(find(SUBSET), key=lambda folder: sum(file.stat().st_size for file in folder.iterdir()), reverse=True)
SMALLEST = {component(folder): folder for folder in BY_SIZE}


def write_case(
    folder: Path, component: str, call: dict, inputs: dict, outputs: dict, config: dict | None = None
) -> Path:
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
        text = TextEmbeddings(inputs["text_embed"], inputs["pooled_text_embed"])
        velocity = net(inputs["x"][None], inputs["time"], text)[0]
    write_case(folder, "kandinsky5.dit", {}, inputs, {"output": velocity}, CONFIG)
    write_state(net.state_dict(), folder / "weights.safetensors")
    return folder


def only(folder: Path):
    (result,) = check([folder])
    assert LINE.fullmatch(result.line()), result.line()
    return result


def run(*args: str):
    app = typer.Typer()
    app.command()(conformance)
    return CliRunner().invoke(app, list(args))


def test_a_wrong_number_fails_and_names_the_output(tmp_path: Path) -> None:
    timesteps(tmp_path / "good")
    timesteps(tmp_path / "bad", off_by=1e-3)
    result = run(str(tmp_path))
    assert result.exit_code == 1
    bad, good, total = result.stdout.splitlines()
    assert bad.startswith(f"FAIL kandinsky5.timesteps {tmp_path / 'bad'} max_abs=0.001 max_rel=")
    assert bad.endswith(" (timesteps.n3.s2.5)")
    assert good == f"PASS kandinsky5.timesteps {tmp_path / 'good'} max_abs=0 max_rel=0 (timesteps.n3.s2.5)"
    assert total == "1 passed, 1 failed, 2 in all"


def test_json_is_strict_and_says_the_same(tmp_path: Path) -> None:
    timesteps(tmp_path / "good")
    write_case(tmp_path / "other", "kandinsky9.telepathy", {}, {}, {"x": torch.ones(1)})
    result = run(str(tmp_path), "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout, parse_constant=pytest.fail)
    assert answer["totals"] == {"pass": 1, "fail": 1}
    good, other = answer["cases"]
    assert good["status"] == "PASS" and good["max_abs"] == 0
    assert (other["status"], other["output"], other["max_abs"]) == ("FAIL", "component", None)
    assert "use one of kandinsky3.sample" in other["reason"] or "did you mean" in other["reason"]
    assert run(str(tmp_path / "good")).exit_code == 0


@pytest.mark.parametrize("source", SMALLEST.values(), ids=SMALLEST)
def test_what_a_component_does_not_use_fails_by_name(source: Path, tmp_path: Path) -> None:
    """In every place, of every component, and at any depth."""
    folder = copy(source, tmp_path / "case", call={"unheard_of": None})
    names = ["inputs.unheard_of", "call.unheard_of", "outputs_unheard_of", "adapter_2.safetensors"]
    values = json.loads((folder / "case.json").read_text())
    for key, value in values["call"].items():
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            # the strict readers of these complain before the run
            if isinstance(part, dict) and key not in ("attention", "metadata"):
                part["inside"] = 1
                names.append(f"call.{key}[{number}].inside" if isinstance(value, list) else f"call.{key}.inside")
    (folder / "case.json").write_text(json.dumps(values))
    for name, tensor in (("inputs", "unheard_of"), ("outputs", "outputs_unheard_of"), ("adapter_2", "x")):
        file = folder / f"{name}.safetensors"
        write_state((read_state(file) if file.exists() else {}) | {tensor: torch.ones(2)}, file)
    result = only(folder)
    assert result.status is Status.FAIL
    assert not [name for name in names if name not in result.line()], result.line()


@pytest.mark.parametrize("source", SMALLEST.values(), ids=SMALLEST)
def test_a_configuration_key_or_weight_that_is_not_used_fails_by_name(source: Path, tmp_path: Path) -> None:
    result = only(copy(source, tmp_path / "config", config={"unheard_of": 1}))
    assert result.status is Status.FAIL and "unheard_of" in result.line()
    folder = copy(source, tmp_path / "weights")
    file = folder / "weights.safetensors"
    write_state((read_state(file) if file.exists() else {}) | {"unheard_of": torch.ones(2)}, file)
    result = only(folder)
    assert result.status is Status.FAIL and "unheard_of" in result.line()
    result = only(copy(source, tmp_path / "tolerance", tolerance={"unheard_of": {"atol": 9}}))
    assert result.status is Status.FAIL and result.output == "tolerance.unheard_of"


def test_a_strict_reader_names_the_key_too(tmp_path: Path) -> None:
    for key, values in (("attention", {"type": "flash", "sharpness": 2}), ("magcache", {"threshold": 0.1, "L": 2})):
        result = only(copy(SUBSET / "kandinsky5" / "sample_t2v_nabla", tmp_path / key, call={key: values}))
        assert result.status is Status.FAIL and ("sharpness" in result.line() or "call.magcache.K" in result.line())


def test_a_key_of_another_network_fails_by_name(tmp_path: Path) -> None:
    for case, key, value in (
        ("kandinsky_video1/interpolate_v11", "noise_augmentation", True),
        ("kandinsky_video1/sample", "time_downsample", [False, False]),
        ("kandinsky3/sample_flash", "pass_skip_frames", True),
        ("kandinsky4/scheduler_4step", "eta", 0.5),
        ("kandinsky4/v2a_scheduler_pndm", "use_karras_sigmas", True),
        ("kandinsky4/text_embedder_t5", "num_decoder_layers", 2),
    ):
        result = only(copy(SUBSET / case, tmp_path / key, config={key: value}))
        assert result.status is Status.FAIL, result.line()
        assert key in result.line() or "tensor `" in result.line(), result.line()


def prose(notes: str, *names: str, **values: Any) -> dict[str, Tolerance]:
    return read_tolerances(Settings({"rtol": 1e-3, "atol": 1e-4} | values, "tolerance"), notes, names)


@pytest.mark.parametrize("note", ["±1", "+-1", "+/- 1 level; else exact", ": ± 1.0 (one level)"])
def test_tolerances_in_prose(note: str) -> None:
    wanted = {"frames_uint8": Tolerance(0.0, 1.0), "decoded": Tolerance(1e-3, 1e-4)}
    assert prose(f"Frames. frames_uint8 {note}", *wanted) == wanted
    assert prose("", *wanted, note=f"frames_uint8 {note}") == wanted


def test_tolerances_in_the_prose_of_sound() -> None:
    note = "atol is relative to the maximum of each compared tensor; image +-1 level; pcm +-2; wave 1e-2 of its maximum"
    found = prose("", "mel", "image", "pcm_a", "pcm_b", "wave", "waves", note=note)
    assert found["image"] == Tolerance(0.0, 1.0) and found["pcm_a"] == found["pcm_b"] == Tolerance(0.0, 2.0)
    assert found["wave"] == Tolerance(0.0, 1e-2, relative=True)
    assert found["mel"] == found["waves"] == Tolerance(1e-3, 1e-4, relative=True)
    assert found["mel"].allowed(torch.tensor([0.0, -50.0])).tolist() == pytest.approx([5e-3, 5e-3 + 5e-2])
    assert prose("wave within 2 % of its maximum", "wave")["wave"] == Tolerance(0.0, 0.02, relative=True)
    ordinary = "differs by up to 3.305; values in -1..1; |x| <= 1; x0 +-1 is no output; decoded 2 of 3 frames"
    assert prose(ordinary, "decoded") == {"decoded": Tolerance(1e-3, 1e-4)}


def test_tolerances_as_a_table() -> None:
    found = prose("b ±3", "a", "b", "step0.v", "step1.v", a={"atol": 0.5}, b=2, **{"step*.v": {"mean_abs": 0.1}})
    assert found["a"] == Tolerance(1e-3, 0.5) and found["b"] == Tolerance(0.0, 2.0)
    assert found["step0.v"] == found["step1.v"] == Tolerance(1e-3, 1e-4, 0.1)
    for key, value in (("c", 1), ("a", {"atl": 1}), ("a", -1), ("a", {"atol": "1"}), ("rtol", float("inf")), ("x*", 1)):
        with pytest.raises(CaseError, match=r"tolerance\."):
            prose("", "a", "b", **{key: value})


@pytest.mark.parametrize(
    "change",
    [{"note": "timesteps.n3.s2.5 ±0.01"}, {"timesteps.n3.s2.5": {"atol": 0.01}}, {"timesteps.*": 0.01}, {"atol": 0.01}],
)
def test_a_tolerance_of_an_output_counts(change: dict, tmp_path: Path) -> None:
    source = timesteps(tmp_path / "source", off_by=1e-3)
    assert only(source).status is Status.FAIL
    assert only(copy(source, tmp_path / "case", tolerance=change)).status is Status.PASS


def test_a_mean_distance_counts(tmp_path: Path) -> None:
    source = timesteps(tmp_path / "source", off_by=1e-3)
    for mean_abs, status in ((1e-2, Status.PASS), (1e-4, Status.FAIL)):
        change = {"atol": 0.1, "mean_abs": mean_abs}
        assert only(copy(source, tmp_path / str(mean_abs), tolerance=change)).status is status


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "unexpected"])
def test_wrong_weights_fail_with_the_tensor_named(tmp_path: Path, damage: str) -> None:
    folder = transformer(tmp_path / "case")
    assert only(folder).status is Status.PASS
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
    result = only(folder)
    assert result.status is Status.FAIL and name in result.line()


def test_a_path_without_cases_is_one_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RequestError, match=r"case\.json"):
            check([path])


BROKEN: list[tuple[str, str]] = [
    ("", "case.json"),
    ("{", "case.json"),
    ("[1]", "case.json"),
    ("[" * 50_000, "case.json"),
    ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "case.json"),
    ("{}", "component"),
    ('{"component": 5, "tolerance": {"rtol": 0, "atol": 0}}', "component"),
    ('{"component": "kandinsky5.timesteps"}', "tolerance"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0}}', "tolerance.atol"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": NaN, "atol": 0}}', "tolerance.rtol"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": Infinity}}', "tolerance.atol"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "dtype": "nn"}', "dtype"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "config": 3}', "config"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "tolerences": {}}', "tolerences"),
    ('{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}}', "call.cases"),
    (
        '{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "call": {"cases": [1]}}',
        "call.cases",
    ),
    (
        '{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "call": '
        '{"cases": [{"num_steps": 1e400, "scheduler_scale": 1}]}}',
        "call.cases[0].num_steps",
    ),
    (
        '{"component": "kandinsky5.timesteps", "tolerance": {"rtol": 0, "atol": 0}, "call": '
        '{"cases": [{"num_steps": 10000000000, "scheduler_scale": 1}]}}',
        "call.cases[0].num_steps",
    ),
]


@pytest.mark.parametrize(("text", "name"), BROKEN, ids=[f"{i}-{name}" for i, (_, name) in enumerate(BROKEN)])
def test_a_broken_case_is_one_line_that_names_the_fault(text: str, name: str, tmp_path: Path) -> None:
    folder = timesteps(tmp_path / "case")
    (folder / "case.json").write_bytes(text.encode("latin-1"))
    result = only(folder)
    assert (result.status, result.output) == (Status.FAIL, name), result.line()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    for number, damage in enumerate(("outputs gone", "outputs folder", "outputs cut", "inputs text", "outputs empty")):
        name, how = damage.split()
        folder = timesteps(tmp_path / str(number))
        file = folder / f"{name}.safetensors"
        content = file.read_bytes()
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "empty":
            write_state({}, file)
        elif how != "gone":
            file.write_bytes(content[:-3] if how == "cut" else b"no tensors at all")
        result = only(folder)
        assert (result.status, result.output) == (Status.FAIL, file.name), result.line()


def test_values_that_are_no_numbers_fail(tmp_path: Path) -> None:
    recorded = flow_times(3, 2.5)
    for number, value in enumerate((float("nan"), float("inf"))):
        outputs = {"timesteps.n3.s2.5": torch.where(recorded == 0, value, recorded)}
        folder = timesteps(tmp_path / str(number))
        write_state(outputs, folder / "outputs.safetensors")
        assert only(folder).status is Status.FAIL


def test_huge_networks_are_refused_before_they_are_built(tmp_path: Path) -> None:
    for key, value in (("num_visual_blocks", 10**9), ("model_dim", 10**12), ("in_text_dim", 2**62)):
        result = only(copy(SUBSET / "kandinsky5" / "sample_t2v_nabla", tmp_path / key, config={key: value}))
        assert (result.status, result.output) == (Status.FAIL, f"config.{key}")


def test_names_from_files_are_printed_escaped(tmp_path: Path) -> None:
    folder = timesteps(tmp_path / "case\x1b[31m\nPASS all")
    values = json.loads((folder / "case.json").read_text())
    values["component"] = "evil\n\x1b[2J"
    (folder / "case.json").write_text(json.dumps(values))
    line = only(folder).line()
    assert "\x1b" not in line and "\n" not in line and "evil\\n\\x1b[2J" in line and line.startswith("FAIL unknown ")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just([[1]]),
    st.sampled_from([0, -1, 2**63, 10**400, "\ud800", [None], {"a": None}]),
)  # fmt: skip


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Of every value in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, part in inner for found in paths(part, (*path, key))]


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_any_value_in_any_place_is_one_verdict(data: st.DataObject, tmp_path_factory) -> None:
    source = SMALLEST[data.draw(st.sampled_from(sorted(SMALLEST)))]
    folder = copy(source, tmp_path_factory.mktemp("fuzz") / "case")
    values = json.loads((folder / "case.json").read_text())
    places = [path for path in paths(values) if path[0] in ("config", "call", "tolerance", "dtype", "component")]
    path = data.draw(st.sampled_from(places[:60]))
    part = values
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = data.draw(JUNK)
    (folder / "case.json").write_text(json.dumps(values))
    assert len(only(folder).line().splitlines()) == 1


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_damaged_bytes_are_one_verdict(data: st.DataObject, tmp_path_factory) -> None:
    folder = copy(SUBSET / "kandinsky5" / "normalize_first_frame", tmp_path_factory.mktemp("fuzz") / "case")
    file = folder / data.draw(st.sampled_from(["inputs.safetensors", "outputs.safetensors", "case.json"]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, min(len(content), 400) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file.write_bytes(content)
    only(folder)
