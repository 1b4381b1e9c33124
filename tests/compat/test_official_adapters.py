"""load_adapter, set_adapter, disable_adapters: the official signatures and errors, and the official faults gone."""

import inspect
import json
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from kandinsky import get_T2V_pipeline
from kandinsky.compat.kandinsky5 import Kandinsky5I2VPipeline, Kandinsky5T2VPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.values import Request
from kandinsky.weights.lora import write_lora
from tiny import family
from tiny.loras import lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two camera LoRAs as they lie on the hub: `config_lora.json` and `lora.safetensors`."""
    base = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("dolly", "truck")):
        write_lora(lora(family.dit(), seed=seed, size=0.05, trigger=f"{name} camera. "), base / name)
    return base


@pytest.fixture
def pipe(official: Path) -> Kandinsky5T2VPipeline:
    made = get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"))
    assert isinstance(made, Kandinsky5T2VPipeline)
    return made


def files(folder: Path, name: str) -> tuple[str, str]:
    return str(folder / name / "config_lora.json"), str(folder / name / "lora.safetensors")


def latents(pipe: Kandinsky5T2VPipeline) -> Tensor:
    """What the sampler makes; decoding would only cost time."""
    inner = pipe.pipeline
    request = Request(model="tiny", prompt="a cat", seconds=0, width=512, height=512, steps=1, guidance=1, seed=3)
    one = inner.resolve(request)
    return inner.sample(inner.noise([one]), *inner.encode([one]), one)


def test_signatures_are_the_official_ones() -> None:
    for kind in (Kandinsky5T2VPipeline, Kandinsky5I2VPipeline):
        parameters = inspect.signature(kind.load_adapter).parameters.values()
        assert [(p.name, p.default) for p in parameters][2:] == [
            ("adapter_path", None),
            ("adapter_name", None),
            ("trigger", None),
        ]
        assert list(inspect.signature(kind.set_adapter).parameters) == ["self", "adapter_name"]
        assert list(inspect.signature(kind.disable_adapters).parameters) == ["self"]


def test_adapters_change_the_picture_and_go_without_a_trace(pipe: Kandinsky5T2VPipeline, folder: Path) -> None:
    plain = latents(pipe)
    pipe.load_adapter(*files(folder, "dolly"), adapter_name="dolly")
    dolly = latents(pipe)
    pipe.disable_adapters()
    assert torch.equal(latents(pipe), plain) and not torch.equal(dolly, plain)
    pipe.set_adapter("dolly")
    assert torch.equal(latents(pipe), dolly)


def test_loading_switches_the_new_one_on_alone(pipe: Kandinsky5T2VPipeline, folder: Path) -> None:
    pipe.load_adapter(*files(folder, "dolly"), adapter_name="dolly")
    pipe.load_adapter(*files(folder, "truck"), adapter_name="truck", trigger="left, ")
    adapters = pipe.pipeline.adapters
    assert adapters.scales == {"truck": 1.0} and adapters.trigger == "left, "
    pipe.set_adapter(["dolly", "truck"])  # TypeError in the official code
    assert adapters.scales == {"dolly": 1.0, "truck": 1.0} and adapters.trigger == "dolly camera. left, "


def test_triggers_count_without_expansion(
    pipe: Kandinsky5T2VPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the official code they are added to expanded prompts only."""
    seen: list[list[str]] = []
    with pipe.pipeline.placement.hold("text") as encoder:
        encode = encoder.encode
        monkeypatch.setattr(encoder, "encode", lambda prompts, **o: seen.append(list(prompts)) or encode(prompts, **o))
    pipe.load_adapter(*files(folder, "dolly"))
    latents(pipe)
    assert seen == [["dolly camera. a cat"]]


def test_weights_beside_their_configuration_need_no_path(pipe: Kandinsky5T2VPipeline, folder: Path) -> None:
    pipe.load_adapter(files(folder, "dolly")[0])
    assert pipe.pipeline.adapters.scales == {"default": 1.0}


def test_a_peft_configuration(pipe: Kandinsky5T2VPipeline, folder: Path) -> None:
    values = json.loads((folder / "dolly" / "config_lora.json").read_text(encoding="utf-8"))
    config = peft.LoraConfig(**{key: value for key, value in values.items() if key != "peft_type"})
    pipe.load_adapter(config, files(folder, "dolly")[1])
    with pytest.raises(ValueError, match="load_adapter needs `adapter_path`"):
        pipe.load_adapter(config, adapter_name="again")


def test_errors(pipe: Kandinsky5T2VPipeline, folder: Path, tmp_path: Path) -> None:
    config, weights = files(folder, "dolly")
    for use in (lambda: pipe.set_adapter("dolly"), pipe.disable_adapters):
        with pytest.raises(ValueError, match="needs a loaded adapter: call load_adapter first"):
            use()
    with pytest.raises(TypeError, match="adapter_config is a `int`"):
        pipe.load_adapter(3, weights)
    pipe.load_adapter(config, weights)
    with pytest.raises(ValueError, match="`default` is loaded already"):
        pipe.load_adapter(config, weights)
    with pytest.raises(ValueError, match="no LoRA named `truck` is loaded: loaded are `default`"):
        pipe.set_adapter(["default", "truck"])
    with pytest.raises(WeightsError, match="cannot be read"):
        pipe.load_adapter(str(tmp_path / "none.json"), weights, adapter_name="x")
    assert issubclass(RequestError, ValueError) and pipe.pipeline.adapters.scales == {"default": 1.0}
