"""`kandinsky live`: raw video of an autoregressive model, and what is refused."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., "Done"]  # noqa: F821


@pytest.fixture
def live(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model, made causal by a card."""
    folder = tmp_path / "causal"
    folder.mkdir()
    for card in Path(os.environ["KANDINSKY_CARDS"]).glob("*.toml"):
        text = card.read_text()
        (folder / card.name).write_text(text)
        if 'id = "tiny"' in text:
            own = text.replace('id = "tiny"', 'id = "live"').replace(
                "[sampling]", '[roll]\n[sampling]\nattention = { type = "causal", frames = 1, reach = 1 }'
            )
            (folder / "live.toml").write_text(own)
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder))
    return "live"


def test_a_stream_becomes_raw_video(live: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("live", "a panda", "--seconds", "0.4", "--seed", "3", "--device", "cpu", "-o", "x.y4m")
    assert done.code == 0 and done.out.strip() == "x.y4m", done.err
    data = Path("x.y4m").read_bytes()
    assert data.startswith(b"YUV4MPEG2 W64 H64 F24:1") and data.count(b"FRAME\n") == 10
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\na panda\n")))
    done = call("live", "-", "-m", live, "--seconds", "0.4", "--seed", "3", "--device", "cpu", "-o", "y.y4m", "-q")
    assert done.code == 0 and Path("y.y4m").read_bytes() == data and not done.err
    assert call("live", "--list").out.split() == [live]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no prompt was given"),
        (("a panda", "-m", "tiny"), "cannot be streamed: use `live`"),
        (("a panda", "-o", "x.mp4"), "raw video, .y4m"),
        (("a panda", "--seconds", "-1", "-o", "x.y4m"), "must be a number above 0"),
        (("a panda",), "standard output is no terminal"),
        (("-", "-o", "x.y4m"), "standard input holds no prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    live: str, call: Call, args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    done = call("live", *args)
    assert done.code == 2 and words in done.err, done.err
