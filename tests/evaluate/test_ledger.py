"""The ledger's lines, and what bench counts."""

import math
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.bench import ledger, timing
from kandinsky.bench.flops import count_flops
from kandinsky.bench.ledger import Variation
from kandinsky.errors import RequestError
from kandinsky.ops.linear import linear

PROCESSOR = torch.device("cpu")


@pytest.fixture(scope="module")
def found() -> ledger.Ledger:
    """A ledger of stills of the shipped model."""
    variations = (
        Variation("nothing changed"),
        Variation("taylor", load={"cache": "taylor:order=0,first=1"}),
        Variation("half", request={"steps": 0.5}),
        Variation("other scale", sampling={"rope_scale": (1.0, 1.0, 1.0)}),
        Variation("unknown", load={"warp_drive": True}),
    )
    request = {"steps": 6, "seconds": 0}
    return ledger.measure(
        "nano-t2v", variations=variations, prompts=["a cat", "a dog"], request=request, repeats=2, device="cpu"
    )


@pytest.mark.slow
def test_the_exact_run_stands_first_and_is_exact(found: ledger.Ledger) -> None:
    exact, same = found.lines[:2]
    assert exact.name == "exact" and exact.speedup == 1.0
    for line in (exact, same):
        assert (line.latent_error, line.psnr_db, line.left_out) == (0.0, None, None) and len(line.seconds) == 2


@pytest.mark.slow
def test_each_variation_has_speed_and_distance(found: ledger.Ledger) -> None:
    lines = {line.name: line for line in found.lines}
    assert lines["taylor"].left_out == pytest.approx(2 / 6)
    for name in ("taylor", "half", "other scale"):
        line = lines[name]
        assert line.speedup > 0 and line.latent_error > 0 and line.psnr_db is not None and line.peak_bytes > 0
    assert "2 prompts, 2 repeats" in found.setting and "6 steps" in found.setting


def test_what_is_not_here_says_why(found: ledger.Ledger) -> None:
    lines = {line.name: line for line in found.lines}
    assert "warp_drive" in lines["unknown"].reason and not lines["unknown"].seconds
    text = ledger.table(found)
    assert "not here: unknown option `warp_drive`" in text
    assert len(text.splitlines()) == 2 + len(found.lines)


def test_shipped_variations_are_data_that_load_knows() -> None:
    names = [variation.name for variation in ledger.VARIATIONS]
    assert len(set(names)) == len(names) and {"cache=magcache", "cache=first-block", "cache=taylor"} <= set(names)


def test_distances() -> None:
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert ledger.psnr([black], [black]) is None
    assert ledger.psnr([black, grey], [grey, grey]) == pytest.approx(20 * math.log10(5))
    ones = torch.ones(1, 2, 2, 2, 2)
    assert ledger.latent_error([ones * 1.5, ones], [ones, ones]) == pytest.approx(0.25)


def test_rounds_are_interleaved_and_compared_within_a_round() -> None:
    order: list[str] = []
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or "made"}
    seen: list[tuple[int, int]] = []
    timings = timing.interleaved(
        works, repeats=3, device=PROCESSOR, on_run=lambda done, total: seen.append((done, total))
    )
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"] and seen[-1] == (8, 8)
    assert timings["b"].result == "made" and len(timings["a"].seconds) == 3
    assert timing.ratio((1.0, 10.0, 4.0), (2.0, 20.0, 2.0)) == 0.5
    with pytest.raises(RequestError, match="`0` repeats"):
        timing.interleaved(works, repeats=0, device=PROCESSOR)


def test_products_of_either_library_are_counted() -> None:
    x, weight = torch.ones(2, 5, 8), torch.ones(3, 8)
    for inference in (False, True):
        with torch.inference_mode(inference):
            assert count_flops(lambda: linear(x, weight)) == 2 * 2 * 5 * 8 * 3


def test_peak_memory_is_counted_anew() -> None:
    timing.forget_peak(PROCESSOR)
    before = timing.peak_bytes(PROCESSOR)
    # pages of the system's own: an allocation may take what a long process has freed, and the peak would not move
    with mmap.mmap(-1, 2**27) as block:
        block.write(b"x" * 2**27)
        assert timing.peak_bytes(PROCESSOR) >= before + 2**26
    if Path("/proc/self/clear_refs").exists():
        timing.forget_peak(PROCESSOR)
        assert timing.peak_bytes(PROCESSOR) < before + 2**26
