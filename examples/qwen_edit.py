"""Edit by instruction, by Qwen-Image-Edit: words say what, a mask says where.

python examples/qwen_edit.py photo.jpg mask.png "put a lamp on the table" edited.png
"""

from pathlib import Path

import torch
import typer
from diffusers import QwenImageEditPipeline
from PIL import Image

import hilotoken


def main(photo: Path, mask: Path, prompt: str, output: Path, steps: int = 50) -> None:
    pipe = QwenImageEditPipeline.from_pretrained("Qwen/Qwen-Image-Edit", dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    fast = hilotoken.compress(pipe, "balanced")
    edited = fast(
        prompt=prompt,
        negative_prompt=" ",
        true_cfg_scale=4.0,
        image=Image.open(photo).convert("RGB"),
        mask_image=Image.open(mask).convert("L"),
        num_inference_steps=steps,  # width and height are left out: the model chooses
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    edited.save(output)
    print(fast.last_run)


if __name__ == "__main__":
    typer.run(main)
