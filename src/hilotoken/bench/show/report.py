"""`hilo bench report`: rows of measurements as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..results.readings import (
    CLASSICAL,
    COSTS,
    DENSE,
    KINDS,
    ORIGIN,
    Readings,
    cost,
    difference,
    figure,
    groups_of,
    verdict,
)
from .fill_tables import called
from .markdown import parts_of, tables
from .plots import embedded, plot_quality, plot_speed

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
       color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 }
h2 { margin-top: 2.5em; border-top: 1px solid #ccc; padding-top: 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums;
        display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap }
th { white-space: normal; vertical-align: bottom; min-width: 3.5em }
td:nth-child(2) { white-space: normal; min-width: 9em }
img { max-width: 100% } .wide { overflow-x: auto } .wide img { min-width: 40em }
code { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere }
@media (max-width: 40em) {
  body { margin: 1em auto } th, td { padding: .2em .4em; font-size: 13px }
}
.better { color: #11652f } .worse { color: #a11 }
"""
_TITLES = {"fill": "Quality of fills", "speed": "Speed"}
_TITLES |= {"sets": "Sets of fills", "ablate": "Ablation", "classify": "Classification"}
_ABOUT = {
    "fill": "Means over photographs of what is in the mask, with 95 % bootstrap intervals over "
    "photographs; differences are paired, photograph by photograph. Distance from the truth "
    "favours copying and blur: a plausible fill that differs from what was hidden counts as wrong. "
    "Gradient energy tells blur from detail, whatever the detail: 100 % is as much as the truth "
    "has, and noise has more. Distance from dense says what compression changes, not whether it "
    "is worse. Around the mask (16 px) and outside it, the raw picture is compared, before the "
    "photo's own pixels are put back.",
    "sets": "How far the fills of a method lie, as a set, from the set of truths: the unbiased "
    "squared kernel distance of KID, on AlexNet features of LPIPS pooled over the mask. "
    "Comparable within this table alone.",
    "speed": "Dense and compressed edits in turn; medians, and in brackets the least and the "
    "greatest. Ratios are within one round.",
    "ablate": "Variants of HiLo at equal token counts within each group. The velocity error is of "
    "one call of the transformer at fixed noise, in the mask, over the dense one's.",
    "classify": "What is on a photograph, by the label whose velocity is nearest to the truth. The "
    "whole photograph is hidden, and noise is the same for all labels.",
}
# Not figures but what a row is of, or figures that have a table of their own.
_IDENTITY = {"mask_share", "seed", "tokens_full", "tokens_run", "lpips", "psnr", "psnr_dense"}
_IN_TABLES = {"size", "steps", "flop_share", "ssim", "ssim_dense", "sharpness", "outside_psnr"}
_IN_TABLES |= {"ring_psnr", "ring_ssim", "ring_lpips", "ring_psnr_dense"}
_IN_TABLES |= {"step", "step_photo", "colour", "colour_photo"}


def html_report(
    readings: Sequence[Readings], labels: Mapping[str, str], pictures: Sequence[Path] = ()
) -> str:
    """The report of several CSVs, a section each: plots, wins and losses, tables, origin.

    Args:
        labels: what a method is called, by its name
        pictures: files that are shown first

    Raises:
        ImportError: matplotlib is missing.
        OSError: a picture cannot be read, or is none.
    """
    shown = "\n".join(_picture(path) for path in pictures)
    sections = "\n".join(_section(each, labels) for each in readings)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>hilotoken: measurements</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>hilotoken: measurements</h1>\n{shown}\n{sections}\n</body></html>\n"
    )


def _section(readings: Readings, labels: Mapping[str, str]) -> str:
    title = _TITLES[readings.kind]
    parts = [
        f"<h2>{title}: <code>{escape(readings.path.name)}</code></h2>",
        f"<p>{len(readings.rows)} rows. {_ABOUT[readings.kind]}</p>",
        _origin(readings),
    ]
    if readings.kind == "fill":
        parts += _fill(readings, labels)
    elif readings.kind == "speed":
        parts.append(_image(plot_speed(readings, labels), "speed-up of the DiT by mask"))
    for part in parts_of(readings):
        parts.append(f"<h3>{part.capitalize()}</h3>\n{_html(tables(readings, labels, part))}")
    if readings.kind == "fill" and (others := _others(readings)):
        parts.append(f"<h3>Other figures</h3>\n{_other_table(readings, labels, others)}")
    return "\n".join(parts)


