"""What a group of processes computes together and each of them alone; run by ``test_schemes.py`` under torchrun.

One start for all checks, since starting takes longer than they do. The first process writes, for each check, the
largest distance between the two relative to the largest number, or a list of values to be compared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import kandinsky
from kandinsky import catalogue
from kandinsky.diffusion.caching import FirstBlockCache
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.step_cache import StepCache
from kandinsky.errors import KandinskyError
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D as Kandinsky4
from kandinsky.families.kandinsky4.dit import DiTParams as Params4
from kandinsky.families.kandinsky5.denoiser import VelocityDenoiser
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D as Kandinsky5
from kandinsky.families.kandinsky5.dit import DiTParams as Params5
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder, HunyuanParams
from kandinsky.families.parts.tiling import Tiling
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.parallel import launch
from kandinsky.runtime.parallel.layout import read
from kandinsky.runtime.parallel.team import Team

HOST = torch.device("cpu")
SPARSE = AttentionSpec(type="nabla", P=0.5, wT=1, wH=1, wW=1)
# by number of processes; 5 heads and 297 tokens divide by neither
SCHEMES = {
    2: ("ulysses=2", "ring=2", "tp=2", "ulysses=2,fsdp=2"),
    4: (
        "ulysses=4",
        "ring=4",
        "ring=2,ulysses=2",
        "ulysses=2,tp=2",
        "tp=2,ulysses=2,fsdp=2",
        "cfg=2,ring=2",
    ),
}
LAST = np.full((96, 96, 3), 128, np.uint8)  # a known frame; step caches take none
SPARSE_NANO = {"attention": "nabla:P=0.5,wT=1,wH=1,wW=1", "cache": "first-block:threshold=0.3"}
NANO: dict[int, tuple[tuple[str, dict[str, str]], ...]] = {
    2: (("cfg=2", {}), ("ulysses=2", SPARSE_NANO), ("data=2", {})),
    4: (
        ("cfg=2,ulysses=2", {"cache": "taylor:interval=2,first=1,last=0"}),
        ("ring=2,ulysses=2", {}),
        ("ulysses=4,fsdp=4", {}),
    ),
}


def filled(net: nn.Module) -> nn.Module:
    """Every parameter, from one seed: layers that start as zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        is_scale = p.dim() == 1 and name.endswith("weight")
        p.data = 1 + 0.1 * noise if is_scale else noise * max(0.05, p[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


def kandinsky5(heads: int) -> Callable[[], nn.Module]:
    params = Params5(in_text_dim=12, in_text_dim2=10, time_dim=16, model_dim=16 * heads, ff_dim=48, num_text_blocks=1,
                     num_visual_blocks=2, axes_dims=(4, 6, 6))  # fmt: skip
    return lambda: filled(Kandinsky5(params))


def kandinsky4(heads: int) -> Callable[[], nn.Module]:
    params = Params4(in_text_dim=12, time_dim=16, model_dim=16 * heads, ff_dim=48, num_blocks=1, axes_dims=(4, 6, 6))
    return lambda: filled(Kandinsky4(params))


def runs() -> Iterator[tuple[str, Callable[[int], Callable[[], nn.Module]], Callable[[nn.Module], Tensor]]]:
    """Name, network of so many heads, a pass of it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 18, 22, 4, generator=g)
    t = torch.tensor([500.0, 20.0])
    text = TextEmbeddings(torch.randn(2, 5, 12, generator=g), torch.randn(2, 10, generator=g))
    masked = dataclasses.replace(text, mask_BL=torch.tensor([[True] * 3 + [False] * 2, [True] * 5]))
    yield "kandinsky5 dense", kandinsky5, lambda net: net(x, t, masked)
    yield "kandinsky5 nabla", kandinsky5, lambda net: net(x, t, text, attention=SPARSE)
    yield "kandinsky4", kandinsky4, lambda net: net(x.flatten(0, 1), t, masked, frames=[3, 3])
    grouped = x[:, :, :16, :16].flatten(0, 1)
    yield "kandinsky4 groups", kandinsky4, lambda net: net(grouped, t, text, frames=[2, 4], groups=(1, 2, 2))


# names of runs begin with the family's
SPLITS = {name: catalogue.part(f"{name}.dit").split.rules for name in ("kandinsky5", "kandinsky4")}


def distance(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).abs().max() / expected.abs().max())


def networks(world: int) -> Iterator[tuple[str, float]]:
    for name, make, run in runs():
        alone: dict[int, Tensor] = {}  # by the number of heads
        for text in SCHEMES[world]:
            layout = read(text)
            is_repeated = "groups" in name and world == 4 and layout.ulysses != 4
            if is_repeated or (layout.ring > 1 and ("nabla" in name or "groups" in name)):
                continue
            heads = 5 if layout.tp == 1 else 4
            if heads not in alone:
                alone[heads] = run(make(heads)())
            made = run(Team(layout, HOST).build(make(heads), torch.float32, SPLITS[name.split()[0]]))
            yield f"{name} {text}", distance(made, alone[heads])


def guided(world: int) -> Iterator[tuple[str, float]]:
    """Guidance on two processes, with the tokens of each pass on the others."""
    g = torch.Generator().manual_seed(3)
    texts = [TextEmbeddings(torch.randn(1, 5, 12, generator=g), torch.randn(1, 10, generator=g)) for _ in range(2)]
    x, t = torch.randn(1, 2, 6, 10, 4, generator=g), torch.tensor(0.7)
    make, guidance = kandinsky5(4), Guidance(5.0)

    def both(team: Team) -> Tensor:
        net = team.build(make, torch.float32, SPLITS["kandinsky5"])
        return team.guide(guidance, *(VelocityDenoiser(net, text) for text in texts))(x, t)  # type: ignore[arg-type]

    text = "cfg=2" if world == 2 else "cfg=2,ulysses=2"
    yield f"guidance {text}", distance(both(Team(read(text), HOST)), both(Team()))


def cached(world: int) -> Iterator[tuple[str, Any]]:
    """The first-block cache decides by all tokens, so all processes decide alike."""
    _, make, _ = next(runs())
    g = torch.Generator().manual_seed(5)
    text = TextEmbeddings(torch.randn(1, 5, 12, generator=g), torch.randn(1, 10, generator=g))
    start = torch.randn(1, 3, 18, 22, 4, generator=g)

    def walk(net: nn.Module) -> tuple[Tensor, list[list[bool]]]:
        cache = StepCache(FirstBlockCache(threshold=0.2), steps=6)
        x = start
        for i in range(6):
            x = x + 0.02 * i * net(x, torch.tensor([900.0 - 60 * i]), text, runner=cache.runner("conditional"))
        return x, cache.skips

    expected, plain = walk(make(5)())
    made, skips = walk(Team(read(f"ulysses={world}"), HOST).build(make(5), torch.float32, SPLITS["kandinsky5"]))
    yield f"first-block ulysses={world}", distance(made, expected)
    yield "first-block decisions", [skips, plain]


def autoencoders(world: int) -> Iterator[tuple[str, float]]:
    """Tiles in time and space; the first process holds the pixels."""
    params = HunyuanParams(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
                           mid_block_add_attention=False)  # fmt: skip
    vae = filled(HunyuanAutoencoder(params, tiling=Tiling((9, 48, 48), (4, 32, 32))))
    z = torch.randn(1, 5, 8, 11, 4, generator=torch.Generator().manual_seed(6))
    team = Team(read(f"ulysses={world}"), HOST)
    expected = vae.decode(z) if dist.get_rank() == 0 else None  # type: ignore[operator]
    shape = team.gather(None if expected is None else list(expected.shape))[0]
    made = torch.cat(list(team.decode(vae, z)), dim=1)  # type: ignore[arg-type]
    yield "tiles", float(list(made.shape) != shape) if expected is None else distance(made, expected)


def nano(world: int) -> Iterator[tuple[str, Any]]:
    """The shipped model from prompts to frames, and what the recipe says."""
    for text, options in NANO[world]:
        layout = read(text)
        pictures, recipes = [], []
        for parallel in (
            (None, layout) if dist.get_rank() == 0 else (layout,)
        ):  # a step less with four, who share two cores
            pipe = kandinsky.load("nano-t2v", device="cpu", parallel=parallel, **options)
            given = {} if "cache" in options else {"last_image": LAST, "resample": 1}
            batch = [
                pipe.resolve(
                    Request("nano-t2v", prompt, seconds=0.4, steps=5 - world // 2, seed=seed, guidance=4.0, **given)
                )
                for prompt, seed in (("a panda", 1), ("a red car", 2))[: layout.data]
            ]
            videos = pipe.run_batch(batch)
            pictures.append([torch.from_numpy(video.frames).int() for video in videos])
            recipes.append([{k: v for k, v in video.recipe.items() if k != "created"} for video in videos])
        if dist.get_rank() == 0:
            yield f"nano {text}", max(int((a - b).abs().max()) for a, b in zip(*pictures, strict=True))
            yield f"nano recipes {text}", recipes


def unets(_world: int) -> Iterator[tuple[str, Any]]:
    """The passes of models that are no transformers, with three of them and in all stages too, to the frames."""
    weights = Path(os.environ["KANDINSKY_CARDS"]).parent / "weights"
    for model, options in (("kandinsky3.0", {}), ("kandinsky-video-1.1", {"fps": "medium"})):
        made = []
        for parallel in (None, "auto") if dist.get_rank() == 0 else ("auto",):
            pipe = kandinsky.load(model, weights=weights, device="cpu", text_cache=False, parallel=parallel)
            made.append(torch.from_numpy(pipe("a cat", seed=3, steps=2, **options).frames).int())
        if dist.get_rank() == 0:
            yield f"frames of {model} {pipe.team.layout}", int((made[0] - made[1]).abs().max())


def agreement(world: int) -> Iterator[tuple[str, Any]]:
    """Seeds that were drawn, and what the first process could not do."""
    team = Team(read(f"ulysses={world}"), HOST)
    pipe = kandinsky.load("nano-t2v", device="cpu", parallel="auto")
    drawn = pipe.engine._agreed([pipe.resolve(Request("nano-t2v", "a panda"))])[0].seed
    yield "seeds", team.gather(drawn)

    def broken() -> list[Tensor | None]:
        raise KandinskyError("no text today")

    try:
        team.once(broken)
    except KandinskyError as error:
        yield "said by all", team.gather(str(error))


def main(target: Path) -> None:
    warnings.simplefilter("ignore", UserWarning)
    launch.meet("cpu")
    world = dist.get_world_size()
    found: dict[str, Any] = {}
    with torch.no_grad():
        for checks in (networks, guided, cached, agreement, nano, *((autoencoders, unets) if world == 2 else ())):
            found |= dict(checks(world))
    everyone = Team(read(f"ulysses={world}"), HOST).gather({k: v for k, v in found.items() if isinstance(v, float)})
    found |= {name: max(one[name] for one in everyone) for name in everyone[0]}
    if dist.get_rank() == 0:
        target.write_text(json.dumps(found), encoding="utf-8")
    launch.part()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with launch.together(lambda text: print(text, file=sys.stderr, flush=True)):
        main(Path(sys.argv[1]))
