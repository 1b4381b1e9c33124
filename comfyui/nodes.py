"""The nodes. Each says its inputs and calls one function; what runs is in ``running.py`` and in the library."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from kandinsky.engine.interpolation import FACTORS, Raise
from kandinsky.engine.options import PlanOptions, RunOptions
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.given import Control, Frames, Reference, Source
from kandinsky.model.timeline import PromptAt
from kandinsky.model.values import Request, Video

from . import remote, running
from .host import ComfyUI, clip_of, plain, show_text, video_in, video_of
from .inputs import DEFAULT, given, images_of, inputs_of
from .models import Chosen, Kept, branch_in, branch_names, choose, explained, file_in, file_names, model_names
from .names import CATEGORY, KNOWN, MODEL, NODES, PROMPTS
from .tensors import audio_of, frames_of, image_of, latent_of, latents_of, mask_of, masks_of, one_frame

HOST = ComfyUI()
KEPT = Kept(HOST)
Model = io.Custom(MODEL)
Known = io.Custom(KNOWN)
Prompts = io.Custom(PROMPTS)

# Fields that a node shows; what is true of them stands with them, in the library.
RUN = ("device", "dtype", "offload", "attention", "quantize", "tiling", "text_cache")
SAMPLING = ("negative_prompt", "steps", "guidance", "shift", "seed", "cache", "expand", "expanded_prompt")
FRAMES = tuple(
    images_of(Request, besides=("image", "control", "reference"))
)  # further known frames, for models that take them
LARGER = ("upscale", "upscale_strength")
OF_TIME = ("fade", "overlap", "loop")
CLIPS = (*SAMPLING, *FRAMES, "resample", "seconds", "fps", "motion", "image_guidance", "interpolation_guidance")
ENLARGED = ("negative_prompt", "overlap", "steps", "guidance", "shift", "seed", *LARGER)
CHANGES = ("strength", "mask", "mask_grow", "span", "place", "source_prompt")
EDITS = (*SAMPLING, "mask", "mask_grow")
SOUNDS = ("negative_prompt", "seconds", "steps", "guidance", "seed")
PLANS = ("seconds", "steps", "guidance", "cache", "fps")


def _schema(node: str, about: str, inputs: list[Any], outputs: list[Any], **more: Any) -> Any:
    return io.Schema(
        node_id=node, display_name=NODES[node], category=CATEGORY, description=about, inputs=inputs, outputs=outputs,
        **more,
    )  # fmt: skip


def _model() -> Any:
    return Model.Input("model", tooltip="From Kandinsky Load.")


def _prompt(about: str, **more: Any) -> Any:
    return io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="", tooltip=about, **more)


def _known(about: str) -> Any:
    return Known.Input("conditions", optional=True, tooltip=about)


def _later() -> Any:
    return Prompts.Input("prompt_at", optional=True, tooltip="Prompts for parts of the clip, from Kandinsky Prompt At.")


def _branch_inputs() -> list[Any]:
    """Which branch, and how much of it."""
    about = "File of the branch, in ComfyUI's folder controlnet or ipadapter. The default is the model's own."
    named = "For Kandinsky Remote: the branch's name on the server. Empty sends the name of the file."
    share = "Share of the steps at which it works, START:STOP from 0 to 1, such as 0:0.6. Empty takes all."
    return [
        io.Combo.Input("branch", options=[DEFAULT, *branch_names(HOST)], default=DEFAULT, tooltip=about, optional=True),
        io.String.Input("branch_there", default="", optional=True, tooltip=named),
        io.Float.Input("strength", default=1.0, min=0.0, max=4.0, step=0.05, optional=True,
                       tooltip="How much of it: 1 as trained, 0 is off."),
        io.String.Input("steps", default="", optional=True, tooltip=share),
    ]  # fmt: skip


def _branch(branch: str, there: str) -> Any:
    """The branch that a node names: a file of this machine, or a name that only a server knows."""
    if there.strip():
        return there.strip()
    return None if branch == DEFAULT else branch_in(branch, HOST)


def _branch_changed(branch: str) -> Any:
    return None if branch == DEFAULT else branch_in(branch, HOST).stat().st_mtime_ns


def _clip_inputs() -> list[Any]:
    cut = "The part of the clip that is used, START:STOP in frames or seconds, such as -9: or 1s:2.5s. Empty uses all."
    return [
        io.Video.Input("video", optional=True, tooltip="A clip; it is read at the model's frame rate."),
        io.Image.Input("images", optional=True, tooltip="In place of a clip: an image, or frames at the model's rate."),
        io.String.Input("cut", default="", optional=True, tooltip=cut),
    ]


def _clip(video: Any, images: Any) -> Any:
    """The clip, or the images, that a node is given.

    Raises:
        RequestError: Neither or both are connected.
    """
    if (video is None) == (images is None):
        raise RequestError("connect either `video` or `images`")
    return clip_of(video) if images is None else frames_of(images)


def _size() -> Any:
    about = "WIDTHxHEIGHT, one of the model's sizes. Empty leaves it to the model, or to the image."
    return io.String.Input("size", default="", placeholder="768x512", optional=True, tooltip=about)


def _values(values: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, with ComfyUI's tensors as the library's arrays."""
    chosen = given(values)
    for name in ("image", *FRAMES):
        if name in chosen:
            chosen[name] = one_frame(chosen[name], name)
    if "mask" in chosen:
        height, width = chosen["image"].shape[:2]
        chosen["mask"] = mask_of(chosen["mask"], height, width)
    return chosen


