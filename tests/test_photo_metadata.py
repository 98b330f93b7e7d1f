"""What a file tells about a photo goes with it byte for byte; older pictures of it do not."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import photos
import pytest
import tifffile
from photos import chunk, random
from PIL import Image

from hilotoken.photo import Photo, PhotoError, check_output, load_photo, png, save_photo
from hilotoken.photo.metadata import (
    build,
    find_jpegs,
    parse,
    text_without_pictures,
    without_pictures,
)

H, W = 19, 23
SECRET = photos.jpeg(7)
SUFFIXES = [".png", ".webp", ".jpg", ".tif"]
LARGE = random(1_200_000, seed=3).tobytes()


def with_exif(folder: Path, block: bytes, name: str = "in.jpg") -> Path:
    exif = block if name.endswith("webp") else b"Exif\0\0" + block
    Image.fromarray(random(H, W, 3)).save(folder / name, exif=exif)
    return folder / name


def saved_as(photo: Photo, path: Path) -> bytes:
    save_photo(photo, path)
    return path.read_bytes()


def saved(path: Path, suffix: str) -> bytes:
    """A photo's file, edited as a whole and written."""
    photo = load_photo(path)
    size = photo.pixels.shape[:2]
    edited = photo.with_edit(random(*size, 3), np.ones(size, np.float32))
    return saved_as(edited, path.with_name(f"out{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("strips", [False, True])
def test_the_thumbnail_of_the_unedited_photo_is_gone(
    tmp_path: Path, suffix: str, order: str, strips: bool
) -> None:
    thumbnail = random(300, seed=9).tobytes() if strips else SECRET
    block = photos.exif(6, order, thumbnail=thumbnail, strips=strips)
    assert thumbnail in block
    data = saved(with_exif(tmp_path, block), suffix)
    assert thumbnail[-60:-10] not in data
    output = tmp_path / f"out{suffix}"
    with Image.open(output) as image:
        assert image.getexif().get_ifd(1) == {}
        assert image.get_child_images() == []
    kept = data if suffix == ".tif" else load_photo(output).exif
    assert photos.exif_values(kept) == photos.exif_values(block)


def test_a_thumbnail_at_the_end_is_cut_off() -> None:
    block = photos.exif(thumbnail=SECRET)
    small = without_pictures(block)
    assert len(small) < len(photos.exif()) + 64
    assert parse(small).entries == parse(block).entries  # in their places: notes point to them


def test_previews_in_a_makers_note_are_gone(tmp_path: Path) -> None:
    block = photos.exif(note=b"before" + SECRET + b"after \xff\xd8\xff by chance")
    kept = without_pictures(block)
    assert len(kept) == len(block)
    assert SECRET[-60:] not in kept
    for part in (b"before", b"after \xff\xd8\xff by chance"):
        assert part in kept
    for suffix in SUFFIXES:
        assert SECRET[-60:-10] not in saved(with_exif(tmp_path, block), suffix)


def test_directories_linked_one_behind_another_are_gone() -> None:
    block = bytearray(photos.exif(thumbnail=bytes(4), strips=True))
    at = block.index(struct.pack("<HHI", 273, 4, 1))  # directory 1, which is linked to a third
    struct.pack_into("<I", block, at + 24, len(block))
    secret = random(90, seed=8).tobytes()
    third = struct.pack("<H", 2) + struct.pack("<HHII", 273, 4, 1, len(block) + 30)
    third += struct.pack("<HHII", 279, 4, 1, len(secret)) + bytes(4)
    assert secret not in without_pictures(bytes(block + third + secret))
    struct.pack_into("<I", block, at + 24, at - 2)  # or to itself
    assert photos.exif_values(without_pictures(bytes(block))) == photos.exif_values(bytes(block))


def test_a_thumbnail_said_to_lie_among_the_tags_costs_no_tag() -> None:
    block = bytearray(photos.exif(thumbnail=SECRET))
    place = block.index(struct.pack("<HHI", 513, 4, 1)) + 8
    struct.pack_into("<I", block, place, 8)
    kept = without_pictures(bytes(block))
    assert photos.exif_values(kept) == photos.exif_values(bytes(block))
    assert SECRET[-60:] not in kept


def test_made_up_directories_are_done_with_at_once() -> None:
    segments = b"\xff\xd8\xff\xe0\0\2" * 40_000 + b"\xff\xe0\0\2" * 400_000
    assert list(find_jpegs(segments)) == []
    count = 100_000
    block = bytearray(photos.exif(thumbnail=bytes(8 * count), strips=True))
    at, data = block.index(struct.pack("<HHI", 273, 4, 1)), len(block) - 8 * count
    struct.pack_into("<HHII", block, at, 273, 4, count, data)
    struct.pack_into("<HHII", block, at + 12, 279, 4, count, data + 4 * count)
    block[data + 4 * count :] = struct.pack("<I", len(block)) * count
    assert photos.exif_values(without_pictures(bytes(block))) == photos.exif_values(photos.exif())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_in_xmp_are_gone(tmp_path: Path, suffix: str) -> None:
    text = base64.encodebytes(SECRET).strip().replace(b"\n", b"&#xA;")
    xmp = (
        b'<x:xmpmeta><rdf:Description GImage:Data="' + base64.b64encode(SECRET) + b'" dc:id="/9j">'
        b"<xmp:Thumbnails><rdf:li><xmpGImg:image>" + text + b"</xmpGImg:image></rdf:li>"
        b"</xmp:Thumbnails><dc:title>Sea</dc:title></rdf:Description></x:xmpmeta>"
    )
    save_photo(Photo(random(H, W, 3), "RGB", "PNG", xmp=xmp), tmp_path / "in.png")
    saved(tmp_path / "in.png", suffix)
    kept = load_photo(tmp_path / f"out{suffix}").xmp
    assert kept == (
        b'<x:xmpmeta><rdf:Description GImage:Data="" dc:id="/9j">'
        b"<xmp:Thumbnails><rdf:li><xmpGImg:image></xmpGImg:image></rdf:li>"
        b"</xmp:Thumbnails><dc:title>Sea</dc:title></rdf:Description></x:xmpmeta>"
    )


@pytest.mark.parametrize("start", [b"II*\0abcd", b"MM\0*", b"GIF89a__", b"\x89PNG\r\n\x1a\n"])
def test_pictures_of_other_formats_are_known_in_base64(start: bytes) -> None:
    text = base64.b64encode(start + bytes(90))
    assert text_without_pictures(b"<a>" + text + b"</a>") == b"<a></a>"
    assert text_without_pictures(b"a" + text) == b"a" + text  # the middle of a word


def test_profiles_and_pictures_in_text_of_a_png(tmp_path: Path) -> None:
    """ImageMagick writes EXIF and Photoshop's blocks as text; web UIs put pictures into theirs."""

    def profile(name: str, data: bytes) -> bytes:
        text = f"\n{name}\n{len(data):8}\n{data.hex()}\n".encode()
        key = f"Raw profile type {name}".encode()
        return chunk(b"zTXt", key + b"\0\0" + zlib.compress(text))

    block = photos.exif(6, thumbnail=SECRET)
    prompt = b'prompt\0{"image": "data:image/jpeg;base64,' + base64.b64encode(SECRET) + b'"}'
    caption = profile("iptc", b"8BIM\4\4 a caption")
    extra = profile("exif", b"Exif\0\0" + block) + profile("8bim", b"8BIM\4\f" + SECRET)
    extra += (
        profile("xmp", b'<a i="' + base64.b64encode(SECRET) + b'"/>')
        + caption
        + chunk(b"tEXt", prompt)
        + chunk(b"tEXt", b"Title\0Sea")
    )
    (tmp_path / "in.png").write_bytes(photos.png(random(H, W, 3), 2, 8, extra))
    photo = load_photo(tmp_path / "in.png")
    assert photo.orientation == 6
    data = saved_as(photo, tmp_path / "out.png")
    assert b"Title\0Sea" in data
    assert caption in data
    assert all(word not in data for word in (b"prompt", b"8bim", b"type xmp", SECRET[-60:-10]))
    assert photos.exif_values(load_photo(tmp_path / "out.png").exif) == photos.exif_values(block)


@pytest.mark.parametrize("source", ["in.jpg", "in.webp", "in.png", "in.tif"])
@pytest.mark.parametrize("order", "<>")
def test_exif_is_kept_to_the_byte(tmp_path: Path, source: str, order: str) -> None:
    """Names that are not ASCII, and types, of every tag, in every format and through TIFF."""
    block = photos.exif(3, order, artist="José ©".encode())
    path = with_exif(tmp_path, block, source.replace(".tif", ".jpg"))
    if source == "in.tif":
        path.rename(tmp_path / "as.jpg")
        saved_as(load_photo(tmp_path / "as.jpg"), tmp_path / source)
        path = tmp_path / source
    want = {tag: (entry.type, entry.data) for tag, entry in parse(block).entries.items()}
    for suffix in SUFFIXES:
        data = saved_as(load_photo(path), tmp_path / f"out{suffix}")
        found = parse(data if suffix == ".tif" else load_photo(tmp_path / f"out{suffix}").exif)
        assert found.order == order
        for tag in (271, 274, 315):
            assert (found.entries[tag].type, found.entries[tag].data) == want[tag]
        for tag in (34665, 34853):
            inner, before = found.entries[tag].directory, parse(block).entries[tag].directory
            assert inner.keys() == before.keys()
            assert all(inner[t].data == before[t].data for t in inner if t != 40965)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages[0].tags.valueof(315) == "José ©"


def test_a_makers_note_stays_where_it_was_in_tiff(tmp_path: Path) -> None:
    block = photos.exif(note=b"\x20\0\0\0 points into the block")
    data = saved(with_exif(tmp_path, block), ".tif")
    assert data.index(b"points into") == block.index(b"points into")


def test_building_is_the_inverse_of_parsing() -> None:
    for order in "<>":
        entries = parse(photos.exif(8, order)).entries
        again = parse(build(order, entries)).entries
        assert photos.exif_values(build(order, again)) == photos.exif_values(photos.exif(8, order))


BROKEN = {
    "no directory": b"MMQ*\0\0\0\x08",
    "past the end": b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x40\0\0\0\xff\0\0\0\0\0\0\0",
    "unknown type": b"II*\0\x08\0\0\0\x01\0\x0f\x01\x63\0\x01\0\0\0\xff\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Tag data larger")  # of Pillow, which reads the JPEG's density
@pytest.mark.parametrize("case", BROKEN)
def test_exif_that_cannot_be_parsed_is_told_before_the_edit(tmp_path: Path, case: str) -> None:
    photo = load_photo(with_exif(tmp_path, BROKEN[case]))
    with pytest.raises(PhotoError, match=r"EXIF that cannot be parsed: .*: write \.png") as caught:
        check_output(photo, tmp_path / "out.tif")
    assert "out.tif" in str(caught.value)
    for suffix in (".png", ".jpg", ".webp"):  # which carry its bytes, read or not
        saved_as(photo, tmp_path / f"out{suffix}")
        assert load_photo(tmp_path / f"out{suffix}").exif == BROKEN[case]


@pytest.mark.parametrize("source", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_large_profiles_are_read_everywhere(tmp_path: Path, source: str, suffix: str) -> None:
    path = tmp_path / f"in{source}"
    Image.fromarray(random(H, W, 3)).save(path, icc_profile=LARGE)
    saved_as(load_photo(path), tmp_path / f"out{suffix}")
    assert load_photo(tmp_path / f"out{suffix}").icc == LARGE


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"tEXt"])
def test_large_text_is_kept(tmp_path: Path, name: bytes) -> None:
    text = LARGE.hex().encode()
    data = (
        b"Comment\0"
        + {
            b"zTXt": b"\0" + zlib.compress(text),
            b"iTXt": b"\1\0\0\0" + zlib.compress(text),
            b"tEXt": text,
        }[name]
    )
    (tmp_path / "in.png").write_bytes(photos.png(random(H, W, 3), 2, 8, chunk(name, data)))
    assert chunk(name, data) in saved_as(load_photo(tmp_path / "in.png"), tmp_path / "out.png")


def test_a_profile_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "LARGEST", 1000)
    for size, refused in ((1000, False), (1001, True)):
        extra = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(size)))
        (tmp_path / "in.png").write_bytes(photos.png(random(H, W, 3), 2, 8, extra))
        if refused:
            with pytest.raises(PhotoError, match="more than 64 MB: save it without"):
                load_photo(tmp_path / "in.png")
        else:
            assert load_photo(tmp_path / "in.png").icc == bytes(size)


