"""The second Nano as a model of the package, tiny and with random weights: every part, through the ordinary doors."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import kandinsky
from kandinsky.bench.fit_preview import samples
from kandinsky.catalogue import find, plan
from kandinsky.cli.main import main
from kandinsky.engine.accepts import accepted
from kandinsky.engine.conditions import lacks
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.draft import SPREAD, _led_to, drafted, moved_cut_out, shown_at, tell
from kandinsky.families.nano.geometry import CHANNELS, LATENT_FRAMES, PACKED, Packed, packed
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.params import NanoPatchParams
from kandinsky.families.nano.scene_denoiser import bind
from kandinsky.families.nano.scene_encoder import NanoSceneEncoder
from kandinsky.families.nano.scene_transformer import SceneTransformer
from kandinsky.families.nano.scene_words import NOTHING, SceneWords, said_of
from kandinsky.families.nano.scenes import COLOURS, WHITE
from kandinsky.lab.nano import captions
from kandinsky.lab.nano2.objective import SceneDenoiser, sample
from kandinsky.lab.nano2.word_list import read, scene_words
from kandinsky.model.denoiser import Known, Pass
from kandinsky.model.given import Frames, Source
from kandinsky.model.timeline import PromptAt
from kandinsky.model.values import Request, TextEmbeddings, Video
from kandinsky.weights.write import write_state

DIM, LATENT = 32, 80
DIT = {
    "in_visual_dim": LATENT,
    "out_visual_dim": LATENT,
    "in_text_dim": DIM,
    "in_text_dim2": DIM,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 128,
    "num_visual_blocks": 1,
    "num_text_blocks": 1,
    "axes_dims": [8, 12, 12],
    "patch_size": [1, 2, 2],
    "visual_cond": True,
}
FILES = ("rows.safetensors", "words.json")
VAE = {"latent_channels": LATENT, "widths": [16, 8, 8, 8], "depths": [1, 1, 1, 1]}


def words() -> SceneWords:
    return SceneWords(574, codes=DIM, pooled=DIM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the tiny model, and cards of both tasks beside them."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("nano2")
    params = NanoPatchParams.from_dict(VAE)
    linear = LinearPatches(params.linear)
    for part in (linear.still, linear.moving):
        part.basis.copy_(torch.linalg.qr(torch.randn(part.basis.shape).T)[0].T)
    networks: dict[str, nn.Module] = {
        "dit": SceneTransformer(DiTParams.from_dict(DIT)),
        "rows": words(),
        "vae": NanoDecoder(linear, params.decoder),
    }
    for name, network in networks.items():
        with torch.no_grad():
            for own, p in network.named_parameters():  # of the head every layer makes its input larger
                p.copy_(torch.randn(p.shape) * (0.05 if name == "vae" else 0.03 if "local." in own else 0.2))
            if isinstance(network, SceneTransformer):
                network.linear.load_state_dict(linear.state_dict())
                for part in network.portraits.buffers(recurse=False):
                    part.copy_(torch.linalg.qr(torch.randn(part.shape))[0])
            if isinstance(network, SceneWords):
                network.memory.codes[36:] = torch.randn(network.memory.codes[36:].shape)
        write_state(network.state_dict(), place / f"{name}.safetensors")
    (place / "words.json").write_text(json.dumps(scene_words()), encoding="utf-8")
    for task in ("t2v", "i2v"):
        files = ", ".join(f'{{ repo = ".", files = ["{f}"], name = "{f.split(".")[0]}" }}' for f in FILES)
        dit, vae = (", ".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) for table in (DIT, VAE))
        (place / f"tiny2-{task}.toml").write_text(
            f"""base = "nano2-{task}"
id = "tiny2-{task}"
[dit]
params = {{ {dit} }}
parts = [{{ repo = ".", files = ["dit.safetensors"] }}]
[text]
params = {{ concepts = 574, codes = {DIM}, pooled = {DIM} }}
parts = [{files}]
[vae]
params = {{ {vae} }}
parts = [{{ repo = ".", files = ["vae.safetensors"] }}]
[clip]
channels = {LATENT}
""",
            encoding="utf-8",
        )
    return place


@pytest.fixture
def cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder))
    return folder


@pytest.fixture
def pipe(cards: Path) -> GenerationPipeline:
    return kandinsky.load("tiny2-t2v", device="cpu")


@pytest.fixture
def encoder(folder: Path) -> NanoSceneEncoder:
    return NanoSceneEncoder.from_files(
        folder / "rows.safetensors", folder / "words.json", {"concepts": 574, "codes": DIM, "pooled": DIM}
    )


def scenes_network(folder: Path) -> SceneDenoiser:
    """The laboratory's network with the same weights."""
    from kandinsky.weights.read import load_into

    network = SceneDenoiser(DiTParams.from_dict(DIT), 574)
    load_into(network.dit, folder / "dit.safetensors")
    load_into(network.words, folder / "rows.safetensors")
    return network.eval()


# -- words ------------------------------------------------------------------------------------------------------------


def test_a_scene_travels_behind_the_pooled_vector(encoder: NanoSceneEncoder) -> None:
    text = encoder.encode(["a cat left of a dog"])
    scene = read("a cat left of a dog").scene
    assert text.pooled_BC.shape == (1, DIM + PACKED) and torch.equal(text.pooled_BC[:, DIM:], packed([scene]))
    assert text.pooled_BC[0, DIM : DIM + 3].tolist() == [1, 1, 0]
    assert text.tokens_BLC.shape == (1, 3 * 36 + 9, DIM)
    assert text.mask_BL is not None and int(text.mask_BL.sum()) == 2 * 36 + 9


def test_a_prompt_is_the_same_in_any_batch(encoder: NanoSceneEncoder) -> None:
    alone, both = encoder.encode(["a cat"]), encoder.encode(["three wolves", "a cat"])
    assert torch.equal(alone.tokens_BLC[0], both.tokens_BLC[1])
    assert torch.equal(alone.pooled_BC[0], both.pooled_BC[1])


