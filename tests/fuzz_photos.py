"""Photos and masks made from seeds, healthy and damaged, and the promises that hold for each.

python tests/fuzz_photos.py --cases 20000          # seeds 0 to 19999; every surprise in a line
python tests/fuzz_photos.py --start 4711 --cases 1 # one of them again
"""

import argparse
import io
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import photos
import pillow_heif
import tifffile
from photos import CHANNELS, PNG_KINDS, Sample, chunk
from PIL import Image

from hilotoken.photo import (
    FORMATS,
    PhotoError,
    check_output,
    is_lossless,
    load_photo,
    read_mask,
    save_photo,
)
from hilotoken.photo.value import COLOURS, STORED, UPRIGHT

SLOW = 20.0  # seconds of a case that are a surprise
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:title>Sea</dc:title></x:xmpmeta>'
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"


class Surprise(Exception):
    """A promise that did not hold."""


def make(seed: int) -> Sample:
    """A healthy photo of any kind that is read."""
    rng = random.Random(seed)
    makers = (make_tiff, make_tiff, make_png, make_png, make_jpeg, make_webp, make_other)
    return rng.choice(makers)(rng, np.random.default_rng(seed))


def told(rng: random.Random) -> dict[str, object]:
    """Metadata, often none."""
    orientation = rng.choice((1, 1, *range(1, 9)))
    icc = rng.randbytes(rng.choice((200, 70_000, 1_100_000))) if rng.random() < 0.25 else None
    secret = photos.jpeg(rng.randrange(99)) if rng.random() < 0.5 else b""
    xmp = XMP if rng.random() < 0.3 else None
    if orientation == 1 and rng.random() < 0.5:
        return {"icc": icc, "xmp": xmp}
    strips = rng.random() < 0.3
    exif = photos.exif(
        orientation,
        rng.choice("<>"),
        note=rng.randbytes(rng.randrange(1, 400)).replace(b"\xff\xd8", b"  "),
        thumbnail=secret,
        strips=strips,
    )
    return {"icc": icc, "xmp": xmp, "exif": exif, "orientation": orientation, "secret": secret}


def size(rng: random.Random) -> tuple[int, int]:
    """Height and width, from one pixel on."""
    return rng.choice((1, 2, rng.randrange(1, 40), rng.randrange(1, 90))), rng.randrange(1, 60)


def samples(rng: random.Random, noise: np.random.Generator, channels: int, bits: int) -> np.ndarray:
    """H W C samples of so many bits: noise, or few values."""
    high = 2 ** min(bits, rng.choice((bits, bits, 2)))
    found = noise.integers(0, high, (*size(rng), channels)).astype(np.uint16)
    return found if bits == 16 else found.astype(np.uint8)


