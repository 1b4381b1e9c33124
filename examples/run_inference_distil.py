"""Kandinsky 4.0 T2V Flash on many graphics cards, by the official launch line:

    python -m torch.distributed.launch --nnodes 1 --nproc-per-node 8 examples/run_inference_distil.py

or `torchrun --nproc-per-node 8 examples/run_inference_distil.py`, or alone. The weights come with
`kandinsky download kandinsky4-t2v-flash`.
"""

import argparse
import sys

import torch

from kandinsky import get_T2V_pipeline
from kandinsky.runtime.parallel.launch import together

PROMPT = "Dark chocolate cake on a table, honey is poured over it, close up, soft morning light."


def main() -> None:
    parser = argparse.ArgumentParser(description="Twelve seconds by Kandinsky 4.0 T2V Flash.")
    parser.add_argument("--text", default=PROMPT)
    parser.add_argument("--cache_dir", default="./weights/", help="folder with the official files")
    parser.add_argument("--save_path", default="./test.mp4")
    parser.add_argument("--time_length", type=int, default=12, help="seconds; 0 makes an image, which is not written")
    parser.add_argument("--width", type=int, default=672)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--local-rank", "--local_rank", type=int, help="set by older launchers; the environment says it"
    )
    o = parser.parse_args()

    with together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"  # each process takes its own card
        pipe = get_T2V_pipeline({"dit": device, "vae": device, "text_embedder": device}, cache_dir=o.cache_dir)
        pipe(
            seed=o.seed,
            time_length=o.time_length,
            width=o.width,
            height=o.height,
            save_path=o.save_path,
            text=o.text,
        )
        if world.is_first:
            print(o.save_path)


if __name__ == "__main__":
    main()
