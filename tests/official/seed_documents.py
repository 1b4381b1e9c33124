"""The code and command lines of the five public documents, to the letter, and what has to differ with tiny weights.

The documents are the model pages of Kandinsky 4.0 T2V Flash, Kandinsky 4.0, Kandinsky Video 1.0 and Kandinsky 5.0, and
the slides of a talk, which hold neither code nor commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLASH, KANDINSKY4, VIDEO, KANDINSKY5, SLIDES = (
    "Kandinsky 4.0 T2V Flash",
    "Kandinsky 4.0",
    "Kandinsky Video 1.0",
    "Kandinsky 5.0",
    "Diffusion text-to-video generation methods (slides)",
)
# the documents as they were given, in this order, where they lie beside the checkout
FILES = {"000": FLASH, "001": KANDINSKY4, "002": VIDEO, "003": KANDINSKY5, "004": SLIDES}


@dataclass(frozen=True)
class Entry:
    """One piece of a document.

    folder:  of `official/` to stand in.   asks: arguments of the official call, as the documents mean them.
    changes: text → what stands in its place here; why is said in ``note``.   made: files it leaves behind.
    is_run:  False for what this library has no part in; ``note`` says what stands in its place.
    """

    document: str
    name: str
    text: str
    folder: str = ""
    kind: str = "shell"
    asks: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    made: tuple[str, ...] = ()
    note: str = ""
    is_run: bool = True

    @property
    def id(self) -> str:
        return f"{self.document}: {self.name}".lower().replace(" ", "-")


ON_CPU = {"cuda:0": "cpu"}
MAMMOTHS = (
    "Several giant wooly mammoths approach treading through a snowy meadow, their long wooly fur lightly blows in the "
    "wind as they walk, snow covered trees and dramatic snow capped mountains in the distance"
)
FLASH_SNIPPET = f"""import torch
from IPython.display import Video
from kandinsky import get_T2V_pipeline

device_map = {{
    "dit": torch.device('cuda:0'), 
    "vae": torch.device('cuda:0'), 
    "text_embedder": torch.device('cuda:0')
}}

pipe = get_T2V_pipeline(device_map)

images = pipe(
    seed=42,
    time_length=12,
    width = 672,
    height = 384,
    save_path="./test.mp4",
    text="{MAMMOTHS}",
)

Video("./test.mp4")
"""
FLASH_ASKS = {"seed": 42, "time_length": 12, "width": 672, "height": 384, "text": MAMMOTHS}
K5_SNIPPET = """import torch
from IPython.display import Video
from kandinsky import get_T2V_pipeline

device_map = {
    "dit": torch.device('cuda:0'), 
    "vae": torch.device('cuda:0'), 
    "text_embedder": torch.device('cuda:0')
}

pipe = get_T2V_pipeline(device_map, conf_path="configs/config_5s_sft.yaml")

images = pipe(
    seed=42,
    time_length=5,
    width=768,
    height=512,
    save_path="./test.mp4",
    text="A cat in a red hat",
)

Video("./test.mp4")
"""
V2A_SNIPPET = """import torch
import torchvision

from kandinsky4_video2audio.video2audio_pipe import Video2AudioPipeline
from kandinsky4_video2audio.utils import load_video, create_video

device='cuda:0'

pipe = Video2AudioPipeline(
    "ai-forever/kandinsky-4-v2a",
    torch_dtype=torch.float16,
    device = device
)

video_path = 'assets/inputs/1.mp4'
video, _, fps = torchvision.io.read_video(video_path)

prompt="clean. clear. good quality."
negative_prompt = "hissing noise. drumming rythm. saying. poor quality."
video_input, video_complete, duration_sec = load_video(video, fps['video_fps'], num_frames=96, max_duration_sec=12)
    
out = pipe(
    video_input,
    prompt,
    negative_prompt=negative_prompt,
    duration_sec=duration_sec, 
)[0]

