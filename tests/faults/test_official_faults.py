"""Faults of the official code, gone: what no other test shows of Kandinsky 5; and the page that lists them all."""

import ast
import dataclasses
import gc
import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import kandinsky
from kandinsky.compat import official_call
from kandinsky.diffusion import noise
from kandinsky.diffusion.step_cache import StepCache
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.families.parts.tiling import Tiling, tiled
from kandinsky.model.values import LatentShape, Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.rope import axis_angles
from kandinsky.runtime.parallel.launch import World
from tiny import family

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "official-faults.md"
FolderOf = Callable[[str, str], Path]
GIB = 2**30
SIZES = [tuple(map(int, size.split("x"))) for sizes in official_config.SIZES.values() for size in sizes]


def stretched(z: Tensor) -> Tensor:
    """A decoder whose result shows where each pixel came from: a causal clip, every latent pixel 8 x 8 pixels."""
    frames = torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
    return frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)


def thinned(x: Tensor) -> Tensor:
    """The encoder that undoes it."""
    return x[:, :, ::4, ::8, ::8]


@pytest.mark.parametrize("memory", [6, 8, 12, 64], ids="{} GiB".format)
def test_no_size_loses_an_edge_in_tiles(memory: int) -> None:
    """Officially 1408x640 comes out as 1400x640, and more sizes shrink where less memory is free."""
    for width, height in SIZES:
        z = torch.arange(height // 8 * (width // 8), dtype=torch.float32).view(1, 1, 1, height // 8, width // 8)
        tiling = Tiling.official(height, width, memory * GIB)
        (pixels,) = tiled(stretched, z, tiling, direction="decode", temporal=4, spatial=8)
        # blending equal values rounds; a pixel of another place would be off by 1 in 14080 at least
        torch.testing.assert_close(pixels, stretched(z), rtol=1e-6, atol=1e-6, msg=f"{width}x{height} in {tiling}")


def test_no_length_loses_frames_in_tiles() -> None:
    """Officially 21 frames are encoded as 3 latent frames, not 6."""
    tiling = Tiling((17, 32, 32), (8, 32, 32))
    for count in range(1, 100, 4):
        x = torch.arange(count, dtype=torch.float32).view(1, 1, count, 1, 1).expand(1, 1, count, 16, 16)
        latents = torch.cat(list(tiled(thinned, x, tiling, direction="encode", temporal=4, spatial=8)), dim=2)
        torch.testing.assert_close(latents, thinned(x), rtol=1e-6, atol=1e-6, msg=f"{count} frames")


def test_tiles_do_not_depend_on_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tilings = []
    for free in (2 * GIB, 100 * GIB):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 141 * GIB))
        tilings.append([Tiling.official(height, width) for width, height in SIZES])
    assert tilings[0] == tilings[1]


def small(pipe: GenerationPipeline) -> GenerationPipeline:
    """Sizes that a processor does in no time."""
    clip = dataclasses.replace(pipe.card.clip, sizes=("64x64", "96x64"), default_size="64x64")
    classes = {name: dataclasses.replace(c, area=64 * 96, multiple=16) for name, c in pipe.card.classes.items()}
    pipe.card = dataclasses.replace(pipe.card, clip=clip, classes=classes)
    return pipe


def latents(pipe: GenerationPipeline, on_step: Any = None, **values: Any) -> Tensor:
    job = pipe.resolve(Request(model=pipe.card.id, **({"prompt": "a cat", "seed": 3} | values)))
    text, negative = pipe.encode([job])
    known = pipe.known([job])
    return pipe.sample(pipe.noise([job]), text, negative, job, known=known, on_step=on_step)


def test_a_seed_repeats_an_edit_whatever_came_before(folder_of: FolderOf) -> None:
    """Officially the source's latent is drawn from a generator that nobody seeded."""
    pipe = small(kandinsky.load(folder_of("i2i", "official"), device="cpu"))
    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(latents(pipe, image=source, steps=1))
    assert torch.equal(*made)


def test_the_sizes_of_the_table_are_options_of_the_script() -> None:
    """Officially 1408 is no choice of --width and --height."""
    parser = runpy.run_path(str(ROOT / "official" / "kandinsky-5" / "test.py"))["options"]()
    for width, height in SIZES:
        given = parser.parse_args(["--width", str(width), "--height", str(height)])
        assert (given.width, given.height) == (width, height)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1)])
def test_an_image_of_a_few_pixels_has_no_path_of_its_own(size: tuple[int, int], folder_of: FolderOf) -> None:
    """Officially images so small take a branch that drops an axis."""
    pipe = kandinsky.load(folder_of("i2v", "official"), device="cpu")
    dot = Image.new("RGB", size, (200, 30, 40))
    job = pipe.resolve(Request(pipe.card.id, "a cat", image=dot, seconds=0, seed=1))
    used = (job.shape.width, job.shape.height)
    assert job.image.pixels().size == used and all(side % 16 == 0 for side in used)
    assert abs(used[0] * used[1] / (512 * 768) - 1) < 0.1
    assert (job.image.given, job.image.used) == ("{}x{}".format(*size), "{}x{}".format(*used))
    result = latents(small(pipe), image=dot, seconds=0, steps=1)
    assert result.shape[1] == 1 and torch.isfinite(result).all()


