"""Markdown tables of fills. Columns that older rows do not have are left out."""

from ..results.readings import (
    DENSE,
    OPENCV,
    Figure,
    Frame,
    Readings,
    difference,
    figure,
    groups_of,
    tokens,
    verdict,
    with_best_classical,
)
from .cells import Labels, markdown, spread


def quality_table(readings: Readings, labels: Labels) -> str:
    """Of fills: what each costs, and its figures in the mask against the truth.

    Of the edit first, which a user gets, its colours led to the photo's along the border; then of
    the fill as it was sampled.
    """
    full = readings.rows["tokens_full"].max()
    costs, more = _has(readings, "flop_share"), _has(readings, "ssim", "sharpness")
    edits = _has(readings, "edit_lpips", "edit_psnr")
    lines = []
    for mask_class, methods in groups_of(readings.rows).items():
        for i, (name, group) in enumerate(with_best_classical(methods).items()):
            share = group["mask_share"].mean()
            cells = ["" if i else f"{mask_class}, {share:.1%}".replace("%", " %")]
            cells += [OPENCV if name == OPENCV else called(group, labels)]
            cells += ["" if name == OPENCV else f"{tokens(group):.0f}"]
            if costs:
                cells.append(_percent(figure(group, "flop_share")))
            if edits:
                cells += [spread(figure(group, "edit_lpips"), 3)]
                cells += [spread(figure(group, "edit_psnr"), 1)]
            cells += [spread(figure(group, "lpips"), 3), spread(figure(group, "psnr"), 1)]
            if more:
                cells += [spread(figure(group, "ssim"), 3), octaves(figure(group, "sharpness"))]
            lines.append(cells)
    header = ["mask", "method", f"tokens of {full}", *["FLOPs, %"] * costs]
    header += ["LPIPS of the edit", "PSNR of the edit, dB"] * edits + ["LPIPS", "PSNR, dB"]
    header += ["SSIM", "gradient energy, % of the truth's"] * more
    return markdown(header, lines)


def paired_table(readings: Readings, labels: Labels) -> str:
    """Of fills: what each method loses or gains over dense, photograph by photograph."""
    more, lines = _has(readings, "ssim", "ssim_dense", "sharpness"), []
    edits = _has(readings, "edit_lpips")
    for mask_class, methods in groups_of(readings.rows).items():
        dense = methods[DENSE]
        for name, group in methods.items():
            change = difference(group, dense, "lpips")
            if name == DENSE or not group["tokens_run"].any():
                continue
            same = (group["lpips_dense"] == 0).sum()
            cells = [mask_class, called(group, labels), spread(change, 4), verdict(change)]
            if edits:
                cells.append(spread(difference(group, dense, "edit_lpips"), 4))
            cells += [spread(difference(group, dense, "psnr"), 2)]
            cells += [spread(figure(group, "psnr_dense"), 1), f"{same} of {len(group)}"]
            if more:
                cells += [spread(difference(group, dense, "ssim"), 4)]
                cells += [spread(figure(group, "ssim_dense"), 3)]
                cells += [octaves(difference(group, dense, "sharpness"))]
            lines.append(cells)
    header = ["mask", "method", "LPIPS over dense's", "difference"]
    header += ["the edit's over dense's"] * edits + ["PSNR over dense's, dB"]
    header += ["PSNR to dense, dB", "the same as dense"]
    header += ["SSIM over dense's", "SSIM to dense", "gradient energy, % of dense's"] * more
    return markdown(header, lines)


def regions_table(readings: Readings, labels: Labels) -> str:
    """Of fills: the raw picture around the mask and outside it, and the seam of the finished one.

    The seam is the mean step from pixel to pixel across the border, and the mean jump in colour,
    both over the untouched photo's own.
    """
    lines = []
    for mask_class, methods in groups_of(readings.rows).items():
        for group in methods.values():
            equal = group["outside_equal"].sum()
            cells = [mask_class, called(group, labels)]
            cells += [spread(figure(group, "ring_psnr"), 1), spread(figure(group, "ring_ssim"), 3)]
            cells += [spread(figure(group, "ring_lpips"), 3)]
            cells += [spread(figure(group, "ring_psnr_dense"), 1)]
            cells += [spread(figure(group, "outside_psnr"), 1), f"{equal} of {len(group)}"]
            lines.append([*cells, _over_photo(group, "step"), _over_photo(group, "colour")])
    header = ["mask", "method", "raw, around: PSNR, dB", "SSIM", "LPIPS", "PSNR to dense, dB"]
    header += ["raw, outside: PSNR, dB", "pasted: equal outside", "seam: step", "colour"]
    return markdown(header, lines)


def _over_photo(group: Frame, name: str) -> str:
    ours, own = group[name].sum(), group[f"{name}_photo"].sum()
    return f"{ours / max(own, 1e-9):.2f}x"


def sets_table(readings: Readings, labels: Labels) -> str:
    """Of sets of fills: the kernel distance to the set of truths, and what it has over dense's."""
    lines = []
    for row in readings.rows.itertuples():
        distance = Figure(row.distance, row.distance_low, row.distance_high, row.photos)
        over = Figure(row.over_dense, row.over_dense_low, row.over_dense_high, row.photos)
        dense = row.method == DENSE
        lines.append(
            [
                row.mask_class,
                labels.get(row.method, row.method),
                str(row.photos),
                spread(distance.scaled(1000), 2),
                "" if dense else spread(over.scaled(1000), 2),
                "" if dense else verdict(over),
            ]
        )
    header = ["mask", "method", "photographs", "kernel distance, thousandths"]
    return markdown([*header, "over dense's", "difference"], lines)


def called(group: Frame, labels: Labels) -> str:
    """A method's label; else what it ran as: more than its name, where costs are matched."""
    row = group.iloc[0]
    return labels.get(row["method"]) or row.get("setting") or row["method"]


def octaves(found: Figure | None) -> str:
    """A mean of log2 of ratios, as a percentage: the geometric mean."""
    if found is None:
        return ""
    mean, low, high = (100 * 2**value for value in found[:3])
    return spread(Figure(mean, low, high, found.photos), 0)


def _percent(found: Figure | None) -> str:
    return "" if found is None else f"{100 * found.mean:.0f}"


def _has(readings: Readings, *names: str) -> bool:
    return set(names) <= set(readings.rows)
