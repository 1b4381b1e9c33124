"""The folders of `official/` with tiny weights in the official layout, and a way to run the documents' lines there."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import smaller
import yaml
from PIL import Image
from seed_documents import Entry

from kandinsky import catalogue
from kandinsky.compat import official_files
from tiny import command_line, family, kandinsky4, sound, unets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(HERE.parent / "weights_locate"))  # the hub of its tests

from hub_server import Hub, start  # noqa: E402

TINY_V2A = f"""
base = "kandinsky4-v2a"
id = "kandinsky4-v2a"

[dit]
params = {{ {", ".join(f"{key} = {value!r}" for key, value in sound.UNET.items())} }}
"""


@dataclass(frozen=True)
class Outcome:
    """What came of an entry: exit code, what was printed, the arguments of the official call, and the files it made, in
    a few words each; the files themselves are deleted."""

    code: int
    printed: str
    asked: dict[str, Any]
    files: dict[str, str]


class Workspace:
    """`official/` copied into a folder, tiny weights beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "official", folder / "official", ignore=shutil.ignore_patterns("__pycache__", "weights"))
        self.cards, self.cache = folder / "cards", folder / "hub"
        self.cards.mkdir()
        self._kandinsky5()
        self._kandinsky4()
        self._sound()
        self._video()
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def run(self, entry: Entry) -> Outcome:
        """Run one entry in its folder, as typed but for its changes; what two documents type is run once."""
        text = entry.text
        for old, new in entry.changes.items():
            assert old in text, old
            text = text.replace(old, new)
        key = entry.folder, text if entry.kind == "python" else _expanded(text)
        if key not in self._outcomes:
            self._outcomes[key] = self._run(entry, text)
        return self._outcomes[key]

    def _run(self, entry: Entry, text: str) -> Outcome:
        here = self.folder / "official" / entry.folder
        if "download_models" in text:  # beside the tiny weights, not over them
            here = self.folder / "fetched" / entry.folder
            shutil.copytree(ROOT / "official" / entry.folder, here, ignore=shutil.ignore_patterns("weights"))
        before = set(here.rglob("*"))
        asked = self.folder / "asked.json"
        asked.unlink(missing_ok=True)
        in_memory: dict[str, Any] = {}
        with mock.patch.dict(os.environ, self._environment(asked)), contextlib.chdir(here):
            if "download_models" in text:
                with _hub() as url, mock.patch.dict(os.environ, {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}):
                    done = self._shell(text)
            elif entry.kind == "python" or text.split()[1].endswith(".py"):
                done = self._here(entry.kind, text, in_memory)
            else:
                done = self._shell(text)
        made = sorted(p for p in set(here.rglob("*")) - before if p.is_file() and "__pycache__" not in p.parts)
        names = tuple(str(path.relative_to(here)) for path in made)
        values = json.loads(asked.read_text(encoding="utf-8")) if asked.is_file() else {}
        shown = {name: described(here / name) for name in names}
        for name, value in in_memory.items():
            if isinstance(value, list) and value and isinstance(value[0], Image.Image):
                shown[f"{name} (in memory)"] = f"{len(value)} images, {value[0].width}x{value[0].height}"
        for path in made:
            path.unlink()
        return Outcome(done[0], done[1].replace(str(self.folder), "…"), values, shown)

    def _environment(self, asked: Path) -> dict[str, str]:
        paths = (HERE / "site", HERE, ROOT / "tests", ROOT / "src")
        return {
            "KANDINSKY_CARDS": str(self.cards),
            "KANDINSKY_TRUST_REMOTE_CODE": "1",
            "HF_HUB_CACHE": str(self.cache),
            "HF_MODULES_CACHE": str(self.folder / "modules"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "TERM": "dumb",
            "NO_PROXY": "*",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PET_STANDALONE": "1",  # launchers of tests that run at once must not share a port
            smaller.ASKED: str(asked),
        }

    def _shell(self, text: str) -> tuple[int, str]:
        """A line of a shell; Python itself begins for those of Kandinsky 4, for others it is forked."""
        if "torch.distributed" in text and Path.cwd().name != "kandinsky-4":
            text = f'python() {{ {shlex.join(command_line.client())} "$@"; }}\n{text}'
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, _plain(done.stdout + ("" if done.returncode == 0 else done.stderr))

    def _here(self, kind: str, text: str, scope: dict[str, Any]) -> tuple[int, str]:
        """A snippet, or `python SCRIPT …`, in this process, which has all the large packages loaded. ``scope`` gets the
        names of a snippet."""
        words = shlex.split(text) if kind == "shell" else []
        said, code = io.StringIO(), 0
        notes = logging.StreamHandler(said)
        with (
            smaller.made_small(),
            _modules(_stand_ins(self.folder / "stand-ins", text)),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            logging.getLogger("kandinsky").addHandler(notes)
            try:
                if words:
                    with mock.patch.object(sys, "argv", words[1:]):
                        runpy.run_path(words[1], run_name="__main__")
                else:
                    exec(compile(text, "<document>", "exec"), scope)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                logging.getLogger("kandinsky").removeHandler(notes)
        return code, _plain(said.getvalue())

    def _kandinsky5(self) -> None:
        folder = self.folder / "official" / "kandinsky-5"
        weights = folder / "weights"
        family.write_official(self.folder / "k5")
        shutil.move(self.folder / "k5" / "weights", weights)
        tiny = weights / "model" / family.CHECKPOINT
        for path in (folder / "configs").glob("*.yaml"):
            if "t2v" not in path.name and not path.name.startswith("config_"):
                continue
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            model = values["model"]
            model["dit_params"] = family.DIT_PARAMS
            model["text_embedder"]["qwen"]["emb_size"] = family.QWEN_WIDTH
            model["text_embedder"]["clip"]["emb_size"] = family.CLIP_WIDTH
            path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            checkpoint = weights / "model" / Path(model["checkpoint_path"]).name
            if not checkpoint.exists():
                os.link(tiny, checkpoint)

    def _kandinsky4(self) -> None:
        kandinsky4.write(self.folder / "k4")
        shutil.move(self.folder / "k4" / "weights", self.folder / "official" / "kandinsky-4" / "weights")
        shutil.copy(self.folder / "k4" / "cards" / "tiny.toml", self.cards / "kandinsky4.toml")

    def _sound(self) -> None:
        (self.cards / "v2a.toml").write_text(TINY_V2A, encoding="utf-8")
        model = sound.write_official(self.folder / "v2a")
        encoder = sound.write_encoder(self.folder / "cogvlm2")
        card = catalogue.find("kandinsky4-v2a")
        self._cached(card.dit.parts[0].repo, model)
        self._cached(card.text.parts[0].repo, encoder)

    def _video(self) -> None:
        unets.write(self.folder / "video")
        text = (self.folder / "video" / "cards" / "kandinsky-video-1.0.toml").read_text(encoding="utf-8")
        text = text.replace('"nobody/tiny"', '"google/flan-ul2"')
        (self.cards / "kandinsky-video-1.0.toml").write_text(text, encoding="utf-8")
        weights = self.folder / "video" / "weights"
        for name in ("kandinsky_video.pt", "kandinsky_video_interpolation.pt", "movq.pt"):
            shutil.copy(weights / name, self.folder / "official" / "kandinsky-video" / name)
        self._cached("google/flan-ul2", weights / "flan-ul2")

    def _cached(self, repository: str, folder: Path) -> None:
        """Put a folder where huggingface_hub caches the files of a repository."""
        root, commit = self.cache / f"models--{repository.replace('/', '--')}", "0" * 40
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)


def described(path: Path) -> str:
    """A file in a few words: frames, size and rate of a video, else its number of bytes."""
    if path.suffix != ".mp4":
        return f"{path.stat().st_size} bytes"
    from kandinsky.media import mux

    film = mux.probe(path)
    return f"{len(film.times_s)} frames, {film.fps:g} fps{', with sound' if film.has_audio else ''}"


def _expanded(text: str) -> str:
    """The words that a shell hands to `python`."""
    script = f"python() {{ printf '%q ' python \"$@\"; }}\n{text}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


def _plain(text: str) -> str:
    """What is printed without the bars that transformers draws."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(line for line in lines if line and not line.startswith("Loading weights"))


def _stand_ins(folder: Path, text: str) -> list[str]:
    """Folders for the front of the path: an IPython that shows nothing; and torchvision as it is since 0.28, for a text
    that imports it where it is not installed. On everybody's path it would break transformers, which looks for it.
    """
    made = {
        "IPython": {"__init__.py": "", "display.py": "def Video(*a, **k): ...\ndef display(*a): ...\n"},
        "torchvision": {"__init__.py": "from torchvision import io\n", "io.py": ""},
    }
    wanted = ["IPython"]
    if "import torchvision" in text and importlib.util.find_spec("torchvision") is None:
        wanted.append("torchvision")
    for name in wanted:
        package = folder / name / name
        package.mkdir(parents=True, exist_ok=True)
        for file, source in made[name].items():
            (package / file).write_text(source, encoding="utf-8")
    return [str(folder / name) for name in wanted]


@contextlib.contextmanager
def _modules(folders: list[str]) -> Iterator[None]:
    """The stand-ins within, and nothing of them or of the V2A door afterwards."""
    names = ("IPython", "torchvision", "kandinsky4_video2audio")

    def held() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}

    before = held()
    for name in before:
        del sys.modules[name]
    with mock.patch.object(sys, "path", [*folders, *sys.path]):
        importlib.invalidate_caches()
        try:
            yield
        finally:
            for name in held():
                del sys.modules[name]
            sys.modules.update(before)


@contextlib.contextmanager
def _hub() -> Iterator[str]:
    """A hub on this machine with a small file for each that the T2V Lite cards list."""
    hub = Hub()
    for file in dict.fromkeys(f.card for name, f in official_files.FILES.items() if name.startswith("config_")):
        for component in catalogue.find(file).components.values():
            for part in component.parts:
                hub.repos.setdefault(part.repo, {}).update({name: _content(name) for name in part.files})
    server = start(hub)
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()


def _content(name: str) -> bytes:
    if name.endswith(".index.json"):
        shards = [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
        return json.dumps({"weight_map": dict(zip("abcde", shards, strict=True))}).encode()
    return b"{}" if name.endswith(".json") else name.encode()
