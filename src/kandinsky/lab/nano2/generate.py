"""Looking at a run of the second Nano: one clip of a prompt, and what was understood of it.

    python -m kandinsky.lab.nano2.generate "a cat left of a dog" --run runs/nano2 -o clip.gif [--image photo.png]

Tells, as JSON, what was understood, what is ignored and what is left open; refuses a prompt without a known subject and
names the three nearest concepts by spelling.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.families.nano.reader import Understood
from kandinsky.families.nano.scene_encoder import said_beside_image
from kandinsky.families.nano.scene_words import said_of
from kandinsky.families.nano.scenes import TONES
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.objective import SIDE, STEPS
from kandinsky.lab.nano2.trained import Trained
from kandinsky.lab.nano2.word_list import read, reader


def told(text: str, understood: Understood) -> dict[str, Any]:
    """What a prompt says, for people and programs."""
    scene = understood.scene
    return {
        "prompt": text,
        "subjects": [] if scene is None else [catalogue()[s.concept or 0].en for s in scene.subjects],
        "tones": [] if scene is None else [TONES[s.tone - 1] if s.tone else None for s in scene.subjects],
        "understood": [asdict(span) for span in understood.spans],
        "ignored": list(understood.ignored),
        "left open": list(understood.left_open),
    }


def read_image(path: Path) -> Tensor:
    """An image as a first frame, [1, H, W, 3] in [-1, 1]: the largest square in its middle."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).float().div(127.5).sub(1)[None]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("-o", "--output", type=Path, required=True, help="GIF")
    options = parser.parse_args()
    understood = read(options.prompt)
    sys.stdout.write(json.dumps(told(options.prompt, understood), ensure_ascii=False) + "\n")
    if understood.scene is None and options.image is None:
        raise RequestError(
            f"nothing of the prompt is known; the nearest are {', '.join(reader().nearest(options.prompt))}"
        )
    trained = Trained(options.run)
    if options.image is not None:
        said, images = said_beside_image(understood), [read_image(options.image)]
        clip = trained.make([said], [understood.scene], steps=options.steps, images=images)[0]
    else:
        assert understood.scene is not None
        clip = trained.make([said_of(understood.scene, still=False)], [understood.scene], steps=options.steps)[0]
    frames = [Image.fromarray(frame) for frame in clip]
    frames[0].save(options.output, save_all=True, append_images=frames[1:], duration=83, loop=0)


if __name__ == "__main__":
    main()
