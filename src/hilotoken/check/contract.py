"""What compression promises, held against one pipeline: in its own weights, dtype and backend.

Velocities are compared as the scheduler is given them, in one step of one edit. `apart` is the root
mean square of a difference over that of what it is taken from.

B batch, N tokens of the grid, T image tokens of a call, K tokens that run, S keys, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..adapters import family_of
from ..arguments import MASKS, PHOTOS, first_of, takes_mask, with_plain_masks
from ..attach import attached
from ..attention import rerouted
from ..bench.measure.speed import graphs
from ..compress import compress
from ..grid import touch
from ..hooks import any_compiled, shadowed
from ..method import Method
from ..methods import Dense, HiLo
from ..plan import TokenPlan, native_plan

# How far apart two ways to compute the same may be: rounding, through all the blocks of a model.
WITHIN = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
KEPT = 0.25  # of the tokens that are not edited

Arguments = Callable[[int], dict[str, Any]]  # of `compress(pipe, ...)`, for so many steps; anew


@dataclass(frozen=True)
class Promise:
    """A property, whether it held, and what was found; `held` is None where it was not tried."""

    name: str
    held: bool | None
    found: str


def contract(
    pipe: Any, arguments: Arguments, fewest: int, methods: Sequence[Method | str]
) -> Iterator[Promise]:
    """Hold a pipeline to what compression promises, by a few edits of `fewest` steps.

    Args:
        arguments: of an edit
        fewest: steps of which one is run
        methods: that shall compile nothing anew from mask to mask, where the pipeline is compiled
    """
    bound = WITHIN.get(pipe.transformer.dtype, WITHIN[torch.bfloat16])
    given = lambda: arguments(fewest)  # noqa: E731
    dense = _plain(pipe, given())
    before = marks(pipe)  # what a pipeline's own first call sets is there
    whole = _by(pipe, HiLo(detail=1.0, coarse=0), given())
    yield _near("keeping every token equals dense", whole, dense, bound)
    yield _near("the order of tokens does not matter", *_permuted(pipe, given(), dense), bound)
    yield _masked(pipe, given, dense, bound)
    yield _outside(pipe, given())
    yield _compiled(pipe, arguments, fewest, methods)
    again, left = _plain(pipe, given()), _changed(before, marks(pipe))
    apart = _apart(again, dense)
    found = f"left behind: {', '.join(left[:3])}" if left else "nothing is left on it"
    found += ", and dense repeats " + ("to the bit" if not apart else f"to {apart:.1e}")
    yield Promise("the pipeline is untouched afterwards", not left and apart <= bound, found)


@dataclass(frozen=True, eq=False)
class _Kept(Method):
    """Run the edited tokens and others at random; or all of them, mixed up."""

    share: float = KEPT
    mixed: bool = False

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        generator = torch.Generator().manual_seed(0)
        edit_N = touch(mask_B1HW, grid).any(0).flatten().cpu()
        if self.mixed:
            return native_plan(grid, torch.randperm(len(edit_N), generator=generator), edit_N)
        kept_N = edit_N | (torch.rand(len(edit_N), generator=generator) < self.share)
        return native_plan(grid, kept_N.nonzero().flatten(), edit_N)


def _velocity(pipe: Any, run: Callable[[], Any]) -> Tensor:
    """What the scheduler is given at the last step, as tokens [B, N, C]."""
    seen: list[Tensor] = []

    def step(original: Any, velocity: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(velocity.detach().float())
        return original(velocity, *args, **kwargs)

    with torch.random.fork_rng(), shadowed(pipe.scheduler, "step", step):
        torch.manual_seed(0)  # by which JoyImage Edit samples what it encodes
        run()
    velocity = seen[-1]
    return velocity if velocity.ndim == 3 else family_of(pipe).pack(velocity)


def _plain(pipe: Any, given: dict[str, Any]) -> Tensor:
    """By the pipeline itself."""
    own = given if takes_mask(pipe) else {k: v for k, v in given.items() if k != "mask_image"}
    return _velocity(pipe, lambda: pipe(**own, output_type="latent"))


def _by(pipe: Any, method: Method, given: dict[str, Any]) -> Tensor:
    return _velocity(pipe, lambda: compress(pipe, method)(**given, output_type="latent"))


def _apart(one: Tensor, other: Tensor) -> float:
    scale = other.square().mean().sqrt().clamp_min(1e-12)
    return float((one - other).square().mean().sqrt() / scale)


def _near(name: str, one: Tensor, other: Tensor, bound: float) -> Promise:
    apart = _apart(one, other)
    found = f"{apart:.1e} apart, {bound:.0e} allowed" if apart else "equal to the bit"
    return Promise(name, apart <= bound, found)


def _permuted(pipe: Any, given: dict[str, Any], dense: Tensor) -> tuple[Tensor, Tensor]:
    return _by(pipe, _Kept(mixed=True), given), dense


def _masked(pipe: Any, given: Callable[[], dict[str, Any]], dense: Tensor, bound: float) -> Promise:
    """Dropped tokens against the whole sequence in which nobody sees their keys."""
    name = "dropping tokens equals masking their keys"
    if any_compiled(pipe.transformer):
        return Promise(name, None, "not tried: masks cannot be put into compiled code")
    arguments = given()
    mask_image = first_of(arguments, MASKS)
    own = arguments if takes_mask(pipe) else _without(arguments, "mask_image")
    own = with_plain_masks(pipe, (), own)[1]
    with attached(pipe, _Kept(), mask_image) as run:
        short = _velocity(pipe, lambda: pipe(**own, output_type="latent"))
    call = run.first.short
    assert call is not None
    seen_T = torch.ones(call.whole_length, dtype=torch.bool, device=call.plan.keep_K.device)
    for span in call.spans:
        if span.short:
            seen_T[span.start : span.stop] = False
            seen_T[span.start + call.plan.keep_K] = True
    try:
        hidden = rerouted(pipe.transformer, _hidden(seen_T, run.family), run.family.attentions())
        with ExitStack() as stack:
            for stand_in in (*run.family.apart(), hidden):
                stack.enter_context(stand_in)
            masked = _plain(pipe, given())
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return Promise(name, None, f"not tried: this attention backend takes no mask ({error})")
    keep_K = call.plan.keep_K
    short, masked, dense = (x.index_select(1, keep_K) for x in (short, masked, dense))
    promise, away = _near(name, short, masked, bound), _apart(dense, masked)
    if promise.held and away < 3 * _apart(short, masked):
        return Promise(name, None, f"cannot be told: dropping changes no more than {away:.1e} here")
    return Promise(name, promise.held, f"{promise.found}; dense is {away:.1e} off")


def _without(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


def _hidden(seen_T: Tensor, family: Any) -> Callable[..., Tensor]:
    """Attention in which the image tokens that are not seen are no keys."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kwargs: Any
    ) -> Tensor:
        extra = key.shape[1] - len(seen_T)
        if extra < 0:  # text alone
            return original(query, key, value, **kwargs)
        others = seen_T.new_ones(extra)
        parts = (seen_T, others) if family.image_first else (others, seen_T)
        mask = torch.cat(parts).expand(1, 1, query.shape[1], -1)
        given = kwargs.get("attn_mask")
        if given is not None and given.dtype == torch.bool:
            mask = mask & given
        elif given is not None:
            mask = given.masked_fill(~mask, -torch.inf)
        return original(query, key, value, **kwargs | {"attn_mask": mask})

    return attend


