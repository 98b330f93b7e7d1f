"""LongCat-Image-Edit: places of image tokens count on from those of the text."""

from typing import ClassVar

from .rotary import Rotary


class LongCat(Rotary):
    """Nothing differs: rows and columns are read from the first place on."""

    text_rests: ClassVar[bool] = True
