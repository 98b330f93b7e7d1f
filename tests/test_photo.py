"""Photos go out as they came in, bit for bit, wherever the mask is black."""

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import photos
import pillow_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import chunk, exif_values, random
from PIL import Image

from hilotoken import photo as module
from hilotoken.photo import (
    Photo,
    PhotoError,
    check_output,
    is_lossless,
    load_photo,
    save_photo,
)
from hilotoken.photo.value import COLOURS

H, W = 19, 23
ICC = bytes(range(256)) * 300  # longer than 65535 bytes, to move TIFF's strip beyond a SHORT
PNG_TYPES = {"I;16": (0, 1), "RGB;16": (2, 3), "LA;16": (4, 2), "RGBA;16": (6, 4)}
OUTPUTS = [
    *((mode, ".png") for mode in COLOURS if "CMYK" not in mode),
    *((mode, ".tif") for mode in COLOURS if mode != "LA;16"),  # which Pillow does not open
    *((mode, ".webp") for mode in ("RGB", "RGBA")),
    *((mode, ".bmp") for mode in ("1", "L", "RGB")),
]


def make_exif(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    exif.get_ifd(34665).update({36867: "2020:01:02 03:04:05", 37386: 50.5, 37500: b"note\0\1"})
    exif.get_ifd(34853)[1] = "N"
    exif.get_ifd(34665)[40965] = {1: "R98"}  # the interoperability IFD inside it
    return exif.tobytes()


def png_16(samples: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    return photos.png(samples, colour_type, 16, extra)


def write_source(folder: Path, mode: str, exif: bytes | None, icc: bytes | None) -> Path:
    """A photo of this mode with noise in every channel, as PNG (CMYK: JPEG, in 16 bits TIFF)."""
    path = folder / {"CMYK": "source.jpg", "CMYK;16": "source.tif"}.get(mode, "source.png")
    if mode == "CMYK;16":
        save_photo(
            Photo(random(H, W, 4, high=65536), mode, "TIFF", icc=icc, exif=exif and exif[6:]), path
        )
        return path
    if mode in PNG_TYPES:
        colour_type, channels = PNG_TYPES[mode]
        extra = chunk(b"iCCP", b"p\0\0" + zlib.compress(icc)) if icc else b""
        extra += chunk(b"eXIf", exif[6:]) if exif else b""
        path.write_bytes(png_16(random(H, W, channels, high=65536), colour_type, extra))
        return path
    if mode in ("L", "1", "P"):
        image = Image.fromarray(random(H, W, high=200))
        if mode == "P":
            image.putpalette(random(200, 3, seed=5).tobytes())
        elif mode == "1":
            image = image.convert("1")
    else:
        image = Image.fromarray(random(H, W, len(mode)), mode=None if mode != "CMYK" else "CMYK")
    assert image.mode == mode
    image.save(path, icc_profile=icc, exif=exif or b"")
    return path


def raw(path: Path) -> np.ndarray:
    """A file's samples, read without the module under test; in TIFF as they lie in the file."""
    if path.suffix == ".tif":
        found = tifffile.imread(path)
        return found * np.uint8(255) if found.dtype == bool else found
    with Image.open(path) as image:
        if image.format != "PNG" or path.read_bytes()[24] < 16:
            return np.asarray(image) * np.uint8(255 if image.mode == "1" else 1)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    kind = path.read_bytes()[25]
    return found if kind == 0 else found[..., {2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}[kind]]


def exif_of(path: Path) -> dict[int, object]:
    with Image.open(path) as image:
        exif = image.getexif()
        found = {tag: exif[tag] for tag in (274, 271) if tag in exif}
        found |= {tag: dict(exif.get_ifd(tag)) for tag in (34665, 34853, 40965)}
        found[34665].pop(40965, None)  # where it lies in the file
        return found


def make_weight(seed: int = 0) -> np.ndarray:
    """Weights from 0 to 1 in a part of the picture, with holes."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((H, W), np.float32)
    weight[3:14, 5:20] = rng.random((11, 15)) * (rng.random((11, 15)) < 0.6)
    weight[6:9, 7:12] = 1
    return weight


@pytest.mark.parametrize(("mode", "suffix"), OUTPUTS)
def test_samples_outside_the_mask_survive(tmp_path: Path, mode: str, suffix: str) -> None:
    exif, icc = (None, None) if suffix == ".bmp" else (make_exif(), ICC)
    source = write_source(tmp_path, mode, exif, icc)
    photo, weight, out = load_photo(source), make_weight(), tmp_path / f"out{suffix}"
    save_photo(photo.with_edit(random(H, W, 3, seed=1), weight), out)
    before, after = raw(source), raw(out)
    assert photo.mode == mode
    assert before.shape == after.shape
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(before[weight == 0], after[weight == 0])
    assert (before[weight == 1] != after[weight == 1]).any()
    with Image.open(source) as old, Image.open(out) as new:
        assert old.size == new.size
        assert old.mode.rstrip("B") == new.mode.rstrip("B")  # TIFF keeps the byte order of its EXIF
        assert new.info.get("icc_profile") == icc
        if mode == "P":
            assert new.getpalette()[:600] == old.getpalette()
    assert exif is None or exif_of(out) == exif_of(source)
    if exif and suffix != ".tif":
        with Image.open(out) as new:
            new.load()
            assert new.info["exif"].removeprefix(b"Exif\0\0") == exif[6:]
    again = load_photo(out)
    np.testing.assert_array_equal(again.pixels[weight == 0], photo.pixels[weight == 0])
    assert again.mode == mode
    twice = out.with_name(f"twice{suffix}")
    save_photo(again, twice)
    np.testing.assert_array_equal(raw(twice), after)
    assert exif_of(twice) == exif_of(out)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiff_is_read_and_written(tmp_path: Path, channels: int) -> None:
    samples, weight = random(H, W, channels, high=65536), make_weight()
    cv2.imwrite(str(tmp_path / "in.tif"), samples)
    photo = load_photo(tmp_path / "in.tif")
    save_photo(photo.with_edit(random(H, W, 3), weight), tmp_path / "out.tif")
    after = cv2.imread(str(tmp_path / "out.tif"), cv2.IMREAD_UNCHANGED).reshape(samples.shape)
    np.testing.assert_array_equal(after[weight == 0], samples[weight == 0])
    assert (after[weight == 1] != samples[weight == 1]).any()


@pytest.mark.parametrize("mode", [mode for mode in COLOURS if mode != "P"])
def test_a_full_edit_is_taken_whole_and_alpha_stays(tmp_path: Path, mode: str) -> None:
    photo = load_photo(write_source(tmp_path, mode, None, None))
    rgb = random(H, W, 3, seed=1)
    edited = photo.with_edit(rgb, np.ones((H, W), np.float32))
    if COLOURS[mode] > 1:
        np.testing.assert_array_equal(np.asarray(edited.rgb()), rgb)
    else:
        luma = rgb @ np.array([0.299, 0.587, 0.114]) * (257 if "16" in mode else 1)
        want = np.where(luma >= 128, 255, 0) if mode == "1" else luma
        got = edited.pixels.reshape(H, W, -1)[..., 0]
        assert np.abs(got - want).max() < 0.51
    if "A" in mode:
        np.testing.assert_array_equal(edited.pixels[..., -1], photo.pixels[..., -1])


@pytest.mark.parametrize(("mode", "want"), [("RGB", 120), ("RGBA;16", 120 * 257), ("P", 120)])
def test_a_fifth_of_the_weight_is_a_fifth_of_the_way(mode: str, want: int) -> None:
    shape, wide = (1, 2, 4 if "A" in mode else 3), 257 if "16" in mode else 1
    pixels = np.full(shape if mode != "P" else (1, 2), 100 * wide, np.uint16 if wide > 1 else "u1")
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    photo = Photo(pixels, mode, "PNG", palette=grey if mode == "P" else None)
    edited = photo.with_edit(np.full((1, 2, 3), 200, np.uint8), np.array([[0.2, 0]], np.float32))
    assert (edited.pixels.reshape(1, 2, -1)[0, 0, :3] == want).all()
    np.testing.assert_array_equal(edited.pixels[0, 1], pixels[0, 1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_jpeg_is_edited_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = random(H, W, 3)
    source, out = tmp_path / "in.jpg", tmp_path / f"out{suffix}"
    Image.fromarray(stored).save(source, exif=make_exif(orientation))
    photo = load_photo(source)
    upright = cv2.imread(str(source))[..., ::-1]  # OpenCV applies the orientation
    assert photo.orientation == orientation
    assert np.asarray(photo.rgb()).shape == upright.shape
    assert np.abs(np.asarray(photo.rgb()).astype(int) - upright).mean() < 10
    weight = np.zeros(upright.shape[:2], np.float32)
    weight[:5, :4] = 1  # the top left corner a person sees
    save_photo(photo.with_edit(np.full_like(upright, 7), weight), out)
    before, after = raw(source), raw(out)
    touched = (after == 7).all(-1)
    assert touched.sum() == 20
    np.testing.assert_array_equal(before[~touched], after[~touched])
    assert exif_of(out) == exif_of(source)
    np.testing.assert_array_equal(np.asarray(load_photo(out).rgb())[:5, :4], 7)


@pytest.mark.parametrize("mode", ["I;16", "RGB;16", "LA;16", "RGBA;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_16_bit_files_keep_their_frame(tmp_path: Path, orientation: int, mode: str) -> None:
    source = write_source(tmp_path, mode, make_exif(orientation), None)
    photo = load_photo(source)
    save_photo(photo, tmp_path / "out.png")
    np.testing.assert_array_equal(raw(source), raw(tmp_path / "out.png"))
    if mode != "LA;16":
        save_photo(photo, tmp_path / "out.tif")
        again = load_photo(tmp_path / "out.tif")
        assert again.orientation == orientation
        np.testing.assert_array_equal(again.pixels, photo.pixels)


def test_a_tall_16_bit_png_survives(tmp_path: Path) -> None:
    samples = random(200, 3, 3, high=65536)
    save_photo(Photo(samples, "RGB;16", "PNG"), tmp_path / "out.png")
    np.testing.assert_array_equal(raw(tmp_path / "out.png"), samples)


def test_indices_past_the_palette_survive(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"PLTE", b"rgb"), chunk(b"IDAT", zlib.compress(b"\0\0\7"))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")
    (tmp_path / "in.png").write_bytes(data)
    save_photo(load_photo(tmp_path / "in.png"), tmp_path / "out.png")
    assert raw(tmp_path / "out.png").tolist() == [[0, 7]]


def test_no_resolution_is_made_up(tmp_path: Path) -> None:
    Image.fromarray(random(4, 4, 3)).save(tmp_path / "in.tif")
    save_photo(load_photo(tmp_path / "in.tif"), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.info == {}


def test_orientation_6_turns_right(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png", exif=make_exif(6))
    assert load_photo(tmp_path / "a.png").pixels.tolist() == [[0], [255]]


@pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 255, 0])])
def test_palette_transparency_stays(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(random(H, W, high=9))
    image.putpalette(random(9, 3).tobytes())
    image.save(tmp_path / "in.png", transparency=transparency)
    photo = load_photo(tmp_path / "in.png")
    palette = random(9, 3)
    edited = photo.with_edit(palette[photo.pixels[::-1]], np.ones((H, W), np.float32))
    save_photo(edited, tmp_path / "out.png")
    with Image.open(tmp_path / "in.png") as old, Image.open(tmp_path / "out.png") as new:
        assert (new.mode, new.getpalette()) == ("P", old.getpalette())
        before, after = (np.asarray(im.convert("RGBA")) for im in (old, new))
    np.testing.assert_array_equal(before[..., 3], after[..., 3])
    flipped_opaque = (before[..., 3] == 255) & (before[::-1, :, 3] == 255)
    np.testing.assert_array_equal(after[flipped_opaque], before[::-1][flipped_opaque])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16", "RGB;16"])
def test_a_key_colour_stays_where_it_was(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "in.png"
    if mode in PNG_TYPES:
        colour_type, channels = PNG_TYPES[mode]
        samples = random(H, W, channels, high=2**16) // 256 * 257
        extra = chunk(b"tRNS", samples[4, 4].astype(">u2").tobytes())
        path.write_bytes(png_16(samples, colour_type, extra))
        key = samples[4, 4]
    else:
        samples = random(H, W, 3) if mode == "RGB" else random(H, W)
        image = Image.fromarray(samples).convert(mode)
        samples = np.asarray(image) * np.uint8(255) if mode == "1" else samples
        key = samples[4, 4]
        image.save(
            path,
            transparency=tuple(map(int, key))
            if mode == "RGB"
            else int(key) // (255 if mode == "1" else 1),
        )
    photo = load_photo(path)
    rgb = np.broadcast_to((key >> 8 if "16" in mode else key).astype(np.uint8), (H, W, 3))
    edited = photo.with_edit(np.ascontiguousarray(rgb), np.ones((H, W), np.float32))
    held = [(p.pixels.reshape(H, W, -1) == key).all(-1) for p in (photo, edited)]
    np.testing.assert_array_equal(*held)
    save_photo(edited, tmp_path / "out.png")
    with Image.open(path) as old, Image.open(tmp_path / "out.png") as new:
        assert old.info["transparency"] == new.info["transparency"]


def test_the_key_of_a_narrow_grey_png_is_widened(tmp_path: Path) -> None:
    rows = zlib.compress(b"\0\x1b")  # 2-bit samples 0 1 2 3
    head = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"tRNS", b"\0\2"), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    (tmp_path / "in.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    photo = load_photo(tmp_path / "in.png")
    assert photo.pixels.tolist() == [[0, 85, 170, 255]]
    assert photo.transparency == 170


@pytest.mark.parametrize(("kind", "channels"), [(4, 2), (6, 4)])
def test_a_key_colour_beside_alpha_means_nothing(tmp_path: Path, kind: int, channels: int) -> None:
    data = photos.png(random(H, W, channels), kind, 8, chunk(b"tRNS", bytes(6)))
    (tmp_path / "in.png").write_bytes(data)
    assert load_photo(tmp_path / "in.png").transparency is None


def test_text_gamma_xmp_and_resolution_are_carried(tmp_path: Path) -> None:
    xmp = b"<x:xmpmeta/>"
    extra = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tEXt", b"Title\0Sea")
    extra += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    extra += chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))
    wide = png_16(random(H, W, 3, high=65536), 2, extra)
    eight = io.BytesIO()
    Image.fromarray(random(H, W, 3)).save(eight, "PNG")
    narrow = eight.getvalue()[:33] + extra + eight.getvalue()[33:]
    for data in (wide, narrow):
        (tmp_path / "in.png").write_bytes(data)
        save_photo(load_photo(tmp_path / "in.png"), tmp_path / "out.png")
        with Image.open(tmp_path / "in.png") as old, Image.open(tmp_path / "out.png") as new:
            assert old.info == new.info
            assert new.info["xmp"] == xmp
            assert new.info["gamma"] == 0.45455
    for suffix in (".tif", ".webp", ".jpg"):
        save_photo(load_photo(tmp_path / "in.png"), tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as new:
            assert new.info["xmp"] == xmp
            assert suffix == ".webp" or new.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_cmyk_jpeg_goes_to_tiff_and_jpeg(tmp_path: Path) -> None:
    Image.fromarray(random(H, W, 4), mode="CMYK").save(tmp_path / "in.jpg", icc_profile=ICC)
    photo = load_photo(tmp_path / "in.jpg")
    save_photo(photo, tmp_path / "out.tif")
    np.testing.assert_array_equal(raw(tmp_path / "in.jpg"), raw(tmp_path / "out.tif"))
    save_photo(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as new:
        assert (new.mode, new.info["icc_profile"]) == ("CMYK", ICC)


def test_colours_under_transparency_survive_webp(tmp_path: Path) -> None:
    samples = random(H, W, 4)
    samples[..., 3] = 0
    save_photo(Photo(samples, "RGBA", "PNG"), tmp_path / "out.webp")
    np.testing.assert_array_equal(raw(tmp_path / "out.webp"), samples)


def test_an_mpo_is_its_first_frame_and_a_single_gif_is_a_palette_photo(tmp_path: Path) -> None:
    first = Image.fromarray(random(H, W, 3))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[first.resize((5, 5))])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(load_photo(tmp_path / "a.jpg").pixels, raw(tmp_path / "a.jpg"))
    first.convert("P").save(tmp_path / "a.gif")
    photo = load_photo(tmp_path / "a.gif")
    save_photo(photo, tmp_path / "out.png")
    assert photo.mode == "P"
    np.testing.assert_array_equal(raw(tmp_path / "a.gif"), raw(tmp_path / "out.png"))


def test_one_pixel_and_a_lying_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    photo = load_photo(tmp_path / "a.jpg")
    edited = photo.with_edit(np.full((1, 1, 3), 9, np.uint8), np.ones((1, 1), np.float32))
    save_photo(edited, tmp_path / "out.png")
    assert (photo.format, raw(tmp_path / "out.png").tolist()) == ("PNG", [[[9, 9, 9]]])


# TIFF tag and the value that makes its layout one that is refused.
PATCHED = {"premultiplied": (338, 1), "lab": (262, 8), "squeezed": (259, 34712)}


def bad_file(folder: Path, case: str) -> Path:
    path = folder / f"{case}.png"
    image = Image.fromarray(random(64, 64, 3))
    if case == "directory":
        path.mkdir()
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_text("a photo")
    elif case in ("truncated_png", "truncated_jpeg", "truncated_tiff", "truncated_webp"):
        image.save(path, case.split("_")[1])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif case == "truncated_wide":
        data = png_16(random(64, 64, 3, high=65536), 2)
        path.write_bytes(data[: len(data) // 2])
    elif case == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path, "TIFF")
    elif case == "integer":
        Image.fromarray(np.zeros((4, 4), np.int32)).save(path, "TIFF")
    elif case == "animated":
        image.save(path, "GIF", save_all=True, append_images=[image.rotate(90)])
    elif case == "pages":
        image.save(path, "TIFF", save_all=True, append_images=[image])
    elif case in PATCHED:
        tag, value = PATCHED[case]
        save_photo(Photo(random(4, 4, 4), "RGBA", "PNG"), folder / "whole.tif")
        data = bytearray((folder / "whole.tif").read_bytes())
        struct.pack_into("<H", data, data.index(struct.pack("<HHI", tag, 3, 1)) + 8, value)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("missing", "No such file"),
        ("directory", "Is a directory: name an image file"),
        ("empty", "not a picture"),
        ("text", "not a picture"),
        ("truncated_png", "damaged or cut short"),
        ("truncated_jpeg", "damaged or cut short"),
        ("truncated_tiff", "damaged or cut short"),
        ("truncated_webp", "damaged or cut short"),
        ("truncated_wide", "damaged or cut short"),
        ("float", "samples of 32 bits, floating-point: convert it to 8 or 16"),
        ("integer", "samples of 32 bits, signed: convert it to 8 or 16"),
        ("animated", "2 frames"),
        ("pages", "2 frames"),
        ("premultiplied", "premultiplied alpha"),
        ("lab", "colours of kind CIELAB: convert it to RGB"),
        ("squeezed", "compressed by JPEG2000: save it with LZW or without"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, case: str, text: str) -> None:
    path = bad_file(tmp_path, case)
    with pytest.raises(PhotoError) as caught:
        load_photo(path)
    message = str(caught.value)
    assert text in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_more_than_100_megapixels_are_refused_undecoded(tmp_path: Path, side: int) -> None:
    head = struct.pack(">IIBBBBB", 10_000, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")
    (tmp_path / "a.png").write_bytes(data)
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(PhotoError, match="100 megapixels: crop or shrink"):
        load_photo(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters


def test_the_pixel_limit_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(module.value, "MAX_PIXELS", 100)
    assert load_photo(tmp_path / "a.png").size == (10, 10)
    monkeypatch.setattr(module.value, "MAX_PIXELS", 99)
    with pytest.raises(PhotoError, match="10x10 pixels"):
        load_photo(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("mode", "name", "text"),
    [
        ("RGBA", "out.jpg", "JPEG cannot hold mode RGBA: write .png or .tif or .tiff or .webp"),
        ("P", "out.jpg", "JPEG cannot hold mode P: write .png or .tif or .tiff"),
        ("CMYK", "out.png", "PNG cannot hold mode CMYK: write .tif or .tiff or .jpg or .jpeg"),
        ("RGB;16", "out.webp", "WEBP cannot hold mode RGB;16: write .png or .tif or .tiff"),
        ("CMYK;16", "out.png", "PNG cannot hold mode CMYK;16: write .tif or .tiff"),
        ("RGB", "out.gif", "suffix '.gif': use one of .png .tif .tiff .webp .bmp .jpg .jpeg"),
        ("RGB", "out", "no suffix: use one of .png"),
        ("RGB", "missing/out.png", "missing is not a directory: create it first"),
        ("RGB", "file/out.png", "file is not a directory"),
        ("RGB", "folder.png", "is a directory: name a file in it"),
    ],
)
def test_an_output_that_cannot_be_is_named(tmp_path: Path, mode: str, name: str, text: str) -> None:
    photo = load_photo(write_source(tmp_path, mode, None, None))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for function in (check_output, save_photo):
        with pytest.raises(PhotoError) as caught:
            function(photo, tmp_path / name)
        assert text in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("photo", "suffix", "text"),
    [
        (Photo(random(2, 2, 3), "RGB", "PNG", icc=ICC), ".bmp", "ICC profile"),
        (Photo(random(2, 2, 3), "RGB", "PNG", exif=b"x"), ".bmp", "EXIF"),
        (Photo(random(2, 2, 3), "RGB", "PNG", exif=bytes(70_000)), ".jpg", "EXIF data is too long"),
        (Photo(random(2, 2), "L", "PNG", transparency=3), ".tif", "transparent colour"),
        (Photo(random(1, 16384, 3), "RGB", "PNG"), ".webp", "16384 pixels"),
        (Photo(np.full((2, 2, 4), 255, np.uint8), "RGBA", "PNG"), ".webp", "opaque everywhere"),
    ],
)
def test_nothing_is_dropped_silently(tmp_path: Path, photo: Photo, suffix: str, text: str) -> None:
    with pytest.raises(PhotoError, match=text):
        check_output(photo, tmp_path / f"out{suffix}")
    check_output(photo, tmp_path / "out.png")


def test_only_jpeg_is_lossy() -> None:
    lossless = {suffix: is_lossless(f"a{suffix.upper()}") for suffix in module.FORMATS}
    assert [suffix for suffix, exact in lossless.items() if not exact] == [".jpg", ".jpeg"]
    with pytest.raises(PhotoError, match=r"'\.txt'"):
        is_lossless("a.txt")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_existing_output_survives_a_failing_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(photo: Photo, output: object, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise error

    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(module.write.png, "write", fail)
    expected = PhotoError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_photo(Photo(random(2, 2, 3), "RGB", "PNG"), tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_what_a_killed_write_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(photo: Photo, pixels: np.ndarray, file: io.BufferedWriter) -> None:
        if not isinstance(file, io.BytesIO):  # which only tries whether it could be written
            file.write(b"half")
            file.flush()
            os._exit(9)

    photo = Photo(random(2, 2, 3), "RGB", "PNG")
    child = os.fork()
    if not child:
        monkeypatch.setattr(module.write.png, "write", die)
        save_photo(photo, tmp_path / "out.png")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    save_photo(photo, tmp_path / "another.png")
    assert [path.name for path in tmp_path.iterdir()] == ["another.png"]


def test_what_another_write_is_at_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Photo(random(2, 2, 3), "RGB", "PNG")

    def write_both(photo: Photo, pixels: np.ndarray, file: io.BufferedWriter) -> None:
        monkeypatch.undo()
        save_photo(inner, tmp_path / "inner.png")
        module.png.write(photo, pixels, file)

    photo = Photo(random(3, 3, 3), "RGB", "PNG")
    check_output(photo, tmp_path / "outer.png")
    monkeypatch.setattr(module.write, "check_output", lambda photo, path: None)
    monkeypatch.setattr(module.write.png, "write", write_both)
    save_photo(photo, tmp_path / "outer.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner.png", "outer.png"]
    np.testing.assert_array_equal(raw(tmp_path / "outer.png"), photo.pixels)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loop.png", "Too many levels of symbolic links: name another file"),
        ("loop.png/out.png", "Too many levels of symbolic links: name another file"),
        ("x" * 300 + ".png", "File name too long: name another file"),
        ("pipe.png", "is not a regular file: name another"),
    ],
)
def test_an_output_that_is_no_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "pool.png")
    (tmp_path / "pool.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    photo = Photo(random(2, 2, 3), "RGB", "PNG")
    before = sorted(tmp_path.iterdir())
    for function in (check_output, save_photo):
        with pytest.raises(PhotoError, match=text):
            function(photo, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_to_nothing_becomes_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "new.png")
    save_photo(Photo(random(2, 2, 3), "RGB", "PNG"), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "new.png").is_file()


@pytest.mark.parametrize("name", ["pipe", "/dev/null", "loop"])
def test_a_photo_that_is_no_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer without end
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    text = "Too many levels" if name == "loop" else "is no regular file: save what comes out of it"
    with pytest.raises(PhotoError, match=text):
        load_photo(tmp_path / name)


def test_memory_that_does_not_suffice_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object) -> None:
        raise MemoryError

    source = write_source(tmp_path, "RGB", None, None)
    monkeypatch.setattr(module.read.png, "read", fail)
    with pytest.raises(PhotoError, match="does not fit into memory: crop or shrink it first"):
        load_photo(source)


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGBA", 6)])
def test_an_avif_is_read_as_pillow_reads_it(tmp_path: Path, mode: str, orientation: int) -> None:
    image = Image.fromarray(random(H, W, len(mode)))
    image.save(tmp_path / "in.avif", exif=make_exif(orientation), icc_profile=ICC, speed=10)
    photo = load_photo(tmp_path / "in.avif")
    assert (photo.mode, photo.orientation, photo.icc) == (mode, orientation, ICC)
    np.testing.assert_array_equal(photo.stored(), raw(tmp_path / "in.avif"))
    save_photo(photo, tmp_path / "out.png")
    np.testing.assert_array_equal(raw(tmp_path / "out.png"), raw(tmp_path / "in.avif"))


def test_an_avif_of_10_bits_is_refused(tmp_path: Path) -> None:
    deep = imagecodecs.avif_encode(random(H, W, 3, high=1024), bitspersample=10, speed=10)
    (tmp_path / "in.avif").write_bytes(deep)
    with pytest.raises(PhotoError, match="more than 8 bits a sample: convert it to PNG of 16"):
        load_photo(tmp_path / "in.avif")


@pytest.mark.parametrize("bits", [8, 10])
def test_a_heic_is_read_upright_with_all_its_bits(tmp_path: Path, bits: int) -> None:
    mode = "RGB" if bits == 8 else "RGB;16"
    samples = random(16, 24, 3, high=256 if bits == 8 else 65536)
    block = make_exif(6)[6:]
    made = pillow_heif.from_bytes(mode, (24, 16), samples.tobytes())
    made.save(tmp_path / "in.heic", quality=-1, exif=block, save_nclx_profile=False)
    photo = load_photo(tmp_path / "in.heic")
    assert (photo.mode, photo.format, photo.orientation) == (mode, "HEIF", 1)
    assert exif_values(photo.exif)["photo"] == exif_values(block)["photo"] | {274: 1}
    found = pillow_heif.open_heif(tmp_path / "in.heic", convert_hdr_to_8bit=False)
    np.testing.assert_array_equal(photo.pixels, np.asarray(found))
    if bits == 10:
        assert len(np.unique(photo.pixels)) > 256
    save_photo(photo, tmp_path / "out.png")
    np.testing.assert_array_equal(raw(tmp_path / "out.png"), photo.pixels)


def test_a_heic_without_its_extra_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(PhotoError, match=r"needs: pip install 'hilotoken\[heic\]'"):
        load_photo(tmp_path / "a.heic")


def test_a_link_stays_a_link_and_the_input_may_be_the_output(tmp_path: Path) -> None:
    source = write_source(tmp_path, "RGB", None, None)
    (tmp_path / "link.png").symlink_to(source)
    photo = load_photo(tmp_path / "link.png")
    save_photo(photo, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(raw(source), photo.pixels)


@pytest.mark.parametrize(
    ("rgb", "weight", "text"),
    [
        (random(2, 2, 3), np.ones((2, 2), np.float32), "rgb must be 2 3 3"),
        (np.ones((2, 3, 3), np.float32), np.ones((2, 3), np.float32), "float32"),
        (random(2, 3, 3), np.ones((3, 2), np.float32), "weight must be 2 3"),
        (random(2, 3, 3), np.full((2, 3), 1.5, np.float32), "1.5"),
        (random(2, 3, 3), np.full((2, 3), np.nan, np.float32), "nan"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(
    rgb: np.ndarray, weight: np.ndarray, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Photo(random(2, 3, 3), "RGB", "PNG").with_edit(rgb, weight)


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(list(COLOURS)),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    tile=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_with_edit_keeps_what_it_must(
    mode: str, height: int, width: int, seed: int, share: float, tile: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    channels = COLOURS[mode] + ("A" in mode)
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = random(*shape, high=65536 if "16" in mode else 256, seed=seed)
    # Few colours: many entries share one, and only the index tells them apart.
    palette = random(256, 3, seed=seed) // 100 if mode == "P" else None
    if mode == "1":
        pixels = pixels // 128 * 255
    photo = Photo(pixels, mode, "PNG", palette=palette, transparency=7 if mode == "P" else None)
    weight = (rng.random((height, width)) * (rng.random((height, width)) < share)).astype("f4")
    weight[rng.random((height, width)) < share / 3] = 1
    rgb = random(height, width, 3, seed=seed ^ 1)
    before = pixels.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.value, "TILE", tile)
        tiled = photo.with_edit(rgb, weight)
    edited = photo.with_edit(rgb, weight)
    np.testing.assert_array_equal(photo.pixels, before)
    np.testing.assert_array_equal(edited.pixels, tiled.pixels)
    assert edited.pixels.dtype == before.dtype
    np.testing.assert_array_equal(edited.pixels[weight == 0], before[weight == 0])
    if "A" in mode:
        np.testing.assert_array_equal(edited.pixels[..., -1], before[..., -1])
    if mode == "P":
        np.testing.assert_array_equal(edited.pixels == 7, before == 7)
    full = weight == 1
    if COLOURS[mode] > 1 and full.any():
        np.testing.assert_array_equal(np.asarray(edited.rgb())[full], rgb[full])
