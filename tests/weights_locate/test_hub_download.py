"""`kandinsky download` against a hub of our own: what is fetched, resumed, verified, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub

Run = Callable[..., subprocess.CompletedProcess[str]]
DIT, QWEN, CLIP, VAE = "acme/tiny-dit", "acme/tiny-qwen", "acme/tiny-clip", "acme/tiny-vae"
LISTED = {
    DIT: ["model/tiny.safetensors"],
    QWEN: [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ],
    CLIP: ["config.json", "model.safetensors"],
    VAE: ["vae/config.json", "vae/w.safetensors"],
}


def cached(tmp_path: Path, repo: str, name: str) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT / name


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.partial")]


@pytest.mark.slow
def test_fetches_what_the_card_lists_and_nothing_else(kandinsky: Run, hub: Hub, tmp_path: Path) -> None:
    done = kandinsky("download", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["repo"], line["file"]) for line in lines} == {(r, f) for r, files in LISTED.items() for f in files}
    for repo, files in LISTED.items():
        assert sorted(hub.fetched(repo)) == sorted(files)
        for name in files:
            assert cached(tmp_path, repo, name).read_bytes() == hub.repos[repo][name]
    assert {line["revision"] for line in lines} == {COMMIT}
    assert not leftovers(tmp_path)

    assert '"local": true' in kandinsky("models", "--json").stdout.split('"id": "tiny"')[1].split("}")[0]
    plan = json.loads(kandinsky("plan", "-m", "tiny", "--device", "cpu", "--json").stdout)
    assert plan["missing"] == [] and plan["download_bytes"] == 0

    hub.requests.clear()
    again = kandinsky("download", "tiny")
    assert again.returncode == 0 and "0.00 GB fetched" in again.stderr
    assert not [name for repo in LISTED for name in hub.fetched(repo)]


def test_lays_out_the_official_folder(command: Run, hub: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    done = command("download", "tiny", "--dir", str(weights), "--quiet")
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(weights)) for path in weights.rglob("*") if path.is_file())
    assert found == sorted(
        ["model/tiny.safetensors", "vae/config.json", "vae/w.safetensors"]
        + [f"text_encoder/{name}" for name in LISTED[QWEN]]
        + [f"text_encoder2/{name}" for name in LISTED[CLIP]]
    )
    assert not (tmp_path / "hf" / "hub").exists()
    assert '"missing": []' in command("plan", "-m", "tiny", "--json", KANDINSKY_WEIGHTS=str(weights)).stdout
    assert '"missing": []' not in command("plan", "-m", "tiny", "--json").stdout


def test_a_killed_transfer_goes_on_where_it_stopped(
    kandinsky: Run, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    whole = hub.repos[DIT]["model/tiny.safetensors"]
    sent = 16 << 20
    hub.fault = lambda repo, name, first, content: content[first:sent] if repo == DIT and not first else None
    process = subprocess.Popen(
        [sys.executable, "-m", "kandinsky", "download", "tiny", "--quiet"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    try:
        while not any(path.stat().st_size for path in leftovers(tmp_path)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (partial,) = leftovers(tmp_path)
    begun = partial.stat().st_size
    assert 0 < begun <= sent and partial.read_bytes() == whole[:begun]
    assert not cached(tmp_path, DIT, "model/tiny.safetensors").exists()

    hub.stall.set()
    hub.fault = None
    hub.requests.clear()
    done = kandinsky("download", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.ranges() == [f"bytes={begun}-"]
    assert json.loads(done.stdout.splitlines()[0])["transferred"] == len(whole) - begun
    assert cached(tmp_path, DIT, "model/tiny.safetensors").read_bytes() == whole
    assert not leftovers(tmp_path)


def test_a_dropped_connection_is_taken_up_again(command: Run, hub: Hub, tmp_path: Path) -> None:
    hub.stall.set()  # cut at once
    hub.fault = lambda repo, name, first, content: content[first : 16 << 20] if repo == DIT and not first else None
    done = command("download", "tiny", "--quiet")
    assert done.returncode == 0, done.stderr
    assert len(hub.ranges()) == 1
    whole = hub.repos[DIT]["model/tiny.safetensors"]
    assert cached(tmp_path, DIT, "model/tiny.safetensors").read_bytes() == whole


def test_what_arrives_broken_is_not_kept(command: Run, hub: Hub, tmp_path: Path) -> None:
    # as many bytes as promised, but one is another
    hub.fault = lambda repo, name, first, content: (
        b"\xff" + content[1:] if name == "model-00002-of-00002.safetensors" else None
    )
    done = command("download", "tiny", "--quiet")
    assert done.returncode == 2
    (error, hint) = [line for line in done.stderr.splitlines() if line.startswith(("error", "hint"))]
    assert "model-00002-of-00002.safetensors" in error and QWEN in error and "SHA-256" in error
    assert hint == "hint: run the same command again"
    assert not cached(tmp_path, QWEN, "model-00002-of-00002.safetensors").exists() and not leftovers(tmp_path)
    assert cached(tmp_path, DIT, "model/tiny.safetensors").exists()


def test_a_file_that_rotted_is_found_and_fetched_again(command: Run, kandinsky: Run, hub: Hub, tmp_path: Path) -> None:
    assert command("download", "tiny", "--quiet").returncode == 0
    victims = [(CLIP, "model.safetensors"), (VAE, "vae/config.json")]  # known by SHA-256, and by git's hash
    for repo, name in victims:
        path = cached(tmp_path, repo, name).resolve()
        rotten = bytearray(path.read_bytes())
        rotten[-1] ^= 1
        path.write_bytes(rotten)
    hub.requests.clear()
    done = kandinsky("download", "tiny", "--quiet")
    assert done.returncode == 0, done.stderr
    assert [(repo, name) for repo in LISTED for name in hub.fetched(repo)] == victims
    for repo, name in victims:
        assert cached(tmp_path, repo, name).read_bytes() == hub.repos[repo][name]
        assert f"differs from `{name}` of `{repo}`" in done.stderr


def test_offline_names_the_missing_file_and_the_place(kandinsky: Run, hub: Hub, tmp_path: Path) -> None:
    assert kandinsky("download", "tiny", "--quiet").returncode == 0
    hub.requests.clear()
    assert kandinsky("download", "tiny", HF_HUB_OFFLINE="1").returncode == 0
    gone = cached(tmp_path, QWEN, "model-00002-of-00002.safetensors")
    gone.unlink()
    done = kandinsky("download", "tiny", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and not hub.requests
    error = next(line for line in done.stderr.splitlines() if line.startswith("error"))
    assert "`model-00002-of-00002.safetensors`" in error and QWEN in error and str(gone.parent) in error
    assert "HF_HUB_OFFLINE" in error


def test_a_hub_that_is_away_names_the_missing_file(kandinsky: Run, tmp_path: Path) -> None:
    done = kandinsky("download", "tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    error = next(line for line in done.stderr.splitlines() if line.startswith("error"))
    assert (
        "http://127.0.0.1:9" in error and "`model/tiny.safetensors`" in error and str(tmp_path / "hf" / "hub") in error
    )
    assert "Traceback" not in done.stderr


def test_token_goes_to_the_hub(command: Run, hub: Hub) -> None:
    assert command("download", "tiny", "--quiet", HF_TOKEN="hf_abc").returncode == 0
    assert set(hub.tokens) == {"Bearer hf_abc"}


def test_refusals_are_one_clear_line(command: Run, hub: Hub) -> None:
    hub.gated.add(CLIP)
    gated = command("download", "tiny", "--quiet")
    assert gated.returncode == 2 and f"error: `{CLIP}` is gated" in gated.stderr and "HF_TOKEN" in gated.stderr
    assert f"{hub.url}/{CLIP}" in gated.stderr and "`config.json`" in gated.stderr
    hub.gated.clear()
    del hub.repos[CLIP]["model.safetensors"]
    absent = command("download", "tiny", "--quiet")
    assert absent.returncode == 2 and f"`{CLIP}` has no `model.safetensors`" in absent.stderr
    del hub.repos[CLIP]
    unknown = command("download", "tiny", "--quiet")
    assert unknown.returncode == 2 and f"error: `{CLIP}` is not on" in unknown.stderr
    assert "Traceback" not in gated.stderr + absent.stderr + unknown.stderr


def test_what_may_be_refused_is_asked_for_first(command: Run, hub: Hub, cards_folder: Path) -> None:
    text = (cards_folder / "tiny.toml").read_text(encoding="utf-8").replace('id = "tiny"', 'id = "gated"')
    text = text.replace('files = ["vae/"]', 'files = ["vae/"]\ngated = true')
    (cards_folder / "gated.toml").write_text(text, encoding="utf-8")
    hub.gated.add(VAE)
    refused = command("download", "gated", "--quiet")
    assert refused.returncode == 2 and f"`{VAE}` is gated: the hub gives `vae/` only" in refused.stderr
    assert not hub.fetched(DIT)
    # the plan says so beforehand
    assert "token" in command("plan", "-m", "gated", "--device", "cpu").stdout


def test_a_model_is_fetched_by_its_repository_too(command: Run, hub: Hub) -> None:
    twin = f"{DIT}-Diffusers"
    folders = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    hub.repos[twin] = {f"{folder}/config.json": folder.encode() for folder in folders}
    hub.repos[twin] |= {"scheduler/scheduler_config.json": b"{}", "README.md": b"words"}
    assert command("download", DIT, "--quiet").returncode == 0
    assert hub.fetched(DIT) == LISTED[DIT] and hub.fetched(QWEN)
    assert command("download", twin, "--quiet").returncode == 0
    assert sorted(hub.fetched(twin)) == sorted(f"{folder}/config.json" for folder in folders)


def test_copies_for_other_frameworks_stay_where_they_are(command: Run, hub: Hub) -> None:
    hub.repos[VAE] |= {"vae/w.bin": b"pickle", "vae/tf_model.h5": b"tf", "vae/readme.md": b"words"}
    assert command("download", "tiny", "--quiet").returncode == 0
    assert sorted(hub.fetched(VAE)) == ["vae/config.json", "vae/readme.md", "vae/w.safetensors"]


def test_shipped_models_need_no_hub(kandinsky: Run, hub: Hub) -> None:
    done = kandinsky("download", "nano-t2v", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and "ships with the package" in done.stderr and done.stdout == ""
