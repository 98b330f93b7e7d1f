"""One method inside another, as one value: what a command line names by `hilo + todo factor=2`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .controls import Control


@dataclass(frozen=True)
class Within(Control):
    """The same as `compress(pipe, outer, inside=inside)`.

    Raises:
        ValueError: the two do not go together, at construction.
    """

    outer: Any
    inside: Any

    def __post_init__(self) -> None:
        from . import check_inside

        check_inside(self.outer, self.inside)

    def run(self, compressed: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from ..compress import compress

        both = compress(compressed.pipe, self.outer, inside=self.inside, feather=compressed.feather)
        output = both(*args, **kwargs)
        assert both.last_run is not None
        compressed.last_run = dataclasses.replace(both.last_run, method=self)
        return output
