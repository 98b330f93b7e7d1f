"""Plain things that a method must beat: the whole edit smaller, cropped, shorter, or at random.

B batch, H W pixels, h w token grid, N = h * w tokens.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..arguments import exact_photo
from ..checks import SEED, SIDE, settle, share, whole
from ..composite import composite_images
from ..grid import touch
from ..method import Method
from ..plan import TokenPlan, whole_plan
from ..record import Run
from .dense import Dense
from .hilo import HiLo

# Edits by a method, with the arguments of a call by their names: the output, and the record.
Edit = Callable[[Method, dict[str, Any]], tuple[Any, Run]]


@dataclass(frozen=True)
class RandomKeep(Method):
    """As many tokens as HiLo would run: those to be edited, and others at random.

    dilate, detail, coarse, bucket: HiLo's, which set how many
    seed:   of the choice
    """

    dilate: int = 2
    detail: float = 0.10
    coarse: int = 4
    bucket: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, dilate=whole(0, SIDE), detail=share(), coarse=whole(0, SIDE))
        settle(self, bucket=whole(1), seed=whole(0, SEED))
        self._hilo()

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        like = self._hilo().plan(photo_B3HW, mask_B1HW, grid)
        order_N = torch.randperm(like.tokens_full, generator=self._generator())
        rank_N = order_N.masked_fill(like.edit_N, -1)  # those to be edited come first
        keep_K = rank_N.argsort(stable=True)[: like.tokens_run].sort().values
        return TokenPlan(grid, keep_K, like.edit_N, 0, torch.arange(0), torch.ones(len(keep_K)))

    def _hilo(self) -> HiLo:
        return HiLo(dilate=self.dilate, detail=self.detail, coarse=self.coarse, bucket=self.bucket)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


class Control(Method):
    """A method that changes the whole call, and leaves the photo's own pixels outside the mask."""

    site: ClassVar[str] = "call"

    def run(self, edit: Edit, pipe: Any, given: dict[str, Any], feather: int) -> tuple[Any, Run]:
        """Stands in for a call of the pipeline: its output, and the record of what was run.

        Args:
            edit: runs the pipeline by another method, on arguments that may be changed
            pipe: the pipeline itself
            given: the arguments of the call, by their names
            feather: pixels over which the edit is blended in, inside the mask
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FewerSteps(Control):
    """The same edit in fewer denoising steps.

    share: of the steps asked for, at least one
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        settle(self, share=share())

    @property
    def alike(self) -> bool:
        return False

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return [[f"share={k / steps:.3g}" for k in range(steps - 1, 0, -1)]]

    def run(self, edit: Edit, pipe: Any, given: dict[str, Any], feather: int) -> tuple[Any, Run]:
        if given.get("sigmas") is not None or given.get("timesteps") is not None:
            raise ValueError("fewer_steps sets the steps: leave out sigmas and timesteps")
        if given.get("num_inference_steps") is None:
            raise ValueError("fewer_steps takes a share of num_inference_steps: give that")
        steps = max(1, round(self.share * given["num_inference_steps"]))
        return edit(Dense(), given | {"num_inference_steps": steps})


