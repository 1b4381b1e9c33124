"""Distillation: what students aim at, what a discriminator sees, and that each way learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky.diffusion.samplers import SAMPLERS
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.lab import distil as bench
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues
from kandinsky.train import loop
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.distil.discriminator import Alarm, Discriminator, mean
from kandinsky.train.distil.guidance import GuidanceObjective
from kandinsky.train.distil.ladd import AdversarialLoop, LaddObjective, LaddSettings, made_by
from kandinsky.train.distil.selfforcing import ChunkSettings, ForcingSettings, Rollout, SelfForcingObjective
from kandinsky.train.distil.steps import StepObjective, StepSettings
from kandinsky.train.distil.teacher import Teacher, distance, landing
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.times import Times
from tiny.transformer import TINY

PROCESSES = ("flow", "v")


@pytest.fixture(scope="module", params=PROCESSES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bench.Bench:
    """A teacher that has learned a little."""
    return bench.prepared(request.param, tmp_path_factory.mktemp(request.param), steps=60)


class Process(Denoising):
    """The noise process of a sampler, without a network."""

    def __init__(self, name: str, shift: float = 2.0) -> None:
        self.rules, self.shift, self.track = SAMPLERS[name], shift, "video"
        self.noising = self.rules.noising(shift)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_landing_is_the_prediction_that_leads_there(name: str) -> None:
    process, generator = Process(name), torch.Generator().manual_seed(3)
    noisy, later = torch.randn(2, 2, 3, 2, 2, 4, generator=generator)
    t, to = process.times(torch.tensor([0.9, 0.4])), process.times(torch.tensor([0.55, 0.1]))
    prediction = landing(process, noisy, t, later, to)
    torch.testing.assert_close(process.moved(prediction, noisy, t, to), later, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["flow", "cogvideox-ddim", "kandinsky3-flash"])
def test_errors_weigh_alike_for_every_prediction(name: str) -> None:
    """An error of the clean latent by d counts d²/σ², whether noise, v or velocity is predicted."""
    process, generator = Process(name), torch.Generator().manual_seed(4)
    clean, noise, wrong = torch.randn(3, 2, 1, 2, 2, 4, generator=generator)
    t = process.times(torch.tensor([0.3, 0.5]))
    noisy = process.noised(clean, noise, t)
    spread = process.shares(t)[1]
    other = clean + 0.1 * wrong
    predicted = process.target(other, (noisy - process.shares(t)[0] * other) / spread, t)
    batch = bench.World(clips=2)(0, Rng(0, 0), Portion())
    found = distance(process, predicted, process.target(clean, noise, t), t, batch)
    torch.testing.assert_close(found, (0.1 * wrong / spread).square().flatten(1).mean(1).mean(), atol=1e-5, rtol=1e-3)


def test_the_target_without_guidance_is_the_guided_prediction(small: bench.Bench) -> None:
    batch = small.world(0, Rng(0, 0), Portion())
    t = small.denoising.times(torch.full((len(batch.numbers),), 0.5))
    with torch.no_grad():
        with_prompt = small.denoising.predict(small.network, batch.clean_BTHWC, t, batch.given)
        nothing = Given(small.world.empty.expand(len(t)))
        without = small.denoising.predict(small.network, batch.clean_BTHWC, t, nothing)
    guided = small.teacher(3.0).predict(batch.clean_BTHWC, t, batch.given)
    torch.testing.assert_close(guided, without + 3.0 * (with_prompt - without))
    with pytest.raises(RequestError, match="negative prompt"):
        Teacher(small.denoising, small.network, 2.0).predict(batch.clean_BTHWC, t, batch.given)


@pytest.mark.slow
def test_a_student_comes_nearer(small: bench.Bench, tmp_path: Path) -> None:
    """At equal work, than its teacher, to what the teacher makes in many steps, by the official loops."""
    (way,) = [way for way in bench.WAYS if way.name.startswith("guidance")]
    row = bench.distilled(way, small, tmp_path)
    assert row.is_nearer, str(row)


@pytest.mark.parametrize("way", [way for way in bench.WAYS if way.by_distribution], ids=lambda way: way.name)
@pytest.mark.slow
def test_every_network_learns_and_no_teacher_does(way: bench.Way, small: bench.Bench, tmp_path: Path) -> None:
    world = bench.World(way.frames)
    other = bench.Bench(small.process, small.setting, small.denoising, small.network, world)
    teacher, student = other.teacher(way.guidance), other.student()
    objective: Any = way.make(other, teacher, student)
    networks = {update.name: update.network for update in objective.updates}
    before = {name: copy.deepcopy(net.state_dict()) for name, net in {**networks, "teacher": teacher.network}.items()}
    settings = {"updates": {}, **way.settings}
    lines = bench.trained(objective, 10, tmp_path, **settings)
    for name, net in {**networks, "teacher": teacher.network}.items():
        is_same = all(torch.equal(before[name][key], tensor) for key, tensor in net.state_dict().items())
        assert is_same == (name == "teacher"), name
    if "discriminator" in networks:
        assert {"real logit", "fake logit", "accuracy", "collapse", "discriminator loss"} <= set(lines)
        assert len([name for name in lines if name.startswith("accuracy ")]) == len(networks["discriminator"].heads)  # type: ignore[arg-type]


def test_a_discriminator_looks_no_further_than_its_last_head(small: bench.Bench) -> None:
    network = small.student().requires_grad_(False)
    discriminator = Discriminator(small.denoising, network)
    assert not any("backbone" in name for name, _ in discriminator.named_parameters())
    batch = small.world(0, Rng(0, 0), Portion())
    network.out_layer.forward = None  # type: ignore[assignment]  # is behind every block
    noisy = batch.clean_BTHWC.clone().requires_grad_(True)
    t = small.denoising.times(torch.full((len(noisy),), 0.3))
    logits = discriminator(noisy, t, batch.given)
    tokens = noisy.shape[1] * noisy.shape[2] * noisy.shape[3] // 4
    assert {one.numel() for one in logits.values()} == {len(noisy) * tokens}
    mean(logits).backward()
    assert noisy.grad is not None and noisy.grad.abs().sum() > 0
    assert all(p.grad is not None for p in discriminator.heads[0].out_layer.parameters())  # type: ignore[union-attr]
    assert all(not module._forward_hooks for module in network.modules())


def test_heads_stand_where_the_documents_draw_them() -> None:
    from kandinsky import catalogue
    from kandinsky.engine.build import bare_network

    def names(model: str) -> list[str]:
        card = catalogue.source_of(model).card
        part = card.part("dit")
        assert part.heads is not None
        with torch.device("meta"):
            return list(part.heads()(bare_network(part, card.dit, Path())))

    assert names("kandinsky5-lite-t2v-sft-5s") == [f"visual_transformer_blocks.{n}" for n in range(3, 32, 4)]
    assert names("kandinsky4-t2v") == [f"transformer_blocks.{n}.1" for n in range(21)]
    assert names("kandinsky3.0") == [f"down_samples.{n}" for n in range(4)]


def test_the_alarm_rings_once(caplog: pytest.LogCaptureFixture) -> None:
    alarm = Alarm(memory=0.5)
    for _ in range(9):
        figures = alarm({"a": torch.ones(4)}, {"a": -torch.ones(4)})
    assert figures["collapse"] == 1.0 and figures["accuracy"] == 1.0
    assert len([r for r in caplog.records if "teaches nothing" in r.message]) == 1
    for _ in range(9):
        figures = alarm({"a": torch.ones(4)}, {"a": torch.ones(4)})
    assert figures["collapse"] == 0.0 and figures["accuracy"] == 0.5
    again = Alarm(memory=0.5)
    again.load_state_dict(alarm.state_dict())
    assert float(again.average) == float(alarm.average) != 0.5


@pytest.mark.parametrize("name", ["flow", "v"])
def test_finer_steps_begin_and_end_where_those_of_the_student_do(name: str) -> None:
    """Also where levels do not divide by its steps."""
    denoising, _ = bench.bare(bench.SETTINGS[name])
    for steps in (3, 6, 7, 12):
        for parts in (2, 3, 4):
            walk = Walk(denoising, StudentSteps(steps))
            fine = walk.refined(parts)
            assert torch.equal(fine[::parts], walk.times) and (fine.diff() < 0).all()
    with pytest.raises(RequestError, match=r"`levels` has 6 after 16: .* half of the one before"):
        StepSettings("progressive", (32, 16, 6))


def test_the_adversarial_loop_is_that_of_the_report() -> None:
    settings = AdversarialLoop.from_dict({"steps": 3})
    assert (settings.optimiser, settings.lr, settings.clip) == ("rmsprop", 1e-6, 1.0)
    assert settings.updates["discriminator"].over(settings).lr == 1e-4
    assert settings.updates["discriminator"].over(settings).optimiser == "rmsprop"
    for said, lr in (({"student": {"lr": 1e-5}}, 1e-4), ({"discriminator": {"every": 2}}, 1e-4),
                     ({"discriminator": {"lr": 0.1}}, 0.1)):  # fmt: skip
        settings = AdversarialLoop.from_dict({"steps": 3, "updates": said})
        assert settings.updates["discriminator"].over(settings).lr == lr and set(said) <= set(settings.updates)
    times = LaddSettings().renoise.draw(Rng(0, 0), range(1000), 1000, shift=5.0)
    assert 0.015 < float(times.median()) < 0.022 and float(times.max()) < 0.6


def test_at_the_students_time_the_real_example_is_what_the_student_was_given(small: bench.Bench) -> None:
    network = small.student().requires_grad_(False)
    seen: list[tuple[Tensor, Tensor]] = []

    class Noted(Discriminator):
        def forward(self, noisy: Tensor, t: Tensor, given: Given) -> dict[str, Tensor]:
            seen.append((noisy, t))
            return super().forward(noisy, t, given)

    settings = LaddSettings(at_student_time=True, r1=0.5)
    walk = small.walk(4)
    objective = LaddObjective(
        small.denoising, small.student(), Noted(small.denoising, network), small.world, walk, settings
    )
    rng = Rng(0, 0)
    batch = objective.batch(0, rng, Portion())
    loss = objective.loss("discriminator", batch, rng)
    assert loss.figures["r1"] > 0
    (_, fake_t), (real, real_t), (moved, _) = seen
    given_t = made_by(small.student(), walk, batch, rng, simulate=False).t
    shows = small.denoising.shares(given_t)[0].flatten() > 0
    assert torch.equal(fake_t, real_t) and torch.equal(real_t[shows], given_t[shows]) and bool(shows.any())
    given = small.denoising.noised(batch.clean_BTHWC, batch.noise(rng), real_t)
    torch.testing.assert_close(real[shows], given[shows])
    torch.testing.assert_close((moved - real) / 0.1, batch.noise(rng, "r1"), atol=1e-3, rtol=1e-3)


def test_a_student_that_begins_with_noise_alone_is_judged_by_what_shows(small: bench.Bench) -> None:
    first = Walk(small.denoising, StudentSteps(4, small.setting.student_sampler, weights=(1.0, 0.0, 0.0, 0.0)))
    assert float(small.denoising.shares(first.times[:1])[0]) == 0
    frozen = Discriminator(small.denoising, small.student().requires_grad_(False))
    student = small.student()
    settings = LaddSettings(at_student_time=True)
    objective = LaddObjective(small.denoising, student, frozen, small.world, first, settings)
    rng = Rng(0, 0)
    objective.loss("student", objective.batch(0, rng, Portion()), rng).value.backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) > 0


def test_progressive_teachers_are_the_students_before(small: bench.Bench) -> None:
    settings = StepSettings("progressive", (8, 4), level_steps=2)
    teacher, student = small.teacher(3.0), small.student()
    objective = StepObjective(small.denoising, student, teacher, small.world, settings)
    assert objective.carried["teacher"] is teacher.network and not objective.frozen
    asked: list[bool] = []
    predict = teacher.predict

    def noted(*args: Any, guided: bool = True) -> Tensor:
        asked.append(guided)
        return predict(*args, guided=guided)

    teacher.predict = noted  # type: ignore[method-assign]
    for step in range(3):
        rng = Rng(0, step)
        objective.loss("student", objective.batch(step, rng, Portion()), rng)
        with torch.no_grad():
            next(student.parameters()).add_(1.0)
        objective.after(step)
        is_same = torch.equal(next(student.parameters()), next(teacher.network.parameters()))
        assert is_same == (step == 1)
    assert asked == [True] * 4 + [False] * 2


def test_the_middle_of_a_step_is_a_time_of_the_teachers_sampler() -> None:
    for name in ("flow", "cogvideox-ddim"):
        process = Process(name, 3.0)
        fine = Walk(process, StudentSteps(4)).refined(2)
        torch.testing.assert_close(fine, process.rules.times(8, 3.0))
    process = Process("kandinsky3-flash")
    fine = Walk(process, StudentSteps(4)).refined(3)  # 12 steps of that sampler are no refinement of 4
    assert torch.equal(fine[::3], process.rules.times(4, 1.0)) and bool((fine.diff() < 0).all())


def test_samplers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="`nonsense` is unknown"):
        StudentSteps(4, "nonsense")
    with pytest.raises(RequestError, match="steps are 4: give one for each"):
        StudentSteps(4, weights=(1.0,))
    with pytest.raises(RequestError, match="does not fit"):
        Walk(Process("cogvideox-ddim"), StudentSteps(4, "flow"))
    walk = Walk(Process("cogvideox-ddim"), StudentSteps(4, "cogvideox-renoise"))
    assert [round(1000 * float(t)) for t in walk.times] == [1000, 750, 500, 250, 0]


def small_transformer() -> DiffusionTransformer3D:
    net, generator = DiffusionTransformer3D(TINY), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return net


class Frames(nn.Module):
    """Answers with the mean of all frames it is shown, times a weight; takes a time for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        return self.weight * x.mean(1, keepdim=True).expand_as(x)


