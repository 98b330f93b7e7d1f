"""Every layout of a TIFF is read sample for sample, and written for others to read, or refused."""

import struct
from pathlib import Path

import numpy as np
import photos
import pytest
import tifffile
from photos import random
from PIL import Image

from hilotoken.photo import Photo, PhotoError, check_output, load_photo, save_photo
from hilotoken.photo.value import UPRIGHT

H, W = 19, 23
KINDS = {"L": "minisblack", "LA": "minisblack", "RGB": "rgb", "RGBA": "rgb", "CMYK": "separated"}


def write(path: Path, samples: np.ndarray, mode: str, **options: object) -> None:
    extra = samples.shape[-1] - photos.CHANNELS[mode]
    kinds = [2] * ("A" in mode) + [0] * extra
    if kinds:
        options = {"extrasamples": kinds} | options
    tifffile.imwrite(
        path,
        samples if samples.shape[-1] > 1 else samples[..., 0],
        metadata=None,
        **({"photometric": KINDS[mode], "planarconfig": "contig"} | options),
    )


def turned(folder: Path, stored: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(folder / "in.tif", exif=exif)
    return folder / "in.tif"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_files_are_read_and_written_in_their_frame(
    tmp_path: Path, mode: str, orientation: int
) -> None:
    """Pillow maps one uncompressed strip into memory, with the sides of a rotated photo swapped."""
    noise = Image.fromarray(random(H, W, 4), mode="CMYK").convert("RGB")
    image = noise.convert(mode)
    source = turned(tmp_path, image, orientation)
    stored = np.asarray(image) * np.uint8(255 if mode == "1" else 1)
    photo = load_photo(source)
    assert (photo.mode, photo.orientation) == (mode, orientation)
    np.testing.assert_array_equal(photo.pixels, UPRIGHT[orientation](stored))
    weight = np.zeros(photo.pixels.shape[:2], np.float32)
    weight[:5, :4] = 1  # the corner at the top left that a person sees
    edited = photo.with_edit(random(*weight.shape, 3, seed=4), weight)
    save_photo(edited, tmp_path / "out.tif")
    found = tifffile.imread(tmp_path / "out.tif") * np.uint8(255 if mode == "1" else 1)
    kept = np.ones((H, W), bool)
    corner = np.zeros_like(weight, bool)
    corner[:5, :4] = True
    rows, columns = np.indices((H, W))
    places = np.stack([rows, columns], -1)
    shown = UPRIGHT[orientation](places)[corner]
    kept[shown[:, 0], shown[:, 1]] = False
    np.testing.assert_array_equal(found[kept], stored[kept])
    assert (found[~kept] != stored[~kept]).any()
    with Image.open(tmp_path / "out.tif") as other:  # what others see of it is right as well
        seen = np.asarray(other) * np.uint8(255 if mode == "1" else 1)
    np.testing.assert_array_equal(seen, edited.pixels)
    np.testing.assert_array_equal(load_photo(tmp_path / "out.tif").pixels, edited.pixels)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("order", "<>")
def test_no_channel_is_lost(tmp_path: Path, mode: str, bits: int, extra: int, order: str) -> None:
    """16 bits of CMYK, and channels that TIFF calls unspecified, as saved selections are."""
    samples = random(H, W, photos.CHANNELS[mode] + extra, high=2**bits)
    write(tmp_path / "in.tif", samples, mode, byteorder=order)
    photo = load_photo(tmp_path / "in.tif")
    assert photo.mode.replace("I;", "L;").partition(";")[0] == mode
    assert photo.extra == (0,) * extra
    weight = np.zeros((H, W), np.float32)
    weight[3:9, 4:12] = 1
    edited = photo.with_edit(random(H, W, 3, seed=1), weight)
    save_photo(edited, tmp_path / "out.tif")
    found = tifffile.imread(tmp_path / "out.tif").reshape(samples.shape)
    assert found.dtype == samples.dtype
    np.testing.assert_array_equal(found[weight == 0], samples[weight == 0])
    colours = photos.CHANNELS[mode] - ("A" in mode)
    np.testing.assert_array_equal(found[..., colours:], samples[..., colours:])
    assert (found[weight == 1][:, :colours] != samples[weight == 1][:, :colours]).any()
    page = tifffile.TiffFile(tmp_path / "out.tif").pages[0]
    assert tuple(page.extrasamples) == (2,) * ("A" in mode) + (0,) * extra
    if extra and mode != "CMYK":
        with pytest.raises(PhotoError, match=r"channels besides .*: write \.tif or \.tiff"):
            check_output(photo, tmp_path / "out.png")


LAYOUTS = {
    "planes": {"planarconfig": "separate"},
    "tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 4},
    "big": {"bigtiff": True},
    "lzw": {"compression": "lzw"},
    "lzw, predicted": {"compression": "lzw", "predictor": 2},
    "deflate, predicted": {"compression": "zlib", "predictor": 2, "rowsperstrip": 5},
    "packbits": {"compression": "packbits"},
    "lzma": {"compression": "lzma"},
    "zstd": {"compression": "zstd", "tile": (32, 16)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", "<>")
def test_every_layout_is_read(tmp_path: Path, layout: str, bits: int, order: str) -> None:
    samples, options = random(H, W, 3, high=2**bits), LAYOUTS[layout]
    stored = np.moveaxis(samples, -1, 0) if layout == "planes" else samples
    tifffile.imwrite(
        tmp_path / "in.tif",
        stored,
        photometric="rgb",
        byteorder=order,
        metadata=None,
        **({"planarconfig": "contig"} | options),
    )
    np.testing.assert_array_equal(load_photo(tmp_path / "in.tif").pixels, samples)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "jpeg", "tiff_lzw"])
def test_what_libtiff_compresses_is_read(tmp_path: Path, compression: str) -> None:
    mode = "RGB" if compression == "jpeg" else "1"
    image = Image.fromarray(random(H, W, 3)).convert(mode)
    image.save(tmp_path / "in.tif", compression=compression)
    with Image.open(tmp_path / "in.tif") as other:
        want = np.asarray(other) * np.uint8(255 if mode == "1" else 1)
    np.testing.assert_array_equal(load_photo(tmp_path / "in.tif").pixels, want)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_grey_of_every_depth(tmp_path: Path, bits: int, kind: str) -> None:
    samples = random(H, W, high=2**bits)
    tifffile.imwrite(
        tmp_path / "in.tif",
        samples.astype(bool) if bits == 1 else samples,
        photometric=kind,
        bitspersample=bits,
        metadata=None,
    )
    photo = load_photo(tmp_path / "in.tif")
    want = samples * np.uint8(255 // (2**bits - 1)) if bits < 8 else samples
    np.testing.assert_array_equal(photo.pixels, want if kind == "minisblack" else ~want)
    assert photo.mode == {1: "1", 16: "I;16"}.get(bits, "L")


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_palettes_of_every_depth(tmp_path: Path, wide: bool, bits: int) -> None:
    """Some writers leave the palette at 8 bits."""
    samples, palette = random(H, W, high=2**bits), random(256, 3, seed=2)
    tifffile.imwrite(
        tmp_path / "in.tif",
        samples,
        photometric="palette",
        colormap=palette.T.astype(np.uint16) * (257 if wide else 1),
        bitspersample=bits,
        metadata=None,
    )
    photo = load_photo(tmp_path / "in.tif")
    np.testing.assert_array_equal(photo.pixels, samples)
    np.testing.assert_array_equal(photo.palette, palette)
    save_photo(photo, tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as other:
        np.testing.assert_array_equal(np.asarray(other.convert("RGB")), palette[samples])


@pytest.mark.parametrize(("unit", "want"), [(1, None), (2, (300, 150)), (3, (762, 381))])
def test_resolution_is_carried(tmp_path: Path, unit: int, want: tuple[int, int] | None) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif",
        random(H, W, 3),
        photometric="rgb",
        resolution=(300, 150),
        resolutionunit=unit,
        metadata=None,
    )
    photo = load_photo(tmp_path / "in.tif")
    assert photo.dpi == want
    save_photo(photo, tmp_path / "out.tif")
    assert load_photo(tmp_path / "out.tif").dpi == want
    save_photo(photo, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as other:
        assert other.info.get("dpi", ()) == pytest.approx(want or (), abs=0.1)


def tag_of(data: bytes, tag: int) -> int:
    """Where a tag of a little-endian TIFF lies."""
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    places = range(at + 2, at + 2 + 12 * count, 12)
    return next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)


def patched(path: Path, tag: int, value: int, kind: str = "<H") -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, tag_of(data, tag) + 8, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"extrasamples": [1]}, "premultiplied alpha: save it with unassociated alpha"),
        ({"subfiletype": 1}, "a preview of a raw file: develop it and export a PNG"),
        ({"extratags": [(50706, 1, 4, b"\1\6\0\0", True)]}, "a preview of a raw file"),
        ({"extratags": [(332, 3, 1, 2, True)]}, "colours of kind more inks: convert it to RGB"),
        ({"compression": "jpegxl"}, "compressed by JPEGXL: save it with LZW or without"),
    ],
)
def test_layouts_that_cannot_be_kept_are_named(
    tmp_path: Path, options: dict[str, object], text: str
) -> None:
    mode = "RGBA" if "extrasamples" in options else "CMYK" if "332" in str(options) else "RGB"
    write(tmp_path / "in.tif", random(H, W, len(mode)), mode, **options)
    with pytest.raises(PhotoError, match=text):
        load_photo(tmp_path / "in.tif")


