"""`hilo bench speed`: what a method saves, dense and compressed in turn, as a ratio in one run.

FLOPs are counted beside the seconds. Their ratio is what a method could save at most where
arithmetic is all that costs; how much of it the clock saw is the realised share.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...compress import compress
from ...data.cases import CLASSES
from ...methods import Dense, Method
from ...record import Run
from .arch import Subject
from .flops import count_flops
from .steer import edited_under, source_of, steered


@dataclass(frozen=True)
class Case:
    """A mask that covers a share of a square of `size` pixels a side."""

    mask_class: str
    share: float
    size: int


@dataclass(frozen=True)
class SpeedRow:
    """One edit, timed. Ratios are over the dense edit of the same repeat.

    text:         tokens of the prompt
    tokens_full, tokens_run: of the picture, and of it those that run, the mean over the steps
    sequence_full, sequence_run: with the tokens of references, those of a step that runs them
    rest_seconds: of the total, neither DiT nor VAE
    plan_share:   planning, over the DiT's time of a dense edit
    processor_seconds, processor_speedup: of the DiT, on all cores of a CPU together: what other
                  work on the machine disturbs less than the clock; empty on a GPU
    edit_processor_seconds, edit_processor_speedup: the same of the whole edit
    decoded, encoded: share of the autoencoder's work that was done, where a region is enough
    peak_gib:     most memory allocated on the GPU, weights included; empty on a CPU
    dit_tflops:   of the DiT in this edit, counted
    flop_ratio:   dense over this, counted
    realised:     dit_speedup / flop_ratio
    warm_graphs:  graphs this process compiled until the first mask was warmed up
    new_graphs:   graphs compiled since then: none may be
    """

    arch: str
    scale: str
    shape: str
    dtype: str
    text: int
    mask_class: str
    mask_share: float
    method: str
    repeat: int
    size: int
    steps: int
    tokens_full: int
    tokens_run: int
    sequence_full: int
    sequence_run: int
    dit_seconds: float
    vae_seconds: float
    plan_seconds: float
    rest_seconds: float
    total_seconds: float
    plan_share: float
    peak_gib: float | None
    dit_tflops: float
    flop_ratio: float
    dit_speedup: float
    realised: float
    speedup: float
    processor_seconds: float | None
    processor_speedup: float | None
    edit_processor_seconds: float | None
    edit_processor_speedup: float | None
    decoded: float
    encoded: float
    warm_graphs: int
    new_graphs: int


def cases(masks: str, size: int) -> list[Case]:
    """From names of mask classes and shares, separated by commas.

    Raises:
        ValueError: neither a class nor a share of at most 0.75; a size that is no multiple of 16.
    """
    if size % 16:
        raise ValueError(f"size must be a multiple of 16 pixels, got {size}")
    return [_case(text.strip(), size) for text in masks.split(",")]


def _case(text: str, size: int) -> Case:
    if text in CLASSES:
        return Case(text, CLASSES[text], size)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 0.75:  # a disc that covers more would reach beyond the square
        raise ValueError(
            f"unknown mask {text!r}; choose from {list(CLASSES)}, or a share above 0 and up to 0.75"
        )
    return Case(text, share, size)


def disc(size: int, share: float) -> np.ndarray:
    """A disc in the middle that covers that share of a square: bool [size, size]."""
    row, column = np.ogrid[:size, :size]
    middle = (size - 1) / 2
    return (row - middle) ** 2 + (column - middle) ** 2 <= share * size**2 / np.pi


def bench_speed(
    subject: Subject,
    methods: Mapping[str, Method | str],
    cases: Sequence[Case],
    *,
    steps: int,
    repeats: int,
) -> Iterator[SpeedRow]:
    """Edit noise under a disc for each case, after one step of every method to count and warm up.

    A method that finds its region is given no mask; the edit is led to change the disc.

    Speed depends on lengths alone, so neither photo nor weights matter to it.

    Args:
        methods: by the name that their rows have; a name alone, as of a preset, is as `compress`
            takes it
    """
    named = {"dense": Dense(), **methods}
    everything = {name: compress(subject.pipe, method).method for name, method in named.items()}
    dense_flops: dict[int, float] = {}  # by size: a dense edit is the same under every mask
    warm = None
    for case in cases:
        flops = {"dense": dense_flops[case.size]} if case.size in dense_flops else {}
        for name, method in everything.items():
            if name not in flops:
                flops[name] = _warm_up(subject, case, method, steps)
        dense_flops[case.size] = flops["dense"]
        warm = graphs() if warm is None else warm
        for repeat in range(repeats):
            dense = None
            for name, method in everything.items():
                done = edit(subject, case, method, steps)
                done.flops = flops[name] * done.calls
                dense = dense or done
                yield _row(subject, case, name, repeat, done, dense, warm)


@dataclass
class Timed:
    """One edit.

    calls, flops: of its DiT
    processor, whole: seconds of the DiT and of the edit, on a CPU
    peak: memory in GiB, on a GPU
    """

    run: Run
    steps: int
    calls: int
    processor: float | None = None
    whole: float | None = None
    peak: float | None = None
    flops: float = 0.0


def _warm_up(subject: Subject, case: Case, method: Method, steps: int) -> float:
    """FLOPs of a call of the DiT: of one step's, or the mean where the steps differ."""
    run = partial(edit, subject, case, method, steps=1 if method.alike else steps)
    flops = count_flops(run, subject.pipe.transformer)
    if subject.compiled:  # not warm yet: while counted, all runs eagerly
        run()
    return flops


