"""The second Nano's files from nothing: ``python -m kandinsky.lab.nano2.make --data DATA --run RUN --out FOLDER``.

Fetches and decodes the images, fits the linear encoder and the portraits, trains the denoiser and the decoder with the
steps of the release, and writes the files of the model. Whatever is there already is kept, and a stage that was broken
off goes on where it was, so the command can be given again until it is done.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from kandinsky.lab.nano import emoji
from kandinsky.lab.nano2 import tones
from kandinsky.lab.nano2.catalogue import SOURCE_SIDE
from kandinsky.lab.nano2.decoder import EXACT_STEPS, MADE_STEPS, train_decoder
from kandinsky.lab.nano2.package import package
from kandinsky.lab.nano2.train import COOLDOWN, RATES, STEPS, train
from kandinsky.lab.nano2.trained import Trained

log = logging.getLogger(__name__)
DONE = "done"
"""In the folder of a denoiser that has taken all of its steps."""


def make(data: Path, run: Path, out: Path) -> dict[str, int]:
    """Make the files; see the module.

    Returns:
        Their sizes in bytes by name.

    Raises:
        KeyboardInterrupt: The process was asked to end, and what there is of the stage in work is written.
    """
    emoji.fetch(data)
    emoji.decode(data, side=SOURCE_SIDE)
    settings = replace(RATES, cooldown=(STEPS - COOLDOWN, COOLDOWN))
    if not (run / "denoiser" / DONE).exists():
        if train(data, run / "denoiser", settings=settings) < settings.end:
            raise KeyboardInterrupt
        (run / "denoiser" / DONE).touch()
    if not (run / tones.FILE).exists():
        tones.make(data, run)
    exact, made = run / "decoder-exact", run / "decoder"
    if not (exact / "vae.safetensors").exists():
        train_decoder(data, exact, steps=EXACT_STEPS)
    if not (made / "vae.safetensors").exists():
        train_decoder(data, made, steps=MADE_STEPS, start=exact / "vae.safetensors", made=True)
    return package(Trained(run), out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    try:
        sys.stdout.write(json.dumps(make(options.data, options.run, options.out)) + "\n")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint")


if __name__ == "__main__":
    main()
