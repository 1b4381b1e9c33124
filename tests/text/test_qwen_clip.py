"""Text states: official templates to the letter, padding and cropping as in the official code."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5.qwen_clip import QwenClipEncoder, QwenClipFiles, QwenClipParams, read_qwen_clip
from kandinsky.families.kandinsky5.templates import IMAGE_EDIT_IMAGE, IMAGE_PAD, TEMPLATES, template
from kandinsky.media.image import resized
from kandinsky.text.protocol import ImageTextEncoder, TextEncoder
from tiny import family
from tiny.tokenizers import clip_tokenizer, qwen_tokenizer

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5" / "prompts.json"
PROMPTS = ["a cat", "медведь играет на балалайке, {weird} braces"]
SHA256 = {
    "video": "09efacd0c7584e236b605dfa1d8b76e87051f5d4ca99f79243e46cbec993c3bc",
    "image": "04de998d6e835997641241c6d0ec3dc0fab9e8c70f87dccf98333822ccdff04f",
    "image_edit": "8cd783f4ed62c3dd395209b429809f5fe5ef9fb9ef684bc4d17d611503757db9",
    "image2video": "34c9ab571d1bc007e2da89695c50964604906dfb78f39c37f6a08ba4d7e9cd5b",
}


def encoder(**changes) -> QwenClipEncoder:
    return QwenClipEncoder(
        family.qwen(), family.clip(), qwen_tokenizer=qwen_tokenizer(), clip_tokenizer=clip_tokenizer(), **changes
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_have_not_changed(name: str) -> None:
    assert hashlib.sha256(TEMPLATES[name].text.encode()).hexdigest() == SHA256[name]


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference folder is not beside the checkout")
def test_templates_are_the_official_ones() -> None:
    facts = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert {name: t.text for name, t in TEMPLATES.items()} == facts["text_encoder_templates"]
    assert {name: t.crop_start for name, t in TEMPLATES.items()} == facts["crop_start"]


def test_a_prompt_with_braces_is_left_alone() -> None:
    assert template("video").fill("a {} b {x}").endswith("user\na {} b {x}<|im_end|>")


def test_unknown_template_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown template `videos`: use one of video, image"):
        QwenClipParams.from_dict({"template": "videos"})


def test_it_is_a_text_encoder() -> None:
    assert isinstance(encoder(), TextEncoder)


def test_states_are_qwens_last_hidden_states_after_the_template() -> None:
    """Against the official recipe spelled out: full padding, no mask for Qwen, `hidden_states[-1]`, cropped."""
    ours = encoder(padding="full").encode(PROMPTS)
    inputs = qwen_tokenizer()(
        [TEMPLATES["video"].text.replace("{}", p, 1) for p in PROMPTS],
        padding="max_length",
        max_length=129 + 256,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        full = family.qwen()(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states[-1]
    assert ours.tokens_BLC.shape == (2, 256, family.QWEN_WIDTH)
    assert torch.equal(ours.tokens_BLC, full[:, 129:])
    assert ours.mask_BL is not None and ours.mask_BL.dtype is torch.bool
    assert torch.equal(ours.mask_BL, inputs["attention_mask"][:, 129:].bool())


def test_pooled_state_is_clips_without_template() -> None:
    ours = encoder().encode(PROMPTS)
    inputs = clip_tokenizer()(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        pooled = family.clip()(**inputs).pooler_output
    assert ours.pooled_BC.dtype is torch.float32
    assert torch.equal(ours.pooled_BC, pooled)


def test_trimmed_text_carries_the_same_states() -> None:
    full, trimmed = encoder(padding="full").encode(PROMPTS), encoder().encode(PROMPTS)
    assert full.mask_BL is not None and trimmed.mask_BL is not None
    length = trimmed.tokens_BLC.shape[1]
    assert length == full.mask_BL.sum(dim=1).max()
    torch.testing.assert_close(trimmed.tokens_BLC, full.tokens_BLC[:, :length], rtol=1e-5, atol=1e-5)
    assert torch.equal(trimmed.mask_BL, full.mask_BL[:, :length])


def test_one_prompt_needs_no_mask() -> None:
    states = encoder().encode(PROMPTS[:1])
    assert states.mask_BL is None
    assert states.tokens_BLC.shape[1] == len(qwen_tokenizer()("a cat<|im_end|>")["input_ids"])


def test_padding_makes_no_difference_to_the_denoiser() -> None:
    full, trimmed = encoder(padding="full").encode(PROMPTS), encoder().encode(PROMPTS)
    x = torch.randn(2, 2, 4, 4, 2 * family.CHANNELS + 1, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([700.0, 700.0])
    with torch.no_grad():
        a, b = family.dit()(x, time, full), family.dit()(x, time, trimmed)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    one = encoder().encode(PROMPTS[:1])
    with torch.no_grad():
        c = family.dit()(x[:1], time[:1], one)
    torch.testing.assert_close(a[:1], c, rtol=1e-4, atol=1e-5)


def test_a_long_prompt_is_cut_at_the_official_length() -> None:
    states = encoder().encode(["word " * 500])
    assert states.tokens_BLC.shape[1] == 256


def test_stills_use_the_template_for_images() -> None:
    clip, still = encoder().encode(PROMPTS[:1]), encoder().encode(PROMPTS[:1], still=True)
    assert clip.tokens_BLC.shape == still.tokens_BLC.shape
    assert not torch.allclose(clip.tokens_BLC, still.tokens_BLC, atol=1e-2)


def test_no_prompt_is_refused() -> None:
    for nothing in ([], "a string"):
        with pytest.raises(RequestError, match="list of at least one prompt"):
            encoder().encode(nothing)


def test_another_models_tokenizer_is_refused() -> None:
    from transformers import Qwen2Tokenizer

    letters = Qwen2Tokenizer(vocab={chr(i): i for i in range(33, 127)}, merges=[])
    with pytest.raises(WeightsError, match=r"splits the `video` template into .* trained with 129"):
        QwenClipEncoder(family.qwen(), family.clip(), qwen_tokenizer=letters, clip_tokenizer=clip_tokenizer())


def copy_with(folder: Path, target: Path, edit) -> QwenClipFiles:
    import shutil

    shutil.copytree(folder / "weights", target)
    state = load_file(target / "text_encoder" / "model.safetensors")
    save_file(edit(state), target / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    return QwenClipFiles(target / "text_encoder", target / "text_encoder2")


def test_a_missing_tensor_is_named(official: Path, tmp_path: Path) -> None:
    gone = "model.language_model.layers.1.mlp.down_proj.weight"

    def without(state):
        return {k: v for k, v in state.items() if k not in (gone, gone.replace("model.language_model", "model"))}

    files = copy_with(official, tmp_path / "w", without)
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.down_proj\.weight` is missing in"):
        read_qwen_clip(files, dtype=torch.float32)


def test_a_tensor_too_many_is_named(official: Path, tmp_path: Path) -> None:
    files = copy_with(official, tmp_path / "w", lambda state: state | {"model.odd.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"odd\.weight` belongs to no part"):
        read_qwen_clip(files, dtype=torch.float32)


def test_compute_type_is_qwens_only(official: Path) -> None:
    files = QwenClipFiles(official / "weights" / "text_encoder", official / "weights" / "text_encoder2")
    states = read_qwen_clip(files, dtype=torch.bfloat16).encode(["a cat"])
    assert states.tokens_BLC.dtype is torch.bfloat16
    assert states.pooled_BC.dtype is torch.float32


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Uneven patterns."""
    made = []
    for number, (width, height) in enumerate(sizes):
        y, x = np.mgrid[0:height, 0:width]
        values = [(x * 7 + number * 50) % 256, (y * 5) % 256, (x * y) % 256]
        made.append(Image.fromarray(np.stack(values, axis=-1).astype(np.uint8)))
    return made


