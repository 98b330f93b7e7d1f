"""FLUX.1: packed tokens, rotary `img_ids`, text before image in the attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Adapter
from .coarse import Coarse

__all__ = ["Coarse", "Flux", "FluxFill"]


class Flux(Adapter):
    """Inpaint and Image-to-Image, Kontext (a reference follows), Control (more channels)."""

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The residuals of a ControlNet, a row for each token, are shortened with them."""
        short = super().shorten(call, sigma)
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if residuals := call.get(name):
                short[name] = [self.rows(rows_BND) for rows_BND in residuals]
        return short

    def weighed(self, call: dict[str, Any]) -> dict[str, Any]:
        given = call.get("joint_attention_kwargs") or {}
        if "attention_mask" in given:
            raise ValueError("an attention_mask of your own cannot be compressed: omit it")
        if not self.plan.weighted:
            return {}
        text = call["encoder_hidden_states"].shape[1]
        bias_S = F.pad(self.counts_S.log(), (text, 0)).to(call["hidden_states"].dtype)
        return {"joint_attention_kwargs": given | {"attention_mask": bias_S[None, None, None]}}

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """For aligned positions: coarse queries attend once more, all places over the stride."""
        if self.plan.positions != "aligned" or not self.coarse:
            return []
        model: Any = getattr(transformer, "_orig_mod", transformer)
        coarse_S, aligned = self.coarse_S.nonzero().flatten(), []

        def keep_rotary(module: nn.Module, args: tuple[Tensor]) -> None:
            if not aligned:
                scale = torch.ones_like(args[0][0])
                scale[1:3] = self.plan.stride
                aligned.append(module.forward(args[0] / scale))

        def attend_again(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            again = module.forward(*args, **kwargs | {"image_rotary_emb": aligned[0]})
            if isinstance(output, tuple):  # a double block: image and text apart
                return _with_rows(output[0], again[0], coarse_S), *output[1:]
            text = output.shape[1] - len(self.coarse_S)
            return _with_rows(output, again, coarse_S + text)

        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        return [
            model.pos_embed.register_forward_pre_hook(keep_rotary),
            *(b.attn.register_forward_hook(attend_again, with_kwargs=True) for b in blocks),
        ]


class FluxFill(Flux):
    """x_t, masked latents and mask side by side in the channels."""

    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        mask = F.pixel_unshuffle(mask_B1HW, self.pipe.vae_scale_factor).to(masked_BmC)
        mask_BmD = self.pack(self.pipe, mask.repeat(len(masked_BmC) // len(mask), 1, 1, 1))
        return torch.cat([masked_BmC, mask_BmD], -1).index_select(1, self.plan.cells_M)


def _with_rows(rows_BSD: Tensor, other_BSD: Tensor, index: Tensor) -> Tensor:
    return rows_BSD.index_copy(1, index, other_BSD.index_select(1, index))
