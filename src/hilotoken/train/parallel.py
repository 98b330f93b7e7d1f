"""Several processes at one training, as `accelerate launch` starts them; alone, nothing here acts.

Each holds all weights and draws batches of its own. Gradients are averaged before every step, so
that the weights stay alike; the first process alone writes.
"""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn


def processes(device: torch.device) -> PartialState:
    """Who takes part, and which of them this is."""
    return PartialState(cpu=device.type == "cpu")


def own_device(device: torch.device) -> torch.device:
    """This process's own accelerator, where `device` names a kind and no one in particular."""
    return device if device.type == "cpu" or device.index is not None else processes(device).device


def average_gradients(model: nn.Module, count: int, state: PartialState) -> int:
    """Set the gradients to their mean over all processes; returns how many pictures they are of."""
    if state.num_processes == 1:
        return count
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    mean = _over_all(torch.cat([grad.flatten() for grad in grads]), "mean")
    for weight, grad, part in zip(
        weights, grads, mean.split([w.numel() for w in weights]), strict=True
    ):
        weight.grad = grad.copy_(part.view(grad.shape))  # in a layout of its own: channels last
    return int(_over_all(torch.tensor(count, device=mean.device), "sum"))


def _over_all(values: Tensor, how: str) -> Tensor:
    result: Any = reduce(values, how)
    return result
