"""The latent is on disk before decoding starts, and decoding goes on from there to the very same frames."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky.cli.main import main
from kandinsky.engine.latent_names import latent_path, target_of
from kandinsky.engine.latents import read_latent, write_latent
from kandinsky.errors import Cancelled, RequestError, WeightsError
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.media import container
from kandinsky.media.video import read_video

NANO = ["-m", "nano-t2v", "--seconds", "0.4", "--steps", "1", "--seed", "7", "--guidance", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, kandinsky.Video]:
    path = tmp_path_factory.mktemp("kept") / "clip.mp4.latent.safetensors"
    pipe = kandinsky.load("nano-t2v", device="cpu")
    return path, pipe("a panda", seconds=0.4, steps=1, guidance=1, seed=7, keep_latent=path)


def test_finishing_gives_the_very_same_frames(kept: tuple[Path, kandinsky.Video]) -> None:
    path, video = kept
    again = kandinsky.load("nano-t2v", device="cpu", only=("vae",)).finish(path)
    assert np.array_equal(again.frames, video.frames)
    assert again.recipe == video.recipe and again.seed == 7 and again.fps == video.fps


def test_a_clip_can_be_taken_piece_by_piece(kept: tuple[Path, kandinsky.Video], monkeypatch) -> None:
    path, video = kept
    stream = kandinsky.load("nano-t2v", device="cpu", only=("vae",)).finish_stream(path)
    with monkeypatch.context() as broken:
        broken.setattr(NanoAutoencoder, "decode", lambda *_: pytest.fail("decoded before anybody asked"))
        assert stream.num_frames == len(video.frames) and stream.recipe == video.recipe
    assert np.array_equal(np.concatenate(list(stream.pieces)), video.frames)


def test_the_command_line_never_holds_a_whole_clip(
    kept: tuple[Path, kandinsky.Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kandinsky.VideoStream, "gather", lambda _: pytest.fail("held whole"))
    assert main(["generate", "a panda", *NANO, "-o", str(tmp_path / "a.mp4"), "--sheet", str(tmp_path / "a.png")]) == 0
    assert main(["decode", str(kept[0]), "-o", str(tmp_path / "b.mp4"), "--sheet", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_decode_writes_what_generate_would_have(kept: tuple[Path, kandinsky.Video], tmp_path: Path, capsys) -> None:
    path, video = kept
    frames = tmp_path / "frames"
    assert main(["decode", str(path), "-o", str(frames), "--sheet", str(tmp_path / "sheet.png"), "-q"]) == 0
    assert capsys.readouterr().out.strip() == str(frames)
    assert np.array_equal(read_video(frames).frames, video.frames)
    assert main(["decode", str(path)]) == 0, "beside itself, under the name it was made for"
    assert read_video(path.parent / "clip.mp4").recipe == video.recipe
    assert path.exists()


def test_the_latent_goes_when_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    decode = NanoAutoencoder.decode

    def watched(self, latents):
        seen.extend(path.name for path in tmp_path.iterdir())
        return decode(self, latents)

    monkeypatch.setattr(NanoAutoencoder, "decode", watched)
    assert main(["generate", "a panda", *NANO, "-o", str(tmp_path / "a.mp4")]) == 0
    assert seen == ["a.mp4.latent.safetensors"], "it was there before decoding began"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_decoder_that_fails_leaves_the_latent_and_says_so(
    kept: tuple[Path, kandinsky.Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    target = tmp_path / "a clip.mp4"
    with monkeypatch.context() as broken:
        broken.setattr(NanoAutoencoder, "decode", lambda self, latents: torch.empty(2**60))
        assert main(["generate", "a panda", *NANO, "-o", str(target)]) == 1
    said = capsys.readouterr().err
    assert "ran out in `vae`" in said
    assert f"the latent is kept: `kandinsky decode '{target}.latent.safetensors'` goes on from there" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a clip.mp4.latent.safetensors"]
    assert main(["decode", f"{target}.latent.safetensors", "-o", str(tmp_path / "frames"), "-q"]) == 0
    assert np.array_equal(read_video(tmp_path / "frames").frames, kept[1].frames), "the run of the same seed"


def test_a_cancelled_run_keeps_nothing(official: Path, tmp_path: Path) -> None:
    pipe = kandinsky.load(official, device="cpu")
    with pytest.raises(Cancelled):
        pipe("a panda", seconds=0, steps=2, seed=1, keep_latent=tmp_path / "x", on_step=lambda *_: False)
    assert not (tmp_path / "x").exists()


def test_what_is_no_latent_is_refused(tmp_path: Path, capsys) -> None:
    from safetensors.torch import save_file

    with pytest.raises(RequestError, match="does not exist"):
        read_latent(tmp_path / "none")
    (tmp_path / "a.mp4").write_bytes(b"0" * 100)
    with pytest.raises(RequestError, match="is not a kept latent"):
        read_latent(tmp_path / "a.mp4")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="was not written by `kandinsky generate`"):
        read_latent(tmp_path / "other.safetensors")
    whole = write_latent(tmp_path / "cut.latent.safetensors", torch.zeros(1, 2, 2, 4), {"kandinsky": "0", "model": "m"})
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="cut off within tensor `latent`"):
        read_latent(whole)
    assert main(["decode", str(tmp_path / "none.latent.safetensors")]) == 2
    assert main(["decode", str(tmp_path / "other.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "does not exist" in said and "say with `-o` what to write" in said


def test_another_models_latent_is_refused(tmp_path: Path) -> None:
    recipe = {"kandinsky": "0", "model": "big", "seed": 1, "fps": 12.0, "dtype": "float32", "device": "cpu"}
    path = write_latent(tmp_path / "x.latent.safetensors", torch.zeros(1, 2, 2, 16), recipe)
    with pytest.raises(RequestError, match="is a latent of `big`, not of `nano-t2v`"):
        kandinsky.load("nano-t2v", device="cpu").finish(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "has no `model`"),
        ({"fps": None}, "has no `fps`"),
        ({"seed": None}, "has no `seed`"),
        ({"fps": -12.0}, "`fps` must be a finite number above 0, not `-12.0`"),
        ({"seed": "7"}, "`seed` must be a whole number"),
        ({"device": 3}, "`device` must be text"),
        ({"shape": (0, 2, 2, 16)}, r"its shape is \[0, 2, 2, 16\]"),
    ],
)
def test_latents_with_broken_recipes_are_refused_in_one_line(
    change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"kandinsky": "0", "model": "nano-t2v", "seed": 1, "fps": 12.0, "dtype": "float32", "device": "cpu"}
    shape = change.pop("shape", (1, 2, 2, 16))
    given = {key: value for key, value in (recipe | change).items() if value is not None}
    path = write_latent(tmp_path / "x.mp4.latent.safetensors", torch.zeros(shape), given)
    with pytest.raises(RequestError, match=said):
        read_latent(path)
    assert main(["decode", str(path), "--device", "cpu"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("rows", [False, True])
def test_a_full_disk_while_frames_are_written_keeps_the_latent(
    rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("a panda\n")
    what = ["--prompts", "rows.txt"] if rows else ["a panda"]
    words = ["generate", *what, "--seed", "1", "--steps", "1", "--device", "cpu", "-q", "-o", "x y.mp4"]
    with monkeypatch.context() as broken:
        broken.setattr(container, "encode", full)
        assert main(words) == 1
    said = capsys.readouterr().err.splitlines()
    assert "`x y.mp4` cannot be written: the disk is full" in said[0] and said[1].startswith("hint: free some space")
    assert "the latent is kept: `kandinsky decode 'x y.mp4.latent.safetensors'`" in said[1]
    assert not Path("x y.mp4").exists() and not list(tmp_path.glob(".*"))
    assert main(["decode", "x y.mp4.latent.safetensors", "-q"]) == 0 and Path("x y.mp4").is_file()


def test_names_of_any_legal_length() -> None:
    for length in (1, 236, 237, 255):
        latent = latent_path(Path("out") / ("я" * (length // 2) + "x" * (length % 2)))
        assert len(latent.name.encode()) <= 255 and latent.parent == Path("out")
        assert (target_of(latent) is None) == (length > 236)
    assert latent_path(Path("a" * 250)) != latent_path(Path("a" * 249 + "b"))


def test_names() -> None:
    assert latent_path(Path("out/a.mp4")) == Path("out/a.mp4.latent.safetensors")
    assert target_of(Path("out/a.mp4.latent.safetensors")) == Path("out/a.mp4")
    assert target_of(Path("latent.safetensors")) is None
