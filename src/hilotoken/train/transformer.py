"""Train the transformer: flow matching on masked photographs, dense or compressed at any budget.

x_t = (1 - sigma) x0 + sigma noise, target velocity = noise - x0. Every batch runs dense or through
a random HiLo plan, so that one checkpoint serves every budget. The loss counts the tokens that the
mask touches, and a little the rest: budgets weigh alike.

B pictures, N grid tokens, S tokens that run, C latent channels a token, D channels in all.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor, nn

from ..adapters.coarse import Coarse
from ..attention import rerouted
from ..checks import settle, whole
from ..grid import touch
from ..methods import HiLo
from ..methods.udit import as_trained, phases_of
from ..model import BLOCKS, LABELS, REGISTERS, new_scheduler, new_transformer, quiet
from ..plan import TokenPlan, gather, token_positions
from .checkpoint import note, read_note
from .labels import Labels
from .latent_cache import GRID, STRIDE, Batch, LatentCache, draw_of_kinds, read_batch
from .loop import train_loop


@dataclass(frozen=True)
class TransformerOptions:
    """How long, on how much, how fast. `elastic` 0 trains dense only.

    Raises ValueError for a share outside [0, 1], or phases that do not divide the grid.
    """

    samples: int = 100_000
    batches: int = 4  # groups whose gradients make one step
    rate: float = 1.5e-3
    elastic: float = 0.65
    mosaic: float = 0.25  # share of the samples in 2 x 2 mosaics, after the first half
    outside: float = 0.05  # weight of a token that the mask does not touch
    blocks: int = BLOCKS  # single blocks
    phases: int = 1  # a side, within which image tokens attend (U-DiT); 1: all to all
    decay: float = 0.9995
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("elastic", "mosaic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share and must lie in [0, 1], got {getattr(self, name)}"
                )
        settle(self, phases=whole(1))
        if GRID[0] % self.phases:
            raise ValueError(
                f"phases must divide the {GRID[0]} tokens a side of a view, got {self.phases}"
            )


def train_transformer(
    views: LatentCache,
    scale: float,
    run: Path,
    options: TransformerOptions,
    device: torch.device,
    labels: Labels | None = None,
    start: FluxTransformer2DModel | None = None,
) -> FluxTransformer2DModel:
    """Train `start`, or one from nothing, or resume, to `options.samples` pictures.

    Returns the averaged weights. Raises ValueError for a run or a start of other phases.
    """
    if start is not None and phases_of(start) != options.phases:
        raise ValueError(
            f"the start was trained with phases={phases_of(start)}, got {options.phases}: "
            "give the same"
        )
    _keep_phases(run, options.phases)
    torch.manual_seed(0)
    model = start or _new(options)
    model.to(device)  # type: ignore[call-overload]

    def gradients(done: int) -> tuple[int, dict[str, float]]:
        return _gradients(model, views, scale, options, done, device, labels)

    return train_loop(
        model,
        new_optimizers(model),
        gradients,
        run,
        "transformer",
        samples=options.samples,
        rate=options.rate,
        cooldown=0.4,
        decay=options.decay,
        checkpoint_seconds=options.checkpoint_seconds,
    )


def _new(options: TransformerOptions) -> FluxTransformer2DModel:
    model = new_transformer(options.blocks)
    if options.phases > 1:
        model.register_to_config(phases=options.phases)
    _shut_gates(model)
    return model


def _keep_phases(run: Path, phases: int) -> None:
    """Note the phases of a run: its checkpoint would go on under others, and mean nothing."""
    noted = run / "phases.txt"
    began = read_note(noted, 1)
    if (run / "transformer.pt").is_file() and began != phases:
        raise ValueError(
            f"{run} holds a transformer of phases={began}, got {phases}: name another folder, and "
            "copy autoencoder.pt and views into it to train the transformer alone"
        )
    note(f"{phases}", noted)


def _gradients(
    model: FluxTransformer2DModel,
    views: LatentCache,
    scale: float,
    options: TransformerOptions,
    done: int,
    device: torch.device,
    labels: Labels | None,
) -> tuple[int, dict[str, float]]:
    """Gradients of a few batches; what was drawn depends on `done` alone, so a run resumes."""
    rng, count, sums = np.random.default_rng((3, done)), 0, {}
    generator = torch.Generator().manual_seed(done)
    late = done > options.samples / 2
    kind = draw_of_kinds(views, done)
    tiles = 2 if late and kind.random() < 2 * options.mosaic else 1
    for _ in range(max(1, options.batches // tiles**2)):
        batch = read_batch(views, rng, tiles, scale)
        if labels:
            batch = labels.give(batch, scale, rng)
        plan = draw_plan(batch, rng) if kind.random() < options.elastic else None
        loss = _loss(model, batch, plan, options.outside, generator, device)
        (loss / max(1, options.batches // tiles**2)).backward()
        name = "dense" if plan is None else "compressed"
        if tiles > 1 or batch.mask.all():
            name += "_mosaic" if tiles > 1 else "_hidden"
        sums.setdefault(name, []).append(loss.item())
        count += len(batch.latents) * tiles**2
    return count, {key: sum(values) / len(values) for key, values in sums.items()}


def draw_plan(batch: Batch, rng: np.random.Generator) -> TokenPlan:
    """The plan of a random budget, a fourth of them by scores that are random too."""
    method = draw_method(rng)
    h, w = (side // 2 for side in batch.latents.shape[-2:])
    random = torch.from_numpy(rng.random(h * w, dtype=np.float32))
    scores = random if rng.random() < 0.25 else batch.score_N
    return method.select(scores, touch(batch.mask, (h, w))[0], (h, w))


def draw_method(rng: np.random.Generator) -> HiLo:
    """A random budget: what HiLo's options can be set to."""
    sampled = rng.random() < 0.4
    dilate, detail = int(rng.integers(1, 4)), float(rng.choice([0.0, 0.05, 0.1, 0.2]))
    coarse = 0 if sampled or rng.random() < 0.2 else STRIDE
    # Drawn whether they are used or not: a run that resumes draws as it did.
    cell, weights = int(rng.integers(2, 4)), bool(rng.random() < 0.5)
    return HiLo(
        dilate=dilate,
        detail=detail,
        coarse=coarse,
        context="sampled" if sampled else "frequency",
        cell=cell if sampled else None,
        weights=weights if sampled or coarse else None,
        bucket=16,
        seed=int(rng.integers(1 << 31)),
    )


