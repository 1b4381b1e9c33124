"""What networks learn that are told more than a prompt: inpainting, editing, keyframes and the frames between them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.diffusion.gaps import fill
from kandinsky.engine import stages
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.engine.stages import known_of
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky3 import lesson as inpainting
from kandinsky.families.kandinsky_video1 import keyframes, lessons
from kandinsky.model.denoiser import Known
from kandinsky.model.values import Request
from kandinsky.train.data.dataset import EncodedDataset
from kandinsky.train.data.encode import encode
from kandinsky.train.recipe import check_recipe, run_recipe
from tiny import catalogue as tiny_models
from tiny import family, unets

# steps and rate: noise itself is learned slowly by networks this narrow, whose norms take its size away
SLOW, QUICK = (70, 1e-2), (50, 2e-2)
SIDE = 64
SHALLOW = {
    "dim_mult": [1, 2], "num_blocks": [2, 2], "add_cross_attention": [False, True], "add_self_attention": [False, True],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """U-Nets of half the levels of the other tests', and a model that edits."""
    folder = tmp_path_factory.mktemp("lessons") / "all"
    with pytest.MonkeyPatch.context() as here:
        here.setattr(unets, "UNET", unets.UNET | SHALLOW)
        here.setitem(unets.INTERPOLATION_1_1, "time_downsample", [False] * 2)
        unets.unet.cache_clear()
        unets.write(folder / "unets")
        unets.unet.cache_clear()
    shutil.copytree(folder / "unets" / "cards", folder / "cards")
    model = "tiny-i2i"
    kind, base, more = tiny_models.KANDINSKY5[model]
    family.write_official(folder / kind, kind)
    card = tiny_models.card5(model, kind, base, more, folder / kind / "weights")
    (folder / "cards" / f"{model}.toml").write_text(card)
    return folder


@pytest.fixture(autouse=True)
def cards(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(models / "cards"))


def weights_of(models: Path, model: str) -> Path | None:
    return models / "unets" / "weights" if (models / "unets" / "cards" / f"{model}.toml").exists() else None


def picture(seed: int) -> np.ndarray:
    few = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return few.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def images(folder: Path, count: int = 2, seed: int = 0, captions: bool = True) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(picture(seed + number)).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"make it {number}")
    return folder


def clips(folder: Path, seconds: float = 5.5) -> Path:
    folder.mkdir(parents=True)
    for number in range(2):
        frames = np.stack([picture(10 * number + i) for i in range(round(4 * seconds))])
        kandinsky.Video(frames, fps=4.0, seed=0).save(folder / f"{number}.mp4")
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def pairs(folder: Path) -> Path:
    images(folder / "edited")
    images(folder / "sources", seed=5, captions=False)
    return folder


DATA = {
    "inpainting": images,
    "editing": pairs,
    "keyframes": clips,
    "keyframes 1.1": clips,
    "gaps": clips,
    "gaps 1.1": clips,
}
LEARNT: dict[str, tuple[str, dict[str, Any]]] = {
    "inpainting": ("kandinsky3.0-inpaint", {}),
    "editing": ("tiny-i2i", {}),
    "keyframes": ("kandinsky-video-1.0", {}),
    "keyframes 1.1": ("kandinsky-video-1.1", {}),
    "gaps": ("kandinsky-video-1.0", {"part": "interpolation"}),
    "gaps 1.1": ("kandinsky-video-1.1", {"part": "interpolation"}),
}


NOISE = ("inpainting", "keyframes", "keyframes 1.1")  # what they predict; the others velocity, and v


