"""Control and reference branches beside tiny networks of Kandinsky 5 and 4: from the request to the latent."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky import Control, Reference, Video, catalogue
from kandinsky.engine import stages
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.plan import plan_resolved
from kandinsky.engine.request import resolve
from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.media import recipe as recipes
from kandinsky.model.values import Request
from kandinsky.train import branch
from kandinsky.train.branch import BranchSettings
from kandinsky.weights import branch_files
from kandinsky.weights.branch_files import BranchFile, is_branch, read_branch
from tiny import family, kandinsky4

FAMILIES = ("t2v", "k4")
KINDS = ("control", "reference")
SMALL = {"slim": ("control", {"slim": 8}), "rotary": ("reference", {"rotary": True})}  # those whose files are small
FRAMES = 9


def clip(frames: int = FRAMES, fps: float = 24.0, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Video:
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / 20
    waves = [np.stack([np.sin(x + t / 4 + seed), np.cos(y - t / 5), np.sin(x * y + seed)], -1) for t in range(frames)]
    return Video(np.where(np.stack(waves) > 0, 230, 20).astype(np.uint8), fps)


@pytest.fixture(scope="module")
def places(folder_of: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each model is built, by family."""
    folder = kandinsky4.write(tmp_path_factory.mktemp("k4") / "all")
    official = folder_of("t2v", "official")

    def k5(**options: Any) -> GenerationPipeline:
        pipe = kandinsky.load(official, device="cpu", **options)
        sizes = dataclasses.replace(pipe.card.clip, sizes=("64x64",), default_size="64x64")
        pipe.card = dataclasses.replace(pipe.card, clip=sizes)
        return pipe

    def k4(**options: Any) -> GenerationPipeline:
        card = catalogue.read(folder / "cards" / "tiny.toml")
        card = dataclasses.replace(card, clip=dataclasses.replace(card.clip, sizes=("64x64",), default_size="64x64"))
        return GenerationPipeline(build(card, RunOptions(device="cpu", **options), root=folder / "weights"))

    return {"t2v": k5, "k4": k4}


@pytest.fixture(scope="module")
def pipes(places: dict[str, Any]) -> dict[str, GenerationPipeline]:
    return {name: make() for name, make in places.items()}


def settings_of(kind: str, **more: Any) -> BranchSettings:
    return BranchSettings(kind=kind, blocks=2, width=16, head_dim=8, dtype="float32", **more)


