"""How far an edit has come: told at every stage and step, with a preview of what is being made.

B batch, N tokens of the grid, C channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .hooks import shadowed
from .region import Region

STAGES = ("encode", "denoise", "decode", "join")


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage of an edit that begins, or a step of it that is done.

    name:        of `STAGES`
    region, regions: the region under way, from 0, and how many there are
    area:        where in the photo that is
    step, steps: denoising steps that are done in it; 0 of 0 until they are known
    show:        makes the preview of one of the pictures
    """

    name: str
    region: int
    regions: int
    area: Region
    step: int = 0
    steps: int = 0
    show: Callable[[int], Image.Image | None] = lambda picture: None

    @property
    def share(self) -> float:
        """Of the whole edit what is done, counted in steps."""
        here = self.step / self.steps if self.steps else 0.0
        return (self.region + here) / self.regions

    def preview(self, picture: int = 0) -> Image.Image | None:
        """What the model takes the region for, at half its size; None before the first step, and
        for latents of FLUX.2 and Bria Fibo.

        It costs a quarter of a decode: ask for it when it is shown.

        Args:
            picture: of those that are made together, see `edit_variations`
        """
        return self.show(picture)


Told = Callable[[Stage], None]


@contextmanager
def following(pipe: Any, stage: Stage, told: Told) -> Iterator[None]:
    """Tell of a region's run in this context: the encoders, each step, the decoder.

    What `told` raises breaks the run off there.
    """
    told(stage)
    done = 0

    def step_done(clean: Tensor) -> None:
        nonlocal done
        done += 1
        steps = len(pipe.scheduler.timesteps) - (pipe.scheduler.begin_index or 0)
        now = replace(stage, name="denoise", step=done, steps=max(done, steps))
        told(replace(now, show=lambda picture: preview(pipe, clean[picture:], stage.area)))
        if done == steps:
            told(replace(now, name="decode"))

    with each_step(pipe.scheduler, step_done):
        yield
    told(replace(stage, name="join", step=done, steps=done))


@contextmanager
def each_step(scheduler: Any, told: Callable[[Tensor], None]) -> Iterator[None]:
    """For this context, `told` hears after every step of what the model takes the picture for.

    A flow-matching sampler moves along v from x_t: the clean latents it expects are x_t - sigma v.
    """

    def step(
        original: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = original(model_output, timestep, sample, *args, **kwargs)
        sigma = float(scheduler.sigmas[scheduler.step_index - 1])
        told(sample - sigma * model_output)
        return result

    with shadowed(scheduler, "step", step):
        yield


def preview(pipe: Any, clean_BNC: Tensor, region: Region) -> Image.Image | None:
    """Expected latents as a picture of half the working size, for a quarter of the decoder's work.

    clean_BNC: as the pipeline's scheduler has them, packed or [B, C, H, W]; of a batch, the first.
        None for a layout that is not known: FLUX.2's, Bria Fibo's, JoyImage's, Kandinsky's.
    """
    latents = clean_BNC[:1]
    if latents.ndim == 3:
        if not hasattr(pipe, "_unpack_latents"):
            return None
        size = region.height, region.width, pipe.vae_scale_factor
        latents = pipe._unpack_latents(latents, *size)
    config = pipe.vae.config
    if latents.ndim == 4 and "scaling_factor" in config:
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
    elif latents.ndim == 5 and "latents_mean" in config:  # Qwen-Image's, of a video of one picture
        std, mean = (latents.new_tensor(config[f"latents_{x}"]) for x in ("std", "mean"))
        latents = latents * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)
    else:
        return None
    half = F.avg_pool2d(latents, 2) if latents.ndim == 4 else F.avg_pool3d(latents, (1, 2, 2))
    with torch.no_grad():
        # The class's own: of this pipeline's a run may decode the region alone that the mask needs.
        decode = type(pipe.vae).decode
        picture = decode(pipe.vae, half.to(pipe.vae.dtype), return_dict=False)[0].float()
    picture = picture if picture.ndim == 4 else picture[:, :, 0]
    return pipe.image_processor.postprocess(picture, output_type="pil")[0]
