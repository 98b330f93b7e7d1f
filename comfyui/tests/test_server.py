"""A workflow of the examples through a headless server, as a page or a script asks for it."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from server import serving
from workflows import FOLDER, to_api

from comfyui import NODE_CLASS_MAPPINGS, example


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def prompt():
    return to_api(json.loads((FOLDER / "embedded.json").read_text()))


def node_of(prompt, kind):
    return next(number for number, node in prompt.items() if node["class_type"] == kind)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_nodes_are_listed_with_their_widgets(server):
    info = server.ask("/object_info")
    assert set(NODE_CLASS_MAPPINGS) <= set(info)
    assert info["HiLoModel"]["display_name"] == "HiLo"
    assert next(iter(info["HiLoModel"]["input"]["required"])) == "model"


def test_the_templates_are_listed(server):
    assert set(server.ask("/api/workflow_templates")["hilotoken"]) == {
        file.stem for file in FOLDER.glob("*.json")
    }


def test_the_example_runs_and_leaves_the_photo_outside_the_mask(server, prompt):
    """Bit for bit in the saved file; and it is not what the dense model makes."""
    photo, mask = (x[0].numpy() for x in example.load())
    photo = (photo * 255).round().astype(np.uint8)
    save = node_of(prompt, "SaveImage")
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    out = pixels(server.saved(entry, save))
    assert np.array_equal(out[mask < 0.5], photo[mask < 0.5])
    assert (out != photo)[mask >= 0.5].mean() > 0.5
    said = next(node["text"] for node in entry["outputs"].values() if "text" in node)
    assert "of 1024 tokens run" in said[0]
    assert "tokens run" in (server.base / "server.log").read_text()

    dense = copy.deepcopy(prompt)
    for node in dense.values():
        if node["inputs"].get("model") == [node_of(prompt, "HiLoModel"), 0]:
            node["inputs"]["model"] = [node_of(prompt, "HiLoEmbeddedModel"), 0]
    whole = pixels(server.saved(server.run(dense), save)).astype(float)
    error = np.square(whole - out)[mask >= 0.5].mean()
    assert 0 < error < 255**2 / 10**3  # nearer than 30 dB


def test_what_is_refused_is_said_of_the_node(server, prompt):
    wrong = copy.deepcopy(prompt)
    encode, hilo = (node_of(prompt, k) for k in ("InpaintModelConditioning", "HiLoModel"))
    wrong[encode]["inputs"]["mask"] = ["90", 0]
    wrong["90"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 512, "height": 512}}
    entry = server.run(wrong)
    errors = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
    assert "the mask is empty" in errors[0]["exception_message"]
    wrong = copy.deepcopy(prompt)
    wrong[hilo]["inputs"]["preset"] = "best"
    with pytest.raises(RuntimeError, match="best"):
        server.run(wrong)
