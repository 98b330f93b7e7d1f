"""Within a step after the first, nothing here makes the host wait for the device or copy to it.

On a second device made of the CPU's memory, see `second_device.py`: every pipeline class, preset
and method inside blocks. What diffusers' own pipelines and models do is no stall of ours.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, CLASSES, arguments, calls_of, plain_arguments
from family import Lack
from second_device import FAR, Stall, moved, stalls, watching
from tiny import make_mask

from hilotoken import HiLo, Refresh, compress
from hilotoken.methods import PRESETS, Method
from hilotoken.methods.parse import method_from

INSIDE = [
    "tome", "tome weights=True reuse=2", "todo mode=average weights=True", "bigain_tm",
    "bigain_td alpha_end=0.1", "sdtm cached=0.9 protect=2 emphasis=2", "pooling kind=medoids",
    "pooling significance=attention", "hilo + tome", "hilo + todo",
]  # fmt: skip

WITH_BLOCKS = {
    "FluxInpaintPipeline": INSIDE,
    "QwenImageEditInpaintPipeline": INSIDE[:2],
    "StableDiffusion3InpaintPipeline": INSIDE[-2:],
}


@cache
def far(name: str) -> tuple[Any, Counter[Stall]]:
    """A pipeline on the second device, and its own stalls."""
    family = BY_NAME[name]
    pipe = moved(family.make(torch.float32))
    return pipe, stalls(pipe, pipe, plain_arguments(pipe, arguments(family)))


def of(name: str, method: Method | str) -> Counter[Stall]:
    """The stalls that a method adds."""
    pipe, own = far(name)
    return stalls(pipe, compress(pipe, method), arguments(BY_NAME[name])) - own


def every_option(name: str) -> HiLo:
    aligned = Lack.ALIGNED not in BY_NAME[name].lacks
    return HiLo(positions="aligned" if aligned else "native", weights=True, dilate=1)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index by flags"),
        (lambda x: x[[0, 1]], "copy"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.tolist(), "copy"),
        (lambda x: x + torch.arange(3).to(x.device), "copy"),
        (lambda x: torch.tensor([1.0, 2.0, 3.0], device=x.device) + x, "copy"),
        (lambda x: x.new_tensor([1.0]), "copy"),
        (lambda x: torch.tensor([x[0]]), "number"),
        (lambda x: x.repeat_interleave(x.long().abs()), "repeat_interleave"),
    ],
)
def test_the_second_device_sees_what_waits(act, why):
    with watching() as watch:
        x = torch.randn(3).to(FAR)
        watch.stalls.clear()
        act(x)
    assert why in {stall.why for stall in watch.stalls}


def test_the_second_device_sees_nothing_where_nothing_waits():
    with watching() as watch:
        x = torch.randn(3, 4, device=FAR)
        y = torch.where(x > 0, x, torch.zeros_like(x)).index_select(0, torch.arange(2, device=FAR))
        y[:, 0] += 1
        with pytest.raises(RuntimeError, match="same device"):
            y + torch.ones(4)
    assert not watch.stalls


def stalling(name: str, methods: Mapping[str, Method | str]) -> dict[str, Counter[Stall]]:
    found = {key: of(name, method) for key, method in methods.items()}
    return {key: counted for key, counted in found.items() if counted}


@pytest.mark.parametrize("name", CLASSES)
def test_no_preset_stalls(name):
    methods = {preset: preset for preset in PRESETS} | {"every option": every_option(name)}
    assert stalling(name, methods) == {}


@pytest.mark.parametrize(
    "name", ["FluxInpaintPipeline", "StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline"]
)
def test_photos_that_share_a_call_do_not_stall(name):
    """Under masks of one shape in two places: other plans, of one length."""
    family, (pipe, _) = BY_NAME[name], far(name)
    call = next(call for call in calls_of(family) if "two photos" in call)
    masks = [make_mask(box=box) for box in ((48, 64, 112, 144), (144, 96, 208, 176))]
    given = arguments(family, call=call) | {"mask_image": masks}
    own = stalls(pipe, pipe, plain_arguments(pipe, given))
    method = HiLo(dilate=1, detail=0.0, context="sampled", refresh=2, bucket=64)
    fast = compress(pipe, method)
    assert not stalls(pipe, fast, given) - own
    assert len(fast.last_run.plans) == 2


@pytest.mark.parametrize(("name", "texts"), WITH_BLOCKS.items())
def test_no_method_inside_blocks_stalls(name, texts):
    assert stalling(name, {text: method_from(*text.split()) for text in texts}) == {}


@pytest.mark.parametrize(
    ("method", "whys"),
    [
        # Whether the context has drifted is for the host to decide, once a step.
        (HiLo(refresh=Refresh("auto")), {"_local_scalar_dense"}),
        # Draws are the host's, so that every device draws the same.
        (method_from("tome", "random=True"), {"copy"}),
    ],
)
def test_what_cannot_be_free_of_it(method, whys):
    assert {stall.why for stall in of("FluxInpaintPipeline", method)} == whys
