"""Where weights are looked for, and what is said when they are not there."""

from pathlib import Path

import pytest

from kandinsky import catalogue
from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.card import Component, FileSet
from kandinsky.weights import locate

HUB_PART = FileSet(repo="acme/model", files=("model/a.safetensors",), local="model/a.safetensors")
FOLDER_PART = FileSet(repo="acme/vae", files=("vae/config.json", "vae/w.safetensors"), local="vae/", name="vae")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "KANDINSKY_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def snapshot(tmp_path: Path, repo: str) -> Path:
    folder = tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    write(folder / "refs" / "main", COMMIT)
    return folder / "snapshots" / COMMIT


def test_one_file_is_a_file_and_several_are_their_folder(tmp_path: Path) -> None:
    file = write(snapshot(tmp_path, "acme/model") / "model" / "a.safetensors")
    folder = snapshot(tmp_path, "acme/vae") / "vae"
    for name in ("config.json", "w.safetensors"):
        write(folder / name)
    assert locate.locate_part(HUB_PART) == file
    assert locate.locate_part(FOLDER_PART) == folder
    both = locate.locate_parts(Component("x", (HUB_PART, FOLDER_PART)))
    assert both == {"": file, "vae": folder}
    assert locate.revision(Component("kandinsky5.dit", (HUB_PART,))) == COMMIT


def test_official_folder_wins_over_the_cache_and_a_given_one_is_the_only_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(snapshot(tmp_path, "acme/model") / "model" / "a.safetensors")
    mine = write(tmp_path / "weights" / "model" / "a.safetensors")
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(tmp_path / "weights"))
    assert locate.locate_part(HUB_PART) == mine
    with pytest.raises(WeightsError, match="elsewhere"):
        locate.locate_part(HUB_PART, root=tmp_path / "elsewhere")


def test_missing_file_is_named_with_every_place_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(tmp_path / "weights"))
    write(tmp_path / "weights" / "vae" / "config.json")
    with pytest.raises(WeightsError) as caught:
        locate.locate_part(FOLDER_PART, model="some-model")
    text = str(caught.value)
    assert "`w.safetensors` of `acme/vae` is not on this machine" in text and "config.json" not in text
    assert str(tmp_path / "weights" / "vae") in text and str(tmp_path / "hf" / "hub" / "models--acme--vae") in text
    assert caught.value.hint == "`kandinsky download some-model` fetches what is missing"


def test_an_empty_file_or_folder_is_not_there(tmp_path: Path) -> None:
    write(snapshot(tmp_path, "acme/model") / "model" / "a.safetensors", "")
    with pytest.raises(WeightsError):
        locate.locate_part(HUB_PART)
    whole = FileSet(repo=str(tmp_path), files=("empty/",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError):
        locate.locate_part(whole)
    write(tmp_path / "empty" / "x")
    assert locate.locate_part(whole) == tmp_path / "empty"


def test_shards_the_index_names_must_be_there(tmp_path: Path) -> None:
    index = write(tmp_path / "te" / "model.safetensors.index.json", '{"weight_map": {"a": "m-1.safetensors"}}')
    part = FileSet(repo=str(tmp_path), files=("te/",))
    with pytest.raises(WeightsError, match=r"`m-1\.safetensors`"):
        locate.locate_part(part)
    write(tmp_path / "te" / "m-1.safetensors")
    assert locate.locate_part(part) == tmp_path / "te"
    index.write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        locate.locate_part(part)


def test_package_weights_are_looked_for_in_the_package_only(tmp_path: Path) -> None:
    part = FileSet(repo="package", files=("no-such-model/dit.safetensors",))
    with pytest.raises(WeightsError) as caught:
        locate.locate_part(part, root=tmp_path)
    assert str(locate.ASSETS) in str(caught.value) and caught.value.hint is None


def test_cards_name_folders_beside_themselves(tmp_path: Path) -> None:
    values = catalogue.to_dict(catalogue.find("kandinsky5-lite-t2v-sft-5s"))
    text = (catalogue.HERE / "kandinsky5-lite-t2v-sft-5s.toml").read_text(encoding="utf-8")
    moved = text.replace(f'repo = "{values["dit"]["parts"][0]["repo"]}"', 'repo = "./weights"')
    path = write(tmp_path / "mine" / "card.toml", moved)
    assert catalogue.read(path).dit.parts[0].repo == str(tmp_path / "mine" / "weights")
    assert catalogue.read(path).vae.parts[0].repo == values["vae"]["parts"][0]["repo"]
    file = write(tmp_path / "mine" / "weights" / "model" / "kandinsky5lite_t2v_sft_5s.safetensors")
    assert locate.locate_part(catalogue.read(path).dit.parts[0]) == file
    assert locate.revision(catalogue.read(path).dit) == "local"


def test_cards_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    text = (catalogue.HERE / "kandinsky5-lite-t2v-sft-5s.toml").read_text(encoding="utf-8")
    for old, new, said in (
        ("shift = 5.0", "shiift = 5.0", "unknown key `shiift` in sampling, did you mean `shift`"),
        ("shift = 5.0", 'shift = "5.0"', "shift must be float"),
        ("files = [", "file = [", "unknown key `file` in fileset"),
        ("shift = 5.0\n", "", "key `shift` is missing"),
    ):
        assert old in text
        with pytest.raises(RequestError, match=said):
            catalogue.read(write(tmp_path / "card.toml", text.replace(old, new, 1)))
