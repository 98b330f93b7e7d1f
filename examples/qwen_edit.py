"""Edit by instruction, by Qwen-Image-Edit: no mask is drawn, the region is found during the run.

python examples/qwen_edit.py photo.jpg "make the cup red" edited.png
"""

from pathlib import Path

import torch
import typer
from diffusers import QwenImageEditPipeline
from PIL import Image

import hilotoken


def main(photo: Path, prompt: str, output: Path, steps: int = 50) -> None:
    pipe = QwenImageEditPipeline.from_pretrained("Qwen/Qwen-Image-Edit", dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    fast = hilotoken.compress(pipe, hilotoken.HiLo(find=True))
    edited = fast(
        prompt=prompt,
        negative_prompt=" ",
        true_cfg_scale=4.0,
        image=Image.open(photo).convert("RGB"),
        num_inference_steps=steps,  # width and height are left out: the model chooses
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    edited.save(output)
    print(fast.last_run)
    for reason in fast.last_run.reasons:  # why every token ran, if so
        print(reason)


if __name__ == "__main__":
    typer.run(main)
