"""Real transformers of every class that block methods know, at tiny size, and a call for each."""

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)

GRID, TEXT = 8, 3


def flux():
    model = FluxTransformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    place = torch.arange(GRID).float()
    ids = torch.stack(torch.meshgrid(torch.zeros(1), place, place, indexing="ij"), -1)
    given = {
        "hidden_states": torch.randn(2, GRID**2, 8),
        "encoder_hidden_states": torch.randn(2, TEXT, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": ids.view(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return model, given, (2, GRID**2 + TEXT, 2, 16)


def qwen():
    model = QwenImageTransformer2DModel(
        in_channels=8, out_channels=2, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(2, GRID**2, 8),
        "encoder_hidden_states": torch.randn(2, TEXT, 8),
        "encoder_hidden_states_mask": torch.tensor([[True] * 3, [True, True, False]]),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_shapes": [[(1, GRID, GRID)]] * 2,
    }
    return model, given, (2, GRID**2 + TEXT, 2, 16)


def sd3():
    model = SD3Transformer2DModel(
        sample_size=2 * GRID, in_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(2, 4, 2 * GRID, 2 * GRID),
        "encoder_hidden_states": torch.randn(2, TEXT, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([500.0, 500.0]),
    }
    return model, given, (2, GRID**2 + TEXT, 2, 16)


def pixart():
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, sample_size=2 * GRID, caption_channels=8,
        use_additional_conditions=False,
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(2, 4, 2 * GRID, 2 * GRID),
        "encoder_hidden_states": torch.randn(2, TEXT, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "timestep": torch.tensor([500, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, given, (2, GRID**2, 2, 16)


def dit():
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2,
        sample_size=2 * GRID, num_embeds_ada_norm=10,
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(2, 4, 2 * GRID, 2 * GRID),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([1, 9]),
    }
    # In training it would forget labels at random.
    return model.eval(), given, (2, GRID**2, 2, 16)


MODELS = (flux, qwen, sd3, pixart, dit)
