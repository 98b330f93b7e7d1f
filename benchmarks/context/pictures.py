"""Drawn pictures whose hidden part can only be known from afar.

Every picture is 64 x 64 px, 16 x 16 tokens of 4 px, and 3 x 3 tokens of it are hidden. Nothing
within two tokens of the mask tells what is under it (but the key of a legend, which without its
legend says nothing). Seeded, many at a time.

B pictures, h w tokens, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

GRID, PATCH, HIDDEN, RINGS = 16, 4, 3, 2
SIDE = GRID * PATCH
SMALL = 12  # tokens a side of the pictures that training begins with
GROUNDS = ("plain", "smooth", "textured")
KEYS_63 = torch.tensor(
    [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]
).float()


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was drawn.

    image_B3HW: in [-1, 1]; the truth
    mask_Bhw:   bool, the hidden tokens
    need_Bhw:   bool, the far tokens that tell the hidden part, all of them: an oracle's choice
    ground_B:   int64, of GROUNDS
    """

    image_B3HW: Tensor
    mask_Bhw: Tensor
    need_Bhw: Tensor
    ground_B: Tensor


def draw(kind: str, count: int, generator: Generator, grid: int = GRID) -> Pictures:
    """`count` pictures of a kind, one of KINDS, of `grid` tokens a side, SMALL or GRID."""
    return KINDS[kind](_Canvas(count, generator, grid))


class _Canvas:
    """Grounds, masks and the first strokes, the same for every kind."""

    def __init__(self, count: int, generator: Generator, grid: int) -> None:
        self.B, self.generator, self.grid, self.side = count, generator, grid, grid * PATCH
        self.ground_B = torch.randint(0, len(GROUNDS), (count,), generator=generator)
        self.put_mask(*(torch.randint(1, grid - 3, (2, count), generator=generator)))
        self.image_B3HW = self.ground()

    def put_mask(self, top_B: Tensor, left_B: Tensor) -> None:
        self.top_B, self.left_B = top_B, left_B
        self.mask_Bhw = self.box(top_B, left_B, HIDDEN)
        self.edit_Bhw = self.box(top_B - RINGS, left_B - RINGS, HIDDEN + 2 * RINGS)

    def box(self, top_B: Tensor, left_B: Tensor, side: int) -> Tensor:
        """bool [B, h, w]: a square of tokens, cut off where it leaves the grid."""
        at = torch.arange(self.grid)
        rows, cols = ((at >= a[:, None]) & (at < a[:, None] + side) for a in (top_B, left_B))
        return rows[:, :, None] & cols[:, None, :]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def colour(self, *shape: int) -> Tensor:
        return self.uniform(*shape) * 2 - 1

    def ground(self) -> Tensor:
        """Plain, smooth or textured, [B, 3, H, W]."""
        plain = self.colour(self.B, 3, 1, 1)
        bends = self.colour(self.B, 3, 4, 4)
        size = (self.side, self.side)
        smooth = F.interpolate(bends, size, mode="bilinear", align_corners=True)
        noise = torch.randn(self.B, 1, *size, generator=self.generator).clamp(-1.5, 1.5)
        return self.choose(plain, 0.7 * smooth, 0.4 * plain + 0.6 * noise).clamp(-1, 1)

    def choose(self, *grounds: Tensor) -> Tensor:
        """Of each picture the one that belongs to its ground."""
        at = self.ground_B[:, None, None, None]
        return torch.where(at == 0, grounds[0], torch.where(at == 1, grounds[1], grounds[2]))

    def cells(self, count: int) -> tuple[Tensor, Tensor]:
        """Row and column of as many cells of 2 x 2 tokens, clear of the edit and of each other."""
        taken = F.max_pool2d(self.edit_Bhw.float()[:, None], 2).flatten(1)
        rank = (self.uniform(*taken.shape) - 2 * taken).argsort(1, descending=True)[:, :count]
        return rank // (self.grid // 2) * 2, rank % (self.grid // 2) * 2

    def stamp(self, row_B: Tensor, col_B: Tensor, frame_B3: Tensor, inside_B3: Tensor) -> None:
        """A frame of 2 px around 4 x 4 px, on 2 x 2 tokens."""
        y_BH, x_BW = (torch.arange(self.side) - PATCH * at[:, None] for at in (row_B, col_B))
        for low, high, colour_B3 in ((0, 8, frame_B3), (2, 6, inside_B3)):
            down, across = ((a >= low) & (a < high) for a in (y_BH, x_BW))
            self.fill(down[:, None, :, None] & across[:, None, None], colour_B3[..., None, None])

    def fill(self, where: Tensor, colour: Tensor) -> None:
        self.image_B3HW = torch.where(where, colour, self.image_B3HW)

    def answer(self, colour_B3: Tensor) -> None:
        self.fill(enlarge(self.mask_Bhw)[:, None], colour_B3[..., None, None])

    def done(self, need_Bhw: Tensor) -> Pictures:
        return Pictures(
            self.image_B3HW.contiguous(), self.mask_Bhw, need_Bhw & ~self.edit_Bhw, self.ground_B
        )