def widened(found: np.ndarray, bits: int) -> np.ndarray:
    """Grey samples of fewer than 8 bits as those of 8."""
    return found * np.uint8(255 // (2**bits - 1)) if bits < 8 else found


def named(mode: str, bits: int) -> str:
    """The mode as the package names it."""
    if bits == 16:
        return "I;16" if mode == "L" else f"{mode};16"
    return "1" if (mode, bits) == ("L", 1) else mode


def make_tiff(rng: random.Random, noise: np.random.Generator) -> Sample:
    """Any layout: byte order, planes, strips or tiles, compression, extra channels, inverted."""
    mode = rng.choice(("L", "L", "LA", "P", "RGB", "RGB", "RGBA", "CMYK"))
    bits = rng.choice({"L": (1, 2, 4, 8, 16), "P": (8,)}.get(mode, (8, 16)))
    extra = (0,) * rng.randrange(3) if bits >= 8 and mode != "P" and rng.random() < 0.4 else ()
    found = samples(rng, noise, CHANNELS[mode] + len(extra), bits)
    about = told(rng)
    inverted = mode in ("L", "LA") and rng.random() < 0.25
    kinds = {"L": "minisblack", "LA": "minisblack", "P": "palette", "CMYK": "separated"}
    options: dict[str, object] = {
        "photometric": "miniswhite" if inverted else kinds.get(mode, "rgb")
    }
    channels = found.shape[-1]
    planes = channels > 1 and rng.random() < 0.3
    if channels > 1:
        options["planarconfig"] = "separate" if planes else "contig"
    if "A" in mode or extra:
        options["extrasamples"] = [2] * ("A" in mode) + list(extra)
    palette = noise.integers(0, 256, (256, 3)).astype(np.uint8) if mode == "P" else None
    if palette is not None:
        options["colormap"] = palette.T.astype(np.uint16) * 257
    if bits in (2, 4):
        options["bitspersample"] = bits
    else:
        codecs = (None, None, "lzw", "zlib", "packbits", "lzma", "zstd")
        options["compression"] = rng.choice(codecs if bits >= 8 else codecs[:2])
        if bits >= 8 and options["compression"] in ("lzw", "zlib") and rng.random() < 0.5:
            options["predictor"] = 2
    if bits >= 8 and rng.random() < 0.3:
        options["tile"] = (16, 16 * rng.randrange(1, 4))
    elif rng.random() < 0.6:
        options["rowsperstrip"] = rng.randrange(1, len(found) + 1)
    if rng.random() < 0.3:
        options |= {"resolution": (300, 300), "resolutionunit": 2}
    tags = [(274, 3, 1, about.get("orientation", 1), True)]
    if about["xmp"]:
        tags.append((700, 1, len(XMP), XMP, True))
    stored = np.moveaxis(found, -1, 0) if planes else found[..., 0] if channels == 1 else found
    out = io.BytesIO()
    tifffile.imwrite(
        out,
        stored.astype(bool) if bits == 1 else stored,
        byteorder=rng.choice("<>"),
        bigtiff=rng.random() < 0.2,
        metadata=None,
        software=False,
        iccprofile=about["icc"],
        extratags=tags,
        **options,
    )
    want = widened(found, bits) if mode != "P" else found
    if inverted:
        want = want.copy()
        want[..., 0] ^= np.iinfo(want.dtype).max
    return Sample(
        out.getvalue(),
        named(mode, bits),
        want[..., 0] if channels == 1 else want,
        orientation=int(about.get("orientation", 1)),
        icc=about["icc"],
        xmp=about["xmp"],
        extra=extra,
        palette=palette,
        made_of=f"TIFF {mode} {bits} {options}",
    )


def make_png(rng: random.Random, noise: np.random.Generator) -> Sample:
    """Any colour type, depth and interlacing, with chunks of all kinds."""
    mode = rng.choice(("L", "P", "LA", "RGB", "RGBA"))
    bits = rng.choice({"L": (1, 2, 4, 8, 16), "P": (1, 2, 4, 8)}.get(mode, (8, 16)))
    found = samples(rng, noise, CHANNELS[mode], bits)
    about, palette, extra = told(rng), None, b""
    if about["icc"]:
        extra += chunk(b"iCCP", b"p\0\0" + zlib.compress(about["icc"]))
    if mode == "P":
        palette = noise.integers(0, 256, (2**bits, 3)).astype(np.uint8)
        extra += chunk(b"PLTE", palette.tobytes())
        if rng.random() < 0.4:
            extra += chunk(b"tRNS", rng.randbytes(rng.randrange(1, 2**bits + 1)))
    elif mode in ("L", "RGB") and rng.random() < 0.3:
        extra += chunk(b"tRNS", found[0, 0].astype(">u2").tobytes())
    if rng.random() < 0.3:
        extra += chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, rng.randrange(2)))
    if about.get("exif"):
        extra += png_exif(rng, about["exif"])
    if about["xmp"]:
        extra += chunk(b"iTXt", PNG_XMP + XMP)
    for name, data in (
        (b"tEXt", b"Title\0Sea"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"long" * rng.choice((9, 400_000)))),
        (b"iTXt", b"Author\0\0\0de\0Autor\0" + "José".encode()),
        (b"tIME", bytes(7)),
        (b"prVt", b"private"),
    ):
        if rng.random() < 0.2:
            extra += chunk(name, data)
    data = photos.png(
        found,
        PNG_KINDS[mode],
        bits,
        extra,
        interlaced=rng.random() < 0.1,
        filters=rng.choice(((0,), (1,), (2,), (0, 1, 2))),
    )
    want = widened(found, bits) if mode != "P" else found
    return Sample(
        data,
        named(mode, bits),
        want[..., 0] if want.shape[-1] == 1 else want,
        palette=palette,
        made_of=f"PNG {mode} {bits}",
        **about,
    )


