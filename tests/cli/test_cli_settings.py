"""Defaults of options: the command line beats the environment, which beats the file; unknown names are refused."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kandinsky.cli import settings
from kandinsky.cli.main import root_command

Call = Callable[..., "Done"]  # noqa: F821


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the file of defaults."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def write(text: str) -> Path:
        path = settings.config_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def passes(call: Call, *arguments: str) -> int:
    done = call("plan", *arguments, "--json")
    assert done.code == 0, done.err
    return int(json.loads(done.out)["passes"])


def test_the_nearer_place_wins(
    tiny: Path, call: Call, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passes(call, "tiny") == 4
    config("steps = 3\nguidance = 1.0\n[plan]\nsteps = 5\n[bench]\nsteps = 50\n")
    assert passes(call, "tiny") == 5, "the table of the command goes before the top of the file"
    monkeypatch.setenv("KANDINSKY_STEPS", "7")
    assert passes(call, "tiny") == 7
    assert passes(call, "tiny", "--steps", "9") == 9
    monkeypatch.setenv("KANDINSKY_STEPS", "")
    assert passes(call, "tiny") == 5, "an empty variable says nothing"
    assert passes(call, "tiny", "--guidance", "2") == 10


def test_every_kind_of_value(
    tiny: Path, call: Call, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config('model = "tiny"\nsize = "96x64"\nseed = 5\nquiet = true\ndevice = "cpu"\nseconds = 0\ntext-cache = "off"\n')
    done = call("generate", "a panda")
    assert done.code == 0 and done.out.split() == ["a-panda-5.png"] and done.err == ""
    assert json.loads(call("show", "a-panda-5.png", "--json").out)["recipe"]["width"] == 96
    monkeypatch.setenv("KANDINSKY_LORA", "one.safetensors,two.safetensors:0.5")
    done = call("generate", "a panda")
    assert done.code == 2 and "`one.safetensors` is not there" in done.err and "`lora` from KANDINSKY_LORA" in done.err
    monkeypatch.delenv("KANDINSKY_LORA")
    config('lora = ["three.safetensors"]\n')
    assert "`three.safetensors` is not there" in call("generate", "x", "-m", "tiny").err


def test_a_model_that_is_typed_beats_the_default(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_MODEL", "nano-t2v")
    assert json.loads(call("plan", "tiny", "--json").out)["model"] == "tiny"
    assert json.loads(call("plan", "-m", "tiny", "--json").out)["model"] == "tiny"
    assert json.loads(call("plan", "--json").out)["model"] == "nano-t2v"
    assert "both `tiny` and `--model nano-i2v`" in call("plan", "tiny", "-m", "nano-i2v").err


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("KANDINSKY_DEVCE", "KANDINSKY_DEVICE"),
        ("KANDINSKY_GUIDENCE", "KANDINSKY_GUIDANCE"),
        ("KANDINSKY_WEIGHT", "KANDINSKY_WEIGHTS"),
        ("KANDINSKY_TEXTCACHE", "KANDINSKY_TEXT_CACHE"),
    ],
)
def test_unknown_variables_are_refused(name: str, near: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    done = call("models")
    assert done.code == 2 and done.out == ""
    assert done.err == f"error: variable `{name}` is not a setting: did you mean `{near}`?\n"
    assert call("models", "--help").code == 0
    report = call("doctor")
    assert "PROBLEM" in report.out and name in report.out


def test_every_variable_that_the_library_reads_is_known() -> None:
    """Whatever stands in its code as a name of one: the command line would refuse it otherwise."""
    source = Path(settings.__file__).parents[1]
    named = {name for file in source.rglob("*.py") for name in re.findall(r'"(KANDINSKY_[A-Z_]+)"', file.read_text())}
    assert named == settings.VARIABLES.keys()


@pytest.mark.parametrize("name", sorted(settings.VARIABLES))
def test_variables_of_the_library_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert settings.read(root_command()).problem is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stesp = 3", "`stesp` in `{path}` is not a setting: did you mean `steps`?"),
        ("[plan]\nlora = 'x'", "`lora` in `{path}`, table [plan], is not a setting"),
        ("[plam]\nsteps = 3", "table `[plam]` in `{path}` is not a setting: did you mean `plan`?"),
        ("[data.nan]\nfolder = 'x'", "table `[data.nan]` in `{path}` is not a setting: did you mean `data nano`?"),
        ("steps = [1, 2]", "`steps` in {path} must be text, a number, true or false"),
        ("steps = 1979-05-27", "`steps` in {path} must be text, a number, true or false"),
        ("steps = ", "`{path}` cannot be read: "),
        ("a = " + "[" * 5000, "`{path}` cannot be read: "),
    ],
)
def test_a_wrong_file_is_one_line(text: str, said: str, call: Call, config: Callable[[str], Path]) -> None:
    path = config(text)
    done = call("plan")
    assert done.code == 2 and done.err.startswith("error: " + said.format(path=path)), done.err
    assert len(done.err.splitlines()) == 1
    assert call("--help").code == 0 and call("generate", "-h").code == 0


def test_a_wrong_value_says_where_it_comes_from(
    tiny: Path, call: Call, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config("steps = 2.5\n")
    done = call("plan", "tiny")
    assert (
        done.code == 2
        and "--steps must be a whole number, not" in done.err
        and f"hint: the value comes from {path}" in done.err
    )
    config("steps = 99\n")
    done = call("plan", "tiny")
    assert done.code == 2 and "use a whole number from 1 to 50" in done.err and f"`steps` from {path}" in done.err
    monkeypatch.setenv("KANDINSKY_QUIET", "maybe")
    done = call("generate", "x", "--steps", "2")
    assert done.code == 2 and "the value comes from KANDINSKY_QUIET" in done.err


def test_an_option_that_differs_between_commands_is_set_in_the_first(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--fps` is a name for `generate` and a number for `interpolate`."""
    monkeypatch.setenv("KANDINSKY_FPS", "high")
    assert "does not exist" in call("interpolate", "absent.mp4", "-o", "x.mp4").err
    assert "takes no fps" in call("generate", "x", "-m", "nano-t2v").err