def _fill(readings: Readings, labels: Mapping[str, str]) -> list[str]:
    parts = [
        _image(plot_quality(readings, labels, kind), f"quality against {kind}")
        for kind in COSTS
        if kind != "flops" or hasattr(readings.rows[0], "flop_share")
    ]
    parts.append(f"<h3>Losses beside wins</h3>\n{_outcomes(readings, labels)}")
    return parts


def _origin(readings: Readings) -> str:
    lines = []
    for name, values in readings.origin.items():
        said = ", ".join(f"<code>{escape(value)}</code>" for value in values)
        lines.append(f"<tr><th>{name}</th><td style='white-space: normal'>{said}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _outcomes(readings: Readings, labels: Mapping[str, str]) -> str:
    """Every method in every class: its cost, and whether a loss shows, a gain or neither."""
    lines = []
    for mask_class, methods in groups_of(readings.rows).items():
        dense = methods[DENSE]
        for name, group in methods.items():
            if name == DENSE:
                continue
            share = None if name in CLASSICAL else cost(group, dense, "tokens")
            label = escape(called(group, labels))
            lines.append(
                f"<tr><td>{escape(mask_class)}</td><td>{label}</td>"
                f"<td>{f'{share[0]:.0%}' if share else ''}</td>"
                f"{_change(group, dense, 'lpips', 4)}{_change(group, dense, 'psnr', 2)}</tr>"
            )
    names = ("mask", "method", "tokens", "LPIPS less dense's", "", "PSNR less dense's, dB", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _change(group: Sequence[Any], dense: Sequence[Any], name: str, digits: int) -> str:
    """Two cells: the difference with its interval, and the verdict."""
    change = difference(group, dense, name)
    if change is None:
        return "<td></td><td></td>"
    mean, low, high = (f"{value:+.{digits}f}" for value in change)
    word = verdict(change, lower_is_better=name == "lpips")
    return f"<td>{mean} [{low}, {high}]</td><td class='{word}'>{word}</td>"


def _others(readings: Readings) -> list[str]:
    """Columns of numbers that the fixed tables leave out, such as those of later versions."""
    left_out = {*ORIGIN, *_IDENTITY, *KINDS["fill"]}
    if "regions" in parts_of(readings):
        left_out |= _IN_TABLES
    row = readings.rows[0]
    return [
        name
        for name in vars(row)
        if name not in left_out
        and any(isinstance(getattr(each, name), int | float) for each in readings.rows)
    ]


def _other_table(readings: Readings, labels: Mapping[str, str], names: Sequence[str]) -> str:
    lines = []
    for mask_class, methods in groups_of(readings.rows).items():
        for group in methods.values():
            found = [figure(group, other) for other in names]
            cells = [
                f"<td>{each[0]:.4g} [{each[1]:.4g}, {each[2]:.4g}]</td>" if each else "<td></td>"
                for each in found
            ]
            first = f"<td>{escape(mask_class)}</td><td>{escape(called(group, labels))}</td>"
            lines.append(f"<tr>{first}{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ("mask", "method", *names))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _image(picture: Any, alt: str) -> str:
    return f'<p class="wide"><img alt="{escape(alt)}" src="{embedded(picture)}"></p>'


def _picture(path: Path) -> str:
    """A picture as it is in its file, within the document."""
    with Image.open(path) as picture:
        kind = Image.MIME[picture.format or ""]
    text = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:{kind};base64,{text}"></p>'


def _html(text: str) -> str:
    """Markdown of tables and single lines, which is all that is made here, as HTML."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")]
            if set(cells) != {"---"}:
                rows.append(cells)
            continue
        if rows:
            found.append(_rows(rows))
            rows = []
        if line:
            found.append(f"<p>{escape(line)}</p>")
    return "\n".join(found)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    kinds = ["th", *["td"] * (len(rows) - 1)]
    lines = [
        "".join(f"<{kind}>{_inline(cell)}</{kind}>" for cell in row)
        for kind, row in zip(kinds, rows, strict=True)
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _inline(cell: str) -> str:
    text = escape(cell.replace("¦", "|"))
    bold = text.startswith("**") and "**" in text[2:]
    return text.replace("**", "<b>", 1).replace("**", "</b>", 1) if bold else text
