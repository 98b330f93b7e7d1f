"""Photos and masks on disk: read every sample, change some, write the rest back bit for bit."""

from .read import MAX_PIXELS, load_mask, load_photo
from .value import Photo, PhotoError
from .write import FORMATS, check_output, is_lossless, save_photo

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Photo",
    "PhotoError",
    "check_output",
    "is_lossless",
    "load_mask",
    "load_photo",
    "save_photo",
]