def test_a_still_has_a_state_of_its_own_and_nothing_is_unconditional(encoder: NanoSceneEncoder) -> None:
    clip, still = encoder.encode(["a cat"]), encoder.encode(["a cat"], still=True)
    differ = (clip.tokens_BLC != still.tokens_BLC).any(-1)[0]
    assert differ.nonzero().flatten().tolist() == [3 * 36 + 8]
    nothing = encoder.encode([" "])
    assert torch.equal(nothing.tokens_BLC, encoder.network([NOTHING]).tokens_BLC)
    assert not nothing.pooled_BC[:, DIM:].any()


def test_what_is_unknown_is_refused_with_what_is_near(encoder: NanoSceneEncoder) -> None:
    with pytest.raises(RequestError, match=r"`a pengiun`.*`penguin`"):
        encoder.encode(["a pengiun"])
    left_open = encoder.encode(["something on a red background"])
    assert torch.equal(left_open.tokens_BLC[0, :36], encoder.network([NOTHING]).tokens_BLC[0, :36])
    assert left_open.pooled_BC[0, DIM] == 1  # and yet it stands somewhere


@pytest.mark.parametrize("prompt", ["no cat", "без кошки", "кошки нет"])
def test_a_prompt_that_only_leaves_out_is_told_to_say_what_is_shown(encoder: NanoSceneEncoder, prompt: str) -> None:
    with pytest.raises(RequestError, match=f"`{prompt}` says only what to leave out.*say what is"):
        encoder.encode([prompt])


def test_neighbours_are_named_in_the_language_of_the_prompt(encoder: NanoSceneEncoder) -> None:
    for prompt, near in (("spaghetti", "`pizza`"), ("спагетти", "`пицца`"), ("🍝", "`pizza`")):
        with pytest.raises(RequestError, match=f"the nearest that it can show are .*{near}"):
            encoder.encode([prompt])


def test_what_is_like_nothing_is_refused_with_examples(encoder: NanoSceneEncoder) -> None:
    with pytest.raises(RequestError, match="`zxcvb` asks for, and nothing like it: it shows things such as `cat`"):
        encoder.encode(["zxcvb"])


def test_no_text_raises_anything_but_a_refusal(encoder: NanoSceneEncoder) -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        codes = rng.choice([32, 39, 45, 44, 0x200D, 0xFE0F, 0x1F3FD, 0x1F43C, 0x1F9D9, 0x2640], rng.integers(1, 12))
        text = "".join(map(chr, codes)) + "".join(map(chr, rng.integers(1, 0xD7FF, rng.integers(0, 4))))
        encoder.unused(text), encoder.unused(text, beside_image=True), encoder.encode_against(text, "a cat")
        with suppress(RequestError):
            encoder.encode([text])


def test_an_unknown_negative_prompt_is_as_an_empty_one(
    encoder: NanoSceneEncoder, pipe: GenerationPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    nothing, some = encoder.encode_against("blurry, deformed", "a cat"), encoder.encode_against("a dog", "a cat")
    assert torch.equal(nothing.tokens_BLC, encoder.encode([""]).tokens_BLC) and "names nothing" in caplog.text
    assert torch.equal(some.tokens_BLC, encoder.encode(["a dog"]).tokens_BLC)
    one, other = (pipe("a cat", seed=1, steps=1, guidance=2.0, negative_prompt=text) for text in ("", "размыто"))
    assert np.array_equal(one.frames, other.frames)
    caplog.clear()
    pipe("a cat", seed=1, steps=1, negative_prompt="blurry")
    assert "no effect at guidance 1" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "unused"),
    [
        ("a cat left of a dog", ()),
        ("a purple Cat on red", ("purple",)),
        ("Сова поёт БЛЮЗ", ("поёт", "БЛЮЗ")),
        ("a cat jumps and spins", ("spins",)),
        ("two cats and a dog", ("two (shown: one of each)",)),
        ("Five cats, 👨🏽\u200d⚕️", ("Five (shown: one of each)", "👨\u200d⚕ (shown: woman health worker)")),
        ("a small cat above a big dog", ("small", "big")),
        ("three owls on the left", ("on the left",)),
        ("a cat, a dog and a fox", ("fox",)),
        ("something blue and a fox", ("something",)),
    ],
)
def test_words_without_influence_are_told_as_they_are_spelt(
    encoder: NanoSceneEncoder, prompt: str, unused: tuple[str, ...]
) -> None:
    assert encoder.unused(prompt) == unused


def test_beside_an_image_words_leave_open_what_they_do_not_say(encoder: NanoSceneEncoder) -> None:
    image = Image.new("RGB", (192, 192))
    some, none = (encoder.encode_with_images([text], [image]) for text in ("a cat jumps", "qwrtz vblk"))
    nothing = encoder.network([NOTHING]).tokens_BLC[0, 3 * 36 :]
    same = (some.tokens_BLC[0, 3 * 36 :] == nothing).all(-1).tolist()
    # backdrop, colour, second colour, place, size, motion, camera, arrangement, kind
    assert same == [True, True, True, True, True, False, False, True, False]
    assert torch.equal(none.tokens_BLC[0, 3 * 36 :], nothing)
    assert torch.equal(some.pooled_BC[:, DIM:], packed([read("a cat jumps").scene]))
    assert not none.pooled_BC[:, DIM:].any()
    assert encoder.unused("qwrtz on red", beside_image=True) == ("qwrtz", "red")
    assert encoder.unused("qwrtz cat", beside_image=True) == ("qwrtz",)


def test_what_can_be_shown_is_listed_and_searched(encoder: NanoSceneEncoder) -> None:
    assert len(encoder.reader.found()) == 574 and ("cat", "кошка") in encoder.reader.found()
    assert encoder.reader.found("котенок") or encoder.reader.found("кошка")
    assert encoder.reader.found("blorptak") == []


