"""Sequences with some of their tokens exchanged, their places, and where in a run a call is.

B batch, L of the joint sequence, M tokens in place of others, H heads, D channels a head, C in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import Layout, Rows
from .method import Short, Site


@dataclass(eq=False)
class Pending:
    """Between the hooks before and after an attention module."""

    at: Site
    body: slice  # of what the module takes: the tokens that may be touched
    joint: slice  # the same among the keys
    text: int  # keys of text, before the image's or after
    short: Short | None
    keys: Short | None
    query_rows: Rows | None = None
    key_rows: Rows | None = None


def exchange(hidden: Tensor, body: slice, other_BMC: Tensor) -> Tensor:
    """The sequence with other tokens in place of those."""
    return torch.cat([hidden[:, : body.start], other_BMC, hidden[:, body.stop :]], 1)


def restore(hidden: Tensor, body: slice, short: Short) -> Tensor:
    merged = slice(body.start, body.start + short.home_BM.shape[1])
    return exchange(hidden, merged, short.unmerge(hidden[:, merged]))


def joint_counts(
    key_BLHD: Tensor, image: slice, count_BM: Tensor | None, text: slice, emphasis: float
) -> Tensor:
    """How often each key of the joint sequence counts, [B, L]."""
    count_BL = torch.ones(key_BLHD.shape[:2], device=key_BLHD.device)
    if count_BM is not None:
        count_BL[:, image] = count_BM.to(count_BL)
    count_BL[:, text] *= emphasis
    return count_BL


def at_homes(rows: Rows, body: slice, home_BM: Tensor) -> Rows:
    """Rotary rows of each sample [B, L, ...], the body's those of its tokens' homes."""
    found = []
    for row in rows:
        around = row[: body.start], row[body.stop :]
        before, after = (part.expand(len(home_BM), *part.shape) for part in around)
        found.append(torch.cat([before, row[body][home_BM], after], 1))
    return tuple(found)


def turn(layout: Layout, x_BLHD: Tensor, rows: Rows) -> Tensor:
    """Queries or keys turned to their places; rows are the batch's, or each sample's."""
    assert layout.rotate is not None
    if rows[0].shape[0] == x_BLHD.shape[1] and rows[0].ndim == 2:
        return layout.rotate(x_BLHD, rows)
    # The model's own function knows one set of rows: samples one after the other are one sample.
    flat = layout.rotate(x_BLHD.flatten(0, 1)[None], tuple(row.flatten(0, 1) for row in rows))
    return flat.view(x_BLHD.shape)
