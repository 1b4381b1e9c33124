"""Recipes that are wrong are refused in one line, before anything is read; right ones mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.train.estimate import bare
from kandinsky.train.recipe import KINDS, _told, check_recipe, read_recipe, read_settings, run_recipe

LOOP: dict[str, Any] = {"steps": 2, "lr": 0.001}
DATA: dict[str, Any] = {"source": "data"}
MODEL: dict[str, Any] = {"kind": "denoiser", "model": "nano-t2v", "data": DATA, "out": "run", "loop": LOOP}


def looped(**more: Any) -> dict[str, Any]:
    return MODEL | {"loop": LOOP | more}


AUTOENCODER: dict[str, Any] = {
    "kind": "nano-autoencoder", "cache": "cache", "out": "run", "network": {}, "loop": {"steps": 2, "lr": 0.001},
}  # fmt: skip
PACKAGE: dict[str, Any] = {"kind": "package", "out": "run", "weights": {"a": {"from": "a.safetensors"}}}

# what stands in the file, what the line says
WRONG: list[tuple[str | bytes | dict[str, Any], str]] = [
    ("", "is no table"),
    ("just words", "is no table"),
    ("- kind: denoiser", "is no table"),
    ("7", "is no table"),
    ("a: [", "not valid YAML"),
    ("\tkind: denoiser", "not valid YAML"),
    (b"kind: \xff\xfe", "not valid YAML"),
    (b"kind: denoiser\x00", "not valid YAML"),
    ("kind: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ("kind: denoiser\nkind: denoiser", "`kind` stands in one table twice"),
    ("kind: denoiser\nlr: {a: 1, a: 2}", "`a` stands in one table twice"),
    ("[" * 3000, "not valid YAML"),
    ("x: &x [1, *x]", "not valid YAML"),
    ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcde", "bcdef", strict=True)
    ), "not valid YAML"),
    ("#" * (2**20 + 1), "larger than 1 MB"),
    ("3: denoiser", "key `3` is no text"),
    ("out: run", "kind `None`"),
    ("kind: nonsense", "nano-denoiser"),
    ("kind: [denoiser]", "use one of"),
    ("kind: {denoiser: 1}", "use one of"),
    ("base: absent.yaml", "absent.yaml` does not exist"),
    ("base: recipe.yaml", "its own base"),
    ("base: 3", "key `base` must be the name of a file"),
    ("base: ../recipe.yaml", "plain relative path"),
    ("base: /etc/passwd", "plain relative path"),
    (looped(stpes=3), "did you mean `steps`"),
    (MODEL | {"network": {}}, "unknown key `network`"),
    ({k: v for k, v in MODEL.items() if k != "model"}, "key `model` is missing"),
    (MODEL | {"loop": {"steps": 3}}, "`lr` is missing"),
    (MODEL | {"model": 3}, "`model` must be text"),
    (looped(steps=0), "`steps` must be 1 or more"),
    (looped(steps=-5), "`steps` must be 1 or more"),
    (looped(steps=2.5), "`steps` must be a whole number"),
    (looped(steps=True), "`steps` must be a whole number"),
    (looped(steps=None), "`steps` must be a whole number"),
    (looped(lr="fast"), "`lr` must be a finite number"),
    (looped(lr=float("nan")), "`lr` must be a finite number"),
    (looped(lr=float("inf")), "`lr` must be a finite number"),
    (looped(lr=-1), "`lr` must be 0 or more"),
    (looped(seed=2**32), "`seed` must be 4294967295 or less"),
    (looped(betas=[0.9]), "`betas` must be 2 finite numbers"),
    (looped(decay=1.5), "`decay` must be 1 or less"),
    (looped(clip=0), "`clip` must be above 0"),
    (MODEL | {"start": "zero"}, "`start` is `zero`: use `model`, `random`, or a weight file"),
    (MODEL | {"out": ["run"]}, "`out` must be text"),
    (MODEL | {"data": DATA | {"batch": 0}}, "`batch` must be 1 or more"),
    (AUTOENCODER | {"loop": 3}, "key `loop` must be a table"),
    (AUTOENCODER | {"loop": {"steps": 3, "lr": 1, "rate": 2}}, "unknown loop setting `rate`"),
    (AUTOENCODER | {"loop": {"steps": 3}}, "loop setting `lr` is missing"),
    (AUTOENCODER | {"network": {"widht": 3}}, "did you mean `width`"),
    (AUTOENCODER | {"network": [1]}, "`network` must be a table"),
    (AUTOENCODER | {"data": {"batch": "four"}}, "`batch` must be a whole number"),
    (AUTOENCODER | {"cache": None}, "`cache` must be text"),
    (PACKAGE | {"weights": {"a": "b"}}, "`a` must be a table"),
    (PACKAGE | {"weights": {"a": {}}}, "`from` is missing"),
    (PACKAGE | {"weights": ["a"]}, "`weights` must be a table"),
    (PACKAGE | {"copy": {"a": 3}}, "`copy` must be a table"),
    (looped(steps=10**40), "`steps` must be a whole number"),
    (looped(betas=[0.9, 1.0]), "`betas` must be below 1 each, not `1.0`"),
    (looped(betas=[-1, 0.9]), "`betas` must be 0 or more each, not `-1`"),
    (looped(optimiser="adam"), "`optimiser` must be `adamw` or "),
    (looped(log="wandb"), "`log` must be `jsonl` or `tensorboard`"),
    (looped(accumulate=4), "`loop.accumulate` is 4, and a batch has 1 clip:"),
    (looped(updates={"network": {"lr": float("nan")}}), "`updates`: `network`: key `lr` must be a finite number"),
    (MODEL | {"data": DATA | {"tasks": {"text-to-sound": 1}}}, "`tasks` names `text-to-sound`: use text-to-image"),
    (MODEL | {"data": DATA | {"tasks": {"text-to-image": 0}}}, "`tasks` gives none a weight"),
    (MODEL | {"data": DATA | {"lengths": {"huge": 1}}}, "`lengths` names `huge`: use short"),
    (MODEL | {"data": DATA | {"languages": {"ru": -1}}}, "`languages` must be 0 or more each"),
    (MODEL | {"data": DATA | {"size": "big"}}, "size `big` is not of the form WIDTHxHEIGHT"),
    (MODEL | {"data": DATA | {"size": "97x96"}}, "size `97x96` is not supported"),
    (MODEL | {"data": DATA | {"seconds": 1e12}}, "seconds are not supported"),
    (MODEL | {"data": DATA | {"source": ""}}, "data folder `` is not a name"),
    (MODEL | {"data": DATA | {"source": "absent"}}, "data folder `absent` does not exist"),
    (MODEL | {"data": DATA | {"source": "/dev/null"}}, "`/dev/null` is neither a folder nor"),
    (MODEL | {"model": "nano-t3v"}, "unknown model `nano-t3v`"),
    (MODEL | {"model": "nano-v2a"}, "cannot be trained by a recipe of this kind"),
    (MODEL | {"times": {"kind": "points"}}, "`points` are the times of kind `points`"),
    (MODEL | {"times": {"points": [0.5]}}, "`points` are the times of kind `points`"),
    (MODEL | {"times": {"kind": "points", "points": [3.0]}}, "`points` must be 1 or less each"),
    (MODEL | {"adapter": {"rank": 10**9}}, "`rank` must be 4096 or less"),
    (MODEL | {"adapter": {"kind": "dora", "base_dtype": "int8"}}, "adapter `dora` needs the norms"),
    (MODEL | {"scale": {"ring": 2}}, "must be the number of processes, 1"),
    (MODEL | {"scale": {"offload": True}}, "`offload` is a matter of shards"),
    (MODEL | {"start": "/dev"}, "or a weight file that exists"),
    (MODEL | {"start": "recipe.yaml"}, "`recipe.yaml` is not a weight file"),
    (MODEL | {"kind": "ladd", "student": "recipe.yaml"}, "`recipe.yaml` is not a weight file"),
    (looped(updates={"student": {"lr": 1}}), "`updates` names `student`, but what learns here is network"),
    (looped(updates={"discriminator": {"lr": 1}}), "`updates` names `discriminator`"),
    (looped(updates={"network": {"lr": 1}}) | {"kind": "dmd2"}, "what learns here is student, fake"),
    (looped(updates={"fake": {"lr": 1}}) | {"kind": "ladd"}, "what learns here is student, discriminator"),
    (AUTOENCODER | {"loop": LOOP | {"updates": {"vae": {"lr": 1}}}}, "`updates` names `vae`"),
    (MODEL | {"adapter": {"targets": ["to_nowhere"]}}, "adapter target `to_nowhere` fits none of the"),
    (MODEL | {"kind": "ladd", "adapter": {"targets": ["*.to_nowhere"]}}, "fits none of the"),
    (MODEL | {"out": "/dev/null"}, "`out` is `/dev/null`, which is a file"),
    (MODEL | {"out": "recipe.yaml/below"}, "a part of its path is not a folder"),
    (MODEL | {"out": "a\0b"}, "`out` must be text"),
    (MODEL | {"kind": "ladd", "start": "random"}, "a teacher with random weights teaches nothing"),
    (MODEL | {"kind": "ladd", "student": "absent.safetensors"}, "`student` is `absent.safetensors`: name a"),
    (MODEL | {"kind": "dmd2", "student_steps": {"weights": [1.0]}}, "`weights` are 1, and steps are 4"),
    (MODEL | {"kind": "dmd2", "student_steps": {"sampler": "euler9"}}, "`euler9` is unknown: use one of"),
    (MODEL | {"kind": "step-distillation", "steps": {"levels": []}}, "`levels` is empty"),
    (MODEL | {"kind": "step-distillation", "steps": {"levels": [4, 0]}}, "`levels` must be 1 or more each"),
    (MODEL | {"kind": "reward", "reward": "beauty"}, "reward `beauty` is unknown"),
    (MODEL | {"kind": "guidance-distillation", "times": {"by_frame": 0.5}}, "`times.by_frame` has no part in"),
    (MODEL | {"kind": "dmd2", "times": {"by_frame": 0.5}}, "`times.by_frame` has no part in"),
    (MODEL | {"kind": "self-forcing", "times": {"by_frame": 0.5}}, "`times.by_frame` has no part in"),
    (MODEL | {"kind": "preference", "times": {"by_frame": 0.5}}, "`times.by_frame` has no part in"),
    (MODEL | {"kind": "preference", "data": DATA | {"tokens": 9}}, "`data.tokens` has no part in"),
    (MODEL | {"kind": "preference", "data": DATA | {"tasks": {"text-to-image": 1}}}, "`data.tasks` has no part in"),
    (MODEL | {"kind": "reward", "reward": "colour", "times": {"kind": "uniform"}}, "`times` has no part in"),
    (MODEL | {"kind": "ladd", "times": {"kind": "uniform"}}, "`times` has no part in"),
    (MODEL | {"kind": "ladd", "student": "a.safetensors", "adapter": {}}, "leave `student` or `adapter` out"),
    (MODEL | {"adapter": {}, "scale": {"activations": "full"}, "auxiliary": {"self_perceptual": 0.1}},
     "`auxiliary.self_perceptual` looks through the network without its `adapter`"),
    (MODEL | {"kind": "self-forcing", "samples": {"prompts": ["a"]}}, "a causal student is not sampled"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_recipe_is_refused_in_one_line(
    tmp_path: Path,
    text: str | bytes | dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    monkeypatch.chdir(tmp_path)
    if isinstance(text, dict):
        text = yaml.safe_dump(text)
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    with monkeypatch.context() as nothing_heavy:
        for name in ("kandinsky.train.model_recipe.build", "kandinsky.train.model_recipe.encode"):
            nothing_heavy.setattr(name, _too_early)
        assert main(["train", str(recipe)]) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert message in lines[0] and not said.out
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def _too_early(*given: object, **more: object) -> None:
    raise AssertionError("a wrong recipe must be refused before a model is read")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images or videos"),
        ({"a.png": None}, "`a.png` has no caption: write it into `a.txt`"),
        ({"a.mp4": b"nothing" * 100, "a.txt": b"a"}, "`a.mp4` cannot be read"),
        ({"a.mp4": b"", "a.txt": b"a"}, "`a.mp4` "),
    ],
)
def test_data_that_cannot_be_used_is_named(
    tmp_path: Path,
    files: dict[str, bytes | None],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, held in files.items():
        if held is None:
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / name)
        else:
            (tmp_path / "data" / name).write_bytes(held)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MODEL))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert main(["train", "recipe.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("hint: ")]
    assert len(lines) == 1 and message.replace("`a.", "a.") in lines[0].replace("`data/a.", "a.").replace("`a.", "a.")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_weights_to_begin_from_are_looked_at_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their headers are; a file that is cut off, or another network's, is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kandinsky.train.model_recipe.build", _too_early)
    with torch.device("meta"):
        state = bare(catalogue.find("nano-t2v")).state_dict()
    whole = {name: torch.zeros(x.shape) for name, x in state.items()}
    save_file(whole, "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-100])
    save_file({name: x for name, x in whole.items() if not name.startswith("out_layer")}, "less.safetensors")
    save_file(whole | {"text_embeddings.in_layer.bias": torch.zeros(3)}, "other.safetensors")
    for file, message in (("cut", "is cut off"), ("less", "is missing"), ("other", "has shape [3]")):
        for key in ("start", "student"):
            values = MODEL | {"kind": "denoiser" if key == "start" else "ladd", key: f"{file}.safetensors"}
            Path("recipe.yaml").write_text(yaml.safe_dump(values))
            assert main(["train", "recipe.yaml", "--check"]) == main(["train", "recipe.yaml"]) != 0
            lines = capsys.readouterr().err.strip().splitlines()
            assert all(message in line and f"{file}.safetensors" in line for line in lines), (file, lines)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [({"dropout": 0.1}, "`adapter.dropout`: with `scale.tp`"), ({"base_dtype": "int8"}, "`scale.tp` divides plain")],
)
def test_adapters_that_cannot_be_cut_are_refused(tmp_path: Path, adapter: dict[str, Any], message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MODEL | {"adapter": adapter, "scale": {"tp": 2}}))
    with pytest.raises(RequestError, match=message):
        check_recipe(tmp_path / "recipe.yaml", processes=2)


def test_a_missing_recipe_names_no_folder_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("absent.yaml", "nano-t2v.yaml"):
        assert main(["train", f"somewhere/{name}"]) == 2
        said = capsys.readouterr().err
        assert "recipes/" in said and str(Path(kandinsky.__file__).parents[2]) not in said


def test_no_recipe_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml", "", "a\0b", "x" * 300):
        with pytest.raises(RequestError):
            run_recipe(path)


def test_what_a_kind_cannot_do_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(PACKAGE | {"out": str(tmp_path / "run")}))
    with pytest.raises(RequestError, match="no checkpoints"):
        run_recipe(recipe, resume=True)
    with pytest.raises(RequestError, match="no steps"):
        run_recipe(recipe, steps=5)
    with pytest.raises(RequestError, match="device `nonsense` is unknown"):
        run_recipe(recipe, device="nonsense")
    recipe.write_text(yaml.safe_dump(MODEL))
    for steps in (0, -5, True, 2.5):
        with pytest.raises(RequestError, match="steps"):
            run_recipe(recipe, steps=steps)  # type: ignore[arg-type]


def test_steps_are_those_of_each_kind() -> None:
    from kandinsky.train.recipe import _with_steps

    for path in Path(__file__).parents[2].joinpath("recipes").glob("*.yaml"):
        values = read_recipe(path)
        if values["kind"] == "package":
            continue
        settings = read_settings(_with_steps(values, 5, values["kind"]), path)
        if values["kind"] == "nano-text":
            assert (settings.word_steps, settings.caption_steps) in {(1, 4), (2, 3)}  # type: ignore[attr-defined]
        else:
            assert settings.loop.steps == 5  # type: ignore[attr-defined]


def test_no_process_of_a_shipped_recipe_is_left_without_clips() -> None:
    """On as many processes as its shards are written for."""
    seen = 0
    for path in Path(__file__).parents[2].joinpath("recipes").glob("*.yaml"):
        settings: Any = read_settings(read_recipe(path), path)
        if getattr(settings, "scale", None) is not None and settings.data.tokens is None:
            scale, seen = settings.scale, seen + 1
            taking = max(1, scale.fsdp // (scale.ring * scale.ulysses))
            assert taking * settings.loop.accumulate <= settings.data.batch, path.name
    assert seen >= 10


def test_processes_without_clips_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    values = looped(accumulate=2) | {"data": DATA | {"batch": 6}, "scale": {"fsdp": 4}, "out": str(tmp_path / "run")}
    recipe.write_text(yaml.safe_dump(values))
    check_recipe(recipe, processes=2)
    with pytest.raises(RequestError, match="is 2 on each of 4 processes, and a batch has 6 clips"):
        check_recipe(recipe, processes=4)


def test_the_steps_of_a_kind_belong_to_what_a_run_is_resumed_under(tmp_path: Path) -> None:
    def told(**more: Any) -> dict[str, Any]:
        kind = str(more["kind"])
        return _told(kind, read_settings(MODEL | more, tmp_path / "recipe.yaml"))

    steps = {"kind": "step-distillation", "steps": {"levels": [8, 4]}}
    assert told(**steps) != told(**steps | {"steps": {"levels": [8, 2]}})
    assert told(kind="reward", reward="colour", steps=16) != told(kind="reward", reward="colour", steps=8)
    assert told(**steps) == told(**steps, loop=LOOP | {"steps": 7, "keep": 9})


def test_every_kind_is_there() -> None:
    for kind in KINDS.values():
        assert isinstance(kind.settings(), type) and callable(kind.build())


def test_numbers_are_written_as_people_write_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "kind: denoiser\nmodel: nano-t2v\ndata: {source: d}\nout: r\n"
        "loop: {steps: 3, lr: 1e-3, weight_decay: 1.5E-2, clip: 2}\n"
    )
    settings: Any = read_settings(read_recipe(recipe), recipe)
    assert (settings.loop.lr, settings.loop.weight_decay, settings.loop.clip) == (1e-3, 1.5e-2, 2)
