"""Text to image. On any computer a video model makes a still, a clip of no seconds:

    python examples/text_to_image.py "a red heart on a white background"

Full size, on a graphics card, with a model for images:

    kandinsky download kandinsky5-lite-t2i
    python examples/text_to_image.py "a cat in a blue hat" --model kandinsky5-lite-t2i --size 1024x1024
"""

import argparse

import kandinsky


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an image from a prompt.")
    parser.add_argument("prompt", nargs="?", default="a red heart on a white background")
    parser.add_argument("--model", default="nano-t2v")
    parser.add_argument("--output", default="text_to_image.png")
    parser.add_argument("--size", help="WIDTHxHEIGHT; the model's own by default")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    o = parser.parse_args()

    result = kandinsky.load(o.model)(o.prompt, seconds=0, size=o.size, steps=o.steps, seed=o.seed)
    print(result.save(o.output))


if __name__ == "__main__":
    main()