def test_the_list_has_the_colours_that_are_trained() -> None:
    assert len(captions.COLOURS) == COLOURS and captions.COLOURS[WHITE].en == "white"


def test_a_list_of_other_words_is_refused(folder: Path, tmp_path: Path) -> None:
    table = scene_words()
    (tmp_path / "words.json").write_text(json.dumps(table | {"concepts": table["concepts"][:5]}))
    with pytest.raises(WeightsError, match="words of 5 concepts, and the memory 574"):
        NanoSceneEncoder.from_files(folder / "rows.safetensors", tmp_path / "words.json", {"codes": DIM, "pooled": DIM})
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds no list of words"):
        NanoSceneEncoder.from_files(folder / "rows.safetensors", tmp_path / "words.json", {"codes": DIM, "pooled": DIM})


# -- denoiser ---------------------------------------------------------------------------------------------------------


def test_sampling_equals_the_laboratorys(pipe: GenerationPipeline, folder: Path) -> None:
    """Steps through the engine, and the loop that the weights were judged with."""
    prompts = ["a cat left of a dog", "a panda jumps on a blue background"]
    jobs = [pipe.resolve(Request("tiny2-t2v", text, seed=5, steps=8)) for text in prompts]
    noise = pipe.noise(jobs)
    made = pipe.sample(noise, *pipe.encode(jobs), jobs[0])
    scenes = [read(text).scene for text in prompts]
    said = [said_of(scene, still=False) for scene in scenes if scene is not None]
    wanted = sample(scenes_network(folder), said, scenes, noise=noise, exact=True)
    assert jobs[0].steps == 8 and float(wanted.std()) > 0.1
    assert torch.allclose(made, wanted, atol=2e-5, rtol=1e-4)


def test_the_velocity_leads_to_the_clean_estimate(folder: Path) -> None:
    net = scenes_network(folder).dit
    x, known = torch.randn(2, LATENT_FRAMES, 12, 12, LATENT), Known()
    text = TextEmbeddings(torch.randn(2, 117, DIM), torch.cat([torch.randn(2, DIM), packed([None, None])], 1))
    with torch.no_grad():
        one = bind(net, known, Pass(text))({"video": x}, torch.tensor(0.6))["video"]
        each = bind(net, known, Pass(text))({"video": x}, torch.tensor([0.6, 0.3]))["video"]
    assert torch.allclose(one[0], each[0], atol=1e-5) and not torch.allclose(one[1], each[1], atol=0.1)


def test_without_corrections_the_clean_estimate_is_the_draft(folder: Path, encoder: NanoSceneEncoder) -> None:
    """At the noise nothing but the draft is known; further on the noisy latent counts as well."""
    net = scenes_network(folder).dit
    with torch.no_grad():
        for layer in (net.out_layer.out_layer, net.local.out_layer):
            for p in layer.parameters():
                p.zero_()
    x, text = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT), encoder.encode(["a cat moves right on blue"])
    packed_BG = text.pooled_BC[:, DIM:]
    draft = drafted(net.portraits, net.linear, text.tokens_BLC, packed_BG, frames=LATENT_FRAMES, rows=12)
    velocity = bind(net, Known(), Pass(text))
    with torch.no_grad():
        clean, later = (x - t * velocity({"video": x}, torch.tensor(t))["video"] for t in (1.0, 0.5))
    assert torch.allclose(clean, draft, atol=1e-5) and draft.std() > 0.1
    gain = SPREAD * 0.5 / (SPREAD * 0.25 + 0.25)
    assert torch.allclose(later, draft + gain * (x - 0.5 * draft), atol=1e-5)


def test_places_and_the_mask_reach_the_network(folder: Path, encoder: NanoSceneEncoder) -> None:
    net, seen = scenes_network(folder).dit, list[Tensor]()
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT)
    mask = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    mask[:, -1] = True
    text = encoder.encode(["a cat moves right"])
    nothing = encoder.encode([""])
    for known, states in ((Known(mask={"video": mask}), text), (Known(), nothing)):
        with torch.no_grad():
            bind(net, known, Pass(states))({"video": x}, torch.tensor(0.5))
    guess, condition = seen[0][..., :LATENT], seen[0][..., LATENT:]
    assert (condition[:, -1, ..., -1] == 1).all() and not condition[:, :-1, ..., -1].any()
    assert condition[..., 28:CHANNELS].any() and torch.equal(guess[:, -1], x[:, -1])
    assert not seen[1][..., LATENT + 28 :].any()  # without places only the canvas is known


# -- drafts -----------------------------------------------------------------------------------------------------------


def square_of(folder: Path, encoder: NanoSceneEncoder) -> tuple[SceneTransformer, TextEmbeddings]:
    """A network whose latents are means of 4 x 4 pixels, and "a cat moves right", which is a white square."""
    net = scenes_network(folder).dit
    squares = torch.eye(4).repeat_interleave(4, 1) / 2
    still = torch.einsum("ay,bx,cd->abcyxd", squares, squares, torch.eye(3)).reshape(48, -1)
    for part, basis in ((net.linear.still, still), (net.linear.moving, still.repeat(1, 8) / 8**0.5)):
        part.basis.zero_()[:48] = basis
    for buffer in net.portraits.buffers():
        buffer.zero_()
    net.portraits.pixels[:, 0] = 1
    net.portraits.moves.unflatten(0, (25, -1))[:, 0, 0] = 1
    net.portraits.places.unflatten(0, (4, -1))[:, 0, 0] = 1
    text = encoder.encode(["a cat moves right"])
    text.tokens_BLC[:, : 3 * 36] = 0
    text.tokens_BLC[:, :36, 0].view(6, 6)[1:5, 2:5] = 1
    return net, text


