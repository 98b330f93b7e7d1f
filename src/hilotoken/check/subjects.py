"""What a check edits: photographs with masks, the user's own or those that come along."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..data.cases import Case, cases_of
from ..data.samples import Sample

BUNDLED = Path(__file__).with_name("photos")
SUFFIXES = {*(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")}


def photos_in(photos: str | Path | Sequence[str | Path] | None) -> list[Path | Sample]:
    """Photographs, each with its mask where NAME_mask.png lies beside it.

    Args:
        photos: a folder, a file, or files; those that come along unless given

    Raises:
        FileNotFoundError: no such file, or a folder without photographs.
        ValueError: two photographs of one name.
    """
    found = [Path(photos)] if isinstance(photos, str | Path) else photos or [BUNDLED]
    files = [file for one in found for file in _files(Path(one))]
    if not files:
        raise FileNotFoundError(f"no photographs in {photos}: give PNG, JPEG, WebP, BMP or TIFF")
    names = [file.name for file in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two photographs are called {min(twice)}: rename one of them")
    return [_with_mask(file) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        listed = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        return [file for file in listed if not file.stem.endswith("_mask")]
    if not path.is_file():
        raise FileNotFoundError(f"no photograph {str(path)!r}: give a folder or a file")
    return [path]


def _with_mask(photo: Path) -> Path | Sample:
    mask = photo.with_name(f"{photo.stem}_mask.png")
    return Sample(photo.name, photo, mask) if mask.is_file() else photo


def cases(photos: Sequence[Path | Sample], size: int, quick: bool = False) -> Iterator[Case]:
    """Edits of squares of `size` pixels.

    A photograph with a mask is edited under it, one without under masks of three classes that
    follow from its name; where it shall be quick, under one of them in turn.

    Raises:
        ValueError: a file that cannot be read, or a mask that does not belong to its photograph.
    """
    for i, photo in enumerate(photos):
        of = list(cases_of(photo, size))
        yield from [of[i % len(of)]] if quick else of


def control_of(case: Case) -> Image.Image:
    """A control picture where a pipeline needs one: the edges of the photograph."""
    import cv2

    edges = cv2.Canny(cv2.cvtColor(case.photo, cv2.COLOR_RGB2GRAY), 100, 200)
    return Image.fromarray(edges).convert("RGB")
