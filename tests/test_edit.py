"""The region of a photo that is edited, and the way back from it."""

from functools import wraps

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import saved_model

from hilotoken import Dense, HiLo
from hilotoken.edit import edit_photo, edit_variations
from hilotoken.model import load_model
from hilotoken.photo import Photo
from hilotoken.region import Region, choose_region, choose_regions

FEW = HiLo(dilate=0, detail=0.05, bucket=8)


@pytest.fixture(scope="module")
def model():
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo(height: int = 150, width: int = 170) -> Photo:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Photo(pixels, "RGB", "PNG")


def painted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """True in the boxes of top, bottom, left, right."""
    mask = np.zeros((height, width), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@st.composite
def masks(draw, most: int = 3000) -> np.ndarray:
    """A box or two, or single pixels, anywhere in a photo of any shape; corners are common."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))

    def side(limit: int) -> tuple[int, int]:
        ends = sorted(draw(st.tuples(*[st.sampled_from([0, limit]) | st.integers(0, limit)] * 2)))
        return (min(ends[0], limit - 1), max(ends[1], min(ends[0], limit - 1) + 1))

    boxes = [(*side(height), *side(width)) for _ in range(draw(st.integers(1, 2)))]
    return painted(height, width, *boxes)


SIZES = st.integers(128, 1100)


@given(masks(), SIZES)
@settings(max_examples=100, deadline=None)
def test_a_region_holds_the_mask_and_lies_in_the_photo(mask, size):
    region = choose_region(mask, size)
    outside = mask.copy()
    outside[region.rows, region.columns] = False
    assert not outside.any()
    assert 0 <= region.top < region.bottom <= mask.shape[0]
    assert 0 <= region.left < region.right <= mask.shape[1]


@given(masks(), SIZES, st.sampled_from([8, 16, 32]))
@settings(max_examples=100, deadline=None)
def test_the_working_size(mask, size, token):
    region = choose_region(mask, size, token=token)
    own = region.bottom - region.top, region.right - region.left
    working = region.height, region.width
    assert all(side >= token and side % token == 0 for side in working)
    assert region.grid == (working[0] // token, working[1] // token)
    longer = max(own)
    wanted = size if not size / 2 < longer < size else max(128, longer)
    assert abs(max(working) - min(wanted, max(128, 4 * longer))) <= token / 2
    scale = max(working) / longer
    for before, after in zip(own, working, strict=True):  # but for rounding
        assert after == token or abs(after - scale * before) <= token


@given(masks(), SIZES, st.sampled_from([0, 0.1, 0.5, 2]))
@settings(max_examples=100, deadline=None)
def test_a_region_has_context_and_is_no_smaller_than_it_need_be(mask, size, context):
    region = choose_region(mask, size, context)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    around = min(longer * (1 + 2 * context), max(mask.shape))
    wanted = max(around, size if around > size / 2 else size / 4)
    for start, end, painted_at, limit in (
        (region.top, region.bottom, rows, mask.shape[0]),
        (region.left, region.right, columns, mask.shape[1]),
    ):
        assert end - start == min(limit, np.ceil(wanted))
        off_centre = (start + end - 1) - (painted_at[0] + painted_at[-1])
        assert (
            abs(off_centre) <= 1 or (start == 0 < off_centre) or (end == limit and off_centre < 0)
        )


@pytest.mark.parametrize("corner", [(0, 1, 0, 1), (0, 1, 999, 1000), (799, 800, 0, 1)], ids=str)
def test_a_corner_is_edited_in_a_whole_region_and_enlarged(corner):
    region = choose_region(painted(800, 1000, corner), 512)
    assert (region.width, region.height) == (512, 512)
    assert (region.bottom - region.top, region.right - region.left) == (128, 128)
    assert (region.top, region.left) == ((0, 672)[corner[0] > 0], (0, 872)[corner[2] > 0])


def test_a_mask_that_is_not_small_is_worked_on_as_it_is():
    region = choose_region(painted(800, 1000, (300, 440, 300, 400)), 512)
    assert (region.width, region.height) == (512, 512)
    assert (region.bottom - region.top, region.right - region.left) == (512, 512)


@given(masks(), SIZES)
@settings(max_examples=100, deadline=None)
def test_regions_hold_the_whole_mask_and_do_not_overlap(mask, size):
    regions = choose_regions(mask, size)
    times = np.zeros(mask.shape, int)
    for region in regions:
        times[region.rows, region.columns] += 1
        assert mask[region.rows, region.columns].any()
    assert times.max() == 1
    assert times[mask].all()


FAR = painted(1000, 2000, (100, 160, 100, 160), (700, 780, 1800, 1880), (720, 760, 1700, 1740))


def test_far_masks_have_regions_of_their_own():
    """The two on the right share one; in one region for all each would be a seventh as large."""
    right, left = choose_regions(FAR, 256)
    whole = choose_region(FAR, 256)
    assert whole.width / (whole.right - whole.left) < 0.15
    assert left.width / (left.right - left.left) >= 1
    assert right.width / (right.right - right.left) > 0.7
    assert left.right < 300
    assert right.left > 1500


def test_masks_that_one_region_holds_unshrunk_are_edited_at_once():
    assert len(choose_regions(painted(900, 900, (10, 20, 10, 20), (200, 210, 200, 210)), 512)) == 1
    assert len(choose_regions(painted(900, 900, (10, 20, 10, 20), (800, 810, 800, 810)), 512)) == 2


def test_a_pattern_is_not_taken_apart():
    mask = np.zeros((2000, 2000), bool)
    mask[::200, ::200] = True
    assert len(choose_regions(mask, 128)) == 1


def test_far_masks_are_each_edited_and_all_else_stays(model):
    before = Photo(np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), np.uint8), "RGB", "")
    edit = edit_photo(model, before, FAR, FEW, size=256, steps=1)
    assert len(edit.parts) == 2
    changed = (edit.photo.pixels != before.pixels).any(-1)
    assert not changed[~FAR].any()
    assert changed[FAR].mean() > 0.5
    assert edit.sum("tokens_run") == sum(part.run.tokens_run for part in edit.parts)
    (alone,) = edit_photo(
        model, before, FAR & (np.arange(2000) < 500), FEW, size=256, steps=1
    ).parts
    assert np.array_equal(np.asarray(edit.parts[1].after), np.asarray(alone.after))


def test_photo_and_mask_may_be_pictures_or_files(model, tmp_path):
    mask, given = painted(150, 170, (60, 100, 40, 90)), {"size": 128, "steps": 1}
    edit = edit_photo(model, photo(), mask, FEW, **given)
    pictures = Image.fromarray(photo().pixels), Image.fromarray(mask)
    files = tmp_path / "photo.png", str(tmp_path / "mask.png")
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    for one in (pictures, files):
        assert np.array_equal(edit_photo(model, *one, FEW, **given).photo.pixels, edit.photo.pixels)


# A strip is enlarged in height, and made smaller in width.
STRIP = painted(6, 3000, (0, 1, 0, 1), (2, 3, 1501, 1502), (4, 5, 2222, 2223), (5, 6, 2999, 3000))


@given(masks(most=700), SIZES)
@example(STRIP, 128)
@example(STRIP.T, 200)
@settings(max_examples=100, deadline=None)
def test_no_masked_pixel_is_lost_on_the_way_down(mask, size):
    region = choose_region(mask, size)
    small = region.take_mask(mask)
    assert small.shape == (region.height, region.width)
    assert small.dtype == bool
    part = mask[region.rows, region.columns]
    scale = np.divide(small.shape, part.shape)
    rows, columns = ((np.argwhere(part) + 0.5) * scale).astype(int).T
    assert small[rows, columns].all()


def test_a_mask_grows_by_less_than_a_working_pixel():
    mask = painted(1000, 1000, (400, 600, 300, 700))
    small = Region(0, 0, 1000, 1000, 128, 128).take_mask(mask)
    rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (51, 76, 38, 89)
    assert small.sum() == 26 * 52


@pytest.mark.parametrize("method", [FEW, Dense()], ids=["HiLo", "dense"])
@pytest.mark.parametrize(
    "mask",
    [
        painted(150, 170, (60, 100, 40, 90)),
        painted(150, 170, (0, 1, 0, 1)),
        painted(150, 170, (0, 150, 0, 170)),
    ],
    ids=["box", "pixel", "all"],
)
def test_pixels_outside_the_mask_stay_bit_for_bit(model, mask, method):
    before = photo()
    edit = edit_photo(model, before, mask, method, size=128, steps=1, feather=3)
    assert np.array_equal(edit.photo.pixels[~mask], before.pixels[~mask])
    assert (edit.photo.pixels[mask] != before.pixels[mask]).any(-1).mean() > 0.5
    assert edit.before.size == edit.after.size == edit.mask.shape[::-1]
    assert edit.run.steps == 1
    assert edit.run.plan.grid == edit.region.grid
    assert np.array_equal(before.pixels, photo().pixels)


def test_the_region_is_edited_where_it_lies(model):
    """The pasted pixels are the pipeline's, at their own place."""
    mask = painted(400, 500, (300, 350, 380, 440))
    edit = edit_photo(model, photo(400, 500), mask, FEW, size=128, steps=1)
    assert (edit.region.width, edit.region.height) == (128, 128)
    r, after = edit.region, np.asarray(edit.after)
    assert np.array_equal(edit.photo.pixels[mask], after[mask[r.rows, r.columns]])
    assert np.array_equal(np.asarray(edit.before), photo(400, 500).pixels[r.rows, r.columns])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": painted(40, 30, (0, 1, 0, 1))}, r"mask is 30x40 .* but the photo 170x150"),
        ({"mask": painted(150, 170, (0, 1, 0, 1)).astype(int)}, r"make it bool"),
        ({"context": -1}, r"context must be 0 or more .* got -1"),
        ({"negative_prompt": "a dog"}, "takes no negative prompt"),
        ({"cfg": 4}, "no second kind of guidance"),
        ({"guidance": float("nan")}, "guidance must be 0 or more, got nan"),
        ({"strength": 0}, r"strength must lie in \(0, 1\], got 0"),
        ({"strength": 0.2, "steps": 4}, "run none: give 5 or more"),
        ({"references": [Image.new("RGB", (8, 8))]}, "takes no references"),
        ({"control": Image.new("RGB", (170, 150))}, "takes no control picture"),
        ({"control": Image.new("RGB", (8, 8))}, r"control picture is \(8, 8\)"),
        ({"label": "cat", "prompt": "a cat"}, "not both"),
        ({"mask": painted(150, 170)}, "nothing in it"),
        ({"size": 127}, r"128 .* got 127"),
        ({"steps": 0}, r"1 or more, got 0"),
        ({"feather": -1}, r"0 pixels or more, got -1"),
        ({"prompt": "a cat"}, "leave it out"),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else given,
)
def test_what_cannot_be_is_refused(model, changes, message):
    given = {"mask": painted(150, 170, (60, 100, 40, 90)), "size": 128, "steps": 1} | changes
    with pytest.raises(ValueError, match=message):
        edit_photo(model, photo(), method=FEW, **given)


