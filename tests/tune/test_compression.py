"""The table of compression: its clips, PCA, networks that begin with it, and that a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.lab import compression
from kandinsky.lab.compression import CELLS, Cell, Footage, Row, by_pca, curve, drawn, patches, principal, psnr
from kandinsky.train.objective import Portion, Rng


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("SIDE", 32), ("TRAINED", 24), ("TESTED", 3), ("PATCHES", 600), ("WIDTH", 4)):
        monkeypatch.setattr(compression, name, few)


def test_rows_keep_as_many_numbers_by_every_ratio() -> None:
    by_share: dict[float, set[tuple[int, int]]] = {}
    for cell in CELLS:
        by_share.setdefault(cell.share, set()).add((cell.temporal, cell.spatial))
    assert by_share == {1 / 16: set(compression.RATIOS), 1 / 48: set(compression.RATIOS)}


def test_clips_are_others_by_number_and_move() -> None:
    one, other = drawn(1), drawn(2)
    assert torch.equal(one, drawn(1)) and one.shape == (17, 32, 32, 3) and one.abs().max() <= 1
    assert (one - other).abs().mean() > 0.1 and (one[1:] - one[:-1]).abs().mean() > 0.01


def test_patches_are_what_becomes_a_latent_place() -> None:
    clip = torch.stack([drawn(3)])
    found = patches(clip, Cell(8, 16, 4))
    assert found.shape == (2 * 2 * 2, 3 * 8 * 16 * 16)
    torch.testing.assert_close(found[1], clip[0, 1:9, :16, 16:].flatten())


def test_pca_is_the_best_projection() -> None:
    """What NumPy's singular values say."""
    footage, cell = Footage(None, batch=1), Cell(4, 8, 6)
    tests = torch.stack([footage.clip(number) for number in range(3)])
    found = by_pca(cell, tests, principal(cell, footage))
    seen = torch.cat([patches(footage.clip(number)[None], cell) for number in range(24)])[:600].double().numpy()
    mean = seen.mean(0)
    base = np.linalg.svd(seen - mean, full_matrices=False)[2][:6]
    wanted = patches(tests, cell).double().numpy()
    made = np.clip((wanted - mean) @ base.T @ base + mean, -1, 1)
    each = -10 * np.log10(np.square(made - wanted).reshape(3, -1).mean(1) / 4)
    np.testing.assert_allclose(found, each, atol=0.02)
    np.testing.assert_allclose(psnr(tests + 0.02, tests), 40, atol=0.1)


@pytest.mark.parametrize("cell", [Cell(4, 8, 6), Cell(8, 16, 12)])
def test_a_network_begins_as_pca_and_learns(cell: Cell) -> None:
    footage = Footage(None, batch=2)
    tests, known = footage.tests(), principal(cell, footage)
    network = compression.residual_network(cell, known)
    with torch.no_grad():
        begun = psnr(network(tests), tests)
    torch.testing.assert_close(begun, by_pca(cell, tests, known), rtol=0, atol=1e-2)
    objective = compression.ResidualObjective(network, footage)
    batch = objective.batch(0, Rng(0, 0), Portion())
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-3)
    values = []
    for _ in range(12):
        loss = objective.loss("autoencoder", batch, Rng(0, 0))
        loss.value.backward()
        optimiser.step()
        optimiser.zero_grad()
        values.append(loss.figures["psnr"])
        assert loss.figures["psnr"] == pytest.approx(-10 * float(loss.value.detach()))
    assert values[-1] > values[0] + 0.3


@pytest.mark.parametrize("kind", compression.KINDS)
def test_a_table_that_was_stopped_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compression, "CELLS", (Cell(4, 8, 4), Cell(8, 16, 4)))
    given = ["--out", str(tmp_path), "--steps", "2", "--cell", "0", "1", "--network", kind]
    assert compression.main(given) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| 4×8×8", "4"], ["| 8×16×16", "4"]]
    for name in ("by_nano", "by_hunyuan"):
        monkeypatch.setattr(compression, name, lambda *_: pytest.fail("trained again"))
    assert compression.main(given) == 0 and capsys.readouterr().out == said
    assert (tmp_path / "compression.svg").read_text().count("<polyline") == 6


def test_the_curve_holds_every_ratio() -> None:
    found = [Row(Cell(t, s, c), 30.0, 25.0, (5.0,), 9, 1.0) for t, s in compression.RATIOS for c in (4, 16)]
    drawn_curve = curve(found)
    assert all(f"{t}×{s}×{s}" in drawn_curve for t, s in compression.RATIOS) and "nan" not in drawn_curve
