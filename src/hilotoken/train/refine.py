"""Refine transformer and decoder together, by what a viewer compares: decoded pixels in the mask.

Flow matching weighs every latent alike, and its decoder has only seen latents of real photographs.
Here the transformer's x0 is decoded, a crop of it around the mask, and LPIPS and L1 against the
photograph go back through both. The encoder stays, so that the views stay valid, and flow matching
goes on beside it, so that the model stays one of diffusion.

Most batches start from an x_t that the model itself came to from pure noise, without a
gradient: that is where a sampler leaves it, and an x_t that was mixed with the truth tells much of
it. Those have no velocity to match; their decoded pixels alone count. Mosaics, by which a 256 px
photograph trains a 512 px grid, are treated as single pictures are.

B pictures, N grid tokens, K tokens that run, C channels a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxFillPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from ..methods.sites import check_whole
from ..plan import TokenPlan, gather
from .labels import Labels
from .loop import train_loop
from .lpips import LPIPS
from .transformer import (
    coarse_noise,
    draw,
    draw_plan,
    flow_loss,
    new_optimizers,
    predict,
)
from .views import Batch, Views, batch_crops, chances_of_masks, draw_of_kinds, read_batch

LATENT = 8  # pixels a side of a latent
LEAST = 0.05  # sigma of the model's own x_t


@dataclass(frozen=True)
class RefineOptions:
    """How long, on how much, how fast. Raises ValueError for a share outside [0, 1]."""

    samples: int = 45_000
    batches: int = 2  # groups whose gradients make one step
    rate: float = 7e-4
    decoder: float = 0.3  # the decoder's rate, as a share of it
    cooldown: float = 0.8  # share of the samples over which the rate falls to nothing
    perceptual: float = 2.0  # weight of LPIPS + L1 beside flow matching
    l1: float = 0.25  # weight of L1 in it
    own: float = 0.6  # share of the batches that start from the model's own x_t
    own_steps: int = 4  # at most, from pure noise to there
    crop: int = 16  # latents a side of what is decoded
    clean: int = 1  # pictures a batch whose true latents are decoded too
    elastic: float = 0.65
    mosaic: float = 0.25  # share of the samples in 2 x 2 mosaics
    tilt: float = 0.5  # a mask is drawn as often as its share of the picture ** tilt
    outside: float = 0.05  # weight of a token that the mask does not touch
    decay: float = 0.9995
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("own", "elastic", "mosaic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share and must lie in [0, 1], got {getattr(self, name)}"
                )
        check_whole("own_steps", self.own_steps, 1)


def refine(
    transformer: FluxTransformer2DModel,
    autoencoder: AutoencoderTiny,
    views: Views,
    photos: list[np.ndarray],
    scale: float,
    perceptual: LPIPS,
    run: Path,
    options: RefineOptions,
    device: torch.device,
    labels: Labels | None = None,
) -> None:
    """Train both in place, or resume, to `options.samples` pictures; leaves the averaged weights.

    `photos` are those that the views were made from, in the same order.
    """
    models = nn.ModuleDict({"transformer": transformer, "decoder": autoencoder.decoder})
    models.requires_grad_(True).train().to(device)
    decoder = {"params": list(autoencoder.decoder.parameters()), "share": options.decoder}
    optimizers = [*new_optimizers(transformer), torch.optim.AdamW([decoder], weight_decay=1e-3)]
    pictures = views, photos, scale
    chances = chances_of_masks(views, options.tilt)
    refiner = _Refiner(
        transformer, autoencoder, *pictures, perceptual, options, device, labels, chances
    )
    train_loop(
        models,
        optimizers,
        refiner.gradients,
        run,
        "refine",
        samples=options.samples,
        rate=options.rate,
        cooldown=options.cooldown,
        decay=options.decay,
        checkpoint_seconds=options.checkpoint_seconds,
    )


@dataclass(frozen=True, eq=False)
class _Refiner:
    """What stays the same from step to step."""

    transformer: FluxTransformer2DModel
    autoencoder: AutoencoderTiny
    views: Views
    photos: list[np.ndarray]
    scale: float
    perceptual: LPIPS
    options: RefineOptions
    device: torch.device
    labels: Labels | None = None
    chances: np.ndarray | None = None

    def gradients(self, done: int) -> tuple[int, dict[str, float]]:
        """Gradients of a few batches; what is drawn depends on `done` alone, so a run resumes."""
        options, count = self.options, 0
        rng, generator = np.random.default_rng((5, done)), torch.Generator().manual_seed(done)
        kind = draw_of_kinds(self.views, done)
        tiles = 2 if kind.random() < _mosaic_steps(options) else 1
        rounds = max(1, options.batches // tiles**2)
        sums: dict[str, list[float]] = {}
        for _ in range(rounds):
            batch = read_batch(self.views, rng, tiles, self.scale, self.chances)
            if self.labels:
                batch = self.labels.give(batch, self.scale, rng)
            plan = draw_plan(batch, rng) if kind.random() < options.elastic else None
            own = int(kind.integers(1, options.own_steps + 1))
            own *= bool(kind.random() < options.own)
            if batch.mask.all():  # LPIPS of what nobody could know teaches blur
                loss, figures = self._match(batch, plan, generator)
            else:
                loss, figures = self._loss(batch, plan, own, rng, generator)
            if tiles > 1:
                figures = {f"{key}_mosaic": value for key, value in figures.items()}
            (loss / rounds).backward()
            for key, value in figures.items():
                sums.setdefault(key, []).append(value)
            count += len(batch.latents) * tiles**2
        return count, {key: sum(values) / len(values) for key, values in sums.items()}

    def _match(
        self, batch: Batch, plan: TokenPlan | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma_B, x0_BNC, noise_BNC = draw(batch, generator)
        x_BNC = x0_BNC + sigma_B[:, None, None] * (noise_BNC - x0_BNC)
        coarse_BMC = coarse_noise(batch, plan, generator)
        velocity = predict(self.transformer, batch, plan, x_BNC, sigma_B, coarse_BMC, self.device)
        loss = flow_loss(velocity, noise_BNC - x0_BNC, batch, plan, self.options.outside)
        return loss, {"flow_hidden": loss.item()}

    def _loss(
        self,
        batch: Batch,
        plan: TokenPlan | None,
        own: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Of x_t that the model came to in `own` steps; of truthful ones for 0."""
        sigma_B, x0_BNC, noise_BNC = draw(batch, generator)
        if own:  # a sampler comes by the ends as often as by the middle
            sigma_B = LEAST + (1 - LEAST) * torch.rand(len(sigma_B), generator=generator)
        coarse_BMC = coarse_noise(batch, plan, generator)

        def velocity(x_BNC: Tensor, sigma_B: Tensor) -> Tensor:
            return predict(self.transformer, batch, plan, x_BNC, sigma_B, coarse_BMC, self.device)

        if own:
            x_BNC = _own_way(velocity, plan, x0_BNC, noise_BNC, sigma_B, own)
        else:
            x_BNC = x0_BNC + sigma_B[:, None, None] * (noise_BNC - x0_BNC)
        velocity_BKC = velocity(x_BNC, sigma_B)
        end_BNC = _end(plan, x_BNC, x0_BNC, sigma_B, velocity_BKC)
        loss, figures = self._compare(batch, end_BNC, rng)
        loss = self.options.perceptual * loss
        if own:
            return loss, {f"{key}_own": value for key, value in figures.items()}
        flow = flow_loss(velocity_BKC, noise_BNC - x0_BNC, batch, plan, self.options.outside)
        return loss + flow, figures | {"flow": flow.item()}

    def _compare(
        self, batch: Batch, end_BNC: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """LPIPS + L1 of decoded crops: in the mask, and anywhere where true latents are decoded."""
        B, _, H, W = batch.latents.shape
        corners, side = _corners(batch.mask, B, self.options.crop, rng), LATENT
        clean = min(B, self.options.clean)
        truth = batch_crops(self.photos, batch.groups, B)
        truth = torch.cat([truth, truth[:clean]])
        end = FluxFillPipeline._unpack_latents(end_BNC, H * side, W * side, side)
        latents = torch.cat([end, batch.latents[:clean].to(end)])
        mask = torch.cat([batch.mask.expand(B, -1, -1, -1), torch.ones(clean, 1, *truth.shape[2:])])
        corners = [*corners, *corners[:clean]]
        small = _cut(latents, corners, self.options.crop) / self.scale
        truth, mask = (
            _cut(images, [(side * y, side * x) for y, x in corners], side * self.options.crop)
            for images in (truth, mask)
        )
        truth, mask = truth.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            small = small.contiguous(memory_format=torch.channels_last)
            decoded = self.autoencoder.decode(small, return_dict=False)[0].float()
            decoded, truth, mask = _off_grid((decoded, truth, mask), rng)
            maps = self.perceptual.maps(torch.where(mask > 0, decoded, truth), truth)
        lpips_B = sum((_weighted_mean(layer.float(), mask) for layer in maps), torch.zeros(()))
        l1_B = _weighted_mean((decoded - truth).abs().mean(1, keepdim=True), mask)
        loss_B = lpips_B + self.options.l1 * l1_B
        loss = loss_B[:B].mean() + (loss_B[B:].mean() if clean else 0)
        figures = {"lpips": lpips_B[:B].mean().item(), "l1": l1_B[:B].mean().item()}
        return loss, figures | ({"lpips_clean": lpips_B[B:].mean().item()} if clean else {})


def _mosaic_steps(options: RefineOptions) -> float:
    """The share of the steps that makes mosaics their share of the samples."""
    plain, four = options.batches, 4 * max(1, options.batches // 4)  # groups a step
    mosaic = options.mosaic * plain
    return mosaic / (mosaic + (1 - options.mosaic) * four)


def _own_way(
    velocity: Callable[[Tensor, Tensor], Tensor],
    plan: TokenPlan | None,
    x0_BNC: Tensor,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    steps: int,
) -> Tensor:
    """The x_t at `sigma_B` that Euler comes to from pure noise in `steps` equal steps."""
    x_BNC, at_B = noise_BNC, torch.ones_like(sigma_B)
    for i in range(1, steps + 1):
        next_B = 1 - (1 - sigma_B) * i / steps
        with torch.no_grad():
            end_BNC = _end(plan, x_BNC, x0_BNC, at_B, velocity(x_BNC, at_B))
        x_BNC = end_BNC + (next_B / at_B)[:, None, None] * (x_BNC - end_BNC)
        at_B = next_B
    return x_BNC


def _end(
    plan: TokenPlan | None, x_BNC: Tensor, x0_BNC: Tensor, sigma_B: Tensor, velocity_BKC: Tensor
) -> Tensor:
    """Where the velocity leads: x_t - sigma v; a token that did not run is at its source."""
    sigma_B11, device = sigma_B[:, None, None].to(velocity_BKC), velocity_BKC.device
    if plan is None:
        return x_BNC.to(device) - sigma_B11 * velocity_BKC
    end_BKC = gather(x_BNC, plan).to(device) - sigma_B11 * velocity_BKC
    return x0_BNC.to(device).index_copy(1, plan.keep_K.to(device), end_BKC)


def _corners(
    mask_11HW: Tensor, count: int, side: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Top and left, in latents, of `count` squares around masked latents drawn at random."""
    touched = F.max_pool2d(mask_11HW, LATENT)[0, 0]
    inside = touched.nonzero().numpy()
    middles = inside[rng.integers(len(inside), size=count)]
    most = np.array(touched.shape) - side
    return [(int(y), int(x)) for y, x in (middles - side // 2).clip(0, most)]


def _cut(images: Tensor, corners: Sequence[tuple[int, int]], side: int) -> Tensor:
    """A square of every image, [B, C, side, side]."""
    pairs = zip(images, corners, strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in pairs])


def _off_grid(images: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """All but up to a latent's width of each, cut off at random on both sides.

    LPIPS looks at every fourth pixel: on the latents' own grid it would overlook a pattern of that
    period, and the decoder would soon paint one.
    """
    y, x = rng.integers(LATENT, size=2)
    height, width = (side - LATENT for side in images[0].shape[-2:])
    return [image[..., y : y + height, x : x + width] for image in images]


def _weighted_mean(map_B1HW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """The mean [B] of each map under a weight of any size."""
    height, width = map_B1HW.shape[-2:]
    share = F.adaptive_avg_pool2d(weight_B1HW, (height, width))
    return (map_B1HW * share).sum((1, 2, 3)) / share.sum((1, 2, 3)).clamp_min(1e-6)