def png_exif(rng: random.Random, exif: bytes) -> bytes:
    """EXIF in its chunk, or in text as ImageMagick writes it."""
    if rng.random() < 0.7:
        return chunk(b"eXIf", exif)
    block = b"Exif\0\0" + exif
    text = block.hex()
    lines = "\n".join(text[at : at + 72] for at in range(0, len(text), 72))
    profile = f"\nexif\n{len(block):8}\n{lines}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))


def make_jpeg(rng: random.Random, noise: np.random.Generator) -> Sample:
    return with_pillow(rng, noise, "JPEG", rng.choice(("L", "RGB", "CMYK")), quality=90)


def make_webp(rng: random.Random, noise: np.random.Generator) -> Sample:
    mode = rng.choice(("RGB", "RGBA"))
    return with_pillow(rng, noise, "WEBP", mode, lossless=True, exact=True, method=0)


def make_other(rng: random.Random, noise: np.random.Generator) -> Sample:
    name = rng.choice(("BMP", "GIF", "AVIF", "HEIC"))
    if name == "HEIC":
        return make_heic(rng, noise)
    mode = rng.choice({"BMP": ("1", "L", "P", "RGB"), "GIF": ("P", "L")}.get(name, ("RGB",)))
    if name == "AVIF":
        return with_pillow(rng, noise, name, mode, speed=10, max_threads=1)
    return with_pillow(rng, noise, name, mode, tell=False)


def make_heic(rng: random.Random, noise: np.random.Generator) -> Sample:
    """Its decoder turns the samples, whatever EXIF says."""
    mode = rng.choice(("RGB", "RGBA", "RGB;16"))
    bits = 16 if mode == "RGB;16" else 8
    found, about = samples(rng, noise, CHANNELS[mode[:4].strip(";")], bits), told(rng)
    made = pillow_heif.from_bytes(mode, found.shape[1::-1], found.tobytes())
    out = io.BytesIO()
    exif = about.pop("exif", None)
    made.save(out, quality=90, exif=exif, xmp=about["xmp"], icc_profile=about["icc"])
    again = np.array(pillow_heif.open_heif(out, convert_hdr_to_8bit=False))
    if exif:
        about |= {"exif": exif.replace(*turned_back(exif)), "orientation": 1}
    return Sample(out.getvalue(), mode, again, made_of=f"HEIC {mode}", **about)


def turned_back(exif: bytes) -> tuple[bytes, bytes, int]:
    """The orientation of an EXIF block, and that of a photo that has been turned."""
    order = "<" if exif.startswith(b"II") else ">"
    head = struct.pack(order + "HHI", 274, 3, 1)
    at = exif.index(head) + len(head)
    return exif[at - len(head) : at + 2], head + struct.pack(order + "H", 1), 1


