"""Drawn pictures whose hidden part can only be known from afar.

Every picture is 64 x 64 px, 16 x 16 tokens of 4 px, and 3 x 3 tokens of it are hidden. Nothing
within two tokens of the mask tells what is under it (but the key of a legend, which without its
legend says nothing). Seeded, many at a time.

B pictures, h w tokens, H W pixels, G groups of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

GRID, PATCH, HIDDEN, RINGS = 16, 4, 3, 2
SIDE = GRID * PATCH
GROUNDS = ("plain", "smooth", "textured")
KEYS_63 = torch.tensor(
    [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]
).float()


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was drawn.

    image_B3HW: in [-1, 1]; the truth
    mask_Bhw:   bool, the hidden tokens
    tell_BGhw:  bool, what it takes to know the hidden part: one token, at least, of each group
    ground_B:   int64, of GROUNDS
    """

    image_B3HW: Tensor
    mask_Bhw: Tensor
    tell_BGhw: Tensor
    ground_B: Tensor

    @property
    def need_Bhw(self) -> Tensor:
        """bool: all far tokens that tell the hidden part, an oracle's choice."""
        return self.tell_BGhw.any(1)

    def told(self, runs_Bhw: Tensor) -> Tensor:
        """Whether the tokens that run can tell the hidden part, bool [B].

        Where they cannot, no model can: what is shown is independent of what is hidden.
        """
        return (self.tell_BGhw & runs_Bhw[:, None]).flatten(2).any(2).all(1)


def draw(
    kind: str, count: int, generator: Generator, grid: int = GRID, one_mask: bool = False
) -> Pictures:
    """`count` pictures of a kind, of KINDS or BROAD; all under one mask, if so asked.

    Training begins with smaller ones, down to 8 tokens a side, where there is room for one ring.
    """
    return (KINDS | BROAD)[kind](_Canvas(count, generator, grid, 1 if one_mask else count))


class _Canvas:
    """Grounds, masks and the first strokes, the same for every kind."""

    def __init__(self, count: int, generator: Generator, grid: int, masks: int) -> None:
        self.B, self.masks, self.generator = count, masks, generator
        self.grid, self.side = grid, grid * PATCH
        self.rings = RINGS if grid > 8 else 1
        self.ground_B = torch.randint(0, len(GROUNDS), (count,), generator=generator)
        self.put_mask(*(torch.randint(1, grid - 3, (2, masks), generator=generator)))
        self.image_B3HW = self.ground()

    def put_mask(self, top_B: Tensor, left_B: Tensor) -> None:
        self.top_B, self.left_B = top_B.expand(self.B), left_B.expand(self.B)
        self.mask_Bhw = self.box(self.top_B, self.left_B, HIDDEN)
        corner = self.top_B - self.rings, self.left_B - self.rings
        self.edit_Bhw = self.box(*corner, HIDDEN + 2 * self.rings)

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
        """Row and column of as many squares of 2 x 2 tokens, clear of the edit and of each other.

        They lie on a lattice that begins at a token of its own in every picture: on a fixed one,
        selections by cells of 2 x 2 tokens would never miss them.
        """
        room = int(self.grid > 8)  # to begin anywhere else
        side = self.grid // 2 - room
        begin_2B = torch.randint(0, 1 + room, (2, self.B), generator=self.generator)
        at = torch.arange(side)
        row_BD = begin_2B[0, :, None] + 2 * at.repeat_interleave(side)
        col_BD = begin_2B[1, :, None] + 2 * at.repeat(side)
        taken = F.max_pool2d(self.edit_Bhw.float()[:, None], 2, 1)[:, 0].flatten(1)
        taken_BD = taken.gather(1, row_BD * (self.grid - 1) + col_BD)
        chosen = (self.uniform(*row_BD.shape) - 2 * taken_BD).argsort(1, descending=True)
        chosen = chosen[:, :count]
        return row_BD.gather(1, chosen), col_BD.gather(1, chosen)

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

    def done(self, tell_BGhw: Tensor) -> Pictures:
        far_BGhw = tell_BGhw & ~self.edit_Bhw[:, None]
        return Pictures(self.image_B3HW.contiguous(), self.mask_Bhw, far_BGhw, self.ground_B)

    def hidden_tokens(self) -> list[tuple[Tensor, Tensor]]:
        """Row and column of each of the hidden tokens."""
        sides = range(HIDDEN)
        return [(self.top_B + i, self.left_B + j) for i in sides for j in sides]


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
    return on.done(on.box(row[:, 0], col[:, 0], 2)[:, None])


