"""The site's token map plans as Python does: the same tokens, the same FLOPs."""

import base64
from pathlib import Path

import numpy as np
import pytest
from browsing import browser, need_browser
from PIL import Image

from benchmarks.context.flops import FLUX_FILL
from hilotoken import PRESETS, HiLo, plan_tokens
from hilotoken.checks import said

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "site" / "static" / "token-plan.js"
PHOTO = ROOT / "examples" / "canyon-wren.jpg"
SIZE, GRID = (512, 336), (21, 32)

DEFAULTS = {
    "dilate": 2, "detail": 0.1, "energy": None, "score": "laplacian", "context": "frequency",
    "cell": 2, "coarse": 4, "cells": "open", "bucket": 64,
}  # fmt: skip
CHANGES = [
    {},
    {"dilate": 0, "detail": 0.25, "coarse": 0, "bucket": 1},
    {"dilate": 5, "score": "sobel", "coarse": 8, "cells": "all"},
    {"score": "frequency", "coarse": 2, "cells": "clear", "bucket": 16},
    {"detail": None, "energy": 0.8, "score": "variance"},
    {"detail": None, "energy": 1.0, "coarse": 0},
    {"detail": 1.0, "coarse": 0},
]


@pytest.fixture(scope="module")
def window():
    need_browser()
    with browser() as driver:
        driver.get("about:blank")
        driver.execute_script(f"{SCRIPT.read_text()}; globalThis.TokenPlan = TokenPlan")
        rgba, mask = pictures()
        driver.execute_script(
            "const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));"
            "[globalThis.rgba, globalThis.masked] = [...arguments].map(bytes)",
            *(base64.b64encode(one.tobytes()).decode() for one in (rgba, mask)),
        )
        yield driver


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A photo with an opaque alpha, and a mask of zeros and ones."""
    photo, mask = (
        Image.open(path).convert(mode).resize(SIZE)
        for path, mode in ((PHOTO, "RGBA"), (PHOTO.with_name("canyon-wren_mask.png"), "L"))
    )
    return np.asarray(photo), (np.asarray(mask) >= 128).astype(np.uint8)


def python_plan(**options):
    options = {"coarse_cells" if name == "cells" else name: x for name, x in options.items()}
    if not options["coarse"]:
        del options["coarse_cells"]
    if options["context"] != "sampled":
        del options["cell"]
    rgba, mask = pictures()
    photo, white = Image.fromarray(rgba[..., :3]), Image.fromarray(mask * 255)
    return plan_tokens(photo, white, grid=GRID, method=HiLo(**options))


def page_plan(window, **options):
    return window.execute_script(
        f"return TokenPlan.plan(rgba, masked, {SIZE[0]}, {SIZE[1]}, arguments[0])", options
    )


@pytest.mark.parametrize("changes", CHANGES, ids=said)
def test_the_page_keeps_the_tokens_that_python_keeps(window, changes):
    options = DEFAULTS | changes
    plan, found = python_plan(**options), page_plan(window, **options)
    assert found["keep"] == plan.keep_K.tolist()
    assert found["cells"] == plan.cells_M.tolist()
    assert found["counts"] == plan.counts
    assert 0 < plan.counts["edit"] < plan.tokens_full  # else nothing was compared


@pytest.mark.parametrize("changes", [{"cell": 2}, {"cell": 5, "detail": 0.2}, {"coarse": 4}])
def test_sampled_context_has_as_many_tokens(window, changes):
    options = DEFAULTS | {"context": "sampled", "coarse": 0, "detail": 0.0, **changes}
    plan, found = python_plan(**options), page_plan(window, **options)
    assert found["counts"] == plan.counts


@pytest.mark.parametrize("name", PRESETS)
def test_flops_of_the_presets_are_those_of_the_benchmark(window, name):
    """Of FLUX.1 Fill, by the formula that a test holds against counted FLOPs."""
    method, steps = PRESETS[name], 8
    rgba, mask = pictures()
    photo, white = Image.fromarray(rgba[..., :3]), Image.fromarray(mask * 255)
    plan = plan_tokens(photo, white, grid=GRID, method=method)
    found = {"run": plan.tokens_run, "counts": plan.counts}
    refresh = method.refresh.at if method.refresh else 0
    text = bool(method.refresh and method.refresh.text)
    given = [found, steps, refresh, text, plan.weighted]
    counted = window.execute_script("return TokenPlan.flops(...arguments)", *given)
    sigmas = np.linspace(1, 0.1, steps).tolist()
    assert counted == pytest.approx(FLUX_FILL.edit(plan, method, sigmas), rel=1e-12)