def with_pillow(
    rng: random.Random,
    noise: np.random.Generator,
    name: str,
    mode: str,
    *,
    tell: bool = True,
    **options: object,
) -> Sample:
    """A photo that Pillow writes, and reads again for what shall be found."""
    found = samples(rng, noise, CHANNELS[mode], 8)
    if mode == "1":
        found = found // 128 * 255
    palette = noise.integers(0, 256, (256, 3)).astype(np.uint8) if mode == "P" else None
    image = Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found)
    if mode == "CMYK":
        image = Image.frombytes("CMYK", image.size, found.tobytes())
    elif mode == "1":
        image = image.convert("1")
    elif palette is not None:
        image.putpalette(palette.tobytes())
    about = told(rng) if tell else {"icc": None, "xmp": None}
    out = io.BytesIO()
    exif = about.get("exif")
    if exif:
        options["exif"] = exif if name == "AVIF" else b"Exif\0\0" + exif
    if about["xmp"]:
        options["xmp"] = XMP
    image.save(out, name, icc_profile=about["icc"], **options)
    with Image.open(out) as again:
        kept = again.info.get("exif", b"").removeprefix(b"Exif\0\0")
        again.load()
        mode, pixels = again.mode, np.asarray(again)
        if again.mode == "P":
            palette = np.array(again.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if name == "AVIF" and exif:
        about["exif"] = kept
    pixels = pixels * np.uint8(255) if mode == "1" else pixels
    return Sample(out.getvalue(), mode, pixels, palette=palette, made_of=f"{name} {mode}", **about)


def check_healthy(seed: int, folder: Path) -> str:
    """A healthy photo is read whole, and its output is its own outside the mask."""
    rng, sample = random.Random(~seed), make(seed)
    source = folder / "photo"
    source.write_bytes(sample.data)
    photo = load_photo(source)
    expect(photo.mode == sample.mode, f"mode {photo.mode}, not {sample.mode}")
    expect(photo.extra == sample.extra, f"extra channels {photo.extra}")
    expect(photo.orientation == sample.orientation, f"orientation {photo.orientation}")
    same(photo.stored(), sample.pixels, "samples read")
    if sample.palette is not None:
        assert photo.palette is not None
        count = min(len(sample.palette), len(photo.palette))
        same(photo.palette[:count], sample.palette[:count], "palette read")
    height, width = photo.pixels.shape[:2]
    noise = np.random.default_rng(seed)
    weight = (noise.random((height, width)) * noise.integers(0, 2, (height, width))).astype("f4")
    rgb = noise.integers(0, 256, (height, width, 3)).astype(np.uint8)
    edited = photo.with_edit(rgb, weight)
    kept = STORED[photo.orientation](weight) == 0
    suffix = rng.choice(list(FORMATS))
    output = folder / f"out{suffix}"
    try:
        check_output(photo, output)
    except PhotoError as error:
        one_line(error, output)
        expect(not output.exists(), "an output that was refused exists")
        return f"{sample.made_of.split()[0]} refused as {suffix}"
    save_photo(edited, output)
    found = raw(output, photo.mode)
    expect(found.shape == sample.pixels.shape, f"shape {found.shape} in {suffix}")
    expect(found.dtype == sample.pixels.dtype, f"type {found.dtype} in {suffix}")
    if is_lossless(output):
        same(found[kept], sample.pixels[kept], f"samples outside the mask in {suffix}")
    again = load_photo(output)
    expect(again.mode == photo.mode, f"mode {again.mode} read again in {suffix}")
    same(again.stored(), found, f"samples read again in {suffix}")
    check_told(sample, output, again)
    return f"{sample.made_of.split()[0]} to {suffix}"


def check_told(sample: Sample, output: Path, again: object) -> None:
    """ICC, XMP and EXIF are in the output, and no picture of the photo is."""
    data = output.read_bytes()
    if sample.secret:
        for part in (sample.secret[-150:-100], sample.secret[-60:-10]):
            expect(part not in data, f"the thumbnail is in {output.suffix}")
            expect(part.hex().encode() not in data, f"the thumbnail is in {output.suffix}")
    expect(again.icc == sample.icc, f"ICC profile in {output.suffix}")
    expect(again.xmp == sample.xmp, f"XMP in {output.suffix}")
    if sample.exif:
        block = data if output.suffix.startswith(".tif") else again.exif
        found, want = photos.exif_values(block), photos.exif_values(sample.exif)
        expect(found == want, f"EXIF in {output.suffix}: {found}, not {want}")


def raw(path: Path, mode: str) -> np.ndarray:
    """A file's samples in the stored frame, read without the package."""
    if path.suffix.startswith(".tif"):
        found = tifffile.imread(path)
        channels = found.shape[2:]
        shape = tifffile.TiffFile(path).pages[0].shape[:2]
        return (found * np.uint8(255) if found.dtype == bool else found).reshape(*shape, *channels)
    data = path.read_bytes()
    if path.suffix == ".png":
        data = bare_png(data)
    if path.suffix != ".png" or data[24] < 16:
        with Image.open(io.BytesIO(data)) as image:
            found = np.asarray(image)
        return found * np.uint8(255) if found.dtype == bool else found
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    order = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "LA": [0, 3]}.get(mode.partition(";")[0])
    return found if order is None else found[..., order]