@pytest.fixture(scope="module")
def cached(official: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerationPipeline:
    """The official call with a calibration for 12 guided steps."""
    values = family.official_config(str(official / "weights"), num_steps=12)
    values["magcache"] = {"mag_ratios": [1 + 0.01 * (i % 7) for i in range(22)]}
    conf = tmp_path_factory.mktemp("cached") / "config.yaml"
    conf.write_text(yaml.safe_dump(values), encoding="utf-8")
    return small(kandinsky.get_T2V_pipeline("cpu", conf_path=str(conf), magcache=True).pipeline)


@pytest.mark.parametrize("between", ["more steps", "fewer steps", "no guidance", "given up"])
def test_a_cached_run_does_not_depend_on_the_one_before(cached: GenerationPipeline, between: str) -> None:
    """Officially the counters and residuals of a run that went otherwise are taken over by the next one."""

    def alive() -> int:
        gc.collect()
        return sum(type(one) is StepCache for one in gc.get_objects())

    before = alive()
    plain = latents(cached, seconds=0, cache="none")
    first = latents(cached, seconds=0)
    assert not torch.equal(first, plain), "passes were left out"

    def stop(step: int, total: int, preview: Tensor) -> None:
        if step == 7:
            raise KeyboardInterrupt

    if between == "given up":
        with pytest.raises(KeyboardInterrupt):
            latents(cached, on_step=stop, seconds=0)
    else:
        other = {"more steps": {"steps": 15}, "fewer steps": {"steps": 5}, "no guidance": {"guidance": 1.0}}[between]
        # of another size too: a residual that stayed would not even fit
        assert torch.isfinite(latents(cached, seconds=0, width=96, height=64, **other)).all()
    assert torch.equal(latents(cached, seconds=0), first)
    assert alive() == before, "residuals go with their run"


@pytest.mark.parametrize(
    ("key", "value"),
    [("method", "sta"), ("add_sta", False), ("causal", True), ("local", True), ("glob", True), ("window", 5),
     ("chunk", True)],
)  # fmt: skip
def test_attention_keys_without_effect_are_refused(key: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"attention key `{key}` = `{value}` has no effect"):
        AttentionSpec.from_dict({"type": "nabla", key: value})


def test_noise_is_drawn_where_its_generator_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Officially the generator lives on the current device, whatever device the transformer has."""
    seen = []

    class Generator:
        def __init__(self, device: Any) -> None:
            self.device = torch.device(device)

        def manual_seed(self, seed: int) -> None: ...

    def randn(shape: Any, *, generator: Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        seen.append((generator.device, device))
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "randn", randn)
    other = torch.device("cuda:1")
    noise.draw(LatentShape(1, 2, 2, 4), 3, device=other)
    assert seen == [(other, other)]


def test_nothing_asks_torchvision() -> None:
    """Its video writer is gone from recent versions; files are written with PyAV."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            # its optical flow may be measured with, where it is installed
            asked = [name for name in names if name.split(".")[0] == "torchvision"]
            assert all(name.startswith("torchvision.models.") for name in asked), path


def test_many_processes_leave_the_device_map_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert World.started() == World(), "a rank without a size is no launcher's"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("kandinsky.runtime.devices.choose_device", lambda asked: "cuda")
    device_map = {"dit": "cuda:0", "vae": "cuda:0", "text": "cpu"}
    places, layout = official_call.in_company(device_map)
    assert places == {"dit": "cuda:1", "vae": "cuda:1", "text": "cpu"} and layout == "auto"
    assert device_map == {"dit": "cuda:0", "vae": "cuda:0", "text": "cpu"}


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_shown_where_it_is_wanted(shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with official_call.progress_bar(shown) as on_step:
        assert (on_step is not None) is shown
        if on_step:
            on_step(2, 4, torch.zeros(1))
    assert bool(sys.stderr.getvalue()) is shown  # type: ignore[attr-defined]


@torch.no_grad()
def test_positions_have_no_end() -> None:
    """Officially the 129th latent frame, the 129th token of a side and the 1025th word are an index error."""
    params = DiTParams(
        in_text_dim=6, in_text_dim2=6, time_dim=16, model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=1,
        axes_dims=(2, 2, 4), in_visual_dim=2, out_visual_dim=2,
    )  # fmt: skip
    net = family.randomise(DiffusionTransformer3D(params))
    for grid, words in (((130, 2, 2), 1), ((1, 260, 2), 1), ((1, 2, 260), 1), ((1, 2, 2), 1030)):
        x, text = torch.randn(1, *grid, 2), TextEmbeddings(torch.randn(1, words, 6), torch.randn(1, 6))
        assert torch.isfinite(net(x, torch.tensor([500.0]), text)).all()
    angles = axis_angles(torch.arange(1030), 8)
    torch.testing.assert_close(angles[1029], 1029 * angles[1])


def rows() -> dict[str, list[str]]:
    """Number → the cells of its row."""
    lines = [line.strip().strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()
             if re.match(r"\| V?\d+ \|", line)]  # fmt: skip
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_page_lists_all_and_every_test_it_names_is_there() -> None:
    table = rows()
    assert list(table) == [*map(str, range(1, 26)), *(f"V{i}" for i in range(1, 18))]
    for number, cells in table.items():
        assert len(cells) == 3 and all(cells), number
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[2])
        assert named and cells[2].count("::") == len(named), number
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (number, file, name)
            assert name.startswith("test_")
