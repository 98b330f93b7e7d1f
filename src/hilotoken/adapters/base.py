"""How a call of a transformer is shortened and its answer put back: what all families share.

The sequence is made of spans of image tokens: the target first, then references (clean tokens of
the photo, or of other pictures). A reference on the target's own grid is shortened by the same
plan.

B batch, T image tokens of a call, N of the target's grid, K native tokens that run, M coarse
tokens, S tokens of the short sequence, C channels of x_t, D channels a token, A axes of a place.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import Seen, Source
from ..plan import TokenPlan, gather, scatter, token_positions
from .coarse import Coarse, cell_means


@dataclass(frozen=True)
class Span:
    """Image tokens `start` to `stop` of the sequence, on a grid (h, w)."""

    start: int
    stop: int
    grid: tuple[int, int]
    short: bool  # whether the plan shortens it


class Adapter:
    """Made for one run, at the first call of the transformer. Tokens in rows, places in `img_ids`.

    Families override what differs. `call` is always the transformer's keyword arguments.
    """

    ids_name: ClassVar[str] = "img_ids"
    image_first: ClassVar[bool] = False  # whether image tokens come before text in the attention
    made_on_the_way: ClassVar[tuple[str, ...]] = ()  # attributes that belong to a plan

    def __init__(self, pipe: Any, plan: TokenPlan, source: Source, call: dict[str, Any]) -> None:
        self.pipe, self.source = pipe, source
        self.plan = plan.to(source.latents_BNC.device)
        self.spans = self._spans(call)
        self.beside_BND = self.x_t(call, None)[..., source.latents_BNC.shape[-1] :]
        self.coarse = self._encode_coarse() if len(plan.cells_M) else None

    # What a pipeline's source is, on the target's grid.

    @classmethod
    def grids(cls, pipe: Any, call: dict[str, Any]) -> list[tuple[int, int]]:
        """The grid of every span of image tokens, the target's first."""
        ids_TA = call[cls.ids_name]
        ids_TA = ids_TA if ids_TA.ndim == 2 else ids_TA[0]
        kinds = ids_TA[:, 0]
        starts = [0, *((kinds[1:] != kinds[:-1]).nonzero().flatten() + 1).tolist(), len(kinds)]
        spans = [ids_TA[a:b, 1:3] for a, b in pairwise(starts)]
        return [tuple((x.amax(0) - x.amin(0) + 1).int().tolist()) for x in spans]  # type: ignore[misc]

    @classmethod
    def pack(cls, pipe: Any, latents: Tensor) -> Tensor:
        """Latents as the pipeline's VAE step leaves them, [B, C/4, 2h, 2w], as tokens [B, N, C]."""
        B, C, height, width = latents.shape
        return pipe._pack_latents(latents, B, C, height, width)

    @classmethod
    def encode(cls, pipe: Any, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels in [-1, 1] as the pipeline's own normalised latents."""
        return type(pipe)._encode_vae_image(pipe, image=photo_B3HW, generator=generator)

    @classmethod
    def token_pixels(cls, pipe: Any) -> int:
        """Pixels a side of a token."""
        return cls.latents_a_side(pipe) * pipe.vae_scale_factor

    @classmethod
    def latents_a_side(cls, pipe: Any) -> int:
        """Latents a side of a token: its channels are those of 2x2, in the order c, row, column."""
        return 2

    @classmethod
    def make_source(
        cls, pipe: Any, seen: Seen, mask_image: Any, call: dict[str, Any]
    ) -> Source | None:
        """The source on the target's grid, or None where no photo or no mask went by."""
        mask_B1HW = seen.mask_B1HW
        if mask_B1HW is None and mask_image is not None:
            mask_B1HW = seen.mask_like_photo(mask_image)
        if seen.photo_B3HW is None or mask_B1HW is None:
            return None
        if seen.photo_B3HW.shape[1] != 3:
            raise ValueError(
                "image was given as latents: give the photo itself, its pixels are planned on"
            )
        grid = cls.grids(pipe, call)[0]
        size = [n * cls.token_pixels(pipe) for n in grid]
        photo_B3HW, latents = seen.photo_B3HW.float(), seen.latents
        if list(photo_B3HW.shape[-2:]) != size:  # a reference of another size than the target
            photo_B3HW = F.interpolate(photo_B3HW, size, mode="bilinear", antialias=True)
            latents = None
        if list(mask_B1HW.shape[-2:]) != size:
            mask_B1HW = F.adaptive_max_pool2d(mask_B1HW.float(), size)
        if latents is None:
            private = torch.Generator().manual_seed(0)  # the user's generator stays untouched
            latents = cls.encode(pipe, _like_vae(pipe, photo_B3HW), private)
        latents_BNC = cls.pack(pipe, latents)
        if latents_BNC.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"the photo's latents make {latents_BNC.shape[1]} tokens, but the grid is {grid}: "
                "this use is not supported"
            )
        return Source(photo_B3HW, mask_B1HW.float(), latents_BNC, grid)

    # The call, shorter.

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The call with only the tokens that run."""
        tokens_BTD = self.tokens(call)
        self._check_length(tokens_BTD.shape[1])
        parts = [self._short(tokens_BTD, span, sigma) for span in self.spans]
        short_BSD = torch.cat(parts, 1)
        return call | {"hidden_states": short_BSD} | self.placed(call) | self.weighed(call)

    @classmethod
    def tokens(cls, call: dict[str, Any]) -> Tensor:
        """All image tokens of a call, [B, T, D]."""
        return call["hidden_states"]

    def placed(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that say where tokens sit."""
        ids = call[self.ids_name]
        return {self.ids_name: torch.cat([self.short_ids(ids, s) for s in self.spans], -2)}

    def weighed(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that carry log(count) to the logits of each key."""
        if self.plan.weighted:
            raise ValueError(
                f"weights=True is not supported with {type(self.pipe).__name__}: leave it out"
            )
        return {}

    def restore(self, velocity_BSC: Tensor, call: dict[str, Any], sigma: float) -> Tensor:
        """The velocity of the whole target. A dropped token follows the source.

        v = (x_t - x0) / sigma lands it on x0.
        """
        x_BNC = self.x_t(call, velocity_BSC.shape[-1]).float()
        fill_BNC = (x_BNC - self.source.for_batch(len(x_BNC)).float()) / sigma
        return scatter(velocity_BSC, self.plan, fill_BNC.to(velocity_BSC.dtype))

    def x_t(self, call: dict[str, Any], channels: int | None) -> Tensor:
        """The noisy tokens of the target, [B, N, C]; all that is in their channels without C."""
        return self.tokens(call)[:, : self.plan.tokens_full, :channels]

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """Handles of hooks inside the transformer, removed after the run."""
        if self.plan.positions == "aligned" and self.coarse:
            raise ValueError(
                f"positions='aligned' is not supported with {type(self.pipe).__name__}: "
                "use 'interpolated' or 'native'"
            )
        return []

    def attentions(self, model: Any) -> list[Any]:
        """The attention modules whose keys are those of the image."""
        return [module for module in model.modules() if getattr(module, "processor", None)]

    def without_text(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call with no text tokens, their keys and values being kept."""
        raise ValueError(
            f"refresh_text=True is not supported with {type(self.pipe).__name__}: leave it out"
        )

    @property
    def coarse_S(self) -> Tensor:
        """bool: which tokens of the short sequence are coarse."""
        flags = []
        for span in self.spans:
            length = span.stop - span.start
            short = [False] * len(self.plan.keep_K) + [True] * len(self.plan.cells_M)
            flags += short if span.short else [False] * length
        return torch.tensor(flags, device=self.plan.keep_K.device)

    @property
    def counts_S(self) -> Tensor:
        """How many tokens each token of the short sequence stands for."""
        counts = self.plan.count_S
        whole = [counts.new_ones(span.stop - span.start) for span in self.spans]
        return torch.cat([counts if s.short else w for s, w in zip(self.spans, whole, strict=True)])

    def rows(self, rows_BND: Tensor) -> Tensor:
        """What belongs to each token of the target's grid, for the tokens that run: [B, S, D]."""
        short = gather(rows_BND, self.plan)
        return torch.cat([short, cell_means(rows_BND, self.plan)], 1) if self.coarse else short

    def short_ids(self, ids: Tensor, span: Span) -> Tensor:
        """The places [..., T, A] of a span's short sequence; axes 1 and 2 are row and column."""
        ids = ids[..., span.start : span.stop, :]
        if not span.short:
            return ids.float() if self.coarse else ids
        kept = ids.index_select(-2, self.plan.keep_K)
        if not self.coarse:
            return kept
        # float32: integers and bfloat16 cannot hold the half of a coarse place
        place_M2 = token_positions(self.plan)[len(self.plan.keep_K) :]
        extra = F.pad(place_M2, (1, ids.shape[-1] - 3))
        return torch.cat([kept.float(), ids[..., :1, :].float() + extra], -2)

    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        """What the coarse tokens have in their channels besides x_t, [B, M, D].

        Of the downsampled photo without what the mask covers, and the downsampled mask, each cell
        of the grid a token.
        """
        return cell_means(self.beside_BND, self.plan)

    def _spans(self, call: dict[str, Any]) -> list[Span]:
        spans, start = [], 0
        for i, grid in enumerate(self.grids(self.pipe, call)):
            stop = start + grid[0] * grid[1]
            short = i == 0 or (
                grid == self.plan.grid
                and self.plan.references == "compressed"
                and self._is_source(self.tokens(call)[:, start:stop])
            )
            spans.append(Span(start, stop, grid, short))
            start = stop
        return spans

    def _is_source(self, tokens_BnC: Tensor) -> bool:
        """Whether a reference is the photo that is edited, and not another picture."""
        like = self.source.latents_BNC[:1]
        reference = tokens_BnC[:1, :, : like.shape[-1]].to(like)
        return torch.allclose(reference, like, rtol=1e-2, atol=1e-2)  # a cast to bfloat16 may pass

    def _short(self, tokens_BTD: Tensor, span: Span, sigma: float) -> Tensor:
        tokens_BnD = tokens_BTD[:, span.start : span.stop]
        if not span.short:
            return tokens_BnD
        if span.start > 0:  # clean: what is averaged is the photo, not its noise
            return self.rows(tokens_BnD)
        short_BKD = gather(tokens_BnD, self.plan)
        if not self.coarse:
            return short_BKD
        x_BNC = tokens_BnD[..., : self.source.latents_BNC.shape[-1]]
        return torch.cat([short_BKD, self.coarse.tokens(x_BNC, sigma).to(short_BKD.dtype)], 1)

    def _encode_coarse(self) -> Coarse:
        def encode(photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
            latents = self.encode(self.pipe, _like_vae(self.pipe, photo_B3HW), generator)
            return self.pack(self.pipe, latents).to(self.source.latents_BNC)

        fold = self.latents_a_side(self.pipe)
        return Coarse.encode(self.plan, self.source, encode, self.condition, fold)

    def _check_length(self, tokens: int) -> None:
        if tokens != self.spans[-1].stop:
            raise ValueError(
                f"the transformer was given {tokens} tokens, but the photo's grid of "
                f"{self.plan.grid} has {self.spans[-1].stop}: this use is not supported"
            )


def _like_vae(pipe: Any, photo_B3HW: Tensor) -> Tensor:
    return photo_B3HW.to(pipe._execution_device, pipe.vae.dtype)
