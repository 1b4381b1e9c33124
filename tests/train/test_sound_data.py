"""Sound for clips is learned from a data set that `kandinsky data encode` made of videos."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a import stages
from kandinsky.model.values import Request
from kandinsky.train.data.dataset import EncodedDataset
from kandinsky.train.data.encode import encode
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.recipe import run_recipe
from kandinsky.train.sound import EncodedSound, SoundData

MEDIA = Path(os.environ.get("KANDINSKY_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
