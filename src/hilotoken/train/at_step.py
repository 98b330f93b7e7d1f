"""What a transformer says at one step of its pipeline's own call, with gradients.

What goes into it is what goes in at an edit. On the way to the step it is not run: each step is
answered by the velocity that keeps x_t on the line between photo and noise.

B pictures, N grid tokens, K native tokens that run, S tokens of a call, C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import MASKS, first_of, takes_mask
from ..attach import Running, attached
from ..grid import touch
from ..hooks import Call, bind_call, hooked, shadowed
from ..lending import Opened
from ..method import Method


@dataclass(frozen=True, eq=False)
class AtStep:
    """What the transformer said at a step: the velocity of the native tokens that ran.

    keep_K:   which of the grid's they are
    inside_K: whether the mask touches them
    """

    velocity_BKC: Tensor
    keep_K: Tensor
    inside_K: Tensor
    sigma: float


@contextmanager
def at_step(pipe: Any, method: Method, given: Call, at: float, opened: Opened) -> Iterator[AtStep]:
    """Run the pipeline by a method up to one step, and there the transformer, with gradients.

    x_t is on the line from the photo to the noise that `given` draws. Context is computed at the
    last refresh up to there, without gradients. The method is at work for this context, so that
    activations may be computed again.

    Args:
        at: which step, as a share of all
        opened: where encoded photos and words are kept
    """
    mask_image = first_of(given, MASKS)
    own = given if takes_mask(pipe) else {k: v for k, v in given.items() if k not in MASKS}
    own = own | {"generator": _fresh(given.get("generator")), "output_type": "latent"}
    with attached(pipe, method, mask_image, opened=opened) as run:
        way = _Way(run, at, torch.is_grad_enabled())
        with (
            hooked(pipe.transformer, way.see, way.answer, first=True),
            shadowed(run.family.model, "forward", way.forward),
        ):
            try:
                pipe(**own)
            except _Reached as reached:
                found = reached.found
            else:
                raise ValueError("the pipeline ended before the step that was drawn")
        yield found


class _Reached(Exception):
    """Breaks off the pipeline's call, with what was found."""

    def __init__(self, found: AtStep) -> None:
        super().__init__()
        self.found = found


class _Way:
    """The steps of a pipeline's call up to the one that counts; only what that needs is run."""

    def __init__(self, run: Running, at: float, learns: bool) -> None:
        self.run, self.at, self.learns = run, at, learns
        self.call: Call = {}  # the one under way, whole

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        self.call = bind_call(module, args, kwargs)

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.run.first
        steps, step = len(run.clock.sigmas), run.clock.step
        wanted = min(int(self.at * steps), steps - 1)
        if step == wanted:
            with torch.set_grad_enabled(self.learns):
                raise _Reached(self._found(original(*args, **kwargs)[0]))
        if run.reuse and step == max(s for s in run.reuse.steps if s <= wanted):
            return original(*args, **kwargs)
        if run.short:
            run.short.ran = len(run.short.counts_S)  # as if they had
        return (self._truth(),)  # of which nothing is used: see `answer`

    def answer(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call, output: Any) -> Any:
        """Before the step that counts, whatever was said."""
        return None if output is None else (self._truth(),)

    def _truth(self) -> Tensor:
        """The velocity noise - x0 of the whole target."""
        run = self.run.first
        source, family = run.source, run.family
        N, C = source.latents_BNC.shape[1:]
        x_BNC = family.tokens(self.call)[:, :N, :C]
        clean_BNC = source.for_batch(len(x_BNC)).float()
        return ((x_BNC.float() - clean_BNC) / run.clock.sigma).to(x_BNC.dtype)

    def _found(self, velocity_BSC: Tensor) -> AtStep:
        run = self.run.first
        inside_N = touch(run.mask_B1HW, run.source.grid).any(0).flatten().to(velocity_BSC.device)
        keep_K = torch.arange(len(inside_N), device=velocity_BSC.device)
        if run.short:
            keep_K = run.short.plan.keep_K
        native_BKC = velocity_BSC[:, : len(keep_K)]
        return AtStep(native_BKC, keep_K, inside_N[keep_K], run.clock.sigma)


def _fresh(generator: Any) -> Any:
    """The same random numbers again: pipelines use up what they are given."""
    if isinstance(generator, list):
        return [_fresh(one) for one in generator]
    return generator.clone_state() if generator is not None else None
