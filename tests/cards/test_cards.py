"""Cards: the catalogue held against the official configurations; bases, size classes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from kandinsky import catalogue
from kandinsky.errors import RequestError

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside the checkout")
SD, HD = (768, 512), (1280, 768)
# official configuration → the card that holds its values, and the size they hold at
CONFIGS = {
    **{
        f"k5_lite_t2v_{seconds}s_{kind}_sd": (f"kandinsky5-lite-t2v-{kind}-{seconds}s", SD)
        for seconds in (5, 10)
        for kind in ("sft", "pretrain", "nocfg", "distil")
    },
    **{
        f"k5_pro_t2v_{seconds}s_sft_{name}": (f"kandinsky5-pro-t2v-sft-{seconds}s", size)
        for seconds in (5, 10)
        for name, size in (("sd", SD), ("hd", HD))
    },
    "k5_pro_i2v_5s_sft_sd": ("kandinsky5-pro-i2v-5s", SD),
    "k5_pro_i2v_5s_sft_hd": ("kandinsky5-pro-i2v-5s", HD),
    "k5_lite_i2v_5s_sft_sd": ("kandinsky5-lite-i2v-5s", SD),
    "k5_lite_t2i_sft_hd": ("kandinsky5-lite-t2i", HD),
    "k5_lite_i2i_sft_hd": ("kandinsky5-lite-i2i", HD),
}
# names the SFT file by mistake
WRONG_FILE = "k5_lite_t2v_10s_nocfg_sd"


@needs_reference
def test_cards_hold_the_values_of_all_official_configurations() -> None:
    configs = json.loads((REFERENCE / "configs.json").read_text(encoding="utf-8"))
    assert set(configs) == set(CONFIGS)
    for name, (model, size) in CONFIGS.items():
        official, card = configs[name], catalogue.find(model)
        values, sampling = official["model"], card.sampling_for(*size)
        assert (sampling.steps, sampling.guidance) == (values["num_steps"], values["guidance_weight"]), name
        assert sampling.rope_scale == tuple(official["metrics"]["scale_factor"]), name
        assert sampling.mag_ratios == tuple(official.get("magcache", {}).get("mag_ratios", ())), name
        assert f"{size[0]}x{size[1]}" in card.clip.sizes
        # the 5 s and image files have no value for the shift; the first release's 10 s files have 5
        assert sampling.shift == official["metrics"].get("scheduler_scale", sampling.shift), name
        attention = {"type": values["attention"]["type"].replace("flash", "dense")}
        if attention["type"] == "nabla":
            attention |= {key: values["attention"][key] for key in ("P", "wT", "wH", "wW")}
        assert sampling.attention == attention, name
        ours = {key: value for key, value in card.dit.params.items() if key in values["dit_params"]}
        assert ours == values["dit_params"], name
        assert card.text.params["qwen_max_length"] == values["text_embedder"]["qwen"]["max_length"], name
        assert card.vae.kind == values["vae"]["name"], name
        assert f"./weights/{card.vae.parts[0].local}" == values["vae"]["checkpoint_path"]
        if name != WRONG_FILE:
            assert f"./weights/{card.dit.parts[0].local}" == values["checkpoint_path"]


def test_the_no_cfg_card_of_ten_seconds_names_its_own_file() -> None:
    (part,) = catalogue.find("kandinsky5-lite-t2v-nocfg-10s").dit.parts
    assert part.repo.endswith("nocfg-10s") and part.files == ("model/kandinsky5lite_t2v_nocfg_10s.safetensors",)


def test_the_catalogue_is_complete() -> None:
    assert {model for model, _ in CONFIGS.values()} <= set(catalogue.cards())
    assert {f"kandinsky5-pro-t2v-pretrain-{s}s" for s in (5, 10)} <= set(catalogue.cards())
    tasks = {model: card.task for model, card in catalogue.cards().items() if model.startswith("kandinsky5")}
    for marker, task in (("t2v", "text-to-video"), ("i2v", "image-to-video"), ("t2i", "text-to-image"),
                         ("i2i", "image-editing")):  # fmt: skip
        assert {task} == {tasks[model] for model in tasks if marker in model}


def test_files_are_as_large_as_their_parameters() -> None:
    for card in catalogue.cards().values():
        if card.family == "kandinsky5" and card.dit.parts[0].repo != "package":
            assert card.parameters * 2 < card.dit.bytes < card.parameters * 2 * 1.0001, card.id


def test_stills_are_all_that_image_models_make() -> None:
    for model in ("kandinsky5-lite-t2i", "kandinsky5-lite-i2i"):
        clip = catalogue.find(model).clip
        assert (clip.seconds, clip.min_seconds, clip.max_seconds) == (0, 0, 0)
        assert set(clip.sizes) == {f"{w}x{h}" for w, h in ((1024, 1024), (640, 1408), (1408, 640), (768, 1280),
                                                           (1280, 768), (896, 1152), (1152, 896))}  # fmt: skip


def test_sparse_models_have_sizes_of_whole_tiles() -> None:
    for card in catalogue.cards().values():
        for size in card.clip.sizes:
            width, height = map(int, size.split("x"))
            if card.sampling_for(width, height).attention["type"] == "nabla":
                assert width % 128 == height % 128 == 0, (card.id, size)


def test_the_size_decides_what_a_pro_model_samples_with() -> None:
    card = catalogue.find("kandinsky5-pro-t2v-sft-5s")
    sd, hd = card.sampling_for(*SD), card.sampling_for(*HD)
    assert (sd.attention, sd.rope_scale) == ({"type": "dense"}, (1.0, 2.0, 2.0))
    assert (hd.attention["P"], hd.rope_scale) == (0.8, (1.0, 3.16, 3.16))
    assert (hd.steps, hd.guidance, hd.shift, hd.noise) == (sd.steps, sd.guidance, sd.shift, sd.noise)
    assert sd == card.sampling and hd.mag_ratios != sd.mag_ratios
    for size in card.clip.sizes:
        width, height = map(int, size.split("x"))
        assert card.class_for(width, height) == ("sd" if width in (512, 768) and height in (512, 768) else "hd"), size
    lite = catalogue.find("kandinsky5-lite-t2v-sft-5s")
    assert lite.class_for(*HD) is None and lite.sampling_for(*HD) is lite.sampling


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


MINE = """
base = "{base}"
id = "mine"
notes = ["my own"]
[[dit.parts]]
repo = "me/mine"
files = ["mine.safetensors"]
[sampling]
guidance = 2.0
"""


def test_a_card_says_only_what_differs_from_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "mine", MINE.format(base="kandinsky5-lite-t2v-sft-5s"))
    monkeypatch.setenv("KANDINSKY_CARDS", str(tmp_path))
    base, mine = catalogue.find("kandinsky5-lite-t2v-sft-5s"), catalogue.find("mine")
    assert mine.sampling.guidance == 2.0 and mine.sampling.shift == base.sampling.shift
    assert [part.repo for part in mine.dit.parts] == ["me/mine"] and mine.dit.params == base.dit.params
    assert mine.notes == (*base.notes, "my own") and mine.vae == base.vae and mine.sampling.mag_ratios


def test_a_base_of_ones_own_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "_bases", "kandinsky5-lite-t2v-sft-5s", 'base = "kandinsky5-lite-t2v-nocfg-5s"\nlicence = "mine"')
    card = catalogue.read(write(tmp_path, "mine", MINE.format(base="kandinsky5-lite-t2v-sft-5s")))
    assert card.licence == "mine" and card.title.startswith("Kandinsky 5.0 T2V Lite no-CFG")


def test_bases_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="base `no` is not there"):
        catalogue.read(write(tmp_path, "mine", MINE.format(base="no")))
    write(tmp_path / "_bases", "a", 'base = "b"')
    write(tmp_path / "_bases", "b", 'base = "a"')
    with pytest.raises(RequestError, match=r"is its own base: mine\.toml → a\.toml → b\.toml → a\.toml"):
        catalogue.read(write(tmp_path, "mine", MINE.format(base="a")))


def changed(model: str, **changes: Any) -> dict[str, Any]:
    """A card's values with some replaced, at `a__b` for key b of table a."""
    values = json.loads(json.dumps(catalogue.to_dict(catalogue.find(model))))
    for path, value in changes.items():
        *tables, last = path.split("__")
        table = values
        for name in tables:
            table = table[name]
        table[last] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes__hd__sampling": {"rope": [1, 1, 1]}}, r"class hd: unknown key `rope` in sampling"),
        ({"classes__hd__sampling": {"stepz": 4}}, "unknown key `stepz` in sampling, did you mean `steps`"),
        ({"classes__hd__sampling": {"steps": "many"}}, "steps must be int"),
        ({"classes__hd__from": 3}, "unknown key `from` in sizeclass"),
        ({"classes__sd__min_pixels": 5}, "one of the classes must begin at min_pixels = 0"),
        ({"classes__hd__area": 0}, 'clip.fit = "area" needs classes'),
        ({"classes": {}}, 'clip.fit = "area" needs classes'),
        ({"clip__fit": "crop"}, "clip.fit `crop` is unknown: use list, area, within"),
        ({"clip__default_size": "1x1"}, "is not one of clip.sizes"),
        ({"sampling__mag_ratios": "none"}, "mag_ratios `none` is unknown"),
    ],
)
def test_what_a_card_may_not_say(change: dict[str, Any], message: str) -> None:
    catalogue.parse(changed("kandinsky5-pro-i2v-5s"), where="t")
    with pytest.raises(RequestError, match=message):
        catalogue.parse(changed("kandinsky5-pro-i2v-5s", **change), where="t")


def test_parse_is_the_inverse_of_to_dict() -> None:
    for card in catalogue.cards().values():
        assert catalogue.parse(catalogue.to_dict(card), where=card.id) == card
