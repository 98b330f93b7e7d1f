"""hilotoken: make an edit cost what it changes.

HiLo-Token (arXiv 2606.13898) for diffusers: a masked edit runs the diffusion transformer on the
tokens that matter, and the user's pixels outside the mask stay as they are.

    fast = hilotoken.compress(pipe)
    image = fast(prompt, image=photo, mask_image=mask).images[0]
"""

from .batch import edit_photos
from .compress import Compressed, compress
from .edit import edit_photo
from .methods import METHODS, Dense, HiLo, Refresh, plan_tokens
from .model import load_model
from .plan import TokenPlan
from .record import Run

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Compressed",
    "Dense",
    "HiLo",
    "Refresh",
    "Run",
    "TokenPlan",
    "__version__",
    "compress",
    "edit_photo",
    "edit_photos",
    "load_model",
    "plan_tokens",
]
