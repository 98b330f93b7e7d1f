# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # An edit session
#
# A photo kept open: edits one after another, each paying for what is new.

# %%
from pathlib import Path

from PIL import Image

import hilotoken
from hilotoken.picture import sheet

EXAMPLES = Path("..")  # as seen from this notebook's folder
NAME, SIZE, STEPS = "oakland-zoo-otters", 512, 8
fast = hilotoken.compress(hilotoken.load_model(), "balanced")
photo, mask = (
    Image.open(EXAMPLES / f"{NAME}{end}").convert(mode).resize((SIZE, SIZE))
    for end, mode in ((".jpg", "RGB"), ("_mask.png", "L"))
)
given = {"prompt": "", "width": SIZE, "height": SIZE, "num_inference_steps": STEPS}

# %% [markdown]
# Variations under one mask come one by one. The others take the context of the first, so they
# run the edit tokens alone.

# %%
session = fast.open(photo)
variations = [result.images[0] for result in session.variations(mask, 3, **given)]
print(session.last_run)
sheet([(f"seed {i}", picture) for i, picture in enumerate(variations)])

# %% [markdown]
# `accept` makes one of them the photo. The next edit starts from it, and encodes the change
# alone.

# %%
session.accept(variations[1])
corner = Image.new("L", (SIZE, SIZE))
corner.paste(255, (0, 0, SIZE // 4, SIZE // 4))
second = session.edit(corner, seed=0, **given).images[0]
print(session.last_run)
second

# %% [markdown]
# `undo` takes back what was accepted; `close`, or leaving a `with` block, lets go of what is
# kept.

# %%
session.undo()
session.close()
