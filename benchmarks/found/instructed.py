"""The embedded model as an instruction editor: it knows where to edit, and HiLo does not."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from hilotoken import load_model
from hilotoken.model.pipeline import EmbeddedFillPipeline

SHIFT = 1.15  # FLUX's at 1024 px: the embedded model's own schedule is done after a step


class Instructed(EmbeddedFillPipeline):
    """A Fill pipeline that takes no mask: it has one, as an instruction would point to a place."""

    hidden: Image.Image

    @torch.no_grad()
    def __call__(self, image: Image.Image, **given: Any) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return super().__call__(image=image, mask_image=self.hidden, **given)


def instructed() -> Instructed:
    """The embedded model, at FLUX's schedule."""
    pipe = Instructed(**load_model().components)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
