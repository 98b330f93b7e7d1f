"""Kinds of things: which picture gets which label, and what a label does to an edit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_mask, make_photo
from toys import small_transformer

from hilotoken.data.manifest import Entry
from hilotoken.edit import edit_photo
from hilotoken.model import LABELS, load_model
from hilotoken.photo import load_photo
from hilotoken.train import autoencoder, run
from hilotoken.train.autoencoder import new_autoencoder
from hilotoken.train.depth import start_from
from hilotoken.train.labels import HIDDEN, Labels, find_labels, one_hot
from hilotoken.train.latent_cache import (
    Batch,
    LatentCache,
    ViewOptions,
    encoder,
    group_crops,
    read_batch,
)
from hilotoken.train.transformer import predict

CPU = torch.device("cpu")
PHOTOS = 12


@pytest.fixture(scope="module", autouse=True)
def small_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "WIDTH", 8)
        yield


def entries(*labels: str) -> list[Entry]:
    return [Entry(Path(f"{i}.png"), "train", False, None, label) for i, label in enumerate(labels)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return new_autoencoder().requires_grad_(False)


@pytest.fixture(scope="module")
def labels(model) -> Labels:
    found = find_labels(entries(*("abc"[i % 3] for i in range(PHOTOS - 1)), ""), model, CPU)
    assert found is not None
    return found


def some_batch(group: int, tiles: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(group)
    latents = torch.randn(4, 8, 32 * tiles, 32 * tiles, generator=generator)
    mask = torch.zeros(1, 1, 256 * tiles, 256 * tiles)
    mask[..., 40:80, 50:99] = 1
    coarse = torch.randn(4, 8, 8 * tiles, 8 * tiles, generator=generator)
    groups = tuple(range(group, group + tiles**2))
    return Batch(latents, latents, coarse, mask, torch.zeros(256 * tiles**2), groups)


def test_one_hot():
    rows = one_hot([2, -1, 0])
    assert rows.shape == (3, LABELS)
    assert rows.nonzero().tolist() == [[0, 2], [2, 0]]
    assert (rows.sum(1) == torch.tensor([1, 0, 1])).all()


def test_names_are_sorted_and_every_photo_has_its_own(labels):
    assert labels.names == ("a", "b", "c")
    assert labels.of_P.tolist() == [i % 3 for i in range(PHOTOS - 1)] + [-1]


def test_no_labels_and_too_many(model):
    assert find_labels(entries("", ""), model, CPU) is None
    with pytest.raises(ValueError, match=f"33 different labels, .* room for {LABELS}"):
        find_labels(entries(*(str(i) for i in range(33))), model, CPU)


@pytest.mark.parametrize("group", range(6))
def test_a_picture_gets_the_label_of_the_photo_it_is_from(labels, group):
    photos = [np.full((256, 256, 3), i, np.uint8) for i in range(PHOTOS)]
    from_P = group_crops(photos, group, 4)[:, 0, 0, 0]
    given = torch.zeros(4, LABELS)
    for seed in range(30):
        now = labels.give(some_batch(group), 1.0, np.random.default_rng(seed)).label_BL
        assert now is not None
        assert ((now == 0) | (given == 0) | (now == given)).all()
        given = torch.maximum(given, now)
    assert torch.equal(given, one_hot(labels.of_P[from_P]))


def test_some_batches_hide_all_and_some_pictures_go_without(labels):
    rng, found = np.random.default_rng(0), {True: [], False: []}
    full = replace(labels, of_P=np.zeros(PHOTOS, int))
    for group in range(400):
        batch = full.give(some_batch(group), 1.0, rng)
        assert batch.label_BL is not None
        found[bool(batch.mask.all())].append(float(batch.label_BL.sum(1).mean()))
    assert len(found[True]) / 400 == pytest.approx(HIDDEN, abs=0.08)
    assert np.mean(found[True]) == pytest.approx(0.9, abs=0.05)
    assert np.mean(found[False]) == pytest.approx(0.5, abs=0.05)


def test_hidden_is_what_the_model_sees_of_a_photo_under_a_mask_of_all_of_it(labels, model):
    hidden, scale = labels._hide(some_batch(0), 2.0), 2.0
    blank = torch.from_numpy(encoder(model, CPU)(torch.zeros(1, 3, 256, 256))).float()
    assert torch.equal(hidden.masked, scale * blank.expand(4, -1, -1, -1))
    assert hidden.coarse_masked.shape == (4, 8, 8, 8)
    assert hidden.mask.shape == (1, 1, 256, 256)
    assert (hidden.mask == 1).all()
    assert torch.equal(hidden.latents, some_batch(0).latents)


def test_a_mosaic_is_left_alone(labels):
    batch = some_batch(0, tiles=2)
    assert labels.give(batch, 1.0, np.random.default_rng(0)) is batch


def test_the_transformer_hears_the_label():
    torch.manual_seed(0)
    transformer = small_transformer()
    batch, x, sigma = some_batch(0), torch.randn(4, 256, 32), torch.full((4,), 0.5)

    def velocity(label_BL):
        given = replace(batch, label_BL=label_BL)
        return predict(transformer, given, None, x, sigma, None, CPU)

    with torch.no_grad():
        none = velocity(None)
        assert torch.equal(none, velocity(one_hot([-1] * 4)))
        moved = (velocity(one_hot([-1, 3, -1, 5])) - none).abs().amax((1, 2)) > 0
    assert moved.tolist() == [False, True, False, True]


def test_a_run_keeps_its_labels(labels, tmp_path):
    run._keep_labels(tmp_path, None)
    run._keep_labels(tmp_path, labels)
    run._keep_labels(tmp_path, labels)
    for other in (None, replace(labels, names=("a", "b", "d"))):
        with pytest.raises(ValueError, match=r"begun with the labels \['a', 'b', 'c'\], .*got"):
            run._keep_labels(tmp_path, other)


def test_a_start_keeps_its_labels(labels, tmp_path):
    """A start without any may learn them; one that knows some must not lose or renumber them."""
    for i, other in enumerate((None, replace(labels, names=("b", "a", "c")))):
        with pytest.raises(ValueError, match=r"begun with the labels \['a', 'b', 'c'\], .*start"):
            run._keep_labels(tmp_path / str(i), other, labels.names)
    for known in ((), labels.names):
        run._keep_labels(tmp_path, labels, known)


def test_what_a_start_knows_is_read_from_its_pipeline(folder, model):
    depth = tuple(model.config["num_decoder_blocks"])
    assert start_from(folder, 2, depth).labels == ("a", "b", "c")


# A model with labels


@pytest.fixture(scope="module")
def folder(model, labels, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    parts = new_autoencoder(), small_transformer()
    return run.export(*parts, 1.0, tmp_path_factory.mktemp("pipeline"), labels)


@pytest.fixture
def pipe(folder):
    pipe = load_model(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_names_travel_with_the_weights(pipe, folder):
    assert pipe.labels == ("a", "b", "c")
    assert "labels.json" in json.loads((folder / "checksums.json").read_text())


def test_a_prompt_of_a_label_is_its_column(pipe):
    plain, b = pipe.prompt(2), pipe.prompt(2, "b")
    assert torch.equal(plain["prompt_embeds"], b["prompt_embeds"])
    assert not plain["pooled_prompt_embeds"].any()
    assert torch.equal(b["pooled_prompt_embeds"], one_hot([1, 1]))
    with pytest.raises(ValueError, match=r"unknown label 'd': choose from \['a', 'b', 'c'\]"):
        pipe.prompt(label="d")


def test_a_model_without_labels_says_so(model, tmp_path):
    pipe = load_model(run.export(new_autoencoder(), small_transformer(), 1.0, tmp_path))
    assert pipe.labels == ()
    with pytest.raises(ValueError, match="unknown label 'a': this model has none"):
        pipe.prompt(label="a")


def test_an_edit_with_a_label_is_another(pipe, tmp_path):
    make_photo(130, 140).save(tmp_path / "photo.png")
    photo = load_photo(tmp_path / "photo.png")
    mask = np.asarray(make_mask(130, 140, box=(30, 40, 90, 100))) > 0
    edits = [
        edit_photo(pipe, photo, mask, size=128, steps=1, label=label).photo.pixels
        for label in ("", "a", "b", "a")
    ]
    assert np.array_equal(edits[1], edits[3])
    for one, other in ((0, 1), (1, 2)):
        moved = (edits[one] != edits[other]).any(-1)
        assert moved.any()
        assert not moved[~mask].any()


def test_labels_where_they_have_no_place(pipe, any_pipe, tmp_path):
    make_photo(130, 140).save(tmp_path / "photo.png")
    photo, mask = load_photo(tmp_path / "photo.png"), np.ones((130, 140), bool)
    with pytest.raises(ValueError, match="a prompt or a label, not both: 'a cat', 'a'"):
        edit_photo(pipe, photo, mask, prompt="a cat", label="a")
    with pytest.raises(ValueError, match="knows no labels: give a prompt, not 'cat'"):
        edit_photo(any_pipe, photo, mask, label="cat")


def test_views_and_labels_are_of_the_same_photographs(tmp_path, model, labels):
    """A batch that was read is labelled by the group that it was read from."""
    made = LatentCache.open(tmp_path, ViewOptions(groups=5, photos=2, masks=1), 8)
    made.done[0] = 5
    batch = read_batch(made, np.random.default_rng(3), 1, 1.0)
    everything = replace(labels, of_P=np.arange(PHOTOS))
    photos = [np.full((256, 256, 3), i, np.uint8) for i in range(PHOTOS)]
    expected = group_crops(photos, batch.groups[0], 2)[:, 0, 0, 0]
    seen = set()
    for seed in range(40):
        now = everything.give(batch, 1.0, np.random.default_rng(seed)).label_BL
        assert now is not None
        seen |= {tuple(pair) for pair in now.nonzero().tolist()}
    assert seen == {(i, int(photo)) for i, photo in enumerate(expected)}
