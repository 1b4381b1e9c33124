"""Bad input: one clear line, exit code 2, before anything heavy is loaded, and nothing left behind."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tiny import family

Call = Callable[..., "Done"]  # noqa: F821
HAS_CPU_BUILD = "+cpu" in metadata.version("torch")

# arguments after `generate`, what the error says, what the hint says
CASES = {
    "unknown model": (["x", "-m", "tinny"], "unknown model `tinny`", "`tiny`"),
    "size that is none": (["x", "-m", "tiny", "--size", "big"], "size `big` is not of the form WIDTHxHEIGHT", ""),
    "size the model has not": (
        ["x", "-m", "tiny", "--size", "100x64"],
        "size `100x64` is not supported by `tiny`: use `64x64` or `96x64`",
        "the nearest is `--size 96x64`",
    ),
    "too long": (
        ["x", "-m", "tiny", "--seconds", "4000"],
        "`4000` seconds are not supported by `tiny`: use 0 to 3600",
        "",
    ),
    "negative length": (["x", "-m", "tiny", "--seconds", "-1"], "use 0 to 3600 (0 makes a still image)", ""),
    "too short": (["x", "-m", "tiny", "--seconds", "0.1"], "too short for one step in time: use 0", ""),
    "not a number": (["x", "-m", "tiny", "--seconds", "nan"], "`seconds` must be a finite number, not `nan`", ""),
    "no steps": (["x", "-m", "tiny", "--steps", "0"], "use a whole number from 1 to 50, the default is 2", ""),
    "too many steps": (["x", "-m", "tiny", "--steps", "51"], "use a whole number from 1 to 50", ""),
    "negative guidance": (["x", "-m", "tiny", "--guidance", "-1"], "guidance `-1` is out of range: use 0 to 100", ""),
    "endless guidance": (["x", "-m", "tiny", "--guidance", "inf"], "`guidance` must be a finite number, not `inf`", ""),
    "no shift": (["x", "-m", "tiny", "--shift", "0"], "shift `0` is out of range: use 0.01 to 100", ""),
    "negative seed": (["x", "-m", "tiny", "--seed", "-1"], "seed `-1` must be a whole number from 0", ""),
    "large seed": (["x", "-m", "tiny", "--seed", str(2**63)], "must be a whole number from 0 to 2^63 - 1", ""),
    "count over the last seed": (["x", "-m", "tiny", "--seed", str(2**63 - 1), "--count", "2"], "2^63 - 1", ""),
    "empty prompt": (["", "-m", "tiny"], "the prompt is empty", ""),
    "blank prompt": ([" \n", "-m", "tiny"], "the prompt is empty", ""),
    "no prompt": (["-m", "tiny"], "no prompt was given", ""),
    "two sources of prompts": (["x", "--prompts", "p.txt", "-m", "tiny"], "both a prompt and --prompts were given", ""),
    "absent prompts": (["--prompts", "p.txt", "-m", "tiny"], "prompts `p.txt` cannot be read", ""),
    "unknown ending": (["x", "-m", "tiny", "-o", "x.avi"], "has the ending `.avi`: use .mp4", ""),
    "ending and slash": (["x", "-m", "tiny", "-o", "x.png/"], "output `x.png/` ends in a slash as a folder does", ""),
    "unwritable output": (["x", "-m", "tiny", "-o", "/proc/x.mp4"], "`/proc/x.mp4` cannot be written", ""),
    "sheet that is no picture": (["x", "-m", "tiny", "--sheet", "x.mp4"], "must end in `.png`", ""),
    "unknown device": (["x", "-m", "tiny", "--device", "gpu"], "device `gpu` is unknown: use `cpu`", ""),
    "unknown type": (["x", "-m", "tiny", "--dtype", "int3"], "dtype `int3` is unknown: use `float32`", ""),
    "unknown placement": (["x", "-m", "tiny", "--offload", "disk"], "offload `disk` is not available: use `none`", ""),
    "unknown option": (["x", "--lightning"], "no such option: --lightning", "kandinsky generate --help"),
    "word for a number": (
        ["x", "-m", "tiny", "--steps", "ten"],
        "--steps must be a whole number, not",
        "kandinsky generate --help",
    ),
    "weights not here": (
        ["x", "-m", "kandinsky5-lite-t2v-sft-5s"],
        "`model/kandinsky5lite_t2v_sft_5s.safetensors` of `kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s` is not on",
        "`kandinsky download kandinsky5-lite-t2v-sft-5s`",
    ),
}


def refused(done: "Done", said: str, hint: str = "") -> None:  # noqa: F821
    lines = [line for line in done.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert done.code == 2, done.err
    assert done.out == "" and "Traceback" not in done.err
    assert lines and lines[0].startswith("error: ") and said in lines[0], done.err
    assert len(lines) <= 2 and not lines[0].endswith(".")
    assert not hint or (lines[1].startswith("hint: ") and hint in lines[1])


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(case: str, tiny: Path, call: Call) -> None:
    arguments, said, hint = CASES[case]
    refused(call("generate", *arguments), said, hint)
    assert not list(Path().iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "case", ["unknown model", "too many steps", "unwritable output", "unknown device", "weights not here"]
)
def test_refused_before_torch_is_loaded(case: str, tiny: Path, fresh: Call) -> None:
    arguments, said, _ = CASES[case]
    done = fresh("generate", *arguments)
    assert done.code == 2 and said in done.err
    assert done.err.splitlines()[-1] == "False"


def test_cuda_where_there_is_none(tiny: Path, fresh: Call) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = fresh("generate", "x", "-m", "tiny", "--device", "cuda")
    assert done.code == 2 and "device `cuda` was asked for, and" in done.err and "hint: use `--device cpu`" in done.err
    if HAS_CPU_BUILD:
        assert done.err.splitlines()[-1] == "False"
    assert not list(Path().iterdir())


@pytest.mark.parametrize("damage", ["missing", "truncated", "header", "shape", "name"])
def test_broken_weights_name_file_or_tensor(damage: str, tiny: Path, call: Call, tmp_path: Path) -> None:
    text = (tiny / "tiny.toml").read_text(encoding="utf-8")
    source = Path(text.split('repo = "')[1].split('"')[0]) / "model" / family.CHECKPOINT
    mine = tmp_path / "broken" / "model" / family.CHECKPOINT
    mine.parent.mkdir(parents=True)
    (tiny / "tiny.toml").write_text(text.replace(f'repo = "{source.parents[1]}"', f'repo = "{tmp_path}/broken"', 1))
    name = "visual_transformer_blocks.0.self_attention.to_query.weight"
    said = family.CHECKPOINT
    state = load_file(source)
    if damage == "truncated":
        mine.write_bytes(source.read_bytes()[:-1000])
    elif damage == "header":
        mine.write_bytes(b"\xff" * 64)
    elif damage == "shape":
        state[name] = state[name][:-1].contiguous()
        said = name
    elif damage == "name":
        state["other"] = state.pop(name)
        said = name
    if damage in ("shape", "name"):
        save_file(state, mine)
    refused(call("generate", "x", "-m", "tiny"), said)
    assert not list(Path().iterdir())


def test_other_commands_refuse_too(tiny: Path, call: Call) -> None:
    refused(call("show", "absent.mp4"), "`absent.mp4` does not exist")
    refused(call("show", "nano"), "unknown model `nano`", "`nano-t2v`")
    refused(call("plan", "-m", "tiny", "--steps", "99"), "use a whole number from 1 to 50")
    refused(call("download", "tinny"), "unknown model `tinny`")
    refused(call("train", "absent.yaml"), "absent.yaml")
    refused(call("evaluate", "tinny"), "unknown model `tinny`")
    refused(call("nonsense"), "no such command 'nonsense'", "kandinsky --help")
    (tiny / "broken.toml").write_text("id = ")
    refused(call("models"), "broken.toml")
