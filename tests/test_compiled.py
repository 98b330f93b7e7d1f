"""Compiled transformers: what is put around them and inside counts, or is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import Edit, of_classes, plain_steps, steps, worst
from families import BY_NAME
from family import Lack
from tiny import make_mask, widen
from torch._dynamo.testing import CompileCounterWithBackend

from hilotoken import HiLo, Refresh, compress
from hilotoken.methods import ToDo, ToMe

# Of three steps the last reuses what the second kept; the first is but noise to an Inpaint.
KEEPS = HiLo(dilate=1, detail=0.05, bucket=8, refresh=(0, 1))
BOXES = ((70, 90, 150, 160), (0, 0, 90, 200), (9, 9, 12, 12))


def every_option(edit: Edit) -> HiLo:
    """Coarse tokens where they are placed and weighed inside the attention, if they are at all."""
    aligned = Lack.ALIGNED not in edit.family.lacks
    return HiLo(positions="aligned" if aligned else "native", weights=True, dilate=1, bucket=8)


def by_blocks(pipe: Any, backend: Any = "eager") -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=backend)


def around(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def in_place(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")


def compiled(edit: Edit, how: Callable[..., None], *given: Any) -> Any:
    """A pipeline of the edit's family, compiled anew."""
    torch._dynamo.reset()
    pipe = edit.family.make(torch.float32)
    how(pipe, *given)
    return pipe


def call(edit: Edit, **changes: Any) -> dict[str, Any]:
    """A short one. Without guidance, whose second prompt of another length is another graph."""
    guided = "guidance_scale" in edit.arguments()
    return {"num_inference_steps": 2, **({"guidance_scale": 1.0} if guided else {}), **changes}


def check_plain(edit: Edit, pipe: Any) -> None:
    given = call(edit)
    found = plain_steps(edit.family, pipe, edit.arguments(**given))[-1].end
    expected = edit.run(**given).steps[-1].end
    assert worst(found, expected) <= 1e-5 * max(1, expected.abs().max())


def check(
    edit: Edit, pipe: Any, method: Any, box: tuple[int, ...] = BOXES[0], **changes: Any
) -> int:
    """The compiled run is the eager one, and its record says the same; how many tokens ran."""
    given = call(edit, mask_image=make_mask(box=box), **changes)  # type: ignore[arg-type]
    fast, eager = compress(pipe, method), edit.run(method, **given)
    found = steps(edit.family, pipe, fast, edit.arguments(**given))[-1].end
    expected = eager.steps[-1].end
    assert worst(found, expected) <= 1e-5 * max(1, expected.abs().max())
    for said in ("tokens_run", "mean_tokens_run", "sequence", "refreshed", "counts"):
        assert getattr(fast.last_run, said) == getattr(eager.record, said)
    assert fast.last_run.dit_seconds > 0
    return fast.last_run.tokens_run


# One of each way that places, masks and text come to a block. FLUX.1 Kontext, FLUX.2, LongCat-Image
# and Fibo give `img_ids` as FLUX.1 and Chroma do; JoyImage's second pipeline has the transformer of
# the first.
BLOCKS = [
    "FluxInpaintPipeline", "ChromaInpaintPipeline", "QwenImageEditInpaintPipeline",
    "StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline", "BriaFibo2Pipeline",
    "JoyImageEditPipeline", "Kandinsky5I2IPipeline",
]  # fmt: skip


@of_classes(BLOCKS, Lack.COMPILED)
def test_compiled_blocks_need_no_graph_for_another_mask(edit):
    counter = CompileCounterWithBackend("eager")
    pipe = compiled(edit, by_blocks, counter)
    lengths, graphs = set(), []
    for box in BOXES:
        lengths.add(check(edit, pipe, every_option(edit), box))
        graphs.append(counter.frame_count)
    assert len(lengths) == 3
    assert graphs[0] == graphs[-1] > 0


def deep(edit: Edit, layers: dict[str, int]) -> Any:
    """A pipeline with more blocks."""
    pipe = edit.family.make(torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = type(pipe.transformer)
        pipe.transformer = kind.from_config(dict(pipe.transformer.config) | layers).eval()
        widen(pipe.transformer)
    return pipe


@pytest.mark.parametrize(
    ("name", "layers", "text_rests"),
    [
        ("FluxFillPipeline", {"num_single_layers": 4}, True),
        ("QwenImageEditInpaintPipeline", {"num_layers": 4}, False),
    ],
)
def test_compiled_blocks_are_a_graph_for_refresh_and_a_graph_for_reuse(name, layers, text_rests):
    """Whatever preset, mask and step, and however many blocks."""
    edit, counter, graphs = Edit(BY_NAME[name]), CompileCounterWithBackend("eager"), {}
    torch._dynamo.reset()
    pipe, eager = deep(edit, layers), deep(edit, layers)
    by_blocks(pipe, counter)
    filled = HiLo(coarse=0, refresh=Refresh(3, bucket=16))
    for method in ("dense", "paper", "faithful", "balanced", filled, "fast"):
        for box in BOXES[:2]:
            given = call(edit, mask_image=make_mask(box=box), num_inference_steps=4)
            given["output_type"] = "latent"
            found, expected = (
                compress(p, method)(**edit.arguments(**given)).images for p in (pipe, eager)
            )
            assert worst(found, expected) <= 1e-5 * max(1, expected.abs().max())
        graphs[method] = counter.frame_count
    dense = graphs["dense"]
    assert dense > 0
    assert graphs["paper"] == dense  # fewer tokens, and nothing is inside
    assert graphs["faithful"] <= 3 * dense
    assert graphs["faithful"] == graphs["balanced"] == graphs[filled]
    # Blocks without text, where it rests, are other blocks.
    assert graphs["fast"] - graphs["faithful"] in ((range(1, dense + 1)) if text_rests else (0,))


# What wraps it, and whether a plain call comes before; of transformers whose places are `img_ids`
# and whose text comes first, one.
WHOLE = {
    "FluxInpaintPipeline": (around, True),
    "QwenImageEditInpaintPipeline": (in_place, True),
    "StableDiffusion3InpaintPipeline": (around, False),
    "ZImageInpaintPipeline": (in_place, False),
}


@of_classes(list(WHOLE))
def test_a_transformer_compiled_whole_runs_every_option_before_and_after_a_plain_call(edit):
    how, plain_first = WHOLE[edit.family.name]
    pipe = compiled(edit, how)
    if plain_first:
        check_plain(edit, pipe)
    check(edit, pipe, every_option(edit))
    if not plain_first:
        check_plain(edit, pipe)


@of_classes(["FluxInpaintPipeline"])
def test_a_transformer_compiled_whole_may_keep_keys(edit):
    check(edit, compiled(edit, around), KEEPS, num_inference_steps=3)


@pytest.mark.parametrize("how", [around, in_place, by_blocks])
@pytest.mark.parametrize("options", [{"method": ToMe()}, {"inside": ToDo()}], ids=["ToMe", "ToDo"])
@of_classes(["FluxInpaintPipeline", "QwenImageEditInpaintPipeline"])
def test_what_acts_inside_blocks_is_refused_by_name(edit, options, how):
    fast = compress(compiled(edit, how), **options)
    with pytest.raises(ValueError, match=r"To.. acts inside blocks .* use it without compiling"):
        fast(**edit.arguments())
    assert fast.last_run is None
