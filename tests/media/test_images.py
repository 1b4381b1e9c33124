"""Given images: read upright and in RGB, refused in one line, fitted by the official rules without their faults."""

import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kandinsky.errors import RequestError
from kandinsky.media.image import FittedImage, area_size, cover, nearest_shape, open_image

OFFICIAL = [(1024, 1024), (640, 1408), (1408, 640), (768, 1280), (1280, 768), (896, 1152), (1152, 896)]
SIDES = st.integers(1, 4000)


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8))


def test_a_path_an_image_and_an_array_are_one_picture(tmp_path: Path) -> None:
    image, file = gradient(30, 20), tmp_path / "a.png"
    image.save(file)
    by_path, by_image, by_array = open_image(str(file)), open_image(image), open_image(np.asarray(image))
    assert by_path.file == str(file) and by_image.file is None
    assert by_path.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert by_image == by_array and by_image != open_image(image.rotate(180))
    for picture in (by_path, by_image, by_array):
        assert picture.size == (30, 20) and np.array_equal(np.asarray(picture.image), np.asarray(image))


@pytest.mark.parametrize(("orientation", "size"), [(1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))])
def test_exif_orientation_is_followed(orientation: int, size: tuple[int, int]) -> None:
    image, exif, buffer = gradient(30, 20), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, format="PNG", exif=exif)
    turned = {1: 0, 3: 180, 6: 270, 8: 90}[orientation]
    picture = open_image(Image.open(buffer))
    assert picture.size == size
    assert np.array_equal(np.asarray(picture.image), np.asarray(image.rotate(turned, expand=True)))


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
MODES += ("I;16", "I;16L", "I;16B", "I;16N")
RAMP = np.linspace(0, 1, 256, dtype=np.float64).repeat(4).reshape(4, 256, order="F")


def in_mode(mode: str) -> Image.Image:
    """A ramp from black to white as an image of a mode that Pillow has."""
    if mode.startswith("I;16"):
        values = (RAMP * 65535).round().astype({"I;16B": ">u2"}.get(mode, "<u2"))
        return Image.frombytes(mode, RAMP.shape[::-1], values.tobytes())
    grey = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    if mode in ("La", "RGBa"):
        return grey.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode in ("LAB", "HSV", "PA", "RGBX"):
        return grey.convert("P" if mode == "PA" else "RGB").convert(mode)
    return grey.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_pillow_has_shows_the_same(mode: str) -> None:
    """Or is refused by name; never white, black or another error."""
    try:
        source = in_mode(mode)
    except ValueError as error:
        pytest.skip(f"Pillow makes none: {error}")
    picture = open_image(source)
    shown = np.asarray(picture.image)
    assert picture.image.mode == "RGB" and picture.size == (256, 4)
    tolerance = 255 if mode == "1" else 6 if mode in ("LAB", "YCbCr") else 1
    assert np.abs(shown.astype(int) - (RAMP * 255).round().astype(int)[..., None]).max() <= tolerance
    assert abs(shown.mean() - 127.5) < 3