def _outside(pipe: Any, given: dict[str, Any]) -> Promise:
    """Pixels outside the mask are the photo's own."""
    output = compress(pipe, HiLo())(**given)
    photo, mask = first_of(given, PHOTOS), first_of(given, MASKS)
    photo = photo[0] if isinstance(photo, list) else photo
    name, after = "pixels outside the mask stay as they are", output[0][0].convert("RGB")
    if after.size != photo.size:
        return Promise(name, None, f"not tried: it works at {after.size}, not at {photo.size}")
    changed = (np.asarray(after) != np.asarray(photo.convert("RGB"))).any(-1)
    outside = changed & (np.asarray(mask.convert("L")) < 128)
    found = f"{outside.sum()} pixels changed outside, {(changed & ~outside).sum()} inside"
    return Promise(name, not outside.any(), found)


def _compiled(
    pipe: Any, arguments: Arguments, fewest: int, methods: Sequence[Method | str]
) -> Promise:
    """No graph is compiled for a third mask, once two went by."""
    name = "no graph is compiled anew for another mask"
    if not any_compiled(pipe.transformer):
        return Promise(name, None, "not tried: the transformer is not compiled")
    before, steps = 0, fewest + 2  # a step that refreshes, and two that reuse
    for share in (0.2, 0.5, 0.35):
        before = graphs()
        for method in [Dense(), *methods]:
            given = arguments(steps)
            names = [key for key in MASKS if key in given]
            given |= {names[0]: _corner(given[names[0]].size, share)}
            compress(pipe, method)(**given, output_type="latent")
    new = graphs() - before
    return Promise(name, new == 0, f"{new} new graphs at the third mask")


def _corner(size: tuple[int, int], share: float) -> Image.Image:
    """A mask of that share of each side."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, int(share * size[0]), int(share * size[1])))
    return mask


def marks(pipe: Any) -> dict[str, Any]:
    """What a call could leave on a pipeline: attributes, hooks, processors, versions of weights.

    Weights are not read: PyTorch counts how often each was written to.
    """
    found: dict[str, Any] = {"pipeline": _public(pipe)}
    for part, model in pipe.components.items():
        found[part] = id(model)
        if isinstance(model, nn.Module):
            for name, module in model.named_modules():
                found[f"{part}.{name}"] = _marks(module)
    return found


def _public(pipe: Any) -> list[str]:
    return sorted(name for name in vars(pipe) if not name.startswith("_"))


def _marks(module: nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    hooks = [len(value) for name, value in own.items() if name.endswith("_hooks")]
    weights = [_written(p) for p in own["_parameters"].values() if p is not None]
    shadows = sorted(name for name, value in own.items() if callable(value))
    return id(own.get("processor")), hooks, weights, shadows


def _written(weight: Tensor) -> tuple[int, int | None]:
    return id(weight), None if weight.is_inference() else weight._version


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))
