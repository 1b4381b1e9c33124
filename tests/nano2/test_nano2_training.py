"""Training of the second Nano: the optimiser, the loop, the objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes_for_tests import DrawnSources
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.families.nano.draft import Told
from kandinsky.families.nano.linear import LinearPatches, LinearPatchParams
from kandinsky.families.nano.portraits import PortraitDecoder, sharpened
from kandinsky.families.nano.scene_words import NOTHING, ROLES, SceneWords, said_of, unsaid
from kandinsky.families.nano.scenes import Scene, Subject, plain_scene
from kandinsky.lab.nano2 import portraits as portraits_module
from kandinsky.lab.nano2.objective import (
    AHEAD,
    OPEN,
    KeptScenes,
    Mix,
    SceneObjective,
    draw_times,
    network_params,
    sample,
)
from kandinsky.lab.nano2.portraits import CODES, Portraits, own_frame, refined
from kandinsky.train.muon import Muon, orthogonalise
from kandinsky.train.steady import Steady, run_steadily

SMALL = {
    "in_visual_dim": 96,
    "out_visual_dim": 96,
    "in_text_dim": 32,
    "in_text_dim2": 32,
    "time_dim": 32,
    "model_dim": 128,
    "ff_dim": 256,
    "num_visual_blocks": 1,
}


def objective(**mix: Any) -> SceneObjective:
    torch.manual_seed(0)
    linear = LinearPatches(LinearPatchParams(latent_channels=96))
    for part in (linear.still, linear.moving):
        part.basis.copy_(torch.linalg.qr(torch.randn(part.basis.shape).T)[0].T)
    settings = {"still_steps": 0, "clips": 3, "stills": 3, "fresh": 2, "pool": 8} | mix
    sources = DrawnSources(20)
    drawn = portraits(len(sources) + len(sources.wordless))
    scenes = KeptScenes(sources, linear, drawn, Mix(**settings))  # type: ignore[arg-type]
    return SceneObjective(scenes, network_params(**SMALL))


def portraits(subjects: int) -> Portraits:
    """Of noise, in place of images."""
    torch.manual_seed(1)
    decoder = PortraitDecoder(32)
    for part in decoder.buffers(recurse=False):
        part.copy_(torch.linalg.qr(torch.randn(part.shape))[0])
    return Portraits(decoder, torch.randint(-3, 4, (subjects, 36, 32), dtype=torch.int16), torch.full((32,), 0.5))


def test_orthogonalised_rows_are_nearly_orthonormal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 128, 384) * 7).float())
    assert values.min() > 0.5 and values.max() < 1.4


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (128, 256), (384, 384)])
def test_muon_fits_a_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    wanted, weight = torch.randn(shape) * 0.1, nn.Parameter(torch.zeros(shape))
    optimiser = Muon([weight], lr=0.02)
    first = float((weight - wanted).detach().pow(2).mean())
    for _ in range(60):
        optimiser.zero_grad()
        (weight - wanted).pow(2).sum().backward()
        optimiser.step()
    assert float((weight - wanted).detach().pow(2).mean()) < 0.1 * first


def test_muon_refuses_what_has_no_blocks() -> None:
    with pytest.raises(ValueError, match=r"\(100, 60\)"):
        Muon([torch.zeros(100, 60)], lr=0.1)


class Line:
    """One matrix and one row that should become given numbers; counts nothing, remembers nothing."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.ParameterDict(
            {"matrix": nn.Parameter(torch.randn(128, 128)), "row": nn.Parameter(torch.zeros(4))}
        )

    def groups(self) -> dict[str, list[nn.Parameter]]:
        weights = dict(self.network.named_parameters())
        return {"muon": [weights["matrix"]], "plain": [weights["row"]], "rows": []}

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        return torch.randn(4, generator=generator)

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        weights = dict(self.network.named_parameters())
        return weights["matrix"].pow(2).mean() + (weights["row"] - 1 - 0.1 * batch).pow(2).sum(), {}


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = Line()
    run_steadily(whole, Steady(max_steps=9, warmup=3), tmp_path / "whole", copies=(tmp_path / "copy",))
    first = Line()
    run_steadily(first, Steady(max_steps=4, warmup=3), tmp_path / "parts")
    second = Line()
    averages = run_steadily(second, Steady(max_steps=9, warmup=3), tmp_path / "parts")
    for (_, a), (_, b) in zip(whole.network.named_parameters(), second.network.named_parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(averages) == 2 and (tmp_path / "copy" / "checkpoint.pt").exists()
    assert json.loads((tmp_path / "parts" / "log.jsonl").read_text().splitlines()[-1])["step"] == 9


def test_a_run_that_is_told_to_stop_keeps_what_it_has(tmp_path: Path) -> None:
    steps: list[int] = []
    run_steadily(Line(), Steady(max_steps=9), tmp_path, on_checkpoint=steps.append, stop=lambda: True)
    assert steps == [1] and int(torch.load(tmp_path / "checkpoint.pt")["step"]) == 1


def test_a_cooldown_ends_with_no_step_at_all(tmp_path: Path) -> None:
    run_steadily(Line(), Steady(max_steps=3, warmup=1), tmp_path / "run")
    cooled = Steady(warmup=1, cooldown=(3, 4))
    assert [cooled.factor(step) for step in (3, 5, 7)] == [1.0, 0.5, 0.0] and cooled.end == 7
    run_steadily(Line(), cooled, tmp_path / "cool", start=tmp_path / "run" / "checkpoint.pt")
    lines = (tmp_path / "cool" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 7 and json.loads(lines[-1])["factor"] == pytest.approx(0.25)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run_steadily(Line(), Steady(max_steps=1), tmp_path)
    other = Line()
    other.network = nn.ParameterDict(
        {"matrix": nn.Parameter(torch.zeros(256, 128)), "row": nn.Parameter(torch.zeros(4))}
    )
    with pytest.raises(RequestError, match="another network"):
        run_steadily(other, Steady(max_steps=2), tmp_path)


def test_not_said_is_a_state_of_its_own() -> None:
    torch.manual_seed(0)
    words = SceneWords(20, codes=16, pooled=16)
    words.memory.codes[36:] = torch.randn(words.memory.codes[36:].shape)
    scene = Scene((Subject(3), Subject(3)), colours=(9, None), arrangement="side by side")
    full = said_of(scene, still=False)
    open_ = unsaid(full, ["colour", "subjects"])
    a, b, nothing = (words([said]) for said in (full, open_, NOTHING))
    colour = list(ROLES).index("colour") - len(ROLES)  # the roles stand behind all subjects
    differ = (a.tokens_BLC != b.tokens_BLC).any(-1)[0]
    assert differ[: 2 * 36].all() and differ[colour] and int(differ.sum()) == 2 * 36 + 1
    assert torch.equal(b.tokens_BLC[0, colour], nothing.tokens_BLC[0, colour])
    assert b.mask_BL is not None and int(b.mask_BL.sum()) == 2 * 36 + len(ROLES)


def test_portraits_of_images_are_near_to_them_and_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few images have no more components than are kept, so only whole numbers of steps are lost."""
    monkeypatch.setattr(portraits_module, "ROUNDS", 0)
    sources = DrawnSources(6)
    made = Portraits.of(sources, tmp_path / "portraits.pt")  # type: ignore[arg-type]
    again = Portraits.read(tmp_path / "portraits.pt")
    assert made.numbers_NPE.shape == (6 + 2, 36, CODES) and made.numbers_NPE.dtype is torch.int16
    assert torch.equal(again.numbers_NPE, made.numbers_NPE) and torch.equal(again.codes(), made.codes())
    images = again.decoder(again.codes()[:6])
    for number, image in enumerate(images):
        real = own_frame(sources.frames(number))
        error = float((image - real).pow(2).mean())
        assert error < (0.02 if number == 0 else 0.2) * float(real.pow(2).mean()), number
    assert torch.allclose(again.decoder(again.codes()[:2], frames=3), images[:2, :3], atol=1e-6)
    assert not again.decoder(torch.zeros(1, 36, CODES)).any()  # no codes show nothing


def test_refined_codes_are_nearer_and_cost_what_bits_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, target = DrawnSources(3), tmp_path / "portraits.pt"
    monkeypatch.setattr(portraits_module, "ROUNDS", 0)
    plain = Portraits.of(sources, target)  # type: ignore[arg-type]
    monkeypatch.setattr(portraits_module, "ROUNDS", 9)
    real = own_frame(sources.frames(1))[None]
    before = plain.numbers_NPE[1:2].float()
    after = refined(plain.decoder, plain.scale_E, before, real)
    old, new = (float((plain.decoder(n * plain.scale_E) - real).pow(2).mean()) for n in (before, after))
    assert new < 0.8 * old and torch.equal(after, after.round())
    with torch.no_grad():  # as ``Portraits.of`` calls it
        assert torch.equal(after, refined(plain.decoder, plain.scale_E, before, real))
    monkeypatch.setattr(portraits_module, "PRICE", 1e-5)
    dear = refined(plain.decoder, plain.scale_E, before, real)
    assert float((dear != 0).sum()) < 0.7 * float((after != 0).sum())


def test_opacities_are_clear_and_colours_fit_them() -> None:
    image = torch.rand(2, 3, 4, 5, 5) * 1.4 - 0.2
    clear = sharpened(image)
    opacity = image[:, :, 3]
    assert not clear[:, :, 3][opacity <= 0.25].any() and (clear[:, :, 3][opacity >= 0.75] == 1).all()
    assert (clear[:, :, :3] <= clear[:, :, 3:]).all() and float(clear.min()) == 0
    kept = (opacity > 0.8) & (opacity < 1) & (image[:, :, 0] > 0) & (image[:, :, 0] < 0.7)
    assert torch.allclose((clear[:, :, 0] * opacity)[kept], image[:, :, 0][kept], atol=1e-5)


def test_every_role_of_a_scene_can_be_said() -> None:
    plain, moved = (
        said_of(s, still=False) for s in (plain_scene(1, 2), Scene((Subject(1),), motion="spins", place=None))
    )
    assert set(plain.words) == set(ROLES) and plain.words["motion"] == 1 != moved.words["motion"]
    assert plain.words["second colour"] == 0 and moved.words["place"] == 0
    assert all(0 <= row <= ROLES[role] for role, row in (plain.words | moved.words).items())


def test_times_lie_towards_noise() -> None:
    times = draw_times(4000, 4.0, torch.Generator().manual_seed(0))
    assert times.min() > 0 and times.max() <= 1
    assert 0.70 < float(times.median()) < 0.85 and float((times < 0.3).float().mean()) < 0.08


def test_scenes_and_latents_depend_on_their_numbers_alone() -> None:
    one, other = objective(still_share=0.0), objective(still_share=0.0, pool=4)
    a, b = one.scenes, other.scenes
    assert a.scene(17) == b.scene(17) and a.scene(17) != a.scene(18)
    first = a.latents(3).clone()
    for number in (3 + 8 + AHEAD, 5, 3 + 8 + AHEAD):  # takes the place of 3 in the ring
        a.latents(number)
    assert torch.equal(a.latents(3), first) and torch.equal(b.latents(3), first)
    assert first.shape == (2, 4, 12, 12, 96) and not torch.equal(first[0], first[1])
    mine, others = (o.batch(2, torch.Generator().manual_seed(1)) for o in (one, other))
    assert mine.said[:2] == others.said[:2] and mine.latents_BTHWC.shape == (3, 4, 12, 12, 96)


def test_given_frames_are_seen_and_not_learned() -> None:
    trained = objective(image_share=1.0)
    batch = trained.batch(0, torch.Generator().manual_seed(0))
    assert batch.given_B.all()
    seen: dict[str, Tensor] = {}

    def look(x: Tensor, time: Tensor, text: Any, told: Told) -> Tensor:
        seen["x"], seen["mask"], seen["draft"] = x, told.condition_BTHWC[..., -1], told.draft_BTHWC
        guess = batch.latents_BTHWC.clone()
        guess[:, 0] += 100  # wrong by far where the frame is given
        return guess

    trained.network.forward = look  # type: ignore[method-assign]
    loss, _ = trained.loss(batch, torch.Generator().manual_seed(0))
    assert float(loss) == 0 and torch.equal(seen["x"][:, 0], batch.latents_BTHWC[:, 0])
    assert (seen["mask"][:, 0] == 1).all() and not seen["mask"][:, 1:].any()
    assert torch.equal(seen["draft"][:, 0], batch.latents_BTHWC[:, 0])


def test_drafts_follow_what_is_known() -> None:
    """The scene's own draft where all is known, its background where no subject is said, nothing without places."""
    known = objective(
        image_share=0.0, still_share=0.0, drop_all=0.0, drop_role=0.0, drop_places=0.0, wordless_share=0.0
    )
    batch = known.batch(1, torch.Generator().manual_seed(0))
    for draft, place in zip(batch.drafts_BTHWC, batch.places, strict=True):
        assert place is not None and torch.equal(draft, known.scenes.draft(place).half().float())
    without = objective(image_share=0.0, still_share=0.0, drop_places=1.0)
    assert not without.batch(1, torch.Generator().manual_seed(0)).drafts_BTHWC.any()
    unsaid_ = objective(image_share=0.0, still_share=0.0, drop_all=0.0, drop_role=1.0, drop_places=0.0)
    batch = unsaid_.batch(1, torch.Generator().manual_seed(0))
    for draft, place in zip(batch.drafts_BTHWC, batch.places, strict=True):
        assert place is not None and torch.equal(draft, unsaid_.scenes.draft(place, empty=True))


def test_a_clip_without_an_answer_counts_for_little() -> None:
    trained = objective(image_share=0.0, still_share=0.0, drop_all=0.0, drop_places=0.0)
    batch = trained.batch(0, torch.Generator().manual_seed(0))
    batch.places[0] = None
    wrong = batch.latents_BTHWC.clone()
    wrong[0] += 10
    trained.network.forward = lambda *_: wrong  # type: ignore[method-assign]
    one, _ = trained.loss(batch, torch.Generator().manual_seed(0))
    wrong = batch.latents_BTHWC.clone()
    wrong[1] += 10
    other, figures = trained.loss(batch, torch.Generator().manual_seed(0))
    assert 0 < float(one / other) < 1.001 * OPEN and figures["gain_db_4"] < 0  # a worse guess counts for less still


def test_words_that_contradict_an_image_are_seen_in_training() -> None:
    trained = objective(image_share=1.0, contradicted=1.0, drop_all=0.0, clips=8, fresh=8)
    batch = trained.batch(0, torch.Generator().manual_seed(0))
    shown = [trained.scenes.scene(7 - i).subjects[0].concept for i in range(8)]  # the newest first
    told = [said.subjects[0] - 1 for said in batch.said]
    assert batch.given_B.all() and batch.places == [None] * 8
    assert sum(a == b for a, b in zip(shown, told, strict=True)) <= 1


def test_steps_of_training_and_sampling_run(tmp_path: Path) -> None:
    trained = objective(still_steps=1)
    run_steadily(trained, Steady(max_steps=3, log_every=1), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "loss_1" in lines[0] and "loss_4" in lines[-1]
    scene = plain_scene(1, 2)
    first = trained.scenes.first_latents(scene)[:1, 0]
    said = [said_of(scene, still=False)]
    clip = sample(trained.network, said, [None], steps=2, first_BHWC=first)
    assert clip.shape == (1, 4, 12, 12, 96) and torch.equal(clip[:, 0], first)
    assert torch.equal(clip, sample(trained.network, said, [None], steps=2, first_BHWC=first))


def test_a_network_that_knows_is_sampled_exactly() -> None:
    trained = objective()
    truth = torch.randn(1, 4, 12, 12, 96)
    trained.network.forward = lambda *_: truth  # type: ignore[method-assign]
    scene = plain_scene(1, 2)
    for steps in (1, 2, 5):
        made = sample(trained.network, [said_of(scene, still=False)], [scene], steps=steps)
        assert torch.allclose(made, truth, atol=1e-5)
