"""What PNG chunks and TIFF tags are called, for reading and writing alike."""

PNG_TYPES = {"I;16": 0, "RGB;16": 2, "LA;16": 4, "RGBA;16": 6}
# PNG chunks carried over as they are: colour space and text.
PNG_KEPT = (b"cHRM", b"cICP", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt")
PNG_XMP = b"XML:com.adobe.xmp\0"
# TIFF tags that are not EXIF: the layout of the samples, what has a field of its own (XMP, ICC),
# and further copies of the unedited picture (Photoshop layers, sub-images).
TIFF_LAYOUT = {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 317, 320, *range(322, 326)}
TIFF_LAYOUT |= {330, 338, 339, 347, *range(512, 522), *range(529, 533), 700, 34377, 34675, 37724}
ORIENTATION, RESOLUTION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 274, 282, 34665, 34853, 40965
