"""LongCat-Image-Edit: places of image tokens count on from those of the text."""

from .rotary import Rotary


class LongCat(Rotary):
    """Nothing differs: rows and columns are read from the first place on."""
