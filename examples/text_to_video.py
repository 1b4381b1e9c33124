"""Text to video. On any computer, with the model that ships with the package:

    python examples/text_to_video.py "a panda waves on a blue background"

Full size, on a graphics card:

    kandinsky download kandinsky5-lite-t2v-sft-5s
    python examples/text_to_video.py "a bear plays the balalaika" --model kandinsky5-lite-t2v-sft-5s --offload module
"""

import argparse

import kandinsky


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a video from a prompt.")
    parser.add_argument("prompt", nargs="?", default="a panda waves on a blue background")
    parser.add_argument("--model", default="nano-t2v", help="catalogue id, folder or Hugging Face repository")
    parser.add_argument("--output", default="text_to_video.mp4")
    parser.add_argument("--size", help="WIDTHxHEIGHT; the model's own by default")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--offload", default="none", help="none, module or block")
    parser.add_argument("--expand", action="store_true", help="have the model's language model write the prompt out")
    o = parser.parse_args()

    pipe = kandinsky.load(o.model, offload=o.offload)
    video = pipe(o.prompt, size=o.size, seconds=o.seconds, steps=o.steps, seed=o.seed, expand=o.expand)
    print(video.save(o.output))


if __name__ == "__main__":
    main()
