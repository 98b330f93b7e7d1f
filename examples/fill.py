"""Put something else under a mask, by FLUX.1 Fill.

python examples/fill.py photo.jpg mask.png "a white paper cup" edited.png
"""

from pathlib import Path

import torch
import typer
from diffusers import FluxFillPipeline
from PIL import Image

import hilotoken


def main(photo: Path, mask: Path, prompt: str, output: Path, steps: int = 28) -> None:
    pipe = FluxFillPipeline.from_pretrained(
        "black-forest-labs/FLUX.1-Fill-dev", dtype=torch.bfloat16
    )
    pipe.enable_model_cpu_offload()
    picture = Image.open(photo).convert("RGB")
    fast = hilotoken.compress(pipe, "balanced", match=True)
    edited = fast(
        prompt=prompt,
        image=picture,
        mask_image=Image.open(mask).convert("L"),  # white is edited
        width=picture.width // 16 * 16,
        height=picture.height // 16 * 16,
        guidance_scale=30,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    edited.save(output)
    print(fast.last_run)


if __name__ == "__main__":
    typer.run(main)
