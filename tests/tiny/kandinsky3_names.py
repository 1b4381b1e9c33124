"""Names of the Kandinsky 3 U-Net in Diffusers, from the official ones (FACTS section 8)."""

import re

PATTERNS = (
    (r"to_time_embed\.1\.", "time_embedding.linear_1."),
    (r"to_time_embed\.3\.", "time_embedding.linear_2."),
    (r"^feature_pooling\.", "add_time_condition."),
    (r"^in_layer\.", "conv_in."),
    (r"^out_layer\.0\.", "conv_norm_out."),
    (r"^out_layer\.2\.", "conv_out."),
    (r"^down_samples\.", "down_blocks."),
    (r"^up_samples\.", "up_blocks."),
    (r"self_attention_block\.", "attentions.0."),
    (r"resnet_attn_blocks\.(\d+)\.0\.", r"resnets_in.\1."),
    (r"resnet_attn_blocks\.(\d+)\.2\.", r"resnets_out.\1."),
    (r"to_query\.", "to_q."),
    (r"to_key\.", "to_k."),
    (r"to_value\.", "to_v."),
    (r"output_layer\.", "to_out.0."),
)


def to_diffusers(official: str) -> str:
    name = re.sub(r"resnet_attn_blocks\.(\d+)\.1\.", lambda found: f"attentions.{int(found[1]) + 1}.", official)
    for pattern, target in PATTERNS:
        name = re.sub(pattern, target, name)
    return name