@pytest.mark.parametrize("frames", [1, 2, LATENT_FRAMES])
def test_a_picture_moves_as_its_words_say_from_where_it_stands(
    folder: Path, encoder: NanoSceneEncoder, frames: int
) -> None:
    """The subject of a given frame is found at its own place and size, and goes on from there."""
    net, text = square_of(folder, encoder)
    scene = Packed.of(text.pooled_BC[0, DIM:])
    assert scene is not None
    path = scene.path_SF5.clone()
    path[..., :2] += 0.07
    path[..., 2] *= 0.8
    elsewhere = Packed(path, torch.tensor([[0.2, 0.4, 0.6]]).expand(2, 3), 0).row()[None]
    whole = drafted(net.portraits, net.linear, text.tokens_BLC, elsewhere, frames=frames, rows=12)
    x = torch.randn(whole.shape)
    x[:, 0] = whole[:, 0]
    known = torch.zeros(1, frames, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text, text.pooled_BC[:, DIM:], x, known)
    assert told.drawn_B.all() and torch.equal(told.draft_BTHWC[:, 0], x[:, 0])
    assert told.condition_BTHWC[..., 28:CHANNELS].any()  # a scene was found
    if frames > 1:
        still = net.linear.held(x[:, 0])[:, None]
        found, stood = ((made - whole)[:, 1:].square().mean() for made in (told.draft_BTHWC, still))
        assert found < 0.05 * stood


def test_pictures_of_a_batch_are_looked_at_one_by_one(folder: Path, encoder: NanoSceneEncoder) -> None:
    """One that fits its words, one of nothing, and one without words: each as it would be alone."""
    net, text = square_of(folder, encoder)
    scene = text.pooled_BC[:, DIM:]
    x = torch.randn(3, LATENT_FRAMES, 12, 12, LATENT)
    one = Packed.of(scene[0])
    assert one is not None
    grey = Packed(one.path_SF5, torch.full((2, 3), 0.4), 0).row()[None]
    x[0, 0] = drafted(net.portraits, net.linear, text.tokens_BLC, grey, frames=1, rows=12)[0, 0]
    x[1, 0] = net.linear.encode(torch.full((1, 1, 192, 192, 3), 0.3))[0, 0]
    x[2, 0] = x[0, 0]
    scenes = torch.cat([scene, scene, torch.zeros_like(scene)])
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text.expand(3), scenes, x, known)
    assert told.condition_BTHWC[..., 28:CHANNELS].flatten(1).any(1).tolist() == [True, False, False]
    assert told.drawn_B.all()
    still = net.linear.held(x[:, 0])
    for b, stands in enumerate((False, True, True)):
        assert torch.allclose(told.draft_BTHWC[b, -1], still[b], atol=1e-4) == stands
        alone = tell(net.portraits, net.linear, text, scenes[b : b + 1], x[b : b + 1], known)
        assert torch.allclose(alone.draft_BTHWC[0], told.draft_BTHWC[b], atol=1e-5)


def test_all_is_made_on_the_device_of_its_inputs(folder: Path, encoder: NanoSceneEncoder) -> None:
    """With another default device, what is made without a word of where would not meet the rest."""
    net, text = square_of(folder, encoder)
    x = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT)
    x[:, 0] = net.linear.encode(torch.rand(1, 1, 192, 192, 3))[:, 0]
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    two = encoder.encode(["a cat left of a dog before a gradient from red to blue"])
    half, run = torch.tensor(0.5), Pass(text)
    with torch.no_grad():
        wanted = bind(net, Known(mask={"video": known}), run)({"video": x}, half)["video"]
        with torch.device("meta"):
            tell(net.portraits, net.linear, two, two.pooled_BC[:, DIM:], x)
            told = tell(net.portraits, net.linear, text, text.pooled_BC[:, DIM:], x, known)
            local = net.local(torch.cat([x, told.condition_BTHWC], -1), text.pooled_BC[:, :DIM], half.expand(1))
    assert told.draft_BTHWC.device == local.device == wanted.device


def test_a_picture_that_words_do_not_fit_stands_still(folder: Path, encoder: NanoSceneEncoder) -> None:
    net, text = scenes_network(folder).dit, encoder.encode(["a cat moves right"])
    x = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT)
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text, text.pooled_BC[:, DIM:], x, known)
    still = net.linear.held(x[:, 0])
    assert all(torch.allclose(told.draft_BTHWC[:, k], still, atol=1e-5) for k in range(1, LATENT_FRAMES))
    assert not told.condition_BTHWC[..., 28:CHANNELS].any() and told.drawn_B.all()


@pytest.mark.parametrize("since", [1, 3, 6])
def test_a_part_of_a_longer_clip_goes_on_from_the_part_before(
    folder: Path, encoder: NanoSceneEncoder, since: int
) -> None:
    """The scene goes on where it was, and the given frame adds nothing to what follows it."""
    net, text = square_of(folder, encoder)
    jumps = encoder.encode(["a cat jumps before a gradient from red to blue"]).pooled_BC[:, DIM:]
    whole = Packed.of(jumps[0])
    assert whole is not None
    later = whole.later(8 * since)
    assert torch.allclose(later.path_SF5[:, 0], whole.path_SF5[:, 8 * since % 24], atol=1e-6)
    wanted = drafted(
        net.portraits, net.linear, text.tokens_BLC, later.row()[None], frames=LATENT_FRAMES, rows=12, since=8 * since
    )
    x = torch.randn(wanted.shape)
    x[:, 0] = wanted[:, 0] + 0.02
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text, jumps, x, known, since)
    assert torch.equal(told.draft_BTHWC[:, 0], x[:, 0]) and not told.final_B.any()
    assert torch.allclose(told.draft_BTHWC[:, 1:], wanted[:, 1:], atol=1e-5)


