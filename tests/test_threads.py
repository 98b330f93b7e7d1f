"""Pipelines that share a transformer, each run by a thread of its own: as if each were alone."""

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from contract import of_classes
from families import BY_NAME
from family import Lack
from tiny import make_mask
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hilotoken import HiLo, compress
from hilotoken.methods import StepCache, ToDo, ToMe

PIPELINES = [
    "FluxInpaintPipeline", "QwenImageInpaintPipeline", "StableDiffusion3InpaintPipeline",
    "ZImageInpaintPipeline",
]  # fmt: skip
ONLY_WITH = {
    "aligned": Lack.ALIGNED, "step cache": Lack.STEP_CACHE, "ToMe": Lack.BLOCKS,
    "ToDo": Lack.BLOCKS, "ToMe inside": Lack.BLOCKS,
}  # fmt: skip
SMALL = HiLo(bucket=8)
METHODS: dict[str, dict[str, Any]] = {
    "few tokens": {"method": SMALL},
    "refresh": {"method": HiLo(refresh=2, bucket=8)},
    "weights": {"method": HiLo(context="sampled", weights=True, bucket=8)},
    "aligned": {"method": HiLo(positions="aligned", weights=True, bucket=8)},
    "ToMe": {"method": ToMe()},
    "ToDo": {"method": ToDo()},
    "ToMe inside": {"method": SMALL, "inside": ToMe()},
    "step cache": {"method": StepCache(threshold=1e9)},
}
PATIENCE = 0.2  # seconds that a thread waits for its turn, where another may be waiting for it


class Turns:
    """Threads that take turns: each is in the middle of its work while another does its own.

    A thread hands over at every `every`-th call of any module.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.calls: Counter[int] = Counter()
        self.queue: list[int] = []  # of threads; the first has its turn
        self.moved = threading.Condition()

    def run(self, *works: Callable[[], Any]) -> list[Any]:
        """What each of them gave."""
        together = threading.Barrier(len(works))

        def take_part(work: Callable[[], Any]) -> Any:
            me = threading.get_ident()
            self.queue.append(me)
            together.wait()
            try:
                return work()
            finally:
                with self.moved:
                    self.queue.remove(me)
                    self.moved.notify_all()

        handle = register_module_forward_pre_hook(self._hand_over)
        try:
            with ThreadPoolExecutor(len(works)) as pool:
                return [made.result() for made in [pool.submit(take_part, w) for w in works]]
        finally:
            handle.remove()

    def _hand_over(self, module: nn.Module, args: Any) -> None:
        me = threading.get_ident()
        self.calls[me] += 1
        if me not in self.queue or self.calls[me] % self.every:
            return
        with self.moved:
            self.queue.remove(me)
            self.queue.append(me)
            self.moved.notify_all()
            self.moved.wait_for(lambda: self.queue[0] == me, PATIENCE)


def beside(pipe: Any) -> Any:
    """Another pipeline of the same transformer; scheduler and autoencoder keep a state each."""
    own = {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    own |= {"vae": copy.deepcopy(pipe.vae)}
    made = type(pipe)(**pipe.components | own)
    made.set_progress_bar_config(disable=True)
    return made


def call(edit: Any, pipe: Any, **changes: Any) -> Callable[[], Tensor]:
    return lambda: pipe(**edit.arguments(**{"num_inference_steps": 3} | changes))[0]


def works(edit: Any, **options: Any) -> list[Callable[[], Tensor]]:
    """Two compressed runs, with another mask each, and a plain one."""
    one, other = (compress(pipe, **options) for pipe in (edit.pipe, beside(edit.pipe)))
    return [
        call(edit, one),
        call(edit, other, mask_image=make_mask(box=(0, 0, 90, 200))),
        call(edit, beside(edit.pipe)),
    ]


def rows() -> Iterator[Any]:
    for name in PIPELINES:
        for method in METHODS:
            lacked = BY_NAME[name].lacks.get(ONLY_WITH.get(method))  # type: ignore[arg-type]
            marks = [pytest.mark.skip(reason=lacked)] if lacked else []
            yield pytest.param((BY_NAME[name],), method, id=f"{name}-{method}", marks=marks)


@pytest.mark.parametrize(("edit", "method"), rows(), indirect=["edit"])
def test_each_thread_runs_as_if_it_were_alone(edit, method):
    runs = works(edit, **METHODS[method])
    alone = [run() for run in runs]
    assert not torch.equal(alone[0], alone[1])
    for every in (1, 7):
        found = Turns(every).run(*runs)
        assert [torch.equal(a, b) for a, b in zip(found, alone, strict=True)] == [True] * 3


@contextmanager
def hasty() -> Iterator[None]:
    """Python changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@of_classes(["FluxInpaintPipeline"])
def test_twenty_runs_of_twenty_are_right_as_threads_come(edit):
    runs = works(edit, method=HiLo(refresh=2, bucket=8))
    alone = [run() for run in runs]
    with hasty(), ThreadPoolExecutor(len(runs)) as pool:
        found = list(pool.map(lambda run: [run() for _ in range(20)], runs))
    for ours, expected in zip(found, alone, strict=True):
        assert sum(torch.equal(image, expected) for image in ours) == 20


@of_classes(["FluxInpaintPipeline"])
def test_methods_of_all_kinds_at_once(edit):
    runs = [call(edit, compress(beside(edit.pipe), **options)) for options in METHODS.values()]
    alone = [run() for run in runs]
    found = Turns(3).run(*runs)
    right = [torch.equal(a, b) for a, b in zip(found, alone, strict=True)]
    assert dict(zip(METHODS, right, strict=True)) == dict.fromkeys(METHODS, True)
