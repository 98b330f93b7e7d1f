"""Pictures of what happened: the token plan over the photo, and results side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .plan import TokenPlan

# Okabe and Ito's palette: told apart by most people with a colour deficiency too.
EDIT, DETAIL, COARSE = (213, 94, 0), (0, 114, 178), (240, 228, 66)
GAP, TEXT = 12, 18
PAPER, INK = (255, 255, 255), (32, 32, 32)


def token_map(photo: Image.Image, plan: TokenPlan, width: int = 1024) -> Image.Image:
    """The plan over the photo: dropped tokens dimmed, edit and detail tokens tinted, coarse dotted.

    Edit tokens are orange, detail tokens blue, coarse tokens yellow dots at their places; the
    counts stand below.
    """
    h, w = plan.grid
    cell = max(4, width // w)
    # Grey beneath the tints: a blue tint on orange sand would look like neither.
    canvas = photo.convert("L").convert("RGB").resize((w * cell, h * cell), Image.Resampling.LANCZOS)
    pixels = np.asarray(canvas, np.float32)
    runs = np.zeros(h * w, bool)
    runs[plan.keep_K.cpu().numpy()] = True
    edit = plan.edit_N.cpu().numpy() & runs
    tint = np.zeros((h * w, 3), np.float32)
    share = np.where(runs, 0.5, 0.0).astype(np.float32)
    tint[edit], tint[runs & ~edit] = EDIT, DETAIL
    light = np.where(runs, 1.0, 0.45).astype(np.float32)
    share, light, tint = (_spread(a.reshape(h, w, -1), cell) for a in (share, light, tint))
    mixed = pixels * light * (1 - share) + tint * share
    canvas = Image.fromarray(mixed.astype(np.uint8))
    _draw_coarse(ImageDraw.Draw(canvas), plan, cell)
    return _with_legend(canvas, plan)


def _spread(values: np.ndarray, cell: int) -> np.ndarray:
    return values.repeat(cell, 0).repeat(cell, 1)


def _draw_coarse(draw: ImageDraw.ImageDraw, plan: TokenPlan, cell: int) -> None:
    if not len(plan.cells_M):
        return
    columns = -(-plan.grid[1] // plan.stride)
    radius = max(2, cell // 3)
    for index in plan.cells_M.tolist():
        row, column = divmod(index, columns)
        x, y = ((at + 0.5) * plan.stride * cell for at in (column, row))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), COARSE, (0, 0, 0))


def _with_legend(canvas: Image.Image, plan: TokenPlan) -> Image.Image:
    counts = plan.counts
    dropped = plan.tokens_full - counts["edit"] - counts["detail"]
    entries = [
        (EDIT, f"{counts['edit']} edit"),
        (DETAIL, f"{counts['detail']} detail"),
        (COARSE, f"{counts['coarse']} coarse"),
        ((120, 120, 120), f"{dropped} dropped"),
        (None, f"{plan.tokens_run} of {plan.tokens_full} tokens run ({plan.keep_ratio:.0%})"),
    ]
    font = _font(TEXT)
    result = Image.new("RGB", (canvas.width, canvas.height + 2 * TEXT + GAP), PAPER)
    result.paste(canvas)
    draw = ImageDraw.Draw(result)
    x, y = GAP, canvas.height + GAP
    for colour, text in entries:
        if colour:
            draw.rectangle((x, y, x + TEXT, y + TEXT), colour, INK)
            x += TEXT + 6
        draw.text((x, y), text, INK, font)
        x += int(draw.textlength(text, font)) + 2 * GAP
    return result


def sheet(pictures: Sequence[tuple[str, Image.Image]], height: int = 512) -> Image.Image:
    """Pictures in a row, all of one height, each under its caption."""
    font, top = _font(TEXT), 2 * GAP + TEXT
    shown = [(c, p.convert("RGB").resize((round(p.width * height / p.height), height),
              Image.Resampling.LANCZOS)) for c, p in pictures]  # fmt: skip
    width = sum(p.width for _, p in shown) + GAP * (len(shown) + 1)
    result = Image.new("RGB", (width, top + height + GAP), PAPER)
    draw, x = ImageDraw.Draw(result), GAP
    for caption, picture in shown:
        draw.text((x, GAP), caption, INK, font)
        result.paste(picture, (x, top))
        x += picture.width + GAP
    return result


def outlined(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    """The photo with the mask's border drawn in, so that one sees what was asked for."""
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    border = mask & ~inner
    thick = border.copy()
    thick[1:] |= border[:-1]
    thick[:, 1:] |= border[:, :-1]
    pixels = np.asarray(photo.convert("RGB")).copy()
    pixels[thick] = EDIT
    return Image.fromarray(pixels)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