def bare_png(data: bytes) -> bytes:
    """A PNG without what its decoders would act on, or refuse."""
    bare, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            bare.append(data[at:end])
        at = end
    return b"".join(bare)


def check_damaged(seed: int, folder: Path) -> str:
    """A damaged photo is refused in a line, or read and written as any other."""
    rng, sample = random.Random(~seed), make(seed)
    source = folder / "photo"
    source.write_bytes(damaged(rng, sample.data))
    try:
        photo = load_photo(source)
    except PhotoError as error:
        one_line(error, source)
        return "damaged refused"
    channels = COLOURS[photo.mode] + photo.has_alpha + len(photo.extra)
    want = photo.pixels.shape[:2] + ((channels,) if channels > 1 else ())
    expect(photo.pixels.shape == want, f"shape {photo.pixels.shape} of {photo.mode}")
    expect(photo.pixels.dtype == (np.uint16 if "16" in photo.mode else np.uint8), "type")
    for suffix in (".png", ".tif", ".jpg"):
        output = folder / f"out{suffix}"
        try:
            check_output(photo, output)
        except PhotoError as error:
            one_line(error, output)
            continue
        save_photo(photo, output)
        if is_lossless(output):
            same(load_photo(output).pixels, photo.pixels, f"samples in {suffix}")
    return "damaged read"


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A file with bytes changed, cut off, taken out, doubled; often near its start."""
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        near = min(len(body), rng.choice((64, 400, len(body))))
        at = rng.randrange(max(1, near))
        way = rng.randrange(5)
        if way == 0:
            del body[at:]
        elif way == 1:
            del body[at : at + rng.randrange(1, 20)]
        elif way == 2:
            body[at:at] = body[at : at + rng.randrange(1, 60)]
        else:
            part = rng.choice((rng.randbytes(1), rng.randbytes(4), b"\xff" * 4, bytes(4)))
            body[at : at + len(part)] = part
    if body[:4] == b"\x89PNG" and rng.random() < 0.7:
        mend_checksums(body)
    return bytes(body)


def mend_checksums(body: bytearray) -> None:
    """Make the checksums of a PNG right, for its contents to be looked at."""
    at = 8
    while at + 12 <= len(body):
        end = at + 8 + struct.unpack_from(">I", body, at)[0]
        if end + 4 > len(body):
            return
        struct.pack_into(">I", body, end, zlib.crc32(body[at + 4 : end]))
        at = end + 4


def check_mask(seed: int, folder: Path) -> str:
    """A mask of any convention, size and turn is what it says, or is refused in a line."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    source, path = folder / "photo.png", folder / "mask"
    height, width = rng.randrange(20, 90), rng.randrange(20, 90)
    orientation = rng.choice((1, 1, 6, 8, 5, 7, 3))
    picture = noise.integers(0, 256, (height, width, 3)).astype(np.uint8)
    block = chunk(b"eXIf", photos.exif(orientation))
    source.write_bytes(photos.png(picture, 2, 8, block))
    photo = load_photo(source)
    hole = np.zeros((height, width), bool)
    for _ in range(rng.randrange(4)):
        top, left = rng.randrange(height), rng.randrange(width)
        hole[top : top + rng.randrange(1, height), left : left + rng.randrange(1, width)] = True
    convention = rng.choice(("white", "black", "hole", "painted", "picture"))
    drawn = np.where(hole if convention != "black" else ~hole, np.uint8(255), np.uint8(0))
    image = Image.fromarray(drawn)
    if convention == "hole":
        image = Image.fromarray(np.dstack([picture, 255 - drawn]))
    elif convention == "painted":
        image = Image.fromarray(np.dstack([np.full_like(picture, 255), drawn]))
    elif convention == "picture":
        image = Image.fromarray(picture)
    upright, scale = rng.random() < 0.5, rng.choice((1, 1, 1, 2, 3))
    if convention == "hole" and not hole.any():
        convention = "picture"
    if upright:  # as a person sees the photo, not as it is stored
        image = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(image))))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.save(path, rng.choice(("PNG", "TIFF")))
    invert, grow = convention == "black", rng.choice((0, 0, 1, 5, 10**12))
    if rng.random() < 0.2:
        path.write_bytes(damaged(rng, path.read_bytes()))
        convention = "damaged"
    try:
        mask = read_mask(path, photo, invert=invert, grow=grow)
    except PhotoError as error:
        one_line(error, path)
        known = not hole.any() or convention in ("damaged", "picture")
        expect(known or drawn.all(), f"a {convention} mask is refused: {error}")
        return "mask refused"
    expect(mask.pixels.shape == photo.pixels.shape[:2], f"shape {mask.pixels.shape} of a mask")
    expect(mask.pixels.dtype == bool, f"type {mask.pixels.dtype} of a mask")
    # A square frame, or one that turns keep, leaves open how the mask is meant.
    told_apart = orientation == 1 or (orientation >= 5 and abs(height / width - 1) > 0.02)
    told_apart = told_apart or (upright and orientation < 5)
    if convention in ("damaged", "picture") or not told_apart:
        return "mask read"
    want = UPRIGHT[orientation](hole)
    if grow == 0:
        same(mask.pixels, want, f"{convention} mask")
    expect(bool(mask.pixels[want].all()), "a grown mask holds the mask")
    expect(grow < 10**12 or bool(mask.pixels.all()), "a mask grown without end")
    expect(convention != "hole" or any("transparent" in note for note in mask.notes), "note")
    much = float(want.mean()) > 0.6
    expect(not much or any("--invert" in note for note in mask.notes), "note of much white")
    return f"mask {convention}"


