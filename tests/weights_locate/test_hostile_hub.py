"""A hub, or a mirror that HF_ENDPOINT names, that lies: nothing is written elsewhere, every lie is one line."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub

import kandinsky
from kandinsky.errors import KandinskyError, WeightsError

Run = Callable[..., subprocess.CompletedProcess[str]]
DIT, QWEN, CLIP, VAE = "acme/tiny-dit", "acme/tiny-qwen", "acme/tiny-clip", "acme/tiny-vae"
EVIL = b"not yours"


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


@pytest.fixture
def fetch(command: Run, hub: Hub, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Fetches `tiny` into the cache or into a folder."""

    def run(into: str) -> subprocess.CompletedProcess[str]:
        folder = ["--dir", str(tmp_path / "deep" / "down" / "weights")] if into == "dir" else []
        return command("download", "tiny", "--quiet", *folder)

    hub.repos[DIT] = {"model/tiny.safetensors": b"some bytes" * 1000}
    return run


@pytest.mark.parametrize("into", ["cache", "dir"])
@pytest.mark.parametrize(
    "name",
    [
        "vae/../../escaped",
        "vae/../../../../../../escaped",
        "vae/./here",
        "vae//absolute",
        "vae/..",
        "vae/back\\slash",
        "vae/nul\0byte",
        "vae/lone\ud800surrogate",
        "vae/" + "long" * 100,
    ],
)
def test_names_that_lead_out_of_the_folder(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path, into: str, name: str
) -> None:
    hub.repos[VAE][name] = EVIL
    before = everything(tmp_path)
    error = refused(fetch(into))
    assert VAE in error and "not to be trusted" in error
    new = everything(tmp_path) - before
    assert not [path for path in new if "escaped" in path or "here" in path]
    assert all(path.startswith(("hf/", "deep/down/weights/")) for path in new)


@pytest.mark.parametrize("into", ["cache", "dir"])
@pytest.mark.parametrize("name", ["vae/..%2f..%2fescaped", "vae/%2e%2e", "vae/~", "vae/$(touch x)", "vae/a b.json"])
def test_names_that_only_look_dangerous_are_names(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path, into: str, name: str
) -> None:
    hub.repos[VAE][name] = EVIL
    done = fetch(into)
    assert done.returncode == 0, done.stderr
    (found,) = [path for path in tmp_path.rglob("*") if path.name == name.removeprefix("vae/")]
    assert found.read_bytes() == EVIL and found.parent.name == "vae"


def test_an_unlisted_name_harms_nobody(fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub) -> None:
    hub.repos[CLIP]["../../escaped"] = EVIL
    assert fetch("cache").returncode == 0


@pytest.mark.parametrize("tag", ["..", ".", "../../escaped", "/etc/escaped", "a/b", "", "x" * 500, "..%2fx", "a b"])
def test_etags_are_no_paths(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path, tag: str
) -> None:
    hub.etags["model/tiny.safetensors"] = tag
    assert "ETag" in refused(fetch("cache"))
    assert not [path for path in everything(tmp_path) if "escaped" in path or "tiny.safetensors" in path]


@pytest.mark.parametrize("sha", ["../../../escaped", "", None, 7, "0" * 39, "G" * 40])
def test_commits_are_commits(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path, sha: object
) -> None:
    hub.sha = sha
    assert "commit" in refused(fetch("dir"))
    assert not [path for path in everything(tmp_path) if "escaped" in path or "weights" in path]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": "many"},
        {"size": 10**30},
        {"size": [1]},
        {"lfs": {"sha256": "../../escaped", "size": 1, "pointerSize": 1}},
        {"lfs": {"sha256": 5, "size": 1, "pointerSize": 1}},
        {"lfs": "none"},
        {"blobId": "short", "lfs": None},
        {"size": 800},
    ],
)
def test_sizes_and_hashes_that_cannot_be(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path, changes: dict[str, object]
) -> None:
    hub.listing = {"model/tiny.safetensors": changes}
    error = refused(fetch("dir"))
    assert DIT in error
    assert not (tmp_path / "deep" / "down" / "weights" / "model" / "tiny.safetensors").exists()


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"null", b"7", b'{"siblings": 5}', b'{"id": 3, "siblings": [3]}', b'{"siblings": [{"size": 1}]}',
     b"[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
def test_answers_that_are_no_list_of_files(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, answer: bytes
) -> None:
    hub.listing = answer if answer.isascii() else b'"\xc3\xbf"'
    assert DIT in refused(fetch("cache"))


def test_a_redirect_that_never_ends(fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub) -> None:
    hub.redirects.add("model/tiny.safetensors")
    error = refused(fetch("cache"))
    assert "redirect" in error.lower() and DIT in error


def test_a_file_that_never_ends_fills_no_disk(
    fetch: Callable[..., subprocess.CompletedProcess[str]], hub: Hub, tmp_path: Path
) -> None:
    hub.endless.add("vae/w.safetensors")
    assert "more bytes than the 2400" in refused(fetch("cache"))
    assert not [path for path in tmp_path.rglob("*.partial")]


