"""`--cache`, `calibrate` and `bench` on a tiny model, from the command line."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kandinsky.media import recipe

Call = Callable[..., "Done"]  # noqa: F821
CLIP = ("-m", "tiny", "--seconds", "0", "--seed", "3")


@pytest.mark.parametrize("option", ["taylor:order=0,first=1", "first-block:threshold=0.5"])
def test_generate_with_a_cache_says_what_was_left_out(tiny: Path, call: Call, option: str) -> None:
    done = call("generate", "a cat", *CLIP, "--steps", "6", "--cache", option, "-o", "a.png")
    assert done.code == 0, done.err
    told = recipe.read(Path("a.png"))["cache"]
    assert (told["kind"], told["option"]) == (option.partition(":")[0], option)
    assert told["computed"] + told["skipped"] == 12 and told["skipped"] > 0
    assert f"--cache {option}" in call("show", "a.png").lines[-1]


def test_without_a_cache_nothing_is_said(tiny: Path, call: Call) -> None:
    assert call("generate", "a cat", *CLIP, "-o", "a.png").code == 0
    assert "cache" not in recipe.read(Path("a.png"))
    assert "--cache" not in call("show", "a.png").out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("teacache", "cache `teacache` is unknown: use `magcache`, `first-block`, `taylor` or `none`"),
        ("taylor:order=3", "cache `taylor` cannot use order `3`: use 0, 1 or 2"),
        ("magcache", "`tiny` has no MagCache calibration: measure one with `kandinsky calibrate tiny -o ratios.toml`"),
        ("magcache:ratios=none.toml", "ratios `none.toml` cannot be read"),
    ],
)
def test_bad_caches_are_refused_without_torch(tiny: Path, fresh: Call, option: str, message: str) -> None:
    done = fresh("generate", "a cat", *CLIP, "--cache", option, "-o", "a.png")
    assert done.code == 2 and message in done.err.splitlines()[0]
    assert done.err.splitlines()[-1] == "False" and not Path("a.png").exists()


def test_calibrate_then_generate(tiny: Path, call: Call) -> None:
    Path("p.txt").write_text("a cat\na dog\n", encoding="utf-8")
    common = ("--seconds", "0", "--steps", "5", "--prompts", "p.txt", "--seeds", "1")
    done = call("calibrate", "tiny", *common, "-o", "ratios.toml", "--card", str(tiny / "tiny.toml"))
    assert done.code == 0, done.err
    assert done.lines[0].split() == ["step", "conditional", "unconditional", "left", "out"]
    ratios = tomllib.loads(Path("ratios.toml").read_text())["mag_ratios"]
    assert len(ratios) == 8 and all(ratio > 0 for ratio in ratios)
    card = tomllib.loads((tiny / "tiny.toml").read_text())
    assert card["sampling"]["mag_ratios"] == ratios and card["sampling"]["steps"] == 2
    # another number of steps than measured: the nearest ratios
    for option in ("magcache:threshold=9", "magcache:threshold=9,ratios=ratios.toml"):
        done = call("generate", "a cat", *CLIP, "--steps", "7", "--cache", option, "-o", "a.png")
        assert done.code == 0, done.err
        assert recipe.read(Path("a.png"))["cache"] == {
            "kind": "magcache", "option": option, "computed": 6, "skipped": 8
        }  # fmt: skip
    # measured again, the card keeps one table; without guidance the second branch is not measured
    done = call("calibrate", "tiny", *common, "--guidance", "1", "--card", str(tiny / "tiny.toml"), "--json")
    again = json.loads(done.lines[0])["mag_ratios"]
    assert again[1::2] == [0] * 4 and all(ratio > 0 for ratio in again[::2])
    text = (tiny / "tiny.toml").read_text()
    assert text.count("mag_ratios") == 1 and tomllib.loads(text)["sampling"]["mag_ratios"] == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "-o", "a.txt"], "output `a.txt` has an unknown ending: use `.toml` or `.json`"),
        (["tiny", "--card", "none.toml"], "card `none.toml` does not exist"),
        (["tinny"], "unknown model `tinny`"),
        (["tiny", "--steps", "1"], "`1` step has no ratio: use 2 or more"),
    ],
)
def test_bad_calibrations(tiny: Path, call: Call, arguments: list[str], message: str) -> None:
    done = call("calibrate", *arguments)
    assert done.code == 2 and message in done.err


def test_a_card_of_another_model_is_left_alone(tiny: Path, call: Call) -> None:
    other = Path("other.toml")
    other.write_text((tiny / "tiny.toml").read_text().replace('"tiny"', '"other"'))
    before = other.read_text()
    done = call("calibrate", "tiny", "--seconds", "0", "--seeds", "1", "--card", str(other))
    assert done.code == 2 and "is not a card of `tiny`" in done.err and other.read_text() == before


TINY_SIZES = (
    "--set", "dit.model_dim=32", "--set", "dit.ff_dim=64", "--set", "dit.num_visual_blocks=1", "--set",
    "dit.time_dim=16", "--set", "dit.axes_dims=4,6,6", "--set", "dit.in_text_dim=32", "--set", "dit.in_text_dim2=32",
    "--set", "text.qwen_layers=1", "--set", "text.clip_layers=1", "--set", "text.vocabulary=100",
)  # fmt: skip


def test_bench_of_a_full_size_card_at_another_size_against_diffusers(call: Call) -> None:
    done = call(
        "bench", "-m", "kandinsky5-lite-t2v-sft-5s", "--random-weights", *TINY_SIZES, "--stages", "text,dit",
        "--seconds", "0", "--size", "512x512", "--steps", "1", "--repeats", "2", "--against", "diffusers", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["model"] == "kandinsky5-lite-t2v-sft-5s (random weights)" and report["size"] == "512x512, 1 frames"
    assert [stage["name"] for stage in report["stages"]] == ["load", "text", "dit"]
    for stage in report["stages"][1:]:
        assert len(stage["seconds"]) == len(stage["against"]["seconds"]) == 2, stage["against"]
        assert stage["against"]["ratio"] > 0 and stage["flops"] > 0 and stage["share"] > 0 and stage["peak_bytes"] > 0


def test_bench_says_what_diffusers_has_not(call: Call) -> None:
    arguments = ("bench", "-m", "nano-t2v", "--random-weights", "--stages", "vae", "--seconds", "0", "--repeats", "1")
    done = call(*arguments, "--against", "diffusers")
    assert done.code == 0, done.err
    assert "`diffusers` has nothing like `nano.vae`" in done.out and "of matmul" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "text,tea"], "unknown stage `tea`: use `text`, `dit`, `vae`, `write`"),
        (["--against", "comfy"], "unknown rival `comfy`: use `diffusers`"),
        (["--set", "dit.model_dim=64"], "only be changed with `--random-weights`"),
        (["--random-weights", "--set", "dit.model_dim"], "`dit.model_dim` is not of the form `dit.model_dim=512`"),
        (["--random-weights", "--set", "dit.model_dim=big"], "`big` is not a number"),
        (["--random-weights", "--set", "net.model_dim=2"], "`net.model_dim` names no hyper-parameter"),
        (["--random-weights", "--set", "dit.modl_dim=2"], "did you mean `model_dim`"),
        (["--ledger", "--stages", "dit"], "`--ledger` measures a model as it is"),
    ],
)
def test_bad_benches(tiny: Path, call: Call, arguments: list[str], message: str) -> None:
    done = call("bench", "-m", "tiny", *arguments)
    assert done.code == 2 and message in done.err