def legend(on: _Canvas) -> Pictures:
    """The colour that the legend gives for the border's; one of four entries."""
    key = KEYS_63[on.uniform(on.B, 6).argsort(1)]
    values, (row, col) = on.colour(on.B, 4, 3), on.cells(4)
    for k in range(4):
        on.stamp(row[:, k], col[:, k], key[:, k], values[:, k])
    around = on.box(on.top_B - 1, on.left_B - 1, HIDDEN + 2)
    on.fill(enlarge(around)[:, None], key[:, 0, :, None, None])
    on.answer(values[:, 0])
    return on.done(on.box(row[:, 0], col[:, 0], 2)[:, None])


def row(on: _Canvas) -> Pictures:
    """A third colour that goes on evenly from two white frames in line with it."""
    begin, end = on.colour(on.B, 3), on.colour(on.B, 3)
    middle, step = (begin + end) / 2, (end - begin) / 2
    # The widest that fit; on a small grid the nearer frame stands on the edge of the edit.
    widest = (on.grid - HIDDEN - 1) // 2
    gap = torch.randint(widest - 1, widest + 1, (on.masks,), generator=on.generator)
    hidden = torch.randint(0, 3, (on.masks,), generator=on.generator)
    across = on.uniform(on.masks) < 0.5
    first = 1 + (on.uniform(on.masks) * (on.grid - HIDDEN - 2 * gap)).long()
    gap, hidden, across, first = (x.expand(on.B) for x in (gap, hidden, across, first))
    along, beside = first + hidden * gap, torch.where(across, on.top_B, on.left_B)
    on.put_mask(torch.where(across, beside, along), torch.where(across, along, beside))
    tell, white = [], torch.ones(on.B, 3)
    for k in range(1, 3):
        member = (hidden + k) % 3
        at = first + member * gap
        top, left = torch.where(across, beside, at), torch.where(across, at, beside)
        on.stamp(top, left, white, middle + (member - 1)[:, None] * step)
        tell.append(on.box(top, left, 2))
    on.answer(middle + (hidden - 1)[:, None] * step)
    return on.done(torch.stack(tell, 1))


def twin(on: _Canvas) -> Pictures:
    """A pattern of two colours that stands somewhere else too."""
    one, other = on.colour(on.B, 3), on.colour(on.B, 3)
    other = torch.where((one - other).abs().sum(1, keepdim=True) < 1.5, -0.8 * one.sign(), other)
    bits = on.uniform(on.B, 1, 6, 6) < 0.5
    pattern = torch.where(bits, one[..., None, None], other[..., None, None])
    pattern = pattern.repeat_interleave(2, -2).repeat_interleave(2, -1)
    free = 1 - F.max_pool2d(on.edit_Bhw.float()[:, None], HIDDEN, 1).flatten(1)
    place = (on.uniform(*free.shape) + free).argmax(1)
    top, left = place // (on.grid - HIDDEN + 1), place % (on.grid - HIDDEN + 1)
    for a, b in ((on.top_B, on.left_B), (top, left)):
        y, x = (
            (torch.arange(on.side) - PATCH * at[:, None]).clamp(0, PATCH * HIDDEN - 1)
            for at in (a, b)
        )
        spread = pattern.gather(2, y[:, None, :, None].expand(-1, 3, -1, PATCH * HIDDEN))
        spread = spread.gather(3, x[:, None, None].expand(-1, 3, on.side, -1))
        on.fill(enlarge(on.box(a, b, HIDDEN))[:, None], spread)
    down, across = top - on.top_B, left - on.left_B
    tell = [on.box(r + down, c + across, 1) for r, c in on.hidden_tokens()]
    return on.done(torch.stack(tell, 1))


