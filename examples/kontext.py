"""Edit by instruction under a mask, by FLUX.1 Kontext, whose pipeline has none.

python examples/kontext.py photo.jpg mask.png "make the door red" edited.png
"""

from pathlib import Path

import torch
import typer
from diffusers import FluxKontextPipeline
from PIL import Image

import hilotoken


def main(photo: Path, mask: Path, prompt: str, output: Path, steps: int = 28) -> None:
    pipe = FluxKontextPipeline.from_pretrained(
        "black-forest-labs/FLUX.1-Kontext-dev", dtype=torch.bfloat16
    )
    pipe.enable_model_cpu_offload()
    picture = Image.open(photo).convert("RGB")
    width, height = (side // 16 * 16 for side in picture.size)
    picture, white = (x.resize((width, height)) for x in (picture, Image.open(mask).convert("L")))
    fast = hilotoken.compress(pipe, "balanced")
    edited = fast(
        prompt=prompt,
        image=picture,
        mask_image=white,  # outside it, the photo's own pixels
        width=width,
        height=height,
        max_area=width * height,  # else the output has about a megapixel, and the
        _auto_resize=False,  # reference another grid: then it could not be shortened
        guidance_scale=2.5,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    edited.save(output)
    whole, run = fast.last_run.sequence
    print(f"{run} of {whole} tokens, the photo's reference among them: {fast.last_run}")


if __name__ == "__main__":
    typer.run(main)
