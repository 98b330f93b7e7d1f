"""The discriminator loss: a critic learns to tell fills from photographs, and they not to be told.

LPIPS compares a fill with one truth. Where the truth cannot be known it is served best by a texture
that is a little like all of them: short wavy strokes, which no photograph has. The critic sees the
features that LPIPS has taken anyway, and judges every position of every layer by itself (projected
GAN, arXiv 2111.01007): strokes are nothing that it takes for a photograph.

B pictures, h x w positions of a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..metrics.lpips import LPIPS
from .crops import weighted_mean


class Critic(nn.Module):
    """From LPIPS's layers to as many maps [B, 1, h, w]: above 0 a photograph, below 0 a fill."""

    def __init__(self, perceptual: LPIPS, width: int = 64) -> None:
        super().__init__()
        channels = [conv.outside for conv in perceptual.plan if conv.compared]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))
            for c in channels
        )

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        # Features have unit length over their channels: brought to unit variance.
        pairs = zip(self.heads, layers, strict=True)
        return [head(layer.float() * layer.shape[1] ** 0.5) for head, layer in pairs]


def fooling(critic: Critic, fills: Sequence[Tensor], mask: Tensor) -> Tensor:
    """How plainly these are fills, [B]: to be brought down by them, while the critic stays."""
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    return -_in_mask(functional_call(critic, fixed, (fills,)), mask)


def telling(
    critic: Critic, fills: Sequence[Tensor], photos: Sequence[Tensor], mask: Tensor
) -> Tensor:
    """How badly the critic tells them apart, [B]: a hinge, to be brought down by it alone."""
    told = [torch.relu(1 + verdict) for verdict in critic([layer.detach() for layer in fills])]
    known = [torch.relu(1 - verdict) for verdict in critic([layer.detach() for layer in photos])]
    return _in_mask(told, mask) + _in_mask(known, mask)


def _in_mask(maps: Sequence[Tensor], mask: Tensor) -> Tensor:
    return torch.stack([weighted_mean(m.float(), mask) for m in maps]).mean(0)
