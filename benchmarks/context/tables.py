"""The tables of README.md, made from the committed rows: `python -m benchmarks.context.tables`.

Intervals are 95 % bootstrap intervals over pictures (2,000 draws); differences are paired, picture
by picture. A table stands between two comments that name it, and is written anew in its place.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np

from hilotoken import plan_tokens
from hilotoken.bench.results.readings import SAME, interval
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES, hidden, square

from .evaluate import NUMBERS
from .flops import FLUX_FILL
from .model import SHIFT
from .photos import METHODS
from .pictures import GROUNDS, KINDS
from .rows import RESULTS, read

README = Path(__file__).parent / "README.md"
CHOOSING = Path(__file__).parents[2] / "docs" / "explanation" / "choosing-tokens.md"
EXAMPLES = Path(__file__).parents[2] / "examples"
Rows = list[dict[str, str]]
PAIRS = (
    ("paper", "edit only"),
    ("paper", "random"),
    ("paper", "detail"),
    ("paper, native", "paper"),
    ("paper, aligned", "paper"),
    ("detail, mixed scores", "detail"),
    ("half detail, half random", "paper"),
    ("sampled 3", "random"),
    ("sampled 3", "sampled 3, no weights"),
    ("foveated", "sampled 3"),
    ("pyramid", "foveated"),
    ("whole, once", "paper"),
    ("whole, once", "dense"),
    ("whole, twice", "whole, once"),
    ("whole, twice, text kept", "whole, twice"),
    ("attended 25 %, once", "whole, once"),
    ("attended 10 %, once", "whole, once"),
    ("sampled 2, twice", "paper"),
    ("detail and sampled 3, twice", "paper"),
    ("detail 40 %, once", "paper"),
    ("paper, twice", "paper"),
    ("foveated, twice", "sampled 2, twice"),
    ("dense, 2 steps", "dense"),
)

SETTINGS = {  # of each preset: its name among the methods, what it keeps, when it will not do
    "fast": (
        "detail, twice, text kept",
        "the paper's detail tokens, computed twice, text with them",
        "what is hidden is told from afar",
    ),
    "balanced": (
        "whole, once",
        "the whole context, computed once",
        "memory is short: it holds the keys and values of the whole context",
    ),
    "faithful": (
        "whole, twice",
        "the whole context, computed twice",
        "memory is short, or the last second counts",
    ),
    "paper": (
        "paper",
        "the paper's tokens, at every step",
        "the model was not trained for it",
    ),
}

SIZES = (256, 512)
# What differs by less, from dense's distance to the photograph, is too small to matter.
MARGINS = {"lpips": 0.005, "ssim": 0.005, "psnr": 0.25}


@cache
def rows_of(name: str) -> Rows:
    return read(RESULTS / f"{name}.csv")


def by(rows: Rows, *keys: str) -> dict[tuple[str, ...], Rows]:
    found: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return found


def mean(rows: Rows, column: str) -> float:
    return fmean(float(row[column]) for row in rows)


def _ends(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval."""
    found = interval(values)
    assert found is not None
    return found.mean, found.low, found.high


