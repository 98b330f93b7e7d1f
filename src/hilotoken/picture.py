"""Pictures of what happened: the token plan over the photo, and results side by side."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .plan import TokenPlan

# Okabe and Ito's palette: told apart by most people with a colour deficiency too.
OUTLINE = (0, 230, 255)
EDIT, DETAIL, COARSE = (213, 94, 0), (0, 114, 178), (240, 228, 66)
GAP, TEXT = 12, 18
PAPER, INK = (255, 255, 255), (32, 32, 32)


def token_map(
    photo: Image.Image, plan: TokenPlan, side: int = 1024, seldom: tuple[int, int] | None = None
) -> Image.Image:
    """The plan over the photo: dropped tokens dimmed, edit and detail tokens tinted, coarse dotted.

    Edit tokens are orange, detail tokens blue, coarse tokens yellow dots at their places; the
    counts stand below.

    Args:
        side: the longer one, in pixels, without the counts
        seldom: of a run that reuses context, at how many of how many steps that ran: its tint is
            faint
    """
    h, w = plan.grid
    cell = max(4, side // max(h, w))
    # Grey beneath the tints: a blue tint on orange sand would look like neither.
    grey = photo.convert("L").convert("RGB")
    canvas = grey.resize((w * cell, h * cell), Image.Resampling.LANCZOS)
    pixels = np.asarray(canvas, np.float32)
    runs = np.zeros(h * w, bool)
    runs[plan.keep_K.cpu().numpy()] = True
    edit = plan.edit_N.cpu().numpy() & runs
    tint = np.zeros((h * w, 3), np.float32)
    share = np.where(runs, 0.5, 0.0).astype(np.float32)
    if seldom:
        share[runs & ~edit] = 0.2
    tint[edit], tint[runs & ~edit] = EDIT, DETAIL
    light = np.where(runs, 1.0, 0.45).astype(np.float32)
    share, light, tint = (_spread(a.reshape(h, w, -1), cell) for a in (share, light, tint))
    mixed = pixels * light * (1 - share) + tint * share
    canvas = Image.fromarray(mixed.astype(np.uint8))
    _draw_coarse(ImageDraw.Draw(canvas), plan, cell)
    return _with_legend(canvas, _legend(plan, seldom))


def _spread(values: np.ndarray, cell: int) -> np.ndarray:
    return values.repeat(cell, 0).repeat(cell, 1)


def _draw_coarse(draw: ImageDraw.ImageDraw, plan: TokenPlan, cell: int) -> None:
    if not len(plan.cells_M):
        return
    (h, w), stride = plan.grid, plan.stride
    radius = max(2, cell // 3)
    for index in plan.cells_M.tolist():
        row, column = divmod(index, -(-w // stride))
        # The middle of what a cell has on the grid: the last ones may reach beyond.
        x, y = (
            (at * stride + min((at + 1) * stride, limit)) * cell / 2
            for at, limit in ((column, w), (row, h))
        )
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), COARSE, (0, 0, 0))


Entry = tuple[tuple[int, int, int] | None, str]  # a colour, and what it stands for


def _legend(plan: TokenPlan, seldom: tuple[int, int] | None) -> list[Entry]:
    counts, full = plan.counts, plan.tokens_full
    dropped = full - counts["edit"] - counts["detail"]
    every, some, run = "", "", plan.tokens_run
    if seldom:
        context, steps = seldom
        every, some = f", at all {steps} steps", f", at {context} of them"
        run = round(counts["edit"] + (run - counts["edit"]) * context / steps)
    return [
        (EDIT, f"{counts['edit']} edit{every}"),
        (DETAIL, f"{counts['detail']} detail{some}"),
        (COARSE, f"{counts['coarse']} coarse"),
        ((120, 120, 120), f"{dropped} dropped"),
        (None, f"{run} of {full} tokens {'a step' if seldom else 'run'} ({run / full:.0%})"),
    ]


def _with_legend(canvas: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    swatch = TEXT + 6
    width = sum(_length(text) + swatch * bool(colour) + 2 * GAP for colour, text in entries)
    size = (max(canvas.width, width), canvas.height + 2 * TEXT + GAP)
    result = Image.new("RGB", size, PAPER)
    result.paste(canvas)
    draw = ImageDraw.Draw(result)
    x, y = GAP, canvas.height + GAP
    for colour, text in entries:
        if colour:
            draw.rectangle((x, y, x + TEXT, y + TEXT), colour, INK)
            x += swatch
        draw.text((x, y), text, INK, _font())
        x += _length(text) + 2 * GAP
    return result


def sheet(pictures: Sequence[tuple[str, Image.Image]], height: int = 512) -> Image.Image:
    """Pictures in a row, all of one height, each under its caption."""
    top, widths, shown = 2 * GAP + TEXT, [], []
    for caption, picture in pictures:
        width = max(1, round(picture.width * height / picture.height))
        shown.append(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
        widths.append(max(width, _length(caption)))
    result = Image.new("RGB", (sum(widths) + GAP * (len(shown) + 1), top + height + GAP), PAPER)
    draw, x = ImageDraw.Draw(result), GAP
    for (caption, _), picture, width in zip(pictures, shown, widths, strict=True):
        draw.text((x, GAP), caption, INK, _font())
        result.paste(picture, (x, top))
        x += width + GAP
    return result


def outlined(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    """The photo with the mask's border drawn in, so that one sees what was asked for."""
    around = np.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    border = mask & ~inner
    thick = border.copy()
    thick[1:] |= border[:-1]
    thick[:, 1:] |= border[:, :-1]
    pixels = np.asarray(photo.convert("RGB")).copy()
    pixels[thick] = OUTLINE
    return Image.fromarray(pixels)


def _length(text: str) -> int:
    return int(_font().getlength(text))


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)