def test_an_edit_tells_of_its_stages_and_steps_with_a_preview(model):
    stages, previews = [], []

    def told(stage):
        stages.append((stage.name, stage.region, stage.step, stage.steps))
        assert 0 <= stage.share <= 1
        if stage.name == "denoise":
            previews.append(stage.preview())

    mask = painted(150, 170, (40, 90, 50, 100))
    edited = edit_photo(model, photo(), mask, FEW, steps=2, size=128, progress=told)
    assert stages == [
        ("encode", 0, 0, 0), ("denoise", 0, 1, 2), ("denoise", 0, 2, 2), ("decode", 0, 2, 2),
        ("join", 0, 2, 2),
    ]  # fmt: skip
    assert [x.size for x in previews] == [(edited.before.width // 2, edited.before.height // 2)] * 2
    again = edit_photo(model, photo(), mask, FEW, steps=2, size=128)
    assert np.array_equal(edited.photo.pixels, again.photo.pixels)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_variations_are_the_edits_of_their_seeds(model, monkeypatch, together):
    """Of two regions, each is one call of the pipeline for the pictures that are made together."""
    mask = painted(400, 150, (10, 50, 50, 100), (350, 390, 50, 100))
    options = {"steps": 2, "size": 128}
    told, calls, original = [], [], type(model).__call__

    def counted(self, *args, **kwargs):
        calls.append(len(kwargs["image"]) if isinstance(kwargs["image"], list) else 1)
        return original(self, *args, **kwargs)

    def note(places, stage):
        told.append(places)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "__call__", wraps(original)(counted))
        made = list(
            edit_variations(
                model, photo(400, 150), mask, FEW, seeds=[3, 8, 4], together=together,
                progress=note, **options,
            )
        )  # fmt: skip
    groups = {1: [(0,), (1,), (2,)], 2: [(0, 1), (2,)], 3: [(0, 1, 2)]}[together]
    assert list(dict.fromkeys(told)) == groups
    assert calls == [len(group) for group in groups for _ in range(2)]
    for seed, edit in zip([3, 8, 4], made, strict=True):
        alone = edit_photo(model, photo(400, 150), mask, FEW, seed=seed, **options)
        apart = np.abs(edit.photo.pixels.astype(int) - alone.photo.pixels)
        assert apart.max() <= 1  # where rounding falls on the other side
        assert (apart > 0).mean() < 1e-3
        assert not apart[~mask].any()
        assert edit.run.tokens_run == alone.run.tokens_run
        assert len(edit.parts) == 2


@pytest.mark.parametrize("wrong", [{"feather": -1}, {"steps": 0}, {"mask": painted(9, 9)}])
def test_variations_that_cannot_be_are_refused_before_the_first_is_asked_for(model, wrong):
    given = {"photo": photo(), "mask": painted(150, 170, (40, 90, 50, 100))} | wrong
    with pytest.raises(ValueError, match=r"feather|steps|mask"):
        edit_variations(model, method=FEW, seeds=[1, 2], **given)


def test_an_edit_is_cancelled_between_steps_and_leaves_all_as_it_was(model):
    def told(stage):
        if stage.step == 1:
            raise KeyboardInterrupt

    before = vars(model.vae).keys() | set()
    mask = painted(150, 170, (40, 90, 50, 100))
    with pytest.raises(KeyboardInterrupt):
        edit_photo(model, photo(), mask, FEW, steps=3, size=128, progress=told)
    assert "step" not in vars(model.scheduler)
    assert vars(model.vae).keys() == before
