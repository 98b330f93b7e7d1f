"""Refine transformer and decoder together, by what a viewer compares: decoded pixels in the mask.

Flow matching weighs every latent alike, and its decoder has only seen latents of real photographs.
Here the transformer's x0 is decoded, a crop of it around the mask, and LPIPS and L1 against the
photograph go back through both. LPIPS sees colours led to the photograph's, as an edit ends. The
encoder stays, so that the views stay valid, and flow matching goes on beside it, so that the model
stays one of diffusion.

Most batches start from an x_t that the model itself came to from pure noise by the first steps of
its own sampler: an x_t that was mixed with the truth tells much of it. The gradient goes back
through the step before too, so that two steps learn together what they come to: a first answer need
not be good, but good to go on from. Those batches have no velocity to match; their decoded pixels
alone count. Mosaics, by which a 256 px photograph trains a 512 px grid, are treated as single
pictures are, but step by step.

B pictures, N grid tokens, K tokens that run, C channels a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxFillPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from ..checks import settle, whole
from ..composite import lead
from ..metrics.lpips import LPIPS
from ..plan import TokenPlan
from .critic import Critic, fooling, telling
from .crops import LATENT, corners, crop_side, cut, off_grid, weighted_mean
from .labels import Labels
from .latent_cache import (
    Batch,
    LatentCache,
    batch_crops,
    chances_of_masks,
    draw_of_kinds,
    read_batch,
)
from .loop import train_loop
from .rollout import draw_sigmas, end_of, rollout
from .transformer import (
    coarse_noise,
    draw,
    draw_plan,
    flow_loss,
    new_optimizers,
    predict,
)

SMALLEST = 9  # latents a side: half of that, a latent less, is what AlexNet needs to see anything


@dataclass(frozen=True)
class RefineOptions:
    """How long, on how much, how fast.

    Raises ValueError for a share outside [0, 1], a rate that is not positive, no steps or none left
    after those before, or crops too small for LPIPS.
    """

    samples: int = 45_000
    batches: int = 2  # groups whose gradients make one step
    rate: float = 4e-4
    decoder: float = 0.3  # the decoder's rate, as a share of it
    cooldown: float = 1.0  # share of the samples over which the rate falls to nothing
    perceptual: float = 2.0  # weight of LPIPS + L1 beside flow matching
    half: float = 0.1  # weight in it of LPIPS at half the size
    l1: float = 0.1  # weight of L1 in it
    realism: float = 0.04  # weight in it of not being told from photographs; 0: without a critic
    critic: float = 2.0  # the critic's rate, as a multiple of the transformer's
    rollout: float = 0.85  # share of the batches that start from the model's own x_t
    steps: tuple[int, ...] = (8,)  # of samplers whose steps lead there
    before: tuple[int, ...] = (0, 1, 1, 1)  # how many of their steps do
    through: int = 1  # of these, the last so many are trained with the one after them
    shift: float = -2.5  # of theirs, as `mu`: more noise than `SHIFT` leaves, so more to better
    crop: tuple[int, int] = (16, 24)  # latents a side of what is decoded, at least and at most
    clean: int = 1  # pictures a batch whose true latents are decoded too
    elastic: float = 0.65
    mosaic: float = 0.15  # share of the samples in 2 x 2 mosaics
    tilt: float = 1.0  # a mask is drawn as often as its share of the picture ** tilt
    outside: float = 0.05  # weight of a token that the mask does not touch
    decay: float = 0.9995
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("rollout", "elastic", "mosaic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share and must lie in [0, 1], got {getattr(self, name)}"
                )
        if not 0 < self.rate < inf:
            raise ValueError(f"rate is of learning and must be positive, got {self.rate}")
        for steps in self.steps:
            whole(1)("steps", steps)
        for before in self.before:
            whole(0)("before", before)
        if max(self.before, default=inf) >= min(self.steps, default=0):
            raise ValueError(
                "before must leave a step to be trained, got "
                f"{self.before} of samplers of {self.steps}"
            )
        settle(self, through=whole(0))
        if not SMALLEST <= self.crop[0] <= self.crop[1]:
            raise ValueError(
                f"crop is the least and the most latents a side, from {SMALLEST}, got {self.crop}"
            )


def refine(
    transformer: FluxTransformer2DModel,
    autoencoder: AutoencoderTiny,
    views: LatentCache,
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
    torch.manual_seed(0)
    critic = Critic(perceptual) if options.realism else None
    models = nn.ModuleDict({"transformer": transformer, "decoder": autoencoder.decoder})
    if critic:
        models["critic"] = critic
    models.requires_grad_(True).train().to(device)
    pictures = views, photos, scale
    chances = chances_of_masks(views, options.tilt)
    refiner = _Refiner(
        transformer, autoencoder, *pictures, perceptual, options, device, labels, chances, critic
    )
    train_loop(
        models,
        _optimizers(models, options),
        refiner.gradients,
        run,
        "refine",
        samples=options.samples,
        rate=options.rate,
        cooldown=options.cooldown,
        decay=options.decay,
        checkpoint_seconds=options.checkpoint_seconds,
    )


def _optimizers(models: nn.ModuleDict, options: RefineOptions) -> list[torch.optim.Optimizer]:
    """Those of the transformer, and AdamW for the others, which learn at rates of their own."""
    optimizers = new_optimizers(models["transformer"])
    for name, share, betas in (
        ("decoder", options.decoder, (0.9, 0.999)),
        ("critic", options.critic, (0.5, 0.99)),
    ):
        if name in models:
            group = {"params": list(models[name].parameters()), "share": share}
            optimizers.append(torch.optim.AdamW([group], betas=betas, weight_decay=1e-3))
    return optimizers


@dataclass(frozen=True, eq=False)
class _Refiner:
    """What stays the same from step to step."""

    transformer: FluxTransformer2DModel
    autoencoder: AutoencoderTiny
    views: LatentCache
    photos: list[np.ndarray]
    scale: float
    perceptual: LPIPS
    options: RefineOptions
    device: torch.device
    labels: Labels | None = None
    chances: np.ndarray | None = None
    critic: Critic | None = None

    def gradients(self, done: int) -> tuple[int, dict[str, float]]:
        """Gradients of a few batches; what is drawn depends on `done` alone, so a run resumes."""
        options, count = self.options, 0
        rng, generator = np.random.default_rng((5, done)), torch.Generator().manual_seed(done)
        kind = draw_of_kinds(self.views, done)
        tiles = 2 if kind.random() < _mosaic_steps(options) else 1
        rounds = max(1, options.batches // tiles**2)
        drawn_by = options.steps, options.before, options.shift
        sums: dict[str, list[float]] = {}
        for _ in range(rounds):
            batch = read_batch(self.views, rng, tiles, self.scale, self.chances)
            if self.labels:
                batch = self.labels.give(batch, self.scale, rng)
            plan = draw_plan(batch, rng) if kind.random() < options.elastic else None
            sigmas = draw_sigmas(*drawn_by, kind) if kind.random() < options.rollout else []
            through = options.through if tiles == 1 else 0  # two of a mosaic take too much memory
            if batch.mask.all():  # LPIPS of what nobody could know teaches blur
                loss, figures = self._match(batch, plan, generator)
            else:
                loss, figures = self._loss(batch, plan, sigmas, through, rng, generator)
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
        sigmas: Sequence[float],
        through: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Of x_t that the model came to by `sigmas`; of truthful ones without any."""
        sigma_B, x0_BNC, noise_BNC = draw(batch, generator)
        coarse_BMC = coarse_noise(batch, plan, generator)

        def velocity(x_BNC: Tensor, sigma_B: Tensor) -> Tensor:
            return predict(self.transformer, batch, plan, x_BNC, sigma_B, coarse_BMC, self.device)

        if sigmas:
            sigma_B = torch.full_like(sigma_B, sigmas[-1])
            x_BNC = rollout(velocity, plan, x0_BNC, noise_BNC, sigmas, through)
        else:
            x_BNC = x0_BNC + sigma_B[:, None, None] * (noise_BNC - x0_BNC)
        velocity_BKC = velocity(x_BNC, sigma_B)
        end_BNC = end_of(plan, x_BNC, x0_BNC, sigma_B, velocity_BKC)
        loss, figures = self._compare(batch, end_BNC, rng, self.critic if sigmas else None)
        loss = self.options.perceptual * loss
        if sigmas:
            return loss, {f"{key}_own": value for key, value in figures.items()}
        flow = flow_loss(velocity_BKC, noise_BNC - x0_BNC, batch, plan, self.options.outside)
        return loss + flow, figures | {"flow": flow.item()}

    def _compare(
        self, batch: Batch, end_BNC: Tensor, rng: np.random.Generator, critic: Critic | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """LPIPS + L1 of decoded crops: in the mask, and anywhere where true latents are decoded.

        And what a critic has to say of the former.
        """
        B, _, H, W = batch.latents.shape
        crop, side = crop_side(batch.mask, *self.options.crop), LATENT
        places = corners(batch.mask, B, crop, rng)
        clean = min(B, self.options.clean)
        truth = batch_crops(self.photos, batch.groups, B)
        truth = torch.cat([truth, truth[:clean]])
        end = FluxFillPipeline._unpack_latents(end_BNC, H * side, W * side, side)
        latents = torch.cat([end, batch.latents[:clean].to(end)])
        mask = torch.cat([batch.mask.expand(B, -1, -1, -1), torch.ones(clean, 1, *truth.shape[2:])])
        places = [*places, *places[:clean]]
        small = cut(latents, places, crop) / self.scale
        truth, mask = (
            cut(images, [(side * y, side * x) for y, x in places], side * crop)
            for images in (truth, mask)
        )
        truth, mask = truth.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            small = small.contiguous(memory_format=torch.channels_last)
            decoded = self.autoencoder.decode(small, return_dict=False)[0].float()
            decoded, truth, mask = off_grid((decoded, truth, mask), rng)
            pasted = torch.where(mask > 0, lead(truth, decoded, mask), truth)
            seen, true = (self.perceptual.features(images) for images in (pasted, truth))
            lpips_B = self._distance(seen, true, mask)
            half_seen, half_true = (
                self.perceptual.features(F.avg_pool2d(images, 2)) for images in (pasted, truth)
            )
            half_B = self._distance(half_seen, half_true, mask)
        l1_B = weighted_mean((decoded - truth).abs().mean(1, keepdim=True), mask)
        loss_B = lpips_B + self.options.half * half_B + self.options.l1 * l1_B
        loss = loss_B[:B].mean() + (loss_B[B:].mean() if clean else 0)
        figures = {"lpips": lpips_B[:B].mean().item(), "l1": l1_B[:B].mean().item()}
        if clean:
            figures["lpips_clean"] = lpips_B[B:].mean().item()
        if critic:
            fills, photos = ([layer[:B] for layer in layers] for layers in (seen, true))
            told, fooled = (
                telling(critic, fills, photos, mask[:B]),
                fooling(critic, fills, mask[:B]),
            )
            loss = loss + told.mean() + self.options.realism * fooled.mean()
            figures["told"] = told.mean().item()
        return loss, figures

    def _distance(self, seen: list[Tensor], true: list[Tensor], mask: Tensor) -> Tensor:
        """LPIPS in the mask, [B]."""
        maps = self.perceptual.compare(seen, true)
        return torch.stack([weighted_mean(layer.float(), mask) for layer in maps]).sum(0)


def _mosaic_steps(options: RefineOptions) -> float:
    """The share of the steps that makes mosaics their share of the samples."""
    plain, four = options.batches, 4 * max(1, options.batches // 4)  # groups a step
    mosaic = options.mosaic * plain
    return mosaic / (mosaic + (1 - options.mosaic) * four)
