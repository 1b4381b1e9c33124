"""``kandinsky bench train``: what a training step costs: tokens per second, share of the matrix rate, memory.

Steps are those of the one loop (``train/loop.take_step``), on random latents and weights: speed and memory do not
depend on the values. Works of one group take turns, so that ratios are meaningful even on a busy machine.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kandinsky import catalogue
from kandinsky.bench.random_weights import changed
from kandinsky.bench.timing import Timing, interleaved, ratio
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import Job, resolve
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.runtime.meter import clock, finish, matmul_rate
from kandinsky.train import loop
from kandinsky.train.adapter import AdapterSettings
from kandinsky.train.adapter import add as add_adapters
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.scale import Activations, Scale, Scaling
from kandinsky.train.times import Times
from kandinsky.train.work import Work, counted, done

LITE = "kandinsky5-lite-t2v-sft-5s"
MID: Mapping[str, Any] = {
    "dit.model_dim": 512, "dit.ff_dim": 2048, "dit.time_dim": 256, "dit.num_text_blocks": 2,
    "dit.num_visual_blocks": 6, "dit.axes_dims": [16, 24, 24], "dit.in_text_dim": 512, "dit.in_text_dim2": 256,
}  # fmt: skip
LORA = AdapterSettings(rank=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A training step to measure.

    Attributes:
        name: In the table.
        model: Catalogue id.
        changes: Hyper-parameters in the place of the card's; see ``random_weights.changed``.
        latent: Frames, rows and columns; the model's own size where absent.
        batch: Clips of a step.
        adapter: In the place of all weights.
        activations: See ``Scale``.
        group: Setups of one group take turns.
    """

    name: str
    model: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    latent: tuple[int, int, int] | None = None
    batch: int = 1
    adapter: AdapterSettings | None = None
    activations: Activations = "kept"
    group: str = ""


def _mid(name: str, **more: Any) -> Setup:
    return Setup(name=name, model=LITE, changes=MID, latent=(5, 32, 48), group="mid", **more)


