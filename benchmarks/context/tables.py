"""The tables of this page and of others: `python -m benchmarks.context.tables NAME` prints one."""

from collections.abc import Callable
from typing import Annotated

import typer

from .drawn_tables import curve, errors, grounds, pairs, selections, threshold, told, velocities
from .photo_tables import embedded, lost, quality
from .preset_tables import flux, noised_presets, presets, unrested

TABLES: dict[str, Callable[[], str]] = {
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
    "errors": lambda: errors("dense"),
    "threshold": threshold,
    "velocities": lambda: velocities("dense"),
    "embedded": embedded,
    "embedded_few": lambda: embedded(few=True),
    "quality": quality,
    "lost": lost,
    "flux": flux,
    "presets": presets,
    "noised_presets": noised_presets,
    "unrested": unrested,
}


def main(name: Annotated[str, typer.Argument(help=f"One of {', '.join(TABLES)}.")]) -> None:
    """Print a table as its document holds it."""
    if name not in TABLES:
        raise typer.BadParameter(f"no table {name}: choose from {', '.join(TABLES)}")
    print(TABLES[name](), end="")


if __name__ == "__main__":
    typer.run(main)
