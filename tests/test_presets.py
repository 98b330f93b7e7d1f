"""Settings by name: what they cost at FLUX's size, and which of them a pipeline gets."""

import pytest
import torch
from contract import Edit
from families import BY_NAME
from tiny import arguments, latents, make_pipe

from benchmarks.context.flops import FLUX_FILL
from hilotoken import METHODS, PRESETS, HiLo, compress, plan_tokens
from hilotoken.methods import preset
from hilotoken.methods.presets import IN_NOISE_ALONE

STEPS, SIDE = 8, 64
SHARES = (0.064, 0.159, 0.354)
FEWER = {  # times fewer FLOPs than dense's under the three masks, at least
    "paper": (3.1, 2.4, 1.6),
    "faithful": (2.4, 2.0, 1.5),
    "balanced": (3.2, 2.45, 1.65),
    "fast": (6.0, 4.0, 2.3),
}
FEWER_IN_NOISE = {  # where the photo is in x_t alone
    "paper": (3.1, 2.4, 1.6),
    "faithful": (1.9, 1.7, 1.4),
    "balanced": (3.3, 2.5, 1.65),
    "fast": (6.0, 3.9, 2.15),
}


def flops(method: HiLo, share: float) -> float:
    """Of an edit under a square mask in the middle of a picture of noise."""
    side = round(SIDE * share**0.5)
    start = (SIDE - side) // 2
    touched_hw = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    touched_hw[start : start + side, start : start + side] = True
    score_N = torch.rand(SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    plan = method.select(score_N, touched_hw, (SIDE, SIDE))
    return FLUX_FILL.edit(plan, method, [1.0] * STEPS)


@pytest.mark.parametrize(
    ("named", "fewer"), [(PRESETS, FEWER), (IN_NOISE_ALONE, FEWER_IN_NOISE)], ids=["shown", "noise"]
)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_costs_what_its_name_promises(name, named, fewer):
    dense = STEPS * FLUX_FILL.call(SIDE * SIDE)
    found = [dense / flops(named[name], share) for share in SHARES]
    assert all(a >= b for a, b in zip(found, fewer[name], strict=True)), found


def test_a_name_is_a_preset_or_a_method():
    pipe = make_pipe()
    for name in PRESETS:
        assert compress(pipe, name).method == PRESETS[name]
    assert compress(pipe, "dense").method == METHODS["dense"]()
    with pytest.raises(ValueError, match=r"'quick'; choose from .*'fast'.*'hilo'"):
        compress(pipe, "quick")
    for wrong in (3, HiLo, [], b"", torch.rand(9, 9)):
        with pytest.raises(TypeError, match=r"got .*: give HiLo\(\)"):
            compress(pipe, wrong)


def test_without_a_name_it_is_the_balanced_one_that_fits_the_pipeline():
    for name in ("FluxFillPipeline", "FluxInpaintPipeline"):
        pipe = BY_NAME[name].make(torch.float32)
        assert compress(pipe).method == compress(pipe, "balanced").method != HiLo()


def test_a_plan_by_name_is_that_of_the_preset():
    photo, mask = torch.rand(1, 3, 256, 256), torch.zeros(1, 1, 256, 256)
    mask[..., 90:160, 70:150] = 1
    for name, method in (PRESETS | {"hilo": HiLo()}).items():
        plan, by_name = (plan_tokens(photo, mask, grid=(16, 16), method=m) for m in (method, name))
        assert torch.equal(plan.keep_K, by_name.keep_K)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "paper"])
def test_presets_differ_where_the_photo_is_in_the_noise_alone(name):
    shown, noised = (BY_NAME[f"{kind}Pipeline"] for kind in ("FluxFill", "FluxInpaint"))
    methods = [compress(family.make(torch.float32), name).method for family in (shown, noised)]
    assert methods[0] == PRESETS[name]
    assert methods[0] != methods[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_on_every_family(name):
    for family in BY_NAME.values():
        edit = Edit(family)
        end = compress(edit.pipe, name)(**edit.arguments(num_inference_steps=4))
        edit.check()
        assert torch.as_tensor(end[0][0] if isinstance(end[0], list) else end[0]).isfinite().all()


def test_text_rests_only_where_it_can():
    assert preset("fast").refresh.text
    assert not preset("fast", text_rests=False).refresh.text
    pipe = make_pipe()
    assert torch.isfinite(latents(compress(pipe, "fast"))).all()
    assert arguments()