CPU = (
    Setup(name="Nano, full", model="nano-t2v", batch=4, group="shipped"),
    _mid("mid Kandinsky 5, full"),
    _mid("… activations `operations`", activations="operations"),
    _mid("… activations `full`", activations="full"),
    _mid("mid Kandinsky 5, LoRA", adapter=LORA),
)
CUDA = (
    *CPU,
    Setup(name="Lite 5 s 768x512, full", model=LITE, activations="full", group="lite"),
    Setup(name="Lite 5 s 768x512, LoRA", model=LITE, activations="full", group="lite lora",
          adapter=replace(LORA, base_dtype="bfloat16")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What a step costs.

    Attributes:
        name: Of its setup.
        parameters: Of the network, and those of them that learn.
        tokens: Of a step.
        flops: Of a step, without what is computed again; 0 where they are not counted.
        seconds: Of each round.
        peak_bytes: Of the GPU; on CPU, of the tensors that live at once: weights, averages, optimiser states, gradients
            and what the step needs.
    """

    name: str
    parameters: tuple[int, int]
    tokens: int
    flops: float
    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median_s(self) -> float:
        """Seconds of a step."""
        return Timing(self.seconds, 0, None).median_s


@dataclass(frozen=True, slots=True)
class Report:
    """All of it.

    Attributes:
        device: Where.
        dtype: In which the networks compute; weights and states are float32.
        clock: What seconds are.
        threads: Of PyTorch on CPU.
        matmul_rate: FLOP/s of products of large matrices, here and in this type.
        rows: In order.
        against: Time of the other library over ours, in the same rounds; None where none was asked for.
    """

    device: str
    dtype: str
    clock: str
    threads: int
    matmul_rate: float
    rows: tuple[Row, ...]
    against: float | None = None


class Step:
    """A network with everything that trains it, and one batch that it is given again and again.

    Args:
        setup: What is trained.
        device: Where.
        dtype: In which the network computes.
    """

    def __init__(self, setup: Setup, device: torch.device, dtype: torch.dtype) -> None:
        self.setup, self.device, self.number = setup, device, 0
        card = changed(catalogue.find(setup.model), setup.changes)
        self.job: Job = resolve(Request(card.id, "any", seed=0), card, needs_image=False)
        context = build(card, RunOptions(device=str(device), dtype="float32", only=()))
        part, shape = card.part("dit"), self.job.latent
        with loop.seeded(0), torch.device(device):
            network = bare_network(part, card.dit, Path()).float().requires_grad_(True)
        latent = setup.latent or (shape.frames, shape.height, shape.width)
        self.network: nn.Module = network
        if setup.adapter is not None:
            add_adapters(network, setup.adapter, part.adapts)
        self.scaling = Scaling(Scale(activations=setup.activations), str(device))
        if part.split is not None:
            self.scaling.spare(list(part.split.rules().blocks(network)))
        generator = torch.Generator().manual_seed(0)
        widths = getattr(getattr(network, "params", None), "text_widths", None)
        if widths is None:
            raise RequestError(f"`{card.id}`: what text its network reads is not known: it cannot be measured")
        text = TextEmbeddings(
            torch.randn(setup.batch, PROMPT_TOKENS, widths[0], generator=generator),
            torch.randn(setup.batch, widths[1] or 1, generator=generator),
        )
        clean = torch.randn(setup.batch, *latent, card.clip.channels, generator=generator)
        self.batch = Batch(clean, Given(text), range(setup.batch), setup.batch).to(device)
        patch = getattr(getattr(network, "params", None), "patch_size", (1, 1, 1))
        self.tokens = setup.batch * torch.Size(latent).numel() // torch.Size(patch).numel()
        self.settings = loop.LoopSettings(steps=10**6, lr=1e-4, warmup=1, decay=0.0, bf16=dtype == torch.bfloat16)
        objective = DenoiserObjective(Denoising(context, self.job), network, self._given, Times())
        self.objective = objective
        self.learner = loop.Learner(objective.updates[0], self.settings, str(device), self.scaling)

    def _given(self, step: int, rng: Rng, portion: Portion) -> Batch:
        done(samples=self.setup.batch, tokens=self.tokens)
        return self.batch

    def __call__(self) -> dict[str, float]:
        """Take a step."""
        self.number += 1
        taken = loop.take_step(
            self.objective, self.settings, [self.learner], Rng(0, self.number), str(self.device), self.scaling
        )
        self.learner.zero_grad()
        return taken

    def work(self) -> Work:
        """What a step does, counted in one that is taken."""
        with counted() as found:
            batch = self.objective.batch(0, Rng(0, 0), Portion())
            self.objective.loss("network", batch, Rng(0, 0))
        return found

    @property
    def parameters(self) -> tuple[int, int]:
        """How many there are, and how many learn."""
        sizes = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)

    def peak(self) -> int:
        """Bytes that live at once in a step."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self()
            finish(self.device)
            return int(torch.cuda.max_memory_allocated(self.device))
        there: dict[int, int] = {}
        states = (t for name in self.learner.optimisers.state().values() for t in name.values())
        for tensor in (*self.network.parameters(), *self.network.buffers(), *self.learner.ema.values(), *states):
            storage = tensor.untyped_storage()
            there[storage._cdata] = storage.nbytes()
        with Living() as living:
            self()
        return sum(there.values()) + int(living.most)


class Living(TorchDispatchMode):
    """Counts the bytes of tensors made within it that live at once.

    Attributes:
        now: At present.
        most: At once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and (key := one.untyped_storage()._cdata) not in given | self._known:
                storage = one.untyped_storage()
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def bench(
    setups: Sequence[Setup] | None = None,
    *,
    repeats: int = 3,
    device: str = "cpu",
    dtype: str | None = None,
    against: str | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure training steps.

    Args:
        setups: What is measured; by default those for the device.
        repeats: Timed rounds, after one to warm up.
        device: Where.
        dtype: In which networks compute: `bfloat16`, or `float32`, the default on CPU.
        against: `diffusers`: the first setup of a family that it has is run there too, by a plain step on its network.
        on_run: Called with (done, total) after each run of a group.

    Returns:
        The report.

    Raises:
        RequestError: A setup cannot be measured, or no setup has a twin in the other library.
        BackendError: A package is not installed.
    """
    place = torch.device(device)
    compute = getattr(torch, dtype or ("float32" if place.type == "cpu" else "bfloat16"))
    chosen = tuple(setups if setups is not None else (CUDA if place.type == "cuda" else CPU))
    twin = None if against is None else _twin_of(chosen, against)
    rows: list[Row] = []
    found_ratio = None
    for group in dict.fromkeys(setup.group for setup in chosen):
        steps = {setup.name: Step(setup, place, compute) for setup in chosen if setup.group == group}
        works: dict[str, Callable[[], Any]] = dict(steps)
        if twin is not None and twin.name in steps:
            works[str(against)] = _plain(str(against), steps[twin.name], compute)
        timings = interleaved(works, repeats=repeats, device=place, on_run=on_run)
        if twin is not None and twin.name in steps:
            found_ratio = ratio(timings[str(against)].seconds, timings[twin.name].seconds)
        for name, step in steps.items():
            timing = timings[name]
            rows.append(Row(name, step.parameters, step.tokens, step.work().flops, timing.seconds, step.peak()))
        steps.clear()
        works.clear()
        gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
    return Report(
        str(place), str(compute).removeprefix("torch."), clock(place)[1], torch.get_num_threads(),
        matmul_rate(place, compute), tuple(rows), found_ratio,
    )  # fmt: skip


def _twin_of(setups: Iterable[Setup], library: str) -> Setup:
    """The first setup whose network the other library has, too."""
    for setup in setups:
        has_twin = library in catalogue.find(setup.model).part("dit").twins
        if has_twin and setup.adapter is None and setup.activations == "kept":
            return setup
    raise RequestError(f"`{library}` has none of these networks to train: leave `against` out")


def _plain(name: str, step: Step, compute: torch.dtype) -> Callable[[], float]:
    """A plain training step of the same work around another library's network: loss, clipping, AdamW, average."""
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise BackendError(f"`against={name}` needs the package `{name}`: install it") from error
    card = catalogue.find(step.setup.model)
    twin, call = card.part("dit").twins[name]()(library, step.network, step.job.sampling.rope_scale)
    twin.train().requires_grad_(True)
    weights = list(twin.parameters())
    average = [p.detach().clone() for p in weights]
    optimiser = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    clean, text = step.batch.clean_BTHWC, step.batch.given.text
    kind = step.device.type

    def work() -> float:
        noise, t = torch.randn_like(clean), torch.rand(len(clean), device=clean.device)
        noisy = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=compute == torch.bfloat16):
            loss = F.mse_loss(call(twin, noisy, t, text).float(), noise - clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in weights], 0.002)
        return float(loss.detach())

    return work


