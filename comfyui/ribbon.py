"""A latent as a ribbon: the tokens that run, side by side in a picture one token high.

ComfyUI's transformers take pictures, cut them into tokens and put the answer together again. Given
a ribbon they run on as many tokens as it has, and whatever depends on the length (references, their
own modulation, the cut at the end) is right by construction. Where tokens sit is not: `places`.

B batch, C channels, H W latents, p latents a side of a token, N tokens of the grid, K native tokens
that run, M coarse ones, S = K + M, D = C p p channels a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hilotoken.adapters.coarse import cell_averages, cell_means, missing_noise
from hilotoken.plan import TokenPlan, gather, scatter


def grid_of(picture: Tensor, p: int) -> tuple[int, int]:
    """Rows and columns of the tokens of a latent [..., H, W]."""
    return -(-picture.shape[-2] // p), -(-picture.shape[-1] // p)


def to_tokens(x: Tensor, p: int) -> Tensor:
    """A latent [B, C, H, W], or a film of one picture [B, C, 1, H, W], as tokens [B, N, D].

    What the patches do not divide is padded as ComfyUI does it: on, from the other side.
    """
    x = x.flatten(1, -3)
    down, right = -x.shape[-2] % p, -x.shape[-1] % p
    if down or right:
        x = F.pad(x, (0, right, 0, down), mode="circular")
    return F.pixel_unshuffle(x, p).flatten(2).mT


def to_ribbon(tokens_BSD: Tensor, p: int, like: Tensor) -> Tensor:
    """Tokens as a picture [B, C, p, S p], with as many dimensions as `like`."""
    ribbon = F.pixel_shuffle(tokens_BSD.mT.unsqueeze(2), p)
    return ribbon.unsqueeze(2) if like.ndim == 5 else ribbon


def put_back(ribbon: Tensor, onto: Tensor, plan: TokenPlan, p: int) -> Tensor:
    """`onto` with the native tokens of the ribbon in their places."""
    tokens_BSD = to_tokens(ribbon, p).to(onto.dtype)
    whole_BND = scatter(tokens_BSD, plan, to_tokens(onto, p))
    picture = F.pixel_shuffle(whole_BND.mT.unflatten(2, plan.grid), p)
    return picture[..., : onto.shape[-2], : onto.shape[-1]].reshape(onto.shape)


def rows(tokens_BND: Tensor, plan: TokenPlan) -> Tensor:
    """What belongs to each token of the grid, for the tokens that run: [B, S, D].

    For what is clean (a reference, a masked photo, a ControlNet's residuals): coarse tokens have
    the mean of their cell.
    """
    short_BKD = gather(tokens_BND, plan)
    if not len(plan.cells_M):
        return short_BKD
    return torch.cat([short_BKD, cell_means(tokens_BND, plan)], 1)


def noisy_rows(
    x_BND: Tensor, plan: TokenPlan, noise_1MD: Tensor, sigma_B: Tensor, p: int
) -> Tensor:
    """x_t of the tokens that run, [B, S, D].

    Coarse tokens have the average of their cell, its noise brought back to its strength. No VAE is
    needed, and what is under the mask is noise as yet: no secret is told.
    """
    short_BKD = gather(x_BND, plan)
    if not len(plan.cells_M):
        return short_BKD
    average, missing = cell_averages(x_BND, plan, p), missing_noise(plan, p, x_BND)
    coarse = average + sigma_B.reshape(-1, 1, 1).to(average) * missing * noise_1MD.to(average)
    return torch.cat([short_BKD, coarse], 1)
