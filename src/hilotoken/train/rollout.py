"""Rollout of a model's own steps: the x_t that its sampler would come to from pure noise.

A sampler shows a transformer what it made of noise itself, and never an x_t that was mixed with
the truth, which tells much of it. What is trained from here learns to better its own first answers;
and where the gradient goes back along the way, to give first answers that can be bettered.

B pictures, N grid tokens, K tokens that run, C channels a token.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..model import new_scheduler
from ..plan import TokenPlan, gather


def draw_sigmas(
    steps: Sequence[int], before: Sequence[int], shift: float, rng: np.random.Generator
) -> list[float]:
    """The first sigmas of a sampler, from 1 on: of one of so many `steps`, the last of them after
    one of so many `before`.
    """
    return sampler_sigmas(int(rng.choice(steps)), shift)[: 1 + int(rng.choice(before))]


@cache
def sampler_sigmas(steps: int, shift: float) -> list[float]:
    """Where the steps of a Fill pipeline's sampler begin: 1, and less and less."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
    return [float(sigma) for sigma in scheduler.sigmas][:-1]  # pyright: ignore[reportOptionalIterable]


def rollout(
    velocity: Callable[[Tensor, Tensor], Tensor],
    plan: TokenPlan | None,
    x0_BNC: Tensor,
    noise_BNC: Tensor,
    sigmas: Sequence[float],
    through: int,
) -> Tensor:
    """The x_t at the last of `sigmas` that Euler comes to by them from pure noise.

    The gradient goes back through the last `through` of these steps.
    """
    x_BNC, fixed = noise_BNC, len(sigmas) - 1 - through
    for place, (sigma, following) in enumerate(pairwise(sigmas)):
        sigma_B = torch.full((len(x_BNC),), sigma)
        with torch.set_grad_enabled(place >= fixed):
            end_BNC = end_of(plan, x_BNC, x0_BNC, sigma_B, velocity(x_BNC, sigma_B)).to(x_BNC)
        x_BNC = end_BNC + following / sigma * (x_BNC - end_BNC)
    return x_BNC


def end_of(
    plan: TokenPlan | None, x_BNC: Tensor, x0_BNC: Tensor, sigma_B: Tensor, velocity_BKC: Tensor
) -> Tensor:
    """Where the velocity leads: x_t - sigma v; a token that did not run is at its source."""
    sigma_B11, device = sigma_B[:, None, None].to(velocity_BKC), velocity_BKC.device
    if plan is None:
        return x_BNC.to(device) - sigma_B11 * velocity_BKC
    end_BKC = gather(x_BNC, plan).to(device) - sigma_B11 * velocity_BKC
    return x0_BNC.to(device).index_copy(1, plan.keep_K.to(device), end_BKC)