def test_a_prompt_that_begins_fades_in_over_what_was_seen(folder: Path, encoder: NanoSceneEncoder) -> None:
    net, text = square_of(folder, encoder)
    scene = encoder.encode(["a cat on a blue background"]).pooled_BC[:, DIM:]
    x = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT)
    seen = torch.full((1, 1, 192, 192, 3), 0.3)
    x[:, 0] = net.linear.encode(seen)[:, 0]
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text, scene, x, known, -1)
    wanted = drafted(net.portraits, net.linear, text.tokens_BLC, scene, frames=LATENT_FRAMES, rows=12)
    shown, whole = (net.linear.decode(one)[0, :, 0, 0] for one in (told.draft_BTHWC, wanted))
    share = (torch.arange(25) / 8).clamp(max=1)[:, None]
    mean = torch.lerp(torch.full((3,), 0.3), whole[-1], share)
    assert torch.allclose(shown[1:9].mean(0), mean[1:9].mean(0), atol=0.02)
    assert torch.allclose(shown[9:], whole[9:], atol=1e-3)
    assert told.condition_BTHWC[..., 28:CHANNELS].any() and not told.final_B.any()


def test_a_scene_later_on(encoder: NanoSceneEncoder) -> None:
    """What ends where it began goes on, anything else stays where it came to; before its prompt, it has not begun."""
    paths = {
        words: Packed.of(encoder.encode([f"a cat {words}"]).pooled_BC[0, DIM:])
        for words in ("jumps", "spins", "moves right", "grows")
    }
    for words, scene in paths.items():
        assert scene is not None
        path, later, before = (one.path_SF5 for one in (scene, scene.later(24), scene.later(-8)))
        goes_on = words in ("jumps", "spins")
        assert torch.allclose(later[:, :24], path[:, :24] if goes_on else path[:, -1:].expand(-1, 24, -1), atol=1e-6)
        assert torch.equal(before[:, :9], path[:, :1].expand(-1, 9, -1)) and torch.equal(before[:, 9:], path[:, 1:17])
    assert shown_at(3, 0) == [0, 1, 2] and shown_at(4, 23) == [23, 24, 23, 22] and shown_at(3, -2) == [0, 0, 0]
    assert shown_at(2, 47) == [1, 0]


def test_a_latent_beyond_the_canvas_is_refused(folder: Path) -> None:
    net = scenes_network(folder).dit
    text = TextEmbeddings(torch.randn(1, 117, DIM), torch.zeros(1, DIM + PACKED))
    with pytest.raises(RequestError, match="no longer clip"):
        bind(net, Known(), Pass(text))({"video": torch.randn(1, 5, 12, 12, LATENT)}, torch.tensor(0.5))


# -- autoencoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (2, 2), (1, 3)])
def test_pieces_of_a_clip_are_the_whole(folder: Path, pipe: GenerationPipeline, pieces: tuple[int, ...]) -> None:
    with pipe.placement.hold("vae") as vae, torch.no_grad():
        latents = torch.randn(2, 4, 3, 2, LATENT)
        whole, found, carried = vae.decode(latents), [], None
        for part in latents.split(pieces, dim=1):
            frames, carried = vae.decode_more(part, carried)
            found.append(frames)
        assert whole.shape == (2, 25, 48, 32, 3) and torch.allclose(torch.cat(found, dim=1), whole, atol=1e-5)
        alone = vae.decode(latents[:, :1])
        assert alone.shape == (2, 1, 48, 32, 3) and torch.allclose(alone, whole[:, :1], atol=1e-5)


def test_it_runs_in_bfloat16_near_to_float32(pipe: GenerationPipeline) -> None:
    with pipe.placement.hold("vae") as vae, torch.no_grad():
        latents = torch.randn(1, 2, 3, 3, LATENT)
        exact = vae.decode(latents)
        low = vae.to(torch.bfloat16).decode(latents.bfloat16())
        vae.float()
    assert low.dtype is torch.float32 and float((low - exact).abs().mean() / exact.abs().mean()) < 0.02


# -- the doors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "frames"), [(0, 1), (0.7, 9), (1.5, 18), (2, 25)])
def test_clips_of_every_length_and_stills(pipe: GenerationPipeline, seconds: float, frames: int) -> None:
    video = pipe("a panda on a blue background", seconds=seconds, seed=3, steps=2)
    assert video.frames.shape == (frames, 192, 192, 3) and video.frames.std() > 0
    assert np.array_equal(video.frames, pipe("a panda on a blue background", seconds=seconds, seed=3, steps=2).frames)


def test_it_generates_in_bfloat16(cards: Path) -> None:
    """As on a GPU: weights and matrix products have eight bits of precision, and the clip is about the same."""
    exact, low = (
        kandinsky.load("tiny2-t2v", device="cpu", dtype=dtype)("a cat left of a dog", seed=1, steps=2).frames
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact.astype(float) - low).mean() < 0.05 * exact.std()


def test_other_sizes_and_what_no_scene_is_are_refused(pipe: GenerationPipeline) -> None:
    later = (PromptAt("a dog", 2),)
    for wrong, says in (
        ({"width": 256, "height": 256}, "192x192"),
        ({"seconds": 5, "prompt_at": later, "fade": 1.0}, "from one prompt to the next in 0.67 s"),
    ):
        with pytest.raises(RequestError, match=says):
            pipe.resolve(Request("tiny2-t2v", "a cat").with_values(**wrong))


def test_a_longer_clip_begins_like_the_short_one_and_loops_end_where_they_began(pipe: GenerationPipeline) -> None:
    short, long, loop = (
        pipe("a cat jumps on a blue background", seconds=seconds, seed=1, loop=loops).frames.astype(float)
        for seconds, loops in ((2, False), (5, False), (3, True))
    )
    assert long.shape == (60, 192, 192, 3) and np.abs(long[:25] - short).max() <= 1
    steps = np.abs(np.diff(loop, axis=0)).mean((1, 2, 3))
    assert np.abs(loop[-1] - loop[0]).mean() < 2 * steps.max()


