"""What the embedded model's networks are: those of `hilo train` begin so."""

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

REGISTERS = 8  # learned vectors in place of a text
BLOCKS = 18  # single blocks of the transformer, after one double block
SHIFT = -3.0  # of sigma, as `mu` of FLUX's scheduler: 8 steps begin at 1, 0.26, 0.13, 0.08 ...
LABELS = 32  # room for a kind of thing, one-hot, through the pooled projection


def new_transformer(blocks: int = BLOCKS) -> FluxTransformer2DModel:
    """An untrained transformer of the embedded model's shape, 20.5 M parameters."""
    latent = 8
    return FluxTransformer2DModel(
        in_channels=2 * 4 * latent + 4 * 64,  # x_t, masked latents, and 8x8 mask pixels a latent
        out_channels=4 * latent,
        num_layers=1,
        num_single_layers=blocks,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=REGISTERS,
        pooled_projection_dim=LABELS,
        axes_dims_rope=(8, 28, 28),
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The sampler of the embedded model: FLUX's, with one shift for all lengths.

    It spends its steps late: the first answer of a refined model is most of the picture, and what
    is left is to be worked out at little noise.
    """
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
    )