CHECKS: tuple[Callable[[int, Path], str], ...] = (
    check_healthy,
    check_healthy,
    check_damaged,
    check_damaged,
    check_mask,
)


def run(seed: int) -> str:
    """One case: what became of it. Raises Surprise for a promise that did not hold."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        outcome = CHECKS[seed % len(CHECKS)](seed, folder)
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        expect(not left, f"left behind: {left}")
    seconds = time.monotonic() - started
    expect(seconds < SLOW, f"took {seconds:.0f} seconds")
    return outcome


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Surprise(otherwise)


def same(found: np.ndarray, want: np.ndarray, what: str) -> None:
    expect(
        found.shape == want.shape and found.dtype == want.dtype and np.array_equal(found, want),
        f"{what}: {found.shape} {found.dtype} is not {want.shape} {want.dtype}",
    )


def one_line(error: PhotoError, path: Path) -> None:
    text = str(error)
    expect("\n" not in text and str(path) in text and len(text) > len(str(path)) + 8, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20_000)
    options = parser.parse_args()
    outcomes, surprises = Counter(), 0
    for seed in range(options.start, options.start + options.cases):
        try:
            outcomes[run(seed)] += 1
        except Exception as error:
            surprises += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"seed {seed}: {line} ({Path(where.filename).name}:{where.lineno})", flush=True)
        if (seed + 1) % 500 == 0:
            print(f"{seed + 1} done, {surprises} surprises", file=sys.stderr, flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6} {outcome}")
    print(f"{options.cases} cases, {surprises} surprises")
    return bool(surprises)


if __name__ == "__main__":
    sys.exit(main())
