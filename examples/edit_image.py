"""Image editing, on a graphics card: no small model is trained for it.

kandinsky download kandinsky5-lite-i2i
python examples/edit_image.py photo.jpg "make it winter"
"""

import argparse

import kandinsky


def main() -> None:
    parser = argparse.ArgumentParser(description="Change an image by saying how.")
    parser.add_argument("image", help="any size; the result has the legal size nearest in shape")
    parser.add_argument("prompt", help="what to change, and what to leave")
    parser.add_argument("--model", default="kandinsky5-lite-i2i")
    parser.add_argument("--output", default="edited.png")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--offload", default="none", help="none, module or block")
    parser.add_argument("--expand", action="store_true", help="have the model's language model write the prompt out")
    o = parser.parse_args()

    pipe = kandinsky.load(o.model, offload=o.offload)
    result = pipe(o.prompt, image=o.image, steps=o.steps, seed=o.seed, expand=o.expand)
    print(result.save(o.output), result.recipe["image"])


if __name__ == "__main__":
    main()