def test_what_dead_transfers_of_other_revisions_left_is_removed(kandinsky: Run, hub: Hub, tmp_path: Path) -> None:
    blobs = tmp_path / "hf" / "hub" / f"models--{VAE.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    stale, same, other = (blobs / name for name in (
        f"{'a' * 40}.{'b' * 12}.partial", f"{'a' * 40}.{COMMIT[:12]}.partial", "notes.partial"
    ))  # fmt: skip
    for path in (stale, same, other):
        path.write_bytes(b"some bytes")
    living = blobs / f"{'c' * 40}.{'d' * 12}.partial"
    living.write_bytes(b"being written")
    hold = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(living)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            assert kandinsky("download", "tiny", "--quiet").returncode == 0
        finally:
            holder.kill()
    assert not stale.exists() and same.exists() and other.exists() and living.exists()


def test_two_processes_do_not_write_one_file(
    kandinsky: Run, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.fault = lambda repo, name, first, content: content[first : 16 << 20] if repo == DIT and not first else None
    first = subprocess.Popen(
        [sys.executable, "-m", "kandinsky", "download", "tiny", "--quiet"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    try:
        while not any(path.stat().st_size for path in tmp_path.rglob("*.partial")):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
        assert "fetched by another process" in refused(kandinsky("download", "tiny", "--quiet"))
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()


def test_links_in_the_folder_do_not_lead_out(command: Run, hub: Hub, tmp_path: Path) -> None:
    weights, outside = tmp_path / "weights", tmp_path / "outside"
    weights.mkdir()
    outside.mkdir()
    (weights / "vae").symlink_to(outside)
    error = refused(command("download", "tiny", "--quiet", "--dir", str(weights)))
    assert "symbolic link" in error and not everything(outside)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", '["../../etc/passwd"]'),
        ("files", '["/etc/passwd"]'),
        ("files", '["vae/../../x"]'),
        ("files", '["./vae/"]'),
        ("files", '["vae//w"]'),
        ("files", '[""]'),
        ("files", "[]"),
        ("local", '"../outside/"'),
        ("local", '"/etc/"'),
        ("revision", '"../../x"'),
        ("revision", '""'),
        ("repo", '"./../outside"'),
    ],
)
def test_cards_name_nothing_outside(command: Run, cards_folder: Path, field: str, value: str) -> None:
    text = (cards_folder / "tiny.toml").read_text(encoding="utf-8")
    head, vae = text.split("[[vae.parts]]")
    lines = {"repo": f'"{VAE}"', "files": '["vae/"]', "local": '"vae/"'} | {field: value}
    body = "\n".join(f"{key} = {given}" for key, given in lines.items())
    tail = vae[vae.index("[sampling]") :]
    (cards_folder / "tiny.toml").write_text(f"{head}[[vae.parts]]\n{body}\n{tail}", encoding="utf-8")
    refused(command("download", "tiny"))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "./", "..", "../x", "a/b/c", "acme/..", "acme/a--b", "-acme/x", "acme/x.", "x" * 300,
     "with space/x", "", "acme/y" * 40, "acme/é", "~nobody-here/x", "https://example.com/x"],
)  # fmt: skip
def test_names_that_are_no_models(command: Run, hub: Hub, name: str) -> None:
    refused(command("download", name))
    assert not hub.requests


def test_offline_says_each_thing_once(command: Run) -> None:
    done = command("download", "tiny", "--quiet", endpoint="http://127.0.0.1:9")
    error = refused(done)
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint:")]
    assert "HF_ENDPOINT" in hint and "HF_HUB_OFFLINE" in hint
    for words in (DIT, "127.0.0.1:9", "not on this machine", "cannot be fetched"):
        assert error.count(words) == 1, words


def test_a_complete_model_that_cannot_be_compared(command: Run, hub: Hub) -> None:
    assert command("download", "tiny", "--quiet").returncode == 0
    error = refused(command("download", "tiny", "--quiet", endpoint="http://127.0.0.1:9"))
    assert "complete on this machine" in error and "cannot be compared" in error


@pytest.mark.parametrize("asked", ["tiny", DIT, f"{DIT}-Diffusers", "a folder's card", "another folder of weights"])
def test_the_hint_fetches_what_was_missing(
    command: Run, hub: Hub, cards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """What the hint names is run, and then nothing of the model is missing."""
    twin = f"{DIT}-Diffusers"
    folders = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    hub.repos[twin] = {f"{folder}/config.json": b"{}" for folder in folders}
    if asked == "a folder's card":
        folder = tmp_path / "my model"
        folder.mkdir()
        (folder / "card.toml").write_text((cards_folder / "tiny.toml").read_text(encoding="utf-8"), encoding="utf-8")
        asked = str(folder)
    weights = None
    if asked == "another folder of weights":
        asked, weights = "tiny", tmp_path / "my weights"

    def missing() -> WeightsError | None:
        try:
            kandinsky.load(asked, device="cpu", weights=weights)
        except WeightsError as error:
            return error if "not on this machine" in str(error) else None
        except KandinskyError:
            pass  # the tiny files are no networks
        return None

    monkeypatch.setenv("KANDINSKY_CACHE", "off")
    error = missing()
    assert error is not None and error.hint is not None
    words = shlex.split(error.hint.split("`")[1])
    assert words[:3] == ["kandinsky", "download", asked]
    done = command(*words[1:], "--quiet")
    assert done.returncode == 0, done.stderr
    assert missing() is None