def test_a_profile_of_which_a_piece_is_missing_is_not_lost_silently(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(random(H, W, 3)).save(out, "JPEG", icc_profile=LARGE)
    data = out.getvalue()
    first = data.index(b"ICC_PROFILE\0\1") - 4
    second = data.index(b"ICC_PROFILE\0\2") - 4
    (tmp_path / "in.jpg").write_bytes(data[:first] + data[second:])
    with pytest.raises(PhotoError, match="pieces of the colour profile are missing"):
        load_photo(tmp_path / "in.jpg")


@pytest.mark.parametrize(
    ("name", "data", "lost"),
    [
        (b"gAMA", struct.pack(">I", 45455), False),
        (b"gAMA", struct.pack(">I", 100_000), True),
        (
            b"cHRM",
            struct.pack(">8I", *(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
            False,
        ),
        (
            b"cHRM",
            struct.pack(">8I", *(31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
            True,
        ),
        (b"cICP", bytes([9, 16, 0, 1]), True),
        (b"mDCV", bytes(24), True),
    ],
)
@pytest.mark.parametrize("profile", [False, True])
def test_colours_that_png_alone_can_tell_stay_in_png(
    tmp_path: Path, name: bytes, data: bytes, lost: bool, profile: bool
) -> None:
    extra = chunk(name, data) + chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile")) * profile
    (tmp_path / "in.png").write_bytes(photos.png(random(H, W, 3), 2, 8, extra))
    photo = load_photo(tmp_path / "in.png")
    assert chunk(name, data) in saved_as(photo, tmp_path / "out.png")
    if lost and not profile:  # which overrules them
        with pytest.raises(PhotoError, match=rf"{name.decode()} tells: .* write \.png"):
            check_output(photo, tmp_path / "out.tif")
    else:
        check_output(photo, tmp_path / "out.tif")


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    aspect = chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))
    (tmp_path / "in.png").write_bytes(photos.png(random(H, W, 3), 2, 8, aspect))
    assert aspect in saved_as(load_photo(tmp_path / "in.png"), tmp_path / "out.png")
