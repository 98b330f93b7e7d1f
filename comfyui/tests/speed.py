"""Dense and HiLo in turn, on ComfyUI's sampler: `speed.py [ROUNDS] > rows.csv`.

The embedded model and the example, 512 px, 8 steps of euler. CPU seconds of one thread in the
sampler, so that other programs on the machine do not count; the first round warms up.
"""

import csv
import os
import platform
import sys
import time

import find_comfy

find_comfy.add()

import comfy.sample  # noqa: E402
import comfyui_version  # noqa: E402
import nodes as comfy_nodes  # noqa: E402
import torch  # noqa: E402
from families import runs  # noqa: E402

from comfyui import embedded, example  # noqa: E402
from comfyui.nodes import HiLoModel  # noqa: E402

CHANGES = {
    "hilo": {},
    "hilo, refresh 3": {"refresh": 3},
    "edit tokens only": {"detail": 0.0, "coarse": 0},  # the control that chooses nothing
}
PRESET = "paper"


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    loaded, vae, conditioning = embedded.load()
    photo, mask = example.load()
    encode = comfy_nodes.InpaintModelConditioning().encode
    positive, _, latent = encode(conditioning, conditioning, photo, vae, mask)
    models = {"dense": loaded}
    models |= {n: HiLoModel().patch(loaded, PRESET, photo, None, c)[0] for n, c in CHANGES.items()}
    tokens = {name: runs(model) for name, model in models.items() if name != "dense"}
    rows = csv.writer(sys.stdout)
    rows.writerow(["round", "name", "tokens_run", "cpu_seconds", "comfyui", "torch", "machine"])
    for number in range(rounds + 1):
        for name, model in models.items():
            begun = time.process_time()
            comfy.sample.sample(
                model, comfy.sample.prepare_noise(latent["samples"], 3), 8, 1.0, "euler", "simple",
                positive, positive, latent["samples"], noise_mask=latent["noise_mask"],
                disable_pbar=True, seed=3,
            )  # fmt: skip
            seconds = round(time.process_time() - begun, 3)
            ran = tokens[name][-1].plan.tokens_run if name in tokens else 1024
            here = f"{platform.machine()}, {os.cpu_count()} cores, one thread"
            if number:
                version = comfyui_version.__version__
                rows.writerow([number, name, ran, seconds, version, torch.__version__, here])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
