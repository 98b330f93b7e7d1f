"""What selections lose on photographs: the tables of their rows.

Intervals are 95 % bootstrap intervals over photographs; differences are paired.
"""

from hilotoken.bench.results.readings import SAME
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES

from .photos import METHODS
from .rows import Rows, by, ends, mean, rows_of, spread

SETTINGS = {  # of each preset: its name among the methods, what it keeps, when it will not do
    "fast": (
        "detail, twice, text kept",
        "the paper's detail tokens, computed twice, text with them",
        "what is hidden is told from afar",
    ),
    "balanced": (
        "whole, once",
        "the whole context, computed once",
        "it has not 25 dB: keys of the first step do not last on every model; or memory is short",
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

# What differs by less, from dense's distance to the photograph, is too small to matter.
MARGINS = {"lpips": 0.005, "ssim": 0.005, "psnr": 0.25}


def embedded(few: bool = False) -> str:
    """On photographs: cost of the embedded model, dB to dense, and how much nearer than paper's.

    Without fills that equal dense, every token having run: their distance is not finite. Methods of
    one table were run on the same photographs: on all, or, if asked for, those on `few`.
    """
    rows = [r for r in rows_of("embedded_256") if float(r["psnr_dense"]) < SAME]
    seen = {name: {r["photo"] for r in rows if r["method"] == name} for name in METHODS}
    most = len(seen["paper"])
    chosen = [n for n in METHODS if n == "paper" or (len(seen[n]) < most) is few]
    shared = set.intersection(*(seen[name] for name in chosen))
    rows = [r for r in rows if r["photo"] in shared]
    lines = [[name, *_costs(rows, name)] for name in chosen]
    heads = [(f"{name}: FLOPs, %", "dB to dense, over the paper's") for name in CLASSES]
    return markdown([f"{len(shared)} photographs", *(c for pair in heads for c in pair)], lines)


def _costs(rows: Rows, method: str) -> list[str]:
    cells = []
    for mask_class in CLASSES:
        mine = [r for r in rows if (r["method"], r["mask_class"]) == (method, mask_class)]
        nearer = spread(over_paper(rows, method, mask_class), "+.1f")
        more = "" if method == "paper" else f", {nearer}"
        cells += [f"{100 * mean(mine, 'flops'):.0f}", f"{mean(mine, 'psnr_dense'):.1f}{more}"]
    return cells


def over_paper(rows: Rows, method: str, mask_class: str) -> tuple[float, float, float]:
    """How many dB nearer to dense than the paper's selection, photograph by photograph."""
    near = {
        name: {r["photo"]: float(r["psnr_dense"]) for r in mine}
        for (name, where), mine in by(rows, "method", "mask_class").items()
        if where == mask_class
    }
    both = near[method].keys() & near["paper"].keys()
    return ends([near[method][photo] - near["paper"][photo] for photo in sorted(both)])


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
    return ends([float(r[measure]) - dense[r["photo"]] for r in mine])


def _spread(mine: Rows, measure: str) -> str:
    return spread(_over_dense(mine, measure), f"+.{_digits(measure)}f")


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
