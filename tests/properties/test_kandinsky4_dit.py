"""Groups, packs of clips and angles of the Kandinsky 4 transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky4 import dit as kandinsky4
from kandinsky.families.kandinsky4.denoiser import DiscreteDenoiser
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams, from_groups, to_groups
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.weights.read import load_into
from kandinsky.weights.write import write_state
from tiny.family import randomise

PARAMS = {
    "in_visual_dim": 3,
    "out_visual_dim": 3,
    "in_text_dim": 7,
    "time_dim": 12,
    "model_dim": 24,
    "ff_dim": 20,
    "num_blocks": 2,
    "axes_dims": [4, 4, 4],
}
L = 5
quick = settings(max_examples=25)


def net(**changes: object) -> DiffusionTransformer3D:
    made = randomise(DiffusionTransformer3D(DiTParams.from_dict(PARAMS | changes)), scale=0.3)
    return made.requires_grad_(False)  # type: ignore[return-value]


def inputs(frames: list[int], rows: int = 8, columns: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, TextEmbeddings]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = randn(len(frames), L, 7)
    times = torch.arange(len(frames)) * 250 + 249
    return randn(sum(frames), rows, columns, 3), times, TextEmbeddings(text, text.new_zeros(len(frames), 0))


def one(text: TextEmbeddings, number: int) -> TextEmbeddings:
    return TextEmbeddings(text.tokens_BLC[number : number + 1], text.pooled_BC[number : number + 1])


@quick
@given(frames=st.integers(1, 3), gh=st.integers(1, 3), gw=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 3))
def test_groups_hold_the_tokens_they_should(frames: int, gh: int, gw: int, h: int, w: int) -> None:
    rows, columns = gh * h, gw * w
    grid = torch.arange(2 * frames * rows * columns).view(2, frames, rows, columns, 1)
    local, strided = to_groups(grid, (1, gh, gw), "local"), to_groups(grid, (1, gh, gw), "global")
    for i in range(gh):
        for j in range(gw):
            window = grid[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
            assert torch.equal(local[:, i * gw + j], window.flatten(1, 3))
            assert torch.equal(strided[:, i * gw + j], grid[:, :, i::gh, j::gw].flatten(1, 3))
    for made, kind in ((local, "local"), (strided, "global")):
        assert torch.equal(from_groups(made, (frames, rows, columns), (1, gh, gw), kind), grid)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [(1, 2, 2), (1, 1, 4), (1, 4, 2)])
def test_attention_in_groups_is_attention_of_each_group(
    groups: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop over groups, written plainly."""
    dit = net()
    x, times, text = inputs([3, 3], 16, 8)
    together = dit(x, times, text, frames=[3, 3], groups=groups)

    def plainly(visual, own, mask_BL, where, kind):  # type: ignore[no-untyped-def]
        grids = [torch.empty_like(visual[0])]
        heard = None
        B, T, H, W = visual[0].shape[:4]
        _, gh, gw = where.groups
        for b in range(B):
            for i in range(gh):
                for j in range(gw):
                    if kind == "local":
                        rows, columns = range(i * H // gh, (i + 1) * H // gh), range(j * W // gw, (j + 1) * W // gw)
                    else:
                        rows, columns = range(i, H, gh), range(j, W, gw)
                    places = [(t, r, c) for t in range(T) for r in rows for c in columns]
                    index = torch.tensor(places).unbind(1)
                    q, k, v = (torch.cat((part[b][index], other[b])) for part, other in zip(visual, own, strict=True))
                    scores = torch.einsum("snk,lnk->nsl", q, k) / q.shape[-1] ** 0.5
                    mixed = torch.einsum("nsl,lnk->snk", scores.softmax(-1), v)
                    grids[0][(b, *index)] = mixed[: len(places)]
                    if i == j == 0:
                        answer = mixed[len(places) :][None]
                        heard = answer if heard is None else torch.cat((heard, answer))
        return grids[0], heard

    monkeypatch.setattr(kandinsky4, "_attend", plainly)
    torch.testing.assert_close(together, dit(x, times, text, frames=[3, 3], groups=groups), rtol=1e-4, atol=1e-5)


def test_groups_change_the_result_and_kinds_differ() -> None:
    dit = net()
    x, times, text = inputs([2])
    whole = dit(x, times, text, frames=[2])
    grouped = dit(x, times, text, frames=[2], groups=(1, 2, 2))
    assert (whole - grouped).abs().max() > 1e-3
    for block in dit.blocks():
        block.kind = "local"
    assert (dit(x, times, text, frames=[2], groups=(1, 2, 2)) - grouped).abs().max() > 1e-3
    torch.testing.assert_close(dit(x, times, text, frames=[2]), whole)


@pytest.mark.parametrize("groups", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("frames", [[2, 2], [3, 1, 3], [1, 4, 2]])
def test_a_pack_is_its_clips_one_by_one(frames: list[int], groups: tuple[int, int, int]) -> None:
    dit = net()
    x, times, text = inputs(frames)
    packed = dit(x, times, text, frames=frames, groups=groups).split(frames)
    for i, (clip, count) in enumerate(zip(x.split(frames), frames, strict=True)):
        alone = dit(clip, times[i : i + 1], one(text, i), frames=[count], groups=groups)
        torch.testing.assert_close(packed[i], alone, rtol=1e-4, atol=1e-5)


def test_hidden_text_counts_for_nothing() -> None:
    dit = net()
    x, times, text = inputs([2, 1])
    mask = torch.tensor([[True] * L, [True] * 3 + [False] * (L - 3)])
    masked = dit(x, times, TextEmbeddings(text.tokens_BLC, text.pooled_BC, mask), frames=[2, 1])
    short = TextEmbeddings(text.tokens_BLC[1:, :3], text.pooled_BC[1:])
    torch.testing.assert_close(masked[2:], dit(x[2:], times[1:], short, frames=[1]), rtol=1e-4, atol=1e-5)
    assert (masked[2:] - dit(x, times, text, frames=[2, 1])[2:]).abs().max() > 1e-3


def test_gradients_reach_every_parameter() -> None:
    dit = net().requires_grad_(True)
    x, times, text = inputs([2, 1])
    dit(x, times, text, frames=[2, 1], groups=(1, 2, 2)).square().sum().backward()
    # in the last block too, whose text is thrown away: it is keys and values before
    assert all(p.grad is not None for p in dit.parameters())


def test_angles_are_stored_rounded_or_exact() -> None:
    x, times, text = inputs([3], 40, 8)
    exact, rounded = net(rope_angles="exact"), net(rope_angles="bfloat16")
    stored = net()
    a, b = exact(x, times, text, frames=[3]), rounded(x, times, text, frames=[3])
    assert (a - b).abs().max() > 1e-4
    assert torch.equal(stored(x, times, text, frames=[3]), a)
    for table in stored.rope_embeddings.buffers():
        table.copy_(table.bfloat16())
    assert torch.equal(stored(x, times, text, frames=[3]), b)


@pytest.mark.parametrize("leave_out", [(), ("args_1",), ("args_0", "args_1", "args_2")])
def test_a_file_may_leave_the_angles_out(tmp_path: Path, leave_out: tuple[str, ...]) -> None:
    source = net()
    state = {name: t for name, t in source.state_dict().items() if not name.endswith(leave_out or ("nothing",))}
    write_state(state, tmp_path / "w.safetensors")
    with torch.device("meta"):
        target = DiffusionTransformer3D(source.params)
    load_into(target, tmp_path / "w.safetensors")
    x, times, text = inputs([2])
    torch.testing.assert_close(target(x, times, text, frames=[2]), source(x, times, text, frames=[2]))
    assert torch.equal(target.rope_embeddings.get_buffer("args_1"), source.rope_embeddings.get_buffer("args_1"))


def test_nothing_else_may_be_left_out(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["transformer_blocks.1.0.self_attention.key_norm.bias"]
    write_state(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"transformer_blocks\.1\.0\.self_attention\.key_norm\.bias"):
        load_into(net(), tmp_path / "w.safetensors")


def test_blocks_go_through_a_runner() -> None:
    dit = net()
    x, _, text = inputs([2])
    seen = []

    def runner(tokens: Tensor, count: int, run):  # type: ignore[no-untyped-def]
        for number in range(count):
            seen.append(number)
            tokens = run(number, tokens)
        return tokens

    denoiser = DiscreteDenoiser(dit, text, runner=runner)
    v = denoiser(x[None], torch.tensor(0.25))
    assert seen == [0, 1, 2, 3] and v.shape == (1, 2, 8, 8, 3)
    torch.testing.assert_close(v[0], dit(x, torch.tensor([249]), text, frames=[2]))


def test_smaller_type_stays_near() -> None:
    x, times, text = inputs([2])
    wide, narrow = net(rope_angles="bfloat16"), net(rope_angles="bfloat16").bfloat16()
    a, b = (n(x, times, text, frames=[2], groups=(1, 2, 2)) for n in (wide, narrow))
    assert b.dtype is torch.bfloat16
    assert (a - b.float()).abs().mean() < 0.03 * a.abs().mean()


def test_condition_channels() -> None:
    dit = net(visual_cond=True)
    x, _, text = inputs([2])
    plain = DiscreteDenoiser(dit, text)(x[None], torch.tensor(1.0))
    marked = torch.zeros(1, 2, 8, 8, 4)
    marked[:, 0, ..., -1] = 1
    shown = DiscreteDenoiser(dit, text, condition_BTHWC=marked)(x[None], torch.tensor(1.0))
    assert plain.shape == shown.shape and (plain - shown).abs().max() > 1e-3
    with pytest.raises(RequestError, match="cannot take an image"):
        DiscreteDenoiser(net(), text, condition_BTHWC=marked)(x[None], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"groups": (2, 1, 1)}, "num_groups"),
        ({"groups": (1, 0, 1)}, "num_groups"),
        ({"groups": (1, 3, 1)}, "cannot be cut into 3 x 1 groups"),
        ({"frames": [1]}, "do not fit 2 frames"),
        ({"frames": [1, 1]}, "do not fit 2 frames"),
        ({"attention": AttentionSpec(type="nabla")}, "is not for Kandinsky 4"),
    ],
)
def test_impossible_calls(call: dict, message: str) -> None:
    x, times, text = inputs([2])
    with pytest.raises(RequestError, match=message):
        net()(x, times, text, **({"frames": [2]} | call))


def test_positions_end_at_128() -> None:
    x, times, text = inputs([129], 2, 2)
    with pytest.raises(RequestError, match="128 at most"):
        net()(x, times, text, frames=[129])


@pytest.mark.parametrize(
    "wrong",
    [
        {"axes_dims": [4, 4]},
        {"axes_dims": [3, 5, 4]},
        {"model_dim": 25},
        {"rope_angles": "other"},
        {"num_groups": [2, 1, 1]},
        {"patch_size": [2, 2, 2]},
        {"num_block": 3},
    ],
)
def test_impossible_parameters(wrong: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        DiTParams.from_dict(PARAMS | wrong)
