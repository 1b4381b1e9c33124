"""What two processes compute together; run by ``measure.groups`` under torchrun, in its environment."""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from frozen import measure

if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    folder, target = map(Path, sys.argv[1:])
    found = measure.in_group(folder)
    if os.environ["RANK"] == "0":
        np.savez(target, **found.arrays)
        target.with_suffix(".json").write_text(json.dumps(found.recipes))
    torch.distributed.destroy_process_group()