def _loss(
    model: FluxTransformer2DModel,
    batch: Batch,
    plan: TokenPlan | None,
    outside: float,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    sigma_B, x0_BNC, noise_BNC = draw(batch, generator)
    x_BNC = x0_BNC + sigma_B[:, None, None] * (noise_BNC - x0_BNC)
    coarse_BMC = coarse_noise(batch, plan, generator)
    velocity_BKC = predict(model, batch, plan, x_BNC, sigma_B, coarse_BMC, device)
    return flow_loss(velocity_BKC, noise_BNC - x0_BNC, batch, plan, outside)


def draw(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logit-normal sigma_B, the batch's tokens x0_BNC, and as much noise_BNC."""
    x0_BNC = pack(batch.latents)
    sigma_B = torch.sigmoid(torch.randn(len(x0_BNC), generator=generator) + 0.25)
    return sigma_B, x0_BNC, pack(quiet(torch.randn(batch.latents.shape, generator=generator)))


def coarse_noise(batch: Batch, plan: TokenPlan | None, generator: torch.Generator) -> Tensor | None:
    """What the coarse tokens of `plan` start from, [B, M, C]; None without coarse tokens."""
    if plan is None or not len(plan.cells_M):
        return None
    B, C = batch.latents.shape[:2]
    return torch.randn(B, len(plan.cells_M), 4 * C, generator=generator)


@cache
def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return new_scheduler()


def predict(
    model: FluxTransformer2DModel,
    batch: Batch,
    plan: TokenPlan | None,
    x_BNC: Tensor,
    sigma_B: Tensor,
    coarse_BMC: Tensor | None,
    device: torch.device,
) -> Tensor:
    """The velocity [B, K, C] at x_t of the K grid tokens that `plan` keeps; of all without one."""
    B, _, H, W = batch.latents.shape
    hidden_BSD = torch.cat([x_BNC, pack(batch.masked), _pack_mask(batch.mask, B)], -1)
    ids_S3 = FluxFillPipeline._prepare_latent_image_ids(B, H // 2, W // 2, "cpu", torch.float32)
    attention, label_BL = None, batch.label_BL
    if label_BL is None:
        label_BL = torch.zeros(B, LABELS)
    if plan is not None:
        hidden_BSD = gather(hidden_BSD, plan)
        ids_S3 = F.pad(token_positions(plan), (1, 0))
        if coarse_BMC is not None:
            tokens = _coarse(batch, plan, coarse_BMC).tokens(x_BNC, sigma_B[:, None, None])
            hidden_BSD = torch.cat([hidden_BSD, tokens], 1)
        if plan.weighted:
            bias_S = F.pad(plan.count_S.log(), (REGISTERS, 0)).to(device)
            attention = {"attention_mask": bias_S[None, None, None].bfloat16()}
    with (
        torch.autocast(device.type, torch.bfloat16),
        _quick_attention(model, device),
        as_trained(model, _scheduler()),
    ):
        velocity_BSC = model(
            hidden_states=hidden_BSD.to(device),
            timestep=sigma_B.to(device),
            encoder_hidden_states=torch.eye(REGISTERS, device=device).expand(B, -1, -1),
            pooled_projections=label_BL.to(device),
            img_ids=ids_S3.to(device),
            txt_ids=torch.zeros(REGISTERS, 3, device=device),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
    native = x_BNC.shape[1] if plan is None else len(plan.keep_K)
    return velocity_BSC[:, :native].float()


def _quick_attention(model: FluxTransformer2DModel, device: torch.device) -> Any:
    """On a CPU attention is written out: at a view's length the fused one takes twice as long."""
    return rerouted(model, _attend) if device.type == "cpu" else nullcontext()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kwargs: Any
) -> Tensor:
    query_BHQD, key_BHSD, value_BHSD = (x.transpose(1, 2) for x in (query, key, value))
    logits_BHQS = query_BHQD @ key_BHSD.transpose(2, 3) * query.shape[-1] ** -0.5
    if (mask := kwargs.get("attn_mask")) is not None:
        logits_BHQS = logits_BHQS + mask
    return (logits_BHQS.softmax(-1).to(value) @ value_BHSD).transpose(1, 2)


def flow_loss(
    velocity_BKC: Tensor, target_BNC: Tensor, batch: Batch, plan: TokenPlan | None, outside: float
) -> Tensor:
    """Mean squared error over the tokens that the mask touches, and `outside` times the rest."""
    H, W = batch.latents.shape[-2:]
    weight_K = torch.where(touch(batch.mask, (H // 2, W // 2)).flatten(), 1.0, outside)
    target_BKC = target_BNC
    if plan is not None:
        target_BKC, weight_K = gather(target_BNC, plan), weight_K[plan.keep_K]
    weight_K = weight_K.to(velocity_BKC.device)
    error_BK = (velocity_BKC - target_BKC.to(velocity_BKC.device)).square().mean(-1)
    return (error_BK * weight_K).sum(1).mean() / (weight_K >= 1).sum().clamp_min(1)


def pack(latents: Tensor) -> Tensor:
    """[B, C, 2h, 2w] latents as [B, h * w, 4C] tokens."""
    return FluxFillPipeline._pack_latents(latents, *latents.shape)


def _pack_mask(mask_11HW: Tensor, batch: int) -> Tensor:
    return pack(F.pixel_unshuffle(mask_11HW, 8)).expand(batch, -1, -1)


def _coarse(batch: Batch, plan: TokenPlan, noise_BMC: Tensor) -> Coarse:
    """The coarse tokens as `Coarse.encode` makes them, from what was encoded beforehand."""
    mask = _pack_mask(F.max_pool2d(batch.mask, STRIDE), len(batch.latents))
    masked_BMC = pack(batch.coarse_masked).index_select(1, plan.cells_M)
    mask_BMD = mask.index_select(1, plan.cells_M)
    condition_BMD = torch.cat([masked_BMC, mask_BMD], -1)
    touched_BM1 = (mask_BMD > 0).any(-1, keepdim=True)
    return Coarse(plan, masked_BMC, noise_BMC, condition_BMD, touched_BM1)


def _shut_gates(model: FluxTransformer2DModel) -> None:
    """Blocks begin as the identity and the answer as nothing: adaLN-Zero (arXiv 2212.09748)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if ("norm" in name and name.endswith("linear")) or name == "proj_out":
                nn.init.zeros_(module.weight)


def new_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    inside, rest = [], []
    for name, weight in model.named_parameters():
        matrix = weight.ndim == 2 and "blocks" in name and "norm" not in name
        (inside if matrix else rest).append(weight)
    return [
        torch.optim.Muon(inside, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
