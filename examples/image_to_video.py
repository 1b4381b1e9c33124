"""Image to video: a picture begins to move. On any computer; without a picture, one is made first:

    python examples/image_to_video.py --image panda.png "it waves"

Full size, on a graphics card:

    kandinsky download kandinsky5-lite-i2v-5s
    python examples/image_to_video.py --image photo.jpg "the dog shakes its head" --model kandinsky5-lite-i2v-5s
"""

import argparse

import kandinsky


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a video that begins with a picture.")
    parser.add_argument("prompt", nargs="?", default="a panda waves")
    parser.add_argument("--image", help="any size; it decides the shape of the video")
    parser.add_argument("--model", default="nano-i2v")
    parser.add_argument("--output", default="image_to_video.mp4")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    o = parser.parse_args()

    image = o.image
    if image is None:
        still = kandinsky.load("nano-t2v")("a panda on a blue background", seconds=0, steps=o.steps, seed=o.seed)
        image = still.save("panda.png")
    video = kandinsky.load(o.model)(o.prompt, image=image, seconds=o.seconds, steps=o.steps, seed=o.seed)
    print(video.save(o.output))


if __name__ == "__main__":
    main()
