"""Kinds of things: a label for every photograph, and batches in which nothing else is shown.

The rest of a photograph mostly tells what lies under its mask, so a label would be passed over.
A share of the batches therefore hides the whole picture. Of those almost all pictures are given
their label, of the others half: the model must also do without.

B pictures of C channels, L = LABELS, P photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ..data.manifest import Entry
from ..model import LABELS
from .latent_cache import SIZE, STRIDE, Batch, encoder, group_photos

HIDDEN = 0.25  # share of the batches that hide the whole picture
GIVEN, GIVEN_HIDDEN = 0.5, 0.9  # share of the pictures that are given their label


@dataclass(frozen=True, eq=False)
class Labels:
    """The names, which of them each photograph has, and the latents of a hidden picture."""

    names: tuple[str, ...]
    of_P: np.ndarray  # -1 for none; in the order of the photographs that the views were made from
    blank_1CHW: Tensor
    coarse_blank_1CHW: Tensor

    def give(self, batch: Batch, scale: float, rng: np.random.Generator) -> Batch:
        """Labels for some pictures of the batch; sometimes with all else hidden.

        Mosaics stay as they are: their parts are of several kinds.
        """
        group, *others = batch.groups
        if others:
            return batch
        given, B = GIVEN, len(batch.latents)
        if rng.random() < HIDDEN:
            given, batch = GIVEN_HIDDEN, self._hide(batch, scale)
        labels_B = self.of_P[group_photos(len(self.of_P), group, B)]
        labels_B = np.where(rng.random(B) < given, labels_B, -1)
        return replace(batch, label_BL=one_hot(labels_B))

    def _hide(self, batch: Batch, scale: float) -> Batch:
        B = len(batch.latents)
        return replace(
            batch,
            masked=(self.blank_1CHW * scale).expand(B, -1, -1, -1),
            coarse_masked=(self.coarse_blank_1CHW * scale).expand(B, -1, -1, -1),
            mask=torch.ones_like(batch.mask),
        )


def one_hot(labels_B: Sequence[int] | np.ndarray) -> Tensor:
    """[B, L] with a one for each label, and nothing for -1."""
    labels = torch.as_tensor(labels_B)
    return (labels[:, None] == torch.arange(LABELS)).float()


def find_labels(
    training: Sequence[Entry], autoencoder: AutoencoderTiny, device: torch.device
) -> Labels | None:
    """The labels of the photographs, None where no photograph has one.

    Raises ValueError for more kinds than the model has room for.
    """
    names = sorted({entry.label for entry in training if entry.label})
    if len(names) > LABELS:
        raise ValueError(
            f"{len(names)} different labels, but the model has room for {LABELS}: "
            "name a column with fewer kinds, such as a superclass"
        )
    if not names:
        return None
    of_P = np.array([names.index(e.label) if e.label else -1 for e in training])
    encode = encoder(autoencoder, device)
    sides = SIZE, SIZE // STRIDE
    blank, coarse = (encode(torch.zeros(1, 3, side, side, device=device)) for side in sides)
    return Labels(
        tuple(names), of_P, torch.from_numpy(blank).float(), torch.from_numpy(coarse).float()
    )