def edit(subject: Subject, case: Case, method: Method, steps: int) -> Timed:
    """One edit of noise under the case's disc."""
    pixels = np.random.default_rng(0).integers(0, 256, (case.size, case.size, 3), np.uint8)
    mask, photo = disc(case.size, case.share), Image.fromarray(pixels)
    given = {} if method.find else {"mask_image": Image.fromarray(mask.astype(np.uint8) * 255)}
    fast, model = compress(subject.pipe, method), subject.pipe.transformer
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    started = time.process_time()
    with _led(subject, method, photo, mask), _processor_time(model) as spent:
        fast(
            **subject.arguments,
            **subject.square(case.size),
            **given,
            image=photo,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
    whole = time.process_time() - started
    assert fast.last_run is not None
    done = Timed(fast.last_run, steps, len(spent) // 2)
    if on_gpu:
        done.peak = torch.cuda.max_memory_allocated(model.device) / 2**30
    elif model.device.type == "cpu":
        done.processor, done.whole = sum(spent), whole
    return done


def _led(
    subject: Subject, method: Method, photo: Image.Image, mask: np.ndarray
) -> AbstractContextManager[None]:
    """A method that finds its region is led to one: what random weights change has none."""
    if not method.find:
        return nullcontext()
    source_1NC = source_of(subject.pipe, photo, torch.Generator().manual_seed(0))
    grid = photo.height // 16, photo.width // 16
    target_1NC = edited_under(source_1NC, mask, grid, method.find.grow)
    return steered(subject.pipe, lambda sigma: target_1NC, source_1NC)


@contextmanager
def _processor_time(module: nn.Module) -> Iterator[list[float]]:
    """Seconds of this process, minus at the start of each forward pass and plus at its end."""
    spent = []
    handles = [
        module.register_forward_pre_hook(lambda *_: spent.append(-time.process_time())),
        module.register_forward_hook(lambda *_: spent.append(time.process_time())),
    ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _row(
    subject: Subject, case: Case, name: str, repeat: int, edit: Timed, dense: Timed, warm: int
) -> SpeedRow:
    run = edit.run
    fewer = dense.flops / edit.flops
    faster = dense.run.dit_seconds / run.dit_seconds
    return SpeedRow(
        arch=subject.arch,
        scale=subject.scale,
        shape=subject.shape,
        dtype=str(subject.pipe.transformer.dtype).removeprefix("torch."),
        text=subject.text,
        mask_class=case.mask_class,
        mask_share=float(disc(case.size, case.share).mean()),
        method=name,
        repeat=repeat,
        size=case.size,
        steps=edit.steps,
        tokens_full=run.tokens_full,
        tokens_run=round(run.mean_tokens_run),
        sequence_full=run.sequence[0],
        sequence_run=run.sequence[1],
        dit_seconds=run.dit_seconds,
        vae_seconds=run.vae_seconds,
        plan_seconds=run.plan_seconds,
        rest_seconds=run.total_seconds - run.dit_seconds - run.vae_seconds,
        total_seconds=run.total_seconds,
        plan_share=run.plan_seconds / dense.run.dit_seconds,
        peak_gib=edit.peak,
        dit_tflops=edit.flops / 1e12,
        flop_ratio=fewer,
        dit_speedup=faster,
        realised=faster / fewer,
        speedup=dense.run.total_seconds / run.total_seconds,
        processor_seconds=edit.processor,
        processor_speedup=edit.processor and (dense.processor or 0) / edit.processor,
        edit_processor_seconds=edit.whole,
        edit_processor_speedup=edit.whole and (dense.whole or 0) / edit.whole,
        decoded=run.decoded,
        encoded=run.encoded,
        warm_graphs=warm,
        new_graphs=graphs() - warm,
    )


def graphs() -> int:
    """Graphs that torch has compiled in this process, recompilations included."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
