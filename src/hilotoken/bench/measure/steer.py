"""A pipeline steered to a known edit: real code on random weights, and a result that is known.

B batch, N tokens of the target, C channels of x_t.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...hooks import StepClock, hooked

Estimate = Callable[[float], Tensor]  # the clean tokens [1, N, C] that the model sees at a sigma


@contextmanager
def steered(pipe: Any, estimate: Estimate, source_BNC: Tensor) -> Iterator[None]:
    """The transformer's velocity leads to `estimate(sigma)`, for the tokens that run.

    Those that were dropped follow the photo, source_BNC, and are left to it.
    """
    whole: dict[str, Any] = {}
    clock = StepClock(pipe.scheduler)

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        whole.update(kwargs)

    def lead(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        velocity = output[0]
        sigma, (N, C) = clock.sigma, source_BNC.shape[1:]
        x_BNC = whole["hidden_states"][:, :N, :C]
        led_BNC = (x_BNC - estimate(sigma).to(x_BNC)) / sigma
        left_BNC = ((x_BNC.float() - source_BNC.float()) / sigma).to(velocity.dtype)
        dropped_BN1 = (velocity[:, :N] == left_BNC).all(-1, keepdim=True)
        velocity = velocity.clone()
        velocity[:, :N] = led_BNC.where(~dropped_BN1, left_BNC).to(velocity.dtype)
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    with hooked(pipe.transformer, note), hooked(pipe.transformer, None, lead, first=True):
        yield