@pytest.fixture(scope="module")
def files(
    pipes: dict[str, GenerationPipeline], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """(family, kind) → a branch with random weights; (family, kind + "-new") → one as it is made."""
    made = {}
    for name, pipe in pipes.items():
        for kind in KINDS:
            for state in ("", "-new"):
                module = branch.built(settings_of(kind), pipe.card)
                if not state:
                    family.randomise(module, seed=5, scale=0.3)
                weights = {f"branch.{key}": tensor for key, tensor in module.state_dict().items()}
                folder = tmp_path_factory.mktemp(f"{name}-{kind}{state}")
                made[name, kind + state] = branch.write(weights, settings_of(kind), pipe.card, folder)
        for small, (kind, more) in SMALL.items():
            for state in ("", "-new"):
                settings = settings_of(kind, **more)
                module = branch.built(settings, pipe.card)
                if not state:
                    family.randomise(module, seed=5, scale=0.3)
                weights = {f"branch.{key}": tensor for key, tensor in module.state_dict().items()}
                folder = tmp_path_factory.mktemp(f"{name}-{small}{state}")
                made[name, small + state] = branch.write(weights, settings, pipe.card, folder)
    return made


def job_of(pipe: GenerationPipeline, **changes: Any):
    values = {"seconds": FRAMES / pipe.card.clip.fps, "steps": 2, "seed": 7, "width": 64, "height": 64} | changes
    return pipe.resolve(Request(pipe.card.id, values.pop("prompt", "a cat in a red hat"), **values))


def latents(pipe: GenerationPipeline, *batch: Any) -> torch.Tensor:
    text, negative = pipe.encode(batch)
    known, noise, fresh = pipe.known(batch), pipe.noise(batch), pipe.fresh_noise(batch)
    return pipe.sample(noise, text, negative, batch[0], known=known, fresh_NBTHWC=fresh)


def told(kind: str, pipe: GenerationPipeline, file: Path, seed: int = 0, **more: Any) -> dict[str, Any]:
    given = clip(fps=pipe.card.clip.fps, seed=seed)
    data = given if kind == "control" else given[2]
    make: Any = Control if kind == "control" else Reference
    return {"conditions": [make(data, branch=file, **more)]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_branch_changes_no_bit_and_a_trained_one_does(pipes, files, name: str, kind: str) -> None:
    pipe = pipes[name]
    plain = latents(pipe, job_of(pipe))
    assert torch.equal(latents(pipe, job_of(pipe, **told(kind, pipe, files[name, f"{kind}-new"]))), plain)
    trained = latents(pipe, job_of(pipe, **told(kind, pipe, files[name, kind])))
    assert not torch.allclose(trained, plain, atol=1e-3)
    other = latents(pipe, job_of(pipe, **told(kind, pipe, files[name, kind], seed=2)))
    assert not torch.allclose(trained, other, atol=1e-4)  # what it is told matters
    # strength: none is the model itself, and more is more
    off = latents(pipe, job_of(pipe, **told(kind, pipe, files[name, kind], strength=0.0)))
    half = latents(pipe, job_of(pipe, **told(kind, pipe, files[name, kind], strength=0.1)))
    assert torch.equal(off, plain) and (half - plain).norm() < (trained - plain).norm()


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("name", FAMILIES)
def test_small_branches_begin_silent_and_follow_what_they_are_told(pipes, places, files, name: str, small: str) -> None:
    pipe, kind = pipes[name], SMALL[small][0]
    plain = latents(pipe, job_of(pipe))
    assert torch.equal(latents(pipe, job_of(pipe, **told(kind, pipe, files[name, f"{small}-new"]))), plain)
    trained, other = (latents(pipe, job_of(pipe, **told(kind, pipe, files[name, small], seed=n))) for n in (0, 2))
    assert not torch.allclose(trained, plain, atol=1e-3) and not torch.allclose(trained, other, atol=1e-4)
    moved = places[name](offload="block")
    assert torch.equal(latents(moved, job_of(moved, **told(kind, moved, files[name, small]))), trained)
    if kind == "control":
        assert files[name, small].stat().st_size < 0.5 * files[name, kind].stat().st_size


def test_a_turned_reference_looks_at_the_same_place_first() -> None:
    """Before it is trained, what a token gets of the image is mostly what the image shows where the token lies."""
    from kandinsky.families.parts.branch_params import ReferenceParams
    from kandinsky.families.parts.branches import ImageAttention
    from kandinsky.families.parts.branches import places as places_of

    params = ReferenceParams(width=64, head_dim=32, rotary=True)
    layer = ImageAttention(16, params)
    with torch.no_grad():
        layer.to_value.weight.copy_(torch.eye(64))
        layer.to_value.bias.zero_()
        layer.out_layer.weight.copy_(torch.eye(16, 64))
        angles = places_of(4, 6, 8, torch.device("cpu")).flatten(1, 3)
        image = torch.zeros(1, 24, 64)
        image[0, 9] = 1.0  # the second row, the fourth column
        out = layer(torch.zeros(1, 48, 16), image, (angles.repeat(1, 2, 1), angles))[0, :, 0]
    assert out.view(2, 24).argmax(1).tolist() == [9, 9]  # in both frames
    assert out[9] > 0.3 and out[9] > 4 * out[[n for n in range(24) if n != 9]].max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_batches_and_placements(pipes, places, files, name: str, kind: str) -> None:
    pipe, file = pipes[name], files[name, kind]
    whole = job_of(pipe, **told(kind, pipe, file))
    alone = latents(pipe, whole)
    assert torch.equal(latents(pipe, job_of(pipe, **told(kind, pipe, file, steps="0:1"))), alone)
    begun = latents(pipe, job_of(pipe, **told(kind, pipe, file, steps="0:0.5")))
    ended = latents(pipe, job_of(pipe, **told(kind, pipe, file, steps="0.5:1")))
    plain = latents(pipe, job_of(pipe))
    assert all(not torch.equal(a, b) for a, b in ((begun, alone), (begun, plain), (ended, begun), (ended, plain)))
    # a batch, each clip with a control of its own
    other = job_of(pipe, **told(kind, pipe, file, seed=3), prompt="a dog")
    both = latents(pipe, whole, other)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1:], latents(pipe, other), rtol=1e-4, atol=1e-4)
    for offload in ("module", "block"):
        moved = places[name](offload=offload)
        assert torch.equal(latents(moved, job_of(moved, **told(kind, moved, file))), alone)