def test_an_edited_image_is_seen_as_the_processor_shows_it() -> None:
    """Against transformers' own processor for text and image, spelled out: half the size, cropped at 55."""
    ours = encoder(image_processor=family.image_processor())
    (picture,) = pictures((120, 64))
    states = ours.encode_with_images(["make it snow"], [picture])
    seen = family.image_processor()(images=[resized(picture, 60, 32)], return_tensors="pt")
    grid = seen["image_grid_thw"]
    count = int(grid.prod()) // 4
    assert count == 2
    text = template("image_edit").fill("make it snow") + IMAGE_EDIT_IMAGE.replace(IMAGE_PAD, IMAGE_PAD * count)
    inputs = qwen_tokenizer()([text + "<|im_end|>"], return_tensors="pt")
    kinds = (inputs["input_ids"] == qwen_tokenizer().convert_tokens_to_ids(IMAGE_PAD)).int()
    assert int(kinds.sum()) == count
    with torch.no_grad():
        full = family.qwen()(
            **{key: inputs[key] for key in ("input_ids", "attention_mask")},
            **seen,
            mm_token_type_ids=kinds,
            output_hidden_states=True,
        ).hidden_states[-1]
    assert torch.equal(states.tokens_BLC, full[:, 55:]) and states.mask_BL is None
    assert torch.equal(states.pooled_BC, ours.encode(["make it snow"]).pooled_BC)


def test_images_of_a_batch_do_not_mix() -> None:
    ours = encoder(image_processor=family.image_processor())
    prompts, images = ["a cat in snow", "turn the long road into a river"], pictures((120, 64), (64, 64))
    both = ours.encode_with_images(prompts, images)
    assert both.mask_BL is not None
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = ours.encode_with_images([prompt], [image])
        kept = both.tokens_BLC[i][both.mask_BL[i]]
        torch.testing.assert_close(kept, alone.tokens_BLC[0], rtol=1e-4, atol=1e-5)


def test_images_need_a_processor_and_clean_prompts() -> None:
    (picture,) = pictures((64, 64))
    with pytest.raises(WeightsError, match="preprocessor_config"):
        encoder().encode_with_images(["a cat"], [picture])
    ours = encoder(image_processor=family.image_processor())
    with pytest.raises(RequestError, match="stands for the image"):
        ours.encode_with_images([f"a {IMAGE_PAD} cat"], [picture])
    with pytest.raises(RequestError, match="an image for each"):
        ours.encode_with_images(["a cat"], [])
    assert isinstance(ours, ImageTextEncoder)