def tiff(values: np.ndarray, *, format_: int, order: str) -> bytes:
    """An uncompressed grey TIFF. format_: 1 unsigned, 2 signed, 3 float.   order: `<` or `>`."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    H, W = values.shape
    bits = values.dtype.itemsize * 8
    tags = [(256, 3, W), (257, 3, H), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, H)]
    tags += [(279, 4, len(data)), (339, 3, format_)]
    file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data
    file += struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        file += struct.pack(order + "HHI", tag, kind, 1)
        file += struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return file + struct.pack(order + "I", 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "format_", "white"),
    [
        *(
            ("u1", 1, 255),
            ("u2", 1, 65535),
            ("i4", 2, 255),
            ("i4", 2, 65535),
            ("i4", 2, 1_000_000),
            ("i4", 2, 2**31 - 1),
        ),
        *(("f4", 3, 1.0), ("f4", 3, 1.05), ("f4", 3, 255.0), ("f4", 3, 65535.0)),
    ],
)
def test_tiffs_of_any_depth_and_byte_order_show_the_same(
    dtype: str, format_: int, white: float, order: str, tmp_path: Path
) -> None:
    scaled = RAMP * white
    file = tmp_path / "a.tif"
    file.write_bytes(tiff((scaled if format_ == 3 else scaled.round()).astype(dtype), format_=format_, order=order))
    shown = np.asarray(open_image(file).image).astype(int)
    assert np.abs(shown - (RAMP * 255)[..., None]).max() <= (14 if white == 1.05 else 1)


@pytest.mark.parametrize("most", [255, 256, 1023, 4095, 65535])
def test_pgm_of_any_depth_shows_its_own_range(most: int, tmp_path: Path) -> None:
    """Also a dark image: what is white is written in the file."""
    for share in (1.0, 0.25):
        values = (RAMP * most * share).round().astype(">u2" if most > 255 else "u1")
        (tmp_path / "a.pgm").write_bytes(b"P5 256 4 %d\n" % most + values.tobytes())
        shown = np.asarray(open_image(tmp_path / "a.pgm").image).astype(int)
        assert np.abs(shown - (RAMP * 255 * share)[..., None]).max() <= 1.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -200.0])
def test_numbers_that_are_no_image_are_refused_by_name(value: float, tmp_path: Path) -> None:
    values = RAMP.astype(np.float32).copy()
    values[0, 0] = value
    (tmp_path / "a.tif").write_bytes(tiff(values, format_=3, order="<"))
    with pytest.raises(RequestError, match=r"image `.*a\.tif` holds numbers from .*: scale them to 0 to 1"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(RequestError, match="the image holds numbers"):
        open_image(Image.fromarray(values))


def test_a_16_bit_grey_that_stands_for_transparency(tmp_path: Path) -> None:
    values = np.full((4, 4), 20000, np.uint16)
    values[0] = 700
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + (700).to_bytes(2, "big")
    at = data.index(b"IDAT") - 4
    data = data[:at] + (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[at:]
    (tmp_path / "a.png").write_bytes(data)
    shown = np.asarray(open_image(tmp_path / "a.png").image)
    assert (shown[0] == 255).all() and (shown[1:] == 20000 // 256).all()


def test_programs_and_bombs_are_not_run(tmp_path: Path) -> None:
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(eps)
    bomb = PngInfo()
    bomb.add_text("kandinsky", "x" * 70_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png", pnginfo=bomb)
    for name, said in (("a.png", "is not an image"), ("b.png", "is damaged")):
        with pytest.raises(RequestError, match=said) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_what_is_transparent_stands_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[1, 1] = (0, 0, 0, 128)
    clear = Image.fromarray(pixels)
    values = np.asarray(open_image(clear).image)
    assert values[0, 0].tolist() == [10, 20, 30] and values[0, 1].tolist() == [255, 255, 255]
    assert abs(int(values[1, 1, 0]) - 127) <= 1
    palette = clear.quantize(4)
    assert palette.mode == "P" and np.asarray(open_image(palette).image)[0, 1].tolist() == [255, 255, 255]


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "a.gif").image)[0, 0].tolist() == [255, 0, 0]


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    gradient(64, 64).save(file)
    (tmp_path / "cut.jpg").write_bytes(file.read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("words")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, message in (
        ("gone.jpg", "does not exist"),
        ("cut.jpg", "is damaged"),
        ("text.jpg", "is not an image"),
        ("empty.jpg", "is not an image"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_picture_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    gradient(64, 64).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    with pytest.raises(RequestError, match=r"a\.png` has more than 1500 pixels"):
        open_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # between this and twice as much Pillow only warns
    with pytest.raises(RequestError, match=r"a\.png` has more than 3000 pixels"):
        open_image(file)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 3), float), ((4, 4, 2), np.uint8), ((2, 4, 4, 3), np.uint8)])
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(RequestError, match="array"):
        open_image(np.zeros(shape, dtype))


@given(SIDES, SIDES)
@settings(max_examples=200)
def test_area_rule(width: int, height: int) -> None:
    w, h = area_size(width, height, area=512 * 768, multiple=16)
    assert w % 16 == h % 16 == 0 and min(w, h) >= 16
    if 1 / 8 < width / height < 8:
        assert abs(math.log(w * h / (512 * 768))) < 0.2
        assert abs(math.log((w / h) / (width / height))) < 0.15


@given(SIDES, SIDES)
@settings(max_examples=100)
def test_area_rule_keeps_its_own_results(width: int, height: int) -> None:
    """A picture already brought to size stays as it is."""
    size = area_size(min(width, 3000), max(height, 400), area=1024 * 1024, multiple=128)
    if size[0] * size[1] == 1024 * 1024:
        assert area_size(*size, area=1024 * 1024, multiple=128) == size


@given(SIDES, SIDES)
@settings(max_examples=100)
def test_nearest_shape(width: int, height: int) -> None:
    w, h = nearest_shape(width, height, OFFICIAL)
    assert all(abs(h / w - height / width) <= abs(b / a - height / width) for a, b in OFFICIAL)
    assert nearest_shape(w, h, OFFICIAL) == (w, h)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([(112, 88), (64, 140), (72, 57), (14, 18)]))
@settings(max_examples=150)
def test_cover_leaves_no_edge(width: int, height: int, size: tuple[int, int]) -> None:
    """Officially one side of every eleventh picture is a pixel short, which draws a black line."""
    covered = cover(Image.new("RGB", (width, height), (200, 210, 220)), *size)
    assert covered.size == size
    assert np.asarray(covered).min() == 200


def test_cover_takes_the_middle() -> None:
    wide = np.zeros((10, 50, 3), np.uint8)
    wide[:, 20:30] = 255
    assert np.asarray(cover(Image.fromarray(wide), 10, 10)).min() == 255


def test_a_record_says_what_was_done(tmp_path: Path) -> None:
    fitted = FittedImage(open_image(gradient(120, 90)), 96, 64, "cover")
    assert fitted.record() == {
        "file": None,
        "sha256": fitted.source.sha256,
        "given": "120x90",
        "used": "96x64",
        "fit": "cover",
    }
    assert fitted.pixels().size == (96, 64)
    stretched = FittedImage(open_image(gradient(120, 90)), 96, 64, "stretch").pixels()
    assert stretched.size == (96, 64) and not np.array_equal(np.asarray(stretched), np.asarray(fitted.pixels()))
