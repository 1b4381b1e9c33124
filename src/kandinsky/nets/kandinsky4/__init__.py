"""Kandinsky 4: the multimodal transformer with local and global joint attention, and its denoiser."""
