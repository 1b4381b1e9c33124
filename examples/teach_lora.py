"""Teach nano one picture with a LoRA, in a minute or two on any computer (needs `pip install kandinsky-video[lora]`):

    python examples/teach_lora.py --output heart_lora
    python examples/use_lora.py "a green apple" --lora heart_lora

Whatever is asked for then looks like the picture it was taught. It shows the whole way: PEFT puts the small matrices
into the network and saves them; this library reads its folder.
"""

import argparse
import copy
from pathlib import Path

import peft
import torch

import kandinsky
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.model.denoiser import VIDEO, Known, Pass

LAYERS = ["to_query", "to_value", "feed_forward.in_layer", "feed_forward.out_layer"]


def teach(pipe: GenerationPipeline, shown: str, asked: str, folder: Path, *, steps: int = 60, rank: int = 4) -> None:
    """Train a LoRA that answers ``asked`` with the picture the model makes of ``shown``, and save it in ``folder``."""
    shown_, asked_ = (
        pipe.resolve(kandinsky.Request(model=pipe.card.id, prompt=prompt, seconds=0, steps=6, seed=1))
        for prompt in (shown, asked)
    )
    clean = pipe.sample(pipe.noise([shown_]), *pipe.encode([shown_]), shown_)  # latents [1, 1, H, W, C]
    text, _ = pipe.encode([asked_])
    with pipe.placement.hold("dit") as dit:
        network = copy.deepcopy(dit)
    learner = peft.get_peft_model(network, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
    optimiser = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.rand(1, generator=generator)
        x = (1 - t) * clean + t * noise
        sampling = pipe.card.sampling
        denoiser = bind(network, Known(), Pass(text, condition=sampling.condition, rope_scale=sampling.rope_scale))
        loss = (denoiser({VIDEO: x}, t)[VIDEO] - (noise - clean)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}")
    learner.save_pretrained(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach nano one picture with a LoRA.")
    parser.add_argument("shown", nargs="?", default="a red heart on a blue background")
    parser.add_argument("--asked", default="a green apple", help="prompt it is taught with")
    parser.add_argument("--output", default="heart_lora")
    parser.add_argument("--steps", type=int, default=60)
    o = parser.parse_args()

    teach(kandinsky.load("nano-t2v"), o.shown, o.asked, Path(o.output), steps=o.steps)
    print(o.output)


if __name__ == "__main__":
    main()
