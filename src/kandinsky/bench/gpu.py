"""Ten minutes on a lent GPU: what has to be known of it, as one file. `python -m kandinsky.bench.gpu FOLDER`.

The tests that need CUDA, Kandinsky 5 Lite at full size (5 s, 10 s, an image), Kandinsky 4 Flash, decoding, the modes of
offload, and Diffusers beside them, all with random weights: nothing is downloaded. Each has its share of the time, and
what is most wanted comes first. `--device cpu --tiny` rehearses it with networks of a few layers, all but the kernel of
Triton and CUDA graphs.

Needs neither PyAV nor Diffusers: without the latter, ours stand alone, and autoencoders that are built from its
layers are reported as failed: all that decode here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kandinsky.bench.items import Item, Run, apart
from kandinsky.bench.record import SMALL_TEXT, changes, facts, written
from kandinsky.runtime import threads

BUDGET_S = 570.0
TESTS = Path(__file__).parents[3] / "tests"
LITE_5, LITE_10, IMAGE = "kandinsky5-lite-t2v-sft-5s", "kandinsky5-lite-t2v-sft-10s", "kandinsky5-lite-t2i"
FLASH, SMALL = "kandinsky4-t2v-flash", "nano-t2v"
_LITE = (
    "dit.model_dim=128", "dit.ff_dim=128", "dit.num_visual_blocks=1", "dit.num_text_blocks=1", "dit.time_dim=32",
    *SMALL_TEXT, "vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1",
)  # fmt: skip
_FLUX = (*_LITE[:-2], "vae.block_out_channels=32,32,32,32", "vae.layers_per_block=1")
_FLASH = (
    "dit.in_text_dim=24", "dit.time_dim=16", "dit.model_dim=32", "dit.ff_dim=48", "dit.num_blocks=1",
    "dit.axes_dims=4,6,6", "text.num_layers=1",
)  # fmt: skip
TRITON, GRAPH, COMPILED = ("--attention", "triton"), ("--backends", "blocks=graph"), ("--backends", "blocks=compiled")
TOGETHER = ("--backends", "guidance=together")
CUDA_ALONE = (TRITON, GRAPH)
TINY = {LITE_5: _LITE, LITE_10: _LITE, IMAGE: _FLUX, FLASH: _FLASH, SMALL: ()}


def items(device: str = "cuda", *, tiny: bool = False) -> list[Item]:
    """What is measured, most wanted first.

    Args:
        device: Where.
        tiny: Networks of a few layers, one frame and one round, to rehearse it.
    """

    def bench(
        name: str, model: str, stages: str, *words: str, limit_s: float, repeats: int = 3, rival: bool = False
    ) -> Item:
        more = [*words]
        if tiny:
            more = [*(() if model == IMAGE else ("--seconds", "0")), "--steps", "1", *changes(*TINY[model])]
            more += [word for at, word in enumerate(words) if "--offload" in words[max(0, at - 1) : at + 1]]
            for kernels in (TRITON, GRAPH, COMPILED, TOGETHER):
                more += kernels if kernels[1] in words and (device != "cpu" or kernels not in CUDA_ALONE) else ()
        against = ("--against", "diffusers") if rival and find_spec("diffusers") else ()
        type_ = () if tiny else ("--dtype", "bfloat16")
        rounds = "1" if tiny else str(repeats)
        return Item(
            name,
            ("-m", "kandinsky", "bench", model, "--random-weights", "--device", device, *type_, "--stages", stages,
             "--repeats", rounds, *more, *against, "--json"),
            limit_s,
        )  # fmt: skip

    tests = ("-m", "pytest", "-q", "-x", "-n", "0", "-m", "gpu", str(TESTS))
    found = [
        bench("Lite, 5 s of 768x512", LITE_5, "dit", "--steps", "2", limit_s=100, rival=True),
        bench("Image Lite, 1024x1024", IMAGE, "dit", "--steps", "10", limit_s=60, rival=True),
        bench("Lite, 10 s of 768x512", LITE_10, "dit", "--steps", "2", limit_s=80, repeats=1),
        bench("Lite, 10 s, blocks by Triton", LITE_10, "dit", "--steps", "2", *TRITON, limit_s=70, repeats=1),
        bench("Kandinsky 4 Flash, 12 s of 672x384", FLASH, "dit", "--size", "672x384", "--seconds", "12", limit_s=60),
        bench("Decoding 5 s of 768x512", LITE_5, "vae", limit_s=100, repeats=1, rival=True),
        bench("Decoding an image of 1024x1024", IMAGE, "vae", limit_s=30, rival=True),
        bench("Decoding 12 s of 672x384", FLASH, "vae", "--size", "672x384", "--seconds", "12", limit_s=40, repeats=1),
        bench("Nano, a clip", SMALL, "dit", limit_s=20),
        bench("Nano, a clip by CUDA graphs", SMALL, "dit", *GRAPH, limit_s=20),
        bench("Nano, a clip, both passes together", SMALL, "dit", *TOGETHER, limit_s=20),
        bench("Image Lite by CUDA graphs", IMAGE, "dit", "--steps", "10", *GRAPH, limit_s=30),
        bench("Image Lite, blocks compiled", IMAGE, "dit", "--steps", "10", *COMPILED, limit_s=60),
        bench("Lite, 5 s, offload module", LITE_5, "dit", "--steps", "1", "--offload", "module", limit_s=50, repeats=1),
        bench("Lite, 5 s, offload block", LITE_5, "dit", "--steps", "1", "--offload", "block", limit_s=90, repeats=1),
        bench("Qwen and CLIP, a prompt", LITE_5, "text", limit_s=60, rival=True),
    ]  # fmt: skip
    return [Item("Tests that need CUDA", tests, 120.0), *found] if TESTS.is_dir() else found


def main(arguments: Sequence[str] | None = None, *, run: Run = apart) -> int:
    """Run one command line; ``run`` as for ``measured``."""
    threads.prepare()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the result file")
    parser.add_argument("--device", default="cuda", help="where to run")
    parser.add_argument("--tiny", action="store_true", help="networks of a few layers, to rehearse it")
    parser.add_argument("--only", default="", help="only what has one of these words in its name, commas between")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="longest time for everything")
    given = parser.parse_args(arguments)
    from kandinsky.runtime.devices import check_device

    check_device(given.device)
    words = given.only.lower().split(",")
    chosen = [one for one in items(given.device, tiny=given.tiny) if any(word in one.name.lower() for word in words)]
    return written(chosen, given.folder, lambda: facts(given.device), budget_s=given.seconds, run=run)


if __name__ == "__main__":
    sys.exit(main())
