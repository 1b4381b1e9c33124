"""The official `run_inference_distil.py` of Kandinsky 4.0 T2V Flash, on this library. From this folder:

    python -m torch.distributed.launch --nnodes 1 --nproc-per-node 8 run_inference_distil.py

or `torchrun --nproc-per-node 8 run_inference_distil.py`, or `python run_inference_distil.py` alone. The weights are
looked for in `./weights/`, else where `kandinsky download kandinsky4-t2v-flash` puts them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kandinsky import KandinskyError, get_T2V_pipeline
from kandinsky.runtime.devices import choose_device
from kandinsky.runtime.parallel.launch import together

PROMPT = "Dark chocolate cake on a table, honey is poured over it, close up, soft morning light."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Twelve seconds by Kandinsky 4.0 T2V Flash.")
    parser.add_argument("--text", default=PROMPT)
    parser.add_argument("--cache_dir", default="./weights/", help="folder with the official files")
    parser.add_argument("--save_path", default="./test.mp4")
    parser.add_argument("--time_length", type=int, default=12, help="seconds; 0 makes an image, which is not written")
    parser.add_argument("--width", type=int, default=672)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--local-rank", "--local_rank", type=int, help="set by the launcher, which also says it in the environment"
    )
    o = parser.parse_args(arguments)

    with together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
        try:
            device = choose_device(None)  # of several processes each takes its own GPU
            pipe = get_T2V_pipeline({"dit": device, "vae": device, "text_embedder": device}, cache_dir=o.cache_dir)
            images = pipe(
                seed=o.seed,
                time_length=o.time_length,
                width=o.width,
                height=o.height,
                save_path=o.save_path,
                text=o.text,
            )
        except KandinskyError as error:
            if world.size > 1:
                raise  # ends the others too, and is said once
            print(f"error: {error}{f' ({error.hint})' if error.hint else ''}", file=sys.stderr)
            return 2
        if world.is_first:
            if images is None:
                print(o.save_path)
            else:  # of no length: one still, which the call returns
                still = Path(o.save_path).with_suffix(".png")
                images[0].save(still)
                print(still)
    return 0


if __name__ == "__main__":
    sys.exit(main())