def recipe(models: Path, folder: Path, what: str, source: Path, **more: Any) -> Path:
    model, part = LEARNT[what]
    steps, lr = SLOW if what in NOISE else QUICK
    values = {
        "kind": "denoiser", "model": model, "out": str(folder / "run"),
        "data": {"source": str(source), "size": f"{SIDE}x{SIDE}", "batch": 2},
        "times": {"kind": "points", "points": [0.95]},
        "loop": {"steps": steps, "lr": lr, "warmup": 2, "decay": 0, "betas": [0.9, 0.999], "bf16": False,
                 "log_every": 1, "seed": 2},
        **part, **more,
    }  # fmt: skip
    if (root := weights_of(models, model)) is not None:
        values["weights"] = str(root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(path: Path) -> list[float]:
    lines: list[dict[str, float]] = []
    run_recipe(path, on_log=lines.append)
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("what", LEARNT)
@pytest.mark.slow
def test_the_loss_falls(models: Path, tmp_path: Path, what: str) -> None:
    path = recipe(models, tmp_path, what, DATA[what](tmp_path / "data"))
    found = losses(path)
    first, last = np.mean(found[:5]), np.mean(found[-10:])
    print(what, first, last)
    assert last < 0.85 * first
    file = "interpolation" if "part" in LEARNT[what][1] else "dit"
    assert (tmp_path / "run" / f"{file}.safetensors").is_file()


def loaded(models: Path, model: str) -> tuple[Any, Any]:
    card = catalogue.find(model)
    return card, build(card, RunOptions(), root=weights_of(models, model))


def test_inpainting_is_given_what_a_request_gives(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, context = loaded(models, "kandinsky3.0-inpaint")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[16:40, 8:48] = 255
    given = {"image": Image.fromarray(picture(3)), "mask": Image.fromarray(mask)}
    job = resolve(Request(card.id, "a cat", width=SIDE, height=SIDE, seed=0, **given), card)
    wanted = known_of(context, [job])
    monkeypatch.setattr(inpainting, "repainted", lambda *_: (mask > 0).astype(np.float32))
    tensors = inpainting.INPAINTING.encode(context, picture(3)[None])
    clean, known = inpainting.INPAINTING.given(job, tensors, torch.Generator())
    assert known.extra.keys() == wanted.extra.keys() == {"kept"} and not known.mask
    torch.testing.assert_close(known.extra["kept"], wanted.extra["kept"])
    assert clean.shape == (1, *job.latent.as_tuple())


def test_editing_is_given_what_a_request_gives(models: Path) -> None:
    card, context = loaded(models, "tiny-i2i")
    image = Image.fromarray(picture(3))
    job = resolve(Request(card.id, "make it red", image=image, width=SIDE, height=SIDE, seed=0), card)
    wanted, (text, _) = known_of(context, [job]), stages.encode(context, [job])
    before = np.asarray(job.image.pixels())[None]
    lesson = card.does.lessons["dit"]()
    _, known = lesson.given(job, lesson.encode(context, picture(4)[None], before), torch.Generator())
    assert known.extra.keys() == wanted.extra.keys() == {"source"}
    torch.testing.assert_close(known.extra["source"], wanted.extra["source"])
    torch.testing.assert_close(
        lesson.text(context, "make it red", picture(4)[None], before).tokens_BLC, text.tokens_BLC
    )


@pytest.mark.parametrize("model", ["kandinsky-video-1.0", "kandinsky-video-1.1"])
def test_keyframes_are_given_what_a_request_gives(models: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    bound: list[Known] = []
    bind = keyframes.bind
    monkeypatch.setattr(keyframes, "bind", lambda net, known, run: (bound.append(known), bind(net, known, run))[1])
    pipe = kandinsky.load(model, weights=weights_of(models, model))
    pipe("a cat", width=SIDE, height=SIDE, steps=1, seed=0, fps="medium")
    card = pipe.card
    job = resolve(Request(model, "any", width=SIDE, height=SIDE, seed=0, fps="medium"), card, needs_image=False)
    count, (H, W, C) = card.keyframes.count, job.latent.as_tuple()[1:]
    generator = torch.Generator().manual_seed(5)
    first = lessons.KEYFRAMES.given(job, {"latent": torch.randn(1, count, H, W, C)}, generator)[1]
    gaps = lessons.GAPS.given(job, {"latent": torch.randn(1, 4 * (count - 1) + 1, H, W, C)}, generator)
    assert gaps[0].shape == (1, count - 1, H, W, 3 * C)

    def told(known: Known) -> list[Any]:
        return [(name, tuple(x.shape)) for name, x in sorted(known.extra.items())] + [
            known.extra[name].tolist() for name in ("positions", "marks")
        ]

    in_request = [told(known) for known in bound if "marks" in known.extra]
    assert told(first) in in_request and told(gaps[1]) in in_request


def test_the_frames_of_gaps_are_put_back_where_they_were() -> None:
    latent = torch.randn(1, 9, 2, 2, 4)
    card = catalogue.find("kandinsky-video-1.0")
    job = resolve(Request(card.id, "any", seed=0), card, needs_image=False)
    made, known = lessons.GAPS.given(job, {"latent": latent}, torch.Generator().manual_seed(1))
    assert torch.equal(fill(latent[:, ::4], made), latent)
    assert torch.equal(known.extra["before"], latent[:, :-1:4]) and torch.equal(known.extra["behind"], latent[:, 4::4])


def test_inpainting_learns_from_an_encoded_data_set(models: Path, tmp_path: Path) -> None:
    options = RunOptions(weights=weights_of(models, "kandinsky3.0-inpaint"))
    source = images(tmp_path / "data")
    made = encode(source, "kandinsky3.0-inpaint", tmp_path / "set", sizes=[f"{SIDE}x{SIDE}"], options=options)
    loop = {"steps": 2, "lr": 1e-3, "bf16": False, "log_every": 1, "seed": 2}
    from_files = losses(recipe(models, tmp_path / "files", "inpainting", source, loop=loop))
    found = losses(recipe(models, tmp_path / "encoded", "inpainting", made.folder, loop=loop))
    assert found == pytest.approx(from_files, rel=1e-3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "kind": ("inpainting", {"kind": "guidance-distillation"}, "cannot be trained by a recipe of this kind"),
    "part": ("inpainting", {"part": "interpolation"}, "`part` is `interpolation`: of `kandinsky3.0-inpaint`, dit can"),
    "conditions": ("gaps", {"data": {"source": "x", "conditions": {"first": 1}}}, "is given what its task says"),
}


def test_editing_learns_from_an_encoded_data_set_what_it_learns_from_the_pairs(models: Path, tmp_path: Path) -> None:
    """Of each pair both images are encoded, and its instruction beside the image that it is about."""
    source = pairs(tmp_path / "data")
    made = encode(source, "tiny-i2i", tmp_path / "encoded", sizes=[f"{SIDE}x{SIDE}"])
    data = EncodedDataset(made.folder)
    assert (made.clips, made.texts) == (2, 4) and data.has_own_texts and list(data.load(0)) == ["latent", "source"]
    same = [data.text_of(index, "").tokens_BLC for index in (0, 1)]  # the empty prompt beside two images
    assert same[0].shape != same[1].shape or not torch.equal(*same)
    data.verify()
    again = encode(source, "tiny-i2i", tmp_path / "encoded", sizes=[f"{SIDE}x{SIDE}"])
    assert (again.added, again.clips, again.texts) == (0, 2, 4)
    few = {"loop": {"steps": 2, "lr": 1e-3, "bf16": False, "log_every": 1}}
    raw = losses(recipe(models, tmp_path / "raw", "editing", source, **few))
    assert losses(recipe(models, tmp_path / "kept", "editing", made.folder, **few)) == pytest.approx(raw, rel=1e-5)
    Image.fromarray(picture(9)).save(source / "edited" / "2.png")
    (source / "edited" / "2.txt").write_text("make it 2")
    (source / "sources" / "2.png").write_bytes(b"no image")
    more = encode(source, "tiny-i2i", tmp_path / "encoded", sizes=[f"{SIDE}x{SIDE}"])
    assert (more.added, more.clips) == (0, 2) and [one.name for one in more.skipped] == ["2.png"]


def test_an_unreadable_file_of_a_raw_folder_is_left_out_and_named(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = images(tmp_path / "data", count=3)
    (source / "1.png").write_bytes(b"no image")
    few = {"loop": {"steps": 1, "lr": 1e-3, "bf16": False, "log_every": 1}}
    assert len(losses(recipe(models, tmp_path, "inpainting", source, **few))) == 1
    assert any("left out" in one and "1.png" in one for one in caplog.messages)
    assert "1 of 3 examples cannot be used" in caplog.messages
    for path in source.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"nothing is left of the data: .*0\.png"):
        losses(recipe(models, tmp_path, "inpainting", source, **few))


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_learned_is_refused(models: Path, tmp_path: Path, fault: str) -> None:
    what, more, message = REFUSED[fault]
    with pytest.raises(RequestError, match=message):
        check_recipe(recipe(models, tmp_path, what, tmp_path, **more))


def checked(path: Path) -> dict[str, str]:
    """Lines of `--check`, by their first word."""
    return {line.split()[0]: line for line in check_recipe(path)}


@pytest.mark.parametrize(
    "what", ["editing", *(pytest.param(one, marks=pytest.mark.slow) for one in ("inpainting", "keyframes 1.1", "gaps"))]
)
def test_a_recipe_of_a_lesson_is_checked(models: Path, tmp_path: Path, what: str) -> None:
    """Before there are any data; what is computed follows from what the network is told."""
    said = checked(recipe(models, tmp_path, what, tmp_path / "absent"))
    assert list(said) == ["recipe", "parameters", "tokens", "operations", "memory", "time", "fits"]
    frames = {"inpainting": 1, "editing": 1}.get(what)
    if frames is None:  # of keyframes, and of the gaps between them
        count = catalogue.find(LEARNT[what][0]).keyframes.count  # type: ignore[union-attr]
        frames = count - 1 if "gaps" in what else count
    patch = 4 if what == "editing" else 1
    assert int(said["tokens"].split()[1].replace(",", "")) == 2 * frames * (SIDE // 8) ** 2 // patch


def test_tokens_are_those_of_the_log(models: Path, tmp_path: Path) -> None:
    path = recipe(models, tmp_path, "editing", pairs(tmp_path / "data"), loop={"steps": 1, "lr": 1e-3, "bf16": False})
    lines: list[dict[str, float]] = []
    run_recipe(path, on_log=lines.append)
    told = lines[0]["tokens per second"] * lines[0]["seconds per step"]
    assert f"{told:.0f}" == checked(path)["tokens"].split()[1]


@pytest.mark.slow
def test_a_clip_without_a_gap_is_named(models: Path, tmp_path: Path) -> None:
    path = recipe(models, tmp_path, "gaps", clips(tmp_path / "data", seconds=0.5))
    with pytest.raises(RequestError, match=r"has no gap of 3 to learn: use clips of 5 or more"):
        run_recipe(path)
