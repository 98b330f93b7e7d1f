"""Photos and masks on disk: read every sample, change some, write the rest back bit for bit."""

from .mask import MASK_FROM, Mask, load_mask, read_mask
from .read import load_photo
from .value import MAX_PIXELS, Photo, PhotoError
from .write import FORMATS, check_output, is_lossless, save_photo

__all__ = [
    "FORMATS",
    "MASK_FROM",
    "MAX_PIXELS",
    "Mask",
    "Photo",
    "PhotoError",
    "check_output",
    "is_lossless",
    "load_mask",
    "load_photo",
    "read_mask",
    "save_photo",
]
