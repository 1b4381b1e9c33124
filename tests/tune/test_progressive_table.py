"""The table of progressive starts: what an enlarged clip is, and that every row has its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kandinsky.lab import compression, progressive
from kandinsky.lab.compression import Cell, drawn
from kandinsky.lab.progressive import main, upsampled
from kandinsky.train.autoencoder import AutoencoderObjective


def test_an_enlarged_clip_lost_every_second_frame_and_pixel() -> None:
    seen: list[torch.Size] = []

    def same(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x

    clips = torch.stack([drawn(1), drawn(2)])
    side = clips.shape[2]
    torch.testing.assert_close(upsampled(same, clips, 17, side), clips, rtol=1e-4, atol=1e-5)
    slower = upsampled(same, clips, 9, side)
    torch.testing.assert_close(slower[:, ::2], clips[:, ::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slower[:, 1], (clips[:, 0] + clips[:, 2]) / 2, rtol=1e-4, atol=1e-5)
    small = upsampled(same, clips, 17, side // 2)
    assert small.shape == clips.shape and 0.01 < float((small - clips).abs().mean()) < 0.3
    assert [tuple(one[1:4]) for one in seen] == [(17, side, side), (9, side, side), (17, side // 2, side // 2)]


def test_a_table_has_a_row_for_each_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, few in (("SIDE", 32), ("TRAINED", 8), ("TESTED", 2), ("WIDTH", 4)):
        monkeypatch.setattr(compression, name, few)
    monkeypatch.setattr(progressive, "CELLS", (Cell(4, 8, 4), Cell(8, 8, 6)))
    given = ["--out", str(tmp_path), "--steps", "1", "--batch", "1"]
    assert main(given) == 0
    said = capsys.readouterr().out
    first, second = (line.split(" | ") for line in said.splitlines()[2:])
    assert first[0] == "| 4x8x8" and second[:2] == ["| 8x8x8", "6"] and len(second) == 6
    assert all(5 < float(value.rstrip(" |")) < 30 for value in second[2:])
    monkeypatch.setattr(AutoencoderObjective, "loss", lambda *_: pytest.fail("trained again"))
    assert main(given) == 0 and capsys.readouterr().out == said
