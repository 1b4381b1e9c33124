"""Prompts from stdin, results to stdout, text that a terminal would obey, and words that shells complete."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kandinsky.cli import complete, streams
from kandinsky.cli.main import COMPLETION, main
from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.media.video import read_video

Call = Callable[..., "Done"]  # noqa: F821
STILL = ("-m", "tiny", "--seconds", "0", "--steps", "1", "--seed", "3", "--device", "cpu")
CLIP = ("-m", "tiny", "--seconds", "0.2", "--steps", "1", "--seed", "3", "--device", "cpu")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))

    return give


def test_a_prompt_from_stdin(tiny: Path, call: Call, stdin: Callable[[bytes], None]) -> None:
    stdin("\ufeffa panda\nи лиса \n".encode())
    done = call("generate", "-", *STILL, "-o", "x.png")
    assert done.code == 0, done.err
    assert recipes.read(Path("x.png"))["prompt"] == "a panda\nи лиса"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the prompt is empty"),
        (b" \n", "the prompt is empty"),
        (b"caf\xe9", "the prompt cannot be read: standard input is not UTF-8"),
        (b"x" * (2**20 + 1), "standard input holds more than 1 MiB"),
    ],
)
def test_a_bad_stdin(data: bytes, said: str, tiny: Path, call: Call, stdin: Callable[[bytes], None]) -> None:
    stdin(data)
    done = call("generate", "-", *STILL)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1
    assert not list(Path().iterdir())


def test_prompts_from_stdin(tiny: Path, call: Call, stdin: Callable[[bytes], None]) -> None:
    stdin(b'["a dot", {"prompt": "a cat", "output": "cat.png"}]')
    done = call("generate", "--prompts", "-", *STILL)
    assert done.code == 0 and sorted(done.out.split()) == ["a-dot-3.png", "cat.png"], done.err
    assert len(Path("stdin.summary.jsonl").read_text().splitlines()) == 2
    assert "both a prompt and --prompts" in call("generate", "-", "--prompts", "-", *STILL).err


def test_one_stdin_is_not_for_several_processes(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from kandinsky.runtime.parallel.launch import World

    monkeypatch.setattr(World, "started", classmethod(lambda cls: World(2, 0, 0)))
    monkeypatch.setattr("kandinsky.cli.together.launch.together", lambda _say: pytest.MonkeyPatch.context())
    for arguments in (("-",), ("--prompts", "-")):
        assert "standard input belongs to one process" in call("generate", *arguments, *STILL).err


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        ((*STILL,), b"\x89PNG"),
        ((*CLIP,), b"\x00\x00\x00\x1cftyp"),
        ((*CLIP, "--format", "gif"), b"GIF89a"),
        ((*CLIP, "--format", "webm"), b"\x1aE\xdf\xa3"),
    ],
)
def test_a_result_goes_to_stdout_alone(
    options: tuple[str, ...], begin: bytes, tiny: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["generate", "a panda", *options, "-o", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(begin[:4] if begin[4:] != b"ftyp" else b"\x00\x00\x00") and b"seed 3" in err
    assert not list(Path().iterdir())
    ending = {b"\x89": ".png", b"G": ".gif", b"\x1a": ".webm"}.get(begin[:1], ".mp4")
    assert main(["generate", "a panda", *(o for o in options if o not in ("--format", "gif", "webm")),
                 "-o", f"y{ending}"]) == 0  # fmt: skip
    assert Path(f"y{ending}").read_bytes() == out, "the same bytes as in a file"


def test_a_result_that_fails_leaves_stdout_empty(
    tiny: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("kandinsky.media.video.write_video", full)
    assert main(["generate", "a panda", *CLIP, "-o", "-"]) == 1
    out, err = capfdbinary.readouterr()
    assert out == b"" and b"kandinsky decode " in err
    latent = Path(err.split(b"kandinsky decode ")[1].split(b"`")[0].decode())
    assert latent.is_file(), "the latent is kept where it was said to be"
    latent.unlink()
    latent.parent.rmdir()


def test_a_latent_is_decoded_to_stdout(tiny: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    import kandinsky

    latent = "x.webm.latent.safetensors"
    kandinsky.load("tiny", device="cpu")("a panda", seconds=0.2, steps=1, seed=3, keep_latent=latent).save("x.webm")
    capfdbinary.readouterr()
    assert main(["decode", latent, "-o", "-", "-q"]) == 0
    assert capfdbinary.readouterr().out == Path("x.webm").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "-", "--count", "2"), "takes one result and nothing else, not several results"),
        (("-o", "-", "--json"), "takes one result and nothing else, not --json"),
        (("-o", "-", "--format", "png", "--seconds", "0.2"), "format `png` is one image, and this is a clip"),
        (("-o", "x.mp4", "--format", "gif"), "both say what is written"),
        (("--format", "avi"), "format `avi` is not supported: use mp4, webm"),
        (("-o", "-", "--format", "wav"), "has the ending `.wav`"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], said: str, tiny: Path, call: Call) -> None:
    done = call("generate", "x", *STILL, *arguments)
    assert done.code == 2 and said in done.err and done.out == ""
    assert not list(Path().iterdir())


def test_a_format_for_files_that_are_named_after_the_prompt(
    tiny: Path, call: Call, stdin: Callable[[bytes], None]
) -> None:
    assert call("generate", "a panda", *CLIP, "--format", "gif").lines == ["a-panda-3.gif"]
    stdin(b"a dot\na cat\n")
    assert call("generate", "--prompts", "-", *STILL, "--format", "webp").lines == ["a-dot-3.webp", "a-cat-3.webp"]


FORGED = "a panda\n\x1b]0;owned\x07kandinsky\u2028generate \u202eevil\x9b31m"


def test_nothing_a_terminal_obeys_is_printed(tiny: Path, call: Call) -> None:
    harmful = [c for c in FORGED if not c.isprintable()]
    assert call("generate", *STILL, "-o", "x.png", "--", FORGED).code == 0
    for arguments in (
        ("show", "x.png"), ("show", "x.png", "--json"), ("show", FORGED), ("download", FORGED), (FORGED,),
        ("plan", FORGED), ("train", FORGED), *(("generate", "x", *more) for more in (
            ("-m", FORGED), (f"--{FORGED}",), ("--steps", FORGED), ("-o", f"{FORGED}.png"), ("--device", FORGED),
            ("--image", FORGED), ("--prompts", FORGED),
        )),
    ):  # fmt: skip
        done = call(*arguments)
        text = (done.out + done.err).replace("\n", "")
        assert not any(c in text for c in harmful if c != "\n"), arguments
        assert all(line.startswith(("error: ", "hint: ", "note: ")) for line in done.err.splitlines()), arguments
    command = call("show", "x.png").lines[-1]
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    words = done.stdout.decode().split("\0")
    assert words[:2] == ["kandinsky", "generate"] and words[3:5] == ["--model", "tiny"]
    assert words[2] == FORGED, "the last line is the command, and bash reads the prompt back"
    assert json.loads(call("show", "x.png", "--json").out)["recipe"]["prompt"] == FORGED


def test_notes_are_one_line_each(call: Call, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    from kandinsky.cli.main import _OneLine
    from kandinsky.printing import speaking_of

    record = logging.LogRecord("x", logging.WARNING, "", 0, "of `%s`\x1b[2J", ("a\nb",), None)
    assert _OneLine("note: %(message)s").format(record) == r"note: of `a\nb`\x1b[2J"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "leave `fade=…` out, or `prompt_at=…`", (), None)
    with speaking_of("line 3"):  # of many results; options are named as here
        told = _OneLine("note: %(message)s").format(record)
    assert told == "note: line 3: leave `--fade` out, or `--prompt-at TIME PROMPT`"


def test_a_batch_names_its_prompts(tiny: Path, call: Call) -> None:
    long = "a very long prompt with many words, of which the first ones are enough"
    Path("p.jsonl").write_text(
        "\n".join(json.dumps({"prompt": prompt}) for prompt in ("a dot", long, "two\nlines\x1b[1m")), encoding="utf-8"
    )
    lines = call("generate", "--prompts", "p.jsonl", *STILL).err.splitlines()
    assert any(line.startswith("1/3 `a dot`: seed 3, 1 frame, ") for line in lines)
    assert any(line.startswith(f"2/3 `{long[:47]}…`: seed 3") for line in lines)
    assert any(line.startswith(r"3/3 `two\nlines\x1b[1m`: seed 3") for line in lines)
    again = call("generate", "--prompts", "p.jsonl", *STILL).err
    assert "1/3 `a dot`: finished before, seed 3\n" in again


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("kandinsky plan nano-", ["nano-i2v", "nano-live", "nano-t2v", "nano-v2a", "nano-world"]),
        ("kandinsky generate x -m kandinsky4-v", ["kandinsky4-v2a"]),
        ("kandinsky generate --offload ", ["none", "module", "block"]),
        ("kandinsky calibrate tin", ["tiny"]),
        ("kandinsky show kandinsky-video-1", ["kandinsky-video-1.0", "kandinsky-video-1.1"]),
        ("kandinsky sh", ["show"]),
    ],
)
def test_shells_complete(
    words: str, wanted: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETION, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setenv("KANDINSKY_TYPO", "does not matter here")
    with pytest.raises(SystemExit) as ended:
        main([])
    out, err = capfd.readouterr()
    assert (ended.value.code, out.split(), err) == (0, wanted, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETION, f"source_{shell}")
    with pytest.raises(SystemExit):
        main([])
    assert f"{COMPLETION}=complete_{shell}" in capfd.readouterr().out


def test_words_that_are_completed_are_allowed() -> None:
    from kandinsky.diffusion import caching
    from kandinsky.ops.attention_spec import AttentionSpec
    from kandinsky.runtime import quantise

    for word in complete.WORDS["attention"]:
        AttentionSpec().chosen(word)
    for word in complete.WORDS["cache"]:
        caching.parse(word)
    for word in complete.WORDS["quantize"]:
        quantise.parse(f"text={word}")
    assert complete.words_of("steps") is None


def test_every_command_has_a_short_help_flag(call: Call) -> None:
    for arguments in ((), ("generate",), ("data",), ("data", "nano"), ("doctor",)):
        short = call(*arguments, "-h")
        assert short.code == 0 and short.out == call(*arguments, "--help").out and "-h, --help" in short.out


def test_show_says_what_a_model_accepts(call: Call) -> None:
    from kandinsky import catalogue
    from kandinsky.engine.accepts import accepted

    for name, card in catalogue.cards().items():
        facts = accepted(card)
        lines = call("show", name).lines
        assert lines[0] == "accepts" and lines[len(facts) + 1] == "", name
        shown = dict(line.split(maxsplit=1) for line in lines[1 : len(facts) + 1] if not line.startswith("  quantize"))
        assert shown["steps"].startswith(f"1 to {card.sampling.max_steps}; default {card.sampling.steps}")
        knows = card.does.knows
        assert ("video" in facts) == (card.does.video or "source" in knows), name
        assert ("image" in facts) == (card.does.image != "none" or "first frame" in knows), name
    facts = accepted(catalogue.find("kandinsky-video-1.1"))
    assert facts["fps"].startswith("low (2 frames a second), ") and "default normal" in facts["motion"]
    assert facts["cache"] == "not supported" and "nabla" not in facts["attention"] and "tiling" not in facts
    facts = accepted(catalogue.find("kandinsky5-lite-t2v-sft-10s"))
    assert "default nabla:P=0.9" in facts["attention"] and facts["tiling"] == "none, auto, official"
    assert facts["seconds"] == "0 to 10, where 0 makes a still image; default 10" and "expand" in facts
    assert "trust_remote_code" in accepted(catalogue.find("kandinsky4-v2a"))


def test_stdout_that_takes_no_more() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    stdout = streams.Stdout(Full())
    assert stdout.write("x") == 1
    stdout.flush()
    stdout.flush()
    assert stdout.error is not None and stdout.error.errno == 28

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        streams.Stdout(Gone()).write("x")


def test_a_closed_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match="prompts cannot be read: standard input is closed"):
        streams.read_input("prompts")


def test_a_table_of_prompts_may_come_from_another_program(
    tiny: Path, call: Call, stdin: Callable[[bytes], None]
) -> None:
    stdin(b'{"prompt": "a dot", "steps": 2}\n{"prompt": "a cat"}\n')
    assert call("generate", "--prompts", "-", *STILL, "-o", "{name}.png").code == 0
    assert read_video(Path("a-dot-3.png")).recipe["steps"] == 2