@pytest.mark.parametrize("cache", ["first-block:threshold=0.5", "taylor:interval=2,order=1"])
@pytest.mark.parametrize("name", FAMILIES)
def test_step_caches_keep_the_branch(pipes, files, name: str, cache: str) -> None:
    pipe = pipes[name]
    more = told("control", pipe, files[name, "control"])
    if cache.startswith("first-block"):  # nothing is near enough to be skipped: the exact result
        exact = latents(pipe, job_of(pipe, steps=4, **more))
        cached = latents(pipe, job_of(pipe, steps=4, cache="first-block:threshold=0.000001", **more))
        torch.testing.assert_close(cached, exact, rtol=1e-4, atol=1e-4)
    cached = latents(pipe, job_of(pipe, steps=4, cache=cache, **more))
    assert not torch.allclose(cached, latents(pipe, job_of(pipe, steps=4, cache=cache)), atol=1e-3)


def test_guidance_strengthens_a_reference_and_holds_both_passes_to_a_control(pipes, files) -> None:
    pipe = pipes["t2v"]
    for kind in KINDS:
        more = told(kind, pipe, files["t2v", kind])
        guided = latents(pipe, job_of(pipe, steps=1, guidance=3.0, negative_prompt="ugly", **more))
        with_it = latents(pipe, job_of(pipe, steps=1, guidance=1.0, **more))
        without = latents(
            pipe, job_of(pipe, steps=1, guidance=1.0, prompt="ugly", **(more if kind == "control" else {}))
        )
        torch.testing.assert_close(guided, without + 3.0 * (with_it - without), rtol=1e-3, atol=1e-3)


def test_control_and_reference_work_together_and_an_image_is_held(pipes, files) -> None:
    pipe = pipes["t2v"]
    control, reference = files["t2v", "control"], files["t2v", "reference"]
    given = clip()
    both = job_of(pipe, control=given, reference=given[3], branch=[control, reference], control_strength=0.8)
    assert [one.kind for one in both.conditions] == ["control", "reference"]
    assert torch.isfinite(latents(pipe, both)).all()
    still = job_of(pipe, control=given[0], branch=control)
    held = job_of(pipe, control=Video(np.stack([given[0]] * FRAMES), 24.0), branch=control)
    assert torch.equal(latents(pipe, still), latents(pipe, held))
    # a control that shows its edges already is taken as it is
    as_map = job_of(pipe, conditions=[Control(given, branch=control, is_map=True)])
    assert not torch.equal(latents(pipe, as_map), latents(pipe, job_of(pipe, control=given, branch=control)))


def test_nabla_orders_the_control_as_its_own_tokens(pipes, files) -> None:
    pipe = pipes["t2v"]
    net = pipe.placement
    with net.hold("dit") as dit, torch.no_grad():
        from kandinsky.ops.attention import AttentionSpec
        from kandinsky.ops.branches import Beside
        from kandinsky.weights.read import load_into

        module = branch.built(settings_of("control"), pipe.card)
        load_into(module, files["t2v", "control"])
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 2, 16, 16, 9, generator=generator)
        signal = torch.randn(1, 2, 16, 16, 4, generator=generator)
        text = pipe.encode([job_of(pipe)])[0]
        # with every block kept, sparse attention is dense attention in another order
        every = AttentionSpec.from_dict({"type": "nabla", "P": 1.0, "wT": 9, "wH": 9, "wW": 9})
        made = [
            dit(x, torch.tensor([500.0]), text, attention=spec, branches=[Beside(module, signal)])
            for spec in (AttentionSpec(), every)
        ]
        torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)


def test_loaded_branches_are_used_and_forgotten(places, files, tmp_path: Path) -> None:
    pipe = places["t2v"]()
    plain, by_file = (
        latents(pipe, job_of(pipe)),
        latents(pipe, job_of(pipe, control=clip(), branch=files["t2v", "control"])),
    )
    assert pipe.load_branch(files["t2v", "control"], name="lines") == "lines"
    with pytest.raises(RequestError, match="`lines` is loaded"):
        pipe.load_branch(files["t2v", "control"], name="lines")
    assert torch.equal(latents(pipe, job_of(pipe, control=clip())), by_file)
    assert torch.equal(latents(pipe, job_of(pipe, conditions=[Control(clip(), branch="lines")])), by_file)
    pipe.unload_branch("lines")
    with pytest.raises(RequestError, match="no branch named `lines`"):
        pipe.unload_branch("lines")
    with pytest.raises(RequestError, match="has none of its own"):
        job_of(pipe, control=clip())
    assert torch.equal(latents(pipe, job_of(pipe)), plain)