class _Resized(Control):
    """A control that edits a picture of another size and puts the edit back into the whole."""

    def smaller(self, photo_B3HW: Tensor, mask_B1HW: Tensor, token: int) -> tuple[Any, TokenPlan]:
        """What to edit, as arguments, and which tokens that is."""
        raise NotImplementedError

    def back(self, edited_B3HW: Tensor, photo_B3HW: Tensor, plan: TokenPlan, token: int) -> Tensor:
        """The edit at its place in the whole picture."""
        raise NotImplementedError

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        return self.smaller(photo_B3HW, mask_B1HW, photo_B3HW.shape[-2] // grid[0])[1]

    def run(self, edit: Edit, pipe: Any, given: dict[str, Any], feather: int) -> tuple[Any, Run]:
        started, kind = time.perf_counter(), given.get("output_type", "pil")
        self._check(pipe, given, kind)
        size = {name: _side(pipe, given.get(name)) for name in ("height", "width")}
        photo_B3HW = pipe.image_processor.preprocess(given["image"], **size).float()
        mask_B1HW = pipe.mask_processor.preprocess(given["mask_image"], **size).float()
        token = 2 * pipe.vae_scale_factor
        changes, plan = self.smaller(photo_B3HW / 2 + 0.5, mask_B1HW, token)
        output, run = edit(Dense(), given | changes | {"output_type": "pt", "return_dict": True})
        whole_B3HW = self.back(output.images.float().cpu(), photo_B3HW / 2 + 0.5, plan, token)
        images = composite_images(
            _as(kind, whole_B3HW),
            exact_photo(given["image"], photo_B3HW),
            mask_B1HW,
            feather,
        )
        run = dataclasses.replace(
            run,
            plan=plan,
            sequence=(plan.tokens_full, plan.tokens_run),
            total_seconds=time.perf_counter() - started,
        )
        if not given.get("return_dict", True):
            return (images,), run
        output.images = images
        return output, run

    def _check(self, pipe: Any, given: dict[str, Any], kind: str) -> None:
        name = type(self).__name__
        if getattr(pipe, "mask_processor", None) is None or given.get("mask_image") is None:
            raise ValueError(f"{name} needs a pipeline that takes mask_image, and a mask")
        for other in ("padding_mask_crop", "latents", "masked_image_latents"):
            if given.get(other) is not None:
                raise ValueError(f"{name} changes the size of what is edited: leave out {other}")
        if kind == "latent":
            raise ValueError(f"{name} puts pixels back: an output_type of 'latent' has none")


@dataclass(frozen=True)
class Downsample(_Resized):
    """The whole edit at a lower resolution, enlarged inside the mask only.

    factor: how many times fewer tokens a side
    """

    factor: int = 2

    def __post_init__(self) -> None:
        settle(self, factor=whole(1, SIDE))

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return [[f"factor={n}" for n in range(2, min(8, side) + 1)]]

    def smaller(self, photo_B3HW: Tensor, mask_B1HW: Tensor, token: int) -> tuple[Any, TokenPlan]:
        h, w = (side // token for side in photo_B3HW.shape[-2:])
        small = -(-h // self.factor), -(-w // self.factor)
        size = small[0] * token, small[1] * token
        photo = F.interpolate(photo_B3HW, size, mode="bicubic", antialias=True).clamp(0, 1)
        mask = F.adaptive_max_pool2d(mask_B1HW, size)
        changes = {"image": photo, "mask_image": mask, "height": size[0], "width": size[1]}
        edit_N = touch(mask_B1HW, (h, w)).any(0).flatten().cpu()
        if self.factor == 1:
            return changes, whole_plan((h, w), edit_N)
        cells_M = torch.arange(small[0] * small[1])
        count_M = torch.full((len(cells_M),), h * w / len(cells_M))
        return changes, TokenPlan((h, w), torch.arange(0), edit_N, self.factor, cells_M, count_M)

    def back(self, edited_B3HW: Tensor, photo_B3HW: Tensor, plan: TokenPlan, token: int) -> Tensor:
        size = photo_B3HW.shape[-2:]
        return F.interpolate(edited_B3HW, size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class CropStitch(_Resized):
    """The part of the picture around the mask alone, pasted back.

    margin: tokens around the mask's box, on every side that has them
    """

    margin: int = 4

    def __post_init__(self) -> None:
        settle(self, margin=whole(0, SIDE))

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return [[f"margin={n}" for n in range(side - 1, -1, -1)]]

    def smaller(self, photo_B3HW: Tensor, mask_B1HW: Tensor, token: int) -> tuple[Any, TokenPlan]:
        h, w = (side // token for side in photo_B3HW.shape[-2:])
        touched_hw = touch(mask_B1HW, (h, w)).any(0).cpu()
        rows, columns = (self._span(touched_hw.any(axis)) for axis in (1, 0))
        keep_N = torch.zeros(h, w, dtype=torch.bool)
        keep_N[rows, columns] = True
        keep_K = keep_N.flatten().nonzero().flatten()
        plan = TokenPlan(
            (h, w), keep_K, touched_hw.flatten(), 0, torch.arange(0), torch.ones(len(keep_K))
        )
        pixels = [slice(s.start * token, s.stop * token) for s in (rows, columns)]
        height, width = (s.stop - s.start for s in pixels)
        photo, mask = (x[..., pixels[0], pixels[1]] for x in (photo_B3HW, mask_B1HW))
        return {"image": photo, "mask_image": mask, "height": height, "width": width}, plan

    def back(self, edited_B3HW: Tensor, photo_B3HW: Tensor, plan: TokenPlan, token: int) -> Tensor:
        top, left = (
            int(x[0]) * token for x in (plan.keep_K // plan.grid[1], plan.keep_K % plan.grid[1])
        )
        height, width = edited_B3HW.shape[-2:]
        repeats = len(edited_B3HW) // len(photo_B3HW)
        whole_B3HW = photo_B3HW.cpu().repeat(repeats, 1, 1, 1)
        whole_B3HW[..., top : top + height, left : left + width] = edited_B3HW
        return whole_B3HW

    def _span(self, touched: Tensor) -> slice:
        """Rows or columns from the first touched to the last, with the margin; all if none is."""
        found = touched.nonzero().flatten()
        if not len(found):
            return slice(0, len(touched))
        first, last = int(found[0]), int(found[-1])
        return slice(max(0, first - self.margin), min(len(touched), last + 1 + self.margin))


def _side(pipe: Any, given: int | None) -> int:
    return given or pipe.default_sample_size * pipe.vae_scale_factor


def _as(kind: str, images_B3HW: Tensor) -> Any:
    """Pictures in [0, 1] in the form that a pipeline gives them."""
    if kind == "pt":
        return images_B3HW
    array = images_B3HW.permute(0, 2, 3, 1).numpy()
    if kind == "np":
        return array
    return [Image.fromarray(one) for one in np.rint(array * 255).astype(np.uint8)]
