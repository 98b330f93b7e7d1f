"""Many photos: pairs of photo and mask, edited row by row, and a record of what was done.

The record is a file of JSON lines beside the results. A line is written before an edit begins and
one after it ended; results are replaced only by finished ones. So whatever a run was broken off by,
the next one does the rest, and nothing twice.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from .checks import whole
from .edit import TOGETHER, Edit, Job, edit_jobs
from .methods import as_method, plan_tokens
from .methods.parse import read_method
from .methods.presets import DEFAULT
from .methods.refresh import refreshes_of
from .photo import FORMATS, PhotoError, check_output, load_mask, load_photo, save_photo
from .region import choose_regions
from .request import Request

RECORD = "batch.jsonl"
FAULTS = ValueError, TypeError, OSError  # a row's own: the next one is edited
COLUMNS = ("photo", "mask", "output", "prompt", "label", "seed", "steps")


@dataclass(frozen=True)
class Row:
    """One edit of a batch; paths are where they are now, `steps` None is the batch's."""

    photo: Path
    mask: Path
    output: Path
    prompt: str = ""
    label: str = ""
    seed: int = 0
    steps: int | None = None


@dataclass(frozen=True)
class BatchOptions:
    """What all edits of a batch have in common.

    method:   words, such as "hilo detail=0.2", or the name of a preset
    together: rows one after another that ask for the same, of one photo or of several, are made in
              one call of the pipeline, so many at most; memory grows with them, and results are the
              same
    """

    method: str = DEFAULT
    steps: int = 8
    size: int | None = None
    feather: int = 0
    match: bool = True
    together: int = TOGETHER

    def __post_init__(self) -> None:
        read_method(self.method)
        whole(1)("together", self.together)
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")


@dataclass(frozen=True)
class Result:
    """How a row ended: "done" with its edit, or "failed" with a reason."""

    row: Row
    edit: Edit | None = None
    error: str | None = None


def edit_photos(
    rows: Iterable[Row],
    pipe: Any = None,
    options: BatchOptions | None = None,
) -> Iterator[Result]:
    """Edit many photos; each result is written, then yielded, in the order of the rows.

    A row that fails is yielded with its reason, and the next one is edited.

    Args:
        rows: photos, masks, and where the results go
        pipe: a pipeline that `edit_photo` takes; unless given, the embedded model
        options: method, steps and sizes for all of them
    """
    options = options or BatchOptions()
    for group in in_groups(rows, options):
        if pipe is None:
            from .model import load_model

            pipe = load_model()
        yield from edit_group(pipe, group, options)


def in_groups(rows: Iterable[Row], options: BatchOptions) -> Iterator[list[Row]]:
    """The rows, those together that are made together: see `BatchOptions`."""
    for _, alike in groupby(rows, lambda row: (row.prompt, row.label, row.steps)):
        while group := list(islice(alike, options.together)):
            yield group


def edit_group(pipe: Any, rows: Sequence[Row], options: BatchOptions) -> Iterator[Result]:
    """Edit the photos of rows that ask for the same, together, and write the results.

    Where they cannot be made together, each is tried by itself.
    """
    found = [_job_of(row, options) for row in rows]
    jobs = [one for one in found if isinstance(one, Job)]
    try:
        edits = iter(_edit(pipe, jobs, options))
    except FAULTS as error:
        if len(rows) == 1:
            yield Result(rows[0], error=_words(error))
            return
        for row in rows:
            yield from edit_group(pipe, [row], options)
        return
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, str):
            yield Result(row, error=one)
            continue
        edit = next(edits)
        try:
            save_photo(edit.photo, row.output)
        except FAULTS as error:
            yield Result(row, error=_words(error))
        else:
            yield Result(row, edit)


def _edit(pipe: Any, jobs: Sequence[Job], options: BatchOptions) -> list[Edit]:
    if not jobs:
        return []
    return edit_jobs(
        pipe, jobs, read_method(options.method), together=options.together, size=options.size,
        feather=options.feather, match=options.match,
    )  # fmt: skip


