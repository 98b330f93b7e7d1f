"""`hilo bench fill`: how well masked photographs with a hidden truth are filled.

Every photograph is filled under a mask of each class by every method, from the same noise. OpenCV's
inpainting is the bar that a model must clear. In the mask, a fill is compared with the truth and
with dense, and so is what `hilo edit` makes of it and hands over: its colours led to the photo's
along the mask's border, where the seam is taken too. Around the mask and outside it, what is
compared is the raw picture that the model gives, before the photo's own pixels are put back: it
differs there by what the autoencoder loses and by what the method does to tokens that nobody edits.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from ...composite import match_border
from ...compress import compress
from ...data.cases import CLASSES, Case, cases_of
from ...methods.parse import read_method
from ...metrics.lpips import LPIPS
from ...metrics.regions import Distances, Seen, distances, pooled, psnr, ring, seam, see, sharpness
from ...picture import sheet
from ...record import Run
from ..results.readings import DENSE
from .matched import Costs
from .sets import TRUTH, Key

CLASSICAL = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}
Settings = Mapping[str, str]  # by the name of a method, what `--method` takes


@dataclass(frozen=True)
class FillRow:
    """One fill. Distances are to the truth, those with `_dense` to dense from the same noise:
    psnr in dB, ssim (1 where equal) and lpips, in the mask.

    method, setting: its name, and the options that it ran with
    model:      its name, and which version of its weights
    net:        whose features LPIPS compares
    tokens_run: the mean over the steps
    flop_share: FLOPs of the DiT over dense's, counted
    edit_:      of what `hilo edit` hands over, see `match_border`; OpenCV's fills as they are
    sharpness:  log2 of the gradient energy in the mask over the truth's: see `metrics.regions`
    ring_:      of the raw picture, within 16 pixels around the mask: to the photo, and to dense
    outside_:   of the raw picture, everywhere outside the mask
    outside_equal: whether the finished edit is the photo there, bit for bit
    step, colour: the seam's jumps in levels of 255; those with `_photo` are the untouched photo's

    Empty are figures of the raw picture for methods that run no model, or on another size.
    """

    photo: str
    mask_class: str
    mask_share: float
    method: str
    setting: str
    seed: int
    size: int
    steps: int
    model: str
    net: str
    tokens_full: int
    tokens_run: int
    flop_share: float | None
    dit_seconds: float
    psnr: float
    ssim: float
    lpips: float
    psnr_dense: float
    ssim_dense: float
    lpips_dense: float
    edit_psnr: float
    edit_ssim: float
    edit_lpips: float
    sharpness: float
    ring_psnr: float | None
    ring_ssim: float | None
    ring_lpips: float | None
    ring_psnr_dense: float | None
    ring_ssim_dense: float | None
    ring_lpips_dense: float | None
    outside_psnr: float | None
    outside_psnr_dense: float | None
    outside_equal: bool
    step: float
    step_photo: float
    colour: float
    colour_photo: float


@dataclass(frozen=True, eq=False)
class Fill:
    """What a method made of a case: the finished edit, the raw picture, and the record."""

    pixels: np.ndarray
    raw: np.ndarray | None = None
    run: Run | None = None


def bench_fill(
    pipe: DiffusionPipeline,
    case: Case,
    settings: Settings,
    perceptual: LPIPS,
    costs: Costs,
    *,
    model: str = "",
    done: Container[Key] = (),
) -> Iterator[tuple[FillRow, dict[Key, np.ndarray]]]:
    """Rows of a case, but for those that are there already, each with the features of its fill.

    Args:
        settings: methods; "dense" is run whether it is among them or not, for the comparison
        costs: of this pipeline; its steps are those of the fills
        model: the pipeline's name, for the rows
        done: photo, class, method and seed of rows that need not be measured again
    """
    wanted = {
        name: setting
        for name, setting in {
            **(dict.fromkeys(CLASSICAL, "") if case.first else {}),
            **settings,
        }.items()
        if _key(case, name) not in done
    }
    if not wanted:
        return
    judge = _Judge(perceptual, case, model, _filled(pipe, case, DENSE, costs.steps))
    truth = {(case.name, case.mask_class, TRUTH, 0): pooled(judge.truth, case.mask)}
    for name, setting in wanted.items():
        if name in CLASSICAL:
            fill = _classical(case, CLASSICAL[name])
        else:
            fill = judge.dense if name == DENSE else _filled(pipe, case, setting, costs.steps)
        share = costs.share(setting, case) if setting else None
        row, features = judge.row(name, setting or name, fill, costs.steps, share)
        yield row, {**truth, _key(case, name): features}


def _key(case: Case, method: str) -> Key:
    return case.name, case.mask_class, method, case.seed


def _classical(case: Case, flag: int) -> Fill:
    holes = case.mask.astype(np.uint8)
    return Fill(
        cv2.inpaint(np.where(case.mask[..., None], np.uint8(0), case.photo), holes, 3, flag)
    )


def _filled(pipe: Any, case: Case, setting: str, steps: int) -> Fill:
    fast = compress(pipe, read_method(setting))
    with raw_pictures(pipe) as seen:
        output = fast(**case.arguments, num_inference_steps=steps, generator=case.noise())
    assert fast.last_run is not None
    raw = seen[-1][0] if isinstance(seen[-1], list) else None  # else of a size of its own
    return Fill(
        np.asarray(output.images[0]), None if raw is None else np.asarray(raw), fast.last_run
    )


@contextmanager
def raw_pictures(pipe: Any) -> Iterator[list[Any]]:
    """What the pipeline gives in this context, before the photo's own pixels are put back."""
    processor, seen = pipe.image_processor, []
    original = processor.postprocess

    def kept(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    processor.postprocess = kept
    try:
        yield seen
    finally:
        del processor.postprocess


class _Judge:
    """Compares fills of one case with its truth and with dense."""

    def __init__(self, perceptual: LPIPS, case: Case, model: str, dense: Fill) -> None:
        self.perceptual, self.case, self.model, self.dense = perceptual, case, model, dense
        self.ring = ring(case.mask)
        self.truth, self.dense_seen = see(perceptual, case.truth), see(perceptual, dense.pixels)
        self.photo = self.truth if case.photo is case.truth else see(perceptual, case.photo)
        self.dense_around = self._around(dense)

    def row(
        self, name: str, setting: str, fill: Fill, steps: int, flop_share: float | None
    ) -> tuple[FillRow, np.ndarray]:
        """The row of a fill, and its pooled features."""
        case, run, seen = self.case, fill.run, see(self.perceptual, fill.pixels)
        true = distances(self.perceptual, seen, self.truth, case.mask)
        near = distances(self.perceptual, seen, self.dense_seen, case.mask)
        led, edit = fill.pixels, true
        if run:
            led = match_border(case.photo, fill.pixels, case.mask)
            edit = distances(self.perceptual, see(self.perceptual, led), self.truth, case.mask)
        step, colour = seam(led, case.photo, case.mask)
        step_photo, colour_photo = seam(case.truth, case.truth, case.mask)
        row = FillRow(
            photo=case.name,
            mask_class=case.mask_class,
            mask_share=float(case.mask.mean()),
            method=name,
            setting=setting,
            seed=case.seed,
            size=case.photo.shape[0],
            steps=steps,
            model=self.model,
            net=self.perceptual.net,
            tokens_full=run.tokens_full if run else 0,
            tokens_run=round(run.mean_tokens_run) if run else 0,
            flop_share=flop_share,
            dit_seconds=run.dit_seconds if run else 0.0,
            **_named(true),
            **_named(near, end="_dense"),
            **_named(edit, "edit_"),
            sharpness=sharpness(fill.pixels, case.truth, case.mask),
            **self._raw(fill),
            outside_equal=bool((fill.pixels == case.photo)[~case.mask].all()),
            step=step,
            step_photo=step_photo,
            colour=colour,
            colour_photo=colour_photo,
        )
        return row, pooled(seen, case.mask)

    def _raw(self, fill: Fill) -> dict[str, Any]:
        """Figures of the raw picture, around the mask and outside it; None where there are none."""
        around, dense, outside = self._around(fill), self.dense_around, ~self.case.mask
        if around is None or dense is None or not outside.any():
            return dict.fromkeys(_RAW)
        true = distances(self.perceptual, around, self.photo, self.ring)
        near = distances(self.perceptual, around, dense, self.ring)
        return {
            **_named(true, "ring_"),
            **_named(near, "ring_", "_dense"),
            "outside_psnr": psnr(around.pixels, self.photo.pixels, outside),
            "outside_psnr_dense": psnr(around.pixels, dense.pixels, outside),
        }

    def _around(self, fill: Fill) -> Seen | None:
        """The raw picture with the photo in the mask, so that its fill counts for nothing there."""
        if fill.raw is None or fill.raw.shape != self.case.photo.shape:
            return None
        pixels = np.where(self.case.mask[..., None], self.case.photo, fill.raw)
        return see(self.perceptual, pixels)


_RAW = [name for name in FillRow.__dataclass_fields__ if name.startswith(("ring_", "outside_p"))]


def _named(found: Distances, start: str = "", end: str = "") -> dict[str, Any]:
    return {f"{start}{name}{end}": value for name, value in vars(found).items()}


def fill_sheet(
    pipe: DiffusionPipeline,
    files: Sequence[Path],
    settings: Mapping[str, Settings],
    path: Path,
    *,
    size: int = 256,
    steps: int = 8,
    columns: int = 2,
    height: int = 200,
) -> None:
    """Write what the rows are taken from, as `hilo edit` would show it, as one picture.

    The classes of masks take turns. A case shows the photo without what is hidden, a fill by each
    method of that class, and the photo; `columns` cases stand side by side, each picture `height`
    pixels high.
    """
    rows = []
    for i, file in enumerate(files):
        case = list(cases_of(file, size))[i % len(CLASSES)]
        hole = case.mask[..., None]
        pictures = [("photo", np.where(hole, np.uint8(127), case.photo))]
        for name, setting in settings[case.mask_class].items():
            fill = _filled(pipe, case, setting, steps)
            assert fill.run is not None
            led = match_border(case.photo, fill.pixels, case.mask)
            caption = f"{name.split()[0]}: {fill.run.tokens_run} tokens"
            pictures.append((caption, np.where(hole, led, case.photo)))
        shown = [(caption, Image.fromarray(p)) for caption, p in [*pictures, ("truth", case.truth)]]
        rows.append(sheet(shown, height))
    width, tall = max(row.width for row in rows), rows[0].height
    page = Image.new("RGB", (width * columns, tall * -(-len(rows) // columns)), (255, 255, 255))
    for i, row in enumerate(rows):
        page.paste(row, (i % columns * width, i // columns * tall))
    page.save(path, quality=85)
