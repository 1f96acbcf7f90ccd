"""Shapes of the sprite-world networks, in the words of the classes that build them."""
from __future__ import annotations

CONTEXT = 128                               # width of a text token

# SD1.5's blocks at a fifth to a tenth of its width: every block index is the same. The first level is 64 wide, not 32,
# since the U-Net's GroupNorm has 32 groups: groups of one channel would take the mean of every channel away, and with
# it the colour of a flat background.
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 1, 2, 2), "num_heads": 8, "num_head_channels": -1,
    "use_spatial_transformer": True, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": CONTEXT, "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}

CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 49407,
    "bos_token_id": 49406, "pad_token_id": 1, "projection_dim": CONTEXT, "model_type": "clip_text_model",
}

CLIP_VISION = {
    "hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 128, "patch_size": 16, "num_channels": 3, "projection_dim": CONTEXT, "hidden_act": "quick_gelu",
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "model_type": "clip_vision_model",
}

VOCABULARY_KEY = "text_model.embeddings.token_embedding.weight"

# What the page's live previews make of a latent [4] as the U-Net sees it: RGB in -1..1, factors and bias. Least squares
# over 256 scenes and their pictures an eighth as large.
LATENT_RGB = ([[-0.0965, -0.0702, -0.1748], [0.3083, 0.1575, -0.3742], [0.3532, 0.2764, 0.3020],
               [-0.1729, 0.3071, 0.0975]], [0.1565, -0.0414, -0.0776])
