"""Layouts are read, chosen and refused before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.parallel import demand_of
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.parallel.layout import AXES, Demand, Layout, check, choose, read, settle

LITE = Demand(heads=28, hidden=7168, tokens=31 * 16 * 24, is_guided=True)


def test_a_layout_is_its_text() -> None:
    for text in ("cfg=2,ulysses=2", "data=2,ring=3,tp=4", "ulysses=4,fsdp=4", "1"):
        assert str(read(text)) == text
    assert read(" ulysses = 2 , cfg=2") == Layout(cfg=2, ulysses=2)
    assert read("ring=3,ulysses=2,fsdp=6").size == 6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ulises=2", "ulises"),
        ("cfg", "cfg"),
        ("cfg=0", "cfg"),
        ("cfg=two", "cfg"),
        ("cfg=2,cfg=2", "each once"),
        ("", "each once"),
    ],
)
def test_a_layout_that_is_none_is_refused(text: str, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        read(text)


@given(
    world=st.integers(1, 64),
    heads=st.integers(1, 40),
    tokens=st.integers(1, 4000),
    is_guided=st.booleans(),
    is_sparse=st.booleans(),
)
def test_what_is_chosen_fits_or_is_refused(
    world: int, heads: int, tokens: int, is_guided: bool, is_sparse: bool
) -> None:
    demand = Demand(heads, 4 * heads, tokens, is_guided=is_guided, is_sparse=is_sparse)
    try:
        layout, why = choose(world, demand)
    except RequestError as error:
        assert f"{world} processes" in str(error)
        return
    check(layout, demand)
    assert layout.size == world and why
    assert (layout.cfg == 2) == (is_guided and world % 2 == 0)


def test_the_choice_for_the_released_models() -> None:
    assert str(choose(8, LITE)[0]) == "cfg=2,ulysses=4"
    assert str(choose(3, LITE)[0]) == "ulysses=3"  # 28 heads as 10, 9, 9
    flash = Demand(heads=48, hidden=12288, tokens=24 * 42)
    assert str(choose(8, flash)[0]) == "ulysses=8"
    few = Demand(heads=6, hidden=64, tokens=100)
    assert str(choose(4, few)[0]) == "ring=2,ulysses=2"  # a fourth process would hold one head, others two
    assert str(choose(4, Demand(heads=6, hidden=64, tokens=100, is_sparse=True))[0]) == "ulysses=4"


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("cfg=2", {}, "4 processes were started"),
        ("cfg=3", {}, "needs 3 processes"),
        ("cfg=4", {}, "two passes"),
        ("cfg=2,ulysses=2", {"is_guided": False}, "guidance is off"),
        ("tp=4", {"heads": 6}, "must divide 6 heads"),
        ("ulysses=4", {"heads": 3}, "3 at most"),
        ("ring=4", {"is_sparse": True}, "block-sparse"),
        ("ring=4", {"has_groups": True}, "groups"),
        ("ulysses=2,ring=2", {"tokens": 3}, "3 tokens"),
        ("cfg=2,ulysses=2,fsdp=4", {}, "fsdp"),
        ("data=4", {"clips": 3}, "must divide"),
        ("cfg=2,ulysses=2", {"has_tokens": False}, "a U-Net has no tokens or heads to share: use `cfg=2`"),
        ("tp=4", {"has_tokens": False, "is_guided": False}, "use one process, since guidance is off"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_in_one_line(text: str, changes: dict, words: str) -> None:
    import dataclasses

    with pytest.raises(RequestError, match=words) as refused:
        settle(text, 4, dataclasses.replace(LITE, **changes))
    assert "\n" not in str(refused.value)


def test_sharded_weights_bring_shared_tokens() -> None:
    assert settle("fsdp=4", 4, LITE)[0] == Layout(ulysses=4, fsdp=4)
    assert settle("cfg=2,fsdp=2", 4, LITE)[0] == Layout(cfg=2, ulysses=2, fsdp=2)


def test_a_request_says_what_there_is_to_split() -> None:
    card = catalogue.find("nano-t2v")
    resolved = resolve(Request(card.id, "a panda", seconds=1, seed=0), card)
    demand = demand_of(resolved, AttentionSpec())
    assert (demand.heads, demand.tokens, demand.is_guided) == (8, 4 * 6 * 6, True)
    card = catalogue.find("kandinsky4-t2v-flash")
    demand = demand_of(resolve(Request(card.id, "a panda", seed=0), card), AttentionSpec())
    width, height = map(int, card.clip.default_size.split("x"))
    assert (demand.heads, demand.tokens, demand.is_guided) == (48, width * height // 256, False)


def test_unets_share_passes_only() -> None:
    guided = demand_of(
        resolve(Request("kandinsky3.0", "a cat", seed=0), catalogue.find("kandinsky3.0")), AttentionSpec()
    )
    assert str(choose(2, guided)[0]) == "cfg=2"
    with pytest.raises(RequestError, match="4 processes are too many") as refused:
        choose(4, guided)
    assert refused.value.hint is not None and "--ray local" in refused.value.hint
    flash = catalogue.find("kandinsky3.1-flash")
    with pytest.raises(RequestError, match="one process, since guidance is off"):
        choose(2, demand_of(resolve(Request(flash.id, "a cat", seed=0), flash), AttentionSpec()))


def test_the_command_line_refuses_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a panda", "--parallel", "cfg=2,ulysses=2"]) == 2
    assert "torchrun --nproc-per-node 4" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "four")
    assert main(["generate", "a panda"]) == 2
    assert "WORLD_SIZE" in capsys.readouterr().err


def test_every_axis_is_an_axis_of_the_mesh_but_shards() -> None:
    assert {*AXES, "fsdp"} == {name for name in Layout.__slots__}


def test_layouts_need_no_torch() -> None:
    code = "import sys, kandinsky.engine.parallel, kandinsky.runtime.parallel.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