def _job_of(row: Row, options: BatchOptions) -> Job | str:
    """What a row asks for, or why it cannot be done."""
    try:
        photo = load_photo(row.photo)
        mask = load_mask(row.mask, photo)
        check_output(photo, row.output)
        steps = row.steps or options.steps
        request = Request(prompt=row.prompt, label=row.label, seed=row.seed, steps=steps)
    except FAULTS as error:
        return _words(error)
    return Job(photo, mask, request)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())


def read_rows(
    photos: Path, masks: Path | None, output: Path, common: Row, suffix: str
) -> list[Row]:
    """The rows of a folder of photos, or of a CSV.

    Args:
        photos: a folder; or a CSV with the columns photo and mask, and any of output, prompt,
            label, seed and steps, its paths relative to itself
        masks: a folder with `NAME.png` or `NAME_mask.png` for each photo, or one mask for all
        output: the folder of the results, each with its photo's name
        common: what a row has that says nothing else
        suffix: of the results, such as ".png"

    Raises:
        ValueError: no photos, a CSV that cannot be read, two results of one name.
    """
    if suffix not in FORMATS:
        raise ValueError(f"unknown format {suffix}: use one of {' '.join(FORMATS)}")
    rows = list(
        _of_csv(photos, masks, output, common, suffix)
        if photos.suffix.lower() == ".csv"
        else _of_folder(photos, masks, output, common, suffix)
    )
    if not rows:
        raise ValueError(f"{photos} holds no photos ({' '.join(FORMATS)})")
    taken: dict[Path, Path] = {}
    for row in rows:
        if (other := taken.setdefault(row.output, row.photo)) is not row.photo:
            raise ValueError(
                f"{other} and {row.photo} would both become {row.output}: "
                "rename a photo, or name each result in the column output of a CSV"
            )
    return rows


def _of_folder(
    photos: Path, masks: Path | None, output: Path, common: Row, suffix: str
) -> Iterator[Row]:
    if not photos.is_dir():
        raise ValueError(f"{photos} is neither a folder nor a CSV")
    if masks is None:
        raise ValueError("--masks is missing: a folder of masks, or one mask for all")
    for photo in sorted(photos.iterdir()):
        own_mask = photo.stem.endswith("_mask") and masks.resolve() == photos.resolve()
        if photo.suffix.lower() in FORMATS and not own_mask:
            result = output / f"{photo.stem}{suffix}"
            yield replace(common, photo=photo, mask=_mask_of(photo, masks), output=result)


def _mask_of(photo: Path, masks: Path) -> Path:
    """The photo's own mask; where there is none, the name it should have."""
    if not masks.is_dir():
        return masks
    names = [f"{photo.stem}{end}{suffix}" for end in ("_mask", "") for suffix in FORMATS]
    found = [masks / name for name in names if (masks / name).is_file()]
    found = [path for path in found if path.resolve() != photo.resolve()]
    return found[0] if found else masks / f"{photo.stem}_mask.png"


def _of_csv(
    table: Path, masks: Path | None, output: Path, common: Row, suffix: str
) -> Iterator[Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        names = lines.fieldnames or []
        if unknown := [name for name in names if name not in COLUMNS]:
            raise ValueError(f"{table}: unknown columns {unknown}; choose from {list(COLUMNS)}")
        if "photo" not in names or ("mask" not in names and masks is None):
            raise ValueError(f"{table} needs the columns photo and mask, or --masks")
        for number, line in enumerate(lines, start=2):
            given = {key: value.strip() for key, value in line.items() if key and value}
            try:
                yield _of_line(given, table.parent, masks, output, common, suffix)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{table}, line {number}: {error}") from None


def _of_line(
    given: dict[str, str], folder: Path, masks: Path | None, output: Path, common: Row, suffix: str
) -> Row:
    if "photo" not in given:
        raise ValueError("no photo")
    photo = folder / given["photo"]
    mask = folder / given["mask"] if "mask" in given else masks and _mask_of(photo, masks)
    if mask is None:
        raise ValueError("no mask")
    result = output / given.get("output", f"{photo.stem}{suffix}")
    seed, steps = int(given.get("seed", common.seed)), given.get("steps")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2^32), got {seed}")
    if steps is not None and int(steps) < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    prompt, label = given.get("prompt", common.prompt), given.get("label", common.label)
    return Row(photo, mask, result, prompt, label, seed, int(steps) if steps else None)


