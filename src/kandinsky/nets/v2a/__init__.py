"""Video to audio: a Stable Diffusion U-Net over pictures of sound, which also attends to the frames of a clip."""
