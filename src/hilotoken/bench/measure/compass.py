"""What compression costs in one call of the transformer: cheap, paired, and free of the sampler.

A model of rectified flow answers v = noise - x0 at x_t = (1 - sigma) x0 + sigma noise. Dense and
compressed calls get the same x_t of a photograph whose hidden part is known, so that the ratio of
their errors in the mask says what the missing tokens took away, at far fewer photographs than the
finished pictures would need.

B batch, N tokens of the grid, C channels of x_t.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...adapters import family_of
from ...capture import captured
from ...compress import compress
from ...grid import touch
from ...methods import Dense, Method


@dataclass
class _Seen:
    """Of every call of the transformer: x_t as it went in, velocity as it came out, [B, N, C]."""

    calls: list[dict[str, Any]]
    velocities: list[Tensor]


class Compass:
    """One photograph under one mask, with the velocities that its dense model gives.

    The pipeline is run with its own arguments, but x_t is set anew before each step, so that no
    call sees what an earlier one did.
    """

    def __init__(self, pipe: Any, arguments: dict[str, Any], seed: int, calls: int = 4) -> None:
        """`calls` noise levels are those of the pipeline's own schedule of as many steps."""
        self.pipe, self.seed, self.calls = pipe, seed, calls
        self.arguments = arguments | {"num_inference_steps": calls, "output_type": "latent"}
        with _watched(pipe.transformer) as seen, captured(pipe) as source:
            pipe(**self._fresh(), callback_on_step_end=_stop_after_first)
        given = family_of(pipe).make_source(source, arguments["mask_image"], seen.calls[0])
        if given is None:
            raise ValueError("a compass needs image and mask_image among its arguments")
        photo, mask_B1HW = given
        self.x0_BNC = photo.latents_BNC
        self.inside_N = touch(mask_B1HW, photo.grid).any(0).flatten()
        sigma = float(pipe.scheduler.sigmas[0])
        x_BNC = seen.calls[0]["hidden_states"][..., : self.x0_BNC.shape[-1]]
        self.noise_BNC = (x_BNC - (1 - sigma) * self.x0_BNC) / sigma

    @cached_property
    def dense(self) -> list[float]:
        return self.errors(Dense())

    def errors(self, method: Method) -> list[float]:
        """The mean squared error of the velocity in the mask, at each noise level."""
        return self.errors_by_picture(method).mean(1).tolist()

    def errors_by_picture(self, method: Method) -> Tensor:
        """The same of each picture of the batch, [calls, B].

        Raises:
            ValueError: the transformer is not called once a step.
        """
        with _watched(self.pipe.transformer) as seen:
            compress(self.pipe, method)(**self._fresh(), callback_on_step_end=self._set)
        if len(seen.velocities) != self.calls:
            raise ValueError(
                f"{len(seen.velocities)} calls in {self.calls} steps: leave out guidance by a "
                "second prompt"
            )
        wanted_BNC = self.noise_BNC - self.x0_BNC
        return torch.stack(
            [
                (v_BNC - wanted_BNC)[:, self.inside_N].float().square().mean((1, 2))
                for v_BNC in seen.velocities
            ]
        )

    def ratio(self, method: Method) -> float:
        """The error over the dense one, a mean over the noise levels: 1 where nothing is lost."""
        pairs = zip(self.errors(method), self.dense, strict=True)
        return sum(mine / dense for mine, dense in pairs) / len(self.dense)

    def _fresh(self) -> dict[str, Any]:
        return self.arguments | {"generator": torch.Generator().manual_seed(self.seed)}

    def _set(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        sigma = float(pipe.scheduler.sigmas[step + 1])
        return {"latents": (1 - sigma) * self.x0_BNC + sigma * self.noise_BNC}


def _stop_after_first(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = True  # how diffusers' pipelines are stopped from a callback
    return given


@contextmanager
def _watched(transformer: Any) -> Iterator[_Seen]:
    """Whole sequences, as the pipeline gives and gets them: hooks of `compress` lie inside."""
    seen = _Seen([], [])

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not seen.calls:
            seen.calls.append(kwargs)

    def after(module: Any, args: Any, output: Any) -> None:
        seen.velocities.append(output[0] if isinstance(output, tuple) else output.sample)

    handles = [
        transformer.register_forward_pre_hook(before, with_kwargs=True),
        transformer.register_forward_hook(after),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
