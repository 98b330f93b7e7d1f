"""Settings by name, measured: plain `HiLo` values, to be printed and changed.

The FLOPs beside each are times fewer than dense's at FLUX.1's size, 1024 px, 512 text tokens and 8
steps, under masks of 6.4 / 15.9 / 35.4 %. `benchmarks/context` has what they keep and lose.
"""

from dataclasses import replace

from .hilo import HiLo
from .refresh import Refresh

# Where the model is shown the clean photo, in its channels or as a reference: Fill, Kontext, Edit.
PRESETS: dict[str, HiLo] = {
    # As in the paper, for models that were trained so: 3.2 / 2.5 / 1.6.
    "paper": HiLo(),
    # Nearest to dense, the whole context computed twice: 2.4 / 2.1 / 1.5.
    "faithful": HiLo(detail=1.0, coarse=0, refresh=2),
    # The whole context, computed once: 3.2 / 2.5 / 1.7.
    "balanced": HiLo(detail=1.0, coarse=0, refresh=1),
    # The paper's detail tokens, no coarse ones, computed twice, text with them: 7.7 / 4.4 / 2.3.
    "fast": HiLo(coarse=0, refresh=Refresh(2, text=True)),
}

# Taken where nobody says: about as dear as the paper's, nearer to dense on photographs, and of
# nothing that a model has to be trained for. Not nearest everywhere: keys of the first step did not
# last on one model of three on drawn pictures (`benchmarks/context`: the model that saw gaps).
DEFAULT = "balanced"

# Where the photo is in x_t alone (Inpaint, Image-to-Image): what is kept from the first step is
# keys of noise, so context is computed once more. Measured on drawn pictures of one kind alone:
# `faithful` held on both models that were trained for it, the others on one.
# Times fewer FLOPs: `faithful` 2.0 / 1.7 / 1.4, `balanced` 3.5 / 2.6 / 1.7, `fast` 6.4 / 4.0 / 2.2.
IN_NOISE_ALONE: dict[str, HiLo] = {
    "paper": PRESETS["paper"],
    "faithful": HiLo(detail=1.0, coarse=0, refresh=3),
    "balanced": HiLo(context="sampled", refresh=3),
    "fast": HiLo(context="sampled", cell=3, detail=0.0, refresh=Refresh(3, text=True)),
}


def preset(name: str, shown_photo: bool = True, text_rests: bool = True) -> HiLo:
    """The preset of that name, as it fits a pipeline.

    Args:
        name: of `PRESETS`
        shown_photo: whether the model is shown the clean photo beside x_t
        text_rests: whether text may run with the context alone

    Raises:
        ValueError: no such preset; the message lists those that are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {list(PRESETS)}")
    chosen = (PRESETS if shown_photo else IN_NOISE_ALONE)[name]
    refresh = chosen.refresh
    if text_rests or not isinstance(refresh, Refresh):
        return chosen
    return replace(chosen, refresh=replace(refresh, text=False))