class KandinskyLoad(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        own = [DEFAULT, *file_names("diffusion_models", HOST)]
        names = model_names(HOST)
        return _schema(
            "KandinskyLoad",
            "Chooses a model and how it runs. Weights are read when a node first needs them, and freed when ComfyUI "
            "needs their memory.",
            [
                io.Combo.Input("model", options=names, default=names[0], tooltip="Catalogue id, or a folder's name."),
                io.Combo.Input(
                    "transformer", options=own, default=DEFAULT, optional=True,
                    tooltip="Other weights for the model's transformer, a file of any name in diffusion_models.",
                ),
                *inputs_of(RunOptions, only=RUN),
            ],
            [Model.Output("model_out", display_name="model")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model: Any, transformer: Any = DEFAULT) -> bool | str:
        try:
            with explained():
                choose(model, HOST, transformer="" if transformer in (DEFAULT, None) else transformer)
        except KandinskyError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: str, transformer: str = DEFAULT, **options: Any) -> Any:
        with explained():
            own = "" if transformer == DEFAULT else transformer
            return io.NodeOutput(choose(model, HOST, RunOptions.from_dict(given(options)), own))


class KandinskyLoRA(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyLoRA",
            "Adds a LoRA to a model. Several are chained; switching them reads no weights again.",
            [
                _model(),
                io.Combo.Input("lora", options=file_names("loras", HOST), tooltip="A file in ComfyUI's folder loras."),
                io.Float.Input(
                    "scale", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="1 is as trained, 0 is off."
                ),
            ],
            [Model.Output("model_out", display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> Any:
        return file_in("loras", lora, HOST).stat().st_mtime_ns

    @classmethod
    def execute(cls, model: Chosen, lora: str, scale: float) -> Any:
        with explained():
            return io.NodeOutput(model.with_lora(file_in("loras", lora, HOST), scale))


class KandinskyExpandPrompt(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyExpandPrompt",
            "Has the language model of Kandinsky 5 write a prompt out in more detail, and shows the text. Connect it "
            "to expanded_prompt, so that results hold both texts.",
            [
                _model(),
                _prompt("What to show, in a few words."),
                io.Image.Input("image", optional=True, tooltip="The image, for models that start from one."),
                *inputs_of(Request, only=("seed",)),
            ],
            [io.String.Output("expanded", display_name="expanded_prompt")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Chosen, prompt: str, **values: Any) -> Any:
        with explained():
            text = running.expanded(model, prompt, _values(values), KEPT)
        return io.NodeOutput(text, ui=show_text(text, cls.hidden.unique_id))


class KandinskyKnownFrames(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyKnownFrames",
            "Frames that the result keeps: an image or a part of a clip, anywhere in it. Several are chained; the "
            "end of one clip and the beginning of another join them.",
            [
                *_clip_inputs(),
                io.String.Input("at", default="0", tooltip="The frame of the result that is the first of them: 12, or "
                                "-1 for the last one; seconds such as 1.5s; or end: they end with the result."),
                _known("What else is known, from a node of this kind."),
            ],
            [Known.Output("known", display_name="conditions")],
        )  # fmt: skip

    @classmethod
    def execute(cls, at: str, video: Any = None, images: Any = None, cut: str = "", conditions: Any = ()) -> Any:
        with explained():
            known = Frames(_clip(video, images), at=at.strip(), cut=cut.strip() or None)
        return io.NodeOutput((*(conditions or ()), known))


class KandinskySourceClip(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskySourceClip",
            "A clip, or for models of images an image, that is changed: as a whole by strength or by a source prompt, "
            "or anew where a mask, a span or a place say.",
            [
                *_clip_inputs(),
                *inputs_of(Request, only=CHANGES),
                _known("What else is known, from Kandinsky Known Frames."),
            ],
            [Known.Output("known", display_name="conditions")],
        )

    @classmethod
    def execute(
        cls, video: Any = None, images: Any = None, cut: str = "", mask: Any = None, conditions: Any = (), **values: Any
    ) -> Any:
        with explained():
            clip = _clip(video, images)
            chosen = given(values)
            source = Source(
                clip,
                cut=cut.strip() or None,
                mask=None if mask is None else masks_of(mask, *_height_and_width(clip)),
                grow=chosen.pop("mask_grow", None),
                prompt=chosen.pop("source_prompt", None),
                **chosen,
            )
        return io.NodeOutput((*(conditions or ()), source))


def _height_and_width(clip: Any) -> tuple[int, int]:
    height, width = getattr(clip, "frames_THWC", clip).shape[1:3]
    return height, width


class KandinskyControl(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyControl",
            "A clip or an image that the result follows frame by frame, through a control branch (as a ControlNet): "
            "edges are found in it; depth, pose and the like are given as clips.",
            [
                *_clip_inputs(),
                *_branch_inputs(),
                io.String.Input("signal", default="", optional=True, placeholder="edges",
                                tooltip="What the branch is shown, such as edges or depth. Empty is the branch's own."),
                io.Boolean.Input("is_map", default=False, optional=True,
                                 tooltip="Whether the clip shows the signal already, so that nothing is found in it."),
                _known("What else is known, from a node of conditions."),
            ],
            [Known.Output("known", display_name="conditions")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, branch: str = DEFAULT, **others: Any) -> Any:
        return _branch_changed(branch)

    @classmethod
    def execute(
        cls, video: Any = None, images: Any = None, cut: str = "", branch: str = DEFAULT, branch_there: str = "",
        strength: float = 1.0, steps: str = "", signal: str = "", is_map: bool = False, conditions: Any = (),
    ) -> Any:  # fmt: skip
        with explained():
            control = Control(
                _clip(video, images), branch=_branch(branch, branch_there), signal=signal.strip() or None,
                is_map=is_map, strength=strength, steps=steps.strip() or None, cut=cut.strip() or None,
            )  # fmt: skip
        return io.NodeOutput((*(conditions or ()), control))


class KandinskyReference(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyReference",
            "An image whose subject the result shows, through a reference branch (as an IP-Adapter).",
            [
                io.Image.Input("image", tooltip="The image of the subject."),
                *_branch_inputs(),
                _known("What else is known, from a node of conditions."),
            ],
            [Known.Output("known", display_name="conditions")],
        )

    @classmethod
    def fingerprint_inputs(cls, branch: str = DEFAULT, **others: Any) -> Any:
        return _branch_changed(branch)

    @classmethod
    def execute(
        cls, image: Any, branch: str = DEFAULT, branch_there: str = "", strength: float = 1.0, steps: str = "",
        conditions: Any = (),
    ) -> Any:  # fmt: skip
        with explained():
            shown = Reference(
                one_frame(image, "image"), branch=_branch(branch, branch_there), strength=strength,
                steps=steps.strip() or None,
            )  # fmt: skip
        return io.NodeOutput((*(conditions or ()), shown))


class KandinskyPromptAt(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyPromptAt",
            "Another prompt from a second on, or between two. Several are chained; the clip's own prompt holds "
            "elsewhere.",
            [
                _prompt("What the clip shows there."),
                io.Float.Input("at", default=1.0, min=0.0, max=3600.0, step=0.1, tooltip="The second it begins at."),
                io.Float.Input("until", default=-1.0, min=-1.0, max=3600.0, step=0.1, optional=True,
                               tooltip="The second it ends at. -1 holds until the next one begins."),
                Prompts.Input("prompt_at", optional=True, tooltip="Other prompts, from a node of this kind."),
            ],
            [Prompts.Output("prompts", display_name="prompt_at")],
        )  # fmt: skip

    @classmethod
    def execute(cls, prompt: str, at: float, until: float = -1.0, prompt_at: Any = ()) -> Any:
        with explained():
            later = PromptAt(prompt.strip(), at, None if until < 0 else until)
        return io.NodeOutput((*(prompt_at or ()), later))


class KandinskyGenerate(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyGenerate",
            "Generates a clip or an image from text, from an image, or from both. The same model, prompt, seed and "
            "settings give the same frames as the command line.",
            [
                _model(),
                _prompt("What to show."),
                io.Image.Input("image", optional=True, tooltip="First frame, for models that start from one."),
                _known("From Kandinsky Known Frames, Source Clip, Control and Reference."),
                _later(),
                _size(),
                *inputs_of(Request, only=CLIPS),
                *inputs_of(Request, only=(*OF_TIME, *LARGER)),  # last: saved workflows know widgets by their place
            ],
            [
                io.Video.Output("video"),
                io.Image.Output("frames", display_name="images"),
                io.Latent.Output("latent"),
                io.Int.Output("used_seed", display_name="seed"),
            ],
        )

    @classmethod
    def execute(cls, model: Chosen, prompt: str, **values: Any) -> Any:
        with explained():
            made = running.generated(model, prompt, _values(values), KEPT)
        video, latents = made.video, made.latents_BTHWC
        latent = None if latents is None else {"samples": latent_of(latents), "kandinsky": plain(video.recipe)}
        return io.NodeOutput(video_of(video), image_of(video.frames_THWC), latent, video.seed)


class KandinskyEdit(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyEdit",
            "Changes an image as the prompt says; with a mask, repaints the masked part alone.",
            [
                _model(),
                io.Image.Input("image", tooltip="The image to edit."),
                _prompt("What to change, or what to paint where the mask is."),
                _size(),
                *inputs_of(Request, only=EDITS),
            ],
            [
                io.Image.Output("edited", display_name="image"),
                io.Latent.Output("latent"),
                io.Int.Output("used_seed", display_name="seed"),
            ],
        )

    @classmethod
    def execute(cls, model: Chosen, image: Any, prompt: str, **values: Any) -> Any:
        with explained():
            made = running.generated(model, prompt, _values({**values, "image": image}), KEPT)
        assert made.latents_BTHWC is not None
        latent = {"samples": latent_of(made.latents_BTHWC), "kandinsky": plain(made.video.recipe)}
        return io.NodeOutput(image_of(made.video.frames_THWC), latent, made.video.seed)


class KandinskyUpscale(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        clip, images, _ = _clip_inputs()
        return _schema(
            "KandinskyUpscale",
            "Makes a clip larger in a second stage by a model of clips: it is scaled, and what is lost is generated "
            "anew in tiles, as the prompt says.",
            [
                _model(),
                clip,
                images,
                _prompt("What the clip shows."),
                *inputs_of(Request, only=ENLARGED),
            ],
            [
                io.Video.Output("larger", display_name="video"),
                io.Image.Output("frames", display_name="images"),
                io.Int.Output("used_seed", display_name="seed"),
            ],
        )

    @classmethod
    def execute(cls, model: Chosen, prompt: str, video: Any = None, images: Any = None, **values: Any) -> Any:
        with explained():
            clip = _clip(video, images)
            if images is not None:
                clip = Video(clip, model.source.card.clip.fps)
            made = running.generated(model, prompt, {"upscale": "2", **_values(values), "video": clip}, KEPT).video
        return io.NodeOutput(video_of(made), image_of(made.frames_THWC), made.seed)


class KandinskySound(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskySound",
            "Generates audio for a clip.",
            [
                _model(),
                io.Video.Input("video", tooltip="The clip; its own audio is replaced."),
                _prompt("What is to be heard.", optional=True),
                *inputs_of(Request, only=SOUNDS),
            ],
            [
                io.Audio.Output("audio"),
                io.Video.Output("with_sound", display_name="video"),
                io.Int.Output("used_seed", display_name="seed"),
            ],
        )

    @classmethod
    def execute(cls, model: Chosen, video: Any, prompt: str = "", **values: Any) -> Any:
        with explained():
            made = running.sounded(model, clip_of(video), prompt, _values(values), KEPT)
        return io.NodeOutput(audio_of(made.audio), video_of(running.with_sound(made)), made.seed)


class KandinskyInterpolate(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        numbers = {"default": -1.0, "min": -1.0, "step": 0.1, "optional": True}
        return _schema(
            "KandinskyInterpolate",
            "Raises a clip's frame rate with the interpolation network of a Kandinsky Video model. Length, size and "
            "audio stay the same.",
            [
                _model(),
                io.Video.Input("video", tooltip="The clip."),
                io.Combo.Input("factor", options=[str(one) for one in FACTORS], default=str(Raise().factor),
                               tooltip="Times the frame rate."),
                io.Float.Input("fps", tooltip="Frame rate in place of a factor. -1 takes the factor.", **numbers),
                _prompt("What the clip shows, for models that are told.", optional=True),
                io.Int.Input("steps", default=-1, min=-1, optional=True,
                             tooltip="Steps of the sampler. -1 leaves it to the model."),
                io.Float.Input("guidance", tooltip="Guidance scale of the frames around a gap; 1 disables it. -1 "
                               "leaves it to the model.", **numbers),
                *inputs_of(Request, only=("seed",)),
            ],
            [io.Video.Output("smooth", display_name="video"), io.Image.Output("frames", display_name="images")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Chosen, video: Any, factor: str, **values: Any) -> Any:
        with explained():
            made = running.interpolated(model, clip_of(video), Raise(int(factor), **given(values)), KEPT)
        return io.NodeOutput(video_of(made), image_of(made.frames_THWC))


class KandinskyDecode(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyDecode",
            "Decodes a latent of Kandinsky Generate or Kandinsky Edit again, to the same frames.",
            [_model(), io.Latent.Input("latent", tooltip="From Kandinsky Generate with the same model.")],
            [io.Video.Output("video"), io.Image.Output("frames", display_name="images")],
        )

    @classmethod
    def execute(cls, model: Chosen, latent: dict[str, Any] | None) -> Any:
        with explained():
            if latent is None:
                raise RequestError(
                    "no single latent holds this clip, which was made in windows or made larger: take the images of "
                    "Kandinsky Generate"
                )
            made = running.decoded(model, latents_of(latent["samples"]), latent.get("kandinsky"), KEPT)
        return io.NodeOutput(video_of(made), image_of(made.frames_THWC))


class KandinskyPlan(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyPlan",
            "Says what a generation will need, before it runs: download, memory, time, and the placement that fits.",
            [
                _model(),
                _size(),
                *inputs_of(Request, only=PLANS),
                io.String.Input("memory", default="", placeholder="12GB", optional=True,
                                tooltip=f"{_about(PlanOptions, 'memory')} Empty plans for this machine."),
                *inputs_of(Request, only=LARGER),
            ],
            [io.String.Output("plan")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Chosen, memory: str = "", **values: Any) -> Any:
        with explained():
            text = running.planned(model, given(values), memory=memory.strip() or None)
        return io.NodeOutput(text, ui=show_text(text, cls.hidden.unique_id))


class KandinskyRemote(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            "KandinskyRemote",
            "Has a Kandinsky server generate, on this or another machine; nothing is loaded here. 0 seconds make an "
            "image. A key comes from ComfyUI's environment, KANDINSKY_API_KEY.",
            [
                io.String.Input("server", default=remote.default_server(), tooltip="Address of `kandinsky serve`."),
                io.String.Input("model", default="nano-t2v", tooltip="A model of the server, by its id."),
                _prompt("What to show."),
                io.Image.Input("image", optional=True, tooltip="First frame, or the image to edit."),
                _known("From Kandinsky Known Frames, Source Clip, Control and Reference; clips are sent as mp4."),
                _later(),
                io.Video.Input(
                    "larger",
                    display_name="video",
                    optional=True,
                    tooltip="With upscale: a clip that is made larger as it is; sent as mp4.",
                ),
                _size(),
                *inputs_of(Request, only=CLIPS),
                *inputs_of(Request, only=(*OF_TIME, *LARGER)),  # last: saved workflows know widgets by their place
            ],
            [
                io.Video.Output("video"),
                io.Image.Output("frames", display_name="images"),
                io.Audio.Output("audio"),
                io.String.Output("job"),
            ],
        )

    @classmethod
    def execute(cls, server: str, model: str, prompt: str, **values: Any) -> Any:
        with explained():
            clip = values.pop("larger", None)
            told = _values(values) | ({} if clip is None else {"video": clip_of(clip)})
            images = {name: told.pop(name) for name in ("image", *FRAMES) if name in told}
            made = remote.generate(server, model, prompt, told, images, HOST)
        video = video_in(made.data) if not made.is_image else video_of(remote.still(made.data))
        parts = video.get_components()
        return io.NodeOutput(video, parts.images, parts.audio, made.id)


def _about(kind: type, name: str) -> str:
    (found,) = inputs_of(kind, only=(name,))
    return str(found.tooltip).removesuffix(" Empty leaves it to the model.")


class Kandinsky(ComfyExtension):  # type: ignore[misc]
    async def get_node_list(self) -> list[type]:
        return [
            KandinskyLoad, KandinskyLoRA, KandinskyExpandPrompt, KandinskyKnownFrames, KandinskySourceClip,
            KandinskyControl, KandinskyReference, KandinskyPromptAt, KandinskyGenerate, KandinskyEdit,
            KandinskyUpscale, KandinskySound, KandinskyInterpolate, KandinskyDecode, KandinskyPlan, KandinskyRemote,
        ]  # fmt: skip


async def comfy_entrypoint() -> Kandinsky:
    """What ComfyUI calls."""
    return Kandinsky()
