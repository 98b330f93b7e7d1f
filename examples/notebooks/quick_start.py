# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Quick start
#
# Take a party of hikers out of a desert by the model in the package, and look at what ran. No
# download, no GPU.

# %%
from pathlib import Path

import hilotoken
from hilotoken.photo import load_mask, load_photo
from hilotoken.picture import token_map

EXAMPLES = Path("..")  # as seen from this notebook's folder
SIZE, STEPS = 512, 8

# %% [markdown]
# `load_model` gives the embedded model, a `FluxFillPipeline`. Any supported pipeline will do.

# %%
pipe = hilotoken.load_model()

# %% [markdown]
# `edit_photo` takes a photo of any size. White in the mask is what may change.

# %%
edit = hilotoken.edit_photo(
    pipe,
    EXAMPLES / "extreme-desert-hike.jpg",
    EXAMPLES / "extreme-desert-hike_mask.png",
    size=SIZE,
    steps=STEPS,
)
edit.photo.rgb()

# %% [markdown]
# What ran: orange tokens are edited, blue ones kept for their detail, dots are coarse tokens;
# the dark ones were left out.

# %%
print(edit.run)
token_map(edit.before, edit.run.plan)

# %% [markdown]
# Outside the mask every pixel is the photo's own.

# %%
photo = load_photo(EXAMPLES / "extreme-desert-hike.jpg")
mask = load_mask(EXAMPLES / "extreme-desert-hike_mask.png", photo)
unchanged = bool((edit.photo.pixels == photo.pixels)[~mask].all())
print("bit for bit:", unchanged)