def table(report: Report) -> str:
    """Format a report for people."""
    width = max(len(row.name) for row in report.rows) + 2
    lines = [
        f"training on {report.device} in {report.dtype}, {report.threads} threads, {report.clock}; a step is forwards, "
        "backwards, AdamW and the average",
        f"{'':<{width}}{'million, trained':>18}{'tokens':>8}{'median s':>10}{'tokens/s':>10}{'TFLOP/s':>9}{'share':>7}"
        f"{'peak GB':>9}",
    ]
    for row in report.rows:
        rate = row.flops / row.median_s
        sizes = f"{row.parameters[0] / 1e6:,.1f}, {row.parameters[1] / 1e6:,.1f}"
        told = f"{rate / 1e12:>9.3f}{rate / report.matmul_rate:>7.0%}" if row.flops else " " * 16
        lines.append(
            f"{row.name:<{width}}{sizes:>18}{row.tokens:>8,}{row.median_s:>10.3f}{row.tokens / row.median_s:>10,.0f}"
            f"{told}{row.peak_bytes / 1e9:>9.3f}"
        )
    lines.append(f"matrix products reach {report.matmul_rate / 1e12:.3f} TFLOP/s")
    if report.against is not None:
        lines.append(f"a plain step around the other library's network takes {report.against:.2f} times as long")
    return "\n".join(lines)
