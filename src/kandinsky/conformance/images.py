"""Runs the cases of given images: how they are fitted to a size, and what is done to the first frames of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.conformance.cases import Case, NotBuilt
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.engine.stages import to_pixels
from kandinsky.media.image import FittedImage, area_size, open_image


def run_preprocess_image(case: Case) -> dict[str, Tensor]:
    """Images [1, 3, H, W] of uint8, resized by either rule, and as the numbers the autoencoder is given."""
    case.refuse_other_calls("items")
    inputs, outputs = case.inputs(), {}
    for number, item in enumerate(case.call["items"]):
        picture = open_image(inputs[f"image.{number}"][0].permute(1, 2, 0).numpy())
        if item["kind"] == "i2v":
            size = area_size(*picture.size, area=item["max_area"], multiple=item["divisibility"])
            fitted = FittedImage(picture, *size, how="stretch")
        elif item["kind"] == "cover_crop":
            height, width = item["size"]
            fitted = FittedImage(picture, width, height, how="cover")
        else:
            raise NotBuilt(f"images of the kind `{item['kind']}` are not built yet")
        pixels = to_pixels(fitted.pixels())[:, 0]
        outputs[f"resized.{number}"] = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 3, 1, 2)
    return outputs


def run_normalize_first_frame(case: Case) -> dict[str, Tensor]:
    """Latents [T, H, W, C] before and after."""
    case.refuse_other_calls("reference_frames", "clump_values")
    latents_BTHWC = case.inputs()["latents"][None]
    reference, clamp = int(case.call["reference_frames"]), bool(case.call["clump_values"])
    return {"output": normalize_first_frame(latents_BTHWC, reference_frames=reference, clamp=clamp)[0]}