def share(rows: Rows) -> str:
    """The share solved, in percent, with its interval."""
    middle, low, high = (100 * x for x in _ends([float(row["solved"]) for row in rows]))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def curve(model: str) -> str:
    """What was solved in one call from pure noise, as training went."""
    by_samples = by(rows_of(f"curve_{model}"), "samples")
    chosen = list(by_samples)[:: max(1, len(by_samples) // 10)]
    chosen = list(dict.fromkeys([*chosen, list(by_samples)[-1]]))
    drawn = list(dict.fromkeys(row["kind"] for row in rows_of(f"curve_{model}")))
    header = ["samples", *(f"{kind}: error, solved %" for kind in drawn)]
    lines = []
    for samples in chosen:
        kinds = {row["kind"]: row for row in by_samples[samples]}
        cells = [
            f"{float(kinds[k]['error']):.4f}, {100 * float(kinds[k]['solved']):.0f}" for k in drawn
        ]
        lines.append([f"{int(samples[0]):,}", *cells])
    return markdown(header, lines)


def told() -> str:
    """Of how many pictures a selection keeps what tells the hidden part; no model takes part."""
    lines = []
    for (name,), mine in by(rows_of("told"), "selection").items():
        cells = [name, f"{_weighed(mine, 'tokens'):.0f}", f"{100 * _weighed(mine, 'flops'):.0f}"]
        kinds, grounds = by(mine, "kind"), by(mine, "ground")
        parts = [kinds[(k,)] for k in KINDS] + [grounds[(g,)] for g in GROUNDS]
        lines.append([*cells, *(f"{100 * _weighed(part):.0f}" for part in parts)])
    header = ["selection", "tokens of 256", "FLOPs, %", *KINDS, *(f"{g} ground" for g in GROUNDS)]
    return markdown(header, lines)


def _weighed(rows: Rows, column: str = "") -> float:
    """The mean of a column over pictures; without one, the share of them that is told."""
    pictures = [int(row["pictures"]) for row in rows]
    if not column:
        return sum(int(row["told"]) for row in rows) / sum(pictures)
    values = [float(row[column]) for row in rows]
    return sum(n * x for n, x in zip(pictures, values, strict=True)) / sum(pictures)


def selections(model: str) -> str:
    """Every selection: its cost, what it solves of each kind, and how near it is to dense."""
    rows = rows_of(model)
    measured = [kind for kind in NUMBERS if (kind,) in by(rows, "kind")]
    lines = []
    for (name,), mine in by(rows, "selection").items():
        kinds = by(mine, "kind")
        near = "" if name == "dense" else f"{mean(mine, 'psnr_dense'):.1f}"
        solved = [share(kinds[(kind,)]) if (kind,) in kinds else "" for kind in measured]
        tokens, flops = f"{mean(mine, 'tokens'):.0f}", f"{100 * mean(mine, 'flops'):.0f}"
        lines.append([name, str(len(mine)), tokens, flops, *solved, near])
    header = ["selection", "pictures", "tokens of 256", "FLOPs, %", *measured, "dB to dense"]
    return markdown(header, lines)


def grounds(model: str) -> str:
    """What each selection solves on each ground; lines, on plain ground alone, left out."""
    lines = []
    rows = [row for row in rows_of(model) if row["kind"] != "line"]
    for (name,), mine in by(rows, "selection").items():
        parts = by(mine, "ground")
        lines.append([name, *(share(parts[(ground,)]) for ground in GROUNDS)])
    return markdown(["selection", *(f"{ground}, solved %" for ground in GROUNDS)], lines)


def velocities(model: str) -> str:
    """The mean squared error of the velocity in the mask at each noise level."""
    levels = {"v_1": "1.0", "v_08": "0.8", "v_06": "0.6", "v_04": "0.4", "v_02": "0.2"}
    lines = []
    for (name,), mine in by(rows_of(model), "selection").items():
        known = [row for row in mine if row["v_1"]]
        if known:
            lines.append([name, *(f"{mean(known, column):.4f}" for column in levels)])
    return markdown(["selection", *(f"sigma {level}" for level in levels.values())], lines)


def pairs(model: str) -> str:
    """Differences picture by picture: of the share solved in points, and of dB to the truth."""
    found = {
        name: {(row["kind"], row["number"]): row for row in mine}
        for (name,), mine in by(rows_of(model), "selection").items()
    }
    lines = []
    for one, other in PAIRS:
        if one in found and other in found:
            shared = sorted(found[one].keys() & found[other].keys())
            both = [(found[one][key], found[other][key]) for key in shared]
            lines.append([f"{one}, less {other}", _points(both), _decibels(both)])
    return markdown(["difference", "solved, points", "PSNR, dB"], lines)


def _points(both: Iterable[tuple[dict[str, str], dict[str, str]]]) -> str:
    middle, low, high = _ends([100 * (int(a["solved"]) - int(b["solved"])) for a, b in both])
    return f"{middle:+.0f} ({low:+.0f} to {high:+.0f})"


def _decibels(both: Iterable[tuple[dict[str, str], dict[str, str]]]) -> str:
    middle, low, high = _ends([float(a["psnr"]) - float(b["psnr"]) for a, b in both])
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def embedded() -> str:
    """On photographs: cost of the embedded model, dB to dense, and how much nearer than paper's.

    Without fills that equal dense, every token having run: their distance is not finite.
    """
    rows = [r for r in rows_of("embedded_256") if float(r["psnr_dense"]) < SAME]
    lines = []
    for name in METHODS:
        cells = [name]
        for mask_class in CLASSES:
            mine = [r for r in rows if r["method"] == name and r["mask_class"] == mask_class]
            if not mine:
                break
            middle, low, high = _over_paper(rows, name, mask_class)
            more = "" if name == "paper" else f", {middle:+.1f} ({low:+.1f} to {high:+.1f})"
            cells += [f"{100 * mean(mine, 'flops'):.0f}", f"{mean(mine, 'psnr_dense'):.1f}{more}"]
        else:
            lines.append(cells)
    heads = [(f"{name}: FLOPs, %", "dB to dense, over the paper's") for name in CLASSES]
    return markdown(["method", *(cell for pair in heads for cell in pair)], lines)


def _over_paper(rows: Rows, method: str, mask_class: str) -> tuple[float, float, float]:
    """How many dB nearer to dense than the paper's selection, photograph by photograph."""
    near = {
        name: {r["photo"]: float(r["psnr_dense"]) for r in mine}
        for (name, where), mine in by(rows, "method", "mask_class").items()
        if where == mask_class
    }
    both = near[method].keys() & near["paper"].keys()
    return _ends([near[method][photo] - near["paper"][photo] for photo in sorted(both)])


def quality() -> str:
    """At 512 px: every method's distance to the photograph less dense's, and what that shows.

    Of dense the distance itself.
    """
    lines = []
    for mask_class in CLASSES:
        for name, mine in _at_512(mask_class).items():
            cells = [mask_class, _called(name), str(len(mine)), f"{100 * mean(mine, 'flops'):.0f}"]
            if name == "dense":
                lines.append([*cells, *(_mean(mine, measure) for measure in MARGINS), "", ""])
                continue
            cells += [f"{_spread(mine, m)} {shown(m, *_over_dense(mine, m)[1:])}" for m in MARGINS]
            near = [r for r in mine if float(r["psnr_dense"]) < SAME]
            lines.append([*cells, _mean(mine, "lpips_dense"), f"{mean(near, 'psnr_dense'):.1f}"])
    header = ["mask", "method", "photographs", "FLOPs, %", "LPIPS", "SSIM", "PSNR, dB"]
    return markdown([*header, "LPIPS to dense", "dB to dense"], lines)


def lost() -> str:
    """The same in words: under each mask what a method is by each measure, and by how much."""
    lines = []
    for name in _at_512("small"):
        if name != "dense":
            mine = [_at_512(mask_class)[name] for mask_class in CLASSES]
            lines.append([_called(name), *(", ".join(_words(m, x) for m in MARGINS) for x in mine)])
    return markdown(["over dense", *CLASSES], lines)


def _words(measure: str, mine: Rows) -> str:
    middle, *ends = _over_dense(mine, measure)
    said = shown(measure, *ends)
    by_how_much = f" by {abs(middle):.{_digits(measure)}f}" if said in ("better", "worse") else ""
    return f"{measure.upper()} {said}{by_how_much}"


def _at_512(mask_class: str) -> dict[str, Rows]:
    """The rows of photographs at 512 px under masks of a class, by method."""
    found = by(rows_of("embedded_512"), "mask_class", "method")
    return {name: mine for (where, name), mine in found.items() if where == mask_class}


def _called(method: str) -> str:
    """The method, by the name of the preset where it is one."""
    known = {setting: f"`{preset}`" for preset, (setting, *_) in SETTINGS.items()}
    return known.get(method, method)


def _over_dense(mine: Rows, measure: str) -> tuple[float, float, float]:
    """The difference from dense, photograph by photograph."""
    dense = {r["photo"]: float(r[measure]) for r in _at_512(mine[0]["mask_class"])["dense"]}
    return _ends([float(r[measure]) - dense[r["photo"]] for r in mine])


def _spread(mine: Rows, measure: str) -> str:
    middle, low, high = (f"{x:+.{_digits(measure)}f}" for x in _over_dense(mine, measure))
    return f"{middle} ({low} to {high})"


def _mean(mine: Rows, column: str) -> str:
    return f"{mean(mine, column):.{_digits(column)}f}"


def _digits(measure: str) -> int:
    return 2 if measure == "psnr" else 4


def shown(measure: str, low: float, high: float) -> str:
    """What the interval of a difference from dense shows, by the margin of that measure."""
    if -MARGINS[measure] < low and high < MARGINS[measure]:
        return "equivalent"
    if low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == (measure == "lpips") else "worse"


def flux() -> str:
    """FLOPs at the size of FLUX.1, in eight steps: times fewer than dense, by mask."""
    lines = [[name, *(f"{_fewer(name, mask):.2f}" for mask in CLASSES)] for name in METHODS]
    shares = (f"{name}, {share:.1%}".replace("%", " %") for name, share in CLASSES.items())
    return markdown(["method", *shares], lines)


def presets() -> str:
    """The presets: what each keeps, its cost at FLUX's size, and how near it is to dense."""
    sizes = [[r for r in rows_of(f"embedded_{n}") if float(r["psnr_dense"]) < SAME] for n in SIZES]
    lines = []
    for name, (method, keeps, unless) in SETTINGS.items():
        fewer = " / ".join(f"{_fewer(method, mask):.1f}" for mask in CLASSES)
        near = [" / ".join(_nearer(rows, method, mask) for mask in CLASSES) for rows in sizes]
        lines.append([f"`{name}`", keeps, fewer, *near, unless])
    masks = "small / medium / large mask"
    header = [
        "preset",
        "what it keeps",
        f"FLOPs, times fewer: {masks}",
        *(f"dB to dense over `paper`'s, {n} px" for n in SIZES),
    ]
    return markdown([*header, "when not"], lines)


def _nearer(rows: Rows, method: str, mask_class: str) -> str:
    return "0" if method == "paper" else f"{_over_paper(rows, method, mask_class)[0]:+.1f}"


@cache
def _fewer(name: str, mask_class: str) -> float:
    method, shares = METHODS[name], []
    base = np.linspace(1, 1 / 8, 8)
    sigmas = (np.exp(SHIFT) / (np.exp(SHIFT) + 1 / base - 1)).tolist()
    for file in sorted(EXAMPLES.glob("*.jpg")):
        photo = square(file, 1024).astype(np.float32) / 255
        mask = hidden(file.name, mask_class, 1024)[0].astype(np.float32)
        plan = plan_tokens(photo, mask, grid=(64, 64), method=method)
        shares.append(FLUX_FILL.share(plan, method, sigmas))
    return 1 / fmean(shares)


TABLES: Mapping[str, object] = {
    "curve": lambda: curve("dense"),
    "curve_second": lambda: curve("dense_1"),
    "second": lambda: selections("dense_1"),
    "dropped": lambda: selections("dropped"),
    "curve_noised": lambda: curve("noised"),
    "noised": lambda: selections("noised"),
    "told": told,
    "selections": lambda: selections("dense"),
    "grounds": lambda: grounds("dense"),
    "pairs": lambda: pairs("dense"),
    "velocities": lambda: velocities("dense"),
    "embedded": embedded,
    "quality": quality,
    "lost": lost,
    "flux": flux,
    "presets": presets,
}


def written(text: str) -> str:
    """The text with every table made anew."""

    def again(match: re.Match[str]) -> str:
        table = TABLES[match[1]]
        assert callable(table)
        return f"<!-- table {match[1]} -->\n{table()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", again, text, flags=re.DOTALL)


def main() -> None:
    for page in (README, CHOOSING):
        page.write_text(written(page.read_text()))


if __name__ == "__main__":
    main()