def test_the_recipe_says_what_was_followed(pipes, files, tmp_path: Path) -> None:
    pipe = pipes["t2v"]
    path = tmp_path / "image.png"
    Image.fromarray(clip()[0]).save(path)
    job = job_of(pipe, control=str(path), control_strength=0.5, control_steps="0:0.6", branch=files["t2v", "control"])
    recipe = pipe.recipe(job)
    (one,) = recipe["conditions"]
    assert one["control"] and one["signal"] == "edges" and one["file"] == str(path)
    command = recipes.command(recipe)
    for words in (f"--control {path}", "--control-strength 0.5", "--control-steps 0:0.6", "--branch "):
        assert words in command
    again = Request.from_dict(
        Request(pipe.card.id, "x", control=str(path), branch=[str(files["t2v", "control"])]).to_dict()
    )
    assert again.control == str(path) and again.branches == (str(files["t2v", "control"]),)


def test_files_say_what_they_are(files, tmp_path: Path) -> None:
    found = read_branch(files["t2v", "control"])
    assert found.kind == "control" and found.signal == "edges" and found.params == {"blocks": 2}
    assert is_branch(files["k4", "reference"]) and not is_branch(tmp_path / "none.safetensors")
    assert read_branch(files["k4", "reference"]).told()["network"] == "kandinsky4.dit"


def test_each_fault_is_one_clear_line(pipes, files, folder_of, tmp_path: Path) -> None:
    pipe, control, reference = pipes["t2v"], files["t2v", "control"], files["t2v", "reference"]
    (tmp_path / "no.safetensors").write_bytes(b"")
    faults: list[tuple[dict[str, Any], str]] = [
        ({"control": clip()}, "`.*` has none of its own: give its file as `branch="),
        ({"reference": clip()[0]}, "a reference is followed by a reference branch"),
        ({"control": clip(), "branch": reference}, "a control is followed by a control branch|told a reference"),
        ({"conditions": [Control(clip(), branch=reference)]}, "is told a reference, not a control"),
        ({"control": clip(), "branch": files["k4", "control"]}, "a network `kandinsky4.dit`"),
        ({"control": clip(), "branch": tmp_path / "gone.safetensors"}, "is not there"),
        ({"control": clip(), "branch": tmp_path / "no.safetensors"}, "cut off"),
        ({"control": clip(size=(96, 64)), "branch": control}, "96x64 and the result 64x64"),
        ({"control": clip(fps=12.0), "branch": control}, "12 frames a second and the result 24"),
        ({"control": clip(5), "branch": control}, "has 5 frames and the result 9"),
        ({"control": clip(), "branch": [control, files["t2v", "control-new"]]}, "several branches are told a control"),
        ({"branch": control}, "is told a control, and none is given"),
        ({"control_strength": 0.5}, "none was given: give `control="),
        ({"reference_strength": 0.5}, "none was given: give `reference="),
        ({"control": clip(), "branch": control, "control_strength": 9.0}, "out of range|at most 4|0 to 4"),
        ({"control": clip(), "branch": control, "control_steps": "0.6:0.2"}, "no share of the steps"),
        ({"control": clip(), "branch": control, "control_steps": "all"}, "no share of the steps"),
        ({"conditions": [Control(clip(), branch=control, signal="depth")]}, "shows depth, and branch .* follows edges"),
        ({"conditions": [Control(clip(), branch=control, signal="smell")]}, "`smell` is unknown: use edges, depth"),
    ]
    for changes, words in faults:
        with pytest.raises(KandinskyError, match=words) as caught:
            job_of(pipe, **changes)
        assert isinstance(caught.value, RequestError | WeightsError) and "\n" not in str(caught.value)
    images = kandinsky.load(folder_of("i2i", "official"), device="cpu")
    narrow = dict(images.card.dit.params) | {"model_dim": 64}
    images.card = dataclasses.replace(images.card, dit=dataclasses.replace(images.card.dit, params=narrow))
    with pytest.raises(WeightsError, match=r"whose `(instruct_type|model_dim|visual_cond)` is"):
        images.load_branch(control)


