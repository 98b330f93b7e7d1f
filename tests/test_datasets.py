"""Public layouts, on made-up trees of the same shape: the right photo with the right mask."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_photo
from toys import saved_model

from hilotoken import load_model
from hilotoken.bench.measure.fill import bench_fill
from hilotoken.bench.measure.matched import Costs
from hilotoken.data.cases import cases_of
from hilotoken.data.datasets import LAYOUTS, load_layout
from hilotoken.data.samples import Outline, Runs, Sample
from hilotoken.metrics.lpips import LPIPS

HEIGHT, WIDTH, BOX = 40, 60, (10, 5, 30, 25)  # left, top, right, bottom


def _photo(path, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    make_photo(*size).save(path)


def _mask(path, box=BOX, value=255, mode="L", size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(_boxed(box, size) * np.uint8(value))
    if mode == "P":
        picture = picture.convert("P")
        picture.putdata((_boxed(box, size) * value).flatten())
        picture.putpalette([0, 0, 0, 10, 0, 0, 20, 20, 0] + [0] * 759)
    picture.save(path)


def _boxed(box=BOX, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 1
    return mask


def _runs(mask, first):
    """Row by row: where each run of ones begins, and its length."""
    edges = np.diff(np.concatenate([[0], mask.flatten(), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return np.stack([starts + first, ends - starts], 1).flatten().tolist()


def _plain(root):
    _photo(root / "images" / "a.jpg")
    _photo(root / "images" / "no_mask.jpg")
    _mask(root / "masks" / "a.png")
    _photo(root / "truth" / "a.png")
    return {"a": root / "truth" / "a.png"}


def _rord(root):
    for video, frame in (("v1", "0001"), ("v1", "0002"), ("v2", "0007")):
        for kind in ("img", "gt"):
            _photo(root / "val" / kind / video / f"{frame}.jpg")
        _mask(
            root / "val" / "mask" / video / (f"{frame}_M.png" if video == "v1" else f"{frame}.png")
        )
    return {f"{key}": root / "val" / "gt" / f"{key}.jpg" for key in ("v1/0001", "v2/0007")}


def _editbench(root):
    for kind in ("natural", "generated"):
        _photo(root / f"references_{kind}" / "red_cup.png")
        _mask(root / f"masks_{kind}" / "red_cup.png")
    (root / "annotations_natural.csv").write_text("aos,prompt_full\nred_cup,a cup\n")
    return {"natural/red_cup": None, "generated/red_cup": None}


SQUARE, MIDDLE = (512, 512), (100, 50, 300, 250)


def _brushbench(root):
    _photo(root / "images" / "000.jpg", SQUARE)
    runs = _runs(_boxed(MIDDLE, SQUARE), 1)
    entry = {"image": "images/000.jpg", "caption": "", "inpainting_mask": runs}
    (root / "mapping_file.json").write_text(json.dumps({"000": entry}))
    return {"000": None}


def _piebench(root):
    entries = {}
    for name, runs in (
        ("000000000000", _runs(_boxed(MIDDLE, SQUARE), 0)),
        ("000000000001", " ".join(map(str, _runs(_boxed(MIDDLE, SQUARE), 0)))),
        ("000000000002", [0, 512 * 512]),  # the whole picture
    ):
        path = f"0_random_140/{name}.jpg"
        _photo(root / "annotation_images" / path, SQUARE)
        entries[name] = {"image_path": path, "editing_type_id": "0", "mask": runs}
    (root / "mapping_file.json").write_text(json.dumps(entries))
    return {"000000000000": None, "000000000001": None}


def _davis(root):
    for frame, value in (("00000", 0), ("00001", 2), ("00002", 1)):  # the first is empty
        _photo(root / "DAVIS" / "JPEGImages" / "480p" / "bear" / f"{frame}.jpg")
        _mask(
            root / "DAVIS" / "Annotations" / "480p" / "bear" / f"{frame}.png", value=value, mode="P"
        )
    return {"bear/00001": None}


def _coco(root):
    left, top, right, bottom = BOX
    corners = [left, top, right - 1, top, right - 1, bottom - 1, left, bottom - 1]
    shapes = [
        {"image_id": 7, "area": 4, "segmentation": [[0, 0, 2, 0, 2, 2]], "iscrowd": 0},
        {"image_id": 7, "area": 400, "segmentation": [corners], "iscrowd": 0},
        {"image_id": 7, "area": 999, "segmentation": {"counts": [0, 2400]}, "iscrowd": 1},
        {"image_id": 8, "area": 400, "segmentation": [corners], "iscrowd": 0},  # no photo of it
    ]
    images = [
        {"id": i, "file_name": f"00000000000{i}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in (7, 8, 9)
    ]
    for i in (7, 9):
        _photo(root / "val2017" / f"00000000000{i}.jpg")
    (root / "annotations").mkdir()
    for name in ("train2017", "val2017"):
        listed = json.dumps({"images": images, "annotations": shapes})
        (root / "annotations" / f"instances_{name}.json").write_text(listed)
    return {"000000000007": None}


TREES = {
    "plain": _plain,
    "rord": _rord,
    "editbench": _editbench,
    "brushbench": _brushbench,
    "piebench": _piebench,
    "davis": _davis,
    "coco": _coco,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_its_photographs_with_their_masks(name, tmp_path):
    wanted = TREES[name](tmp_path)
    samples = load_layout(name, tmp_path)
    assert {sample.name: sample.truth for sample in samples} == wanted
    assert [sample.name for sample in samples] == sorted(wanted)
    for sample in samples:
        assert sample.photo.is_file()
        square = name in ("brushbench", "piebench")
        mask = _boxed(MIDDLE, SQUARE) if square else _boxed()
        if name == "piebench":
            mask[[0, -1]] = mask[:, [0, -1]] = 1
        assert (sample.read_mask() == mask).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_laid_out_otherwise_is_refused_and_told_what_was_looked_for(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"looked for \S") as error:
        load_layout(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_layout(name, tmp_path / "nowhere")


def test_what_a_list_names_must_be_there(tmp_path):
    _brushbench(tmp_path)
    (tmp_path / "images" / "000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000\.jpg is missing"):
        load_layout("brushbench", tmp_path)
    (tmp_path / "mapping_file.json").write_text("{half")
    with pytest.raises(ValueError, match="no JSON"):
        load_layout("brushbench", tmp_path)
    with pytest.raises(ValueError, match="unknown layout"):
        load_layout("places", tmp_path)


def test_photos_beside_their_masks_are_a_plain_folder_too(tmp_path):
    _photo(tmp_path / "a.jpg")
    _mask(tmp_path / "a_mask.png")
    (sample,) = load_layout("plain", tmp_path)
    assert (sample.name, sample.photo.name, sample.mask.name) == ("a", "a.jpg", "a_mask.png")


def test_a_mask_of_another_size_is_fitted_and_of_another_shape_refused(tmp_path):
    photo = tmp_path / "a.png"
    _photo(photo)
    _mask(tmp_path / "m.png", tuple(2 * x for x in BOX), size=(2 * HEIGHT, 2 * WIDTH))
    assert (Sample("a", photo, tmp_path / "m.png").read_mask() == _boxed()).all()
    with pytest.raises(ValueError, match="do not belong together"):
        Sample("a", photo, Runs([0, 5], size=(64, 64))).read_mask()
    with pytest.raises(ValueError, match="is empty"):
        Sample("a", photo, Runs([], size=(HEIGHT, WIDTH))).read_mask()


def test_runs_and_counts_there_and_back():
    rng = np.random.default_rng(0)
    mask = (rng.random((17, 23)) < 0.5).astype(np.uint8)
    for first in (0, 1):
        assert (Runs(_runs(mask, first), first, size=mask.shape).read() == mask).all()
    columns = mask.T.flatten()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns]))).tolist()
    counts = np.diff([0, *edges, columns.size]).tolist()
    assert (Outline({"counts": counts}, mask.shape).read() == mask).all()
    packed = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(mask.view(np.uint8)))
    for counts in (packed["counts"], packed["counts"].decode()):
        assert (Outline({"counts": counts}, mask.shape).read() == mask).all()


def test_packed_counts_without_their_library_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"hilotoken\[bench\]"):
        Outline({"counts": "abc"}, (4, 4)).read()


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png"])
def test_a_list_names_files_inside_its_folder(tmp_path, name):
    entry = {"image": name, "inpainting_mask": "1 2"}
    (tmp_path / "mapping_file.json").write_text(json.dumps({"one": entry}))
    with pytest.raises(ValueError, match="is no file inside"):
        load_layout("brushbench", tmp_path)


@pytest.mark.parametrize("entries", [{"one": {}}, [1], {"one": 3}])
def test_a_list_of_something_else_is_named(tmp_path, entries):
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=f"the list in {tmp_path} lacks"):
        load_layout("brushbench", tmp_path)


def test_a_square_holds_the_mask_and_fits_its_photo(tmp_path):
    box = (400, 20, 440, 60)  # left, top, right, bottom, far from the middle
    photo = np.zeros((100, 500, 3), np.uint8)
    photo[20:60, 400:440] = (250, 0, 0)
    Image.fromarray(photo).save(tmp_path / "a.png")
    _mask(tmp_path / "a_mask.png", box, size=(100, 500))
    (sample,) = load_layout("plain", tmp_path)
    cut, truth, mask = sample.square(50)
    assert cut.shape == truth.shape == (50, 50, 3)
    assert mask.sum() == 20 * 20
    assert (cut[mask].mean(0) > (200, -1, -1)).all()
    assert (cut == truth).all()
    _mask(tmp_path / "a_mask.png", (9, 9, 10, 10), size=(100, 500))
    with pytest.raises(ValueError, match="lost at 16 pixels"):
        sample.square(16)


def test_fills_of_a_data_set_have_a_row_a_method_and_its_own_truth(tmp_path):
    _photo(tmp_path / "images" / "a.png", (128, 128))
    _mask(tmp_path / "masks" / "a.png", (20, 20, 80, 90), size=(128, 128))
    Image.new("RGB", (128, 128)).save(tmp_path / "black.png")
    torch.manual_seed(0)
    pipe, perceptual = load_model(saved_model()), LPIPS().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    rows, costs = {}, Costs(pipe, 1)
    for truth in (None, tmp_path / "black.png"):
        (sample,) = load_layout("plain", tmp_path)
        sample = Sample(sample.name, sample.photo, sample.mask, truth)
        rows[truth] = [
            row
            for case in cases_of(sample, 128)
            for row, _ in bench_fill(pipe, case, {"dense": "dense"}, perceptual, costs)
        ]
        assert [row.method for row in rows[truth]] == ["telea", "navier-stokes", "dense"]
        assert {row.mask_class for row in rows[truth]} == {"large"}  # 25.6 %
    hidden, removed = (each[-1] for each in rows.values())
    assert hidden.lpips_dense == removed.lpips_dense == 0
    assert hidden.psnr != removed.psnr
