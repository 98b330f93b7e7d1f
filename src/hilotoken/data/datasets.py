"""Photographs with masks, as public data sets lay them out on disk. Nothing is downloaded.

A layout is a function from a folder to its samples; `LAYOUTS` is the registry. Layouts are those
that the data sets' own code and its users read; each function says which files it wants.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .manifest import within
from .samples import Outline, Runs, Sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def rord(folder: Path) -> list[Sample]:
    """RORD: img/VIDEO/FRAME, mask/VIDEO/FRAME and gt/VIDEO/FRAME, here or in val/.

    A mask may be called FRAME_M. Of a video, the first frame that has all three is taken: its
    frames are nearly the same.
    """
    root = _root(folder, ("img", "mask", "gt"), ("", "val", "RORD/val", "RORD"))
    masks = {
        key.with_name(key.name.removesuffix("_M")): path
        for key, path in _by_stem(root / "mask").items()
    }
    truths, taken = _by_stem(root / "gt"), {}
    for key, photo in _by_stem(root / "img").items():
        if key in masks and key in truths:
            taken.setdefault(key.parent, Sample(str(key), photo, masks[key], truths[key]))
    return list(taken.values())


def editbench(folder: Path) -> list[Sample]:
    """EditBench: references_natural/NAME.png and masks_natural/NAME.png, and both of generated."""
    kinds = ("natural", "generated")
    found = [kind for kind in kinds if (folder / f"references_{kind}").is_dir()]
    if not found:
        raise _missing(folder, [f"references_{kind}" for kind in kinds])
    samples = []
    for kind in found:
        masks = _by_stem(_folder(folder / f"masks_{kind}"))
        for key, photo in _by_stem(folder / f"references_{kind}").items():
            if key in masks:
                samples.append(Sample(f"{kind}/{key}", photo, masks[key]))
    return samples


def brushbench(folder: Path) -> list[Sample]:
    """BrushBench: mapping_file.json, with `image` and `inpainting_mask` (runs from 1) of each."""
    entries = _json(folder / "mapping_file.json")
    return [
        Sample(
            str(name), within(folder, entry["image"]), Runs(_numbers(entry["inpainting_mask"]), 1)
        )
        for name, entry in entries.items()
    ]


def piebench(folder: Path) -> list[Sample]:
    """PIE-Bench: mapping_file.json and annotation_images/; masks are runs from 0.

    The border belongs to every mask, as in the benchmark's own code. Where the whole picture is to
    change there is nothing to compress: such entries are left out.
    """
    entries, samples = _json(folder / "mapping_file.json"), []
    for name, entry in entries.items():
        runs = Runs(_numbers(entry["mask"]), border=True)
        if not runs.read().all():
            samples.append(
                Sample(str(name), within(folder / "annotation_images", entry["image_path"]), runs)
            )
    return samples


def davis(folder: Path) -> list[Sample]:
    """DAVIS: JPEGImages/480p/VIDEO/00000.jpg and Annotations/480p/VIDEO/00000.png, or another size.

    Of a video, the first frame that shows its object is taken; all objects of it are the mask.
    """
    root = _root(folder, ("JPEGImages", "Annotations"), ("", "DAVIS"))
    sizes = [d.name for d in sorted((root / "Annotations").iterdir()) if d.is_dir()]
    size = next((s for s in ("480p", "Full-Resolution", *sizes) if s in sizes), None)
    if size is None:
        raise _missing(root / "Annotations", ["480p", "Full-Resolution"])
    masks, taken = _by_stem(root / "Annotations" / size), {}
    for key, photo in _by_stem(_folder(root / "JPEGImages" / size)).items():
        if key in masks and key.parent not in taken:
            sample = Sample(str(key), photo, masks[key], any_value=True)
            if sample.values().any():
                taken[key.parent] = sample
    return list(taken.values())


def coco(folder: Path) -> list[Sample]:
    """COCO: annotations/instances_val2017.json and val2017/; else the first other such pair.

    Of a photograph, its largest instance that is no crowd is the mask.
    """
    lists = sorted((folder / "annotations").glob("instances_*.json"))
    lists.sort(key=lambda path: "val" not in path.name)
    for path in lists:
        photos = folder / path.stem.removeprefix("instances_")
        if photos.is_dir():
            return list(_instances(_json(path), photos))
    raise _missing(folder, ["annotations/instances_val2017.json", "val2017"])


def _instances(entries: Mapping[str, Any], photos: Path) -> Iterator[Sample]:
    largest: dict[int, Any] = {}
    for shape in entries["annotations"]:
        held = largest.get(shape["image_id"])
        if not shape.get("iscrowd") and (held is None or shape["area"] > held["area"]):
            largest[shape["image_id"]] = shape
    for image in entries["images"]:
        photo, shape = within(photos, image["file_name"]), largest.get(image["id"])
        if shape and photo.is_file():
            outline = Outline(shape["segmentation"], (image["height"], image["width"]))
            yield Sample(photo.stem, photo, outline)


def plain(folder: Path) -> list[Sample]:
    """Any folder: images/NAME and masks/NAME, and truth/NAME if there is one; or NAME beside
    NAME_mask."""
    photos = next(
        (folder / n for n in ("images", "photos", "image") if (folder / n).is_dir()), None
    )
    masks = next((folder / n for n in ("masks", "mask") if (folder / n).is_dir()), None)
    if photos and masks:
        painted = _by_stem(masks)
        truths = _by_stem(folder / "truth") if (folder / "truth").is_dir() else {}
        pairs = _by_stem(photos).items()
        return [Sample(str(k), p, painted[k], truths.get(k)) for k, p in pairs if k in painted]
    files = _by_stem(_folder(folder))
    pairs = ((key, path, key.with_name(f"{key.name}_mask")) for key, path in files.items())
    return [Sample(str(key), path, files[mask]) for key, path, mask in pairs if mask in files]


LAYOUTS: dict[str, Callable[[Path], list[Sample]]] = {
    "plain": plain,
    "rord": rord,
    "editbench": editbench,
    "brushbench": brushbench,
    "piebench": piebench,
    "davis": davis,
    "coco": coco,
}


def load_layout(name: str, folder: Path) -> list[Sample]:
    """The samples of a data set on disk, in order of their names.

    Raises:
        ValueError: an unknown layout; a list that cannot be read.
        FileNotFoundError: the folder is not laid out so, or holds no photo with a mask; the message
            says what was looked for.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; choose from {sorted(LAYOUTS)}")
    about = " ".join((LAYOUTS[name].__doc__ or "").partition("\n\n")[0].split())
    try:
        samples = LAYOUTS[name](_folder(folder))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the list in {folder} lacks {error}; looked for {about}") from error
    if not samples:
        raise FileNotFoundError(f"no photo with a mask in {folder}; looked for {about}")
    for sample in samples:
        if not sample.photo.is_file():
            raise FileNotFoundError(f"{sample.photo} is missing, which {folder} lists: {about}")
    return sorted(samples, key=lambda sample: sample.name)


def _root(folder: Path, wanted: Sequence[str], places: Sequence[str]) -> Path:
    """The first of some places below a folder that holds all the folders wanted."""
    for place in places:
        if all((folder / place / name).is_dir() for name in wanted):
            return folder / place
    raise _missing(folder, [f"{p}/{n}".strip("/") for p in places[:2] for n in wanted])


def _missing(folder: Path, wanted: Sequence[str]) -> FileNotFoundError:
    held = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    return FileNotFoundError(f"{folder} holds {held}; looked for {', '.join(wanted)}")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    return path


def _by_stem(root: Path) -> dict[Path, Path]:
    """Pictures below a folder by their place in it, without suffix, in order."""
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    return {path.relative_to(root).with_suffix(""): path for path in files}


def _json(path: Path) -> Any:
    if not path.is_file():
        raise _missing(path.parent, [path.name])
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: download it anew ({error})") from error


def _numbers(runs: Any) -> list[int]:
    """Runs as a list, or as words in a string."""
    return [int(value) for value in (runs.split() if isinstance(runs, str) else runs)]