class Framed(Process):
    """A flow process whose network is ``Frames``."""

    def predict(self, network: nn.Module, noisy: Tensor, t: Tensor, given: Given) -> Tensor:
        out: Tensor = network(noisy, t)
        return out


def test_a_rollout_goes_on_from_its_own_frames_at_their_own_times() -> None:
    process, network = Framed("flow", 1.0), Frames()
    rollout = Rollout(Walk(process, StudentSteps(2)), ChunkSettings(chunk=2, context_noise=0.1))
    start = torch.randn(3, 5, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    text = bench.World().given(torch.zeros(3, dtype=torch.long)).text
    made = rollout.chunks(
        lambda x, t, given: process.predict(network, x, t, given), start, lambda n: torch.zeros_like(start), text
    )
    assert [chunk.clean_BTHWC.shape[1] for chunk in made] == [2, 2, 1]
    assert [chunk.done_BTHWC.shape[1] for chunk in made] == [0, 2, 4]
    first = made[0].clean_BTHWC
    torch.testing.assert_close(made[1].done_BTHWC, torch.lerp(first, start[:, :2], torch.tensor(0.1)))
    assert not made[1].done_BTHWC.requires_grad and all(chunk.clean_BTHWC.requires_grad for chunk in made)
    times = [t[0].tolist() for t in network.times if t.ndim == 2]
    torch.testing.assert_close(torch.tensor(times[0]), torch.tensor([0.1, 0.1, 1.0, 1.0]))
    torch.testing.assert_close(torch.tensor(times[1]), torch.tensor([0.1, 0.1, 0.5, 0.5]))
    # through the last step of its own chunk alone: v is linear in the weight, so the gradient is −t·mean of that state
    (gradient,) = torch.autograd.grad(made[0].clean_BTHWC.sum(), network.weight)
    state = made[0].noisy_BTHWC
    torch.testing.assert_close(gradient, -0.5 * state.mean(1, keepdim=True).expand_as(state).sum())


def test_a_rollout_that_remembers_is_the_one_that_sees_all_again() -> None:
    """By the code of generation, of a causal Kandinsky 5; gradients reach every layer either way."""
    network = small_transformer()
    spec = AttentionSpec("causal", frames=2, reach=1, sink=1)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 7, 4, 4, 4, generator=generator)
    text = TextEmbeddings(torch.randn(2, 5, 12, generator=generator), torch.randn(2, 10, generator=generator))
    process, found = Process("flow", 2.0), []
    for context in ("cache", "times"):

        def asked(x: Tensor, t: Tensor, given: Given, memory: KeyValues | None = None) -> Tensor:
            run = Pass(given.text, attention=spec, memory=memory)
            return bind(network, Known(), run)({VIDEO: x}, t)[VIDEO]

        rollout = Rollout(Walk(process, StudentSteps(2)), ChunkSettings(2, context, 0.1), spec)  # type: ignore[arg-type]
        made = torch.cat([one.clean_BTHWC for one in rollout.chunks(asked, start, lambda n: start, text)], dim=1)
        gradients = torch.autograd.grad(made.square().mean(), list(network.parameters()))
        assert all(bool(g.isfinite().all() and g.abs().sum() > 0) for g in gradients)
        found.append(made.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    with pytest.raises(RequestError, match="attention is not causal"):
        Rollout(Walk(process, StudentSteps(2)), ChunkSettings(2, "cache"))
    with pytest.raises(RequestError, match="give both one length"):
        Rollout(Walk(process, StudentSteps(2)), ChunkSettings(3), spec)


@pytest.mark.parametrize("loss", ["dmd", "regression", "path"])
def test_self_forcing_runs_with_a_time_of_each_frame(loss: Any, small: bench.Bench, tmp_path: Path) -> None:
    if small.process == "v":
        pytest.skip("the v network takes one time for a clip")
    from kandinsky.train.distil.dmd import Matching

    world, teacher, student = bench.World(3), small.teacher(), small.student()
    matching = Matching(small.denoising, teacher, small.student(), Times(), least=0.02, most=0.98)
    objective = SelfForcingObjective(
        student,
        teacher,
        world,
        Rollout(small.walk(2), ChunkSettings(1, "times")),
        ForcingSettings(loss, parts=2, every=1),
        matching if loss == "dmd" else None,
    )
    before = copy.deepcopy(student.state_dict())
    loop.run(objective, loop.LoopSettings(steps=2, lr=1e-3, bf16=False, warmup=1), tmp_path)
    assert any(not torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_a_step_is_the_same_in_portions(small: bench.Bench, tmp_path: Path) -> None:
    made = []
    for count in (1, 4):
        student = small.student()
        objective = GuidanceObjective(small.denoising, student, small.teacher(2.0), small.world, Times())
        settings = loop.LoopSettings(steps=2, lr=0.1, optimiser="sgd", bf16=False, warmup=1, accumulate=count)
        made.append(loop.run(objective, settings, tmp_path / str(count))["student"])
    for name, tensor in made[0].items():
        torch.testing.assert_close(made[1][name], tensor, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("way", bench.WAYS, ids=lambda way: way.name)
def test_the_loss_of_a_student_is_told_by_time(way: bench.Way, small: bench.Bench) -> None:
    """Errors by time are those of each clip, however the batch is divided, and their mean is the loss."""
    other = bench.Bench(small.process, small.setting, small.denoising, small.network, bench.World(way.frames, clips=8))
    objective, rng = way.make(other, other.teacher(way.guidance), other.student()), Rng(3, 0)
    name = objective.updates[0].name

    def found(portion: Portion) -> Any:
        return objective.loss(name, objective.batch(0, rng, portion), rng)

    whole, parts = found(Portion()), [found(Portion(index, 4)) for index in range(4)]
    told = sorted(whole.timed)
    assert told == [pytest.approx(one, rel=2e-3, abs=1e-4) for one in sorted(one for p in parts for one in p.timed)]
    assert sum(one.weight for one in told) == pytest.approx(8) and all(0 < one.time <= 1 for one in told)
    if "GAN" not in way.name:
        assert sum(one.error * one.weight for one in told) / 8 == pytest.approx(float(whole.value.detach()), rel=1e-4)


@pytest.mark.parametrize("name", [name for name, rules in SAMPLERS.items() if rules.fresh])
def test_a_state_that_a_student_reaches_is_one_of_its_sampler(name: str) -> None:
    """Also where a sampler adds back only a part of the noise afresh."""
    walk = Walk(Process(name), StudentSteps(4))
    draws = torch.randn(walk.rules.draws(4), 1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2))

    def predict(x: Tensor, _: Tensor) -> Tensor:
        return 0.3 * x

    x = walk.rules.start(draws, walk.times)
    for number in range(4):
        fresh = draws[min(walk.rules.unused + 1 + number, len(draws) - 1)]
        x = walk.after(number, predict(x, walk.times[number]), x, lambda fresh=fresh: fresh)  # type: ignore[misc]
    torch.testing.assert_close(x, walk.sampled(predict, draws))


@pytest.mark.parametrize("name", ["flow", "cogvideox-ddim", "kandinsky3-flash"])
def test_a_share_of_noise_is_the_same_under_every_schedule(name: str) -> None:
    """Times that are drawn to say how much noise there shall be, as before a discriminator."""
    process = Process(name, 1.0)
    wanted = torch.tensor([0.1, 0.3, 0.5, 0.9])
    signal, spread = (share.flatten() for share in process.shares(process.as_noisy(wanted)))
    torch.testing.assert_close(spread / (signal + spread), wanted, atol=4e-3, rtol=0)
    if name != "flow":
        assert bool((process.as_noisy(wanted) != process.times(wanted)).any())
        assert torch.equal(process.as_noisy(wanted), process.times(process.as_noisy(wanted)))  # levels there are
