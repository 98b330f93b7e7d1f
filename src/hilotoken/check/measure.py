"""What each preset costs and changes: one edit by all of them in turn, again and again.

Every method edits from the same noise, and within a round all come one after the other, so that a
speed-up is a ratio of neighbouring runs. Quality is of the mask alone, against dense.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..compare import around
from ..data.cases import Case
from ..edit import Edit, edit_photo
from ..method import Method
from ..methods import PRESETS, Dense, FewerSteps, HiLo
from ..metrics.lpips import LPIPS
from ..metrics.regions import distances, psnr, seam, see, sharpness, ssim_map
from ..picture import outlined

DENSE, EDIT_ONLY, FEWER = "dense", "edit only", "half the steps"
CONTROLS = (EDIT_ONLY, FEWER)  # what does nothing clever
SAME = 100.0  # dB, which stands for equal pixels: 8 bits cannot come so near otherwise
WHOLE = 1e9  # context enough for all of the photograph
SIDE = 384  # pixels of a picture in the report
PHOTO = "photo"


@dataclass(frozen=True)
class CheckRow:
    """One edit by one method; lists have a value a round.

    tokens_run: the mean over the steps
    speedups, dit_speedups: over dense in the same round, of the whole call and of the DiT
    psnr, ssim, lpips: to dense, in the mask; psnr in dB, 100 where equal
    texture:    log2 of the gradient energy in the mask over dense's: -1 is half of it
    seam, seam_dense: the jump of colour along the mask's border, in levels of 255
    outside_equal: whether the pixels outside the mask are the photo's
    peak_gib:   most memory allocated on the GPU, weights included
    kept_mib:   keys and values that were kept between steps
    """

    photo: str
    mask_class: str
    mask_share: float
    method: str
    tokens_full: int
    tokens_run: int
    dit_seconds: list[float]
    vae_seconds: list[float]
    total_seconds: list[float]
    dit_speedups: list[float]
    speedups: list[float]
    psnr: float
    ssim: float
    lpips: float | None
    texture: float
    seam: float
    seam_dense: float
    outside_equal: bool
    peak_gib: float | None
    kept_mib: float


@dataclass(frozen=True)
class Measured:
    """A case's rows, and its pictures by method: WebP of what lies around the mask."""

    rows: list[CheckRow]
    pictures: dict[str, bytes]


def methods_to_check(extra: Mapping[str, Method | str], steps: int) -> dict[str, Method | str]:
    """Dense, the presets, what else is given, and the controls."""
    controls: dict[str, Method] = {EDIT_ONLY: HiLo(detail=0.0, coarse=0)}
    controls |= {FEWER: FewerSteps(0.5)} if steps > 1 else {}
    return {DENSE: Dense(), **{name: name for name in PRESETS}, **extra, **controls}


