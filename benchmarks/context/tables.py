"""The tables of this page and of others: `python -m benchmarks.context.tables NAME` prints one."""

from collections.abc import Callable
from typing import Annotated

import typer

from .drawn_tables import (
    SOME,
    curve,
    errors,
    grounds,
    pairs,
    selections,
    threshold,
    told,
    velocities,
    velocities_by_kind,
)
from .model import MAIN
from .photo_tables import embedded, lost, quality
from .preset_tables import flux, noised_presets, presets, unrested

TABLES: dict[str, Callable[[], str]] = {
    "selections": lambda: selections(MAIN),
    "pairs": lambda: pairs(MAIN),
    "grounds": lambda: grounds(MAIN),
    "errors": lambda: errors(MAIN),
    "velocities": lambda: velocities(MAIN),
    "velocities_by_kind": lambda: velocities_by_kind(MAIN),
    "other_seed": lambda: selections("dense", SOME),
    "dropped": lambda: selections("dropped"),
    "noised": lambda: selections("noised"),
    "noised_longer": lambda: selections("noised_longer"),
    "curve": lambda: curve(MAIN),
    "curve_other": lambda: curve("dense"),
    "curve_noised": lambda: curve("noised"),
    "told": told,
    "threshold": threshold,
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
