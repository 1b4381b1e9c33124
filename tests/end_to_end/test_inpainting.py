"""Kandinsky 3 inpainting: a part of a picture is painted anew. Real classes at tiny size, the official files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

import kandinsky
from kandinsky.cli.main import main
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.stages import encode_image, to_pixels
from kandinsky.errors import RequestError
from kandinsky.media.image import FittedImage, open_image, size_within
from kandinsky.media.mask import open_mask
from kandinsky.media.recipe import command, read
from tiny import unets as tiny

MODEL, PROMPT = "kandinsky3.0-inpaint", "a cat in a red hat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("inpainting") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> GenerationPipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
        return kandinsky.load(MODEL, weights=folder / "weights", device="cpu", text_cache=False)


def right_half() -> np.ndarray:
    mask = np.zeros((64, 128), dtype=np.uint8)
    mask[:, 64:] = 1
    return mask


@pytest.mark.slow
def test_picture_mask_and_prompt_all_count(pipe: GenerationPipeline, picture: Image.Image) -> None:
    def made(prompt: str = PROMPT, image: Any = picture, mask: Any = None, **more: Any) -> np.ndarray:
        mask = right_half() if mask is None else mask
        return pipe(prompt, image=image, mask=mask, steps=3, seed=3, **more).frames

    first = made()
    assert first.shape == (1, 64, 128, 3)
    assert np.array_equal(first, made())
    others = [made("a snow cat"), made(mask=right_half()[:, ::-1]), made(image=picture.rotate(180)), made(mask_grow=6)]
    others += [made(guidance=1.0), made(negative_prompt="snow")]
    for other in others:
        assert not np.array_equal(first, other)
    # what is hidden has no influence
    hidden = np.array(picture)
    hidden[:, 64:] = 7
    assert np.array_equal(first, made(image=Image.fromarray(hidden)))


def test_every_way_to_say_the_same_mask(pipe: GenerationPipeline, picture: Image.Image, tmp_path: Path) -> None:
    ones = right_half()
    Image.fromarray(ones * 255).save(tmp_path / "grey.png")
    Image.fromarray(ones * 255).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(ones * 255).convert("1").save(tmp_path / "bits.png")
    soft = np.where(ones == 1, 0.9, 0.2).astype(np.float32)
    masks = [ones, ones * 255, ones.astype(bool), ones[..., None], soft, Image.fromarray(ones * 255)]
    masks += [tmp_path / name for name in ("grey.png", "rgb.png", "bits.png")]
    expected = open_mask(ones, open_image(picture))
    for mask in masks:
        found = open_mask(mask, open_image(picture))
        assert found == expected
        assert np.array_equal(found.repaint_HW, ones == 1)


def test_the_channels_are_the_official_ones(pipe: GenerationPipeline) -> None:
    """Against the steps of the official pipeline in its own words (FACTS section 7)."""
    rng = np.random.default_rng(5)
    picture = open_image(Image.fromarray(rng.integers(0, 255, (150, 300, 3), dtype=np.uint8)))
    repaint = np.zeros((150, 300), dtype=np.uint8)
    repaint[30:90, 41:222] = 1
    fitted = FittedImage(picture, *size_within(300, 150, area=1024**2, multiple=64), how="shrink")
    assert (fitted.width, fitted.height) == (256, 128)
    weights = open_mask(repaint, picture).fitted(fitted)
    mask = torch.from_numpy(repaint).float()[None, None]
    keep = 1 - F.interpolate(mask, (128, 256), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(weights, 1 - keep[0, 0].numpy(), atol=1e-5)
    assert 0 < weights[weights > 0].min() < 1  # there is an edge
    image = torch.from_numpy(np.array(picture.image.resize((256, 128)))).permute(2, 0, 1)[None].float() / 127.5 - 1
    image[((1 - keep) > 1e-6).expand_as(image)] = 0
    with pipe.placement.hold("vae") as vae, torch.no_grad():
        latent = vae.encode(image.permute(0, 2, 3, 1)[:, None])
        made = encode_image(vae.encode, to_pixels(fitted.pixels()), weights)
    expected = torch.cat((F.interpolate(keep, (16, 32)).permute(0, 2, 3, 1)[:, None], latent), dim=-1)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    resolved = pipe.resolve(kandinsky.Request(MODEL, PROMPT, image=picture.image, mask=repaint, seed=1))
    torch.testing.assert_close(pipe.known([resolved]).extra["kept"], made)


@pytest.mark.parametrize(
    ("given", "used"), [((2048, 2048), (1024, 1024)), ((700, 500), (640, 448)), ((3000, 900), (1856, 512))]
)
def test_pictures_are_shrunk_to_a_million_pixels(given: tuple[int, int], used: tuple[int, int]) -> None:
    assert size_within(*given, area=1024**2, multiple=64) == used


def test_a_mask_is_grown_on_all_sides() -> None:
    mask = np.zeros((20, 40), dtype=bool)
    mask[10, 20] = mask[0, 39] = True
    grown = open_mask(mask, open_image(Image.new("RGB", (40, 20))), grow=6).repaint_HW
    # three windows of 5 by 5, as officially
    expected = torch.from_numpy(mask).float()[None, None]
    for _ in range(3):
        expected = F.conv2d(expected, torch.ones(1, 1, 5, 5), padding=2)
    assert np.array_equal(grown, expected[0, 0].numpy() > 0)


def test_a_mask_under_a_picture_that_is_cut(picture: Image.Image) -> None:
    fitted = FittedImage(open_image(picture), 64, 64, how="cover")
    assert np.array_equal(
        open_mask(right_half(), fitted.source).fitted(fitted)[:, [0, 31, 32, 63]].mean(0), [0, 0, 1, 1]
    )


SMALL = np.ones((10, 10), dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "makes an image from an image, and none was given"),
        ({"mask": None}, "no mask says which: give `mask=…`, white where to repaint"),
        ({"mask": SMALL}, "the mask is 10x10 and the image 128x64: give a mask of the image's size"),
        ({"mask": np.zeros((64, 128))}, "the mask marks nothing"),
        ({"mask": np.full((64, 128), 3.0)}, "numbers from 3 to 3: use 0 to 1"),
        ({"mask": np.full((64, 128), np.nan)}, "numbers from nan"),
        ({"mask": np.ones((64, 128, 2))}, r"array \[64, 128, 2\] of float64: give \[H, W\]"),
        ({"mask": "nowhere.png"}, "mask `nowhere.png` does not exist"),
        ({"mask": 7}, "`mask` must be a path, .* not `7`"),
        ({"mask_grow": -1}, "mask growth `-1`"),
        ({"mask_grow": 2.5}, "`mask_grow` must be a whole number, not `2.5`"),
        ({"mask": np.tile(np.arange(128) == 3, (64, 1))}, "marks too little .* grow it"),
    ],
)
def test_wrong_masks_are_refused_before_anything_is_read(
    folder: Path, picture: Image.Image, change: dict[str, Any], said: str
) -> None:
    pipe = kandinsky.load(MODEL, weights=folder / "weights", device="cpu", text_cache=False)
    with pytest.raises(RequestError, match=said):
        pipe(PROMPT, seed=1, **({"image": picture, "mask": right_half()} | change))
    assert pipe.placement._built == {}


def test_a_mask_alone_is_refused(folder: Path) -> None:
    pipe = kandinsky.load("kandinsky3.0", weights=folder / "weights", device="cpu", text_cache=False)
    with pytest.raises(RequestError, match=r"the mask says which part .* and none was given"):
        pipe(PROMPT, seed=1, mask=right_half())


def test_the_command(
    folder: Path,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(folder / "weights"))
    image, mask, target = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png"
    picture.save(image)
    Image.fromarray(right_half() * 255).save(mask)
    words = ["generate", PROMPT, "-m", MODEL, "--image", str(image), "--steps", "2", "--seed", "3", "-o", str(target)]
    words += ["--device", "cpu", "--text-cache", "off", "--quiet"]
    masked = ["--mask", str(mask), "--mask-grow", "4"]
    assert main([*words, *masked]) == 0
    with Image.open(target) as made:
        assert made.size == (128, 64)
    recipe = read(target)
    assert recipe["mask"]["grow"] == 4
    assert " ".join(masked) in command(recipe)
    target.unlink()
    for wrong, said in (([], "no mask says which"), ([*masked[:2], "--mask-grow", "999"], "mask growth `999`")):
        capsys.readouterr()
        assert main([*words, *wrong]) == 2
        assert said in (error := capsys.readouterr().err)
        assert len(error.strip().splitlines()) == 1
    assert not target.exists()