save_path = f'assets/outputs/1.mp4'
create_video(
    out, 
    video_complete, 
    display_video=True,
    save_path=save_path,
    device=device
)
"""
VIDEO_SNIPPET = """from video_kandinsky3 import get_T2V_unet, get_interpolation_unet, get_T5encoder, get_movq, VideoKandinsky3T2VPipeline

unet, null_embedding, projections_state_dict = get_T2V_unet('cuda', kandinsky_video.pt, fp16=True)
interpolation_unet, interpolation_null_embedding = get_interpolation_unet('cuda', kandinsky_video_interpolation.pt, fp16=True)
processor, condition_encoders = get_T5encoder('cuda', 'google/flan-ul2', projections_state_dict)
movq = get_movq('cuda', 'movq.pt', fp16=True)

pipeline = VideoKandinsky3T2VPipeline(
    'cuda', unet, null_embedding, interpolation_unet, interpolation_null_embedding, processor,
    condition_encoders, movq, True
)
video = pipeline(
    'a red car is drifting on the mountain road, close view, fast movement',
    width=640, height=384, fps='medium'
)
"""  # noqa: E501 - as published
DOG = {"text": "A dog in red hat", "width": 768, "height": 512, "seed": 1137, "expand_prompts": True}
DOG_FILE = ("A_dog_in_red_hat.mp4",)


def _test_line(name: str, text: str, seconds: int, shift: float) -> Entry:
    return Entry(
        KANDINSKY5,
        f"Run {name}",
        text,
        "kandinsky-5",
        asks={**DOG, "time_length": seconds, "scheduler_scale": shift},
        made=DOG_FILE,
    )


ENTRIES = (
    Entry(FLASH, "How to use", FLASH_SNIPPET, "kandinsky-4", "python", FLASH_ASKS, ON_CPU, ("test.mp4",)),
    Entry(
        FLASH,
        "distributed inference",
        "python -m torch.distributed.launch --nnodes n --nproc-per-node m run_inference_distil.py",
        "kandinsky-4",
        asks={"time_length": 12, "width": 672, "height": 384, "seed": 42},
        changes={"--nnodes n --nproc-per-node m": "--nnodes 1 --nproc-per-node 2"},
        made=("test.mp4",),
        note="n and m stand for numbers",
    ),
    Entry(
        FLASH,
        "from terminal without tensor parallel",
        "python run_inference_distil.py",
        "kandinsky-4",
        asks={"time_length": 12, "width": 672, "height": 384, "seed": 42},
        made=("test.mp4",),
    ),
    Entry(
        KANDINSKY4, "T2V Flash, Inference", FLASH_SNIPPET, "kandinsky-4", "python", FLASH_ASKS, ON_CPU, ("test.mp4",)
    ),
    Entry(
        KANDINSKY4,
        "T2V Flash, Distributed Inference",
        "NUMBER_OF_NODES=1\nNUMBER_OF_DEVICES_PER_NODE=8\npython -m torch.distributed.launch --nnodes $NUMBER_OF_NODES "
        "--nproc-per-node $NUMBER_OF_DEVICES_PER_NODE run_inference_distil.py",
        "kandinsky-4",
        asks={"time_length": 12, "width": 672, "height": 384, "seed": 42},
        changes={"NUMBER_OF_DEVICES_PER_NODE=8": "NUMBER_OF_DEVICES_PER_NODE=2"},
        made=("test.mp4",),
        note="the tiny model has two heads to share, not 48",
    ),
    Entry(
        KANDINSKY4,
        "V2A, Inference",
        V2A_SNIPPET,
        "kandinsky-4",
        "python",
        {"prompt": "clean. clear. good quality.", "duration_sec": 2, "num_inference_steps": 50},
        ON_CPU,
        ("assets/outputs/1.mp4",),
        note="needs torchvision, and KANDINSKY_TRUST_REMOTE_CODE=1 in the environment, since CogVLM2-Video is program "
        "code in its repository",
    ),
    Entry(
        VIDEO,
        "text2video",
        VIDEO_SNIPPET,
        "kandinsky-video",
        "python",
        {"width": 640, "height": 384, "fps": "medium", "steps": 50},
        {
            "'cuda'": "'cpu'",
            " kandinsky_video.pt": " 'kandinsky_video.pt'",
            " kandinsky_video_interpolation.pt": " 'kandinsky_video_interpolation.pt'",
        },
        ("video (in memory)",),
        "as published it ends in a NameError: two file names stand without quotes",
    ),
    Entry(
        KANDINSKY5,
        "Clone the repo",
        "git clone https://github.com/ai-forever/Kandinsky-5.git\ncd Kandinsky-5",
        is_run=False,
        note="not run: the folder `official/kandinsky-5` stands for it",
    ),
    Entry(
        KANDINSKY5,
        "Install dependencies",
        "pip install -r requirements.txt",
        "kandinsky-5",
        is_run=False,
        note="not run in tests, as it fetches packages: `official/kandinsky-5/requirements.txt` installs this library",
    ),
    Entry(
        KANDINSKY5,
        "Model Download",
        "python download_models.py",
        "kandinsky-5",
        made=(
            "weights/model/kandinsky5lite_t2v_sft_5s.safetensors",
            "weights/model/kandinsky5lite_t2v_distilled16steps_10s.safetensors",
            "weights/text_encoder/config.json",
        ),
        note="from a hub on this machine",
    ),
    _test_line("Kandinsky 5.0 T2V Lite SFT 5s", 'python test.py --prompt "A dog in red hat"', 5, 5.0),
    _test_line(
        "Kandinsky 5.0 T2V Lite SFT 10s",
        'python test.py --config ./configs/config_10s_sft.yaml --prompt "A dog in red hat" --video_duration 10 ',
        10,
        5.0,
    ),
    _test_line(
        "Kandinsky 5.0 T2V Lite pretrain 5s",
        'python test.py --config ./configs/config_5s_pretrain.yaml --prompt "A dog in red hat"',
        5,
        5.0,
    ),
    _test_line(
        "Kandinsky 5.0 T2V Lite pretrain 10s",
        'python test.py --config ./configs/config_10s_pretrain.yaml --prompt "A dog in red hat" --video_duration 10',
        10,
        5.0,
    ),
    _test_line(
        "Kandinsky 5.0 T2V Lite no-CFG 5s",
        'python test.py --config ./configs/config_5s_nocfg.yaml --prompt "A dog in red hat" ',
        5,
        5.0,
    ),
    _test_line(
        "Kandinsky 5.0 T2V Lite no-CFG 10s",
        'python test.py --config ./configs/config_10s_nocfg.yaml --prompt "A dog in red hat" --video_duration 10',
        10,
        5.0,
    ),
    _test_line(
        "Kandinsky 5.0 T2V Lite distill 5s",
        'python test.py --config ./configs/config_5s_distil.yaml --prompt "A dog in red hat"          ',
        5,
        5.0,
    ),
    Entry(
        KANDINSKY5,
        "Inference",
        K5_SNIPPET,
        "kandinsky-5",
        "python",
        {
            "seed": 42,
            "time_length": 5,
            "width": 768,
            "height": 512,
            "text": "A cat in a red hat",
            "scheduler_scale": 10.0,
        },
        ON_CPU,
        ("test.mp4",),
    ),
    Entry(
        KANDINSKY5,
        "Distributed Inference",
        "NUMBER_OF_NODES=1\nNUMBER_OF_DEVICES_PER_NODE=1 / 2 / 4\npython -m torch.distributed.launch --nnodes "
        "$NUMBER_OF_NODES --nproc-per-node $NUMBER_OF_DEVICES_PER_NODE test.py",
        "kandinsky-5",
        asks={"text": "The bear plays balalaika.", "width": 768, "height": 512, "time_length": 5, "seed": 1137},
        changes={"1 / 2 / 4": "2"},
        made=("The_bear_plays_balalaika..mp4",),
        note="one of the three numbers is meant",
    ),
)