def test_a_seed_is_the_same_in_a_batch_and_unused_words_stand_in_the_recipe(pipe: GenerationPipeline) -> None:
    asked = [Request("tiny2-t2v", text, seed=s, steps=2) for text, s in (("a cat", 1), ("three blorp wolves", 2))]
    both = pipe.run_batch([pipe.resolve(one) for one in asked])
    alone = pipe("a cat", seed=1, steps=2)
    assert np.abs(both[0].frames.astype(int) - alone.frames.astype(int)).max() <= 1
    assert both[1].recipe["unused_words"] == ["blorp"] and "unused_words" not in both[0].recipe


def test_guidance_runs_a_second_pass_that_knows_no_places(pipe: GenerationPipeline) -> None:
    plain, guided = (pipe("a cat", seed=1, steps=2, guidance=g) for g in (1, 2))
    assert np.isfinite(guided.frames).all() and not np.array_equal(plain.frames, guided.frames)


def test_an_image_stays_the_first_frame(cards: Path) -> None:
    pipe = kandinsky.load("tiny2-i2v", device="cpu")
    image = np.zeros((100, 160, 3), np.uint8)
    image[:, :, 0] = np.arange(160)
    for prompt in ("", "a cat jumps"):
        job = pipe.resolve(Request("tiny2-i2v", prompt, image=image, seed=1, steps=2))
        (video,) = pipe.run_batch([job])
        with pipe.placement.hold("vae") as vae, torch.no_grad():
            given = torch.from_numpy(np.array(job.image.pixels())).float().div(127.5).sub(1)[None, None]
            first = ((vae.decode(vae.encode(given)).clamp(-1, 1) + 1) * 127.5)[0, 0].numpy()
        assert video.frames.shape == (25, 192, 192, 3)
        assert np.abs(video.frames[0].astype(float) - first).max() <= 2


@pytest.mark.parametrize(
    ("prompt", "image", "fields"),
    [
        ("a cat jumps", "ramp", {"seconds": 0.7}),
        ("a cat jumps", "ramp", {"seconds": 1.4}),
        ("a cat left of a dog", "ramp", {}),
        ("something grows", "white", {}),
        ("a cat", "clear", {}),
        ("a cat", "noise", {"steps": 2, "guidance": 2}),
    ],
)
def test_pictures_of_all_kinds_begin_clips_of_all_kinds(
    cards: Path, prompt: str, image: str, fields: dict[str, Any]
) -> None:
    given = {
        "ramp": np.tile(np.arange(192, dtype=np.uint8)[:, None], (192, 1, 3)),
        "white": np.full((192, 192, 3), 255, np.uint8),
        "clear": np.zeros((192, 192, 4), np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (192, 192, 3), np.uint8),
    }[image]
    pipe = kandinsky.load("tiny2-i2v", device="cpu")
    video = pipe(prompt, image=given, seed=1, **fields)
    alone = pipe("", image=given, seed=2, seconds=0.7)
    assert np.abs(video.frames[0].astype(int) - alone.frames[0]).max() <= 2
    assert video.frames.shape[0] == {0.7: 9, 1.4: 17}.get(fields.get("seconds", 2), 25)


def test_text_to_video_goes_on_from_a_first_frame_too(cards: Path) -> None:
    """Its first frame is followed and not known to the network, and yet what comes after it begins there."""
    image = np.zeros((192, 192, 3), np.uint8)
    image[:, :, 0] = np.arange(192)
    text, picture = (kandinsky.load(f"tiny2-{task}", device="cpu") for task in ("t2v", "i2v"))
    for steps in (1, 3):
        one, other = (p("a cat jumps", image=image, seed=1, steps=steps).frames.astype(int) for p in (text, picture))
        assert np.abs(one[0] - other[0]).max() <= 1 and np.abs(one - other).mean() < 0.4 * other.std()


STILL = np.zeros((192, 192, 3), np.uint8)
CLIP = Video(np.zeros((25, 192, 192, 3), np.uint8), 12.0, 0)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"video": CLIP, "strength": 0.5}, "takes no video to change"),
        ({"video": CLIP, "mask": STILL[..., 0]}, "takes no video to change"),
        ({"video": CLIP, "span": "0.5s:1s"}, "takes no video to change"),
        ({"video": CLIP, "place": "96x96+0+0"}, "takes no video to change"),
        ({"video": CLIP, "source_prompt": "a dog"}, "takes no video to change"),
        ({"conditions": [Source(CLIP, strength=0.5)]}, "takes no video to change"),
        ({"last_image": STILL}, "goes on from a first frame, and takes no other known frames"),
        ({"conditions": [Frames(STILL, at="1s")]}, "goes on from a first frame"),
        ({"conditions": [Frames(CLIP, at=0, cut="0:9")]}, "give a single one at 0"),
        ({"conditions": [Frames(CLIP, at=0, cut="0:9"), Frames(CLIP, at="end", cut="0:8")]}, "give a single one at 0"),
        ({"control": CLIP}, "takes no control"),
        ({"reference": STILL}, "takes no reference"),
    ],
)
def test_what_would_be_a_collage_is_refused_with_the_model_that_does_it(
    task: str, asked: dict[str, Any], message: str
) -> None:
    card = find(f"nano2-{task}")
    with pytest.raises(RequestError) as refused:
        card.does.resolve()(Request(card.id, "a cat jumps", **asked), card, False)
    said = str(refused.value)
    assert said.startswith(f"`{card.id}` ") and message in said and f"use `nano-{task}`" in said and "\n" not in said
    other = find(f"nano-{task}")
    assert lacks(Request(card.id, "a cat jumps", **asked), card)
    assert not lacks(Request(other.id, "a cat jumps", **asked), other)


def test_what_it_takes_is_said_where_models_are_shown(cards: Path) -> None:
    for task, way in (("t2v", "replacement"), ("i2v", "native")):
        card = find(f"nano2-{task}")
        assert card.does.knows == {"first frame": way} and "video" not in accepted(card)
        assert f"`nano-{task}` takes other known frames" in accepted(card)["conditions"]


