"""The edit's given side: the photo, on the pipeline's own grid."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """The photo as a pipeline takes it; the mask is handed beside it, an edit at a time.

    photo_B3HW:  the photo as the pipeline resized it, in [-1, 1]
    latents_BNC: its clean latents, packed into tokens
    grid:        (h, w), N = h * w
    """

    photo_B3HW: Tensor
    latents_BNC: Tensor
    grid: tuple[int, int]

    def for_batch(self, batch: int) -> Tensor:
        """The clean latents of every picture of the batch, in the pipeline's order."""
        times = batch // len(self.latents_BNC)
        return self.latents_BNC if times == 1 else self.latents_BNC.repeat(times, 1, 1)