def enlarge(x: Tensor) -> Tensor:
    """Tokens as pixels."""
    return x.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


def spot(on: _Canvas) -> Pictures:
    """The colour in the white frame; three black frames are no help."""
    value, (row, col) = on.colour(on.B, 3), on.cells(4)
    for k in range(4):
        frame = torch.full((on.B, 3), 1.0 if k == 0 else -1.0)
        on.stamp(row[:, k], col[:, k], frame, value if k == 0 else on.colour(on.B, 3))
    on.answer(value)
    return on.done(on.box(row[:, 0], col[:, 0], 2))


def legend(on: _Canvas) -> Pictures:
    """The colour that the legend gives for the border's; one of four entries."""
    key = KEYS_63[on.uniform(on.B, 6).argsort(1)]
    values, (row, col) = on.colour(on.B, 4, 3), on.cells(4)
    for k in range(4):
        on.stamp(row[:, k], col[:, k], key[:, k], values[:, k])
    around = on.box(on.top_B - 1, on.left_B - 1, HIDDEN + 2)
    on.fill(enlarge(around)[:, None], key[:, 0, :, None, None])
    on.answer(values[:, 0])
    return on.done(on.box(row[:, 0], col[:, 0], 2))


def row(on: _Canvas) -> Pictures:
    """A third colour that goes on evenly from two white frames in line with it."""
    begin, end = on.colour(on.B, 3), on.colour(on.B, 3)
    middle, step = (begin + end) / 2, (end - begin) / 2
    # The widest that fit; on a small grid the nearer frame stands on the edge of the edit.
    widest = (on.grid - HIDDEN - 1) // 2
    gap = torch.randint(widest - 1, widest + 1, (on.B,), generator=on.generator)
    hidden, across = torch.randint(0, 3, (on.B,), generator=on.generator), on.uniform(on.B) < 0.5
    first = 1 + (on.uniform(on.B) * (on.grid - HIDDEN - 2 * gap)).long()
    along, beside = first + hidden * gap, torch.where(across, on.top_B, on.left_B)
    on.put_mask(torch.where(across, beside, along), torch.where(across, along, beside))
    need = torch.zeros_like(on.mask_Bhw)
    white = torch.ones(on.B, 3)
    for k in range(1, 3):
        member = (hidden + k) % 3
        at = first + member * gap
        top, left = torch.where(across, beside, at), torch.where(across, at, beside)
        on.stamp(top, left, white, middle + (member - 1)[:, None] * step)
        need |= on.box(top, left, 2)
    on.answer(middle + (hidden - 1)[:, None] * step)
    return on.done(need)


def repeat(on: _Canvas) -> Pictures:
    """A mosaic that comes again after three eighths to a half of its side, across or down."""
    colours = on.colour(on.B, 3, on.grid, on.grid)
    smooth = F.interpolate(colours, scale_factor=PATCH, mode="bilinear")
    grain = torch.randn(on.B, 1, on.side // 2, on.side // 2, generator=on.generator).clamp(
        -1.5, 1.5
    )
    grain = grain.repeat_interleave(2, -2).repeat_interleave(2, -1)
    plain = enlarge(colours)
    mosaic = on.choose(plain, smooth, (0.6 * plain + 0.4 * grain).clamp(-1, 1))
    period = torch.randint(on.grid // 2 - 2, on.grid // 2 + 1, (on.B,), generator=on.generator)
    across, whole = on.uniform(on.B) < 0.5, torch.full_like(period, on.grid)
    down_B, across_B = torch.where(across, whole, period), torch.where(across, period, whole)
    y, x = (torch.arange(on.side) % (PATCH * side[:, None]) for side in (down_B, across_B))
    mosaic = mosaic.gather(2, y[:, None, :, None].expand(-1, 3, -1, on.side))
    on.image_B3HW = mosaic.gather(3, x[:, None, None].expand(-1, 3, on.side, -1))
    need = torch.zeros_like(on.mask_Bhw)
    for times in (-2, -1, 1, 2):
        shift_B = times * period
        moved = on.top_B + shift_B * ~across, on.left_B + shift_B * across
        need |= on.box(moved[0] - RINGS, moved[1] - RINGS, HIDDEN + 2 * RINGS)
    return on.done(need)


KINDS: dict[str, Callable[[_Canvas], Pictures]] = {
    kind.__name__: kind for kind in (spot, legend, row, repeat)
}
