"""Every script and notebook of `examples` runs, on real pipelines at tiny size."""

import inspect
import runpy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from families import BY_NAME
from PIL import Image
from tiny import inside, make_mask, make_photo
from toys import saved_model

import hilotoken

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.py"))
BY_PIPELINE = {
    "fill": "FluxFillPipeline",
    "kontext": "FluxKontextPipeline",
    "qwen_edit": "QwenImageEditPipeline",
    "sd3_inpaint": "StableDiffusion3InpaintPipeline",
}


def main(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture
def files(tmp_path):
    """A photo, its mask, another, and where the result goes."""
    names = ("photo.png", "mask.png", "other.png")
    pictures = (make_photo(), make_mask(), make_mask(box=(0, 0, 40, 40)))
    for name, picture in zip(names, pictures, strict=True):
        picture.save(tmp_path / name)
    return [*(tmp_path / name for name in names), tmp_path / "out"]


def speaking(pipe: Any, given: dict[str, Any]) -> Any:
    """The pipeline with embeddings in the place of its text encoders, which tiny ones have not."""
    encode = pipe.encode_prompt
    takes = inspect.signature(type(pipe).encode_prompt).parameters

    def encoded(*args: Any, **kwargs: Any) -> Any:
        words = kwargs.get("prompt", args[0] if args else None)
        prefix = "negative_" if words == " " else ""
        made = {
            name: given.get(prefix + name, given[name])
            for name in takes
            if "embeds" in name and name in given and kwargs.get(name) is None
        }
        return encode(*args, **kwargs | made)

    pipe.encode_prompt = encoded
    pipe.enable_model_cpu_offload = lambda: None
    return pipe


@pytest.mark.parametrize("script", BY_PIPELINE)
def test_a_script_of_one_pipeline(script, files, monkeypatch, capsys):
    photo, mask, _, out = files
    family = BY_NAME[BY_PIPELINE[script]]
    pipe = speaking(family.make(), family.arguments())
    cls = getattr(diffusers, family.name)
    monkeypatch.setattr(cls, "from_pretrained", lambda *names, **options: pipe)
    result = out.with_suffix(".png")
    run = main(script)
    given = {"photo": photo, "mask": mask, "prompt": "a cup", "output": result, "steps": 2}
    run(**{name: given[name] for name in inspect.signature(run).parameters})
    said = capsys.readouterr().out
    assert ("of 512 tokens" if script == "kontext" else "tokens") in said  # its reference too
    edited = Image.open(result).convert("RGB")
    before, white = (
        np.asarray(x.resize(edited.size, Image.Resampling.NEAREST))
        for x in (make_photo(), make_mask())
    )
    changed = (np.asarray(edited) != before).any(-1)
    assert changed[white >= 128].any()
    if edited.size == make_photo().size:
        assert not changed[~inside(make_mask())].any()


def test_the_session_script(files, monkeypatch):
    photo, mask, other, out = files
    monkeypatch.setattr(hilotoken, "load_model", small_model)
    main("session")(photo, mask, other, out, size=128, steps=2)
    made = {path.name: np.asarray(Image.open(path)) for path in out.iterdir()}
    assert sorted(made) == ["both.png", *(f"variation-{i}.png" for i in (1, 2, 3))]
    assert (made["variation-1.png"] != made["variation-2.png"]).any()
    assert (made["both.png"] != made["variation-1.png"]).any()


def small_model() -> Any:
    from hilotoken.model import load_model

    return load_model(saved_model())


def test_the_client_script(files):
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    pytest.importorskip("openai", reason="needs the client library")
    from serving import served, thread_workers

    from hilotoken.serve.service import create_app

    photo, mask, _, out = files
    with served(create_app(thread_workers())) as address:
        main("client")(photo, mask, out, address, steps=2, size=128)
    changed = (np.asarray(Image.open(out)) != np.asarray(make_photo())).any(-1)
    assert changed.any()
    assert not changed[~inside(make_mask())].any()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(path, monkeypatch):
    jupytext = pytest.importorskip("jupytext", reason="needs the extra `docs`")
    monkeypatch.setattr(hilotoken, "load_model", small_model)
    monkeypatch.chdir(path.parent)
    found: dict[str, Any] = {}
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    for cell in cells:
        exec(cell.source.replace("512, 8", "128, 2"), found)
    assert len(cells) >= 3
    assert (found["SIZE"], found["STEPS"]) == (128, 2)
    if path.stem == "quick_start":
        assert found["unchanged"]
    if path.stem == "presets":
        assert found["distance"].keys() == {"dense", *hilotoken.PRESETS}
