"""The Kandinsky 5 diffusion transformer and its denoiser."""