def test_doctor_lists_them(call: Call, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = config("steps = 3\n[bench]\nsize = '64x64'\n")
    monkeypatch.setenv("KANDINSKY_OFFLOAD", "module")
    done = call("doctor")
    assert f"steps = 3, from {path}\n" in done.out and f"size = 64x64, from {path} [bench]\n" in done.out
    assert "offload = module, from KANDINSKY_OFFLOAD\n" in done.out
    found = json.loads(call("doctor", "--json").out)["defaults"]
    assert {"option": "offload", "value": "module", "from": "KANDINSKY_OFFLOAD"} in found


def test_every_option_has_a_variable_of_its_own() -> None:
    words: dict[str, set[str]] = {}
    for option in settings._options(root_command(), ()):
        words.setdefault(settings.variable(option.name), set()).add(option.name)
    assert all(len(names) == 1 for names in words.values()) and not set(words) & {"KANDINSKY_CACHE", "KANDINSKY_CARDS"}
    assert {"KANDINSKY_DEVICE", "KANDINSKY_STEP_CACHE", "KANDINSKY_TRUST_REMOTE_CODE", "KANDINSKY_JSON"} <= set(words)


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert settings.config_path() == Path("/home/someone/.config/kandinsky/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", os.sep + "etc")
    assert settings.config_path() == Path("/etc/kandinsky/config.toml")


def test_the_services_of_a_cluster_are_no_settings(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes describes a service `kandinsky`, and one `kandinsky-head-svc`, to every container beside it."""
    for name in ("KANDINSKY", "KANDINSKY_HEAD_SVC"):
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.7:80")
        for ending in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR"):
            monkeypatch.setenv(f"{name}_{ending}", "10.0.0.7")
    assert settings.read(root_command()).settings == {}
    assert call("models").code == 0
