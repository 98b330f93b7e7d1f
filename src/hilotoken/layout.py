"""Where the image tokens are in the blocks of each transformer class, for methods that act inside.

B batch, T text tokens, S image tokens of a call, L of the joint sequence, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import unwrap

Call = dict[str, Any]  # the transformer's arguments by name
Rows = tuple[Tensor, ...]  # what turns each token of the joint sequence to its place, [L, ...] each


@dataclass(frozen=True, eq=False)
class Block:
    """One block and the modules in it that see image tokens.

    module:     the block; its first argument is the image's tokens alone
    attentions: self-attention, joint with the text where the model is so
    feed:       first and last module of the feed-forward
    joined:     whether the text's rows come before the image's in what those modules take
    """

    module: nn.Module
    attentions: tuple[nn.Module, ...]
    feed: tuple[nn.Module, nn.Module]
    joined: bool = False


@dataclass(frozen=True)
class Layout:
    """What the blocks of a transformer class have in common.

    blocks:     of a transformer, in the order they run
    grid:       rows and columns of the image that is made, from the call
    text_first: whether text keys come before the image's; None where no text is among them
    levels:     what the timestep is at pure noise
    rows:       the rotary rows of the joint sequence, from `image_rotary_emb`; None without
    rotate:     turns queries or keys [1, L, H, D] by such rows, as the model itself does
    """

    blocks: Callable[[Any], list[Block]]
    grid: Callable[[Any, Call], tuple[int, int]]
    text_first: bool | None
    levels: float
    rows: Callable[..., Rows] | None = None
    rotate: Callable[..., Any] | None = None

    def image_tokens(self, transformer: Any, call: Call) -> int:
        """Image tokens of the call: in rows, or still a picture."""
        hidden = call["hidden_states"]
        if hidden.ndim == 3:
            return hidden.shape[1]
        h, w = self.grid(transformer, call)
        return h * w


def layout_of(transformer: nn.Module) -> Layout:
    """The layout of a transformer.

    Raises:
        TypeError: a class whose blocks are not known; the message lists those that are.
    """
    model = unwrap(transformer)
    for base in type(model).__mro__:
        if base.__name__ in LAYOUTS:
            return LAYOUTS[base.__name__]
    raise TypeError(
        f"methods that act inside blocks do not know those of {type(model).__name__}; "
        f"supported: {', '.join(sorted(LAYOUTS))}"
    )


def _flux_blocks(model: Any) -> list[Block]:
    double = [Block(b, (b.attn,), (b.ff, b.ff)) for b in model.transformer_blocks]
    # Its feed-forward runs beside attention and shares the projection that leads out.
    single = [
        Block(b, (b.attn,), (b.proj_mlp, b.act_mlp), joined=True)
        for b in model.single_transformer_blocks
    ]
    return double + single


def _joint_blocks(model: Any) -> list[Block]:
    blocks = []
    for b in model.transformer_blocks:
        feed = b.img_mlp if hasattr(b, "img_mlp") else b.ff
        second = getattr(b, "attn2", None)  # of SD3.5's dual blocks
        blocks.append(Block(b, (b.attn, second) if second else (b.attn,), (feed, feed)))
    return blocks


def _basic_blocks(model: Any) -> list[Block]:
    return [Block(b, (b.attn1,), (b.ff, b.ff)) for b in model.transformer_blocks]


def _packed_grid(model: Any, call: Call) -> tuple[int, int]:
    ids_S3 = call["img_ids"]
    ids_S3 = ids_S3[0] if ids_S3.ndim == 3 else ids_S3
    place_S2 = ids_S3[ids_S3[:, 0] == ids_S3[0, 0], 1:]  # references lie at other values
    h, w = (place_S2.amax(0) - place_S2.amin(0)).int().tolist()
    return h + 1, w + 1


def _shaped_grid(model: Any, call: Call) -> tuple[int, int]:
    shapes = call["img_shapes"][0]
    _, h, w = shapes[0] if isinstance(shapes, list) else shapes
    return h, w


def _patched_grid(model: Any, call: Call) -> tuple[int, int]:
    height, width = call["hidden_states"].shape[-2:]
    return height // model.config.patch_size, width // model.config.patch_size


def _rotate_flux(x_BLHD: Tensor, rows: Rows) -> Any:
    from diffusers.models.embeddings import apply_rotary_emb  # planning needs no diffusers

    return apply_rotary_emb(x_BLHD, rows, sequence_dim=1)  # type: ignore[arg-type]


def _rotate_qwen(x_BLHD: Tensor, rows: Rows) -> Any:
    from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

    return apply_rotary_emb_qwen(x_BLHD, rows[0], use_real=False)


LAYOUTS: dict[str, Layout] = {
    "FluxTransformer2DModel": Layout(
        _flux_blocks,
        _packed_grid,
        text_first=True,
        levels=1,
        rows=lambda cosine_and_sine: tuple(cosine_and_sine),
        rotate=_rotate_flux,
    ),
    "QwenImageTransformer2DModel": Layout(
        _joint_blocks,
        _shaped_grid,
        text_first=True,
        levels=1,
        rows=lambda image_and_text: (torch.cat(image_and_text[::-1]),),
        rotate=_rotate_qwen,
    ),
    "SD3Transformer2DModel": Layout(_joint_blocks, _patched_grid, text_first=False, levels=1000),
    "PixArtTransformer2DModel": Layout(_basic_blocks, _patched_grid, text_first=None, levels=1000),
    "DiTTransformer2DModel": Layout(_basic_blocks, _patched_grid, text_first=None, levels=1000),
}
