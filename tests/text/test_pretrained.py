"""Folders that transformers reads: no program code of theirs runs, and whatever is wrong with them is one line."""

from __future__ import annotations

import ast
import builtins
import io
import json
import lzma
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kandinsky
from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.families.kandinsky5.qwen_clip import QwenClipEncoder, QwenClipFiles, read_qwen_clip
from kandinsky.text.pretrained import from_folder, read_tokenizer_file
from kandinsky.text.t5 import read_t5
from kandinsky.weights.untrusted import LARGEST_TABLE
from tiny import kandinsky4

SOURCE = Path(kandinsky.__file__).parent
EVIL = "from pathlib import Path\nPath({mark!r}).touch()\n"
AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoTokenizer": [None, "evil.EvilTokenizer"],
    "AutoImageProcessor": "evil.EvilProcessor",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions put to the person at the terminal, who says yes to all."""
    questions: list[str] = []

    def say_yes(question: object = "") -> str:
        questions.append(str(question))
        return "yes"

    monkeypatch.setattr(builtins, "input", say_yes)
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    return questions


@pytest.fixture
def weights(official: Path, tmp_path: Path) -> Path:
    """A copy of the tiny official folders, to spoil."""
    return Path(shutil.copytree(official / "weights", tmp_path / "weights"))


@pytest.fixture(scope="session")
def kandinsky4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kandinsky4.write(tmp_path_factory.mktemp("k4") / "all") / "weights"


def read(weights: Path) -> QwenClipEncoder:
    files = QwenClipFiles(weights / "text_encoder", weights / "text_encoder2")
    return read_qwen_clip(files, dtype=torch.float32)


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    values = {key: value for key, value in (values | changes).items() if value is not ...}
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("folder", ["text_encoder", "text_encoder2"])
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "evil"}),
        ("config.json", {"model_type": ...}),
        ("config.json", {}),
        ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": ...}),
        ("preprocessor_config.json", {"image_processor_type": "EvilProcessor"}),
    ],
)
def test_no_code_of_a_folder_runs_and_nobody_is_asked(
    weights: Path, tmp_path: Path, asked: list[str], folder: str, file: str, changes: dict[str, Any]
) -> None:
    mark = tmp_path / "sprung"
    (weights / folder / "evil.py").write_text(EVIL.format(mark=str(mark)), encoding="utf-8")
    edit(weights / folder / file, auto_map=AUTO_MAP, **changes)
    try:
        read(weights)
    except WeightsError as error:
        assert "\n" not in str(error) and str(weights / folder) in str(error)
        if file == "config.json":
            assert "trust_remote_code" in str(error) and "auto_map" in str(error)
    assert not mark.exists() and not asked


@pytest.mark.parametrize("side", ["input", "stdin"])
def test_the_command_refuses_code_with_one_line(
    official: Path, tmp_path: Path, asked: list[str], side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from kandinsky.cli.main import main

    copy = Path(shutil.copytree(official, tmp_path / "copy"))
    mark = tmp_path / "sprung"
    (copy / "weights" / "text_encoder" / "evil.py").write_text(EVIL.format(mark=str(mark)), encoding="utf-8")
    edit(copy / "weights" / "text_encoder" / "config.json", model_type="mine", auto_map=AUTO_MAP)
    (conf,) = copy.glob("*.yaml")
    conf.write_text(conf.read_text(encoding="utf-8").replace(str(official), str(copy)), encoding="utf-8")
    code = main(["generate", "a panda", "-m", str(conf), "--steps", "1", "--seed", "1", "--seconds", "0",
                 "-o", str(tmp_path / "x.png"), "--device", "cpu"])  # fmt: skip
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(errors) == 1 and "--trust-remote-code" in errors[0]
    assert not mark.exists() and not asked


def test_only_one_function_lets_other_libraries_read_a_folder() -> None:
    """``from_pretrained`` is called in ``text/pretrained.py`` alone, and nothing else opens a file by itself."""
    doors = {"from_pretrained", "from_file", "from_single_file", "load_config", "from_buffer"}
    found = {
        (path.relative_to(SOURCE).as_posix(), node.attr)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in doors and ast.unparse(node) != "torch.from_file"
    }
    assert found == {("text/pretrained.py", "from_pretrained")}


def test_every_call_says_that_no_code_is_trusted(tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    class Stub:
        @classmethod
        def from_pretrained(cls, folder: Path, **options: Any) -> None:
            given.update(options)

    from_folder(Stub, tmp_path)
    assert given == {"local_files_only": True, "trust_remote_code": False}
    from_folder(Stub, tmp_path, trust_remote_code=True)
    assert given["trust_remote_code"] is True


def test_trusted_code_is_the_folders_own(tmp_path: Path) -> None:
    edit(tmp_path / "config.json", auto_map={"AutoModel": "somebody/else--modeling.Model"})
    with pytest.raises(WeightsError, match="another repository"):
        from_folder(object, tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "somebody/kernels:attention"),
        ("attn_implementation", "flash_attention_9"),
        ("transformers_weights", "../../other.safetensors"),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_a_configuration_cannot_lead_elsewhere(weights: Path, key: str, value: Any) -> None:
    edit(weights / "text_encoder" / "config.json", **{key: value})
    with pytest.raises(WeightsError, match=rf"`{key}`, which is not supported"):
        read(weights)


def test_adapters_in_the_folder_are_refused(weights: Path) -> None:
    edit(weights / "text_encoder2" / "adapter_config.json", base_model_name_or_path="somebody/else")
    with pytest.raises(WeightsError, match="adapter"):
        read(weights)


def reshaped(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1, dtype=tensor.dtype)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(reshaped, "has shape"), (with_nan, "holds NaN or infinity"), (lambda t: t * torch.inf, "holds NaN or infinity")],
)
@pytest.mark.parametrize("which", [2, -3])
def test_a_spoilt_tensor_of_an_encoder_is_named(
    weights: Path, spoil: Callable[[torch.Tensor], torch.Tensor], said: str, which: int
) -> None:
    file = weights / "text_encoder2" / "model.safetensors"
    state = load_file(file)
    name = sorted(state)[which]
    save_file(state | {name: spoil(state[name] + 1)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=said) as caught:
        read(weights)
    assert name.removeprefix("text_model.") in str(caught.value) and str(weights / "text_encoder2") in str(caught.value)


def test_a_spoilt_tensor_of_t5_is_named(kandinsky4_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(kandinsky4_folder, tmp_path / "t5"))
    file = copy / "text_encoder" / "model.safetensors"
    state = load_file(file)
    name = next(name for name in state if "SelfAttention.q" in name)
    save_file(state | {name: reshaped(state[name])}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"`{name}` .* has shape"):
        read_t5(copy / "text_encoder", copy / "tokenizer", dtype=torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 0},
        {"d_model": -3},
        {"d_model": "many"},
        {"d_model": None},
        {"d_model": 1e300},
        {"d_model": 10**7},
        {"num_heads": 0},
        {"num_heads": [1]},
        {"num_layers": 10**9},
        {"num_layers": {}},
        {"vocab_size": -1},
        {"vocab_size": 2**40},
        {"feed_forward_proj": 7},
        {"relative_attention_num_buckets": 0},
        {"torch_dtype": "float9000"},
        {"dtype": 3},
        {"model_type": ["t5"]},
        {"model_type": "bert"},
        {"architectures": 5},
    ],
)
def test_configurations_that_make_no_model(kandinsky4_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(kandinsky4_folder, tmp_path / "t5"))
    edit(copy / "text_encoder" / "config.json", **changes)
    try:
        read_t5(copy / "text_encoder", copy / "tokenizer", dtype=torch.float32)
    except KandinskyError as error:
        assert "\n" not in str(error) and "text_encoder" in str(error)
    else:
        assert changes.keys() <= {"torch_dtype", "dtype", "architectures", "relative_attention_num_buckets"}, "was read"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 5}}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"model_max_length": "long", "added_tokens_decoder": 7}'),
        ("tokenizer_config.json", b'{"tokenizer_class": 9}'),
        ("config.json", b"{"),
        ("config.json", b"null"),
        ("config.json", b'{"text_config": [], "vision_config": 3, "model_type": "qwen2_5_vl"}'),
        ("config.json", b'{"a":' * 50_000),
        ("preprocessor_config.json", b'{"min_pixels": "few", "size": [0]}'),
        ("preprocessor_config.json", b"7"),
        ("generation_config.json", b"7"),
    ],
)
def test_broken_files_beside_the_weights(weights: Path, name: str, content: bytes) -> None:
    (weights / "text_encoder" / name).write_bytes(content)
    try:
        read(weights)
    except KandinskyError as error:
        assert "\n" not in str(error) and str(weights / "text_encoder") in str(error)


def test_a_tokenizer_of_another_model_is_refused(weights: Path) -> None:
    for path in (weights / "text_encoder").glob("*token*"):
        shutil.copy(path, weights / "text_encoder2" / path.name)
    for name in ("vocab.json", "merges.txt"):
        (weights / "text_encoder2" / name).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="do not belong together"):
        read(weights)


def test_a_compressed_tokenizer_is_the_same(weights: Path, tmp_path: Path) -> None:
    plain = next((weights / "text_encoder").parent.rglob("tokenizer.json"))
    packed = tmp_path / "tokenizer.json.xz"
    whole = lzma.compress(plain.read_bytes())
    packed.write_bytes(whole)
    assert read_tokenizer_file(packed).to_str() == read_tokenizer_file(plain).to_str()
    for damaged in (whole[:-40], b"{}", b"", whole[:30] + bytes(20) + whole[50:]):
        packed.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"tokenizer\.json\.xz"):
            read_tokenizer_file(packed)
    packed.write_bytes(lzma.compress(bytes(LARGEST_TABLE + 1)))
    with pytest.raises(WeightsError, match="64 MB, too much"):
        read_tokenizer_file(packed)


def test_a_tokenizer_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not there"):
        read_tokenizer_file(tmp_path / "tokenizer.json")
    assert not issubclass(WeightsError, RequestError)
