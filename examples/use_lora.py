"""LoRA: change what a model does with a small file. On any computer, after `python examples/teach_lora.py`:

    python examples/use_lora.py --lora heart_lora

Full size, on a graphics card, with an official camera LoRA:

    kandinsky download kandinsky5-lite-t2v-sft-5s kandinskylab/Kandinsky-5.0-T2V-Lite-LoRa-Dolly-in
    python examples/use_lora.py "a lighthouse in a storm" --model kandinsky5-lite-t2v-sft-5s \\
        --lora kandinskylab/Kandinsky-5.0-T2V-Lite-LoRa-Dolly-in:0.8
"""

import argparse

import kandinsky


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a video with and without LoRAs.")
    parser.add_argument("prompt", nargs="?", default="a green apple")
    parser.add_argument("--lora", action="append", required=True, metavar="FILE[:SCALE]", help="may be given again")
    parser.add_argument("--model", default="nano-t2v")
    parser.add_argument("--output", default="lora", help="beginning of the files' names")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    o = parser.parse_args()

    pipe = kandinsky.load(o.model, lora=o.lora)
    scales = pipe.adapters.scales
    for name, chosen in (
        ("on", scales),
        ("half", {lora: scale / 2 for lora, scale in scales.items()}),
        ("off", {}),
    ):
        pipe.set_lora(chosen)
        video = pipe(o.prompt, seconds=o.seconds, steps=o.steps, seed=o.seed)
        print(video.save(f"{o.output}-{name}.mp4"), video.recipe.get("lora", "no LoRA"))


if __name__ == "__main__":
    main()
