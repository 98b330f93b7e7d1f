"""`hilo check`: the contract on a user's pipeline, what each preset costs there, and which to use."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from browsing import browser, need_browser
from complete import saved, without_torchvision
from PIL import Image
from tiny import make_photo
from toys import saved_model

import hilotoken
from hilotoken import HiLo, compress, load_model
from hilotoken.adapters.base import ShortCall
from hilotoken.check import check
from hilotoken.check.contract import contract, marks
from hilotoken.check.found import Checked
from hilotoken.check.measure import SAME, CheckRow
from hilotoken.check.subjects import cases, photos_in
from hilotoken.check.verdict import Budget, recommend, rivals, sentence, summaries, surely

PIPELINES = [
    *("FluxFillPipeline", "FluxInpaintPipeline", "FluxKontextPipeline", "QwenImageEditPipeline"),
    *("StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline", "Flux2KleinPipeline"),
    "FluxControlInpaintPipeline",
]
PRESETS = list(hilotoken.PRESETS)
METHODS = ["dense", *PRESETS, "edit only", "half the steps"]


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    without_torchvision(monkeypatch)


@cache
def loaded(name: str) -> Any:
    pipe = load_model(saved_model() if name == "toy" else saved(name), dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "noise <b>.png"
    make_photo(140, 150).save(file)
    return file


def quickly(pipe: Any, photo: Any, **given: Any) -> Checked:
    return check(pipe, photo, **{"quick": True, "steps": 2, "size": 128} | given)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_keeps_the_contract_and_is_measured(name, photo):
    checked = quickly(loaded(name), photo, prompt="a cat")
    tried = {one.name: one.held for one in checked.promises}
    assert len(tried) == 6
    assert all(tried[name] is True for name in tried if "compiled" not in name), checked.promises
    assert not checked.broken
    rows = {row.method: row for row in checked.rows}
    assert list(rows) + list(checked.refused) == METHODS or set(checked.refused) <= set(PRESETS)
    assert rows["dense"].psnr == SAME
    assert rows["dense"].speedups == [1.0]
    assert all(row.outside_equal for row in checked.rows)
    json.dumps(checked.as_dict(), allow_nan=False)
