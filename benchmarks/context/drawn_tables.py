"""What selections solve of drawn pictures: the tables of their rows.

Intervals are 95 % bootstrap intervals over pictures; differences are paired, picture by picture.
"""

from collections.abc import Iterable, Sequence

from hilotoken.bench.show.cells import markdown

from .evaluate import NUMBERS
from .pictures import GROUNDS, KINDS
from .rows import Rows, by, ends, mean, rows_of, spread, spread_of

SOME = (  # of the selections, where a second table of all of them would tell nothing new
    "dense", "edit only", "needed", "random", "paper", "detail", "sampled 2", "foveated", "pyramid",
    "whole, once", "whole, twice", "attended 25 %, once", "detail, twice",
    "detail and sampled 3, twice", "foveated, twice", "dense, 2 steps",
)  # fmt: skip
MODELS = ("dense", "dense_1", "dropped", "noised", "noised_longer")
NEAR = 25  # dB to dense; what a user is told to look for
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


def share(rows: Rows) -> str:
    """The share solved, in percent, with its interval."""
    middle, low, high = ends([float(row["solved"]) for row in rows])
    return spread((100 * middle, 100 * low, 100 * high), ".0f")


def measured(rows: Rows) -> list[str]:
    """The kinds of pictures among the rows."""
    found = {row["kind"] for row in rows}
    return [kind for kind in NUMBERS if kind in found]


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


def selections(model: str, some: Sequence[str] = ()) -> str:
    """Every selection, or some: cost, what it solves of each kind, and how near it is to dense."""
    rows = [row for row in rows_of(model) if not some or row["selection"] in some]
    drawn, lines = measured(rows), []
    for (name,), mine in by(rows, "selection").items():
        kinds = by(mine, "kind")
        near = "" if name == "dense" else f"{mean(mine, 'psnr_dense'):.1f}"
        solved = [share(kinds[(kind,)]) if (kind,) in kinds else "" for kind in drawn]
        tokens, flops = f"{mean(mine, 'tokens'):.0f}", f"{100 * mean(mine, 'flops'):.0f}"
        lines.append([name, str(len(mine)), tokens, flops, *solved, near])
    header = ["selection", "pictures", "tokens of 256", "FLOPs, %", *drawn, "dB to dense"]
    return markdown(header, lines)


def grounds(model: str) -> str:
    """What each selection solves on each ground; lines, on plain ground alone, left out."""
    lines = []
    rows = [row for row in rows_of(model) if row["kind"] != "line"]
    for (name,), mine in by(rows, "selection").items():
        parts = by(mine, "ground")
        lines.append([name, *(share(parts[(ground,)]) for ground in GROUNDS)])
    return markdown(["selection", *(f"{ground}, solved %" for ground in GROUNDS)], lines)


LEVELS = {"v_1": "1.0", "v_08": "0.8", "v_06": "0.6", "v_04": "0.4", "v_02": "0.2"}
MIDDLE = "v_06"


def velocities(model: str) -> str:
    """The mean squared error of the velocity in the mask at each noise level."""
    lines = [
        [name, *(spread_of(mine, column, ".4f") for column in LEVELS)]
        for (name,), mine in by(_with_velocities(model), "selection").items()
    ]
    return markdown(["selection", *(f"sigma {level}" for level in LEVELS.values())], lines)


def velocities_by_kind(model: str) -> str:
    """The same at the middle noise level, by kind of picture."""
    rows = _with_velocities(model)
    return markdown([f"sigma {LEVELS[MIDDLE]}", *measured(rows)], _by_kind(rows, MIDDLE, ".3f"))


def _with_velocities(model: str) -> Rows:
    return [row for row in rows_of(model) if row[MIDDLE]]


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
    return spread(ends([100 * (int(a["solved"]) - int(b["solved"])) for a, b in both]), "+.0f")


def _decibels(both: Iterable[tuple[dict[str, str], dict[str, str]]]) -> str:
    return spread(ends([float(a["psnr"]) - float(b["psnr"]) for a, b in both]), "+.1f")


def threshold() -> str:
    """How many fills come near to dense: of those that miss what it finds, and of the others."""
    lines = []
    for model in MODELS:
        rows = rows_of(model)
        found = {(r["kind"], r["number"]) for r in rows if _solved_by_dense(r)}
        fills = [r for r in rows if r["psnr_dense"] and (r["kind"], r["number"]) in found]
        for solved in "01":
            mine = [r for r in fills if r["solved"] == solved]
            near = sum(float(r["psnr_dense"]) >= NEAR for r in mine)
            cells = f"{near:,} of {len(mine):,}", f"{100 * near / len(mine):.1f}"
            lines.append([model, ("missed it", "found it")[int(solved)], *cells])
    header = ["model", "of fills that", f"have {NEAR} dB to dense", "%"]
    return markdown(header, lines)


def _solved_by_dense(row: dict[str, str]) -> bool:
    return row["selection"] == "dense" and row["solved"] == "1"


def errors(model: str) -> str:
    """How near every selection comes: to the truth by kind, and to dense; dB, with intervals."""
    rows = rows_of(model)
    near = [spread_of(mine, "psnr_dense", ".1f") for mine in by(rows, "selection").values()]
    lines = [[*line, cell] for line, cell in zip(_by_kind(rows, "psnr", ".1f"), near, strict=True)]
    header = ["selection", *(f"{kind}, dB" for kind in measured(rows)), "to dense, dB"]
    return markdown(header, lines)


def _by_kind(rows: Rows, column: str, form: str) -> list[list[str]]:
    """Of each selection its name, and a column's mean with its interval for each kind."""
    drawn, lines = measured(rows), []
    for (name,), mine in by(rows, "selection").items():
        kinds = by(mine, "kind")
        lines.append([name, *(spread_of(kinds.get((k,), []), column, form) for k in drawn)])
    return lines
