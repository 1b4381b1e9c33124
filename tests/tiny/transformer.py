"""A Kandinsky 5 transformer that takes milliseconds, with condition channels."""

from kandinsky.families.kandinsky5.dit import DiTParams

TINY = DiTParams(
    in_visual_dim=4,
    out_visual_dim=4,
    in_text_dim=12,
    in_text_dim2=10,
    time_dim=16,
    model_dim=32,
    ff_dim=48,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=(4, 6, 6),
    visual_cond=True,
)