def test_the_last_frame_of_a_clip_is_a_first_frame_as_an_image_is(pipe: GenerationPipeline) -> None:
    ramp = np.tile(np.arange(192, dtype=np.uint8)[:, None], (192, 1, 3))
    clip = Video(np.stack([STILL, STILL, ramp]), 12.0, 0)
    image = pipe("a cat jumps", image=ramp, seed=1)
    known = pipe("a cat jumps", conditions=[Frames(clip, at=0, cut="-1:")], seed=1)
    assert np.array_equal(image.frames, known.frames)


def test_the_plan_and_the_cards(cards: Path) -> None:
    card = find("nano2-t2v")
    assert card.sampling.steps == 1 and card.sampling.guidance == 1 and card.does.makes == "video"
    assert find("nano2-i2v").dit == card.dit and find("nano2-i2v").does.image == "required"
    with torch.device("meta"):
        network = SceneTransformer(DiTParams.from_dict(card.dit.params))
    assert sum(p.numel() for p in network.parameters()) == card.parameters
    assert card.preview is not None and len(card.preview.weights) == card.clip.channels
    told = plan("tiny2-t2v", seconds=2)
    assert told.tokens == 4 * 6 * 6 and told.passes == 1 and 0 < told.seconds < 60


def test_previews_are_fitted_without_the_first_latent_frame(pipe: GenerationPipeline) -> None:
    whole, later = (samples(pipe, "a cat on red", 1, first=first) for first in (True, False))
    assert [len(x) for x in (*whole, *later)] == [4 * 144] * 2 + [3 * 144] * 2
    assert torch.equal(whole[0][144:], later[0]) and torch.equal(whole[1][144:], later[1])


@pytest.mark.parametrize(
    ("prompt", "unused"),
    [
        ("a cat fades in", ("fades in",)),
        ("a Cat jumps on a Blue background", ("Blue", "background")),
        ("кошка плавно появляется", ("плавно появляется",)),
        ("кошка прыгает, фон синий", ("фон", "синий")),
        ("a cat jumps, the camera zooms in", ()),
        ("an owl drums without a hat on red", ("drums", "without", "hat", "red")),
    ],
)
def test_beside_an_image_what_it_decides_is_named(
    encoder: NanoSceneEncoder, prompt: str, unused: tuple[str, ...]
) -> None:
    assert encoder.unused(prompt, beside_image=True) == unused


def test_beside_an_image_nothing_fades_in(encoder: NanoSceneEncoder) -> None:
    image = Image.new("RGB", (192, 192))
    one, other = (encoder.encode_with_images([text], [image]) for text in ("a cat fades in", "a cat"))
    assert torch.equal(one.pooled_BC, other.pooled_BC) and torch.equal(one.tokens_BLC, other.tokens_BLC)


def test_a_still_of_an_image_is_refused(cards: Path) -> None:
    animate = kandinsky.load("tiny2-i2v", device="cpu")
    image = np.zeros((192, 192, 3), np.uint8)
    with pytest.raises(RequestError, match=r"`0` seconds are not supported by `tiny2-i2v`: use 0.66 to 3600") as caught:
        animate("a cat", image=image, seconds=0)
    assert caught.value.hint == "a still would be the image itself"
    assert animate("a cat jumps", image=image, seconds=0.67, seed=1).frames.shape[0] == 9


