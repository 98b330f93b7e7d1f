"""`hilo bench classify`: does a shortened transformer still know what is on a photograph?

A diffusion classifier (arXiv 2303.16203, used so by BiGain, 2603.12240): the label under which the
model's velocity at x_t is nearest to the truth, over several noise levels, from the same noise for
all labels. The whole photograph is hidden, so that x_t and the label are all that it is told.

A method that chooses tokens by the mask has nothing to leave out there: this is for methods that
act inside the blocks. B = one picture for each label.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from PIL import Image

from ...data.cases import seed_of, square
from ...data.manifest import Entry
from ...methods import Dense, Method
from ...model import EmbeddedFillPipeline
from ..results.readings import DENSE, by_hash
from .compass import Compass


@dataclass(frozen=True)
class ClassifyRow:
    """One photograph, under one method.

    correct: 1 or 0
    lead: the least error of a wrong label over that of the true one, less 1: above 0 if correct
    seconds: for all labels and noise levels
    """

    photo: str
    label: str
    method: str
    seed: int
    labels: int
    calls: int
    predicted: str
    correct: int
    lead: float
    seconds: float


@dataclass(frozen=True)
class Labelled:
    """A photograph and its label, named for `by_hash`."""

    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.file.name


def choose(entries: Sequence[Entry], known: Sequence[str], per_label: int) -> list[Entry]:
    """Photographs with a label that the model knows, as many of each, in an order of no meaning.

    Args:
        entries: those of the split `val` are taken, where there are any
        per_label: labels with fewer photographs are left out

    Raises:
        ValueError: fewer than two labels are left to choose from.
    """
    held_out = [entry for entry in entries if entry.split == "val"] or list(entries)
    ordered = by_hash([Labelled(entry) for entry in held_out])
    by_label = {name: [one for one in ordered if one.entry.label == name] for name in known}
    enough = [some[:per_label] for some in by_label.values() if len(some) >= per_label]
    if len(enough) < 2:
        raise ValueError(
            f"{len(enough)} labels of the model have {per_label} photographs: ask for fewer of "
            f"each, or name another column; the model knows {list(known)}"
        )
    return [one.entry for one in by_hash([one for some in enough for one in some])]


def bench_classify(
    pipe: EmbeddedFillPipeline,
    entry: Entry,
    labels: Sequence[str],
    methods: Mapping[str, Method],
    *,
    size: int = 256,
    calls: int = 4,
    done: Container[tuple[str, str]] = (),
) -> Iterator[ClassifyRow]:
    """Rows of one photograph, dense first, but for photo and method that are `done`."""
    wanted = {
        name: method
        for name, method in {DENSE: Dense(), **methods}.items()
        if (entry.file.name, name) not in done
    }
    if not wanted:
        return
    seed = seed_of(entry.file.name)
    compass = LabelCompass(pipe, Image.fromarray(square(entry.file, size)), labels, seed, calls)
    for name, method in wanted.items():
        begun = perf_counter()
        error_B = compass.errors_by_picture(method).sum(0)
        seconds = perf_counter() - begun
        errors = dict(zip(labels, error_B.tolist(), strict=True))
        predicted, own = min(errors, key=errors.__getitem__), errors.pop(entry.label)
        yield ClassifyRow(
            photo=entry.file.name,
            label=entry.label,
            method=name,
            seed=seed,
            labels=len(labels),
            calls=calls,
            predicted=predicted,
            correct=int(predicted == entry.label),
            lead=min(errors.values()) / own - 1,
            seconds=seconds,
        )


class LabelCompass(Compass):
    """A photograph that is wholly hidden, once for each label, all from the same noise."""

    def __init__(
        self,
        pipe: EmbeddedFillPipeline,
        photo: Image.Image,
        labels: Sequence[str],
        seed: int,
        calls: int,
    ) -> None:
        prompts = [pipe.prompt(label=label) for label in labels]
        given = {name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]}
        images = {"image": photo, "mask_image": Image.new("L", photo.size, 255)}
        batch = {name: [image] * len(labels) for name, image in images.items()}
        size = {"width": photo.width, "height": photo.height}
        super().__init__(pipe, batch | given | size, seed, calls)
        self.noise_BNC = self.noise_BNC[:1].expand_as(self.noise_BNC)
        self.arguments |= {"latents": self.noise_BNC}
