"""Qwen-Image: packed tokens; rotary places are made inside from `img_shapes`, centred on zero.

L text tokens, T image tokens of a call, M coarse tokens, S tokens of the short sequence.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..attention import EachOwn
from ..capture import Seen
from ..hooks import Call, shadowed
from ..plan import token_positions
from ..source import Source
from .base import Span
from .rotary import Rotary, RotaryShort

STILL = 1e-7  # see `QwenShort.restore`; float16 can hold it


class QwenShort(RotaryShort):
    shapes: Any = None  # the whole grids of the call under way
    table_SD: Tensor | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._aligned_by_text: dict[int, Any] = {}

    def shorten(self, call: Call, sigma: float) -> Call:
        """The residuals of a ControlNet, a row for each token, are shortened with them."""
        short = super().shorten(call, sigma)
        if residuals := call.get("controlnet_block_samples"):
            short["controlnet_block_samples"] = [self.rows(rows_BND) for rows_BND in residuals]
        self.ran = 0  # until the places were made
        return short

    def placed(self, call: Call) -> Call:
        """Grids of one row, as long as the short spans, which tell what is target and what not.

        The places are those of the whole grids, see `QwenImage.stand_ins`.
        """
        self.shapes = call["img_shapes"]
        lengths = [self.plan.tokens_run if span.short else span.length for span in self.spans]
        return {"img_shapes": [[(1, 1, n) for n in lengths]] * len(self.shapes)}

    def restore(self, velocity_BSC: Tensor, call: Call, sigma: float) -> Tensor:
        """True CFG divides by the norm of each token's velocity, so none may be zero.

        A token that is on the source already would else be divided by zero.
        """
        velocity_BNC = super().restore(velocity_BSC, call, sigma)
        return velocity_BNC.masked_fill((velocity_BNC == 0).all(-1, keepdim=True), STILL)

    def short_table(self, pos_embed: Any, whole_TD: Tensor) -> Tensor:
        """The complex exponentials of the tokens that run; coarse places are made as the rest."""
        if self.table_SD is None:
            parts = []
            for span in self.spans:
                part_TD = whole_TD[span.start : span.stop]
                if span.short and not self.coarse:
                    part_TD = part_TD.index_select(0, self.plan.keep_K)
                elif span.short:
                    between_M2 = self._places(span)[len(self.plan.keep_K) :]
                    between_MD = _exponentials(pos_embed, part_TD, between_M2)
                    part_TD = torch.cat([part_TD[self.plan.keep_K], between_MD])
                parts.append(part_TD)
            self.table_SD = torch.cat(parts)
        self.ran = self.table_SD.shape[0]
        return self.table_SD

    def rotary(self, short: Call) -> Any:
        text, device = short["encoder_hidden_states"].shape[1], short["hidden_states"].device
        module = self.family.model.pos_embed
        whole = type(module).forward(module, self.shapes, max_txt_seq_len=text, device=device)
        return self.short_table(module, whole[0]), whole[1]

    def _aligned_rotary(self, short: Call) -> Any:
        """All places over the stride; text begins where a picture so much smaller would end."""
        text, device = short["encoder_hidden_states"].shape[1], short["hidden_states"].device
        if text not in self._aligned_by_text:
            self._aligned_by_text[text] = self._made_aligned(text, device)
        return self._aligned_by_text[text]

    def _made_aligned(self, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
        module = self.family.model.pos_embed
        whole_TD, _ = type(module).forward(module, self.shapes, max_txt_seq_len=text, device=device)
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


class QwenImage(Rotary):
    """Inpaint and Image-to-Image; Edit, Edit Inpaint and Edit Plus, where references follow."""

    short: ClassVar[Any] = QwenShort

    def grids(self, call: Call) -> list[tuple[int, int]]:
        shapes = call["img_shapes"][0]
        shapes = [shapes] if isinstance(shapes[0], int) else shapes
        return [(h, w) for _, h, w in shapes]

    def pack(self, latents: Tensor) -> Tensor:
        return super().pack(latents[:, :, 0])  # a video of one frame

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        video_B3THW = photo_B3HW[:, :, None]
        if hasattr(type(self.pipe), "_encode_vae_image"):
            return super().encode(video_B3THW, generator)
        vae = self.pipe.vae  # the ControlNet pipeline does this in a function of its own
        latents = vae.encode(video_B3THW).latent_dist.sample(generator)
        mean, std = (
            of.view(1, vae.config.z_dim, 1, 1, 1).to(latents)
            for of in (
                torch.tensor(vae.config.latents_mean),
                1.0 / torch.tensor(vae.config.latents_std),
            )
        )
        return (latents - mean) * std

    def each_place(self, shorts: Sequence[Any], calls: Sequence[Call]) -> Any:
        """Those of image and text, which are turned apart."""
        pairs = zip(shorts, calls, strict=True)
        image, text = zip(*(short.rotary(call) for short, call in pairs), strict=True)
        return EachOwn(image), EachOwn(text)

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        """`pos_embed` is given the whole grids, and of its table the tokens that run are taken."""
        pos_embed = self.model.pos_embed

        def places(original: Callable[..., Any], shapes: Any, *args: Any, **kwargs: Any) -> Any:
            image_TD, text_LD = original(run.short.shapes, *args, **kwargs)
            return run.short.short_table(pos_embed, image_TD), text_LD

        return (*super().stand_ins(run), shadowed(pos_embed, "forward", places))


class QwenImageControlNet(QwenImage):
    """The photo is the `control_image`, its mask the `control_mask`."""

    def make_source(self, seen: Seen, mask_image: Any, call: Call) -> tuple[Source, Tensor] | None:
        if seen.photo_B3HW is None or seen.mask_B1HW is None:
            raise ValueError(
                "control_image or control_mask is a tensor, which this pipeline takes as it is: "
                "give pictures or arrays"
            )
        if 1 < len(seen.photo_B3HW) != self.batch(call):
            raise ValueError(
                f"{len(seen.photo_B3HW)} control images and {self.batch(call)} pictures: this "
                "pipeline goes through them in another order than through its noise; give "
                "num_images_per_prompt=1"
            )
        return super().make_source(seen, None, call)


def _exponentials(module: Any, like_TD: Tensor, place_M2: Tensor) -> Tensor:
    """The table's rows for these rows and columns, of the same frame as the rows of `like_TD`."""
    frame, *sides = module.axes_dim
    parts = [like_TD[:1, : frame // 2].expand(len(place_M2), -1)]
    for place_M, dim in zip(place_M2.unbind(1), sides, strict=True):
        parts.append(module.rope_params(place_M, dim, module.theta).to(like_TD.device))
    return torch.cat(parts, 1)