def test_a_fourth_channel_of_colours_is_alpha_unless_told_otherwise(tmp_path: Path) -> None:
    samples = random(H, W, 4)
    write(tmp_path / "in.tif", samples, "RGBA")
    data = bytearray((tmp_path / "in.tif").read_bytes())
    struct.pack_into("<H", data, tag_of(data, 338), 336)  # another tag
    (tmp_path / "in.tif").write_bytes(data)
    photo = load_photo(tmp_path / "in.tif")
    assert (photo.mode, photo.extra) == ("RGBA", ())
    np.testing.assert_array_equal(photo.pixels, samples)


def test_more_than_one_page_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        for _ in range(2):
            file.write(random(H, W, 3), photometric="rgb", metadata=None)
    with pytest.raises(PhotoError, match="has 2 frames"):
        load_photo(tmp_path / "in.tif")


@pytest.mark.parametrize(
    ("tag", "value", "kind", "text"),
    [
        (279, 0, "<I", "damaged or cut short"),  # an empty strip, which some readers take for black
        (273, 1 << 30, "<I", "damaged or cut short"),
        (256, 1 << 30, "<I", "megapixels: crop or shrink it first"),
        (277, 60_000, "<H", "damaged|samples"),
        (262, 6, "<H", "colours of kind YCBCR: convert it to RGB"),
        (258, 12, "<H", "12 bits"),
        (339, 2, "<H", "8 bits, signed: convert it to 8 or 16 bit RGB"),
    ],
)
def test_a_damaged_tag_is_not_read_as_a_photo(
    tmp_path: Path, tag: int, value: int, kind: str, text: str
) -> None:
    mode = "RGB" if tag == 262 else "L"
    samples = random(H, W, photos.CHANNELS[mode])
    write(tmp_path / "in.tif", samples.view(np.int8) if tag == 339 else samples, mode)
    patched(tmp_path / "in.tif", tag, value, kind)
    with pytest.raises(PhotoError, match=text):
        load_photo(tmp_path / "in.tif")


def test_a_bomb_of_channels_or_tiles_is_refused_undecoded(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif",
        shape=(9_000, 9_000, 40),
        dtype=np.uint8,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=[0] * 39,
        compression="zlib",
        rowsperstrip=9_000,
        data=iter([b"x"]),
        metadata=None,
    )
    with pytest.raises(PhotoError, match="3089 MB of samples"):
        load_photo(tmp_path / "in.tif")


def test_a_file_of_one_strip_is_written_in_more(tmp_path: Path) -> None:
    """So that Pillow, which maps one strip, reads rotated files of ours as they are."""
    photo = Photo(random(2, 3), "L", "PNG")
    save_photo(photo, tmp_path / "out.tif")
    assert len(tifffile.TiffFile(tmp_path / "out.tif").pages[0].dataoffsets) == 2
