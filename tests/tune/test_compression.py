"""The table of compression: its clips, PCA, and that a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.lab import compression
from kandinsky.lab.compression import Cell, Footage, Row, by_pca, curve, drawn, patches, psnr


@pytest.fixture(scope="module")
def footage() -> Footage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "TRAINED", 24)
        patch.setattr(compression, "TESTED", 4)
        made = Footage(None, batch=1)
        made.tests()
        return made


def test_clips_are_others_by_number_and_move() -> None:
    one, other = drawn(1), drawn(2)
    assert torch.equal(one, drawn(1)) and one.shape == (17, 32, 32, 3) and one.abs().max() <= 1
    assert (one - other).abs().mean() > 0.1 and (one[1:] - one[:-1]).abs().mean() > 0.01


def test_patches_are_what_becomes_a_latent_place() -> None:
    clip = torch.stack([drawn(3)])
    found = patches(clip, Cell(8, 16, 4))
    assert found.shape == (2 * 2 * 2, 3 * 8 * 16 * 16)
    torch.testing.assert_close(found[1], clip[0, 1:9, :16, 16:].flatten())


def test_pca_is_the_best_projection(footage: Footage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many components as numbers, nothing is lost; with fewer, what NumPy's singular values say."""
    monkeypatch.setattr(compression, "PATCHES", 600)
    cell, tests = Cell(4, 8, 6), torch.stack([footage.clip(number) for number in range(3)])
    found = by_pca(cell, footage, tests)
    seen = torch.cat([patches(footage.clip(number)[None], cell) for number in range(24)])[:600].double().numpy()
    mean = seen.mean(0)
    base = np.linalg.svd(seen - mean, full_matrices=False)[2][:6]
    wanted = patches(tests, cell).double().numpy()
    made = np.clip((wanted - mean) @ base.T @ base + mean, -1, 1)
    each = np.square(made - wanted).reshape(3, -1).mean(1) / 4
    assert found == pytest.approx(float(np.mean(-10 * np.log10(each))), abs=0.02)
    assert psnr(tests + 0.02, tests) == pytest.approx(40, abs=0.1)


def test_a_table_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, few in (("TRAINED", 3), ("TESTED", 2), ("PATCHES", 200), ("WIDTH", 4)):
        monkeypatch.setattr(compression, name, few)
    given = ["--out", str(tmp_path), "--steps", "2", "--cell", "0", "4"]
    assert compression.main(given) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| 4×8×8", "4"], ["| 8×16×16", "4"]]
    monkeypatch.setattr(compression, "by_training", lambda *_: pytest.fail("trained again"))
    assert compression.main(given) == 0 and capsys.readouterr().out == said
    assert (tmp_path / "compression.svg").read_text().count("<polyline") == 6


def test_the_curve_holds_every_ratio() -> None:
    found = [Row(Cell(t, s, c), 30.0, 25.0, 1.0) for t, s in compression.RATIOS for c in (4, 16)]
    drawn_curve = curve(found)
    assert all(f"{t}×{s}×{s}" in drawn_curve for t, s in compression.RATIOS) and "nan" not in drawn_curve
