"""Soups of models and of LoRAs, and LoRAs extracted from two models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky.cli.main import main
from kandinsky.errors import RequestError, WeightsError
from kandinsky.ops.lora import layer_shapes
from kandinsky.weights import soup
from kandinsky.weights.lora import Lora, read_lora, write_lora
from tiny import family
from tiny.loras import lora

LAYERS = layer_shapes(family.dit())


def models(folder: Path, count: int, dtype: torch.dtype = torch.float32) -> list[Path]:
    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        state = {
            name: (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in family.dit().state_dict().items()
        }
        paths.append(folder / f"m{number}.safetensors")
        save_file(state | {"steps": torch.tensor([7])}, paths[-1])
    return paths


def loras(folder: Path, count: int, **more: object) -> list[Path]:
    paths = []
    for number in range(count):
        one = lora(family.dit(), rank=2 + number, seed=number, scale=0.5 + number, trigger=f"w{number} ", **more)  # type: ignore[arg-type]
        write_lora(one, folder / f"l{number}")
        paths.append(folder / f"l{number}")
    return paths


def change(one: Lora) -> dict[str, Tensor]:
    return {name: u.scale * (u.up_OR.double() @ u.down_RI.double()) for name, u in one.updates.items()}


def read(path: Path) -> Lora:
    return read_lora(path, LAYERS, model="tiny")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [1 / 3] * 3),
        (["--weights", "0.2,1.3,-0.5"], [0.2, 1.3, -0.5]),
        (["--weights", "size", "--sizes", "1,3,4"], [0.125, 0.375, 0.5]),
        (["--weights", "sqrt", "--sizes", "1,9,16"], [0.125, 0.375, 0.5]),
    ],
)
def test_models_are_averaged(
    words: list[str], expected: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = models(tmp_path, 3)
    out = tmp_path / "soup.safetensors"
    assert main(["soup", *map(str, paths), "-o", str(out), *words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    states = [load_file(path) for path in paths]
    found = load_file(out)
    assert list(found) == list(states[0])
    for name, tensor in found.items():
        if tensor.is_floating_point():
            wanted = sum(w * state[name].double() for w, state in zip(expected, states, strict=True))
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, states[0][name])
    with safe_open(out, "pt") as opened:
        told = json.loads(opened.metadata()["soup"])
    assert [one["file"] for one in told] == [path.name for path in paths]
    assert [one["weight"] for one in told] == pytest.approx(expected) and all(len(one["sha256"]) == 64 for one in told)


def test_the_type_is_the_first_models_or_the_given_one(tmp_path: Path) -> None:
    paths = models(tmp_path, 2, torch.bfloat16)
    for dtype, wanted in ((None, torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        out = soup.make(paths, tmp_path / "s.safetensors", dtype=dtype)
        assert {t.dtype for t in load_file(out).values()} == {wanted, torch.int64}
    states = [load_file(path) for path in paths]
    exact = {name: (tensor.float() + states[1][name].float()) / 2 for name, tensor in states[0].items()}
    again = load_file(soup.make(paths, tmp_path / "s.safetensors", dtype="float32"))
    assert all(torch.equal(again[name], tensor) for name, tensor in exact.items() if name != "steps")


def test_a_model_with_itself_is_the_model(tmp_path: Path) -> None:
    (path,) = models(tmp_path, 1, torch.bfloat16)
    found = load_file(soup.make([path, path], tmp_path / "s.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in load_file(path).items())


def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    paths = models(tmp_path, 2)
    state = load_file(paths[0])
    name = "visual_transformer_blocks.0.feed_forward.in_layer.weight"
    odd = tmp_path / "odd.safetensors"
    for wrong, said in (
        ({k: v for k, v in state.items() if k != name}, rf"`{name}` of .*m0.* is not in .*odd"),
        (state | {"more": torch.zeros(1)}, r"`more` of .*odd.* is not in .*m0"),
        (state | {name: state[name][:1].clone()}, rf"`{name}` has shape .*m0.* and .*odd"),
        (state | {name: state[name].int()}, rf"`{name}` holds another kind of numbers in .*odd"),
        (state | {"steps": torch.tensor([8])}, r"`steps` of whole numbers is another one in .*odd"),
        (state | {name: state[name] * float("nan")}, rf"`{name}` is not finite"),
    ):
        save_file(wrong, odd)
        with pytest.raises(WeightsError, match=said):
            soup.make([paths[0], odd], tmp_path / "s.safetensors")
        assert not (tmp_path / "s.safetensors").exists() and not list(tmp_path.glob("*part*"))
    with pytest.raises(WeightsError, match="is no LoRA, but others are"):
        soup.make([*loras(tmp_path, 1), paths[0]], tmp_path / "s.safetensors")
    with pytest.raises(WeightsError, match="is not there"):
        soup.make([paths[0], tmp_path / "absent"], tmp_path / "s.safetensors")
    odd.write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="odd"):
        soup.make([paths[0], odd], tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "0.5,0.6"], "add up to 1.1"),
        (["--weights", "0.5"], "1 weights for 2 models"),
        (["--weights", "nan,1"], "give finite numbers"),
        (["--weights", "cube"], "`cube` are unknown"),
        (["--weights", "size"], "needs the size"),
        (["--sizes", "1,2"], "takes no sizes"),
        (["--weights", "sqrt", "--sizes", "1,-2"], "from 0 on"),
        (["--weights", "size", "--sizes", "0,0"], "are 0"),
        (["--weights", "a,b"], "with commas"),
        (["--dtype", "int8"], "type `int8`"),
        (["--rank", "0"], "use 1 or more"),
        (["--rank", "4"], "for LoRAs"),
    ],
)
def test_a_wrong_soup_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = models(tmp_path, 2)
    assert main(["soup", *map(str, paths), "-o", str(tmp_path / "s.safetensors"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("rank", [None, 3, 50])
def test_loras_are_averaged_as_changes(rank: int | None, tmp_path: Path) -> None:
    paths = loras(tmp_path, 3)
    weights = [0.5, 0.3, 0.4]
    written = soup.make(paths, tmp_path / "soup", weights=weights, rank=rank)
    assert written == tmp_path / "soup" / "lora.safetensors"
    found, parts = read(written.parent), [change(read(path)) for path in paths]
    assert found.trigger == "w0 w1 w2 "
    for name, tensor in change(found).items():
        dense = sum(w * part[name] for w, part in zip(weights, parts, strict=True))
        assert isinstance(dense, Tensor)
        if rank == 3:
            u, s, v = torch.linalg.svd(dense, full_matrices=False)
            dense = (u[:, :3] * s[:3]) @ v[:3]
        torch.testing.assert_close(tensor, dense, rtol=1e-4, atol=1e-4)
        assert found.updates[name].rank == (3 if rank == 3 else 9)
    single = soup.make(paths, tmp_path / "one.safetensors", weights=weights, rank=rank)
    for name, tensor in change(read(single)).items():
        torch.testing.assert_close(tensor, change(found)[name], rtol=1e-4, atol=1e-4)


def test_loras_of_different_layers_add_up(tmp_path: Path) -> None:
    net = family.dit()
    for part in ("self_attention", "feed_forward"):
        write_lora(lora(net, only=part), tmp_path / part)
    found = change(read(soup.make([tmp_path / "self_attention", tmp_path / "feed_forward"], tmp_path / "soup").parent))
    whole = change(read(tmp_path / "self_attention")) | change(read(tmp_path / "feed_forward"))
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor / 2, rtol=1e-5, atol=1e-6)


def test_loras_of_other_models_are_not_mixed(tmp_path: Path) -> None:
    layer = next(iter(LAYERS))
    paths = []
    for number, width in enumerate((32, 64)):
        state = {
            f"transformer.{layer}.lora_A.weight": torch.ones(2, width),
            f"transformer.{layer}.lora_B.weight": torch.ones(32, 2),
        }
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(state, paths[-1])
    with pytest.raises(WeightsError, match=f"`{layer}` in .*1.safetensors.* another shape"):
        soup.make(paths, tmp_path / "s")
    flat = write_lora(lora(family.dit()), tmp_path / "flat.safetensors", style="kohya")
    with pytest.raises(WeightsError, match="say which model"):
        soup.make([flat, flat], tmp_path / "s")
    soup.make([flat, flat], tmp_path / "s", layers=LAYERS)
    for name, tensor in change(read(tmp_path / "s")).items():
        torch.testing.assert_close(tensor, change(read(flat))[name], rtol=1e-5, atol=1e-6)


def test_doras_need_their_model(tmp_path: Path) -> None:
    from dataclasses import replace

    (base,) = models(tmp_path, 1)
    state, plain = load_file(base), lora(family.dit())
    updates = {n: replace(u, magnitude_O=state[f"{n}.weight"].norm(dim=1) * 1.1) for n, u in plain.updates.items()}
    write_lora(Lora(updates), tmp_path / "dora")
    with pytest.raises(RequestError, match="need"):
        soup.make([tmp_path / "dora"] * 2, tmp_path / "s")
    soup.make([tmp_path / "dora"] * 2, tmp_path / "s", base=base, rank=1000)
    for name, tensor in change(read(tmp_path / "s")).items():
        weight = state[f"{name}.weight"]
        torch.testing.assert_close(tensor.float(), updates[name].added_to(weight) - weight, rtol=1e-3, atol=1e-3)


def test_a_lora_is_extracted_from_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base,) = models(tmp_path, 1)
    state, one = load_file(base), lora(family.dit(), rank=3)
    tuned = {name: tensor.clone() for name, tensor in state.items()}
    for name, delta in change(one).items():
        tuned[f"{name}.weight"] += delta.float()
    save_file(tuned, tmp_path / "tuned.safetensors")
    words = [
        "extract",
        str(base),
        str(tmp_path / "tuned.safetensors"),
        "-o",
        str(tmp_path / "out"),
        "--dtype",
        "float32",
    ]
    assert main([*words, "--rank", "3"]) == 0
    assert "keeps 100.0%" in capsys.readouterr().err
    for name, delta in change(read(tmp_path / "out")).items():
        torch.testing.assert_close(delta, change(one)[name], rtol=1e-3, atol=1e-4)
    _, kept = soup.extract(base, tmp_path / "tuned.safetensors", tmp_path / "low", rank=1)
    assert 0.3 < kept < 0.95
    with pytest.raises(RequestError, match="nothing to extract"):
        soup.extract(base, base, tmp_path / "none")
    tuned = load_file(tmp_path / "tuned.safetensors")
    name = next(name for name, tensor in tuned.items() if tensor.dim() == 2)
    for value, dtype, said in ((math.nan, "float32", "NaN"), (1e12, "float16", "too large for float16")):
        save_file(tuned | {name: torch.full_like(tuned[name], value)}, tmp_path / "broken.safetensors")
        with pytest.raises(WeightsError, match=said):
            soup.extract(base, tmp_path / "broken.safetensors", tmp_path / "none", dtype=dtype)
        assert not (tmp_path / "none").exists()
    with pytest.raises(RequestError, match="rank 0"):
        soup.extract(base, base, tmp_path / "none", rank=0)


def test_large_matrices_are_decomposed_near_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.tensor([2.0 ** -(i / 2) for i in range(300)])
    u, _ = torch.linalg.qr(torch.randn(400, 300, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(500, 300, generator=generator))
    matrix = (u * spectrum) @ v.mT
    down, up = soup.factors(matrix, 8)
    best = spectrum[8:].norm()
    assert (matrix - up @ down).norm() < 1.001 * best
    assert math.isclose(float((up @ down).norm()), float(spectrum[:8].norm()), rel_tol=1e-4)
