"""The critic: what it learns it alone learns, and who fools it comes to look like a photograph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import small_transformer, small_views, some_distance

from hilotoken.train import refine
from hilotoken.train.checkpoint import load_if_any
from hilotoken.train.critic import Critic, fooling, telling
from hilotoken.train.latent_cache import ViewOptions
from hilotoken.train.refine import RefineOptions

MASK = torch.ones(4, 1, 32, 32)


def some_critic() -> tuple[Critic, list[torch.Tensor], list[torch.Tensor]]:
    """With layers of fills, whose every channel is alike, and of photographs, of one channel."""
    torch.manual_seed(0)
    critic = Critic(some_distance())
    channels = [head[0].in_channels for head in critic.heads]
    fills = [torch.ones(4, c, 4, 4) * c**-0.5 for c in channels]
    photos = [torch.zeros(4, c, 4, 4).index_fill(1, torch.tensor([0]), 1) for c in channels]
    return critic, [layer.requires_grad_() for layer in fills], photos


def test_each_side_learns_by_its_own_loss_alone():
    critic, fills, photos = some_critic()
    telling(critic, fills, photos, MASK).sum().backward()
    assert all(layer.grad is None for layer in fills)
    assert all(weight.grad.abs().sum() > 0 for weight in critic.parameters() if weight.ndim > 1)
    critic.zero_grad()
    fooling(critic, fills, MASK).sum().backward()
    assert all(layer.grad.abs().sum() > 0 for layer in fills)
    assert all(weight.grad is None for weight in critic.parameters())


def test_it_learns_to_tell_and_a_fill_learns_what_it_is_told_by():
    critic, fills, photos = some_critic()
    optimizer = torch.optim.AdamW(critic.parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        telling(critic, fills, photos, MASK).sum().backward()
        optimizer.step()
    assert telling(critic, fills, photos, MASK).max() < 0.1  # who knows nothing has 2
    assert (fooling(critic, fills, MASK) > 0.9).all()
    assert (fooling(critic, photos, MASK) < -0.9).all()
    before = [layer.detach().clone() for layer in fills]
    fooling(critic, fills, MASK).sum().backward()
    for layer, was, photo in zip(fills, before, photos, strict=True):
        step = was - 0.1 * layer.grad / layer.grad.norm(dim=1, keepdim=True)
        assert (step - photo).norm() < (was - photo).norm()


def test_what_the_mask_does_not_cover_is_not_judged():
    critic, fills, photos = some_critic()
    mask = torch.zeros(4, 1, 32, 32)
    mask[..., :16] = 1
    mixed = [torch.cat([a[..., :2], b[..., 2:]], -1) for a, b in zip(fills, photos, strict=True)]
    assert torch.equal(fooling(critic, mixed, mask), fooling(critic, fills, mask))
    assert not torch.equal(fooling(critic, mixed, MASK), fooling(critic, fills, MASK))


@pytest.mark.parametrize("realism", [0.0, 0.05])
def test_without_a_weight_there_is_no_critic(tmp_path, realism):
    photos, model, made = small_views(tmp_path, ViewOptions(1, 2, 1))
    options = RefineOptions(samples=8, batches=1, mosaic=0, rollout=1, crop=(9, 9), realism=realism)
    parts = small_transformer(), model, made, photos, 1.0, some_distance()
    refine.refine(*parts, tmp_path, options, torch.device("cpu"))
    state = load_if_any(tmp_path / "refine.pt")
    assert state is not None
    known = [name for name in state["model"] if name.startswith("critic.")]
    assert bool(known) == bool(realism)
    if realism:
        torch.manual_seed(0)
        fresh = Critic(some_distance()).state_dict()
        assert all(not fresh[n[7:]].equal(state["model"][n]) for n in known if "weight" in n)
        assert all(np.isfinite(state["model"][name].numpy()).all() for name in known)
    other = replace(options, samples=16, realism=0.05 - realism)
    with pytest.raises(ValueError, match=r"refine\.pt has other parts .* name another folder"):
        refine.refine(*parts, tmp_path, other, torch.device("cpu"))
