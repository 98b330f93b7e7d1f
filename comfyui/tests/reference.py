"""What diffusers makes with the embedded model: `python reference.py OUT.pt`, without ComfyUI."""

import sys

import torch
from methods import METHODS, SIZE, STEPS, photo_and_mask, white

import hilotoken
from hilotoken.noise import quiet


def main(out: str) -> None:
    pipe = hilotoken.load_model()
    pipe.set_progress_bar_config(disable=True)
    photo, mask = photo_and_mask()
    packed = pipe._pack_latents(quiet(white()), 1, 8, SIZE // 8, SIZE // 8)
    given = {"image": photo, "mask_image": mask, "height": SIZE, "width": SIZE}
    given |= {"latents": packed, "num_inference_steps": STEPS, "output_type": "latent"}
    made = {}
    for name, method in METHODS.items():
        call = pipe if method is None else hilotoken.compress(pipe, method)
        latents = call(**given).images
        tokens = None if method is None else call.last_run.tokens_run
        made[name] = {"tokens": tokens, "latents": latents}
    torch.save(made, out)


main(sys.argv[1])