class Bench:
    """Edits cases by one pipeline, and remembers what it refused.

    Args:
        asked: of `edit_photo`: prompt, steps, size, seed ...
        methods: by name, dense first
        rounds: of every edit
        tell: is told what was done after each run
    """

    def __init__(
        self,
        pipe: Any,
        asked: Mapping[str, Any],
        methods: Mapping[str, Method | str],
        rounds: int,
        perceptual: LPIPS | None,
        tell: Callable[[str], None],
    ) -> None:
        self.pipe, self.asked, self.methods = pipe, asked, dict(methods)
        self.rounds, self.perceptual, self.tell = rounds, perceptual, tell
        self.refused: dict[str, str] = {}

    def warm_up(self, case: Case, control: Image.Image | None, fewest: int) -> None:
        """A short edit by each method."""
        for name in list(self.methods):
            self._tried(name, case, control, max(2, fewest))
            self.tell(f"warming up {name}")

    def measure(self, case: Case, control: Image.Image | None) -> Measured:
        """Edit a case by every method, in so many rounds."""
        edits: dict[str, list[Edit]] = {name: [] for name in self.methods}
        peaks: dict[str, float | None] = {}
        for i in range(self.rounds):
            # Back and forth: what drifts, such as a clock that heats up, favours none.
            for name in list(self.methods)[:: -1 if i % 2 else 1]:
                _forget_peak(self.pipe._execution_device)
                if edit := self._tried(name, case, control, self.asked["steps"]):
                    edits[name].append(edit)
                peaks[name] = _peak_gib(self.pipe._execution_device)
                self.tell(f"{case.name}, {case.mask_class} mask, {name}")
        edits = {name: of for name, of in edits.items() if name in self.methods}
        rows = [self._row(case, name, of, edits[DENSE], peaks[name]) for name, of in edits.items()]
        return Measured(rows, dict(_pictures(edits)))

    def _tried(self, name: str, case: Case, control: Image.Image | None, steps: int) -> Edit | None:
        """An edit; what the pipeline refuses is left out from here on."""
        try:
            return self._edit(case, control, self.methods[name], steps)
        except (ValueError, TypeError, MemoryError, torch.OutOfMemoryError) as error:
            if name == DENSE:
                raise
            self.refused[name] = str(error)
            del self.methods[name]
            return None

    def _edit(
        self, case: Case, control: Image.Image | None, method: Method | str, steps: int
    ) -> Edit:
        photo = Image.fromarray(case.photo)
        return edit_photo(
            self.pipe, photo, case.mask, method, match=False, context=WHOLE, control=control,
            **{**self.asked, "steps": steps},
        )  # fmt: skip

    def _row(
        self, case: Case, name: str, edits: list[Edit], dense: list[Edit], peak: float | None
    ) -> CheckRow:
        first, whole = edits[0], dense[0]
        mask, photo = first.mask, np.asarray(first.before)
        mine, theirs = np.asarray(first.after), np.asarray(whole.after)
        return CheckRow(
            photo=case.name,
            mask_class=case.mask_class,
            mask_share=float(mask.mean()),
            method=name,
            tokens_full=first.sum("tokens_full"),
            tokens_run=round(first.sum("mean_tokens_run")),
            dit_seconds=_seconds(edits, "dit"),
            vae_seconds=_seconds(edits, "vae"),
            total_seconds=_seconds(edits, "total"),
            dit_speedups=_speedups(dense, edits, "dit"),
            speedups=_speedups(dense, edits, "total"),
            psnr=min(SAME, psnr(mine, theirs, mask)),
            ssim=float(ssim_map(mine, theirs)[mask].mean()),
            lpips=self._lpips(mine, theirs, mask),
            texture=sharpness(mine, theirs, mask),
            seam=seam(mine, photo, mask)[1],
            seam_dense=seam(theirs, photo, mask)[1],
            outside_equal=bool((mine == photo)[~mask].all()),
            peak_gib=peak,
            kept_mib=first.sum("kept_bytes") / 2**20,
        )

    def _lpips(self, one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float | None:
        if self.perceptual is None:
            return None
        seen = see(self.perceptual, one), see(self.perceptual, other)
        return distances(self.perceptual, *seen, mask).lpips


def _seconds(edits: list[Edit], part: str) -> list[float]:
    return [edit.sum(f"{part}_seconds") for edit in edits]


def _speedups(dense: list[Edit], edits: list[Edit], part: str) -> list[float]:
    pairs = zip(_seconds(dense, part), _seconds(edits, part), strict=True)
    return [whole / own for whole, own in pairs]


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    """Most memory allocated since; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _pictures(edits: Mapping[str, list[Edit]]) -> Iterator[tuple[str, bytes]]:
    """What lies around the mask: the photograph with the mask's border, then every edit."""
    first = edits[DENSE][0]
    box = around(first.mask)
    shown = {PHOTO: outlined(first.before, first.mask)}
    shown |= {name: of[0].after for name, of in edits.items()}
    for name, picture in shown.items():
        small = picture.crop(box)
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=90)
        yield name, stream.getvalue()
