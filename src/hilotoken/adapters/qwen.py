"""Qwen-Image: packed tokens; rotary places are made inside from `img_shapes`, centred on zero.

L text tokens, T image tokens of a call, M coarse tokens, S tokens of the short sequence.
"""

import threading
from typing import Any, ClassVar

import torch
from diffusers import QwenImageInpaintPipeline
from torch import Tensor, nn

from ..capture import Seen, Source
from ..plan import token_positions
from .base import Span
from .rotary import Rotary

STILL = 1e-7  # see `QwenImage.restore`; float16 can hold it


class QwenImage(Rotary):
    """Inpaint and Image-to-Image; Edit, Edit Inpaint and Edit Plus, where references follow."""

    made_on_the_way: ClassVar[tuple[str, ...]] = ("_table_SD",)

    @classmethod
    def grids(cls, pipe: Any, call: dict[str, Any]) -> list[tuple[int, int]]:
        shapes = call["img_shapes"][0]
        shapes = [shapes] if isinstance(shapes[0], int) else shapes
        return [(h, w) for _, h, w in shapes]

    @classmethod
    def pack(cls, pipe: Any, latents: Tensor) -> Tensor:
        return super().pack(pipe, latents[:, :, 0])  # a video of one frame

    @classmethod
    def encode(cls, pipe: Any, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        own = getattr(type(pipe), "_encode_vae_image", QwenImageInpaintPipeline._encode_vae_image)
        return own(pipe, image=photo_B3HW[:, :, None], generator=generator)

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The residuals of a ControlNet, a row for each token, are shortened with them."""
        short = super().shorten(call, sigma)
        if residuals := call.get("controlnet_block_samples"):
            short["controlnet_block_samples"] = [self.rows(rows_BND) for rows_BND in residuals]
        return short

    def placed(self, call: dict[str, Any]) -> dict[str, Any]:
        """Grids of one row, as long as the short spans, which tell what is target and what not.

        The places are those of the whole grids, see `inner_hooks`.
        """
        self._shapes, self._turned = call["img_shapes"], False
        run = self.plan.tokens_run
        lengths = [run if span.short else span.stop - span.start for span in self.spans]
        return {"img_shapes": [[(1, 1, n) for n in lengths]] * len(self._shapes)}

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """`pos_embed` is given the whole grids, and of its table the tokens that run are taken."""
        hooks = super().inner_hooks(transformer)
        model: Any = getattr(transformer, "_orig_mod", transformer)
        self._table_SD: Tensor | None = None

        def whole(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (self._shapes, *args[1:]) if threading.get_ident() == self._owner else None

        def short(module: nn.Module, args: Any, tables: tuple[Tensor, Tensor]) -> Any:
            if threading.get_ident() != self._owner:
                return None
            if self._table_SD is None:
                self._table_SD = self._short_table(module, tables[0])
            self._turned = True
            return self._table_SD, tables[1]

        untraced: Any = torch.compiler.disable  # for a transformer compiled whole
        return [
            *hooks,
            model.pos_embed.register_forward_pre_hook(untraced(whole)),
            model.pos_embed.register_forward_hook(untraced(short)),
        ]

    def restore(self, velocity_BSC: Tensor, call: dict[str, Any], sigma: float) -> Tensor:
        """True CFG divides by the norm of each token's velocity, so none may be zero.

        A token that is on the source already would else be divided by zero.
        """
        if not self._turned:
            raise RuntimeError(
                "the compiled transformer passed over a hook on its places: compile it by "
                "compile_repeated_blocks, or not at all"
            )
        velocity_BNC = super().restore(velocity_BSC, call, sigma)
        return velocity_BNC.masked_fill((velocity_BNC == 0).all(-1, keepdim=True), STILL)

    def _short_table(self, module: Any, whole_TD: Tensor) -> Tensor:
        """The complex exponentials of the tokens that run; coarse places are made as the rest."""
        parts = []
        for span in self.spans:
            part_TD = whole_TD[span.start : span.stop]
            if span.short:
                kept = len(self.plan.keep_K)
                between_MD = _exponentials(module, part_TD, self._places(span)[kept:])
                part_TD = torch.cat([part_TD[self.plan.keep_K], between_MD])
            parts.append(part_TD)
        return torch.cat(parts)

    def _aligned_rotary(self, short: dict[str, Any]) -> Any:
        """All places over the stride; text begins where a picture so much smaller would end."""
        model: Any = getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer)
        module, text = model.pos_embed, short["encoder_hidden_states"].shape[1]
        device = short["hidden_states"].device
        whole_TD, _ = module.forward(self._shapes, max_txt_seq_len=text, device=device)
        image_SD = [
            _exponentials(module, whole_TD[s.start : s.stop], self._places(s) / self.plan.stride)
            for s in self.spans
        ]
        end = max(side // 2 for span in self.spans for side in span.grid)
        place_L = end / self.plan.stride + torch.arange(text)
        text_LD = [module.rope_params(place_L, dim, module.theta) for dim in module.axes_dim]
        return torch.cat(image_SD), torch.cat(text_LD, 1).to(device)

    def _places(self, span: Span) -> Tensor:
        """Row and column of a span's tokens that run, from the grid's centre: [S, 2]."""
        h, w = span.grid
        place_S2 = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
        if span.short:
            place_S2 = token_positions(self.plan).cpu()
        return place_S2 - torch.tensor([h - h // 2, w - w // 2])


class QwenImageControlNet(QwenImage):
    """The photo is the `control_image`, its mask the `control_mask`."""

    @classmethod
    def make_source(
        cls, pipe: Any, seen: Seen, mask_image: Any, call: dict[str, Any]
    ) -> Source | None:
        if seen.photo_B3HW is None or seen.mask_B1HW is None:
            raise ValueError(
                "control_image or control_mask is a tensor, which this pipeline takes as it is: "
                "give pictures or arrays"
            )
        return super().make_source(pipe, seen, None, call)


def _exponentials(module: Any, like_TD: Tensor, place_M2: Tensor) -> Tensor:
    """The table's rows for these rows and columns, of the same frame as the rows of `like_TD`."""
    frame, *sides = module.axes_dim
    parts = [like_TD[:1, : frame // 2].expand(len(place_M2), -1)]
    for place_M, dim in zip(place_M2.unbind(1), sides, strict=True):
        parts.append(module.rope_params(place_M, dim, module.theta).to(like_TD.device))
    return torch.cat(parts, 1)
