"""The example workflows: as they are built, whole, and of nodes that this ComfyUI has."""

import json

import pytest
from workflows import FOLDER, NOTES, WORKFLOWS, inputs_of, is_widget, known_nodes, to_api


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_file_is_the_one_that_is_built(name):
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    built = json.loads(WORKFLOWS[name]().json())
    assert kept == built, "run python comfyui/tests/workflows.py"


def test_there_are_no_others():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_server_would_take_it(name):
    prompt = to_api(json.loads((FOLDER / f"{name}.json").read_text()))
    for number, node in prompt.items():
        kind, given = node["class_type"], node["inputs"]
        for field, (type_, options) in inputs_of(kind).items():
            if isinstance(given.get(field), list):
                source, output = given[field]
                sent = known_nodes()[prompt[source]["class_type"]].RETURN_TYPES[output]
                assert type_ in ("*", sent), (number, field)
            elif isinstance(type_, list) and not field.endswith(("_name", "_name1", "_name2")):
                assert given[field] in type_, (number, field)
            elif type_ in ("INT", "FLOAT"):
                assert options["min"] <= given[field] <= options["max"], (number, field)
        required = known_nodes()[kind].INPUT_TYPES().get("required", {})
        assert set(required) <= set(given), (number, kind)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_opens_with_a_note_and_a_picture_and_no_node_lies_on_another(name):
    nodes = json.loads((FOLDER / f"{name}.json").read_text())["nodes"]
    kinds = [node["type"] for node in nodes]
    assert {"HiLoModel", "HiLoComposite", "HiLoTokens", "HiLoExample", *NOTES} <= set(kinds)
    boxes = [(*node["pos"], *node["size"]) for node in nodes]
    for i, (x, y, w, h) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = x + w <= other[0] or other[0] + other[2] <= x
            assert apart or y + h <= other[1] or other[1] + other[3] <= y


def test_a_widget_is_told_from_a_link():
    assert is_widget(["a", "b"])
    assert is_widget("INT")
    assert not is_widget("MODEL")