def test_models_without_branches_refuse_them(tmp_path: Path) -> None:
    card = catalogue.find("kandinsky3.1-flash")
    from kandinsky.engine.request import resolve

    with pytest.raises(RequestError, match="takes no control, since no branch can stand beside"):
        resolve(Request(card.id, "a cat", control=np.zeros((64, 64, 3), np.uint8)), card)


def test_the_share_of_the_steps_is_of_those_that_are_taken(pipes, files, monkeypatch) -> None:
    """A source that is begun from late skips the first steps; half of the rest is half of what runs."""
    pipe, file = pipes["t2v"], files["t2v", "control"]
    source = {"video": clip(seed=4), "strength": 0.9, "steps": 8}
    spans = []
    found = stages._besides

    def watched(*args: Any) -> Any:
        made = found(*args)
        spans.append((args[4], args[3].tolist(), *((one.begin, one.end) for _, one in made)))
        return made

    monkeypatch.setattr(stages, "_besides", watched)
    plain = latents(pipe, job_of(pipe, **source))
    half = latents(pipe, job_of(pipe, control=clip(), branch=file, control_steps="0:0.5", **source))
    whole = latents(pipe, job_of(pipe, control=clip(), branch=file, **source))
    start, steps, span = spans[1]
    taken = len(steps) - 1 - start
    assert start > 0 and taken >= 2 and spans[2][2] == (1.0, 0.0)
    assert span == (pytest.approx(steps[start]), pytest.approx(steps[start + round(taken / 2) - 1]))
    assert not torch.equal(half, plain) and not torch.equal(half, whole)


def test_a_file_is_digested_once_and_branches_of_earlier_requests_are_freed(places, files, monkeypatch) -> None:
    pipe, control, reference = places["t2v"](), files["t2v", "control"], files["t2v", "reference"]
    read_branch(control)
    reads, digest = [], branch_files.hashlib.file_digest
    monkeypatch.setattr(branch_files.hashlib, "file_digest", lambda *args: reads.append(args) or digest(*args))
    before = read_branch(control)
    job_of(pipe, control=clip(), branch=control)
    assert not reads
    os.utime(control)
    assert read_branch(control).sha256 == before.sha256 and len(reads) == 1  # a change of time is a change

    def held() -> list[str]:
        return [name for name in pipe.placement.names if name.startswith("branch ")]

    latents(pipe, job_of(pipe, control=clip(), branch=control))
    first = held()
    latents(pipe, job_of(pipe))
    assert len(first) == 1 and held() == first  # it may come again
    latents(pipe, job_of(pipe, reference=clip()[0], branch=reference))
    assert len(held()) == 1 and held() != first
    pipe.load_branch(control, name="lines")
    latents(pipe, job_of(pipe, control=clip()))
    latents(pipe, job_of(pipe, reference=clip()[0], branch=reference))
    assert len(held()) == 2  # one that was loaded stays


def test_branches_of_a_request_leave_those_that_were_loaded(places, files) -> None:
    pipe = places["t2v"]()
    pipe.load_branch(files["t2v", "control"], name="lines")
    both = job_of(pipe, control=clip(), reference=clip()[0], branch=files["t2v", "reference"])
    assert [one.branch.kind for one in both.conditions] == ["control", "reference"]
    named = job_of(pipe, control=clip(), branch="lines")
    assert named.conditions[0].branch.path == files["t2v", "control"].resolve()
    # a file of the request stands before a loaded one of its kind
    own = job_of(pipe, conditions=[Control(clip())], branch=files["t2v", "control-new"])
    assert own.conditions[0].branch.sha256 == read_branch(files["t2v", "control-new"]).sha256


def test_a_plan_counts_branches() -> None:
    card = catalogue.find("nano-t2v")
    module = branch.built(settings_of("control"), card)
    numbers = sum(one.numel() for one in module.state_dict().values())
    plain = catalogue.plan("nano-t2v", seconds=1)
    file = dataclasses.replace(
        BranchFile(Path("x"), "control", "edges", "", card.dit.kind, card.id, {"blocks": 2}, {}), numbers=numbers
    )
    job = resolve(Request(card.id, "x", seconds=1), card)
    made = plan_resolved(job, branches=[file])
    assert made.branches == {"control branch": numbers * 4}
    assert made.components["dit"].weights == plain.components["dit"].weights + numbers * 4
    assert 1.1 * plain.times["dit"] < made.times["dit"] < 2 * plain.times["dit"]
