"""The prompt templates the text encoder was used with in training: constants of the models, misspellings included.

Changing a letter changes every text state. Lines are joined with a line feed; ``{}`` takes the prompt.
Source: kandinskylab/kandinsky-5@6e2a805, kandinsky/models/text_embedders.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.errors import RequestError

SLOT = "{}"


@dataclass(frozen=True, slots=True)
class Template:
    """Text around a prompt, and how many tokens of the encoder's output are dropped at the start.

    Attributes:
        crop_start: Positions dropped from the states. With the Qwen vocabulary the text before the prompt is exactly as
            long, but for ``image_edit``, where the official number also drops three tokens of the prompt.
        prefix_tokens: Length of the text before the prompt, counted with the Qwen vocabulary.
    """

    text: str
    crop_start: int
    prefix_tokens: int

    @property
    def prefix(self) -> str:
        return self.text.partition(SLOT)[0]

    def fill(self, prompt: str) -> str:
        """The text to encode. Braces in a prompt stay as they are."""
        before, _, after = self.text.partition(SLOT)
        return before + prompt + after


VIDEO = Template(
    (
        "<|im_start|>system\n"
        "You are a promt engineer. Describe the video in detail.\n"
        "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the "
        "objects.\n"
        "Describe the location of the video, main characters or objects and their action.\n"
        "Describe the dynamism of the video and presented actions.\n"
        "Name the visual style of the video: whether it is a professional footage, user generated content, "
        "some kind of animation, video game or scren content.\n"
        "Describe the visual effects, postprocessing and transitions if they are presented in the video.\n"
        "Pay attention to the order of key actions shown in the scene.<|im_end|>\n"
        "<|im_start|>user\n"
        "{}<|im_end|>"
    ),
    crop_start=129,
    prefix_tokens=129,
)

IMAGE = Template(
    (
        "<|im_start|>system\n"
        "You are a promt engineer. Describe the image by detailing the color, shape, size, texture, "
        "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
        "<|im_start|>user\n"
        "{}<|im_end|>"
    ),
    crop_start=41,
    prefix_tokens=41,
)

IMAGE_EDIT = Template(
    (
        "<|im_start|>system\n"
        "You are a promt engineer. Based on the provided source image (first image) and target image (second "
        "image), create an interesting text prompt that can be used together with the source image to create "
        "the target image:<|im_end|>\n"
        "<|im_start|>user\n"
        "{}"
    ),
    crop_start=55,
    prefix_tokens=52,
)

IMAGE2VIDEO = Template(
    (
        "<|im_start|>system\n"
        "You are a promt engineer. Your task is to create a highly detailed and effective video description "
        "based on a provided input image.\n"
        "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the "
        "objects.\n"
        "Describe main characters actions.\n"
        "Describe the dynamism of the video and presented actions.\n"
        "Name the visual style of the video: whether it is a professional footage, user generated content, "
        "some kind of animation, video game or scren content.\n"
        "Describe the visual effects, postprocessing and transitions if they are presented in the video.\n"
        "Pay attention to the order of key actions shown in the scene.<|im_end|>\n"
        "<|im_start|>user\n"
        "{}<|im_end|>"
    ),
    crop_start=132,
    prefix_tokens=132,
)

# Follows the prompt of an image-editing request, one for each source image; END_OF_TURN closes it.
IMAGE_EDIT_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
END_OF_TURN = "<|im_end|>"


def fill_edit(prompt: str, image_tokens: int) -> str:
    """The image-editing text of a prompt and one source image of ``image_tokens`` tokens."""
    image = IMAGE_EDIT_IMAGE.replace(IMAGE_PAD, IMAGE_PAD * image_tokens)
    return IMAGE_EDIT.fill(prompt) + image + END_OF_TURN


TEMPLATES = {"video": VIDEO, "image": IMAGE, "image_edit": IMAGE_EDIT, "image2video": IMAGE2VIDEO}


def template(name: str) -> Template:
    """The template a card names.

    Raises:
        RequestError: The name is unknown.
    """
    try:
        return TEMPLATES[name]
    except KeyError:
        raise RequestError(f"unknown template `{name}`: use one of {', '.join(TEMPLATES)}") from None
