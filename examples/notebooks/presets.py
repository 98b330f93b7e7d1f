# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Presets compared on one photo
#
# The same edit by dense and by every preset, from the same noise: how much ran, and how near is
# it to dense?

# %%
from pathlib import Path

import numpy as np

import hilotoken
from hilotoken.picture import sheet

EXAMPLES = Path("..")  # as seen from this notebook's folder
NAME, SIZE, STEPS = "canyon-wren", 512, 8
pipe = hilotoken.load_model()

# %%
edits = {
    name: hilotoken.edit_photo(
        pipe,
        EXAMPLES / f"{NAME}.jpg",
        EXAMPLES / f"{NAME}_mask.png",
        name,
        size=SIZE,
        steps=STEPS,
    )
    for name in ("dense", *hilotoken.PRESETS)
}

# %% [markdown]
# The distance from dense in the mask, in decibels: near 40 few people see a difference, near 30
# most do. One photo proves nothing; `hilo check` does this over many, beside controls.


# %%
def decibels(one, other):
    difference = np.asarray(one.after, float)[one.mask] - np.asarray(other.after, float)[one.mask]
    mean = (difference**2).mean()
    return 10 * np.log10(255**2 / mean) if mean else np.inf


distance = {name: decibels(edits["dense"], edit) for name, edit in edits.items()}
for name, edit in edits.items():
    run = edit.run
    tokens = f"{run.mean_tokens_run:.0f} of {run.tokens_full} tokens a step"
    print(f"{name:9} {tokens}, {distance[name]:.1f} dB")

# %%
sheet([(name, edit.after) for name, edit in edits.items()])
