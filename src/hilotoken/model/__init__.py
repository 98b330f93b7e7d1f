"""The embedded model, a small `FluxFillPipeline` that ships with the package; loading others."""

from ..noise import quiet
from .load import WEIGHTS, find_device, load_model, verify
from .pipeline import EmbeddedFillPipeline
from .shape import BLOCKS, LABELS, REGISTERS, SHIFT, new_scheduler, new_transformer

__all__ = [
    "BLOCKS",
    "LABELS",
    "REGISTERS",
    "SHIFT",
    "WEIGHTS",
    "EmbeddedFillPipeline",
    "find_device",
    "load_model",
    "new_scheduler",
    "new_transformer",
    "quiet",
    "verify",
]
