"""LoRA repositories: fetched by name, found again by name."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from hub_server import Hub
from safetensors.torch import save

Run = Callable[..., subprocess.CompletedProcess[str]]
REPO = "kandinskylab/Kandinsky-5.0-T2V-Lite-LoRa-Dolly-in"
LAYER = "base_model.model.visual_transformer_blocks.0.self_attention.to_query"
GENERATE = ("generate", "a panda", "--seconds", "0", "--steps", "1", "-o")


def tensors(width: int) -> bytes:
    state = {
        f"{LAYER}.lora_A.default.weight": torch.ones(2, width),
        f"{LAYER}.lora_B.default.weight": torch.ones(width, 2),
    }
    return save(state, metadata={"trigger": "dolly in "})


def test_a_repository_is_named_fetched_and_used(command: Run, hub: Hub, tmp_path: Path) -> None:
    config = json.dumps({"r": 2, "lora_alpha": 1, "target_modules": ["to_query"]}).encode()
    hub.repos[REPO] = {"lora.safetensors": tensors(256), "config_lora.json": config, "README.md": b"# camera"}
    target = tmp_path / "x.png"

    before = command(*GENERATE, str(target), "--lora", REPO)
    assert (
        before.returncode == 2 and f"kandinsky download {REPO}" in before.stderr and "lora.safetensors" in before.stderr
    )
    assert not target.exists()

    done = command("download", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["file"] for line in done.stdout.splitlines()} == {"lora.safetensors", "config_lora.json"}

    after = command(*GENERATE, str(target), "--lora", f"{REPO}:0.5", "--json")
    assert after.returncode == 0, after.stderr
    (lora,) = json.loads(after.stdout)["recipe"]["lora"]
    assert lora["name"] == "Kandinsky-5.0-T2V-Lite-LoRa-Dolly-in" and lora["source"] == REPO and lora["scale"] == 0.5
    assert f"--lora {REPO}:0.5" in command("show", str(target)).stdout


def test_a_repository_for_another_model_or_of_another_kind(command: Run, hub: Hub, tmp_path: Path) -> None:
    hub.repos[REPO] = {"pytorch_lora_weights.safetensors": tensors(1792)}
    hub.repos["acme/no-lora"] = {"model.safetensors": b"x"}
    assert command("download", REPO, "-q").returncode == 0
    wrong = command(*GENERATE, str(tmp_path / "x.png"), "--lora", REPO)
    assert wrong.returncode == 2
    assert "has 1792 inputs" in wrong.stderr and "`nano2-t2v` has 256" in wrong.stderr.replace("\n", " ")
    none = command("download", "acme/no-lora")
    assert none.returncode == 2 and "`acme/no-lora` has no `lora.safetensors`" in none.stderr
