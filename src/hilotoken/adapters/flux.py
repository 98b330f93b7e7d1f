"""FLUX.1 on a grid of its own: Fill and Inpaint. Packed tokens, rotary `img_ids`.

Fill has x_t, masked latents and mask side by side in the channels; Inpaint has x_t alone, and the
pipeline blends the source in after each step.

B batch, N grid tokens, K native tokens that run, M coarse tokens, S = K + M, C latent channels a
token (x_t), D channels a token in all, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxFillPipeline
from torch import Tensor, nn

from ..capture import Source
from ..grid import touch
from ..plan import TokenPlan, gather, scatter, token_positions


class Flux:
    """A pipeline whose `FluxTransformer2DModel` sees the tokens of one grid."""

    def __init__(self, pipe: Any, plan: TokenPlan, source: Source) -> None:
        self.plan, self.source = plan.to(source.latents_BNC.device), source
        self.coarse = Coarse.encode(pipe, self.plan, source) if len(plan.cells_M) else None
        self.aligned_rotary: tuple[Tensor, Tensor] | None = None

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        hidden_BND = call["hidden_states"]
        if hidden_BND.shape[1] != self.plan.tokens_full:
            raise ValueError(
                f"the transformer was given {hidden_BND.shape[1]} tokens, but the photo's grid of "
                f"{self.plan.grid} has {self.plan.tokens_full}: this use is not supported"
            )
        ids_S3 = call["img_ids"].index_select(0, self.plan.keep_K)
        short_BSD = gather(hidden_BND, self.plan)
        if self.coarse:
            x_BNC = hidden_BND[..., : self.source.latents_BNC.shape[-1]]
            short_BSD = torch.cat([short_BSD, self.coarse.tokens(x_BNC, sigma)], 1)
            # float32: bfloat16 cannot hold the half of a coarse place above 128
            place_M2 = token_positions(self.plan)[len(ids_S3) :]
            ids_S3 = torch.cat([ids_S3.float(), F.pad(place_M2, (1, 0))])
        shorter = {"hidden_states": short_BSD, "img_ids": ids_S3}
        return call | shorter | self._attention(call, short_BSD)

    def restore(self, velocity_BSC: Tensor, call: dict[str, Any], sigma: float) -> Tensor:
        """A dropped token follows the source: v = (x_t - x0) / sigma lands it on x0."""
        x_BNC = call["hidden_states"][..., : velocity_BSC.shape[-1]].float()
        fill_BNC = (x_BNC - self.source.for_batch(len(x_BNC)).float()) / sigma
        return scatter(velocity_BSC, self.plan, fill_BNC.to(velocity_BSC.dtype))

    def _attention(self, call: dict[str, Any], short_BSD: Tensor) -> dict[str, Any]:
        """log(count) on the logits of each key, through the pipeline's own attention mask."""
        given = call.get("joint_attention_kwargs") or {}
        if "attention_mask" in given:
            raise ValueError("an attention_mask of your own cannot be compressed: omit it")
        if not self.plan.weighted:
            return {}
        text = call["encoder_hidden_states"].shape[1]
        bias_S = F.pad(self.plan.count_S.log(), (text, 0)).to(short_BSD.dtype)
        return {"joint_attention_kwargs": given | {"attention_mask": bias_S[None, None, None]}}

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """For aligned positions: coarse queries attend once more, all places over the stride."""
        if self.plan.positions != "aligned" or not self.coarse:
            return []
        model: Any = getattr(transformer, "_orig_mod", transformer)

        def keep_rotary(module: nn.Module, args: tuple[Tensor]) -> None:
            if self.aligned_rotary is None:
                self.aligned_rotary = module.forward(args[0] / self.plan.stride)

        def attend_again(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            again = module.forward(*args, **kwargs | {"image_rotary_emb": self.aligned_rotary})
            M = len(self.plan.cells_M)
            if isinstance(output, tuple):  # a double block: image and text apart
                return torch.cat([output[0][:, :-M], again[0][:, -M:]], 1), *output[1:]
            return torch.cat([output[:, :-M], again[:, -M:]], 1)

        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        return [
            model.pos_embed.register_forward_pre_hook(keep_rotary),
            *(b.attn.register_forward_hook(attend_again, with_kwargs=True) for b in blocks),
        ]


@dataclass(frozen=True, eq=False)
class Coarse:
    """The photo downsampled `stride` times a side, as tokens at any noise level.

    A cell clear of the mask carries the noised latents of the downsampled photo. What is under the
    mask must not be told to the model: it is blanked before the VAE, which looks far around, and a
    cell that the mask touches carries the average of its tokens' x_t instead, whose noise is
    brought back to unit variance.

    x0_BMC: clean latents; noise_BMC: of unit variance, fixed for the run; condition_BMD: what else
    is in the channels; touched_BM1: bool, whether the mask touches the cell.
    """

    plan: TokenPlan
    x0_BMC: Tensor
    noise_BMC: Tensor
    condition_BMD: Tensor
    touched_BM1: Tensor

    @classmethod
    def encode(cls, pipe: Any, plan: TokenPlan, source: Source) -> "Coarse":
        """Encode the downsampled photo without what the mask covers."""
        like = source.latents_BNC
        photo_B3HW = shrink(source.photo_B3HW, source.grid, plan.stride, F.avg_pool2d)
        mask_B1HW = shrink(source.mask_B1HW, source.grid, plan.stride, F.max_pool2d)
        blanked_B3HW = (photo_B3HW * (1 - mask_B1HW)).to(like.device, like.dtype)
        private = torch.Generator().manual_seed(0)  # the user's generator stays untouched
        B, _, height, width = blanked_B3HW.shape
        mask, masked = type(pipe).prepare_mask_latents(
            pipe, mask_B1HW, blanked_B3HW, B, like.shape[-1] // 4, 1,
            height, width, like.dtype, like.device, private,
        )  # fmt: skip
        conditioned = pipe.transformer.config.in_channels > like.shape[-1]
        condition = torch.cat([masked, mask], -1) if conditioned else masked[..., :0]
        h, w = plan.grid
        touched_BM1 = touch(mask_B1HW, (-(-h // plan.stride), -(-w // plan.stride))).flatten(1)[
            :, plan.cells_M, None
        ]
        x0_BMC = masked.index_select(1, plan.cells_M)
        noise_BMC = torch.randn(x0_BMC.shape, generator=private).to(like.device, like.dtype)
        condition_BMD = condition.index_select(1, plan.cells_M)
        return cls(plan, x0_BMC, noise_BMC, condition_BMD, touched_BM1.to(like.device))

    def tokens(self, x_BNC: Tensor, sigma: float | Tensor) -> Tensor:
        """The coarse tokens at noise level sigma (or [B, 1, 1] of them), [B, M, D]."""
        B = len(x_BNC)
        x0, noise, condition, touched = (
            part.repeat(B // len(part), 1, 1)
            for part in (self.x0_BMC, self.noise_BMC, self.condition_BMD, self.touched_BM1)
        )
        known = (1 - sigma) * x0 + sigma * noise
        average, missing = self._average(x_BNC)
        unknown = average + sigma * missing * noise
        return torch.cat([torch.where(touched, unknown, known), condition], -1)

    def _average(self, x_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The average of x_t over each cell, and the share of noise that it lacks: [B, M, C]."""
        h, w = self.plan.grid
        latents = FluxFillPipeline._unpack_latents(x_BNC, 2 * h, 2 * w, vae_scale_factor=1)
        down, across = (_shares(n, self.plan.stride).to(latents) for n in self.plan.grid)
        average = down @ latents @ across.T
        # The variance of an average of independent noise is the sum of its squared shares.
        variance = down.square().sum(1)[:, None] * across.square().sum(1)
        missing = (1 - variance).sqrt().expand_as(average)
        average_BMC, missing_BMC = (
            FluxFillPipeline._pack_latents(part, *part.shape).index_select(1, self.plan.cells_M)
            for part in (average, missing.contiguous())
        )
        return average_BMC, missing_BMC


def shrink(image: Tensor, grid: tuple[int, int], stride: int, pool: Any) -> Tensor:
    """The image at one pixel for `stride` a side, by the pooling given.

    Cells that reach beyond the grid are filled up with its last row and column.
    """
    h, w = grid
    below, right = (-h % stride) * (image.shape[-2] // h), (-w % stride) * (image.shape[-1] // w)
    return pool(F.pad(image.float(), (0, right, 0, below), mode="replicate"), stride)


def _shares(tokens: int, stride: int) -> Tensor:
    """The share of each row of latents in each coarse row, pooled as by `shrink`: [2m, 2h]."""
    rows = torch.arange(-(-tokens // stride) * stride * 2).clamp(max=2 * tokens - 1)
    return F.one_hot(rows).float().unflatten(0, (-1, stride)).mean(1)
