"""A stack of convolutions, run for a part of what comes out: each layer for what later ones need.

A crop carries one margin through all layers, and it is widest in pixels where they cost most, at
full resolution. But there few layers are left, which look a few pixels around themselves. What a
layer looks at is told by its convolutions, so windows are exact: only kernels round by the shape.

A box is of the picture, or of the latents, that it is said of; a side is its rows or its columns.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from .hooks import any_compiled

Box = tuple[slice, slice]  # rows and columns

# Of every element by itself.
POINTWISE = (nn.Identity, nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid)


class Layer(NamedTuple):
    """A layer of a stack.

    reach: elements of its input that it looks at, to each side of one
    up, down: it makes so many elements a side of one, or one of so many
    work: multiplications for an element of its output
    """

    module: nn.Module
    reach: int = 0
    up: int = 1
    down: int = 1
    work: int = 0


def layers_of(part: Any) -> list[Layer]:
    """Of the encoder or decoder of an `AutoencoderTiny`; none of any other, or where compiled.

    What those two do besides is done to every element by itself.
    """
    from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny

    if not isinstance(part, DecoderTiny | EncoderTiny) or any_compiled(part):
        return []
    layers = [_layer(module) for module in part.layers]
    return [layer for layer in layers if layer] if all(layers) else []


def _layer(module: nn.Module) -> Layer | None:
    """None for a kind of which it is not known how it looks around."""
    if isinstance(module, nn.Upsample):
        up = module.scale_factor
        known = module.mode == "nearest" and isinstance(up, int | float) and up == int(up)
        return Layer(module, up=int(up)) if known else None  # type: ignore[arg-type]
    leaves = [part for part in module.modules() if next(part.children(), None) is None]
    convolutions = [leaf for leaf in leaves if isinstance(leaf, nn.Conv2d)]
    strides = {stride for leaf in convolutions for stride in leaf.stride}
    if not all(isinstance(leaf, (nn.Conv2d, *POINTWISE)) for leaf in leaves) or not all(
        leaf.kernel_size in ((1, 1), (3, 3))
        and leaf.dilation == (1, 1)
        and leaf.padding == (leaf.kernel_size[0] // 2,) * 2
        and leaf.padding_mode == "zeros"
        for leaf in convolutions
    ):
        return None
    if strides - {1} and (module not in convolutions or len(strides) > 1):
        return None
    # As if one after the other: where they are side by side, it looks less far.
    reach = sum(leaf.kernel_size[0] // 2 for leaf in convolutions)
    work = sum(leaf.weight.numel() for leaf in convolutions)
    return Layer(module, reach, down=max(strides, default=1), work=work)


def whole_windows(layers: Sequence[Layer], size: Sequence[int]) -> list[Box]:
    """What goes in, of this height and width, and what comes out of every layer, all of it."""
    sizes = [tuple(size)]
    for layer in layers:
        sizes.append(tuple(-(-n * layer.up // layer.down) for n in sizes[-1]))
    return [(slice(0, height), slice(0, width)) for height, width in sizes]


def windows_for(layers: Sequence[Layer], size: Sequence[int], wanted: Box) -> list[Box]:
    """Of the input, of this height and width, and of each layer's output: what `wanted` needs.

    wanted: a box of the last output
    """
    whole, windows = whole_windows(layers, size), [wanted]
    for layer, box in zip(reversed(layers), reversed(whole[:-1]), strict=True):
        sides = zip(windows[-1], box, strict=True)
        windows.append(tuple(_looked_at(layer, side, all_) for side, all_ in sides))  # type: ignore[arg-type]
    return windows[::-1]


def _looked_at(layer: Layer, side: slice, whole: slice) -> slice:
    """Of a layer's input, what it looks at to make this much of its output."""
    start = side.start // layer.up * layer.down - layer.reach
    stop = (-(-side.stop // layer.up) - 1) * layer.down + 1 + layer.reach
    # Where strides begin is where they begin in the whole.
    return slice(max(0, start // layer.down * layer.down), min(whole.stop, stop))


def windows_changed(layers: Sequence[Layer], size: Sequence[int], changed: Box) -> list[Box]:
    """As `windows_for`, for all of the last output that is another where `changed` of the input is.

    The layers make nothing larger.
    """
    for layer, box in zip(layers, whole_windows(layers, size)[1:], strict=True):
        changed = tuple(  # type: ignore[assignment]
            slice(
                max(0, (side.start - layer.reach) // layer.down),
                min(all_.stop, -(-(side.stop + layer.reach) // layer.down)),
            )
            for side, all_ in zip(changed, box, strict=True)
        )
    return windows_for(layers, size, changed)


def run_windows(layers: Sequence[Layer], windows: Sequence[Box], x: Tensor) -> Tensor:
    """What the layers make of the first window, given that: the last window."""
    for layer, (before, after) in zip(layers, pairwise(windows), strict=True):
        starts = [side.start * layer.up // layer.down for side in before]
        rows, columns = (
            slice(side.start - start, side.stop - start)
            for side, start in zip(after, starts, strict=True)
        )
        x = layer.module(x)[..., rows, columns]
    return x


def area_of(boxes: Iterable[Box]) -> int:
    """Elements in the boxes."""
    return sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in boxes)


def work_of(layers: Sequence[Layer], windows: Sequence[Box]) -> int:
    """Multiplications that the layers do for their windows."""
    return sum(layer.work * area_of([box]) for layer, box in zip(layers, windows[1:], strict=True))