def repeat(on: _Canvas) -> Pictures:
    """A mosaic that comes again after three eighths to a half of its side, across or down."""
    colours = on.colour(on.B, 3, on.grid, on.grid)
    smooth = F.interpolate(colours, scale_factor=PATCH, mode="bilinear")
    grain = torch.randn(on.B, 1, on.side // 2, on.side // 2, generator=on.generator)
    grain = grain.clamp(-1.5, 1.5).repeat_interleave(2, -2).repeat_interleave(2, -1)
    plain = enlarge(colours)
    mosaic = on.choose(plain, smooth, (0.6 * plain + 0.4 * grain).clamp(-1, 1))
    half = on.grid // 2
    # On a small grid always a half, to learn to look there; on a larger one it has to be found out.
    fewest = {8: half, 12: half - 1}.get(on.grid, half - 2)
    period = torch.randint(fewest, half + 1, (on.B,), generator=on.generator)
    across, whole = on.uniform(on.B) < 0.5, torch.full_like(period, on.grid)
    down_B, across_B = torch.where(across, whole, period), torch.where(across, period, whole)
    y, x = (torch.arange(on.side) % (PATCH * side[:, None]) for side in (down_B, across_B))
    mosaic = mosaic.gather(2, y[:, None, :, None].expand(-1, 3, -1, on.side))
    on.image_B3HW = mosaic.gather(3, x[:, None, None].expand(-1, 3, on.side, -1))
    tell = []
    for r, c in on.hidden_tokens():
        copies = [
            on.box(r + times * period * ~across, c + times * period * across, 1)
            for times in (-2, -1, 1, 2)
        ]
        tell.append(torch.stack(copies).any(0))
    return on.done(torch.stack(tell, 1))


def line(on: _Canvas) -> Pictures:
    """A thick line across, down or aslant on plain ground, broken off around the mask."""
    on.ground_B = torch.zeros_like(on.ground_B)
    ground = on.colour(on.B, 3)
    ink = on.colour(on.B, 3)
    ink = torch.where((ink - ground).abs().sum(1, keepdim=True) < 1.5, -0.8 * ground.sign(), ink)
    middle = torch.randint(PATCH, 2 * PATCH + 1, (2, on.B), generator=on.generator)
    y_BH, x_BW = (
        torch.arange(on.side) - (PATCH * at + by)[:, None]
        for at, by in zip((on.top_B, on.left_B), middle, strict=True)
    )
    y_BH1, x_B1W = y_BH[:, :, None].expand(-1, -1, on.side), x_BW[:, None]
    ways = [y_BH1.abs() <= 2, (x_B1W + 0 * y_BH1).abs() <= 2]
    ways += [(y_BH1 - x_B1W).abs() <= 3, (y_BH1 + x_B1W).abs() <= 3]
    way_B = torch.randint(0, len(ways), (on.B,), generator=on.generator)
    drawn_BHW = torch.stack(ways, 1)[torch.arange(on.B), way_B]
    # A slanted line near a corner shows too little to be told by.
    far_Bhw = _touched(drawn_BHW) & ~on.edit_Bhw
    shown_B = far_Bhw.flatten(1).sum(1) >= on.grid
    drawn_BHW = torch.where(shown_B[:, None, None], drawn_BHW, ways[0])
    around_Bhw = on.edit_Bhw & ~on.mask_Bhw
    on.image_B3HW = ground[..., None, None].expand_as(on.image_B3HW)
    on.fill((drawn_BHW & ~enlarge(around_Bhw))[:, None], ink[..., None, None])
    return on.done(_touched(drawn_BHW)[:, None])


def field(on: _Canvas) -> Pictures:
    """The colour of the plain ground, which a ring of another keeps from the mask."""
    on.ground_B = torch.zeros_like(on.ground_B)
    ground, (row, col) = on.colour(on.B, 3), on.cells(4)
    on.image_B3HW = ground[..., None, None].expand_as(on.image_B3HW)
    told_Bhw = torch.ones_like(on.mask_Bhw)
    for k in range(4):
        on.stamp(row[:, k], col[:, k], -torch.ones(on.B, 3), on.colour(on.B, 3))
        told_Bhw &= ~on.box(row[:, k], col[:, k], 2)
    on.fill(enlarge(on.edit_Bhw)[:, None], on.colour(on.B, 3)[..., None, None])
    on.answer(ground)
    return on.done(told_Bhw[:, None])


def band(on: _Canvas) -> Pictures:
    """The colour of a band that runs across the picture, or down, clear of the edit."""
    wide = 3 if on.grid > 8 else 2
    across_B, begin_D = on.uniform(on.B) < 0.5, torch.arange(on.grid - wide + 1)
    top_B1 = torch.where(across_B, on.top_B, on.left_B)[:, None]
    clear_BD = begin_D + wide <= top_B1 - on.rings
    clear_BD |= begin_D >= top_B1 + HIDDEN + on.rings
    begin_B1 = (on.uniform(*clear_BD.shape) + clear_BD).argmax(1, keepdim=True)
    at = torch.arange(on.grid)
    in_Bg = (at >= begin_B1) & (at < begin_B1 + wide)
    tell_Bhw = torch.where(across_B[:, None, None], in_Bg[:, :, None], in_Bg[:, None])
    tell_Bhw = tell_Bhw.expand(-1, on.grid, on.grid)
    value = on.colour(on.B, 3)
    on.fill(enlarge(tell_Bhw)[:, None], value[..., None, None])
    on.answer(value)
    return on.done(tell_Bhw[:, None])


def _touched(drawn_BHW: Tensor) -> Tensor:
    """Tokens that hold any of the pixels."""
    return F.max_pool2d(drawn_BHW.float(), PATCH) > 0


Kind = Callable[[_Canvas], Pictures]
KINDS: dict[str, Kind] = {k.__name__: k for k in (spot, legend, row, twin, repeat, line)}
# Told by many tokens, so that it can be read out of noise: for a model that sees x_t alone.
BROAD: dict[str, Kind] = {k.__name__: k for k in (field, band)}