class Record:
    """The JSON lines of a batch: what began, what is done, what failed."""

    def __init__(self, path: Path, options: BatchOptions, model: str = "embedded") -> None:
        self.path, self.options, self.model = path, options, model
        self.last: dict[str, dict[str, Any]] = {}  # the last line of each result
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self.last[entry["output"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a kill cut short

    def key(self, row: Row) -> str:
        """What an edit is made of: another photo, mask or option is another edit."""
        options = asdict(self.options)
        del options["together"]  # by which results are the same
        parts = [asdict(row), options, self.model]
        for path in (row.photo, row.mask):
            status = path.stat() if path.is_file() else None
            parts.append([status.st_size, status.st_mtime_ns] if status else None)
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def state(self, row: Row) -> str:
        """ "done", "to do", or "foreign" where something else is at the result's place."""
        entry = self.last.get(str(row.output))
        if not row.output.exists():
            return "to do"
        if entry is None:
            return "foreign"
        # "began" and a whole result: the run was broken off between the two.
        same = entry["key"] == self.key(row) and entry["state"] in ("began", "done")
        return "done" if same else "to do"

    def begin(self, row: Row) -> None:
        """Note that a row is about to be edited; an older result of it goes."""
        row.output.parent.mkdir(parents=True, exist_ok=True)
        row.output.unlink(missing_ok=True)
        self._write(row, {"state": "began"})

    def end(self, result: Result) -> None:
        """Note how a row ended."""
        if result.edit is None:
            self.fail(result.row, str(result.error))
            return
        figures = (result.edit.sum(n) for n in ("mean_tokens_run", "tokens_full", "total_seconds"))
        self.note(result.row, *figures)

    def fail(self, row: Row, error: str) -> None:
        """Note that a row failed."""
        self._write(row, {"state": "failed", "error": error})

    def note(self, row: Row, tokens_run: float, tokens_full: int, seconds: float) -> None:
        """Note that a row is done, with its figures: tokens a step, in the mean."""
        figures = {"tokens_run": round(tokens_run), "tokens_full": tokens_full}
        self._write(row, {"state": "done", **figures, "seconds": round(seconds, 3)})

    def _write(self, row: Row, entry: dict[str, Any]) -> None:
        said = {name: str(getattr(row, name)) for name in ("output", "photo", "mask")}
        said |= {"key": self.key(row), "seed": row.seed, "prompt": row.prompt, "label": row.label}
        entry = said | entry
        self.last[str(row.output)] = entry
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn() + json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _torn(self) -> bool:
        """Whether the last line was cut short."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    @property
    def mean_seconds(self) -> float | None:
        """Of the edits done so far."""
        found = [e["seconds"] for e in self.last.values() if e["state"] == "done"]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class Cost:
    """What a row will cost: tokens that run in a step, in the mean, all tokens, steps; or why it
    cannot run."""

    tokens_run: float = 0
    tokens_full: int = 0
    steps: int = 0
    error: str | None = None


def cost_of(row: Row, options: BatchOptions, size: int) -> Cost:
    """Plan a row without a model. `size` is the working size where the options give none."""
    try:
        photo = load_photo(row.photo)
        mask = load_mask(row.mask, photo)
        if row.output.parent.is_dir():  # which else a run makes
            check_output(photo, row.output)
    except PhotoError as error:
        return Cost(error=str(error))
    method = read_method(options.method)
    steps = row.steps or options.steps
    share = refreshes_of(as_method(method).refresh, steps) / steps
    run, full = 0.0, 0
    for region in choose_regions(mask, options.size or size):
        before, small = region.take_photo(photo), region.take_mask(mask).astype("float32")
        plan = plan_tokens(before, small, grid=region.grid, method=method)
        run += share * plan.tokens_run + (1 - share) * plan.counts["edit"]
        full += plan.tokens_full
    return Cost(run, full, steps)