def test_that_seeds_look_alike_is_said_once_and_only_of_such_models(
    cards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, count, said in (("tiny2-t2v", 2, 1), ("tiny2-t2v", 1, 0), ("nano-t2v", 2, 0)):
        line = ["generate", "a cat", "-m", model, "--count", str(count), "--seconds", "0", "--steps", "1"]
        assert main([*line, "-o", str(tmp_path / f"{model}-{count}-%d.png")]) == 0
        assert capsys.readouterr().err.count("other seeds look nearly the same") == said, model


def test_beside_an_image_a_motion_is_enough(encoder: NanoSceneEncoder) -> None:
    assert encoder.unused("moves up", beside_image=True) == ()
    assert encoder.unused("moves up brumbly", beside_image=True) == ("brumbly",)
    assert encoder.unused("moves up") == ()


def frame_with_a_box() -> torch.Tensor:
    frame = torch.full((96, 96, 3), -0.5)
    frame[40:64, 30:50] = torch.tensor([0.9, -0.9, 0.1])
    return frame


def test_what_is_cut_out_of_a_frame_begins_there_and_moves_as_told() -> None:
    frame = frame_with_a_box()
    scene = Packed.of(packed([read("something moves right").scene])[0])
    clip = moved_cut_out(frame, scene, 25)
    assert clip is not None and clip.shape == (1 + 25, 96, 96, 3)
    assert (clip[0] - frame).abs().mean() < 0.02
    red = (clip[..., 0] > 0.3).float()
    across = torch.arange(96.0)
    middles = [(one.sum(0) * across).sum() / one.sum() for one in red[:12]]
    assert all(b >= a for a, b in pairwise(middles)) and middles[-1] > middles[0] + 10


@pytest.mark.parametrize("prompt", ["something", "something fades in", "two cats", None])
def test_nothing_is_cut_out_where_no_single_thing_is_told_to_move(prompt: str | None) -> None:
    scene = None if prompt is None else Packed.of(packed([read(prompt).scene])[0])
    assert moved_cut_out(frame_with_a_box(), scene, 25) is None


def test_nothing_is_cut_out_of_a_frame_without_a_plain_background() -> None:
    scene = Packed.of(packed([read("something jumps").scene])[0])
    ramp = torch.linspace(-1, 1, 96).view(1, 96, 1).expand(96, 96, 3)
    assert moved_cut_out(ramp, scene, 25) is None
    assert moved_cut_out(torch.zeros(96, 96, 3), scene, 25) is None


def test_what_turned_turns_on_from_there_and_stays_within_the_frame() -> None:
    """A part of a spin begins with the frame it is given; growth and ways end where the frame does."""
    frame = frame_with_a_box()
    spins, right, grows = (
        Packed.of(packed([read(f"something {motion}").scene])[0]) for motion in ("spins", "moves right", "grows")
    )
    assert spins is not None
    part = moved_cut_out(frame, spins.later(8), 2)
    assert part is not None and (part[0] - frame).abs().mean() < 0.02
    for scene in (right, grows):
        clip = moved_cut_out(frame, scene, 25)
        assert clip is not None
        began, ended = ((one[..., 0] > 0.3).float() for one in (clip[0], clip[-1]))
        assert (ended != began).any() and ended.sum() > 0.95 * began.sum()
        assert ended[:, -2:].sum() + ended[:2].sum() < 0.15 * ended.sum()


def test_a_cut_out_leaves_its_ground_as_it_was() -> None:
    """A ground that grows darker downwards is seen where the subject was; a thing cut off by the frame stays in it."""
    shade = torch.linspace(0.9, 0.5, 96).view(96, 1, 1).expand(96, 96, 3)
    frame = shade.clone()
    frame[40:64, 60:80] = torch.tensor([0.9, -0.9, 0.1])
    left = Packed.of(packed([read("something moves left").scene])[0])
    clip = moved_cut_out(frame, left, 25)
    assert clip is not None
    assert (clip[-1][:, 80:] - shade[:, 80:]).abs().max() < 0.02
    assert (clip[-1][30:75, 72:] - shade[30:75, 72:]).abs().max() < 0.03
    frame[60:, 30:70] = 0
    assert moved_cut_out(frame, left, 25) is None


@pytest.mark.parametrize("since", [1, 3, 9])
def test_all_of_a_long_clip_is_drawn_from_its_image(folder: Path, encoder: NanoSceneEncoder, since: int) -> None:
    """Whatever became of it in the windows before: nothing of a part's first frame is in what follows it."""
    net = square_of(folder, encoder)[0]
    text = encoder.encode_with_images(["jumps"], [Image.new("RGB", (192, 192))])
    scene = text.pooled_BC[:, DIM:]
    image = torch.full((192, 192, 3), -0.5)
    image[80:128, 60:100] = torch.tensor([0.9, -0.9, 0.1])
    whole = Packed.of(scene[0])
    assert whole is not None
    began = net.linear.encode(image[None, None])
    x, other = (torch.randn(1, LATENT_FRAMES, 12, 12, LATENT) for _ in range(2))
    frayed = image + 0.3 * torch.randn(image.shape)
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = []
    for noise, seen in ((x, image), (other, frayed)):
        noise[:, 0] = net.linear.encode(seen[None, None])[:, 0]
        told.append(tell(net.portraits, net.linear, text, scene, noise, known, since, began).draft_BTHWC)
        assert torch.equal(told[-1][:, 0], noise[:, 0])
    assert torch.equal(told[0][:, 1:], told[1][:, 1:])
    shown = net.linear.decode(told[1])[0, 1:]
    seen_there = net.linear.unpatchify(net.linear.still.decode(began[:, 0])[:, None])[0, 0]
    wanted = moved_cut_out(seen_there, whole, 25, since=8 * since)
    assert wanted is not None
    assert (shown - net.linear.decode(net.linear.encode(wanted[None, 1:]))[0, 1:]).abs().mean() < 0.02


def test_a_later_prompt_that_names_nothing_moves_what_is_seen(folder: Path, encoder: NanoSceneEncoder) -> None:
    """It fades into no portrait of nothing."""
    net = square_of(folder, encoder)[0]
    text = encoder.encode_with_images(["moves right"], [Image.new("RGB", (192, 192))])
    text.tokens_BLC[:, :108] = 0
    image = torch.full((192, 192, 3), -0.5)
    image[80:128, 60:100] = torch.tensor([0.9, -0.9, 0.1])
    x = torch.randn(1, LATENT_FRAMES, 12, 12, LATENT)
    x[:, 0] = net.linear.encode(image[None, None])[:, 0]
    known = torch.zeros(1, LATENT_FRAMES, 1, 1, 1, dtype=torch.bool)
    known[:, 0] = True
    told = tell(net.portraits, net.linear, text, text.pooled_BC[:, DIM:], x, known, -1)
    shown = net.linear.decode(told.draft_BTHWC)[0, -1]
    red = shown[..., 0] > 0.3
    assert red.sum() > 1000 and red[:, 120:].sum() > red[:, :80].sum()


@pytest.mark.parametrize(("phase", "both"), [(0, False), (8, True)])
def test_a_loop_shows_no_second_subject_where_it_comes_back(
    folder: Path, encoder: NanoSceneEncoder, phase: int, both: bool
) -> None:
    """The last group leads to what stands there a frame later as it is, and fades to anything else."""
    net = square_of(folder, encoder)[0]
    squares = torch.eye(2).repeat_interleave(8, 1) / 8**0.5
    moving = torch.einsum("nt,ay,bx,c->nabtyxc", torch.eye(8), squares, squares, torch.ones(3) / 3**0.5)
    net.linear.moving.basis.zero_()[:32] = moving.reshape(32, -1)  # every frame's squares, in grey

    def boxes(places: list[int]) -> torch.Tensor:
        clip = torch.full((len(places), 192, 192, 3), -0.5)
        for frame, at in zip(clip, places, strict=True):
            frame[at : at + 40, 60:100] = 0.9
        return clip

    ends = boxes([112 - 8 * abs(4 - n) for n in range(9)])  # moves down and up again
    x = net.linear.encode(torch.cat([boxes([80]), ends[1:]])[None])
    goal = net.linear.encode(torch.cat([boxes([80]), boxes([80 - 10 * phase] * 8)])[None])
    led = net.linear.decode(_led_to(net.linear, x[:, 1], goal[:, 1])[:, None], begins=False)[0]
    plain = net.linear.decode(x[:, 1:], begins=False)[0]
    ghost = (led[3] - plain[3]).abs().mean()
    assert (ghost > 0.01) == both
