"""The official `test.py` of Kandinsky 5.0, its options and defaults, on this library. From this folder:

    python test.py --config ./configs/config_10s_sft.yaml --prompt "A dog in red hat" --video_duration 10

or by several processes: `python -m torch.distributed.launch --nnodes 1 --nproc-per-node 4 test.py`.

Different from the official script on purpose: --negative_prompt is used; without --scheduler_scale the configuration
decides, not 5.0; every size the model knows is accepted; the device is the best there is, not always `cuda:0`; and
global generators are left alone, as --seed repeats a result without them.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kandinsky import (
    KandinskyError,
    WeightsError,
    get_I2I_pipeline,
    get_I2V_pipeline,
    get_T2I_pipeline,
    get_T2V_pipeline,
)
from kandinsky.compat.official_files import download_line
from kandinsky.runtime.devices import choose_device
from kandinsky.runtime.parallel.launch import together

# by what stands in the path of the configuration; the first that fits
DOORS: dict[str, Callable[..., Any]] = {
    "t2i": get_T2I_pipeline,
    "i2i": get_I2I_pipeline,
    "i2v": get_I2V_pipeline,
    "": get_T2V_pipeline,
}


def options() -> argparse.ArgumentParser:
    """The official options. A size that is not given is the official one for video, the model's own for editing."""
    parser = argparse.ArgumentParser(description="Generate with an official configuration file.")
    parser.add_argument("--local-rank", type=int, default=0, help="set by the launcher of several processes")
    parser.add_argument(
        "--config", default="./configs/k5_lite_t2v_5s_sft_sd.yaml", help="official YAML file, or the name of one"
    )
    parser.add_argument("--prompt", default="The bear plays balalaika.")
    parser.add_argument("--image", default="./assets/test_image.jpg", help="for i2v and i2i")
    parser.add_argument("--negative_prompt", default=None, help="the model's own if omitted")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--video_duration", type=int, default=5, help="seconds; 0 makes an image")
    parser.add_argument("--expand_prompt", type=int, default=1, help="1: expand the prompt with Qwen first; 0: do not")
    parser.add_argument("--sample_steps", type=int, default=None)
    parser.add_argument("--guidance_weight", type=float, default=None)
    parser.add_argument("--scheduler_scale", type=float, default=None, help="timestep shift")
    parser.add_argument("--output_filename", default=None, help="made of the prompt if omitted")
    parser.add_argument("--seed", type=int, default=1137)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--magcache", action="store_true")
    parser.add_argument("--qwen_quantization", action="store_true")
    parser.add_argument("--attention_engine", default="auto")
    parser.add_argument("--hf_token", default=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    o = options().parse_args(arguments)
    with together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
        try:
            target = make(o)
        except KandinskyError as error:
            if world.size > 1:
                raise  # ends the others too, and is said once
            hint = error.hint or (download_line(o.config) if isinstance(error, WeightsError) else None)
            print(f"error: {error}{f' ({hint})' if hint else ''}", file=sys.stderr)
            return 2
        if world.is_first:
            print(target)
    return 0


def make(o: argparse.Namespace) -> str:
    """Generate what the options ask for; returns the path of the file."""
    if o.hf_token:
        os.environ["HF_TOKEN"] = o.hf_token
    kind = next(kind for kind in DOORS if kind in o.config)
    makes_image = kind in ("t2i", "i2i") or (kind == "" and o.video_duration == 0)
    target = o.output_filename or f"./{o.prompt.replace(' ', '_')[:32]}{'.png' if makes_image else '.mp4'}"
    pipe = DOORS[kind](
        choose_device(None),
        conf_path=o.config,
        offload=o.offload,
        magcache=o.magcache,
        quantized_qwen=o.qwen_quantization,
        attention_engine=o.attention_engine,
    )
    shift = pipe.pipeline.card.sampling.shift if o.scheduler_scale is None else o.scheduler_scale
    given = {
        "image": o.image,
        "time_length": o.video_duration,
        # the official script passes no size where the image decides
        "width": None if kind == "i2i" else o.width,
        "height": None if kind == "i2i" else o.height,
        "seed": o.seed,
        "num_steps": o.sample_steps,
        "guidance_weight": o.guidance_weight,
        "scheduler_scale": shift,
        "expand_prompts": bool(o.expand_prompt),
        "save_path": target,
    }
    if o.negative_prompt is not None:
        given["negative_caption"] = o.negative_prompt
    accepted = inspect.signature(pipe.__call__).parameters
    pipe(o.prompt, **{name: value for name, value in given.items() if name in accepted})
    return target


if __name__ == "__main__":
    sys.exit(main())
